//! The fixtures are what they say they are, and their recipes make them.
//!
//! To make images anew: `GFS2_REBUILD=clean4k,dirty1k cargo test --test fixtures`; the new files are left in
//! the target folder, for a look before they replace the old.

mod support;

use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use support::fixture::{Fixture, Rebuilt, replays};
use support::guest::Kernel;
use support::host::{checkout, copy_sparse, reference_fsck, zstd};
use support::manifest::{Manifest, hex};

/// Goal: no image without description, purpose, recipe and proof that it is the one described.
#[test]
fn every_image_is_described_and_unchanged() {
    let readme = fs::read_to_string(checkout().join("fixtures/README.md")).expect("fixtures/README.md");
    let mut wanted = BTreeSet::new();
    for f in Fixture::all() {
        let bytes = fs::read(f.packed()).unwrap_or_else(|e| panic!("{}: {e}", f.packed().display()));
        assert_eq!(
            hex(&Sha256::digest(bytes)),
            f.sha256,
            "{}: sha256 of the packed image",
            f.name
        );
        assert!(
            readme.contains(&format!("| `{}` |", f.name)),
            "{} is not in fixtures/README.md",
            f.name
        );
        assert!(
            f.script().is_file(),
            "{} has no recipe {}",
            f.name,
            f.script().display()
        );
        wanted.extend([
            format!("{}.toml", f.name),
            format!("{}.img.zst", f.name),
            f.manifest,
        ]);
    }
    let dir = fs::read_dir(Fixture::images()).expect("fixtures/images");
    let found: BTreeSet<String> = dir
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(
        found, wanted,
        "files in fixtures/images that no description names, or the reverse"
    );
}

/// Goal: the reference fsck says of each image what its description says; geometry from the superblock.
#[test]
fn the_reference_fsck_says_what_the_description_says() {
    for f in Fixture::all() {
        let dir = support::scratch("fixtures");
        let image = f.unpack(dir.path());
        assert_eq!(
            fs::metadata(&image).expect("the image").len(),
            f.bytes,
            "{}: bytes",
            f.name
        );
        assert_eq!(block_size(&image), f.block_size, "{}: block size", f.name);
        let ran = reference_fsck(&image);
        assert_eq!(ran.rc, f.fsck, "{}: fsck.gfs2 -n -f:\n{}", f.name, ran.output);
    }
}

fn block_size(image: &Path) -> u32 {
    use std::os::unix::fs::FileExt;
    let mut word = [0; 4];
    let file = fs::File::open(image).expect("the image");
    file.read_exact_at(&mut word, 65536 + 36).expect("the superblock");
    u32::from_be_bytes(word)
}

/// Goal: the stored images have the shape their recipes promise, the kernel's replay of them is the one
/// described, and it shows the tree of the manifest.
fn the_kernel_agrees(name: &str) {
    let f = Fixture::load(name);
    let dir = support::scratch("fixtures");
    let (pristine, copy) = (f.unpack(dir.path()), dir.path().join("copy.img"));
    copy_sparse(&pristine, &copy);
    let (log, tree) = f.check_shape(Kernel::V6_12, &pristine, &copy);
    let described: Vec<_> = f.journal.iter().filter_map(|j| j.replay.clone()).collect();
    assert_eq!(replays(&log), described, "{name}: the replays of the kernel");
    same_tree(&f.manifest(), &tree);
}

#[track_caller]
fn same_tree(described: &Manifest, seen: &Manifest) {
    described
        .without(&["atime"])
        .assert_same("described", &seen.without(&["atime"]), "seen");
}

#[test]
fn the_kernel_agrees_on_a_clean_tree() {
    the_kernel_agrees("clean2k");
}

#[test]
fn the_kernel_agrees_on_a_dirty_journal() {
    the_kernel_agrees("dirty1k");
}

/// Goal: a recipe makes its image from nothing.
#[test]
fn a_recipe_makes_its_image() {
    let asked = std::env::var("GFS2_REBUILD").unwrap_or_else(|_| "dirty4k:40".to_owned());
    for one in asked.split(',') {
        let (name, argument) = one.split_once(':').unwrap_or((one, ""));
        let mut f = Fixture::load(name);
        if !argument.is_empty() {
            f.argument = argument.to_owned();
        }
        let dir = support::scratch(name);
        let made = f.rebuild(dir.path());
        let replays = replays(&made.log);
        let dirty = f.journal.iter().filter(|j| j.dirty).count();
        assert_eq!(replays.len(), dirty, "{name}: {:#?}", made.log);
        assert_eq!(
            reference_fsck(&made.after).rc,
            f.fsck,
            "{name}: fsck.gfs2 -n -f of the replayed image"
        );
        if std::env::var_os("GFS2_REBUILD").is_some() {
            keep(&f, &made, &dir.keep());
        }
    }
}

fn keep(f: &Fixture, made: &Rebuilt, dir: &Path) {
    let name = &f.name;
    zstd(&made.image, &dir.join(format!("{name}.img.zst")));
    zstd(&made.after, &dir.join(format!("{name}.after-replay.img.zst")));
    let text = dir.join(format!("{name}.manifest"));
    fs::write(&text, made.manifest.to_string()).expect("the manifest");
    zstd(&text, &dir.join(format!("{name}.manifest.zst")));
    println!("{}: {}\n{:#?}", name, dir.display(), replays(&made.log));
}
