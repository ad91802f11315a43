//! Journals: their files, their rings of headers, and whether (and how) they have to be replayed.

use crate::check::{Check, Step};
use crate::pass::shape::Righted;
use crate::pass::system::System;
use crate::problem::{Kind, Problem};
use crate::reader::Reader;
use gfs2_format::log::{DeviceJournal, JournalMap, JournalRead, decode_header, find_head, plan_recovery};
use gfs2_format::volume::{DeviceReader, JournalFile, map_journal};
use gfs2_format::{BlockAddr, Error, Expected, Jid, JournalBlock};

/// Blocks of a journal listed at a time.
const STEP: usize = 1 << 16;

/// What is known of one journal.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    pub(crate) file: JournalFile,
    /// Has to be replayed.
    pub(crate) dirty: bool,
    /// Its replay was planned without a complaint.
    pub(crate) replayable: bool,
    /// Its inode lies about its shape, and is read as it must be.
    pub(crate) bent: bool,
}

impl Check<'_> {
    /// Looks at every journal of the index.
    pub(crate) fn journals(&mut self, blocks: &mut Reader<'_>, system: &System) -> Step<Vec<Journal>> {
        self.journal_index(system);
        let geometry = self.geometry.clone();
        let reader = DeviceReader::new(self.device, &geometry);
        let mut journals = Vec::new();
        for jid in 0..system.journals() {
            let Some(dinode) = system.journal(jid) else {
                break;
            };
            let name = format!("journal{jid}");
            let inside = geometry.check_address(dinode.get(), dinode, "dirent", "no_addr");
            match inside.and_then(|dinode| map_journal(&Righted::new(&reader, dinode), dinode)) {
                Ok(map) => {
                    let file = JournalFile {
                        jid: Jid::new(jid),
                        dinode,
                        map,
                        statfs_change: system.node_file("statfs_change", jid),
                        quota_change: system.node_file("quota_change", jid),
                    };
                    let mut journal = self.journal(blocks, file)?;
                    journal.bent = map_journal(&reader, dinode).is_err();
                    journals.push(journal);
                }
                Err(Error::Corrupt(corrupt)) => {
                    let problem = Problem::from_corrupt(Kind::JournalInode, &corrupt);
                    self.found(problem.of(dinode).named(name.as_bytes()));
                }
                Err(e) => self.error(Kind::JournalInode, Some(dinode), dinode, &e),
            }
        }
        Ok(journals)
    }

    /// The index holds journal0, journal1, ... and nothing else.
    fn journal_index(&mut self, system: &System) {
        let Some(jindex) = system.file("jindex") else {
            return;
        };
        let count = system.journals();
        if count == 0 {
            let expected = Expected::Rule("an entry named journal0");
            self.found(Problem::new(Kind::Jindex, jindex, "journals", 0, expected).of(jindex));
        }
        let known = |name: &[u8]| {
            name == b"." || name == b".." || (0..count).any(|jid| name == format!("journal{jid}").as_bytes())
        };
        for name in system.jindex.keys().filter(|name| !known(name)) {
            let expected = Expected::Rule("the name of the next journal");
            let problem = Problem::new(Kind::Jindex, jindex, "journals", u64::from(count), expected);
            self.found(problem.of(jindex).named(name));
        }
        // Every journal has files of its own: where they are, the journal must be.
        let lost = |jid: &u32| system.node_file("statfs_change", *jid).is_some();
        for jid in (count.max(1)..).take_while(lost) {
            let name = format!("journal{jid}");
            let expected = Expected::Rule("a journal for each node's files");
            let problem = Problem::new(Kind::Jindex, jindex, "journals", u64::from(count), expected);
            self.found(problem.of(jindex).named(name.as_bytes()));
        }
    }

    fn journal(&mut self, reader: &mut Reader<'_>, file: JournalFile) -> Step<Journal> {
        let geometry = self.geometry.clone();
        let map = file.map.clone();
        let ring = DeviceJournal::new(self.device, &geometry, &map);
        let at = file.dinode;
        let name = format!("journal{}", file.jid);
        let verdict = |file, dirty, replayable| {
            Ok(Journal {
                file,
                dirty,
                replayable,
                bent: false,
            })
        };
        let Some(headers) = self.headers(reader, &map, at) else {
            return verdict(file, true, false);
        };
        if headers.count < 2 {
            let expected = Expected::Range(2, u64::from(ring.ring().blocks()));
            let problem = Problem::new(Kind::JournalHead, at, "valid headers", headers.count, expected);
            self.found(problem.of(at).named(name.as_bytes()));
            return verdict(file, true, false);
        }
        let head = find_head(&ring, &geometry)?;
        let position = head.map(|head| head.position);
        // Around the ring the numbers grow, but for one step: behind the head, to the oldest header.
        let in_order = headers.drops == 1 && position == headers.highest;
        if !in_order {
            let found = position.map_or(0, |p| u64::from(p.get()));
            let expected = Expected::Value(headers.highest.map_or(0, |p| u64::from(p.get())));
            let field = "place of the newest header";
            let problem = Problem::new(Kind::JournalSequence, at, field, found, expected);
            self.found(problem.of(at).named(name.as_bytes()));
        }
        if head.is_some_and(|head| head.header.is_clean()) {
            return verdict(file, false, true);
        }
        let flags = head.map_or(0, |head| u64::from(head.header.flags.bits()));
        let block = position.and_then(|p| file.map.address(p)).unwrap_or(at);
        let rule = Expected::Rule("GFS2_LOG_HEAD_UNMOUNT in the newest header");
        let problem = Problem::new(Kind::JournalDirty, block, "lh_flags", flags, rule);
        self.found(problem.of(at).named(name.as_bytes()));
        // Which header is the newest decides what is replayed: in doubt nothing is.
        let replayable = in_order && self.can_replay(&file, &name);
        verdict(file, true, replayable)
    }

    fn can_replay(&mut self, file: &JournalFile, name: &str) -> bool {
        let at = file.dinode;
        match plan_recovery(self.device, &self.geometry, file) {
            Ok(_) => return true,
            Err(Error::Corrupt(corrupt)) => {
                let problem = Problem::from_corrupt(Kind::JournalReplay, &corrupt);
                self.found(problem.of(at).named(name.as_bytes()));
            }
            Err(e) => self.error(Kind::JournalReplay, Some(at), at, &e),
        }
        false
    }

    /// Reads the whole ring; `None` when it cannot be read.
    fn headers(&mut self, reader: &mut Reader<'_>, map: &JournalMap, dinode: BlockAddr) -> Option<Headers> {
        let blocks = map.ring().blocks();
        let mut headers = Headers::default();
        let mut failed = None;
        for first in (0..blocks).step_by(STEP) {
            let end = blocks.min(first.saturating_add(STEP as u32));
            let places: Vec<(JournalBlock, BlockAddr)> = (first..end)
                .map(JournalBlock::new)
                .filter_map(|position| Some((position, map.address(position)?)))
                .collect();
            let addrs: Vec<BlockAddr> = places.iter().map(|(_, addr)| *addr).collect();
            reader.blocks(&addrs, |index, bytes| {
                let Some((position, addr)) = places.get(index).copied() else {
                    return;
                };
                match bytes {
                    Ok(bytes) => {
                        if let Some(header) = decode_header(bytes, Some(position)) {
                            headers.add(position, header.sequence);
                        }
                    }
                    Err(e) => failed = failed.take().or_else(|| Some((addr, e.clone()))),
                }
            });
            if let Some((addr, e)) = failed {
                self.error(Kind::JournalHead, Some(dinode), addr, &e);
                return None;
            }
        }
        headers.close();
        Some(headers)
    }
}

/// The sequence numbers of a ring.
#[derive(Clone, Copy, Debug, Default)]
struct Headers {
    count: u64,
    /// Places where the number does not grow, around the ring.
    drops: u64,
    /// Where the highest number is.
    highest: Option<JournalBlock>,
    first: u64,
    last: u64,
    most: u64,
}

impl Headers {
    fn add(&mut self, position: JournalBlock, sequence: u64) {
        if self.count == 0 {
            self.first = sequence;
        } else if sequence <= self.last {
            self.drops += 1;
        }
        if self.count == 0 || sequence > self.most {
            self.most = sequence;
            self.highest = Some(position);
        }
        self.last = sequence;
        self.count += 1;
    }

    fn close(&mut self) {
        if self.count > 0 && self.first <= self.last {
            self.drops += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(sequences: &[u64]) -> Headers {
        let mut headers = Headers::default();
        for (position, sequence) in (0..).map(JournalBlock::new).zip(sequences) {
            headers.add(position, *sequence);
        }
        headers.close();
        headers
    }

    #[test]
    fn a_good_ring_drops_once() {
        for good in [&[1, 2, 3][..], &[7, 8, 5, 6], &[9, 1, 2], &[10, 20, 3, 4]] {
            assert_eq!(headers(good).drops, 1, "{good:?}");
        }
        for bad in [&[1, 1, 2][..], &[3, 2, 1], &[5, 1, 6, 2], &[4, 5, 4, 5]] {
            assert_ne!(headers(bad).drops, 1, "{bad:?}");
        }
        assert_eq!(headers(&[7, 8, 5, 6]).highest, Some(JournalBlock::new(1)));
    }
}
