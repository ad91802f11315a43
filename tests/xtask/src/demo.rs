//! The main job on an image file, step by step.

use crate::steps::{self, Step, build_programs, output, show};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// `cargo xtask demo`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Keep the image file and say where it is
    #[arg(long)]
    keep: bool,
}

const IMAGE_BYTES: u64 = 1 << 30;

/// A mount that is taken away again even when a step fails.
struct Mounted {
    umount: PathBuf,
    target: PathBuf,
    live: bool,
}

impl Mounted {
    fn unmount(mut self) -> Step {
        self.live = false;
        say_and_run(Command::new(&self.umount).arg(&self.target))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.live {
            let _ = Command::new(&self.umount).arg(&self.target).status();
        }
    }
}

pub(crate) fn run(args: &Args) -> Step {
    if !rustix::process::geteuid().is_root() {
        return Err("mounting needs root; run as root (sudo cargo xtask demo)".into());
    }
    if !Path::new("/dev/fuse").exists() {
        return Err("/dev/fuse is missing; load the fuse module (modprobe fuse)".into());
    }
    say("building the programs (cargo build --release)");
    let programs = build_programs()?;
    let dir = tempfile::Builder::new()
        .prefix("fuse-gfs2-demo.")
        .tempdir()
        .map_err(|e| e.to_string())?;
    let image = dir.path().join("volume.img");
    let target = dir.path().join("mnt");
    let umount = dir.path().join("umount.fuse.gfs2");
    let io = |error: std::io::Error| error.to_string();
    fs::create_dir(&target).map_err(io)?;
    symlink(programs.join("mount-fuse-gfs2"), &umount).map_err(io)?;

    say("a sparse image file of 1 GiB");
    fs::File::create(&image)
        .and_then(|f| f.set_len(IMAGE_BYTES))
        .map_err(io)?;
    say("make the filesystem");
    say_and_run(
        Command::new(programs.join("mkfs-gfs2"))
            .args(["-O", "-p", "lock_nolock"])
            .arg(&image),
    )?;
    say("mount it");
    say_and_run(
        Command::new(programs.join("mount-fuse-gfs2"))
            .arg(&image)
            .arg(&target),
    )?;
    let mounted = Mounted {
        umount,
        target: target.clone(),
        live: true,
    };
    say("write: a folder, a small file, 64 MiB, a symlink; all fsynced");
    let sum = write_tree(&target).map_err(io)?;
    print!("{}", output(Command::new("ls").arg("-lRi").arg(&target))?);
    print!("{}", output(Command::new("df").arg("-h").arg(&target))?);
    say("unmount and mount again: what is read now comes from the disk");
    mounted.unmount()?;
    say_and_run(
        Command::new(programs.join("mount-fuse-gfs2"))
            .arg(&image)
            .arg(&target),
    )?;
    let mounted = Mounted {
        umount: dir.path().join("umount.fuse.gfs2"),
        target: target.clone(),
        live: true,
    };
    let found = read_tree(&target).map_err(io)?;
    if found != sum {
        return Err(format!(
            "what was read is not what was written ({found:x} is not {sum:x})"
        ));
    }
    say("read: every byte is what was written");
    mounted.unmount()?;
    say("check the filesystem");
    say_and_run(Command::new(programs.join("fsck-gfs2")).arg("-n").arg(&image))?;
    if args.keep {
        let kept = dir.keep().join("volume.img");
        say(&format!("the image is kept: {}", kept.display()));
    }
    say("done: made, mounted, written, read, unmounted, checked");
    Ok(())
}

fn say(what: &str) {
    println!("==> {what}");
    let _ = std::io::stdout().flush();
}

fn say_and_run(command: &mut Command) -> Step {
    println!("  $ {}", show(command));
    steps::run(command)
}

/// Bytes that no hole and no neighbour could stand in for.
fn pattern(n: u64) -> u8 {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn write_tree(target: &Path) -> std::io::Result<u64> {
    let folder = target.join("folder");
    fs::create_dir(&folder)?;
    let small = b"written through FUSE, journaled as GFS2\n";
    let mut file = fs::File::create(folder.join("small"))?;
    file.write_all(small)?;
    file.sync_all()?;
    let big: Vec<u8> = (0..64 << 20).map(pattern).collect();
    let mut file = fs::File::create(folder.join("big"))?;
    file.write_all(&big)?;
    file.sync_all()?;
    symlink("folder/small", target.join("link"))?;
    fs::File::open(target)?.sync_all()?;
    Ok(sum(&[small, &big]))
}

fn read_tree(target: &Path) -> std::io::Result<u64> {
    let small = fs::read(target.join("link"))?;
    let big = fs::read(target.join("folder/big"))?;
    let nlink = fs::metadata(target)?.nlink();
    if nlink != 3 {
        return Err(std::io::Error::other(format!(
            "the root has {nlink} links, not 3"
        )));
    }
    Ok(sum(&[&small, &big]))
}

/// FNV-1a: enough to compare.
fn sum(parts: &[&[u8]]) -> u64 {
    parts
        .iter()
        .copied()
        .flatten()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
}
