//! Rename: replace, no-replace, exchange.
//!
//! Method: look at both names, lock everything they name together, look again; what has changed meanwhile is begun
//! again. A rename to a name that is free, in one directory, needs no such care: it locks parent and child one after
//! the other, as unlink does. All of it is one transaction.

use super::attr::check_mutable;
use super::fs::Fs;
use super::names::{
    REMOVE_BLOCKS, STATE_BLOCKS, check_can_add, check_can_remove, check_dir, check_empty, check_name,
    drop_link, find, hit, inode_of, probe, reserve_for, while_stale,
};
use super::types::{Caller, RenameMode};
use crate::error::{Errno, FsError, FsResult};
use crate::glock::Interrupt;
use crate::glock::multi::{Want as Lock, acquire_together};
use crate::glock::name::nondisk;
use crate::glock::{GlockGuard, GlockName, GlockOps, HolderFlags, Presence, State};
use crate::inode::{Engine, Inode, InodeRef, Locked, Work, now};
use crate::txn::Reservation;
use gfs2_format::dir::{self, Hit, NewEntry, Probe, Room};
use gfs2_format::ondisk::FileType;
use gfs2_format::time::Timestamp;
use gfs2_format::{BlockAddr, InodeNum};
use std::sync::Arc;

/// Deepest directory tree that is walked up; deeper is a cycle.
const ANCESTORS_MAX: u32 = 1 << 16;

/// A name in a directory.
#[derive(Clone, Copy)]
struct Place<'a> {
    dir: &'a InodeRef,
    name: &'a [u8],
}

/// What the two names mean.
struct Scene<'a> {
    from: Place<'a>,
    to: Place<'a>,
    source: InodeRef,
    target: Option<InodeRef>,
}

impl Fs {
    /// Renames. Replacing a name by another of the same inode does nothing.
    ///
    /// # Errors
    /// ENOENT, EEXIST, ENOTEMPTY, EISDIR, ENOTDIR, EPERM, EINVAL for a directory into itself, EMLINK, ENOSPC.
    pub fn rename(
        &self,
        _caller: &Caller,
        parent: BlockAddr,
        name: &[u8],
        new_parent: BlockAddr,
        new_name: &[u8],
        mode: RenameMode,
    ) -> FsResult<()> {
        self.change("rename", |engine| {
            for name in [name, new_name] {
                check_name(name)?;
                if matches!(name, b"." | b"..") {
                    return Err(Errno::EBUSY.into());
                }
            }
            let (old, new) = (engine.inodes.get(parent)?, engine.inodes.get(new_parent)?);
            check_dir(&old)?;
            check_dir(&new)?;
            let (from, to) = (
                Place { dir: &old, name },
                Place {
                    dir: &new,
                    name: new_name,
                },
            );
            let _moving = if parent == new_parent {
                None
            } else {
                Some(rename_lock(engine)?)
            };
            while_stale(engine, |met| {
                if parent == new_parent && rename_here(engine, &old, name, new_name, mode, met)? {
                    return Ok(());
                }
                rename(engine, from, to, mode, self.root().addr, met)
            })
        })
    }
}

/// Keeps the tree of directories as it is: whoever moves something between directories holds it.
fn rename_lock(engine: &Engine) -> FsResult<GlockGuard> {
    let ops: Arc<dyn GlockOps> = Arc::new(Presence);
    engine
        .glocks
        .get(GlockName::nondisk(nondisk::RENAME), &ops)?
        .acquire(State::Ex, HolderFlags::empty())
}

/// Renames within a directory, to a name that is free; false: it is not.
fn rename_here(
    engine: &Engine,
    dir: &InodeRef,
    from: &[u8],
    to: &[u8],
    mode: RenameMode,
    met: &mut Option<BlockAddr>,
) -> FsResult<bool> {
    let dir = engine.exclusive(dir)?;
    let here = hit(&dir, from)?;
    let Probe::Absent(room) = probe(&dir, to)? else {
        return Ok(false);
    };
    if mode == RenameMode::Exchange {
        return Err(Errno::ENOENT.into());
    }
    let inode = inode_of(engine, here.found(), met)?;
    if inode.addr() == dir.addr() {
        // A loop in the tree, which the long way refuses.
        return Ok(false);
    }
    let source = engine.exclusive(&inode)?;
    check_can_remove(&dir, &source)?;
    let parts = Parts {
        old: &dir,
        new: &dir,
        source: &source,
        from,
        to,
        now: now(),
    };
    let seq = parts.add(engine, &here, room)?.commit()?;
    dir.committed(seq, false);
    source.committed(seq, false);
    Ok(true)
}

fn rename(
    engine: &Engine,
    from: Place<'_>,
    to: Place<'_>,
    mode: RenameMode,
    root: BlockAddr,
    met: &mut Option<BlockAddr>,
) -> FsResult<()> {
    loop {
        let source = peek(engine, from, met)?.ok_or(Errno::ENOENT)?;
        let target = peek(engine, to, met)?;
        let scene = Scene {
            from,
            to,
            source,
            target,
        };
        if early_answer(&scene, mode)? {
            return Ok(());
        }
        check_ancestry(engine, &scene, mode, root)?;
        if act(engine, &scene, mode)? {
            return Ok(());
        }
    }
}

/// The inode a name means now.
fn peek(engine: &Engine, place: Place<'_>, met: &mut Option<BlockAddr>) -> FsResult<Option<InodeRef>> {
    let dir = engine.shared(place.dir)?;
    match find(&dir, place.name)? {
        Some(found) => inode_of(engine, &found, met).map(Some),
        None => Ok(None),
    }
}

/// What can be said from names and types alone; true: there is nothing to do.
fn early_answer(scene: &Scene<'_>, mode: RenameMode) -> FsResult<bool> {
    let Some(target) = &scene.target else {
        return if mode == RenameMode::Exchange {
            Err(Errno::ENOENT.into())
        } else {
            Ok(false)
        };
    };
    if mode == RenameMode::NoReplace {
        return Err(Errno::EEXIST.into());
    }
    if target.addr() == scene.source.addr() {
        return Ok(true);
    }
    if mode == RenameMode::Replace {
        match (
            scene.source.kind() == FileType::Dir,
            target.kind() == FileType::Dir,
        ) {
            (true, false) => return Err(Errno::ENOTDIR.into()),
            (false, true) => return Err(Errno::EISDIR.into()),
            _ => {}
        }
    }
    Ok(false)
}

/// A directory must not come to stand below itself.
fn check_ancestry(engine: &Engine, scene: &Scene<'_>, mode: RenameMode, root: BlockAddr) -> FsResult<()> {
    let (old, new) = (scene.from.dir, scene.to.dir);
    let same = old.addr() == new.addr();
    if scene.source.kind() == FileType::Dir && (!same || scene.source.addr() == new.addr()) {
        refuse_above(engine, new, scene.source.addr(), root, Errno::EINVAL)?;
    }
    if let Some(target) = &scene.target
        && target.kind() == FileType::Dir
        && !same
    {
        let errno = if mode == RenameMode::Exchange {
            Errno::EINVAL
        } else {
            Errno::ENOTEMPTY
        };
        refuse_above(engine, old, target.addr(), root, errno)?;
    }
    Ok(())
}

/// Fails with `errno` when `which` is `dir` or stands above it. One directory is locked at a time; the rename lock keeps
/// the tree.
fn refuse_above(
    engine: &Engine,
    dir: &InodeRef,
    which: BlockAddr,
    root: BlockAddr,
    errno: Errno,
) -> FsResult<()> {
    let mut at = dir.clone();
    for _ in 0..ANCESTORS_MAX {
        if at.addr() == which {
            return Err(errno.into());
        }
        if at.addr() == root {
            return Ok(());
        }
        let above = {
            let locked = engine.shared(&at)?;
            let found = find(&locked, b"..")?.ok_or(Errno::ENOENT)?;
            engine.inode(found.num, FileType::Dir)?
        };
        if above.addr() == at.addr() {
            return Ok(());
        }
        at = above;
    }
    Err(FsError::Inconsistent(format!(
        "directory {}: the way to the root does not end",
        dir.addr()
    )))
}

/// Everything a rename has locked: one entry per inode, however many parts it plays.
struct Cast<'e>(Vec<Locked<'e>>);

impl<'e> Cast<'e> {
    fn lock(engine: &'e Engine, inodes: &[&'e Inode]) -> FsResult<Self> {
        let mut unique: Vec<&'e Inode> = Vec::new();
        for inode in inodes {
            if !unique.iter().any(|other| other.addr() == inode.addr()) {
                unique.push(inode);
            }
        }
        let wants: Vec<Lock> = unique
            .iter()
            .map(|inode| Lock {
                glock: Arc::clone(inode.glock()),
                state: State::Ex,
                flags: HolderFlags::empty(),
            })
            .collect();
        let guards = acquire_together(&wants, Interrupt::current().as_deref())?;
        let locked = unique
            .into_iter()
            .zip(guards)
            .map(|(inode, guard)| Locked::new(engine, inode, guard));
        Ok(Self(locked.collect::<FsResult<Vec<_>>>()?))
    }

    fn get(&self, inode: &Inode) -> FsResult<&Locked<'e>> {
        self.0
            .iter()
            .find(|locked| locked.addr() == inode.addr())
            .ok_or_else(|| {
                FsError::Inconsistent(format!(
                    "inode {}: not among those a rename has locked",
                    inode.addr()
                ))
            })
    }
}

/// Locks and renames; false: the names mean something else by now.
fn act(engine: &Engine, scene: &Scene<'_>, mode: RenameMode) -> FsResult<bool> {
    let mut inodes: Vec<&Inode> = vec![scene.from.dir, scene.to.dir, &scene.source];
    inodes.extend(scene.target.as_deref());
    let cast = Cast::lock(engine, &inodes)?;
    let (old, new) = (cast.get(scene.from.dir)?, cast.get(scene.to.dir)?);
    let source = cast.get(&scene.source)?;
    let target = scene.target.as_ref().map(|target| cast.get(target)).transpose()?;
    let now_from = probe(old, scene.from.name)?;
    let now_to = probe(new, scene.to.name)?;
    let same = |probe: &Probe, inode: Option<&Locked<'_>>| {
        probe.found().map(|found| found.num) == inode.map(|inode| inode.inode.num())
    };
    if !same(&now_from, Some(source)) || !same(&now_to, target) {
        return Ok(false);
    }
    check_can_remove(old, source)?;
    check_mutable(new.dinode(), target.is_some())?;
    let parts = Parts {
        old,
        new,
        source,
        from: scene.from.name,
        to: scene.to.name,
        now: now(),
    };
    let work = match (mode, target, now_from, now_to) {
        (RenameMode::Exchange, Some(target), ..) => parts.exchange(engine, target)?,
        (_, Some(target), ..) => parts.replace(engine, target)?,
        (_, None, Probe::Here(hit), Probe::Absent(room)) => parts.add(engine, &hit, room)?,
        // Was compared above.
        (_, None, ..) => return Ok(false),
    };
    let seq = work.commit()?;
    for locked in &cast.0 {
        locked.committed(seq, false);
    }
    if let Some(target) = target {
        let gone =
            mode != RenameMode::Exchange && (target.dinode().is_dir() || target.dinode().nlink.get() == 1);
        if gone {
            target.inode.mark_unlinked();
        }
    }
    Ok(true)
}

/// The parts of a rename, all locked EX.
struct Parts<'p, 'e> {
    old: &'p Locked<'e>,
    new: &'p Locked<'e>,
    source: &'p Locked<'e>,
    from: &'p [u8],
    to: &'p [u8],
    now: Timestamp,
}

impl Parts<'_, '_> {
    fn moves(&self) -> bool {
        self.old.addr() != self.new.addr()
    }

    /// Makes a name of a directory mean an inode.
    fn point(
        &self,
        work: &mut Work,
        dir: &Locked<'_>,
        name: &[u8],
        at: (InodeNum, FileType),
    ) -> FsResult<()> {
        let entry = entry(name, at);
        dir::replace(&mut work.edit(dir.guard()), dir.addr(), &entry, self.now)?;
        Ok(())
    }

    /// Gives a directory that moves its new parent, anything else its ctime.
    fn settle(&self, work: &mut Work, moved: &Locked<'_>, parent: InodeNum) -> FsResult<()> {
        if moved.dinode().is_dir() && self.moves() {
            self.point(work, moved, b"..", (parent, FileType::Dir))?;
        }
        work.change(moved.guard(), moved.addr(), |dinode| dinode.set_ctime(self.now))
    }

    fn add_links(work: &mut Work, dir: &Locked<'_>, change: i32) -> FsResult<()> {
        work.change(dir.guard(), dir.addr(), |dinode| {
            dinode.nlink = dinode.nlink.get().saturating_add_signed(change).into();
        })
    }

    /// Moves the source from where its name is to a name that does not exist.
    fn add(&self, engine: &Engine, here: &Hit, room: Room) -> FsResult<Work> {
        check_can_add(self.new)?;
        let dir_moves = self.source.dinode().is_dir() && self.moves();
        if dir_moves && self.new.dinode().nlink.get() == u32::MAX {
            return Err(Errno::EMLINK.into());
        }
        let (hold, bitmaps) = reserve_for(self.new, &room)?;
        let blocks = u64::from(room.cost().touched) + REMOVE_BLOCKS + 4 + bitmaps;
        let mut work = engine.begin(Reservation::blocks(blocks), hold)?;
        let (old, new) = (self.old, self.new);
        dir::remove_at(&mut work.edit(old.guard()), old.addr(), here, self.now)?;
        let (entry, room) = (entry(self.to, numbers(self.source)), room.without(here));
        dir::insert_at(&mut work.edit(new.guard()), new.addr(), &entry, &room, self.now)?;
        self.settle(&mut work, self.source, self.new.inode.num())?;
        if dir_moves {
            Self::add_links(&mut work, self.old, -1)?;
            Self::add_links(&mut work, self.new, 1)?;
        }
        Ok(work)
    }

    /// Puts the source in the place of the target, which loses a link.
    fn replace(&self, engine: &Engine, target: &Locked<'_>) -> FsResult<Work> {
        check_can_remove(self.new, target)?;
        let is_dir = target.dinode().is_dir();
        if is_dir {
            check_empty(target)?;
        }
        let last = is_dir || target.dinode().nlink.get() == 1;
        let hold = if last {
            Some(engine.rgrps.hold_of(target.addr())?)
        } else {
            None
        };
        let blocks = 2 * REMOVE_BLOCKS + STATE_BLOCKS + 4;
        let mut work = engine.begin(Reservation::blocks(blocks), hold)?;
        self.point(&mut work, self.new, self.to, numbers(self.source))?;
        let old = self.old;
        dir::remove(&mut work.edit(old.guard()), old.addr(), self.from, self.now)?;
        drop_link(&mut work, target, last, self.now)?;
        self.settle(&mut work, self.source, self.new.inode.num())?;
        if self.source.dinode().is_dir() {
            // The old parent loses the source; the new one has it in place of the target, which was one too.
            Self::add_links(&mut work, self.old, -1)?;
        }
        Ok(work)
    }

    /// Swaps what two names mean.
    fn exchange(&self, engine: &Engine, target: &Locked<'_>) -> FsResult<Work> {
        check_can_remove(self.new, target)?;
        let change = i32::from(target.dinode().is_dir()) - i32::from(self.source.dinode().is_dir());
        let grows = if change > 0 { self.old } else { self.new };
        if self.moves() && change != 0 && grows.dinode().nlink.get() == u32::MAX {
            return Err(Errno::EMLINK.into());
        }
        let blocks = 2 * REMOVE_BLOCKS + 4;
        let mut work = engine.begin(Reservation::blocks(blocks), None)?;
        self.point(&mut work, self.old, self.from, numbers(target))?;
        self.point(&mut work, self.new, self.to, numbers(self.source))?;
        self.settle(&mut work, self.source, self.new.inode.num())?;
        self.settle(&mut work, target, self.old.inode.num())?;
        if self.moves() && change != 0 {
            Self::add_links(&mut work, self.old, change)?;
            Self::add_links(&mut work, self.new, -change)?;
        }
        Ok(work)
    }
}

/// What an entry says of an inode.
fn numbers(locked: &Locked<'_>) -> (InodeNum, FileType) {
    (locked.inode.num(), locked.inode.kind())
}

fn entry(name: &[u8], (num, kind): (InodeNum, FileType)) -> NewEntry<'_> {
    NewEntry {
        name,
        num,
        kind,
        ea_follows: false,
    }
}
