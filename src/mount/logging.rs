//! Where the log goes: standard error in the foreground, the system log (`/dev/log`) in the background.
//!
//! `FUSE_GFS2_LOG` filters (tracing's syntax, default `info`).

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

/// Writes each event as one datagram to `/dev/log`; without a system log, to standard error.
#[derive(Debug, Default)]
struct Syslog {
    socket: std::sync::OnceLock<Option<UnixDatagram>>,
}

impl Syslog {
    fn socket(&self) -> Option<&UnixDatagram> {
        self.socket
            .get_or_init(|| {
                let socket = UnixDatagram::unbound().ok()?;
                socket.connect("/dev/log").ok()?;
                // A stuck log daemon must not stop a filesystem.
                socket.set_nonblocking(true).ok()?;
                Some(socket)
            })
            .as_ref()
    }
}

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            socket: self.socket(),
        }
    }
}

/// One event on its way.
struct Line<'a> {
    socket: Option<&'a UnixDatagram>,
}

impl Write for Line<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        match self.socket {
            Some(socket) => {
                let head = format!("{PRIORITY}fuse-gfs2[{}]: ", std::process::id());
                let mut datagram = head.into_bytes();
                datagram.extend_from_slice(text.trim_ascii_end());
                // A full socket drops the line; blocking here would block the filesystem.
                let _ = socket.send(&datagram);
            }
            None => io::stderr().write_all(text)?,
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
