//! Has umount(8) call our helper: an entry of the mount in libmount's table, `/run/mount/utab`.
//!
//! umount(8) looks at the type of a mounted directory by statfs(2), which says "fuse" of every FUSE filesystem, and so
//! never finds `umount.fuse.gfs2`; it would return while the daemon still writes. It reads mountinfo, where the whole
//! type is, when the table knows the mount, and the option `uhelper` names the helper besides. Nothing else depends on
//! the entry: where the table cannot be written the mount goes on without.
//!
//! Source of the format: the table's lines as mount(8) writes them (`SRC= TARGET= ROOT= OPTS=`, octal escapes), changed
//! under the lock `utab.lock` and put in place by a rename.

use super::guard::our_mounts;
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the table is.
const FOLDER: &str = "/run/mount";
/// How long somebody else may have the table.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(10);
/// What marks our entries.
const HELPER: &str = "uhelper=fuse.gfs2";

/// A mount's entry, taken back when dropped.
#[derive(Debug)]
pub(super) struct Entry {
    folder: PathBuf,
    target: PathBuf,
}

impl Entry {
    /// Makes the entry of the mount of `source` on `target`, both as mountinfo has them. `kept` are the options the
    /// table keeps for others.
    pub(super) fn make(source: &Path, target: &Path, kept: &[String]) -> Option<Self> {
        Self::make_in(Path::new(FOLDER), source, target, kept)
    }

    fn make_in(folder: &Path, source: &Path, target: &Path, kept: &[String]) -> Option<Self> {
        let options = kept.iter().map(String::as_str).chain([HELPER]);
        let line = format!(
            "SRC={} TARGET={} ROOT=/ OPTS={}",
            escape(source),
            escape(target),
            escape(Path::new(&options.collect::<Vec<_>>().join(",")))
        );
        let place = escape(target);
        let mounted: Vec<PathBuf> = our_mounts().into_iter().map(|mount| mount.target).collect();
        let made = change(folder, |table| {
            let mut lines: Vec<&str> = table
                .lines()
                .filter(|old| field(old, "TARGET=") != Some(&place) && !is_left_over(old, &mounted))
                .collect();
            lines.push(&line);
            lines.join("\n") + "\n"
        });
        match made {
            Ok(()) => Some(Self {
                folder: folder.to_owned(),
                target: target.to_owned(),
            }),
            Err(error) => {
                tracing::debug!(
                    "umount(8) will not wait for the journal: {}/utab: {error}",
                    folder.display()
                );
                None
            }
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let place = escape(&self.target);
        let removed = change(&self.folder, |table| {
            let ours = |line: &&str| field(line, "TARGET=") == Some(&place) && line.contains(HELPER);
            let lines: Vec<&str> = table.lines().filter(|line| !ours(line)).collect();
            lines.iter().flat_map(|line| [line, "\n"]).collect()
        });
        if let Err(error) = removed {
            tracing::debug!("an entry is left in {}/utab: {error}", self.folder.display());
        }
    }
}

/// Changes the table under its lock.
fn change(folder: &Path, edit: impl FnOnce(&str) -> String) -> io::Result<()> {
    if let Err(error) = std::fs::create_dir(folder)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    let lock = rustix::fs::open(
        folder.join("utab.lock"),
        OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o644),
    )?;
    let deadline = Instant::now() + LOCK_WAIT;
    while let Err(error) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK || Instant::now() >= deadline {
            return Err(error.into());
        }
        std::thread::sleep(RETRY);
    }
    let table = folder.join("utab");
    let old = match std::fs::read_to_string(&table) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    let new = edit(&old);
    if new == old {
        return Ok(());
    }
    let draft = folder.join(format!("utab.gfs2-{}", std::process::id()));
    let written = std::fs::File::create(&draft)
        .and_then(|mut file| file.write_all(new.as_bytes()))
        .and_then(|()| std::fs::rename(&draft, &table));
    if written.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    written
}

/// The value of a field of a line, as it is written.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(name))
}

/// An entry of ours whose mount point is gone: its daemon was killed. No mount of ours is asked anything for that (whose
/// daemon may be busy, or stuck): what is one, or lies below one, stays.
fn is_left_over(line: &str, mounted: &[PathBuf]) -> bool {
    let target = field(line, "TARGET=").map(super::guard::unescape);
    line.contains(HELPER)
        && target.is_some_and(|target| {
            let ours = mounted.iter().any(|mount| Path::new(&target).starts_with(mount));
            let looked_at = || std::fs::symlink_metadata(&target);
            !ours && looked_at().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        })
}

/// A path as the table has it: what separates fields and lines in octal.
fn escape(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let text = String::from_utf8_lossy(bytes);
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            ' ' => out.push_str("\\040"),
            '\t' => out.push_str("\\011"),
            '\n' => out.push_str("\\012"),
            '\\' => out.push_str("\\134"),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(folder: &Path) -> String {
        std::fs::read_to_string(folder.join("utab")).unwrap()
    }

    #[test]
    fn an_entry_stands_beside_others_and_goes_with_its_mount() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("mount");
        let (device, target) = (Path::new("/dev/sd b"), dir.path());
        let entry = Entry::make_in(&folder, device, target, &["_netdev".into()]).unwrap();
        let ours = format!(
            "SRC=/dev/sd\\040b TARGET={} ROOT=/ OPTS=_netdev,uhelper=fuse.gfs2\n",
            target.display()
        );
        assert_eq!(read(&folder), ours);
        let other = "SRC=/dev/sdc TARGET=/mnt ROOT=/ OPTS=user=me\n";
        std::fs::write(folder.join("utab"), format!("{other}{ours}")).unwrap();
        drop(entry);
        assert_eq!(read(&folder), other);
    }

    #[test]
    fn an_entry_takes_the_place_of_what_was_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let gone = "SRC=/a TARGET=/no/such/place ROOT=/ OPTS=uhelper=fuse.gfs2\n";
        let others = "SRC=/a TARGET=/no/such/place ROOT=/ OPTS=uhelper=udisks2\n";
        let same = format!(
            "SRC=/old TARGET={} ROOT=/ OPTS=uhelper=fuse.gfs2\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("utab"), format!("{gone}{others}{same}")).unwrap();
        let entry = Entry::make_in(dir.path(), Path::new("/new"), dir.path(), &[]).unwrap();
        let text = read(dir.path());
        assert!(text.starts_with(others) && text.lines().count() == 2, "{text}");
        assert!(text.contains("SRC=/new"), "{text}");
        drop(entry);
        assert_eq!(read(dir.path()), others);
    }

    #[test]
    fn nothing_at_or_below_a_mount_is_looked_at() {
        let line = "SRC=/a TARGET=/no/such\\040place/x ROOT=/ OPTS=uhelper=fuse.gfs2";
        let left_over = |mounts: &[&str]| {
            let mounts: Vec<PathBuf> = mounts.iter().map(PathBuf::from).collect();
            is_left_over(line, &mounts)
        };
        assert!(left_over(&[]) && left_over(&["/no/such", "/no/such place/x/y"]));
        assert!(!left_over(&["/no/such place"]) && !left_over(&["/no/such place/x"]));
    }

    #[test]
    fn a_table_that_somebody_keeps_or_that_cannot_be_is_done_without() {
        assert!(Entry::make_in(Path::new("/proc/no"), Path::new("/a"), Path::new("/b"), &[]).is_none());
    }
}
