//! The lock daemon's control socket: what an operator asks a running node, and its answers.
//!
//! A node listens on `/run/gfs2/dlm/NODEID.sock` (directory 0700, socket 0600). A request is one line, `WORD [ARGUMENT]
//! [json]`; the answer is `ok` or `error TEXT` in its first line, what was asked for after it, and the end of the
//! connection. One request is served at a time; neither a request without end nor a reader that does not read can hold
//! the daemon up for longer than [`PATIENCE`], or take more memory than the answer.

mod json;
mod render;

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{error, warn};

use crate::NodeId;
use crate::backend::wire::Observer;

/// Where nodes listen, each on `NODEID.sock`.
pub const DIRECTORY: &str = "/run/gfs2/dlm";
/// The longest request.
const REQUEST_MAX: usize = 256;
/// The longest answer a client takes.
const ANSWER_MAX: u64 = 256 << 20;
/// How long one request may take to come, or its answer to be taken.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Serves one node's socket until it is dropped.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Listens in a directory, which is made if need be.
    ///
    /// # Errors
    /// Another node's process that listens there, or what the system says, with the path.
    pub fn serve(observer: Observer, directory: &Path) -> Result<Self, String> {
        let path = directory.join(format!("{}.sock", observer.node().0));
        let failed = |error: io::Error| format!("control socket {}: {error}", path.display());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
        if UnixStream::connect(&path).is_ok() {
            return Err(format!(
                "control socket {}: a lock daemon of this node runs already; stop it first",
                path.display()
            ));
        }
        // One that a dead process has left.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("dlm-control".to_owned())
            .spawn(move || accept(&listener, &observer, &stopped))
            .map_err(failed)?;
        Ok(Self {
            path,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread; if that fails it is not waiting.
        let _woken = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
        let _gone = fs::remove_file(&self.path);
    }
}

fn accept(listener: &UnixListener, observer: &Observer, stop: &AtomicBool) {
    for stream in listener.incoming() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        match stream {
            Ok(stream) => {
                if let Err(error) = serve(stream, observer) {
                    warn!("control socket: a request was given up: {error}");
                }
            }
            Err(error) => {
                error!("control socket: no more requests are served: {error}");
                return;
            }
        }
    }
}

fn serve(mut stream: UnixStream, observer: &Observer) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let line = read_request(&mut stream)?;
    let (head, body) = match answer(observer, &line) {
        Ok(body) => ("ok\n".to_owned(), body),
        Err(why) => (format!("error {why}\n"), String::new()),
    };
    write_all(&mut stream, head.as_bytes())?;
    write_all(&mut stream, body.as_bytes())
}

/// A line of at most [`REQUEST_MAX`] bytes; the time counts for all of it, not for each byte.
fn read_request(stream: &mut UnixStream) -> io::Result<String> {
    let begin = Instant::now();
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        let left = PATIENCE.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        if stream.read(&mut byte)? == 0 || byte == *b"\n" {
            break;
        }
        line.extend(byte);
        if line.len() > REQUEST_MAX {
            return Err(io::Error::new(ErrorKind::InvalidData, "a request without end"));
        }
    }
    String::from_utf8(line).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

fn write_all(stream: &mut UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    let begin = Instant::now();
    while !bytes.is_empty() {
        if begin.elapsed() > PATIENCE {
            return Err(ErrorKind::TimedOut.into());
        }
        let count = stream.write(bytes)?;
        if count == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        bytes = bytes.get(count..).unwrap_or_default();
    }
    Ok(())
}

/// What a request is answered.
fn answer(observer: &Observer, line: &str) -> Result<String, String> {
    let mut words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
    let json = words.last() == Some(&"json");
    if json {
        words.pop();
    }
    let lockspace = |name: &str| {
        let status = observer.status();
        let known = status.lockspaces.iter().any(|space| space.name == name);
        known
            .then_some(())
            .ok_or_else(|| format!("no lockspace {name} here; gfs2ctl dlm ls lists those there are"))
    };
    match words[..] {
        ["ls"] => {
            let status = observer.status();
            Ok(if json {
                json::ls(&status)
            } else {
                render::ls(&status)
            })
        }
        ["status"] => {
            let status = observer.status();
            let us = observer.node();
            Ok(if json {
                json::status(us, &status)
            } else {
                render::status(us, &status)
            })
        }
        ["dump"] => {
            let lines = observer.log();
            Ok(if json {
                json::lines(&lines)
            } else {
                render::lines(&lines)
            })
        }
        ["locks", name] => {
            lockspace(name)?;
            let resources = observer.dump(name).unwrap_or_default();
            Ok(if json {
                json::locks(&resources)
            } else {
                render::locks(&resources)
            })
        }
        ["plocks", name] => {
            lockspace(name)?;
            let lines = observer.plock_lines(name).unwrap_or_default();
            Ok(if json {
                json::lines(&lines)
            } else {
                render::lines(&lines)
            })
        }
        ["fence-ack", node] => acknowledge(observer, node, json),
        _ => Err("the request is not known".to_owned()),
    }
}

fn acknowledge(observer: &Observer, node: &str, json: bool) -> Result<String, String> {
    let number = node.parse().map_err(|_| format!("{node:?} is no node id"))?;
    let node = NodeId(number);
    let status = observer.status();
    let waits = status
        .nodes
        .iter()
        .any(|one| one.node == node && one.fencing.is_some());
    if !waits {
        return Err(format!(
            "the fencing of node {number} is not awaited; gfs2ctl dlm status says what is"
        ));
    }
    observer.acknowledge_fencing(node);
    let done = vec![format!("node {number} counts as fenced")];
    Ok(if json {
        json::lines(&done)
    } else {
        render::lines(&done)
    })
}

/// The only socket in a directory.
///
/// # Errors
/// None, or several: a line that says what to do.
pub fn find(directory: &Path) -> Result<PathBuf, String> {
    let none = || {
        format!(
            "no lock daemon of ours runs on this host: no socket in {}; where the kernel's DLM is used, ask dlm_tool",
            directory.display()
        )
    };
    let mut sockets = Vec::new();
    for entry in fs::read_dir(directory).map_err(|_| none())?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "sock") {
            sockets.push(path);
        }
    }
    sockets.sort();
    match sockets.len() {
        0 => Err(none()),
        1 => sockets.pop().ok_or_else(none),
        count => Err(format!(
            "{count} nodes run on this host; say which with --node NODEID (sockets in {})",
            directory.display()
        )),
    }
}

/// Asks a node something; the answer.
///
/// # Errors
/// A node that does not answer, or what it answered.
pub fn ask(socket: &Path, request: &str) -> Result<String, String> {
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::NotFound => format!(
            "{}: no lock daemon listens there; is the file system mounted?",
            socket.display()
        ),
        ErrorKind::PermissionDenied => format!("{}: only root may ask the lock daemon", socket.display()),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            format!(
                "{}: the lock daemon does not answer; is its process stopped?",
                socket.display()
            )
        }
        _ => format!("{}: {error}", socket.display()),
    };
    if request.contains('\n') || request.len() > REQUEST_MAX {
        return Err("the request is too long".to_owned());
    }
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    stream
        .set_read_timeout(Some(PATIENCE.saturating_mul(2)))
        .map_err(failed)?;
    stream
        .write_all(format!("{request}\n").as_bytes())
        .map_err(failed)?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut bytes).map_err(failed)?;
    let text = String::from_utf8_lossy(&bytes);
    match text.split_once('\n') {
        Some(("ok", body)) => Ok(body.to_owned()),
        Some((error, _)) if error.starts_with("error ") => Err(error.trim_start_matches("error ").to_owned()),
        _ => Err(format!(
            "{}: the lock daemon broke the connection off",
            socket.display()
        )),
    }
}

#[cfg(test)]
mod tests;
