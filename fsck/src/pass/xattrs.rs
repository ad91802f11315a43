//! Extended attributes: the list of their blocks, the records, the blocks of large values.
//!
//! Of an unused record only its length, its last flag and the value blocks it still holds are believed.

use crate::check::{Check, Claim, Role};
use crate::pass::inodes::{Task, Walk, What};
use crate::pass::tree::pointers;
use crate::problem::{Kind, Problem};
use gfs2_format::ondisk::{EA_FLAG_LAST, EA_HEADER_SIZE, EaHeader, EaType, META_HEADER_SIZE, view};
use gfs2_format::{BlockAddr, Expected};

/// Largest value in bytes.
const VALUE_MAX: u64 = 65536;
/// The filesystem format from which on `trusted.` attributes exist.
const FORMAT_TRUSTED: u32 = 1802;

impl Check<'_> {
    /// Claims a block of attributes for an inode, and has it read.
    pub(crate) fn claim_xattr(
        &mut self,
        walk: &mut Walk,
        owner: usize,
        at: BlockAddr,
        raw: u64,
        role: Role,
        what: What,
    ) {
        let Some(active) = walk.active.get_mut(owner) else {
            return;
        };
        let claim = self.claim(active.addr, role, raw, at);
        if claim != Claim::Nowhere {
            active.blocks = active.blocks.saturating_add(1);
        }
        if claim == Claim::First {
            let block = BlockAddr::new(raw);
            walk.stack.push(Task { block, owner, what });
        }
    }

    /// The list of attribute blocks: it ends at the first zero, and nothing behind it is ever found.
    pub(crate) fn ea_list(&mut self, walk: &mut Walk, task: Task, bytes: &[u8]) {
        let mut ended = false;
        for raw in pointers(bytes, META_HEADER_SIZE) {
            if raw == 0 {
                ended = true;
                continue;
            }
            if ended {
                let inode = walk.active.get(task.owner).map(|active| active.addr);
                let mut problem = Problem::new(
                    Kind::EaGap,
                    task.block,
                    "EA block pointer",
                    raw,
                    Expected::Value(0),
                );
                problem.inode = inode;
                self.found(problem);
            }
            self.claim_xattr(walk, task.owner, task.block, raw, Role::Ea, What::Ea);
        }
    }

    /// The records of an attribute block, which tile it.
    pub(crate) fn ea_block(&mut self, walk: &mut Walk, task: Task, bytes: &[u8]) {
        let Some(inode) = walk.active.get(task.owner).map(|active| active.addr) else {
            return;
        };
        let mut at = META_HEADER_SIZE;
        while let Ok(header) = view::<EaHeader>(bytes, at, task.block) {
            let rec_len = header.rec_len.get() as usize;
            let left = bytes.len().saturating_sub(at);
            let last = header.flags & EA_FLAG_LAST != 0;
            let bad_length = rec_len < EA_HEADER_SIZE
                || !rec_len.is_multiple_of(8)
                || rec_len > left
                || (last && rec_len != left);
            if bad_length {
                let expected = if last {
                    Expected::Value(left as u64)
                } else {
                    Expected::Range(EA_HEADER_SIZE as u64, left as u64)
                };
                let found = u64::from(header.rec_len.get());
                let problem = Problem::new(Kind::EaRecord, task.block, "ea_rec_len", found, expected);
                return self.found(problem.of(inode));
            }
            self.ea_record(walk, task, inode, (at, header), bytes);
            at = at.saturating_add(rec_len);
            if last {
                return;
            }
            if at >= bytes.len() {
                let flags = u64::from(header.flags);
                let expected = Expected::Rule("GFS2_EAFLAG_LAST");
                let problem = Problem::new(Kind::EaLast, task.block, "ea_flags", flags, expected);
                return self.found(problem.of(inode));
            }
        }
        // Less than a header is left.
        let left = bytes.len().saturating_sub(at) as u64;
        let expected = Expected::Range(EA_HEADER_SIZE as u64, u64::MAX);
        self.found(Problem::new(Kind::EaRecord, task.block, "bytes left", left, expected).of(inode));
    }

    fn ea_record(
        &mut self,
        walk: &mut Walk,
        task: Task,
        inode: BlockAddr,
        (at, header): (usize, &EaHeader),
        bytes: &[u8],
    ) {
        let rec_len = header.rec_len.get() as usize;
        let name_len = usize::from(header.name_len);
        let unused = header.ea_type == EaType::Unused as u8;
        let name_at = at.saturating_add(EA_HEADER_SIZE);
        let name = bytes
            .get(name_at..name_at.saturating_add(name_len))
            .unwrap_or_default();
        let trusted = self.superblock.fs_format.get() >= FORMAT_TRUSTED;
        let jbsize = self.geometry.jbsize();
        let mut wrong = |kind, field, found: u64, expected| {
            let problem = Problem::new(kind, task.block, field, found, expected);
            self.found(problem.of(inode).named(name));
        };
        let pointers_used = u64::from(header.num_ptrs);
        let value_len = u64::from(header.data_len.get());
        let values_at = EA_HEADER_SIZE.saturating_add(name_len.next_multiple_of(8));
        if !unused {
            let kind = EaType::from_raw(header.ea_type);
            if kind.is_none() || (kind == Some(EaType::Trusted) && !trusted) {
                let most = if trusted {
                    EaType::Trusted
                } else {
                    EaType::Security
                };
                let expected = Expected::Range(1, most as u64);
                wrong(Kind::EaType, "ea_type", u64::from(header.ea_type), expected);
            }
            if name_len == 0 {
                wrong(Kind::EaName, "ea_name_len", 0, Expected::Range(1, 255));
            }
            let inline = EA_HEADER_SIZE as u64 + name_len as u64 + value_len;
            if pointers_used == 0 && inline > rec_len as u64 {
                let room = (rec_len as u64).saturating_sub(EA_HEADER_SIZE as u64 + name_len as u64);
                wrong(Kind::EaRecord, "ea_data_len", value_len, Expected::Range(0, room));
            }
            let needed = value_len.div_ceil(jbsize);
            if pointers_used != 0 && pointers_used != needed {
                wrong(
                    Kind::EaPointers,
                    "ea_num_ptrs",
                    pointers_used,
                    Expected::Value(needed),
                );
            }
            if pointers_used != 0 && value_len > VALUE_MAX {
                wrong(
                    Kind::EaPointers,
                    "ea_data_len",
                    value_len,
                    Expected::Range(0, VALUE_MAX),
                );
            }
        }
        let end = values_at.saturating_add(usize::from(header.num_ptrs).saturating_mul(8));
        if pointers_used == 0 || (unused && end > rec_len) {
            return;
        }
        if end > rec_len {
            let room = (rec_len.saturating_sub(values_at) / 8) as u64;
            return wrong(
                Kind::EaPointers,
                "ea_num_ptrs",
                pointers_used,
                Expected::Range(0, room),
            );
        }
        let start = at.saturating_add(values_at);
        let values: Vec<u64> = pointers(bytes, start)
            .take(usize::from(header.num_ptrs))
            .collect();
        for raw in values {
            if raw == 0 && !unused {
                let expected = Expected::Rule("a block of a resource group");
                let problem = Problem::new(Kind::EaPointer, task.block, "EA value pointer", 0, expected);
                self.found(problem.of(inode).named(name));
            }
            if raw != 0 {
                self.claim_xattr(walk, task.owner, task.block, raw, Role::EaValue, What::EaValue);
            }
        }
    }
}
