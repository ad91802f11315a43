//! What is asked of a volume afterwards: our checker, the reference's, and readings by `gfs2-format` alone.

use gfs2_format::bitmap::decode_rindex;
use gfs2_format::device::{BlockDevice, MemDevice};
use gfs2_format::log::{LogTime, recover_journal};
use gfs2_format::volume::{Volume, read_file};
use gfs2_format::{Block, BlockAddr, BlockRead, Error, Geometry};
use gfs2_fsck::{Collect, Kind, Policy, Problem};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Reads blocks from a device, with no cache and no lock.
#[derive(Debug)]
pub struct Plain<'a> {
    pub device: &'a dyn BlockDevice,
    pub geometry: &'a Geometry,
}

impl BlockRead for Plain<'_> {
    fn geometry(&self) -> &Geometry {
        self.geometry
    }

    fn read(&self, addr: BlockAddr) -> Result<Block, Error> {
        let mut block = Block::zeroed(self.geometry.block_len());
        self.device
            .read_at(self.geometry.byte_offset(addr), block.make_mut())?;
        Ok(block)
    }
}

/// Addresses of all resource groups.
pub fn groups(device: &dyn BlockDevice, volume: &Volume) -> Result<Vec<BlockAddr>, Error> {
    let reader = Plain {
        device,
        geometry: &volume.geometry,
    };
    let content = read_file(&reader, volume.system.rindex, 1 << 24)?;
    let groups = decode_rindex(&content, volume.system.rindex, &volume.geometry)?;
    Ok(groups.iter().map(|group| group.addr()).collect())
}

/// What our checker finds.
pub fn problems(device: &dyn BlockDevice) -> Vec<Problem> {
    let mut found = Collect::default();
    let outcome = gfs2_fsck::check(device, &Policy::read_only(), &mut found).expect("a check");
    assert!(!outcome.stopped || !found.problems.is_empty());
    found.problems
}

/// Fails the test when our checker finds anything but kinds of `allowed`.
#[track_caller]
pub fn clean_but(device: &dyn BlockDevice, allowed: &[Kind], what: &str) {
    let bad: Vec<Problem> = problems(device)
        .into_iter()
        .filter(|problem| !allowed.contains(&problem.kind))
        .collect();
    assert!(bad.is_empty(), "{what}: {bad:#?}");
}

/// Replays every journal, by the steps that every replayer of ours shares.
pub fn replay(device: &dyn BlockDevice) -> Result<(), Error> {
    let volume = Volume::open(device)?;
    for journal in &volume.journals {
        recover_journal(device, &volume, journal, journal.jid, LogTime::default())?;
    }
    Ok(())
}

/// Blocks in which two images differ, those of journals apart.
pub fn differences(one: &MemDevice, other: &MemDevice) -> Vec<BlockAddr> {
    let volume = Volume::open(one).expect("a volume");
    let len = volume.geometry.block_len();
    let mut buffers = [vec![0; len], vec![0; len]];
    let mut different = Vec::new();
    for n in 0..one.size() / len as u64 {
        let addr = BlockAddr::new(n);
        if volume.journals.iter().any(|journal| journal.map.contains(addr)) {
            continue;
        }
        for (device, buffer) in [one, other].into_iter().zip(&mut buffers) {
            device.read_at(n * len as u64, buffer).expect("a block");
        }
        if buffers[0] != buffers[1] {
            different.push(addr);
        }
    }
    different
}

/// Stores an image as a sparse file.
pub fn store(device: &MemDevice, path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).expect("an image file");
    file.set_len(device.size()).expect("its size");
    let mut chunk = vec![0; 1 << 20];
    for at in (0..device.size()).step_by(chunk.len()) {
        let len = chunk
            .len()
            .min(usize::try_from(device.size() - at).expect("a small image"));
        device.read_at(at, &mut chunk[..len]).expect("its bytes");
        if chunk[..len].iter().any(|byte| *byte != 0) {
            file.write_all_at(&chunk[..len], at).expect("its bytes");
        }
    }
}

/// The reference checker must find nothing wrong.
#[track_caller]
pub fn reference_clean(device: &MemDevice, what: &str) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let path: PathBuf = folder.path().join("image");
    store(device, &path);
    let out = Command::new("fsck.gfs2")
        .arg("-n")
        .arg(&path)
        .output()
        .expect("this needs the reference fsck.gfs2 (tests/lab/setup.sh installs it)");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.success(),
        "{what}: fsck.gfs2 -n: {}\n{text}",
        out.status
    );
}
