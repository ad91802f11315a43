//! The kernel's list of a lockspace's locks: `dlm/<lockspace>_all` of its debugfs, text that is made as it is read.
//!
//! After a line with the versions (1.1; 6.1) or the names of the fields (6.12) there is a line `rsb` for each resource, perhaps one with its value block, and a line
//! `lkb` for each lock on its queues. A name with a byte that is not printable ASCII is given in hex; the file
//! `<lockspace>_locks` ends it at a zero byte and is no use here.

use std::io::{self, BufRead, Read};

use crate::resource::RESNAME_MAX;
use crate::{Lkf, Mode, ResName};

/// Bytes of the longest line: 64 bytes in hex are 192, and 16 numbers at most 20 each.
const LINE_MAX: u64 = 1024;
/// A lock of this node on a resource of another is told from one of another node on a resource of this by this flag.
const COPY: u32 = 0x1_0000;
/// The first line of newer kernels begins so, where the address of a resource would be.
const FIELDS: &[u8] = b"rsb ptr nodeid first_lkid flags ";

/// A lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The kernel's id.
    pub lkid: u32,
    /// On what.
    pub name: ResName,
    /// The thread that last asked for it, as the first PID namespace counts.
    pub thread: u32,
    /// What whoever asked for it put there (`xid`).
    pub mark: u64,
    /// Another node's.
    pub copy: bool,
    /// To be kept when its process dies.
    pub persistent: bool,
    /// `None`: it waits for its first grant.
    pub granted: Option<Mode>,
}

/// A list that is none.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// It cannot be read.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// A line that cannot be understood.
    #[error("line {line}: {what}")]
    Line {
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// The locks of a list, in its order. Ends after the first error.
#[derive(Debug)]
pub struct List<R> {
    text: R,
    line: u64,
    buffer: Vec<u8>,
    /// Whose locks follow; none when the name is empty, which nobody can ask for through [`ResName`].
    resource: Option<Option<ResName>>,
    ended: bool,
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn hex(bytes: &[u8]) -> Option<u32> {
    u32::from_str_radix(text(bytes)?, 16).ok()
}

fn number<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    text(bytes)?.parse().ok()
}

/// The name at the end of a line `rsb`: as text, or as hex with a blank before each byte.
fn name(len: usize, shown: &[u8]) -> Option<Option<ResName>> {
    let mut bytes = [0; RESNAME_MAX];
    let bytes = bytes.get_mut(..len)?;
    if let Some(plain) = shown.strip_prefix(b"str ") {
        if plain.len() != len {
            return None;
        }
        bytes.copy_from_slice(plain);
    } else {
        let digits = shown.strip_prefix(b"hex")?;
        if digits.len() != len.checked_mul(3)? {
            return None;
        }
        for (byte, digits) in bytes.iter_mut().zip(digits.chunks(3)) {
            *byte = u8::try_from(hex(digits.strip_prefix(b" ")?)?).ok()?;
        }
    }
    Some(ResName::new(bytes).ok())
}

/// address, master, first lock, flags, two of recovery, count, length, name
fn resource(rest: &[u8]) -> Option<Option<ResName>> {
    let mut words = rest.splitn(9, |byte| *byte == b' ');
    let len = number(words.nth(7)?)?;
    name(len, words.next()?)
}

/// id, node, id there, thread, mark, flags of the request, flags, queue, mode, mode asked for, and more
fn lock(rest: &[u8], name: ResName) -> Option<Listed> {
    let mut words = rest.split(|byte| *byte == b' ');
    let lkid = hex(words.next()?)?;
    let thread = number(words.nth(2)?)?;
    let mark = number(words.next()?)?;
    let asked = hex(words.next()?)?;
    let flags = hex(words.next()?)?;
    let mode: i32 = number(words.nth(1)?)?;
    let granted = match mode {
        -1 => None,
        mode => Some(Mode::from_number(u8::try_from(mode).ok()?)?),
    };
    let copy = flags & COPY != 0;
    Some(Listed {
        lkid,
        name,
        thread,
        mark,
        copy,
        persistent: asked & Lkf::PERSISTENT.bits() != 0,
        granted,
    })
}

impl<R: BufRead> List<R> {
    /// A list from its beginning.
    pub fn new(text: R) -> Self {
        Self {
            text,
            line: 0,
            buffer: Vec::new(),
            resource: None,
            ended: false,
        }
    }

    /// Reads a line, without its end. False: there is none.
    fn read(&mut self) -> Result<bool, ListError> {
        self.buffer.clear();
        let mut bounded = self.text.by_ref().take(LINE_MAX);
        if bounded.read_until(b'\n', &mut self.buffer)? == 0 {
            return Ok(false);
        }
        self.line = self.line.saturating_add(1);
        match self.buffer.pop() {
            Some(b'\n') => Ok(true),
            _ => Err(self.broken("too long, or cut off")),
        }
    }

    const fn broken(&self, what: &'static str) -> ListError {
        ListError::Line {
            line: self.line,
            what,
        }
    }

    fn next_lock(&mut self) -> Result<Option<Listed>, ListError> {
        while self.read()? {
            let line = self.buffer.as_slice();
            if line.starts_with(FIELDS) || line.starts_with(b"lvb ") {
                continue;
            }
            if let Some(rest) = line.strip_prefix(b"lkb ") {
                match self.resource {
                    None => return Err(self.broken("a lock without a resource")),
                    Some(None) => {}
                    Some(Some(name)) => {
                        let lock = lock(rest, name);
                        return lock.map(Some).ok_or_else(|| self.broken("not a lock"));
                    }
                }
            } else if let Some(rest) = line.strip_prefix(b"rsb ") {
                let found = resource(rest);
                self.resource = Some(found.ok_or_else(|| self.broken("not a resource"))?);
            } else if line.starts_with(b"version ") {
                let [rsb, lkb] = [&b" rsb 1."[..], b" lkb 1."].map(|part| {
                    let mut windows = line.windows(part.len());
                    windows.any(|window| window == part)
                });
                if !rsb || !lkb {
                    return Err(self.broken("another version than 1"));
                }
            } else {
                return Err(self.broken("neither a resource, a value block nor a lock"));
            }
        }
        Ok(None)
    }
}

impl<R: BufRead> Iterator for List<R> {
    type Item = Result<Listed, ListError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_lock().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As 6.12 and 6.1 write it.
    const NEWER: &str = "rsb ptr nodeid first_lkid flags !root_list_empty !recover_list_empty recover_locks_count len\n\
        rsb 00000000c0ffee01 0 0 0 0 0 0 5 str grave\n\
        lvb 2 32 0a 0b 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00\n\
        lkb 1 0 0 412 7 88 0 2 4 -1 0 0 0 2 81927645321 0\n\
        lkb 2 1 3 0 0 8 10000 1 -1 3 -1 0 0 0 81927645399 0\n\
        rsb 00000000c0ffee02 1 0 0 0 0 0 3 hex 61 00 22\n\
        lkb 1f 1 9 413 18446744073709551615 80 0 3 3 5 5 0 0 0 91927645321 0\n";
    const OLDER: &str = "version rsb 1.1 lvb 1.1 lkb 1.1\n\
        rsb 00000000c0ffee01 0 0 0 0 0 0 10 str  with rsb \n\
        lkb 1 0 0 412 0 80 3 2 5 -1 -1 0 0 0 81927645321 0\n\
        lkb 2 0 0 413 0 8 1 1 -1 5 -1 0 0 0 81927645321 0\n";

    fn read(text: &[u8]) -> Result<Vec<Listed>, String> {
        List::new(text)
            .collect::<Result<_, _>>()
            .map_err(|e| e.to_string())
    }

    fn brief(text: &str) -> Vec<(u32, &'static str, Option<Mode>)> {
        let kind = |lock: &Listed| match (lock.copy, lock.persistent) {
            (true, _) => "copy",
            (false, true) => "kept",
            (false, false) => "dropped",
        };
        let locks = read(text.as_bytes()).unwrap();
        locks
            .iter()
            .map(|lock| (lock.lkid, kind(lock), lock.granted))
            .collect()
    }

    #[test]
    fn locks_are_read_with_the_names_they_are_on() {
        assert_eq!(
            brief(NEWER),
            [
                (1, "kept", Some(Mode::Pw)),
                (2, "copy", None),
                (0x1f, "kept", Some(Mode::Pr))
            ]
        );
        assert_eq!(brief(OLDER), [(1, "kept", Some(Mode::Ex)), (2, "dropped", None)]);
        let locks = read(NEWER.as_bytes()).unwrap();
        assert_eq!((locks[0].thread, locks[0].mark), (412, 7));
        assert_eq!((locks[2].thread, locks[2].mark), (413, u64::MAX));
        let names: Vec<&[u8]> = locks.iter().map(|lock| lock.name.as_bytes()).collect();
        assert_eq!(names, [&b"grave"[..], b"grave", b"a\0\""]);
        assert_eq!(read(OLDER.as_bytes()).unwrap()[0].name.as_bytes(), b" with rsb ");
        assert_eq!(read(b"").unwrap(), []);
    }

    #[test]
    fn a_broken_line_is_named() {
        for (from, to, said) in [
            ("ptr nodeid", "ptr master", "line 1: not a resource"),
            ("5 str", "4 str", "line 2: not a resource"),
            ("5 str", "65 str", "line 2: not a resource"),
            ("str grave", "", "line 2: not a resource"),
            ("lvb 2", "lvx 2", "line 3: neither a resource"),
            ("412 7", "412 -7", "line 4: not a lock"),
            ("2 4 -1", "2 6 -1", "line 4: not a lock"),
            ("2 4 -1", "2 -2 -1", "line 4: not a lock"),
            ("61 00 22", "61 00 2", "line 6: not a resource"),
            ("61 00 22", "61 0g 22", "line 6: not a resource"),
            ("91927645321 0\n", "91927645321 0", "line 7: too long, or cut off"),
            (
                "91927645321 0\n",
                &"0".repeat(1200),
                "line 7: too long, or cut off",
            ),
        ] {
            let broken = NEWER.replacen(from, to, 1);
            assert_ne!(broken, NEWER);
            let error = read(broken.as_bytes()).unwrap_err();
            assert!(error.starts_with(said), "{from} -> {to}: {error}");
        }
        assert_eq!(
            read(OLDER.replace("lkb 1.1", "lkb 2.0").as_bytes()).unwrap_err(),
            "line 1: another version than 1"
        );
        assert_eq!(
            read(b"lkb 1 0 0 1 0 80 0 2 5 -1\n").unwrap_err(),
            "line 1: a lock without a resource"
        );
    }

    /// Bytes changed, cut out and put in; and no end to a line.
    #[test]
    fn no_bytes_make_it_panic_or_take_much_memory() {
        let mut random = fastrand::Rng::with_seed(11);
        let (mut good, mut bad) = (0, 0);
        for round in 0..60_000 {
            let mut bytes = [NEWER, OLDER][round % 2].as_bytes().to_vec();
            for _ in 0..random.usize(1..5) {
                let at = random.usize(..bytes.len());
                match random.u8(..4) {
                    0 => drop(bytes.remove(at)),
                    1 => bytes.insert(at, random.u8(..)),
                    2 => bytes[at] = b" \n-0f"[random.usize(..5)],
                    _ => bytes[at] = random.u8(..),
                }
            }
            match read(&bytes) {
                Ok(_) => good += 1,
                Err(_) => bad += 1,
            }
        }
        assert!(good > 1000 && bad > 1000, "{good} read, {bad} refused");
        let mut endless = List::new(io::BufReader::new(io::repeat(b'x')));
        assert!(endless.next().is_some_and(|first| first.is_err()));
        assert!(endless.next().is_none() && endless.buffer.capacity() <= 4096);
    }
}
