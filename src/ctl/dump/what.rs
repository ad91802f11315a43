//! The things a dump can be asked for, from the words of the command line to items.

use super::blocks;
use super::journal::journal;
use super::report::{Item, List, name_hex, printable};
use gfs2_format::bitmap::{RgrpLayout, decode_rindex};
use gfs2_format::describe::structure;
use gfs2_format::device::BlockDevice;
use gfs2_format::dir::{Cookie, read_from};
use gfs2_format::ondisk::{
    BlockState, DINODE_SIZE, Dinode, DinodeFlags, OnDisk, Rgrp, RindexEntry, StatfsChange, Superblock,
    rgrp_crc, view,
};
use gfs2_format::tree::{Mapping, map, next_data};
use gfs2_format::volume::{
    DeviceReader, SystemFiles, read_journals, read_rindex, read_superblock, resolve_path,
};
use gfs2_format::{BlockAddr, BlockRead, Error, FileBlock, Geometry, Result};
use serde_json::json;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use zerocopy::IntoBytes;

/// The words that are no paths.
pub(crate) const WORDS: &[&str] = &[
    "sb", "rindex", "rgrps", "rgrp", "master", "root", "jindex", "journal", "statfs", "block", "inode",
];

/// One thing to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Superblock,
    Rindex,
    Rgrps,
    Rgrp(u64),
    Master,
    Root,
    Jindex,
    Journal(u64),
    Statfs,
    Block(u64),
    Inode(u64),
    Path(Vec<u8>),
    MasterPath(Vec<u8>),
}

/// The words of the command line.
pub(super) struct Words;

impl Words {
    /// One [`What`] after the other.
    ///
    /// # Errors
    /// A sentence for the user.
    pub(super) fn parse(words: &[OsString]) -> std::result::Result<Vec<What>, String> {
        let mut out = Vec::new();
        let mut words = words.iter().map(|word| word.as_bytes());
        while let Some(word) = words.next() {
            out.push(match word {
                b"sb" => What::Superblock,
                b"rindex" => What::Rindex,
                b"rgrps" => What::Rgrps,
                b"rgrp" => What::Rgrp(argument("rgrp", words.next())?),
                b"master" => What::Master,
                b"root" => What::Root,
                b"jindex" => What::Jindex,
                b"journal" => What::Journal(argument("journal", words.next())?),
                b"statfs" => What::Statfs,
                b"block" => What::Block(argument("block", words.next())?),
                b"inode" => What::Inode(argument("inode", words.next())?),
                [b'/', ..] => What::Path(word.to_vec()),
                other => match other.strip_prefix(b"master:") {
                    Some(path) => What::MasterPath(path.to_vec()),
                    None => {
                        let (known, other) = (WORDS.join(", "), printable(other));
                        return Err(format!(
                            "{other}: neither one of {known} nor a path (/... or master:/...)"
                        ));
                    }
                },
            });
        }
        Ok(out)
    }
}

fn argument(word: &str, text: Option<&[u8]>) -> std::result::Result<u64, String> {
    let text = text.ok_or_else(|| format!("{word} needs a number: {word} N"))?;
    std::str::from_utf8(text)
        .ok()
        .and_then(number)
        .ok_or_else(|| format!("{word} {}: not a number", printable(text)))
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A volume being looked at. Only the superblock must be right for it.
#[derive(Debug)]
pub(super) struct Dump<'a> {
    device: &'a dyn BlockDevice,
    superblock: Superblock,
    geometry: Geometry,
    all: bool,
}

impl<'a> Dump<'a> {
    /// Reads the superblock.
    ///
    /// # Errors
    /// As [`read_superblock`].
    pub(super) fn open(device: &'a dyn BlockDevice, all: bool) -> Result<Self> {
        let (superblock, geometry) = read_superblock(device)?;
        Ok(Self {
            device,
            superblock,
            geometry,
            all,
        })
    }

    /// What was asked for; when even its place cannot be found, an item that says why.
    pub(super) fn item(&self, what: &What) -> Item {
        let item = match what {
            What::Superblock => self.block(self.geometry.superblock()),
            What::Rindex => self.rindex(),
            What::Rgrps => self.rgrps(),
            What::Rgrp(n) => self.rgrp(*n),
            What::Master => self.master().and_then(|at| self.inode(at)),
            What::Root => self.root().and_then(|at| self.inode(at)),
            What::Jindex => self.system().and_then(|system| self.inode(system.jindex)),
            What::Journal(n) => self.journal(*n),
            What::Statfs => self.statfs(),
            What::Block(n) => self.check(*n).and_then(|at| self.block(at)),
            What::Inode(n) => self.check(*n).and_then(|at| self.inode(at)),
            What::Path(path) => self.path(self.root(), path),
            What::MasterPath(path) => self.path(self.master(), path),
        };
        item.unwrap_or_else(|error| {
            let name = name_of(what);
            let mut item = Item::new(&name);
            item.problem(format!("{name}: {error}"));
            item
        })
    }

    fn reader(&self) -> DeviceReader<'_> {
        DeviceReader::new(self.device, &self.geometry)
    }

    fn check(&self, n: u64) -> Result<BlockAddr> {
        if n < self.geometry.end() {
            return Ok(BlockAddr::new(n));
        }
        Err(Error::TooLarge {
            what: "block number",
            found: n,
            limit: self.geometry.end().saturating_sub(1),
        })
    }

    fn named(&self, raw: u64, field: &'static str) -> Result<BlockAddr> {
        self.geometry
            .check_address(raw, self.geometry.superblock(), "sb", field)
    }

    fn root(&self) -> Result<BlockAddr> {
        self.named(self.superblock.root_dir.addr.get(), "sb_root_dir")
    }

    fn master(&self) -> Result<BlockAddr> {
        self.named(self.superblock.master_dir.addr.get(), "sb_master_dir")
    }

    fn system(&self) -> Result<SystemFiles> {
        SystemFiles::read(&self.reader(), &self.superblock)
    }

    fn block(&self, at: BlockAddr) -> Result<Item> {
        let bytes = self.reader().read(at)?;
        Ok(blocks::block(&bytes, at, &self.geometry, self.all))
    }

    fn path(&self, from: Result<BlockAddr>, path: &[u8]) -> Result<Item> {
        let at = resolve_path(&self.reader(), from?, path)?;
        self.inode(at)
    }

    /// A dinode with what hangs on it.
    fn inode(&self, at: BlockAddr) -> Result<Item> {
        let bytes = self.reader().read(at)?;
        let mut item = blocks::block(&bytes, at, &self.geometry, self.all);
        let di = match Dinode::decode(&bytes, at, &self.geometry) {
            Ok(di) => di,
            Err(error) => {
                if item.problems().is_empty() {
                    item.problem(error);
                }
                return Ok(item);
            }
        };
        if di.is_dir() && di.flags().contains(DinodeFlags::EXHASH) {
            self.entries(&mut item, at);
        } else if self.all && di.height.get() > 0 {
            self.extents(&mut item, at, &bytes, di);
        }
        if di.eattr.get() != 0 {
            self.xattrs(&mut item, at, di.eattr.get());
        }
        Ok(item)
    }

    fn entries(&self, item: &mut Item, dir: BlockAddr) {
        let mut list = List::new("entries");
        let outcome = read_from(&self.reader(), dir, Cookie::START, &mut |entry| {
            let name = printable(entry.name);
            let (num, kind) = (entry.num, entry.kind);
            let text = format!("{name:?} -> {} (formal {}), {kind:?}", num.addr, num.formal);
            let json = json!({
                "name": name, "name_hex": name_hex(entry.name), "no_addr": num.addr.get(), "no_formal_ino": num.formal.get(),
                "de_type": kind.dirent_type(),
            });
            list.row(text, json);
            ControlFlow::Continue(())
        });
        item.list(list);
        if let Err(error) = outcome {
            item.problem(error);
        }
    }

    fn extents(&self, item: &mut Item, at: BlockAddr, bytes: &[u8], di: &Dinode) {
        let mut list = List::new("extents");
        let end = FileBlock::new(di.size.get().div_ceil(u64::from(self.geometry.bsize())));
        let mut from = FileBlock::new(0);
        let outcome = loop {
            match next_data(&self.reader(), at, bytes, from, end) {
                Ok(Some(lblock)) => from = lblock,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
            let left = end.get().saturating_sub(from.get());
            let extent = match map(&self.reader(), at, bytes, from, left) {
                Ok(Mapping::Data(extent)) => extent,
                Ok(_) => break Ok(()),
                Err(error) => break Err(error),
            };
            let text = format!(
                "{from}: {} (0x{:x}), {} block(s)",
                extent.start,
                extent.start.get(),
                extent.len
            );
            let json = json!({ "lblock": from.get(), "block": extent.start.get(), "blocks": extent.len });
            list.row(text, json);
            match from.checked_add(u64::from(extent.len)) {
                Some(next) if next < end => from = next,
                _ => break Ok(()),
            }
        };
        item.list(list);
        if let Err(error) = outcome {
            item.problem(error);
        }
    }

    /// The EA block, or each of those the list of EA blocks names.
    fn xattrs(&self, item: &mut Item, at: BlockAddr, eattr: u64) {
        let mut list = List::new("xattr_blocks");
        if let Err(error) = self.xattr_blocks(&mut list, at, eattr) {
            item.problem(error);
        }
        item.list(list);
    }

    fn xattr_blocks(&self, list: &mut List, at: BlockAddr, eattr: u64) -> Result<()> {
        let first = self.geometry.check_address(eattr, at, "dinode", "di_eattr")?;
        let bytes = self.reader().read(first)?;
        if !blocks::is_indirect(&bytes, first) {
            list.item(blocks::block(&bytes, first, &self.geometry, self.all));
            return Ok(());
        }
        for raw in blocks::leading_pointers(&bytes) {
            let next = self
                .geometry
                .check_address(raw, first, "indirect", "ea block pointer")?;
            list.item(self.block(next)?);
        }
        Ok(())
    }

    fn rindex_entries(&self) -> Result<(BlockAddr, Vec<RindexEntry>)> {
        let rindex = self.system()?.rindex;
        Ok((rindex, read_rindex(&self.reader(), rindex)?))
    }

    fn rindex(&self) -> Result<Item> {
        let (rindex, entries) = self.rindex_entries()?;
        let mut item = Item::at_block("rindex", rindex);
        let mut list = List::new("entries");
        for (n, entry) in entries.iter().enumerate() {
            let mut row = Item::new("rindex").titled(n);
            if let Some(described) = structure(RindexEntry::NAME) {
                row.structure(described, entry.as_bytes());
            }
            if let Err(error) = RgrpLayout::check(entry, rindex, &self.geometry) {
                row.problem(error);
            }
            list.item(row);
        }
        item.list(list);
        if let Err(error) = decode_rindex(entries.as_bytes(), rindex, &self.geometry) {
            item.problem(error);
        }
        Ok(item)
    }

    fn rgrps(&self) -> Result<Item> {
        let (rindex, entries) = self.rindex_entries()?;
        let mut item = Item::new("rgrps");
        let mut list = List::new("rgrps");
        for (n, entry) in entries.iter().enumerate() {
            if let Err(error) = self.rgrp_row(&mut list, n, entry, rindex) {
                item.problem(error);
            }
        }
        item.list(list);
        Ok(item)
    }

    fn rgrp_row(&self, list: &mut List, n: usize, entry: &RindexEntry, rindex: BlockAddr) -> Result<()> {
        let at = self
            .geometry
            .check_address(entry.addr.get(), rindex, "rindex", "ri_addr")?;
        let bytes = self.reader().read(at)?;
        let rgrp: &Rgrp = view(&bytes, 0, at)?;
        let crc = match rgrp.crc.get() {
            0 => "unset",
            crc if crc == rgrp_crc(rgrp) => "right",
            _ => "wrong",
        };
        let text = format!(
            "{n}: block {at}, {} of {} blocks free, {} dinodes, flags 0x{:x}, crc {crc}",
            rgrp.free.get(),
            entry.data.get(),
            rgrp.dinodes.get(),
            rgrp.flags.get()
        );
        let json = json!({
            "index": n, "block": at.get(), "data": entry.data.get(), "free": rgrp.free.get(),
            "dinodes": rgrp.dinodes.get(), "flags": rgrp.flags.get(), "crc": crc,
        });
        list.row(text, json);
        Ok(())
    }

    fn rgrp(&self, n: u64) -> Result<Item> {
        let (rindex, entries) = self.rindex_entries()?;
        let entry = usize::try_from(n).ok().and_then(|n| entries.get(n));
        let entry = entry.ok_or(Error::NotFound)?;
        let layout = RgrpLayout::check(entry, rindex, &self.geometry)?;
        let mut item = self.block(layout.addr())?;
        let mut counts = [0u64; 4];
        let mut states = List::new("states");
        for slice in layout.slices() {
            let bytes = self.reader().read(slice.block)?;
            if let Err(error) = slice.check_block(&bytes) {
                item.problem(error);
            }
            for (sum, count) in counts.iter_mut().zip(slice.count(&bytes)?) {
                *sum += u64::from(count);
            }
            if self.all {
                runs(&mut states, slice.iter(&bytes)?);
            }
        }
        for (name, count) in ["free", "used", "unlinked", "dinode"].into_iter().zip(counts) {
            item.field(&format!("blocks {name}"), count, count.into());
        }
        if self.all {
            item.list(states);
        }
        Ok(item)
    }

    fn journal(&self, n: u64) -> Result<Item> {
        let journals = read_journals(&self.reader(), &self.system()?)?;
        let file = usize::try_from(n).ok().and_then(|n| journals.get(n));
        let file = file.ok_or(Error::NotFound)?;
        Ok(journal(self.device, &self.geometry, file, self.all))
    }

    fn statfs(&self) -> Result<Item> {
        let system = self.system()?;
        let mut item = Item::new("statfs");
        let mut list = List::new("files");
        list.item(self.statfs_file("statfs", system.statfs));
        for n in 0u32.. {
            let name = format!("statfs_change{n}");
            match resolve_path(&self.reader(), system.per_node, name.as_bytes()) {
                Ok(at) => list.item(self.statfs_file(&name, at)),
                Err(Error::NotFound) => break,
                Err(error) => {
                    item.problem(error);
                    break;
                }
            }
        }
        item.list(list);
        Ok(item)
    }

    fn statfs_file(&self, name: &str, at: BlockAddr) -> Item {
        let mut item = Item::at_block(name, at);
        let shown = self.reader().read(at).and_then(|bytes| {
            Dinode::decode(&bytes, at, &self.geometry)?;
            if let Some(described) = structure(StatfsChange::NAME) {
                item.structure(described, bytes.get(DINODE_SIZE..).unwrap_or_default());
            }
            Ok(())
        });
        if let Err(error) = shown {
            item.problem(error);
        }
        item
    }
}

/// Runs of blocks of one state.
fn runs(list: &mut List, states: impl Iterator<Item = (BlockAddr, BlockState)>) {
    let mut run: Option<(BlockAddr, BlockState, u64)> = None;
    let mut show = |run: Option<(BlockAddr, BlockState, u64)>| {
        if let Some((first, state, len)) = run {
            let json = json!({ "block": first.get(), "blocks": len, "state": state as u8 });
            list.row(format!("{first}: {len} block(s) {state:?}"), json);
        }
    };
    for (block, state) in states {
        run = match run {
            Some((first, same, len)) if same == state => Some((first, same, len + 1)),
            other => {
                show(other);
                Some((block, state, 1))
            }
        };
    }
    show(run);
}

fn name_of(what: &What) -> String {
    match what {
        What::Superblock => "sb".to_owned(),
        What::Rindex => "rindex".to_owned(),
        What::Rgrps => "rgrps".to_owned(),
        What::Rgrp(n) => format!("rgrp {n}"),
        What::Master => "master".to_owned(),
        What::Root => "root".to_owned(),
        What::Jindex => "jindex".to_owned(),
        What::Journal(n) => format!("journal {n}"),
        What::Statfs => "statfs".to_owned(),
        What::Block(n) => format!("block {n}"),
        What::Inode(n) => format!("inode {n}"),
        What::Path(path) => printable(path),
        What::MasterPath(path) => format!("master:{}", printable(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> std::result::Result<Vec<What>, String> {
        let words: Vec<OsString> = words.split_whitespace().map(OsString::from).collect();
        Words::parse(&words)
    }

    #[test]
    fn words_are_taken_in_their_order() {
        assert_eq!(
            parse("sb rgrp 3 /a/b block 0x1a master:/jindex").unwrap(),
            [
                What::Superblock,
                What::Rgrp(3),
                What::Path(b"/a/b".to_vec()),
                What::Block(26),
                What::MasterPath(b"/jindex".to_vec()),
            ]
        );
        for word in WORDS {
            let plain = parse(word);
            let counted = parse(&format!("{word} 1"));
            assert!(plain.is_ok() != counted.is_ok(), "{word}");
            let known = plain.or(counted).unwrap();
            assert_eq!(name_of(&known[0]).split(' ').next(), Some(*word));
        }
    }

    #[test]
    fn wrong_words_are_refused() {
        for words in ["nonsense", "rgrp", "rgrp x", "block -1", "sb 5", "a/b"] {
            assert!(parse(words).is_err(), "{words}");
        }
    }
}
