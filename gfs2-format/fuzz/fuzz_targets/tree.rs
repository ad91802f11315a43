//! A file's tree with damaged blocks under reads, growth and freeing.
//!
//! Invariants: no panic; every call ends; an operation that fails is rolled back by dropping its edit.

#![no_main]

use gfs2_format::memvol::MemVolume;
use gfs2_format::ondisk::{DinodeFlags, FileType};
use gfs2_format::tree::{
    FreeCursor, StepBudget, data_use, map, map_or_alloc, next_data, next_hole, read_bytes, truncate_begin,
    truncate_finish,
};
use gfs2_format::walk::{Scope, owned_blocks};
use gfs2_format::{BlockAddr, BlockEdit, BlockRead, FileBlock, Result, Timestamp};
use gfs2_format_fuzz::{Choices, work_on_damaged};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static CLEAN: LazyLock<(MemVolume, BlockAddr)> = LazyLock::new(|| {
    let mut volume = MemVolume::format(512, 3, 2000).expect("a volume");
    let addr = volume
        .new_inode(FileType::Regular, DinodeFlags::empty())
        .expect("an inode")
        .addr;
    for lblock in [0, 50, 3000, 150_000] {
        write(&mut volume, addr, FileBlock::new(lblock), 9).expect("a write");
    }
    (volume, addr)
});

fn write(volume: &mut MemVolume, addr: BlockAddr, lblock: FileBlock, want: u32) -> Result<()> {
    let got = map_or_alloc(volume, addr, lblock, want)?;
    let usage = data_use(&volume.dinode(addr)?);
    got.extent
        .blocks()
        .filter(|_| got.new)
        .try_for_each(|block| volume.write_data(block, usage, b"data"))
}

fn free(volume: &mut MemVolume, addr: BlockAddr, mut cursor: FreeCursor) -> Result<()> {
    let budget = StepBudget { frees: 50, edits: 6 };
    while let Some(block) = cursor.seek(volume, addr)? {
        let group = volume.group_of(block)?.clone();
        cursor.step(volume, addr, budget, &|b| group.contains(b))?;
    }
    Ok(())
}

fn operate(volume: &mut MemVolume, addr: BlockAddr, choices: &mut Choices<'_>) -> Result<()> {
    let reach = [100, 5000, 200_000, u64::MAX][usize::from(choices.byte() % 4)];
    let (from, len) = (FileBlock::new(choices.below(reach)), choices.below(500));
    let end = FileBlock::new(from.get().saturating_add(len));
    let block = volume.read(addr)?;
    match choices.byte() % 8 {
        0 => drop(map(volume, addr, &block, from, len)?),
        1 => drop(next_data(volume, addr, &block, from, FileBlock::new(u64::MAX))?),
        2 => drop(next_hole(volume, addr, &block, from, FileBlock::new(u64::MAX))?),
        3 => drop(read_bytes(volume, addr, from.get(), &mut [0; 5000])?),
        4 => write(volume, addr, from, len as u32)?,
        5 => free(volume, addr, FreeCursor::new(from, Some(end)))?,
        6 => {
            if let Some(cursor) = truncate_begin(volume, addr, from.get(), Timestamp::default())? {
                free(volume, addr, cursor)?;
                truncate_finish(volume, addr)?;
            }
        }
        _ => owned_blocks(volume, addr, Scope::All, &mut |_| Ok(()))?,
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let (volume, addr) = CLEAN.clone();
    let mut choices = Choices(data);
    work_on_damaged(volume, addr, &mut choices, operate);
});
