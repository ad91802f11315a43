//! The life of one mount, in order: device, superblock, journals, locks, filesystem, FUSE; and all of it backwards.
//!
//! Order of the start as the kernel's (RUNTIME.md 6.1) for one node; nothing is written before everything that can be
//! wrong with the input has been looked at, and the mount is live only when the journal is.

use super::cli::{MountError, MountRequest};
use super::control::{Command, Control, Stop};
use super::device::MountDevice;
use super::guard::{DeviceGuard, FS_TYPE, our_mounts};
use super::options::{Atime, MountOptions};
use super::remount::mount_flags;
use super::start::{Plan, Started, start};
use super::utab;
use crate::fuse::{ServeOptions, Transport, mount as mount_fuse, serve};
use gfs2_format::device::{BlockDevice, OpenOptions};
use gfs2_format::ondisk::Superblock;
use gfs2_format::volume::{DeviceReader, Volume, read_rindex, read_superblock};
use gfs2_format::{Error, Geometry, Jid};
use rustix::mount::UnmountFlags;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::Scope;
use std::time::Duration;

/// Names and attributes may be believed for as long as we hold the locks, and on one node that is for ever.
const TTL: Duration = Duration::from_secs(u32::MAX as u64);

/// Mounts, serves, unmounts. `ready` is called when the mount is live.
///
/// # Errors
/// One line and mount(8)'s exit code.
pub fn run(request: &MountRequest, ready: impl FnOnce() -> Result<(), MountError>) -> Result<(), MountError> {
    let options = &request.options;
    let shown = request.device.display().to_string();
    let named = |error: MountError| MountError {
        message: format!("{shown}: {}", error.message),
        ..error
    };
    let guard = DeviceGuard::take(&request.device, !options.spectator, !options.spectator)
        .map_err(|error| MountError::fail(error.to_string()))?;
    let device = OpenOptions::new()
        .read_only(!guard.writable)
        .direct(true)
        .open(&request.device)
        .map_err(|error| MountError::fail(format!("{shown}: {error}")))?;
    let device: Arc<dyn BlockDevice> = Arc::new(MountDevice(device));
    let volume = open_volume(device.as_ref(), options).map_err(named)?;
    let jid = choose_journal(options, &volume).map_err(named)?;
    if request.fake {
        return Ok(());
    }
    let mut volume = volume;
    if options.meta {
        volume.system.root = volume.system.master;
    }
    let writable = guard.writable;
    let started = start(Plan {
        device,
        writable,
        options,
        volume,
        jid,
    })
    .map_err(named)?;
    let mut listed = None;
    let result = live(request, &started, || {
        listed = utab::Entry::make(&request.device, &request.target, &options.passed_on);
        ready()
    });
    if let Err(error) = started.shutdown() {
        tracing::error!("the journal is left for recovery at the next mount: {error}");
    }
    // Only now may others have the device.
    drop(guard);
    // After that: umount(8) may have the table while it waits for the device.
    drop(listed);
    result
}

fn live(
    request: &MountRequest,
    started: &Started,
    ready: impl FnOnce() -> Result<(), MountError>,
) -> Result<(), MountError> {
    let flags = mount_flags(&request.options);
    let transport = transport_for(request.options.transport, started.fs.is_shared());
    let mounted =
        mount_fuse(&request.device, &request.target, FS_TYPE, flags, transport).map_err(|error| {
            MountError::fail(format!(
                "{} on {}: {error}",
                request.device.display(),
                request.target.display()
            ))
        })?;
    let counters = Arc::clone(started.notifications.counters());
    let fs = Arc::clone(&started.fs);
    let report = move || {
        tracing::info!("requests: {counters}");
        tracing::info!("memory: {}", fs.memory());
    };
    let options = ServeOptions {
        acl: request.options.acl,
        ttl: TTL,
        cache_dirs: request.options.atime != Atime::Strict,
        writeback_cache: request.options.writeback_cache && !request.options.read_only,
        busy_poll: Duration::from_micros(u64::from(request.options.busy_poll_us)),
    };
    let mut told = Ok(());
    let served = std::thread::scope(|scope| {
        // Both end when this has been served.
        let (mut signals, mut stop) = (None, None);
        serve(&started.fs, mounted, options, &started.notifications, || {
            match super::signals::listen(&request.target, report) {
                Ok(termination) => signals = Some(termination),
                Err(error) => {
                    told = Err(MountError::system(format!("signals: {error}")));
                    // Which ends the service.
                    let _ = rustix::mount::unmount(&request.target, UnmountFlags::DETACH);
                    return;
                }
            }
            match listen_to_helper(started, &request.target, scope) {
                Ok(end) => stop = Some(end),
                Err(error) => {
                    tracing::warn!("a remount cannot make this mount read-only or writable: {error}");
                }
            }
            told = ready();
        })
    });
    told.and(served.map_err(|error| MountError::fail(format!("FUSE: {error}"))))
}

/// How requests come. The entries of io_uring are so many and no more: where requests wait for other nodes they can all
/// be taken by such requests, and then the WRITE has none that a lock's demote waits for.
fn transport_for(asked: Transport, shared: bool) -> Transport {
    match asked {
        Transport::Auto if shared => Transport::Device,
        Transport::Ring if shared => {
            tracing::warn!(
                "io_uring on a volume of several nodes: requests that wait for other nodes can keep all others from being served"
            );
            Transport::Ring
        }
        asked => asked,
    }
}

/// Has a thread do what the helper asks of the mount on `target`, until what is given is dropped.
fn listen_to_helper<'scope>(
    started: &'scope Started,
    target: &Path,
    scope: &'scope Scope<'scope, '_>,
) -> io::Result<Stop> {
    let mount = our_mounts()
        .into_iter()
        .rev()
        .find(|mount| mount.target == target);
    let device = mount.ok_or(io::ErrorKind::NotFound)?.device;
    let (control, stop) = Control::open(&device)?;
    std::thread::Builder::new()
        .name("gfs2-control".into())
        .spawn_scoped(scope, move || {
            control.serve(|command| obey(started, &device, command))
        })?;
    Ok(stop)
}

/// Does what the mount helper asks for.
fn obey(started: &Started, device: &str, command: Command) -> Result<(), String> {
    let done = match command {
        Command::ReadWrite => started.make_writable(),
        Command::ReadOnly => {
            // Those who write would be left with errors.
            let writable = our_mounts()
                .iter()
                .any(|mount| mount.device == device && !mount.read_only);
            if writable {
                return Err("the kernel still has it read-write".into());
            }
            started.make_read_only()
        }
    };
    done.map_err(|error| error.message)
}

/// Reads what must be right before anything is done, in the order that gives the clearest message.
fn open_volume(device: &dyn BlockDevice, options: &MountOptions) -> Result<Volume, MountError> {
    let (superblock, geometry) = read_superblock(device).map_err(|error| no_superblock(device, &error))?;
    check_lock_protocol(&superblock, options)?;
    check_size(device, &superblock, &geometry)?;
    let volume = Volume::open(device).map_err(|error| damaged(device, &geometry, &error))?;
    let reader = DeviceReader::new(device, &geometry);
    let index =
        read_rindex(&reader, volume.system.rindex).map_err(|error| damaged(device, &geometry, &error))?;
    let end = index
        .iter()
        .map(|group| group.data0.get().saturating_add(u64::from(group.data.get())))
        .max();
    match end {
        Some(end) if end > geometry.end() => Err(truncated(device, &geometry, end)),
        _ => Ok(volume),
    }
}

/// Something on the way to the journals is wrong: the device may simply be too short.
fn damaged(device: &dyn BlockDevice, geometry: &Geometry, error: &Error) -> MountError {
    let beyond = matches!(error, Error::Corrupt(lie) if lie.found >= geometry.end());
    let hint = if beyond {
        format!(", or the device, which has {} bytes, is truncated", device.size())
    } else {
        String::new()
    };
    MountError::fail(format!(
        "the volume is damaged{hint}: {error}; check it with fsck.gfs2"
    ))
}

fn no_superblock(device: &dyn BlockDevice, error: &Error) -> MountError {
    let text = match error {
        Error::Corrupt(lie) if lie.field == "mh_magic" || lie.field == "mh_type" => {
            format!("holds no GFS2 filesystem ({lie}); make one with mkfs.gfs2, or name the right device")
        }
        Error::Io { .. } if device.size() < 65536 + 512 => {
            format!(
                "holds no GFS2 filesystem: it has {} bytes, and the superblock begins at byte 65536",
                device.size()
            )
        }
        Error::Unsupported { .. } => format!("{error}; this version cannot mount it"),
        Error::Corrupt(_) => format!("the superblock is damaged: {error}; check it with fsck.gfs2"),
        _ => error.to_string(),
    };
    MountError::fail(text)
}

fn check_lock_protocol(superblock: &Superblock, options: &MountOptions) -> Result<(), MountError> {
    let on_disk = superblock.lockproto();
    if on_disk.starts_with("fsck_") {
        return Err(MountError::fail(format!(
            "a check of this volume is running or was interrupted (lock protocol {on_disk}); run fsck.gfs2 to its end first"
        )));
    }
    match options.lockproto.as_deref().unwrap_or(&on_disk) {
        "lock_nolock" => Ok(()),
        "lock_dlm" => Err(MountError::fail(
            "lock_dlm (several nodes) is not supported by this version; if no other node has the volume mounted, use -o lockproto=lock_nolock",
        )),
        other => Err(MountError::fail(format!(
            "unknown lock protocol '{other}'; use -o lockproto=lock_nolock if no other node has the volume mounted"
        ))),
    }
}

/// A device that ends before the volume does.
fn check_size(
    device: &dyn BlockDevice,
    superblock: &Superblock,
    geometry: &Geometry,
) -> Result<(), MountError> {
    let end = [superblock.master_dir.addr.get(), superblock.root_dir.addr.get()]
        .into_iter()
        .max()
        .unwrap_or(0);
    if end >= geometry.end() {
        return Err(truncated(device, geometry, end + 1));
    }
    Ok(())
}

fn truncated(device: &dyn BlockDevice, geometry: &Geometry, need: u64) -> MountError {
    let (has, wants) = (device.size(), need.saturating_mul(u64::from(geometry.bsize())));
    MountError::fail(format!(
        "the device is truncated: it has {has} bytes, the volume needs at least {wants}; attach the whole device or image"
    ))
}

/// The journal of this mount: `hostdata=jid=N`, else the first.
fn choose_journal(options: &MountOptions, volume: &Volume) -> Result<Jid, MountError> {
    let wanted = options.hostdata.as_deref().and_then(|text| {
        text.split([':', ';', ','])
            .find_map(|word| word.trim().strip_prefix("jid="))
            .map(str::parse::<u32>)
    });
    let jid = match wanted {
        None => 0,
        Some(Ok(jid)) => jid,
        Some(Err(_)) => return Err(MountError::usage("hostdata=jid= wants a number")),
    };
    if options.spectator || volume.journal(Jid::new(jid)).is_some() {
        return Ok(Jid::new(jid));
    }
    Err(MountError::fail(format!(
        "there is no journal {jid}: the volume has {}; choose another, or add journals with gfs2_jadd",
        volume.journals.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_other_nodes_are_waited_for_requests_come_by_what_has_no_bound() {
        let chosen = |asked| [false, true].map(|shared| transport_for(asked, shared));
        assert_eq!(chosen(Transport::Auto), [Transport::Auto, Transport::Device]);
        assert_eq!(chosen(Transport::Device), [Transport::Device; 2]);
        assert_eq!(chosen(Transport::Ring), [Transport::Ring; 2]);
    }
}
