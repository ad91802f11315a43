//! The kernel's own gfs2 and our daemon side by side in one guest, on one image: operations a second and their ratios.
//!
//! `cargo bench --bench guest [-- ROUNDS FILES]` (needs what the lab needs, tests/lab/setup.sh). One boot; in each round
//! both mount the same volume in turn, the one that begins changes from round to round, and do the same with the same
//! program, this one; `GUEST_BENCH_DAEMON=mount-fuse-gfs2` measures another build. The table has medians over the rounds; under emulation only the ratios say something.

#[path = "files.rs"]
mod files;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use support::guest::Kernel;
use support::host::{assert_fsck_clean, reference_mkfs, sparse};
use support::tool::libraries;
use support::vm::Vm;

/// What is measured: the row, the operation of files.rs, and the share of the files it is done on.
const OPERATIONS: [(&str, &str, u64); 8] = [
    ("create + write of 100 bytes", "create", 1),
    ("stat, cold", "stat", 1),
    ("stat, warm", "stat", 1),
    ("open + read, warm", "read", 1),
    ("rename", "rename", 1),
    ("rename back", "rename-back", 1),
    ("create + write + fsync", "create-fsync", 4),
    ("unlink", "unlink", 1),
];
/// The rows before which the volume is unmounted, mounted again and the guest's caches are dropped.
const COLD: [&str; 1] = ["stat, cold"];
const FOLDERS: u64 = 8;
const LIMIT: Duration = Duration::from_secs(600);
/// A program on the guest's disk with the host's libraries: they may be newer than the guest's.
const RUN: &str = "/b/ld-linux-x86-64.so.2 --library-path /b /b/";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Kernel,
    Ours,
}

impl Who {
    fn mount(self) -> String {
        match self {
            Who::Kernel => "mount -t gfs2 -o noatime /dev/vda /mnt".to_owned(),
            // In the foreground: the loader's program cannot be found again by a daemon that starts itself.
            Who::Ours => format!(
                "{RUN}mount-fuse-gfs2 -F /dev/vda /mnt -o noatime >/tmp/daemon.log 2>&1 & echo $! >/tmp/daemon\n\
                 for i in $(seq 600); do mountpoint -q /mnt && break; sleep 0.05; done\n\
                 mountpoint -q /mnt || {{ cat /tmp/daemon.log; exit 1; }}"
            ),
        }
    }

    fn unmount(self) -> String {
        match self {
            Who::Kernel => "umount /mnt".to_owned(),
            Who::Ours => {
                "umount /mnt; while [ -e /proc/$(cat /tmp/daemon)/exe ]; do sleep 0.05; done".to_owned()
            }
        }
    }
}

/// Puts programs and their libraries into the guest.
fn install(vm: &Vm, programs: &[PathBuf]) {
    let share = vm.share().join("b");
    fs::create_dir(&share).expect("a folder on the share");
    for program in programs {
        for file in libraries(program).iter().chain([program]) {
            let name = file.file_name().expect("a file name");
            fs::copy(file, share.join(name)).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        }
    }
    vm.check("cp -r /host/b /b; modprobe gfs2; modprobe fuse");
}

/// One round of one of the two; the rates by row.
fn round(vm: &Vm, who: Who, bench: &str, count: u64, rates: &mut BTreeMap<(usize, Who), Vec<f64>>) {
    vm.check(&who.mount());
    for (row, (name, operation, share)) in OPERATIONS.into_iter().enumerate() {
        if COLD.contains(&name) {
            vm.check_for(&who.unmount(), LIMIT);
            vm.check("echo 3 >/proc/sys/vm/drop_caches");
            vm.check(&who.mount());
        }
        let count = count / share;
        let said = vm.check_for(
            &format!("{RUN}{bench} {operation} /mnt/t {count} {FOLDERS}"),
            LIMIT,
        );
        let rate: f64 = said.trim().parse().unwrap_or_else(|e| panic!("{said}: {e}"));
        rates.entry((row, who)).or_default().push(rate);
    }
    vm.check_for("rm -rf /mnt/t", LIMIT);
    vm.check_for(&who.unmount(), LIMIT);
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn compare(rounds: u64, count: u64) {
    let dir = support::scratch("bench");
    let image = sparse(&dir.path().join("volume.img"), 1 << 30);
    reference_mkfs(&image, &["-j", "1", "-J", "64"]);
    let vm = Vm::start(Kernel::V6_12, &[&image]);
    let this = std::env::current_exe().expect("this program");
    let built = || env!("CARGO_BIN_EXE_mount-fuse-gfs2").into();
    let daemon = PathBuf::from(std::env::var_os("GUEST_BENCH_DAEMON").unwrap_or_else(built));
    let bench = this
        .file_name()
        .expect("a file name")
        .to_string_lossy()
        .into_owned();
    install(&vm, &[this, daemon]);
    let mut rates = BTreeMap::new();
    for n in 0..rounds {
        let turns = if n % 2 == 0 {
            [Who::Kernel, Who::Ours]
        } else {
            [Who::Ours, Who::Kernel]
        };
        for who in turns {
            round(&vm, who, &bench, count, &mut rates);
        }
        eprintln!("round {} of {rounds}", n + 1);
    }
    vm.assert_kernel_content();
    println!(
        "{} files in {FOLDERS} folders, {rounds} rounds, kernel {}, {}",
        count,
        vm.guest().version,
        support::vm::emulator()
    );
    vm.crash();
    assert_fsck_clean(&image);
    println!("\n| operations/s, medians | kernel gfs2 | ours | ours / kernel |\n|---|---:|---:|---:|");
    for (row, (name, ..)) in OPERATIONS.into_iter().enumerate() {
        let [kernel, ours] = [Who::Kernel, Who::Ours].map(|who| median(&rates[&(row, who)]));
        println!("| {name} | {kernel:.0} | {ours:.0} | {:.2} |", ours / kernel);
    }
}

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let numbers: Option<Vec<u64>> = args.iter().map(|a| a.parse().ok()).collect();
    match numbers.as_deref() {
        // In the guest: one operation.
        None => files::main(),
        Some([]) => {
            compare(5, 1200);
            Ok(())
        }
        Some([rounds, count]) => {
            compare((*rounds).max(1), (*count).max(FOLDERS));
            Ok(())
        }
        Some(_) => Err(std::io::Error::other("guest [ROUNDS FILES]")),
    }
}
