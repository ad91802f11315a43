//! What `-D` adds: the options as understood, and the structures of the plan, with the fields' own names.

use super::args::Invocation;
use super::{Console, Failure};
use crate::options::{Options, Topology};
use crate::plan::Plan;
use gfs2_format::BlockAddr;
use gfs2_format::ondisk::{Dinode, MetaHeader, MetaType, view};
use std::collections::BTreeMap;

/// Options and alignment, before the user is asked.
pub(super) fn print_options(
    plan: &Plan,
    options: &Options,
    topology: &Topology,
    invocation: &Invocation,
    console: &mut Console<'_>,
) {
    let limits = &topology.limits;
    if limits.is_known() {
        console.say(&format!("alignment_offset: {}", limits.alignment_offset));
        console.say(&format!("logical_sector_size: {}", limits.logical_sector));
        console.say(&format!("minimum_io_size: {}", limits.minimum_io));
        console.say(&format!("optimal_io_size: {}", limits.optimal_io));
        console.say(&format!("physical_sector_size: {}", limits.physical_sector));
    }
    let summary = plan.summary();
    let (unit, width) = options
        .stripe
        .map_or((0, 0), |stripe| (stripe.unit, stripe.width));
    console.say("File system options:");
    console.say(&format!("  bsize = {}", summary.block_size));
    console.say(&format!("  qcsize = {}", options.quota_change_mb));
    console.say(&format!("  jsize = {}", summary.journal_mb));
    console.say(&format!("  journals = {}", summary.journals));
    console.say(&format!("  proto = {}", invocation.lock_proto));
    console.say(&format!("  table = {}", summary.lock_table));
    console.say(&format!("  rgsize = {}", options.rgrp_mb));
    console.say(&format!("  fssize = {}", options.blocks.unwrap_or(0)));
    console.say(&format!("  sunit = {unit}"));
    console.say(&format!("  swidth = {width}"));
    console.say(&format!("  format = {}", options.format));
    console.say(&match plan.layout().alignment() {
        Some((width, unit)) => format!("  rgrp align = {width}+{unit} blocks"),
        None => "  rgrp align = (disabled)".to_owned(),
    });
}

/// Resource groups, system dinodes and totals.
pub(super) fn print_plan(plan: &Plan, console: &mut Console<'_>) -> Result<(), Failure> {
    let layout = plan.layout();
    for index in 0..layout.rgrps() {
        let Some(rgrp) = layout.rgrp(index) else { continue };
        if index < layout.journals() {
            console.say(&format!("Placing resource group for journal{index}"));
        }
        console.say(&format!(
            "  ri_addr: {}  ri_length: {}  ri_data0: {}  ri_data: {}  ri_bitbytes: {}",
            rgrp.addr,
            rgrp.bitmap_blocks,
            rgrp.data0,
            rgrp.data,
            rgrp.data / 4
        ));
    }
    let mut dinodes = BTreeMap::new();
    plan.system_blocks(&mut |addr, block| {
        let at = BlockAddr::new(addr);
        if MetaHeader::check(block, at, MetaType::Di).is_ok()
            && let Ok(di) = view::<Dinode>(block, 0, at)
        {
            dinodes.insert(addr, *di);
        }
        Ok(())
    })?;
    let mut next = 0;
    for di in dinodes.values() {
        console.say(&dinode(di));
        next = next.max(di.num.formal_ino.get() + 1);
    }
    console.say(&format!("Next Inum: {next}"));
    let (total, free, dinodes) = plan.totals();
    console.say("Statfs:");
    console.say(&format!(
        "  sc_total: {total}  sc_free: {free}  sc_dinodes: {dinodes}"
    ));
    Ok(())
}

fn dinode(di: &Dinode) -> String {
    format!(
        "  no_formal_ino: {}  no_addr: {}  di_mode: 0{:o}  di_nlink: {}  di_size: {}  di_blocks: {}  di_ctime: {}  \
         di_goal_meta: {}  di_goal_data: {}  di_flags: 0x{:08X}  di_payload_format: {}  di_height: {}  di_depth: {}  \
         di_entries: {}",
        di.num.formal_ino.get(),
        di.num.addr.get(),
        di.mode.get(),
        di.nlink.get(),
        di.size.get(),
        di.blocks.get(),
        di.ctime.get(),
        di.goal_meta.get(),
        di.goal_data.get(),
        di.flags.get(),
        di.payload_format.get(),
        di.height.get(),
        di.depth.get(),
        di.entries.get()
    )
}
