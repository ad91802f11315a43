//! Where the log goes: standard error in the foreground, the system log (`/dev/log`) in the background, and the
//! kernel's (`/dev/kmsg`), where GFS2's own driver logs too, on a machine without one.
//!
//! `FUSE_GFS2_LOG` filters (tracing's syntax, default `info`).

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Facility "daemon", severity "info" of syslog(3): the line itself carries the level.
const PRIORITY: &str = "<30>";

/// Starts logging; a second call changes nothing.
pub fn start(foreground: bool) {
    let filter = EnvFilter::try_from_env("FUSE_GFS2_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false);
    let _ = if foreground {
        builder.with_writer(io::stderr).try_init()
    } else {
        builder
            .with_ansi(false)
            .without_time()
            .with_writer(Syslog::default())
            .try_init()
    };
}

/// Writes each event as one message. The helper's standard error belongs to the user: one line, if anything is wrong.
#[derive(Debug, Default)]
struct Syslog {
    sink: std::sync::OnceLock<Sink>,
}

#[derive(Debug)]
enum Sink {
    Socket(UnixDatagram),
    Kernel(File),
    Nowhere,
}

impl Sink {
    fn open() -> Self {
        let socket = UnixDatagram::unbound().and_then(|socket| {
            socket.connect("/dev/log")?;
            // A stuck log daemon must not stop a filesystem.
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        match socket {
            Ok(socket) => Self::Socket(socket),
            Err(_) => File::options()
                .write(true)
                .open("/dev/kmsg")
                .map_or(Self::Nowhere, Self::Kernel),
        }
    }
}

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            sink: self.sink.get_or_init(Sink::open),
        }
    }
}

/// One event on its way.
struct Line<'a> {
    sink: &'a Sink,
}

impl Write for Line<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let head = format!("{PRIORITY}fuse-gfs2[{}]: ", std::process::id());
        let mut message = head.into_bytes();
        message.extend_from_slice(text.trim_ascii());
        // A full log drops the line; blocking here would block the filesystem.
        match self.sink {
            Sink::Socket(socket) => drop(socket.send(&message)),
            Sink::Kernel(file) => drop((&*file).write(&message)),
            Sink::Nowhere => {}
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
