//! The xattrs of an inode with damaged blocks under reads, changes and freeing.
//!
//! Invariants: no panic; every call ends; what was set is read back.

#![no_main]

use gfs2_format::ea::{EaCursor, SetMode, Xattrs};
use gfs2_format::memvol::MemVolume;
use gfs2_format::ondisk::{DinodeFlags, EaType, FileType};
use gfs2_format::tree::StepBudget;
use gfs2_format::{BlockAddr, Result};
use gfs2_format_fuzz::{Choices, work_on_damaged};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static CLEAN: LazyLock<(MemVolume, BlockAddr)> = LazyLock::new(|| {
    let mut volume = MemVolume::format(512, 3, 2000).expect("a volume");
    let addr = volume
        .new_inode(FileType::Regular, DinodeFlags::empty())
        .expect("an inode")
        .addr;
    for n in 0..20 {
        let value = vec![n; usize::from(n) * 70];
        let left = Xattrs::new(addr, 1802).set(&mut volume, EaType::User, &[b'a', n], &value, SetMode::Any);
        assert!(!left.expect("room").0);
    }
    (volume, addr)
});

fn operate(volume: &mut MemVolume, addr: BlockAddr, choices: &mut Choices<'_>) -> Result<()> {
    let ea = Xattrs::new(addr, 1802);
    let name = [b'a', choices.byte() % 30];
    match choices.byte() % 6 {
        0 => drop(ea.get(volume, EaType::User, &name)?),
        1 => ea.list(volume, &mut |_| ())?,
        2 => drop(ea.remove(volume, EaType::User, &name)?),
        3 | 4 => {
            let all = choices.byte() % 2 == 0;
            let mut cursor = if all {
                EaCursor::dealloc()
            } else {
                EaCursor::reclaim()
            };
            while cursor.seek(volume, addr)?.is_some() {
                cursor.step(volume, addr, StepBudget { frees: 9, edits: 9 }, &|_| true)?;
            }
        }
        _ => {
            let value = vec![choices.byte(); choices.below(3000) as usize];
            let _ = ea.set(volume, EaType::User, &name, &value, SetMode::Any)?;
        }
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let (volume, addr) = CLEAN.clone();
    let mut choices = Choices(data);
    work_on_damaged(volume, addr, &mut choices, operate);
});
