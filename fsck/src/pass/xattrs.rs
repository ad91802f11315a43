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
        if !unused {
            self.ea_fields(task.block, inode, header, name);
        }
        let count = usize::from(header.num_ptrs);
        let values_at = EA_HEADER_SIZE.saturating_add(name_len.next_multiple_of(8));
        let room = rec_len.saturating_sub(values_at) / 8;
        if count > room {
            // Of an unused record that is no damage: nobody looks there.
            if !unused {
                let (found, expected) = (count as u64, Expected::Range(0, room as u64));
                let problem = Problem::new(Kind::EaPointers, task.block, "ea_num_ptrs", found, expected);
                self.found(problem.of(inode).named(name));
            }
            return;
        }
        let start = at.saturating_add(values_at);
        for raw in pointers(bytes, start).take(count) {
            if raw != 0 {
                self.claim_xattr(walk, task.owner, task.block, raw, Role::EaValue, What::EaValue);
            } else if !unused {
                let expected = Expected::Rule("a block of a resource group");
                let problem = Problem::new(Kind::EaPointer, task.block, "EA value pointer", 0, expected);
                self.found(problem.of(inode).named(name));
            }
        }
    }

    /// The fields of a live record.
    fn ea_fields(&mut self, block: BlockAddr, inode: BlockAddr, header: &EaHeader, name: &[u8]) {
        let trusted = self.superblock.fs_format.get() >= FORMAT_TRUSTED;
        let needed = u64::from(header.data_len.get()).div_ceil(self.geometry.jbsize());
        let mut wrong = |kind, field, found: u64, expected| {
            let problem = Problem::new(kind, block, field, found, expected);
            self.found(problem.of(inode).named(name));
        };
        let most = if trusted {
            EaType::Trusted
        } else {
            EaType::Security
        };
        if EaType::from_raw(header.ea_type).is_none_or(|kind| kind > most) {
            let expected = Expected::Range(1, most as u64);
            wrong(Kind::EaType, "ea_type", u64::from(header.ea_type), expected);
        }
        if header.name_len == 0 {
            wrong(Kind::EaName, "ea_name_len", 0, Expected::Range(1, 255));
        }
        let count = u64::from(header.num_ptrs);
        let value_len = u64::from(header.data_len.get());
        if count == 0 {
            let fixed = EA_HEADER_SIZE as u64 + u64::from(header.name_len);
            let room = u64::from(header.rec_len.get()).saturating_sub(fixed);
            if value_len > room {
                wrong(Kind::EaRecord, "ea_data_len", value_len, Expected::Range(0, room));
            }
        } else if count != needed {
            wrong(Kind::EaPointers, "ea_num_ptrs", count, Expected::Value(needed));
        } else if value_len > VALUE_MAX {
            wrong(
                Kind::EaPointers,
                "ea_data_len",
                value_len,
                Expected::Range(0, VALUE_MAX),
            );
        }
    }
}
