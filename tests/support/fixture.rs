//! The fixtures: images the reference systems made, and the recipes that make them again.
//!
//! A fixture is `fixtures/images/NAME.toml` beside `NAME.img.zst`; a recipe is a script for the guest
//! (`fixtures/recipes/lib.sh` says how it is called).

use super::guest::Kernel;
use super::host::{Host, checkout, copy_sparse, sparse, unzstd};
use super::manifest::Manifest;
use super::tool::walk_in_guest;
use super::vm::Vm;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

const RECIPE_LIMIT: Duration = Duration::from_secs(900);

/// What is known of an image.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fixture {
    /// Its name, from the file's.
    #[serde(skip)]
    pub name: String,
    /// The script in fixtures/recipes that makes such an image.
    pub recipe: String,
    /// What the script was given beside device and block size.
    #[serde(default)]
    pub argument: String,
    /// Whether the image is what the kernel makes of the recipe's by replaying its journals.
    #[serde(default)]
    pub replayed: bool,
    /// The kernel that made it.
    pub kernel: String,
    /// SHA-256 of the packed image.
    pub sha256: String,
    /// Size of the image in bytes.
    pub bytes: u64,
    /// Filesystem block size.
    pub block_size: u32,
    /// What the reference `fsck.gfs2 -n -f` exits with.
    pub fsck: i32,
    /// The manifest of the tree the kernel shows, a packed file beside the image; of a dirty image, after
    /// its replay.
    pub manifest: String,
    /// The journals, in the order of their ids.
    pub journal: Vec<Journal>,
}

/// The state of one journal of an image, as the kernel that replayed it logged it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// Whether its head is not an unmount.
    pub dirty: bool,
    /// What a replay of a dirty one does.
    pub replay: Option<Replay>,
}

/// A replay in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    /// First journal block of the active log (lh_tail).
    pub tail: u32,
    /// Journal block of the head.
    pub head: u32,
    /// Blocks written in place.
    pub replayed: u32,
    /// Blocks the log holds.
    pub logged: u32,
    /// Revoke tags found.
    pub revokes: u32,
    /// What the master statfs changes by: total, free, dinodes.
    pub statfs: [i64; 3],
}

impl Fixture {
    /// The folder of the images.
    pub fn images() -> PathBuf {
        checkout().join("fixtures/images")
    }

    /// Every fixture, by name.
    pub fn all() -> Vec<Fixture> {
        let dir = std::fs::read_dir(Fixture::images()).expect("fixtures/images");
        let names = dir.filter_map(|e| e.expect("a folder entry").file_name().into_string().ok());
        let mut names: Vec<String> = names
            .filter_map(|n| n.strip_suffix(".toml").map(str::to_owned))
            .collect();
        names.sort();
        names.iter().map(|n| Fixture::load(n)).collect()
    }

    /// The fixture of this name.
    #[track_caller]
    pub fn load(name: &str) -> Fixture {
        let path = Fixture::images().join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut fixture: Fixture =
            toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        fixture.name = name.to_owned();
        fixture
    }

    /// The packed image.
    pub fn packed(&self) -> PathBuf {
        Fixture::images().join(format!("{}.img.zst", self.name))
    }

    /// The recipe's script.
    pub fn script(&self) -> PathBuf {
        checkout().join(format!("fixtures/recipes/{}.sh", self.recipe))
    }

    /// A copy of the image in this folder, unpacked and sparse.
    #[track_caller]
    pub fn unpack(&self, dir: &Path) -> PathBuf {
        let image = dir.join(format!("{}.img", self.name));
        unzstd(&self.packed(), &image);
        image
    }

    /// The tree the kernel shows.
    #[track_caller]
    pub fn manifest(&self) -> Manifest {
        let packed = Fixture::images().join(&self.manifest);
        Manifest::parse(&Host::new("zstd").args(["-d", "-q", "-c"]).arg(packed).check())
    }

    /// Makes such an image with its recipe, and checks its shape.
    #[track_caller]
    pub fn rebuild(&self, dir: &Path) -> Rebuilt {
        let kernel = Kernel::ALL.into_iter().find(|k| k.name() == self.kernel);
        let kernel = kernel.unwrap_or_else(|| panic!("{}: no kernel {}", self.name, self.kernel));
        let image = sparse(&dir.join(format!("{}.img", self.name)), self.bytes);
        let nodes = if self.recipe == "cluster" {
            self.make_in_cluster(kernel, &image)
        } else {
            let vm = Vm::start(kernel, &[&image]);
            share_recipes(&vm);
            vm.check_for(&self.call("make", ""), RECIPE_LIMIT);
            vec![vm]
        };
        nodes.iter().for_each(Vm::assert_kernel_content);
        nodes.into_iter().for_each(Vm::crash);
        let after = dir.join(format!("{}.after.img", self.name));
        copy_sparse(&image, &after);
        let (log, manifest) = self.check_shape(kernel, &image, &after);
        Rebuilt {
            image,
            after,
            log,
            manifest,
        }
    }

    /// The recipe of two nodes has one more verb, for what both do at a time.
    #[track_caller]
    fn make_in_cluster(&self, kernel: Kernel, image: &Path) -> Vec<Vm> {
        let nodes = Vm::start_pair(kernel, &[image]);
        nodes.iter().for_each(share_recipes);
        let joining = nodes.each_ref().map(|vm| (vm, vm.spawn(&self.call("join", ""))));
        for (vm, id) in joining {
            let ran = vm.result(&id, RECIPE_LIMIT);
            assert!(
                ran.rc == 0,
                "{}: join exited with {}:\n{}",
                self.name,
                ran.rc,
                ran.output
            );
        }
        for vm in &nodes {
            vm.check_for(&self.call("make", ""), RECIPE_LIMIT);
        }
        nodes.into()
    }

    /// Runs the recipe's check on a scratch copy of an image; returns the kernel's log and the tree.
    ///
    /// The check of dirty journals replays them, so a second one must refuse the image.
    #[track_caller]
    pub fn check_shape(&self, kernel: Kernel, pristine: &Path, copy: &Path) -> (Vec<String>, Manifest) {
        let vm = Vm::start(kernel, &[copy, pristine]);
        share_recipes(&vm);
        vm.check_for(&self.call("check", "/dev/vdb"), RECIPE_LIMIT);
        let log = vm.gfs2_log();
        if self.journal.iter().any(|j| j.dirty) {
            let again = vm.run_for(&self.call("check", "/dev/vdb"), RECIPE_LIMIT);
            let refused =
                again.rc == 1 && again.output.contains("SHAPE: ") && again.output.contains("journal");
            assert!(
                refused,
                "{}: the check takes a replayed image: {}",
                self.name, again.output
            );
        }
        vm.check("mount -t gfs2 -o ro,acl,noatime,lockproto=lock_nolock /dev/vda /mnt");
        let manifest = walk_in_guest(&vm, "/mnt");
        vm.check("umount /mnt");
        vm.assert_kernel_content();
        (log, manifest)
    }

    fn call(&self, verb: &str, pristine: &str) -> String {
        let (recipe, size, argument) = (&self.recipe, self.block_size, &self.argument);
        format!("bash /host/recipes/{recipe}.sh {verb} /dev/vda {size} '{argument}' '{pristine}'")
    }
}

/// A fixture made again.
#[derive(Debug)]
pub struct Rebuilt {
    /// The image as the recipe left it.
    pub image: PathBuf,
    /// The image after the kernel's mount, and so replay.
    pub after: PathBuf,
    /// What that kernel said of it.
    pub log: Vec<String>,
    /// The tree that kernel shows.
    pub manifest: Manifest,
}

/// A verb of a recipe on a disk of a running guest; what `make` makes stays mounted when it ends in a power cut.
#[track_caller]
pub fn recipe_in_guest(vm: &Vm, recipe: &str, verb: &str, node: &str, block_size: u32, argument: &str) {
    if !vm.share().join("recipes").exists() {
        share_recipes(vm);
    }
    let script = format!("bash /host/recipes/{recipe}.sh {verb} {node} {block_size} '{argument}'");
    vm.check_for(&script, RECIPE_LIMIT);
}

/// The verb `fill` of a recipe, in a mounted folder of the host.
#[track_caller]
pub fn fill_here(recipe: &str, folder: &Path, block_size: u32, argument: &str) {
    let script = checkout().join(format!("fixtures/recipes/{recipe}.sh"));
    Host::new("env")
        .arg(format!("MNT={}", folder.display()))
        .arg("bash")
        .arg(script)
        .args(["fill", "", &block_size.to_string(), argument])
        .limit(RECIPE_LIMIT)
        .check();
}

fn share_recipes(vm: &Vm) {
    let from = checkout().join("fixtures/recipes");
    Host::new("cp")
        .arg("-r")
        .arg(from)
        .arg(vm.share().join("recipes"))
        .check();
}

/// The replays in a kernel's log, in its order.
pub fn replays(log: &[String]) -> Vec<Replay> {
    let mut found: Vec<Replay> = Vec::new();
    for line in log {
        let after = |word: &str| line.split_once(word).map(|(_, rest)| rest);
        if let Some(range) = after("Replaying journal...") {
            let (tail, head) = range.split_once(" to ").expect("a range of blocks");
            let number =
                |t: &str| u32::from_str_radix(t.trim().trim_start_matches("0x"), 16).expect("a block");
            let (tail, head) = (number(tail), number(head));
            found.push(Replay {
                tail,
                head,
                replayed: 0,
                logged: 0,
                revokes: 0,
                statfs: [0; 3],
            });
        }
        let Some(last) = found.last_mut() else { continue };
        if let Some(rest) = after("Replayed ") {
            let words: Vec<&str> = rest.split(' ').collect();
            (last.replayed, last.logged) = (
                words[0].parse().expect("a count"),
                words[2].parse().expect("a count"),
            );
        } else if let Some(rest) = after("Found ") {
            last.revokes = rest
                .split(' ')
                .next()
                .and_then(|n| n.parse().ok())
                .expect("a count");
        } else if let Some(rest) = after("after change [") {
            let words: Vec<i64> = rest
                .trim_end_matches(']')
                .split(',')
                .map(|w| w.parse().expect("a change"))
                .collect();
            last.statfs = [words[0], words[1], words[2]];
        }
    }
    found
}
