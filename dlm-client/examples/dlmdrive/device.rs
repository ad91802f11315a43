//! The kernel's DLM through its misc device: requests are written, results are read, all of them plain bytes.
//!
//! Pointers in the interface are never followed by the kernel; the token of a lock goes there, shifted so that it is
//! never null, its lowest bit telling a blocking callback from a completion.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use dlm_client::{Lkf, Lvb, Mode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::party::{Node, Report};

const LOCK: u8 = 1;
const UNLOCK: u8 = 2;
const CREATE: u8 = 4;
const REMOVE: u8 = 5;
const PURGE: u8 = 6;
const HEAD: usize = 120;
/// Drop locks that remain.
const FORCE: u32 = 2;
/// The status of an unlock.
pub(crate) const EUNLOCK: i32 = -0x1_0002;
const EAGAIN: i32 = 11;
const NONBLOCK: i32 = 0o4000;

/// One request as the device takes it.
struct Request(Vec<u8>);

impl Request {
    /// With room for a name.
    fn new(command: u8, name: &str) -> Self {
        let mut bytes = vec![0; HEAD + name.len()];
        bytes[0] = 6;
        bytes[12] = command;
        bytes[13] = 1;
        Self(bytes)
    }

    fn put(mut self, at: usize, value: &[u8]) -> Self {
        self.0[at..at + value.len()].copy_from_slice(value);
        self
    }

    fn lock(command: u8, token: u64, lkid: u32, flags: u32, lvb: &Lvb) -> Self {
        Self::new(command, "")
            .put(20, &flags.to_le_bytes())
            .put(24, &lkid.to_le_bytes())
            .put(48, &token.to_le_bytes())
            .put(56, &(token << 1 | 2 << 48).to_le_bytes())
            .put(64, &token.to_le_bytes())
            .put(72, &(token << 1 | 1 | 2 << 48).to_le_bytes())
            .put(80, &(token | 1 << 48).to_le_bytes())
            .put(88, lvb)
    }
}

#[derive(Debug)]
struct Space {
    minor: u32,
    file: File,
}

/// A lockspace of the kernel.
#[derive(Debug, Default)]
pub(crate) struct KernelNode {
    space: Option<Space>,
    /// By token: the kernel's id, and whether it was ever granted.
    locks: BTreeMap<u64, (u32, bool)>,
    early: VecDeque<Report>,
}

/// What the device answered, in the words a user of our own backend hears.
fn refused(e: &std::io::Error) -> String {
    match e.raw_os_error() {
        Some(16) => "busy".to_owned(),
        Some(22) => "invalid".to_owned(),
        _ => format!("the device: {e}"),
    }
}

fn control(request: &Request) -> Result<usize, String> {
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/misc/dlm-control");
    let mut file = open.map_err(|e| format!("/dev/misc/dlm-control: {e}"))?;
    file.write(&request.0).map_err(|e| format!("dlm-control: {e}"))
}

impl KernelNode {
    fn write(&mut self, request: &Request) -> Result<usize, String> {
        let space = self.space.as_mut().ok_or("not joined")?;
        // One at a time even while the lockspace recovers: the device then sleeps.
        space.file.write(&request.0).map_err(|e| refused(&e))
    }

    fn lkid(&self, token: u64) -> Result<u32, String> {
        self.locks
            .get(&token)
            .map(|(lkid, _)| *lkid)
            .ok_or_else(|| "no such lock".to_owned())
    }

    fn read(&mut self) -> Option<Report> {
        let mut bytes = [0; 256];
        let space = self.space.as_mut()?;
        let len = match space.file.read(&mut bytes) {
            Ok(len) => len,
            Err(e) if e.raw_os_error() == Some(EAGAIN) => return None,
            Err(e) => return Some(Report::Other(format!("device {e}"))),
        };
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let token = u64::from(word(24)) | u64::from(word(28)) << 32;
        if word(16) & 1 == 1 {
            let mode = Mode::from_number(bytes[64]).unwrap_or(Mode::Nl);
            return Some(Report::Bast { token, mode });
        }
        let status = i32::from_le_bytes([bytes[40], bytes[41], bytes[42], bytes[43]]);
        let at = usize::try_from(word(68)).unwrap_or(0);
        let lvb = (at > 0 && len >= at + 32).then(|| {
            let mut lvb = [0; 32];
            lvb.copy_from_slice(&bytes[at..at + 32]);
            lvb
        });
        match (status, self.locks.get_mut(&token)) {
            (0, Some(lock)) => lock.1 = true,
            (EUNLOCK, _) | (_, Some((_, false))) => {
                self.locks.remove(&token);
            }
            _ => {}
        }
        Some(Report::Cast {
            token,
            status,
            sb: u32::from(bytes[48]),
            lvb,
        })
    }
}

impl Node for KernelNode {
    fn join(&mut self, lockspace: &str) -> Result<(), String> {
        let minor = control(&Request::new(CREATE, lockspace).put(24, lockspace.as_bytes()))?;
        let path = format!("/dev/misc/dlm_{lockspace}");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(NONBLOCK)
            .open(&path)
            .map_err(|e| format!("{path}: {e}"))?;
        let minor = u32::try_from(minor).map_err(|e| e.to_string())?;
        self.space = Some(Space { minor, file });
        self.locks.clear();
        Ok(())
    }

    fn leave(&mut self) -> Result<(), String> {
        let space = self.space.take().ok_or("not joined")?;
        drop(space.file);
        self.early.clear();
        let request = Request::new(REMOVE, "")
            .put(16, &FORCE.to_le_bytes())
            .put(20, &space.minor.to_le_bytes());
        control(&request).map(|_| ())
    }

    fn request(&mut self, token: u64, name: &str, mode: Mode, flags: Lkf) -> Result<(), String> {
        let mut request = Request::lock(LOCK, token, 0, flags.bits(), &[0; 32]).put(
            16,
            &[
                mode.number(),
                u8::try_from(name.len()).map_err(|e| e.to_string())?,
            ],
        );
        request.0.extend_from_slice(name.as_bytes());
        let lkid = u32::try_from(self.write(&request)?).map_err(|e| e.to_string())?;
        self.locks.insert(token, (lkid, false));
        // What came of it may have been read only after its id was known.
        Ok(())
    }

    fn convert(&mut self, token: u64, mode: Mode, flags: Lkf, lvb: &Lvb) -> Result<(), String> {
        let lkid = self.lkid(token)?;
        let flags = (flags | Lkf::CONVERT).bits();
        let request = Request::lock(LOCK, token, lkid, flags, lvb).put(16, &[mode.number()]);
        self.write(&request).map(|_| ())
    }

    fn unlock(&mut self, token: u64, flags: Lkf, lvb: &Lvb) -> Result<(), String> {
        let lkid = self.lkid(token)?;
        self.write(&Request::lock(UNLOCK, token, lkid, flags.bits(), lvb))
            .map(|_| ())
    }

    fn cancel(&mut self, token: u64) -> Result<(), String> {
        let lkid = self.lkid(token)?;
        let flags = Lkf::CANCEL.bits();
        self.write(&Request::lock(UNLOCK, token, lkid, flags, &[0; 32]))
            .map(|_| ())
    }

    fn report(&mut self, timeout: Duration) -> Option<Report> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(report) = self.early.pop_front().or_else(|| self.read()) {
                return Some(report);
            }
            let space = self.space.as_ref()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let mut fds = [PollFd::new(&space.file, PollFlags::IN)];
            let _ready = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
        }
    }

    fn other(&mut self, words: &[&str]) -> Result<Vec<String>, String> {
        let ["purge", node, process] = *words else {
            return Err(format!("what is {words:?}?"));
        };
        let number = |text: &str| text.parse::<u32>().map_err(|e| format!("{text}: {e}"));
        let request = Request::new(PURGE, "")
            .put(16, &number(node)?.to_le_bytes())
            .put(20, &number(process)?.to_le_bytes());
        self.write(&request).map(|_| Vec::new())
    }
}
