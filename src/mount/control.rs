//! A socket by which the mount helper speaks to the daemon of a live mount: FUSE tells a filesystem nothing of a remount.
//!
//! One line asks, one line answers: `ok`, or what is wrong. Invariants: only root reaches it (it lies in a folder of
//! root's own); a client that says nothing is given up after a while and holds up nothing but other clients.

use rustix::event::{PollFd, PollFlags, poll};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

const FOLDER: &str = "/run/fuse-gfs2";
/// The longest line either side takes.
const LINE_MAX: u64 = 1024;
/// How long the daemon waits for a client's line.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client waits for an answer: to leave a journal of 1 GiB clean can take a slow disk minutes.
const ANSWER: Duration = Duration::from_secs(600);

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Writes no more, and leaves the journal clean.
    ReadOnly,
    /// Writes from now on.
    ReadWrite,
}

impl Command {
    const ALL: [(Self, &'static str); 2] = [(Self::ReadOnly, "remount ro"), (Self::ReadWrite, "remount rw")];

    fn text(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(one, _)| *one == self)
            .map_or("", |(_, text)| text)
    }

    fn parse(line: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, text)| *text == line)
            .map(|(one, _)| *one)
    }
}

fn path_of(folder: &Path, device: &str) -> PathBuf {
    folder.join(format!("{device}.sock"))
}

/// The daemon's end.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
    /// The number of the file that the path names.
    ino: u64,
    /// Readable when there is nobody left to serve for.
    end: PipeReader,
}

/// Dropped, it ends [`Control::serve`].
#[derive(Debug)]
pub(super) struct Stop(#[expect(dead_code, reason = "kept for its end")] PipeWriter);

impl Control {
    /// The socket of the mount that the kernel shows as `device` (`0:57`).
    ///
    /// # Errors
    /// The system's.
    pub(super) fn open(device: &str) -> io::Result<(Self, Stop)> {
        Self::open_in(Path::new(FOLDER), device)
    }

    fn open_in(folder: &Path, device: &str) -> io::Result<(Self, Stop)> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        fs::set_permissions(folder, Permissions::from_mode(0o700))?;
        let path = path_of(folder, device);
        // Of a daemon that was killed: its mount has gone, for the number is ours now.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        let ino = fs::symlink_metadata(&path)?.ino();
        let (end, stop) = io::pipe()?;
        let control = Self {
            listener,
            path,
            ino,
            end,
        };
        Ok((control, Stop(stop)))
    }

    /// Answers clients until the other part is dropped.
    pub(super) fn serve(&self, act: impl Fn(Command) -> Result<(), String>) {
        loop {
            let mut fds = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::new(&self.end, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return tracing::error!("waiting for the mount helper: {error}"),
            }
            if !fds[1].revents().is_empty() {
                return;
            }
            match self.listener.accept() {
                Ok((client, _)) => {
                    if let Err(error) = answer(client, &act) {
                        tracing::warn!("the mount helper: {error}");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => tracing::warn!("the mount helper: {error}"),
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // The next mount may have got our number, and made its own.
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.ino);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!("{}: {error}", self.path.display());
        }
    }
}

/// One line of a stream that ends with the line or at its limit.
fn line(stream: &UnixStream) -> io::Result<String> {
    let mut text = String::new();
    let mut byte = [0];
    let mut limited = stream.take(LINE_MAX);
    while limited.read(&mut byte)? == 1 && byte != *b"\n" {
        text.push(char::from(byte[0]));
    }
    Ok(text)
}

fn answer(client: UnixStream, act: &impl Fn(Command) -> Result<(), String>) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let asked = line(&client)?;
    let done = Command::parse(&asked)
        .ok_or_else(|| format!("'{asked}' is no command"))
        .and_then(act);
    let mut text = done.map_or_else(|why| why.replace('\n', " "), |()| "ok".to_owned());
    text.push('\n');
    (&client).write_all(text.as_bytes())
}

/// Asks the daemon of the mount that the kernel shows as `device`.
///
/// # Errors
/// Outside: there is no such daemon. Inside: what it says.
pub(super) fn ask(device: &str, command: Command) -> io::Result<Result<(), String>> {
    ask_in(Path::new(FOLDER), device, command)
}

fn ask_in(folder: &Path, device: &str, command: Command) -> io::Result<Result<(), String>> {
    let mut stream = UnixStream::connect(path_of(folder, device))?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(format!("{}\n", command.text()).as_bytes())?;
    let said = line(&stream)?;
    Ok(match said.as_str() {
        "ok" => Ok(()),
        "" => Err("the daemon has gone".into()),
        _ => Err(said),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn a_command_is_carried_out_and_answered() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        let (control, stop) = Control::open_in(&folder, "0:7").unwrap();
        let seen = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let server = scope.spawn(|| {
                control.serve(|command| {
                    seen.lock().unwrap().push(command);
                    match command {
                        Command::ReadOnly => Ok(()),
                        Command::ReadWrite => Err("not\nnow".into()),
                    }
                });
            });
            let ask = |command| ask_in(&folder, "0:7", command).unwrap();
            assert_eq!(ask(Command::ReadOnly), Ok(()));
            assert_eq!(ask(Command::ReadWrite), Err("not now".into()));
            // Neither nonsense without an end nor a client that goes away ends it.
            let mut odd = UnixStream::connect(path_of(&folder, "0:7")).unwrap();
            odd.write_all(&[b'x'; LINE_MAX as usize]).unwrap();
            assert!(line(&odd).unwrap().starts_with("'xxx"));
            drop(UnixStream::connect(path_of(&folder, "0:7")).unwrap());
            assert_eq!(ask(Command::ReadOnly), Ok(()));
            drop(stop);
            server.join().unwrap();
        });
        drop(control);
        let gone = ask_in(&folder, "0:7", Command::ReadOnly).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        assert_eq!(
            *seen.lock().unwrap(),
            [Command::ReadOnly, Command::ReadWrite, Command::ReadOnly]
        );
    }

    #[test]
    fn the_socket_of_a_dead_daemon_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (control, _stop) = Control::open_in(dir.path(), "0:7").unwrap();
        let (again, _stop) = Control::open_in(dir.path(), "0:7").unwrap();
        // Late as it is, it leaves the other one's alone.
        drop(control);
        assert!(path_of(dir.path(), "0:7").exists());
        drop(again);
        assert!(!path_of(dir.path(), "0:7").exists());
        let mode = fs::metadata(dir.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
