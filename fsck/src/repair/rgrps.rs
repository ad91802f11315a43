//! Resource groups: the index, headers, bitmap blocks, counts.

use super::sysfile::reset;
use super::system::rindex;
use super::{Editor, Repaired, Verdict};
use crate::problem::{Kind, Problem};
use gfs2_format::bitmap::RgrpLayout;
use gfs2_format::dir::lookup;
use gfs2_format::ondisk::{MetaType, Rgrp};
use gfs2_format::{BlockAddr, BlockRead, Error, Expected};

/// See the module documentation.
pub(super) fn repair(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    match problem.kind {
        Kind::Rindex | Kind::RindexEntry | Kind::RindexMissing | Kind::RindexSize => index(edit),
        Kind::RgrpCount => field(edit, problem),
        Kind::RgrpField | Kind::RgrpCrc | Kind::RgrpSkip => field(edit, problem),
        Kind::RgrpHeader | Kind::RgrpBitmap => blocks(edit, problem),
        _ => Ok(Verdict::Unable("this version cannot repair it")),
    }
}

/// The resource index as the groups are, in its blocks if they can be used.
fn index(edit: &mut Editor<'_>) -> Repaired {
    let Some(addr) = edit.seen.system.file("rindex") else {
        return Ok(Verdict::Unable("there is no resource index yet"));
    };
    let master = edit.superblock.master_dir.num().addr;
    let named = lookup(edit, master, b"rindex").map(|found| found.map(|found| found.num.addr));
    if matches!(named, Ok(named) if named != Some(addr)) {
        // Another repair of this round put a new file in its place.
        return Ok(Verdict::Gone);
    }
    if edit.seen.observed.groups().is_empty() {
        return Ok(Verdict::Unable(
            "resource groups are lost that cannot be found again",
        ));
    }
    match rindex(edit, addr) {
        Ok(()) => {}
        Err(Error::Corrupt(_)) => {
            edit.discard();
            reset(edit, addr)?;
            rindex(edit, addr)?;
        }
        Err(e) => return Err(e),
    }
    Ok(Verdict::Done)
}

/// One field of a header whose value is known.
fn field(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let Expected::Value(value) = problem.expected else {
        return Ok(Verdict::Unable("the right value is not known"));
    };
    let short = u32::try_from(value).unwrap_or(0);
    if short == 0 && value != 0 && problem.field != "rg_data0" {
        return Ok(Verdict::Unable("the right value does not fit"));
    }
    edit.change::<Rgrp>(problem.block, 0, |rgrp| {
        match problem.field {
            "rg_free" => rgrp.free = short.into(),
            "rg_dinodes" => rgrp.dinodes = short.into(),
            "rg_data0" => rgrp.data0 = value.into(),
            "rg_data" => rgrp.data = short.into(),
            "rg_bitbytes" => rgrp.bitbytes = short.into(),
            "rg_skip" => rgrp.skip = short.into(),
            _ => {}
        }
        rgrp.seal();
    })?;
    Ok(Verdict::Done)
}

/// Headers or bitmap blocks that are none.
fn blocks(edit: &mut Editor<'_>, problem: &Problem) -> Repaired {
    let mut verdict = Verdict::Gone;
    for at in problem.range().map(BlockAddr::new) {
        if block(edit, at)? == Verdict::Done {
            verdict = Verdict::Done;
        }
    }
    Ok(verdict)
}

/// A header or bitmap block that is none: its states stay as far as they are there, the rest follows from the index.
fn block(edit: &mut Editor<'_>, at: BlockAddr) -> Repaired {
    let groups = edit.seen.observed.groups();
    let after = groups.partition_point(|group| group.layout.addr() <= at);
    let layout = after
        .checked_sub(1)
        .and_then(|n| groups.get(n))
        .map(|group| group.layout.clone());
    let next = groups.get(after).map(|group| group.layout.addr());
    let Some(layout) = layout.filter(|layout| layout.contains(at) && !layout.contains_data(at)) else {
        return Ok(Verdict::Gone);
    };
    if at == layout.addr() {
        header(edit, &layout, next)
    } else {
        edit.stamp(at, MetaType::Rb)?;
        Ok(Verdict::Done)
    }
}

fn header(edit: &mut Editor<'_>, layout: &RgrpLayout, next: Option<BlockAddr>) -> Repaired {
    let at = layout.addr();
    let mut counts = [0u32; 4];
    for slice in layout.slices() {
        let bytes = edit.read(slice.block)?;
        for (sum, n) in counts.iter_mut().zip(slice.count(&bytes)?) {
            *sum = sum.saturating_add(n);
        }
    }
    let [free, _, unlinked, dinodes] = counts;
    let distance = next.map_or(0, |next| next.get().saturating_sub(at.get()));
    let highest = edit
        .seen
        .inodes
        .iter()
        .map(|inode| inode.formal)
        .max()
        .unwrap_or(0);
    edit.stamp(at, MetaType::Rg)?;
    edit.change::<Rgrp>(at, 0, |rgrp| {
        rgrp.flags = 0.into();
        rgrp.free = free.into();
        rgrp.dinodes = unlinked.saturating_add(dinodes).into();
        rgrp.skip = u32::try_from(distance).unwrap_or(0).into();
        rgrp.igeneration = rgrp.igeneration.get().max(highest).into();
        rgrp.data0 = layout.data0().get().into();
        rgrp.data = layout.data().into();
        rgrp.bitbytes = (layout.data() / 4).into();
        rgrp.reserved = [0; 60];
        rgrp.seal();
    })?;
    Ok(Verdict::Done)
}
