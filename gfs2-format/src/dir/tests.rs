//! Goal: directories against a sorted map under random operations, every block and count accounted for; the
//! extremes (depth 17, chains, colliding names) and lies.

use super::table::LeafBlock;
use super::*;
use crate::addr::{BlockAddr, FormalIno, InodeNum};
use crate::edit::{BlockEdit, BlockRead};
use crate::error::Error;
use crate::memvol::MemVolume;
use crate::ondisk::{
    DINODE_SIZE, Dinode, DinodeFlags, Dirent, FileType, LEAF_SIZE, Leaf, META_HEADER_SIZE, name_hash,
    view_mut,
};
use crate::testing::Rng;
use crate::time::Timestamp;
use crate::tree::{FreeCursor, StepBudget, edit_dinode};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

const NOW: Timestamp = Timestamp { sec: 5, nsec: 6 };

type Model = BTreeMap<Vec<u8>, (InodeNum, FileType)>;

fn num(n: u64) -> InodeNum {
    InodeNum {
        formal: FormalIno::new(n + 1),
        addr: BlockAddr::new(n + 1000),
    }
}

fn entry(name: &[u8], n: u64) -> NewEntry<'_> {
    NewEntry {
        name,
        num: num(n),
        kind: if n.is_multiple_of(2) {
            FileType::Regular
        } else {
            FileType::Symlink
        },
        ea_follows: n.is_multiple_of(3),
    }
}

fn directory(bsize: u32) -> (MemVolume, BlockAddr) {
    let mut volume = MemVolume::format(bsize, 6, 4000).unwrap();
    let num = volume.new_inode(FileType::Dir, DinodeFlags::JDATA).unwrap();
    (volume, num.addr)
}

/// Inserts within the cost said before, by one way or the other.
fn add(volume: &mut MemVolume, dir: BlockAddr, name: &[u8], n: u64) {
    let cost = needs_blocks(volume, dir, name).unwrap();
    let Probe::Absent(room) = probe(volume, dir, name).unwrap() else {
        panic!("{name:?} is there already");
    };
    assert_eq!(room.cost(), cost);
    volume.take_allocated();
    volume.take_edited();
    if n.is_multiple_of(2) {
        insert(volume, dir, &entry(name, n), NOW).unwrap();
    } else {
        insert_at(volume, dir, &entry(name, n), &room, NOW).unwrap();
    }
    let allocated = volume.take_allocated();
    let grown = volume.dinode(dir).unwrap();
    assert!(allocated <= u64::from(cost.blocks), "{allocated} of {cost:?}");
    if grown.height.get() == 0 {
        assert_eq!(allocated, u64::from(cost.blocks), "exact without a tree");
    }
    assert!(volume.take_edited().len() <= cost.touched as usize, "{cost:?}");
}

type Seen = (Vec<u8>, InodeNum, FileType, Cookie);

/// One call that takes at most `most` entries.
fn page(volume: &MemVolume, dir: BlockAddr, after: Cookie, most: usize) -> (Vec<Seen>, bool) {
    let mut seen = vec![];
    let end = read_from(volume, dir, after, &mut |entry| {
        if seen.len() == most {
            return ControlFlow::Break(());
        }
        seen.push((entry.name.to_vec(), entry.num, entry.kind, entry.cookie));
        ControlFlow::Continue(())
    });
    (seen, end.unwrap())
}

fn list(volume: &MemVolume, dir: BlockAddr, most: usize) -> Vec<Seen> {
    let (mut all, mut after) = (vec![], Cookie::START);
    loop {
        let (seen, end) = page(volume, dir, after, most);
        after = seen.last().map_or(after, |(_, _, _, cookie)| *cookie);
        let last = seen.is_empty();
        all.extend(seen);
        if end || last {
            return all;
        }
    }
}

fn check(volume: &MemVolume, dir: BlockAddr, model: &Model, most: usize) -> BTreeMap<Vec<u8>, Cookie> {
    let all = list(volume, dir, most);
    let cookies: Vec<Cookie> = all.iter().map(|(_, _, _, cookie)| *cookie).collect();
    assert!(cookies.is_sorted() && cookies.iter().all(|c| c.get() > 0 && c.get() <= 1 << 62));
    assert_eq!(
        cookies.iter().collect::<BTreeSet<_>>().len(),
        cookies.len(),
        "unique"
    );
    let found: Model = all
        .iter()
        .map(|(name, num, kind, _)| (name.clone(), (*num, *kind)))
        .collect();
    assert_eq!(all.len(), found.len(), "each once");
    assert!(found == *model);
    assert_eq!(volume.dinode(dir).unwrap().entries.get() as usize, model.len());
    all.into_iter()
        .map(|(name, _, _, cookie)| (name, cookie))
        .collect()
}

fn empty_model(dir: InodeNum) -> Model {
    [b".".to_vec(), b"..".to_vec()]
        .map(|name| (name, (dir, FileType::Dir)))
        .into()
}

/// Frees all of a directory that is being deleted, step by step.
fn dealloc(volume: &mut MemVolume, dir: BlockAddr, budget: StepBudget) {
    let mut cursor = LeafCursor::new();
    while let Some(block) = cursor.seek(volume, dir).unwrap() {
        let group = volume.group_of(block).unwrap().clone();
        volume.take_freed();
        let done = cursor.step(volume, dir, budget, &|b| group.contains(b)).unwrap();
        let freed = volume.take_freed();
        assert!(done.freed > 0 && done.freed <= budget.frees);
        assert!(freed.iter().all(|(b, _)| group.contains(*b)), "one group a step");
        volume.verify(&[dir], true).unwrap();
        // A new cursor finds the same place.
        assert_eq!(
            LeafCursor::new().seek(volume, dir).unwrap(),
            cursor.seek(volume, dir).unwrap()
        );
    }
    cursor.finish(volume, dir).unwrap();
    let mut cursor = FreeCursor::new(crate::FileBlock::new(0), None);
    while let Some(block) = cursor.seek(volume, dir).unwrap() {
        let group = volume.group_of(block).unwrap().clone();
        cursor.step(volume, dir, budget, &|b| group.contains(b)).unwrap();
    }
    volume.verify(&[dir], true).unwrap();
    assert_eq!(volume.dinode(dir).unwrap().blocks.get(), 1);
}

#[test]
fn a_fresh_directory_is_as_mkfs_makes_it() {
    let (volume, dir) = directory(4096);
    let bytes = volume.read(dir).unwrap();
    let di = volume.dinode(dir).unwrap();
    assert_eq!(
        (di.size.get(), di.entries.get(), di.payload_format.get()),
        (3864, 2, 1200)
    );
    let first: &Dirent = crate::ondisk::view(&bytes, 232, dir).unwrap();
    let second: &Dirent = crate::ondisk::view(&bytes, 280, dir).unwrap();
    assert_eq!((first.rec_len.get(), second.rec_len.get()), (48, 3816));
    assert_eq!((first.hash.get(), second.hash.get()), (0x0ed4_e242, 0x9608_161c));
    assert_eq!((first.de_type.get(), first.inum.addr.get()), (4, dir.get()));
    assert!(is_empty(&volume, dir).unwrap());
}

#[test]
fn names_that_cannot_be_stored_are_refused() {
    assert!(check_name(&[b'x'; 255]).is_ok());
    for bad in [b"".as_slice(), b"a/b", b"a\0", &[b'x'; 256]] {
        assert!(check_name(bad).is_err());
    }
}

#[test]
fn a_directory_agrees_with_a_map() {
    for (bsize, seed, ops) in [(512, 1, 1500), (512, 2, 1500), (1024, 3, 1500), (4096, 4, 2500)] {
        let mut rng = Rng(seed * 0x9e37_79b9 + 1);
        let (mut volume, dir) = directory(bsize);
        if seed != 2 {
            volume.short_runs(seed);
        }
        let mut model = empty_model(volume.dinode(dir).unwrap().inode_num());
        let mut known: BTreeMap<Vec<u8>, Cookie> = BTreeMap::new();
        for op in 0..ops {
            let n = rng.below(900);
            let mut name = format!("n{n}").into_bytes();
            name.resize(1 + (n * n % 255) as usize, b'-');
            name.extend(format!("{n}").into_bytes());
            name.truncate(255);
            // Grows in the first half, shrinks in the second.
            let growing = rng.below(10) < if op < ops / 2 { 7 } else { 3 };
            match (growing, model.contains_key(&name)) {
                (true, false) => {
                    add(&mut volume, dir, &name, op);
                    model.insert(name.clone(), (num(op), entry(&name, op).kind));
                }
                (true, true) => {
                    let mut edit = volume.clone();
                    let error = insert(&mut edit, dir, &entry(&name, op), NOW).unwrap_err();
                    assert!(matches!(error, Error::Exists));
                    let old = replace(&mut volume, dir, &entry(&name, op), NOW).unwrap();
                    let said = model
                        .insert(name.clone(), (num(op), entry(&name, op).kind))
                        .unwrap();
                    assert_eq!((old.num, old.kind), said);
                }
                (false, true) => {
                    let old = remove(&mut volume, dir, &name, NOW).unwrap();
                    assert_eq!((old.num, old.kind), model.remove(&name).unwrap());
                }
                (false, false) => {
                    let error = remove(&mut volume, dir, &name, NOW).unwrap_err();
                    assert!(matches!(error, Error::NotFound));
                }
            }
            let found = lookup(&volume, dir, &name).unwrap().map(|f| (f.num, f.kind));
            assert_eq!(found, model.get(&name).copied());
            assert_eq!(is_empty(&volume, dir).unwrap(), model.len() == 2);
            if op % 8 == 0 {
                volume.verify(&[dir], true).unwrap();
                let cookies = check(&volume, dir, &model, 1 + rng.below(200) as usize);
                for (name, cookie) in cookies {
                    let before = *known.entry(name).or_insert(cookie);
                    assert_eq!(before, cookie, "a cookie never changes");
                }
            }
        }
        let di = volume.dinode(dir).unwrap();
        assert!(di.flags().contains(DinodeFlags::EXHASH));
        assert_eq!((di.mtime(), di.ctime()), (NOW, NOW));
        for name in model.keys().cloned().collect::<Vec<_>>() {
            remove(&mut volume, dir, &name, NOW).unwrap();
        }
        check(&volume, dir, &Model::new(), 10);
        volume.verify(&[dir], true).unwrap();
        dealloc(&mut volume, dir, StepBudget { frees: 5, edits: 4 });
    }
}

/// FORMAT.md 4.2: what the first conversion leaves.
#[test]
fn conversion_makes_a_stuffed_table_and_one_leaf() {
    let (mut volume, dir) = directory(512);
    let mut n = 0;
    while !volume.dinode(dir).unwrap().flags().contains(DinodeFlags::EXHASH) {
        n += 1;
        add(&mut volume, dir, format!("f{n}").as_bytes(), n);
    }
    let di = volume.dinode(dir).unwrap();
    assert_eq!(
        (
            di.size.get(),
            di.depth.get(),
            di.height.get(),
            di.payload_format.get()
        ),
        (256, 5, 0, 0)
    );
    assert_eq!(di.blocks.get(), 2);
    let opened = Dir::open(&volume, dir).unwrap();
    assert_eq!(opened.equal_slots(&volume, 0).unwrap(), 32);
    let leaf = LeafBlock::read(&volume, opened.leaf_of(&volume, 0).unwrap())
        .unwrap()
        .leaf;
    assert_eq!(
        (leaf.depth.get(), leaf.dist.get(), leaf.dirent_format.get()),
        (0, 1, 1200)
    );
    assert_eq!(
        (leaf.inode.get(), u32::from(leaf.entries.get())),
        (dir.get(), di.entries.get())
    );
    volume.verify(&[dir], true).unwrap();
}

/// Names whose hashes begin with the same 17 bits: the table doubles to its end, then the leaf gets a chain.
#[test]
fn seventeen_equal_bits_end_in_a_chain() {
    let mut names: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
    let full = (0..).map(|n| format!("name-{n}").into_bytes()).find_map(|name| {
        let list = names.entry(name_hash(&name) >> 15).or_default();
        list.push(name);
        (list.len() == 24).then(|| list.clone())
    });
    let (mut volume, dir) = directory(512);
    let mut model = empty_model(volume.dinode(dir).unwrap().inode_num());
    for (n, name) in (0u64..).zip(full.unwrap()) {
        add(&mut volume, dir, &name, n);
        model.insert(name.clone(), (num(n), entry(&name, n).kind));
    }
    let di = volume.dinode(dir).unwrap();
    assert_eq!((di.depth.get(), di.size.get()), (17, 1 << 20));
    let opened = Dir::open(&volume, dir).unwrap();
    let slot = opened.slot_of(name_hash(model.keys().last().unwrap()));
    let mut chain = Chain::new(opened.leaf_of(&volume, slot).unwrap());
    let mut dist = vec![];
    while let Some(leaf) = chain.step(&volume).unwrap() {
        assert_eq!(leaf.depth(), 17);
        dist.push(leaf.leaf.dist.get());
    }
    assert_eq!(dist, [1, 2, 3, 4]);
    check(&volume, dir, &model, 3);
    volume.verify(&[dir], true).unwrap();
    for name in model.keys().take(12) {
        remove(&mut volume, dir, name, NOW).unwrap();
    }
    for name in model.keys().take(12).cloned().collect::<Vec<_>>() {
        model.remove(&name);
    }
    check(&volume, dir, &model, 5);
    dealloc(&mut volume, dir, StepBudget { frees: 3, edits: 2 });
}

/// A rename as the driver does it: both names looked at first, then the old one removed and the new one put where room
/// was seen, also where that room has just gone to the record before it.
#[test]
fn an_entry_moves_to_the_room_that_was_seen() {
    let mut rng = Rng(11);
    let mut adjusted = 0;
    for count in [12u64, 300] {
        let (mut volume, dir) = directory(4096);
        let mut model = empty_model(volume.dinode(dir).unwrap().inode_num());
        let mut names: Vec<Vec<u8>> = vec![];
        let fresh = |n: u64, rng: &mut Rng| {
            let mut name = format!("{n}").into_bytes();
            name.resize(name.len() + rng.below(60) as usize, b'.');
            name
        };
        for n in 0..count {
            names.push(fresh(n, &mut rng));
            add(&mut volume, dir, &names[n as usize], n);
        }
        for round in 0..2000 {
            let n = rng.below(count);
            let old = names[n as usize].clone();
            let new = fresh(1000 + round, &mut rng);
            let (Probe::Here(hit), Probe::Absent(room)) = (
                probe(&volume, dir, &old).unwrap(),
                probe(&volume, dir, &new).unwrap(),
            ) else {
                panic!("{old:?} to {new:?}");
            };
            assert_eq!(Some(*hit.found()), lookup(&volume, dir, &old).unwrap());
            remove_at(&mut volume, dir, &hit, NOW).unwrap();
            let after = room.without(&hit);
            adjusted += u32::from(format!("{after:?}") != format!("{room:?}"));
            insert_at(&mut volume, dir, &entry(&new, n), &after, NOW).unwrap();
            names[n as usize] = new;
        }
        for (n, name) in (0u64..).zip(&names) {
            model.insert(name.clone(), (num(n), entry(name, n).kind));
        }
        check(&volume, dir, &model, 50);
        volume.verify(&[dir], true).unwrap();
    }
    assert!(adjusted > 10, "the room of the removed record itself: {adjusted}");
}

/// `count` names of 24 bytes that agree in their hash and in the second checksum's 18 bits: both are affine over the
/// names' bits, so the names differ by members of the null space of 50 equations in 96 unknowns.
fn colliding_names(count: usize) -> Vec<Vec<u8>> {
    let sums = |name: &[u8]| u64::from(name_hash(name)) << 18 | u64::from(crc32c::crc32c(name)) & 0x3ffff;
    let zero = [b'@'; 24];
    let base = sums(&zero);
    let mut reduced: Vec<(u64, u128)> = vec![];
    let mut null: Vec<u128> = vec![];
    for bit in 0..96 {
        let mut name = zero;
        name[bit / 4] ^= 1 << (bit % 4);
        let (mut image, mut combination) = (sums(&name) ^ base, 1u128 << bit);
        for (other, its) in &reduced {
            if image & (1 << other.ilog2()) != 0 {
                image ^= other;
                combination ^= its;
            }
        }
        if image == 0 {
            null.push(combination)
        } else {
            reduced.push((image, combination))
        }
    }
    (0..count)
        .map(|n| {
            let bits = (0..null.len().min(30))
                .filter(|i| n >> i & 1 == 1)
                .fold(0u128, |sum, i| sum ^ null[i]);
            let mut name = zero;
            (0..96)
                .filter(|bit| bits >> bit & 1 == 1)
                .for_each(|bit| name[bit / 4] ^= 1 << (bit % 4));
            assert_eq!(sums(&name), base);
            name.to_vec()
        })
        .collect()
}

/// Colliding names are told apart by rank; past the ranks nothing loops or fails.
#[test]
fn colliding_names_are_all_listed_up_to_the_ranks() {
    let names = colliding_names(4300);
    let (mut volume, dir) = directory(4096);
    let mut model = empty_model(volume.dinode(dir).unwrap().inode_num());
    for (n, name) in (0u64..).zip(&names) {
        insert(&mut volume, dir, &entry(name, n), NOW).unwrap();
        model.insert(name.clone(), (num(n), entry(name, n).kind));
        if n == 300 {
            check(&volume, dir, &model, 7);
        }
    }
    assert_eq!(list(&volume, dir, 1000).len(), 4096 + 2);
    volume.verify(&[dir], true).unwrap();
    assert!(lookup(&volume, dir, &names[4299]).unwrap().is_some());
}

#[test]
fn no_space_in_the_middle_is_an_error_and_nothing_else() {
    let (mut volume, dir) = directory(512);
    for n in 0..200 {
        add(&mut volume, dir, format!("file-{n}").as_bytes(), n);
    }
    let name = (0..)
        .map(|n| format!("more-{n}").into_bytes())
        .find(|name| needs_blocks(&volume, dir, name).unwrap().blocks > 0);
    let mut edit = volume.clone();
    edit.limit_allocations(Some(0));
    let error = insert(&mut edit, dir, &entry(&name.unwrap(), 1), NOW).unwrap_err();
    assert!(matches!(error, Error::NoSpace), "{error}");
}

#[test]
fn lies_in_linear_areas_are_refused() {
    let (mut volume, dir) = directory(512);
    add(&mut volume, dir, b"third", 3);
    let third = DINODE_SIZE + 96;
    type Harm = fn(&mut Dirent);
    let damage: [(&str, Harm); 7] = [
        ("de_rec_len", |d| d.rec_len = 0.into()),
        ("de_rec_len", |d| d.rec_len = 52.into()),
        ("de_rec_len", |d| d.rec_len = 4096.into()),
        ("de_inum", |d| d.inum.addr = 0.into()),
        ("de_name_len", |d| d.name_len = 0.into()),
        ("de_name_len", |d| d.name_len = 256.into()),
        ("de_type", |d| d.de_type = 3.into()),
    ];
    for (field, harm) in damage {
        let mut hurt = volume.clone();
        hurt.damage(dir, |b| harm(view_mut(b, third, dir).unwrap()));
        let error = lookup(&hurt, dir, b"third").unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
        let shown = read_from(&hurt, dir, Cookie::START, &mut |_| ControlFlow::Continue(()));
        assert!(shown.is_err(), "{field}");
    }
    let mut hurt = volume.clone();
    hurt.damage(dir, |b| {
        view_mut::<Dirent>(b, third, dir).unwrap().inum.addr = u64::MAX.into()
    });
    let error = lookup(&hurt, dir, b"third").unwrap_err().to_string();
    assert!(error.contains("no_addr"), "{error}");
    let mut hurt = volume.clone();
    edit_dinode(&mut hurt, dir, |di| di.entries = 7.into()).unwrap();
    let error = read_from(&hurt, dir, Cookie::START, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("di_entries: found 7"), "{error}");
    assert!(is_empty(&hurt, dir).is_err());
}

#[test]
fn lies_in_hashed_directories_are_refused() {
    let (mut volume, dir) = directory(512);
    for n in 0..300 {
        add(&mut volume, dir, format!("file-{n}").as_bytes(), n);
    }
    assert!(volume.dinode(dir).unwrap().height.get() > 0);
    let opened = Dir::open(&volume, dir).unwrap();
    let name = b"file-7";
    let leaf = opened.leaf_of(&volume, opened.slot_of(name_hash(name))).unwrap();
    let all = |v: &MemVolume| read_from(v, dir, Cookie::START, &mut |_| ControlFlow::Continue(()));

    type Harm<'a> = (&'a str, Box<dyn Fn(&mut MemVolume) + 'a>);
    let in_leaf = |field, harm: fn(&mut Leaf)| -> Harm<'_> {
        (
            field,
            Box::new(move |v| v.damage(leaf, |b| harm(view_mut(b, 0, leaf).unwrap()))),
        )
    };
    let in_dinode = |field, harm: fn(&mut Dinode)| -> Harm<'_> {
        (
            field,
            Box::new(move |v| v.damage(dir, |b| harm(view_mut(b, 0, dir).unwrap()))),
        )
    };
    let harms = [
        in_leaf("mh_type", |l| l.header.mh_type = 5.into()),
        in_leaf("mh_magic", |l| l.header.magic = 5.into()),
        in_leaf("lf_entries", |l| l.entries = (l.entries.get() + 1).into()),
        in_leaf("lf_depth", |l| l.depth = 18.into()),
        in_leaf("lf_next", |l| l.next = u64::MAX.into()),
        in_dinode("di_size", |di| di.size = 520.into()),
        in_dinode("di_depth", |di| di.depth = 4.into()),
        in_dinode("di_mode", |di| di.mode = 0o100644.into()),
    ];
    for (field, harm) in harms {
        let mut hurt = volume.clone();
        harm(&mut hurt);
        let error = all(&hurt).unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
    for target in [leaf, dir] {
        let mut hurt = volume.clone();
        hurt.damage(leaf, |b| {
            view_mut::<Leaf>(b, 0, leaf).unwrap().next = target.get().into()
        });
        assert!(all(&hurt).is_err(), "a chain to {target}");
        let long = (0..)
            .map(|n| format!("{n:0>200}").into_bytes())
            .find(|name| opened.leaf_of(&volume, opened.slot_of(name_hash(name))).unwrap() == leaf);
        assert!(
            insert(&mut hurt, dir, &entry(&long.unwrap(), 1), NOW).is_err(),
            "an insert into it"
        );
    }
}

/// A chain whose far end leads back into it is found in a number of steps near its length.
#[test]
fn a_chain_that_bites_itself_ends() {
    let (mut volume, _) = directory(512);
    let mut leaves = vec![];
    for _ in 0..40 {
        let run = volume.alloc(1, BlockAddr::new(0), crate::BlockUse::Meta).unwrap();
        let bytes = volume.create(run.start).unwrap();
        crate::tree::stamp(bytes, crate::ondisk::MetaType::Lf, run.start).unwrap();
        super::area::clear(bytes, LEAF_SIZE, run.start).unwrap();
        leaves.push(run.start);
    }
    for back in [0, 1, 17, 39] {
        let mut next = leaves[1..].to_vec();
        next.push(leaves[back]);
        for (leaf, next) in leaves.iter().zip(next) {
            volume.damage(*leaf, |b| {
                view_mut::<Leaf>(b, 0, *leaf).unwrap().next = next.get().into()
            });
        }
        let mut chain = Chain::new(leaves[0]);
        let mut steps = 0;
        let error = loop {
            match chain.step(&volume) {
                Ok(found) => assert!(found.is_some()),
                Err(error) => break error,
            }
            steps += 1;
        };
        assert!(
            error.to_string().contains("a chain that ends") && steps < 150,
            "{steps}: {error}"
        );
    }
}

/// Entries that strayed to a leaf of other hashes are listed once, at its edge, and the walk goes on.
#[test]
fn strayed_entries_are_listed() {
    let (mut volume, dir) = directory(512);
    for n in 0..100 {
        add(&mut volume, dir, format!("file-{n}").as_bytes(), n);
    }
    let found = lookup(&volume, dir, b"file-7").unwrap().unwrap();
    volume.damage(found.at.block, |b| {
        let dirent: &mut Dirent = view_mut(b, found.at.offset as usize, found.at.block).unwrap();
        dirent.hash = (!dirent.hash.get()).into();
    });
    assert_eq!(list(&volume, dir, 4).len(), 102);
    assert!(lookup(&volume, dir, b"file-7").unwrap().is_none());
}

/// Seeded bit flips anywhere in the metadata: errors or answers, never a panic or an endless loop.
#[test]
fn flipped_bits_never_panic() {
    let (mut clean, dir) = directory(512);
    for n in 0..300 {
        add(&mut clean, dir, format!("file-{n}").as_bytes(), n);
    }
    let mut blocks = vec![dir];
    crate::walk::owned_blocks(&clean, dir, crate::walk::Scope::All, &mut |o| {
        blocks.extend(o.extent.blocks());
        Ok(())
    })
    .unwrap();
    let mut rng = Rng(4711);
    for _ in 0..600 {
        let mut volume = clean.clone();
        for _ in 0..1 + rng.below(4) {
            let block = blocks[rng.below(blocks.len() as u64) as usize];
            let headers = [META_HEADER_SIZE, LEAF_SIZE, DINODE_SIZE, 512][rng.below(4) as usize] as u64;
            let at = rng.below(headers) as usize;
            let bit = rng.below(8);
            volume.damage(block, |b| b[at] ^= 1 << bit);
        }
        let mut seen = 0;
        let _ = read_from(&volume, dir, Cookie::START, &mut |_| {
            seen += 1;
            if seen < 100_000 {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        for n in 0..5 {
            let old = format!("file-{}", rng.below(300)).into_bytes();
            let new = format!("new-{n}-{}", rng.below(1000)).into_bytes();
            let _ = lookup(&volume, dir, &old);
            let _ = needs_blocks(&volume, dir, &new);
            let mut edit = volume.clone();
            if insert(&mut edit, dir, &entry(&new, n), NOW).is_ok()
                && remove(&mut edit, dir, &old, NOW).is_ok()
            {
                volume = edit;
            }
        }
        let mut cursor = LeafCursor::new();
        while let Ok(Some(_)) = cursor.seek(&volume, dir) {
            if cursor
                .step(&mut volume, dir, StepBudget { frees: 9, edits: 9 }, &|_| true)
                .is_err()
            {
                break;
            }
        }
    }
}
