//! The plan of a volume: everything that decides its blocks, and how each is rendered.
//!
//! Invariants: pure; a plan is made once and rendered any number of times, in any order and from any thread, to the
//! same bytes. Making it lays the system files out dry, so that a volume that would not fit is refused here.

use crate::bitmap;
use crate::error::Result;
use crate::inode::Sink;
use crate::journal::{HeaderSteps, Journal};
use crate::layout::{Layout, RgrpSpan};
use crate::options::{LockProto, Options, Topology};
use crate::system::{self, SystemSpec, SystemTree};
use gfs2_format::ondisk::{MULTIHOST_FORMAT, MetaHeader, MetaType, Superblock};
use gfs2_format::{Geometry, Jid};
use std::fmt;
use zerocopy::{FromZeros, IntoBytes};

/// Something the user should know that does not stop the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// The device does not start on its natural alignment.
    Misaligned,
    /// Blocks are smaller than the device's physical sectors.
    Inefficient {
        /// Block size in bytes.
        bsize: u32,
        /// Physical sector in bytes.
        physical: u64,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned => {
                f.write_str("Warning: device is not properly aligned. This may harm performance.")
            }
            Self::Inefficient { bsize, physical } => write!(
                f,
                "Warning: Block size {bsize} is inefficient because it is less than the physical block size ({physical})."
            ),
        }
    }
}

/// The facts of a volume that its user wants to see.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Block size in bytes.
    pub block_size: u32,
    /// Size of the device in bytes.
    pub device_size: u64,
    /// Size of the filesystem in blocks.
    pub blocks: u64,
    /// Journals.
    pub journals: u32,
    /// Size of each in MiB.
    pub journal_mb: u32,
    /// Resource groups, those of the journals included.
    pub resource_groups: u64,
    /// Locking protocol.
    pub lock_proto: LockProto,
    /// Lock table, possibly empty.
    pub lock_table: String,
    /// UUID.
    pub uuid: [u8; 16],
}

/// Bytes in GiB, computed in the original's precision.
#[expect(
    clippy::cast_precision_loss,
    reason = "two digits are shown, and the original rounds just so"
)]
pub(crate) fn gib(bytes: u64) -> f32 {
    bytes as f32 / (1u32 << 30) as f32
}

impl Summary {
    /// Size of the device in GiB.
    #[must_use]
    pub fn device_gib(&self) -> f32 {
        gib(self.device_size)
    }

    /// Size of the filesystem in GiB.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "two digits are shown, and the original rounds just so"
    )]
    pub fn gib(&self) -> f32 {
        gib(self.blocks) * self.block_size as f32
    }
}

/// A planned volume.
#[derive(Clone, Debug)]
pub struct Plan {
    layout: Layout,
    spec: SystemSpec,
    tree: SystemTree,
    sequences: Vec<u64>,
    device_size: u64,
    format: u32,
    journals: u32,
    lock_proto: LockProto,
    lock_table: String,
    uuid: [u8; 16],
    warnings: Vec<Warning>,
}

/// Plans a volume.
///
/// What is random (UUID, sequence numbers) and the time are drawn here unless the options give them; apart from them
/// the plan follows from the arguments alone.
///
/// # Errors
/// [`crate::Error`]: the options are out of range, do not go together, or do not fit.
pub fn plan(options: &Options, topology: &Topology) -> Result<Plan> {
    options.check()?;
    let mut warnings = Vec::new();
    let layout = Layout::new(options, topology, &mut warnings)?;
    let spec = SystemSpec {
        quota_change_mb: options.quota_change_mb,
        root_inherit_jdata: options.root_inherit_jdata,
        time: options.time.unwrap_or_else(now),
    };
    let tree = system::build(&layout, &spec, &mut |_, _| Ok(()))?;
    let sequences = (0..layout.journals())
        .map(|_| options.first_sequence.unwrap_or_else(random) % layout.journal_data())
        .collect();
    Ok(Plan {
        layout,
        spec,
        tree,
        sequences,
        device_size: topology.size,
        format: options.format,
        journals: options.journals,
        lock_proto: options.lock_proto,
        lock_table: options.lock_table.clone().unwrap_or_default(),
        uuid: options.uuid.unwrap_or_else(|| *uuid::Uuid::new_v4().as_bytes()),
        warnings,
    })
}

fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// 64 random bits: those of a random UUID that are not its version.
fn random() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low.rotate_left(32)
}

impl Plan {
    /// Where the resource groups lie.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The volume's geometry.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        self.layout.geometry()
    }

    /// What the user should be told before anything is written.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The facts of the volume.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            block_size: self.geometry().bsize(),
            device_size: self.device_size,
            blocks: self.layout.end(),
            journals: self.journals,
            journal_mb: self.layout.journal_mb(),
            resource_groups: self.layout.rgrps(),
            lock_proto: self.lock_proto,
            lock_table: self.lock_table.clone(),
            uuid: self.uuid,
        }
    }

    /// Data blocks, free blocks and dinodes of the whole volume.
    #[must_use]
    pub fn totals(&self) -> (u64, u64, u64) {
        system::totals(&self.layout, &self.tree.usage)
    }

    /// The superblock's block.
    #[must_use]
    pub fn superblock(&self) -> Vec<u8> {
        let geometry = self.geometry();
        let mut sb = Superblock::new_zeroed();
        sb.header = MetaHeader::new(MetaType::Sb, Jid::new(0));
        sb.fs_format = self.format.into();
        sb.multihost_format = MULTIHOST_FORMAT.into();
        sb.bsize = geometry.bsize().into();
        sb.bsize_shift = geometry.bsize_shift().into();
        sb.master_dir = self.tree.master.into();
        sb.root_dir = self.tree.root.into();
        let proto = self.lock_proto.name().as_bytes();
        sb.lockproto[..proto.len()].copy_from_slice(proto);
        let table = self.lock_table.as_bytes();
        sb.locktable[..table.len()].copy_from_slice(table);
        sb.uuid = self.uuid;
        let mut block = vec![0; geometry.block_len()];
        block[..size_of::<Superblock>()].copy_from_slice(sb.as_bytes());
        block
    }

    /// Renders the blocks of the system files and the root directory: address and bytes, each once, in no order.
    ///
    /// # Errors
    /// What `sink` returns.
    pub fn system_blocks(&self, sink: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let tree = system::build(&self.layout, &self.spec, sink as &mut Sink<'_>)?;
        assert_eq!(
            tree, self.tree,
            "the dry run decided the bitmaps and the superblock"
        );
        Ok(())
    }

    /// The journal of that id.
    pub(crate) fn journal<'a>(&'a self, steps: &'a HeaderSteps, jid: u64) -> Option<Journal<'a>> {
        let num = system::journal_num(&self.layout, jid)?;
        let sequence = *self.sequences.get(usize::try_from(jid).ok()?)?;
        let log = self.layout.journal_data();
        Some(Journal::new(
            self.geometry(),
            steps,
            num,
            log,
            sequence,
            self.spec.time,
        ))
    }

    /// Renders a group's header and bitmap blocks; see [`bitmap::render`].
    pub(crate) fn render_rgrp(&self, rgrp: &RgrpSpan, bytes: &mut [u8], unused: bool) -> bool {
        let last = rgrp.index + 1 == self.layout.rgrps();
        let skip = if last { 0 } else { rgrp.len };
        bitmap::render(&self.layout, &self.tree.usage, rgrp, skip, bytes, unused)
    }

    /// The blocks behind a group's bitmaps that are zeroed because nobody else writes them.
    pub(crate) fn zeroed_head(&self, rgrp: &RgrpSpan) -> std::ops::Range<u64> {
        let used_end = self.tree.usage.used_end(&self.layout, rgrp);
        let end = rgrp.addr + self.layout.head_blocks(rgrp);
        used_end.min(end)..end
    }
}

#[cfg(test)]
mod tests;
