//! Extended attributes of an inode that is locked: names and limits as applications see them.
//!
//! Invariants: every change is one transaction, with the inode's ctime in it; value blocks that a replaced value leaves
//! behind are freed afterwards, in transactions of their own, and are not lost in between.

pub(crate) mod acl;

use crate::error::{Errno, FsError, FsResult};
use crate::inode::{Locked, Work, dinode_of, sweep};
use crate::rgrp::{Hold, Want};
use crate::txn::Reservation;
use acl::Acl;
use gfs2_format::ea::{self, EaCursor, Leftover, MAX_EA_NAME, MAX_EA_VALUE, SetMode, Xattrs};
use gfs2_format::ondisk::{Dinode, EaType};
use gfs2_format::time::Timestamp;
use gfs2_format::{BlockAddr, Error};

/// First `sb_fs_format` that stores `trusted.`.
const TRUSTED_FORMAT: u32 = 1802;

/// The name under which an xattr is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name<'a> {
    /// Its space.
    pub(crate) space: EaType,
    /// Without prefix.
    pub(crate) name: &'a [u8],
}

impl<'a> Name<'a> {
    /// Takes a full name apart.
    ///
    /// # Errors
    /// EOPNOTSUPP for a space this volume does not have and for what is no ACL in `system.`: for that space the kernel
    /// asks no permission of the caller, it leaves the names to the filesystem. EINVAL, ERANGE.
    pub(crate) fn parse(full: &'a [u8], fs_format: u32) -> FsResult<Self> {
        let (space, name) = EaType::split_name(full).ok_or(Errno::EOPNOTSUPP)?;
        if space == EaType::Trusted && fs_format < TRUSTED_FORMAT {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let parsed = Self { space, name };
        if space == EaType::System && !parsed.is_acl() {
            return Err(Errno::EOPNOTSUPP.into());
        }
        match name.len() {
            0 => Err(Errno::EINVAL.into()),
            1..=MAX_EA_NAME => Ok(parsed),
            _ => Err(Errno::ERANGE.into()),
        }
    }

    /// The access or the default ACL?
    pub(crate) fn is_acl(&self) -> bool {
        self.space == EaType::System && (self.name == acl::ACCESS || self.name == acl::DEFAULT)
    }

    const ACCESS_ACL: Name<'static> = Name {
        space: EaType::System,
        name: acl::ACCESS,
    };
}

fn xattrs(locked: &Locked<'_>) -> Xattrs {
    Xattrs::new(locked.addr(), locked.engine.fs_format)
}

/// The value of a name; `None`: there is none.
pub(crate) fn find(locked: &Locked<'_>, name: Name<'_>) -> FsResult<Option<Vec<u8>>> {
    if locked.dinode().eattr.get() == 0 {
        return Ok(None);
    }
    Ok(xattrs(locked).get(&locked.reader(), name.space, name.name)?)
}

/// The value of a name.
///
/// # Errors
/// ENODATA.
pub(crate) fn get(locked: &Locked<'_>, name: Name<'_>) -> FsResult<Vec<u8>> {
    find(locked, name)?.ok_or_else(|| Errno::ENODATA.into())
}

/// All full names, each ended by a NUL; `trusted.` only for the privileged.
pub(crate) fn list(locked: &Locked<'_>, privileged: bool) -> FsResult<Vec<u8>> {
    let mut names = Vec::new();
    if locked.dinode().eattr.get() == 0 {
        return Ok(names);
    }
    xattrs(locked).list(&locked.reader(), &mut |entry| {
        if entry.space != EaType::Trusted || privileged {
            names.extend_from_slice(entry.space.prefix().as_bytes());
            names.extend_from_slice(entry.name);
            names.push(0);
        }
    })?;
    Ok(names)
}

/// What an inode's xattr change costs, and the group it takes blocks from.
fn begin(locked: &Locked<'_>, name_len: usize, value_len: usize) -> FsResult<Work> {
    let engine = locked.engine;
    let cost = ea::worst_case_blocks(engine.geometry(), name_len, value_len);
    // The cost is the worst; on a full volume the value may still fit where the old one stands.
    let want = Want {
        min: 0,
        ..Want::near(locked.addr(), u64::from(cost.blocks))
    };
    let hold = engine.rgrps.reserve(&want)?;
    engine.begin(reservation(cost, &hold), Some(hold))
}

fn reservation(cost: ea::EaCost, hold: &Hold) -> Reservation {
    // The dinode is among those touched; counted once more for its ctime.
    Reservation::blocks(u64::from(cost.touched) + 1 + hold.alloc_cost(u64::from(cost.blocks)))
}

fn translate(error: Error) -> FsError {
    match error {
        Error::NotFound => Errno::ENODATA.into(),
        Error::TooLarge { .. } => Errno::ERANGE.into(),
        Error::Unsupported { .. } => Errno::EOPNOTSUPP.into(),
        other => other.into(),
    }
}

/// Commits a change and frees what it left behind.
fn finish(locked: &mut Locked<'_>, work: Work, leftover: Leftover) -> FsResult<()> {
    locked.commit(work, false)?;
    if leftover.0 {
        sweep(locked, &mut EaCursor::reclaim(), 0)?;
    }
    Ok(())
}

/// Sets a value.
pub(crate) fn set(
    locked: &mut Locked<'_>,
    name: Name<'_>,
    value: &[u8],
    mode: SetMode,
    now: Timestamp,
    change: &dyn Fn(&mut Dinode),
) -> FsResult<()> {
    if value.len() > MAX_EA_VALUE {
        return Err(Errno::ERANGE.into());
    }
    let addr = locked.addr();
    let mut work = begin(locked, name.name.len(), value.len())?;
    let mut edit = work.edit(locked.guard());
    let leftover = xattrs(locked)
        .set(&mut edit, name.space, name.name, value, mode)
        .map_err(translate)?;
    let dinode = dinode_of(&mut edit, addr)?;
    dinode.set_ctime(now);
    change(dinode);
    finish(locked, work, leftover)
}

/// Removes a name.
///
/// # Errors
/// ENODATA.
pub(crate) fn remove(locked: &mut Locked<'_>, name: Name<'_>, now: Timestamp) -> FsResult<()> {
    if locked.dinode().eattr.get() == 0 {
        return Err(Errno::ENODATA.into());
    }
    let addr = locked.addr();
    let cost = ea::worst_case_blocks(locked.engine.geometry(), name.name.len(), 0);
    let mut work = locked
        .engine
        .begin(Reservation::blocks(u64::from(cost.touched) + 1), None)?;
    let mut edit = work.edit(locked.guard());
    let leftover = xattrs(locked)
        .remove(&mut edit, name.space, name.name)
        .map_err(translate)?;
    dinode_of(&mut edit, addr)?.set_ctime(now);
    finish(locked, work, leftover)
}

/// Sets an ACL: an access ACL changes the mode and is not stored when the mode says it all. `kill_sgid`: whoever sets it is
/// not in the file's group, and the set-group-id bit goes with an access ACL.
pub(crate) fn set_acl(
    locked: &mut Locked<'_>,
    name: Name<'_>,
    value: &[u8],
    kill_sgid: bool,
    now: Timestamp,
) -> FsResult<()> {
    let acl = Acl::parse(value)?;
    let most = Acl::max_entries(locked.engine.geometry().bsize());
    if acl.as_ref().is_some_and(|acl| acl.len() > most) {
        return Err(Errno::E2BIG.into());
    }
    let access = name.name == acl::ACCESS;
    if !access && !locked.dinode().is_dir() {
        return if acl.is_some() {
            Err(Errno::EACCES.into())
        } else {
            Ok(())
        };
    }
    let Some(acl) = acl else {
        return match remove(locked, name, now) {
            Err(FsError::Posix(Errno::ENODATA)) => Ok(()),
            result => result,
        };
    };
    let bits = acl.mode_bits();
    let gone = if kill_sgid { 0o777 | libc::S_ISGID } else { 0o777 };
    let change = move |dinode: &mut Dinode| {
        if access {
            dinode.mode = (dinode.mode.get() & !gone | bits).into();
        }
    };
    if !access || !acl.is_mode_only() {
        return set(locked, name, &acl.to_bytes(), SetMode::Any, now, &change);
    }
    match remove(locked, name, now) {
        Ok(()) | Err(FsError::Posix(Errno::ENODATA)) => {}
        Err(error) => return Err(error),
    }
    let mut work = locked.engine.begin(Reservation::blocks(1), None)?;
    work.change(locked.guard(), locked.addr(), |dinode| {
        change(dinode);
        dinode.set_ctime(now);
    })?;
    finish(locked, work, Leftover(false))
}

/// Makes the access ACL, if there is one, agree with a mode just set.
pub(crate) fn chmod_acl(locked: &mut Locked<'_>, now: Timestamp) -> FsResult<()> {
    let Some(value) = find(locked, Name::ACCESS_ACL)? else {
        return Ok(());
    };
    let Some(mut acl) = Acl::parse(&value)? else {
        return Ok(());
    };
    acl.chmod(locked.dinode().mode.get());
    set(
        locked,
        Name::ACCESS_ACL,
        &acl.to_bytes(),
        SetMode::Any,
        now,
        &|_| {},
    )
}

/// Removes the file's capabilities, if it has any: writing, truncating and chown do so.
pub(crate) fn kill_capability(locked: &mut Locked<'_>, now: Timestamp) -> FsResult<()> {
    let name = Name {
        space: EaType::Security,
        name: b"capability",
    };
    if find(locked, name)?.is_some() {
        remove(locked, name, now)?;
    }
    Ok(())
}

/// The default ACL of a directory.
pub(crate) fn default_acl(locked: &Locked<'_>) -> FsResult<Option<Acl>> {
    let name = Name {
        space: EaType::System,
        name: acl::DEFAULT,
    };
    match find(locked, name)? {
        Some(value) => Acl::parse(&value),
        None => Ok(None),
    }
}

/// Cost of the ACLs a new inode gets.
pub(crate) fn acl_cost(locked: &Locked<'_>, values: &[(&[u8], &[u8])]) -> ea::EaCost {
    let geometry = locked.engine.geometry();
    values.iter().fold(ea::EaCost::default(), |sum, (name, value)| {
        let cost = ea::worst_case_blocks(geometry, name.len(), value.len());
        ea::EaCost {
            blocks: sum.blocks + cost.blocks,
            touched: sum.touched + cost.touched,
        }
    })
}

/// Gives a new inode its ACLs, in the transaction that makes it.
pub(crate) fn put_acls(
    edit: &mut crate::rgrp::Edit<'_>,
    addr: BlockAddr,
    fs_format: u32,
    values: &[(&[u8], &[u8])],
) -> FsResult<()> {
    for (name, value) in values {
        // A fresh inode has nothing that could be left behind.
        let Leftover(_) = Xattrs::new(addr, fs_format)
            .set(edit, EaType::System, name, value, SetMode::Create)
            .map_err(translate)?;
    }
    Ok(())
}
