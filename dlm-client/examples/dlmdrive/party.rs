//! A node as those who drive it see it: events in one form, and commands over a connection.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use dlm_client::{LVB_LEN, Lkf, Lvb, Mode};

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What happened to a lock, in the words of the kernel's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// An operation ended: 0, or a negative errno.
    Cast {
        token: u64,
        status: i32,
        sb: u32,
        lvb: Option<Lvb>,
    },
    Bast {
        token: u64,
        mode: Mode,
    },
    /// Anything else, as it is to be printed.
    Other(String),
}

/// A node that is driven. Operations name locks by the token of their request.
pub(crate) trait Node {
    fn join(&mut self, lockspace: &str) -> Result<(), String>;
    fn leave(&mut self) -> Result<(), String>;
    fn request(&mut self, token: u64, name: &str, mode: Mode, flags: Lkf) -> Result<(), String>;
    fn convert(&mut self, token: u64, mode: Mode, flags: Lkf, lvb: &Lvb) -> Result<(), String>;
    fn unlock(&mut self, token: u64, flags: Lkf, lvb: &Lvb) -> Result<(), String>;
    fn cancel(&mut self, token: u64) -> Result<(), String>;
    /// The next thing that happened, waited for at most `timeout`.
    fn report(&mut self, timeout: Duration) -> Option<Report>;
    /// What this node can do beyond that.
    fn other(&mut self, words: &[&str]) -> Result<Vec<String>, String>;
}

/// Who takes commands.
pub(crate) trait Party {
    /// The lines of the answer but the last.
    fn ask(&mut self, command: &str) -> Result<Vec<String>, String>;
}

/// A node at the other end of a connection.
#[derive(Debug)]
pub(crate) struct Remote {
    name: String,
    lines: BufReader<TcpStream>,
}

impl Remote {
    pub(crate) fn connect(address: &str) -> Result<Self, String> {
        let stream = TcpStream::connect(address).map_err(|e| format!("{address}: {e}"))?;
        stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
            .map_err(|e| format!("{address}: {e}"))?;
        Ok(Self {
            name: address.to_owned(),
            lines: BufReader::new(stream),
        })
    }
}

impl Party for Remote {
    fn ask(&mut self, command: &str) -> Result<Vec<String>, String> {
        let failed = |e: std::io::Error| format!("{} on {command:?}: {e}", self.name);
        self.lines
            .get_ref()
            .write_all(format!("{command}\n").as_bytes())
            .map_err(failed)?;
        let mut answer = Vec::new();
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).map_err(failed)? == 0 {
                return Err(format!("{} hung up on {command:?}", self.name));
            }
            let line = line.trim_end_matches('\n');
            if line == "ok" {
                return Ok(answer);
            }
            if let Some(why) = line.strip_prefix("error ") {
                return Err(why.to_owned());
            }
            answer.push(line.to_owned());
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A value block from hex; what is missing is zero.
pub(crate) fn lvb(text: &str) -> Result<Lvb, String> {
    let mut lvb = [0; LVB_LEN];
    if !text.len().is_multiple_of(2) || text.len() > 2 * LVB_LEN || !text.is_ascii() {
        return Err(format!("{text}: not a value block"));
    }
    for (at, byte) in lvb.iter_mut().enumerate().take(text.len() / 2) {
        let digits = &text[2 * at..2 * at + 2];
        *byte = u8::from_str_radix(digits, 16).map_err(|e| format!("{digits}: {e}"))?;
    }
    Ok(lvb)
}
