//! Goal: on a terminal the progress is drawn and taken away again, and Ctrl-C there asks what to do. Method: the program
//! on a pseudo terminal, held in the middle of pass1 by a pipe for its progress that is full: its size is that of one page,
//! all but what the program tells until then is filled beforehand, and what it tells is counted in a run before.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must fail"
)]

mod support;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode};
use rustix::pipe::fcntl_setpipe_size;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{Map, fixture, save};

/// Longest wait.
const LIMIT: Duration = Duration::from_secs(120);
/// The progress is drawn when a pass lasts longer than a quarter of a second.
const LONG: Duration = Duration::from_millis(500);
/// Bytes of the smallest pipe.
const PIPE: usize = 4096;

/// The volume to be checked.
fn image(dir: &Path) -> PathBuf {
    let path = dir.join("image");
    save(&fixture("clean1k"), &path);
    path
}

/// Bytes that are told of the progress up to the first ones within the inodes.
fn told_before(image: &Path) -> usize {
    let log = image.with_file_name("log");
    let script = format!(
        "{} -n -C9 {} 9>>{}",
        env!("CARGO_BIN_EXE_fsck-gfs2"),
        image.display(),
        log.display()
    );
    let status = Command::new("sh")
        .args(["-c", &script])
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    let text = std::fs::read_to_string(log).unwrap();
    let blocks = Map::new(&fixture("clean1k")).volume.geometry.end().to_string();
    let within = |line: &str| line.split(' ').nth(2) == Some(&*blocks);
    let inodes = text.lines().filter(|line| within(line)).count();
    assert!(inodes > 5, "pass1 tells its progress {inodes} times: {text}");
    let before = text.lines().take_while(|line| !within(line));
    // The first one is told before anything is read.
    let first = text.lines().find(|line| within(line));
    before.chain(first).map(|line| line.len() + 1).sum()
}

/// The program on a terminal, in the middle of pass1.
struct Session {
    child: Child,
    terminal: File,
    pipe: File,
    said: String,
}

impl Session {
    fn start(image: &Path) -> Self {
        let count = told_before(image);
        let fifo = image.with_file_name("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let mut pipe = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        assert_eq!(fcntl_setpipe_size(&pipe, PIPE).unwrap(), PIPE);
        pipe.write_all(&vec![b'\n'; PIPE - count]).unwrap();
        let terminal: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        let own = File::from(rustix::fs::open(&*name, flags, Mode::empty()).unwrap());
        let script = format!(
            "exec setsid --ctty --wait {} -n -C9 {} 9>>{}",
            env!("CARGO_BIN_EXE_fsck-gfs2"),
            image.display(),
            fifo.display()
        );
        let child = Command::new("sh")
            .args(["-c", &script])
            .stdin(own.try_clone().unwrap())
            .stdout(own.try_clone().unwrap())
            .stderr(own)
            .spawn()
            .unwrap();
        let mut session = Self {
            child,
            terminal: terminal.into(),
            pipe,
            said: String::new(),
        };
        session.wait_until("Starting pass1");
        let since = Instant::now();
        while rustix::io::ioctl_fionread(&session.pipe).unwrap() < PIPE as u64 {
            assert!(since.elapsed() < LIMIT, "pass1 does not begin: {}", session.said);
            session.hear(Duration::from_millis(20));
        }
        session
    }

    /// Takes what is said within so much time; false at the end of the program.
    fn hear(&mut self, within: Duration) -> bool {
        let mut ready = [PollFd::new(&self.terminal, PollFlags::IN)];
        let within = Timespec::try_from(within).unwrap();
        if poll(&mut ready, Some(&within)).unwrap() == 0 {
            return true;
        }
        let mut bytes = [0; 1024];
        // A terminal that nobody has open any more answers with an error.
        match self.terminal.read(&mut bytes) {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.said += &String::from_utf8_lossy(&bytes[..count]);
                true
            }
        }
    }

    fn wait_until(&mut self, text: &str) {
        let since = Instant::now();
        while !self.said.contains(text) {
            assert!(since.elapsed() < LIMIT, "{text:?} is not said: {:?}", self.said);
            assert!(
                self.hear(Duration::from_millis(100)),
                "{text:?} is not said: {:?}",
                self.said
            );
        }
    }

    /// Lets the pass last, and then go on.
    fn release(&mut self) {
        let since = Instant::now();
        while since.elapsed() < LONG {
            self.hear(LONG.saturating_sub(since.elapsed()));
        }
        let mut reader = self.pipe.try_clone().unwrap();
        // Ends with the process: the pipe is never at its end, because this side has it open for writing, too.
        std::thread::spawn(move || while reader.read(&mut [0; PIPE]).is_ok_and(|count| count > 0) {});
    }

    fn types(&mut self, bytes: &[u8]) {
        self.terminal.write_all(bytes).unwrap();
    }

    /// The exit code, and all that was said.
    fn end(mut self) -> (Option<i32>, String) {
        let since = Instant::now();
        while self.hear(Duration::from_millis(100)) {
            assert!(
                since.elapsed() < LIMIT,
                "the program does not end: {:?}",
                self.said
            );
        }
        let code = self.child.wait().unwrap().code();
        (code, std::mem::take(&mut self.said))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What takes the progress off its line.
const WIPE: &str = "\r\x1b[K";

#[test]
fn the_progress_is_drawn_and_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut session = Session::start(&image(dir.path()));
    session.release();
    let (code, said) = session.end();
    assert_eq!(code, Some(0), "{said:?}");
    let drawn = said.split_once(&format!("{WIPE}pass1: "));
    let (_, behind) = drawn.unwrap_or_else(|| panic!("nothing is drawn: {said:?}"));
    let (percent, rest) = behind.split_once(" percent complete").unwrap();
    let percent: u64 = percent.parse().unwrap_or_else(|e| panic!("{e}: {said:?}"));
    assert!(percent < 100, "{said:?}");
    // Whatever else is drawn: before the next line is said, it is gone.
    let (before, _) = rest.split_once("pass1 completed in").unwrap();
    assert!(before.ends_with(WIPE) && !before.contains('\n'), "{said:?}");
}

#[test]
fn ctrl_c_on_a_terminal_asks() {
    // A volume that was looked at in part is not said to be clean.
    for (answer, code) in [("a", 32), ("s", 4), ("c", 0)] {
        let dir = tempfile::tempdir().unwrap();
        let mut session = Session::start(&image(dir.path()));
        session.types(b"\x03");
        session.wait_until("^C");
        session.release();
        session.wait_until("(a/s/c)? ");
        assert!(
            session.said.contains("fsck.gfs2 interrupted during pass1:"),
            "{:?}",
            session.said
        );
        session.types(format!("{answer}\n").as_bytes());
        let (found, said) = session.end();
        assert_eq!(found, Some(code), "{answer}: {said:?}");
        // Only who goes on sees the pass and what follows to its end.
        assert_eq!(
            said.contains("Starting pass2"),
            answer == "c",
            "{answer}: {said:?}"
        );
    }
}
