//! The kernel behind a narrow trait, and the real one: its misc devices, its log, its configuration.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{OFlags, minor};

use super::abi;
use crate::{ClusterInfo, LockError, NodeId, ResName};

/// A lock manager in the kernel.
pub trait Kernel: Send + Sync {
    /// The cluster and our place in it.
    ///
    /// # Errors
    /// There is no such lock manager, or it is not ready, or not for us.
    fn cluster(&self) -> Result<ClusterInfo, LockError>;

    /// Whether [`Device::list`] can be read.
    ///
    /// # Errors
    /// Why not, and what to do about it.
    fn has_list(&self) -> Result<(), LockError>;

    /// Joins a lockspace, or takes one up again in which this node still is. Blocks until it is joined.
    ///
    /// # Errors
    /// What the kernel answered, and what to do about it.
    fn open(&self, lockspace: &str) -> Result<Arc<dyn Device>, LockError>;
}

/// The device of a lockspace, and the kernel's log.
pub trait Device: Send + Sync {
    /// Writes a request. Blocks, perhaps for long and beyond the reach of signals, while the lockspace recovers.
    ///
    /// # Errors
    /// What the kernel answered.
    fn write(&self, request: &[u8]) -> io::Result<u32>;

    /// Reads one result.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`]: there is none.
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Reads one record of the log, beginning with the oldest there is.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`]: there is none; `EPIPE`: some were overwritten before they were read.
    fn read_log(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Begins the log anew with the oldest record.
    ///
    /// # Errors
    /// What the kernel answered.
    fn rewind_log(&self) -> io::Result<()>;

    /// Sleeps until there is a result, a record, or a [`Device::wake`].
    ///
    /// # Errors
    /// What the kernel answered.
    fn wait(&self) -> io::Result<()>;

    /// Ends a [`Device::wait`], the current one or the next.
    fn wake(&self);

    /// The kernel's list of the lockspace's locks, as [`super::list`] reads it.
    ///
    /// # Errors
    /// What the kernel answered.
    fn list(&self) -> io::Result<Box<dyn Read>>;

    /// Is there no thread of this number (of the first PID namespace) any more? False, too, if that cannot be seen.
    fn is_gone(&self, thread: u32) -> bool;

    /// Lets the device go; locks that are left become orphans. With `leave` this node then leaves the lockspace, and
    /// they are no more. Nobody may read or write at that time.
    ///
    /// # Errors
    /// What the kernel answered.
    fn close(&self, leave: bool) -> io::Result<()>;
}

const CONFIG: &str = "/sys/kernel/config/dlm/cluster";
const LOG: &str = "/dev/kmsg";
const DEBUGFS: &str = "/sys/kernel/debug";
/// What `/proc/self/ns/pid` is in the first PID namespace, of which the kernel's list tells.
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

/// The kernel of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine;

fn service(text: String) -> LockError {
    LockError::Service(text)
}

/// The minor number of a misc device.
fn misc_minor(name: &str) -> Option<u32> {
    let text = fs::read_to_string("/proc/misc").ok()?;
    text.lines().find_map(|line| {
        let (number, found) = line.trim_start().split_once(' ')?;
        (found == name).then(|| number.parse().ok())?
    })
}

/// The node of a misc device, where udev puts it or devtmpfs.
fn misc_node(name: &str, number: u32) -> Option<PathBuf> {
    let paths = [format!("/dev/misc/{name}"), format!("/dev/{name}")];
    paths
        .into_iter()
        .map(PathBuf::from)
        .find(|path| fs::metadata(path).is_ok_and(|data| data.rdev() != 0 && minor(data.rdev()) == number))
}

fn open_node(path: &Path) -> Result<File, LockError> {
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nonblocking())
        .open(path);
    open.map_err(|e| {
        let why = match e.kind() {
            ErrorKind::PermissionDenied => "; the DLM's devices are for root",
            _ => "",
        };
        service(format!("{}: {e}{why}", path.display()))
    })
}

fn nonblocking() -> i32 {
    i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0)
}

fn control() -> Result<File, LockError> {
    const NAME: &str = "dlm-control";
    let missing = || service("this kernel has no DLM: load its module (modprobe dlm)".to_owned());
    let number = misc_minor(NAME).ok_or_else(missing)?;
    let no_node = || {
        service(format!(
            "no device node for {NAME} (misc {number}): is /dev a devtmpfs?"
        ))
    };
    let mut file = open_node(&misc_node(NAME, number).ok_or_else(no_node)?)?;
    let mut version = [0; abi::VERSION_LEN];
    let len = file
        .read(&mut version)
        .map_err(|e| service(format!("{NAME}: {e}")))?;
    abi::check_version(version.get(..len).unwrap_or(&[])).map_err(|e| service(e.to_string()))?;
    Ok(file)
}

/// The kernel's answer to a request on the control device, in words that help.
fn refused(what: &str, e: &io::Error) -> LockError {
    const EUNATCH: i32 = 49;
    let why = match e.raw_os_error() {
        Some(EUNATCH) => "dlm_controld is not running".to_owned(),
        Some(1) => "that takes root (CAP_SYS_ADMIN)".to_owned(),
        Some(16) => "somebody else holds locks in it".to_owned(),
        _ => e.to_string(),
    };
    service(format!("{what}: {why}"))
}

fn text(path: &str) -> Option<String> {
    let text = fs::read_to_string(format!("{CONFIG}/{path}")).ok()?;
    Some(text.trim().to_owned())
}

impl Kernel for Machine {
    fn cluster(&self) -> Result<ClusterInfo, LockError> {
        let _there = control()?;
        let nodes = fs::read_dir(format!("{CONFIG}/comms")).map_err(|e| {
            service(format!(
                "{CONFIG}/comms: {e}; dlm_controld makes it: is it running?"
            ))
        })?;
        let mut local = nodes.flatten().filter_map(|node| {
            let name = node.file_name().into_string().ok()?;
            (text(&format!("comms/{name}/local"))? == "1").then(|| name.parse().ok())?
        });
        let node = local.next().ok_or_else(|| {
            service(format!(
                "{CONFIG}/comms names no node as this one: is dlm_controld running?"
            ))
        })?;
        if text("log_info").as_deref() == Some("0") {
            return Err(service(format!(
                "{CONFIG}/log_info is 0: what the kernel says of recoveries is needed (set it to 1)"
            )));
        }
        Ok(ClusterInfo {
            name: text("cluster_name").unwrap_or_default(),
            node: NodeId(node),
        })
    }

    fn has_list(&self) -> Result<(), LockError> {
        let path = format!("{DEBUGFS}/dlm");
        let why = match fs::metadata(&path) {
            Ok(_) => return Ok(()),
            Err(e) => e,
        };
        let what = match why.kind() {
            ErrorKind::PermissionDenied => "that takes root".to_owned(),
            _ => format!(
                "mount it (mount -t debugfs debugfs {DEBUGFS}); a kernel without CONFIG_DLM_DEBUG has no such list, \
                 and what dead processes left goes only when this node leaves the lockspace"
            ),
        };
        Err(service(format!(
            "orphans are looked up in debugfs, {path}: {why}; {what}"
        )))
    }

    fn open(&self, lockspace: &str) -> Result<Arc<dyn Device>, LockError> {
        if lockspace.contains(['/', '\0']) {
            return Err(service(format!(
                "lockspace {lockspace:?}: a name with / or NUL has no device"
            )));
        }
        let name = ResName::new(lockspace.as_bytes())?;
        let log = open_log().map_err(|e| service(format!("{LOG}: {e}; it tells of recoveries")))?;
        let wakes = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| service(format!("eventfd: {e}")))?;
        let control = control()?;
        let misc = format!("dlm_{lockspace}");
        let number = match misc_minor(&misc) {
            // This node never left: a process of ours died here.
            Some(number) => number,
            None => {
                let what = format!("joining lockspace {lockspace}");
                let written = (&control)
                    .write(&abi::create(&name))
                    .map_err(|e| refused(&what, &e))?;
                u32::try_from(written).map_err(|e| service(format!("{what}: minor {written}: {e}")))?
            }
        };
        let no_node = || {
            service(format!(
                "no device node for {misc} (misc {number}): is /dev a devtmpfs?"
            ))
        };
        let file = open_node(&misc_node(&misc, number).ok_or_else(no_node)?)?;
        Ok(Arc::new(Node {
            file: RwLock::new(Some(file)),
            log,
            wakes,
            control,
            number,
            list: format!("{DEBUGFS}/dlm/{lockspace}_all"),
        }))
    }
}

fn open_log() -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking())
        .open(LOG)
}

/// The device of one lockspace.
#[derive(Debug)]
struct Node {
    /// Gone once it is closed.
    file: RwLock<Option<File>>,
    log: File,
    wakes: OwnedFd,
    control: File,
    number: u32,
    list: String,
}

fn closed() -> io::Error {
    io::Error::from(ErrorKind::BrokenPipe)
}

impl Device for Node {
    fn write(&self, request: &[u8]) -> io::Result<u32> {
        let file = self.file.read();
        let written = file.as_ref().ok_or_else(closed)?.write(request)?;
        u32::try_from(written).map_err(io::Error::other)
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let file = self.file.read();
        file.as_ref().ok_or_else(closed)?.read(buffer)
    }

    fn read_log(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.log).read(buffer)
    }

    fn rewind_log(&self) -> io::Result<()> {
        (&self.log).seek(SeekFrom::Start(0)).map(|_| ())
    }

    fn wait(&self) -> io::Result<()> {
        let file = self.file.read();
        let file = file.as_ref().ok_or_else(closed)?;
        let mut fds = [
            PollFd::new(file, PollFlags::IN),
            PollFd::new(&self.log, PollFlags::IN),
            PollFd::new(&self.wakes, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let mut count = [0; 8];
        // Empty when it was not this that woke us.
        let _count = rustix::io::read(&self.wakes, &mut count);
        Ok(())
    }

    fn wake(&self) {
        // Any number but 0 will do, in either byte order. Full means that somebody wakes already.
        let _full = rustix::io::write(&self.wakes, &[1; 8]);
    }

    fn list(&self) -> io::Result<Box<dyn Read>> {
        let told = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", self.list));
        Ok(Box::new(File::open(&self.list).map_err(told)?))
    }

    fn is_gone(&self, thread: u32) -> bool {
        let namespace = fs::read_link("/proc/self/ns/pid");
        let known = namespace.is_ok_and(|name| name.as_os_str() == FIRST_NAMESPACE);
        known && matches!(fs::exists(format!("/proc/{thread}")), Ok(false))
    }

    fn close(&self, leave: bool) -> io::Result<()> {
        drop(self.file.write().take());
        if leave {
            let _always_zero = (&self.control).write(&abi::remove(self.number))?;
        }
        Ok(())
    }
}
