//! This test program as a tool that runs by itself, on the host or in a guest.
//!
//! A test program copied to a guest and run with `GFS2_LAB_TOOL` set does one job there and reports to a
//! file: so that what looks at our mount and what looks at the kernel's is the same code, and nothing has
//! to be built beside the tests.  Its libraries travel with it; the guest's may be older than the host's.

use super::manifest::Manifest;
use super::vm::Vm;
use super::walk;
use super::workload::Workload;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const VARIABLE: &str = "GFS2_LAB_TOOL";
/// The folder of the tool on a guest's share.
const FOLDER: &str = "tool";

/// Does one job: its name and its arguments, separated by newlines.
fn work(job: &str) {
    let words: Vec<&str> = job.split('\n').collect();
    match words[..] {
        ["walk", root, report] => {
            let manifest = walk::walk(Path::new(root)).unwrap_or_else(|e| panic!("walk {root}: {e}"));
            std::fs::write(report, manifest.to_string()).unwrap_or_else(|e| panic!("{report}: {e}"));
        }
        ["work", recipe, from, to, root, progress] => {
            let number = |text: &str| text.parse::<usize>().unwrap_or_else(|e| panic!("{text}: {e}"));
            let mut workload = Workload::of_recipe(recipe);
            workload.imagine(number(from));
            let log = File::create(progress).unwrap_or_else(|e| panic!("{progress}: {e}"));
            while workload.at() < number(to) {
                workload.step(Path::new(root));
                let done = format!("{:08}", workload.at());
                log.write_all_at(done.as_bytes(), 0)
                    .unwrap_or_else(|e| panic!("{progress}: {e}"));
            }
        }
        _ => panic!("no such job: {words:?}"),
    }
}

/// The name libtest gives the entry below in this program.
fn entry() -> String {
    let module = module_path!().split_once("::").map_or("", |(_, rest)| rest);
    format!("{module}::the_tool_reports_what_the_walk_sees")
}

/// The entry: with the variable set, the job; without, a test that a job comes through.
#[test]
fn the_tool_reports_what_the_walk_sees() {
    if let Ok(job) = std::env::var(VARIABLE) {
        return work(&job);
    }
    let dir = super::scratch("tool");
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).expect("a folder");
    std::fs::write(tree.join("a b"), "text").expect("a file");
    std::os::unix::fs::symlink("a b", tree.join("link")).expect("a link");
    let report = dir.path().join("report");
    let program = std::env::current_exe().expect("this program");
    let job = format!("walk\n{}\n{}", tree.display(), report.display());
    let out = Command::new(program)
        .args(["--exact", &entry()])
        .env(VARIABLE, job)
        .output()
        .expect("this program");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    let seen = Manifest::read(&report);
    // other tests use the same disk
    let moving = ["atime", "bfree", "bavail", "ffree", "files"];
    let here = walk::walk(&tree).expect("the tree").without(&moving);
    seen.without(&moving)
        .assert_same("in a process of its own", &here, "here");
    assert_eq!(seen.entries.len(), 4);
    assert_eq!(seen.at("./link")["target"], "a\\x20b");
    assert_eq!(seen.at("./a\\x20b")["size"], "4");
}

/// Puts the tool on the guest's share; returns the words that run it there.
fn install(vm: &Vm) -> String {
    let dir = vm.share().join(FOLDER);
    let program = std::env::current_exe().expect("this program");
    if !dir.exists() {
        std::fs::create_dir(&dir).expect("a folder on the share");
        for file in libraries(&program).iter().chain([&program]) {
            let name = file.file_name().expect("a file name");
            std::fs::copy(file, dir.join(name)).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        }
        vm.check(&format!("cp -r /host/{FOLDER} /{FOLDER}"));
    }
    let name = program
        .file_name()
        .expect("a file name")
        .to_string_lossy()
        .into_owned();
    format!(
        "/{FOLDER}/ld-linux-x86-64.so.2 --library-path /{FOLDER} /{FOLDER}/{name} --exact {}",
        entry()
    )
}

/// The libraries a program maps, the loader included.
pub fn libraries(program: &Path) -> Vec<PathBuf> {
    let out = super::host::Host::new("ldd").arg(program).check();
    let paths = out.split_whitespace().filter(|w| w.starts_with('/'));
    paths.map(PathBuf::from).collect()
}

/// The script that does a job in the guest.
#[track_caller]
fn script(vm: &Vm, job: &[&str]) -> String {
    let run = install(vm);
    let job = job.join("\n");
    assert!(!job.contains('\''), "a quote in {job}");
    format!("export {VARIABLE}='{job}'\n{run}")
}

/// Goes on with a workload in the guest, and in the model: what the real kernel does of it.
#[track_caller]
pub fn work_in_guest(vm: &Vm, workload: &mut Workload, to: usize, root: &str) {
    let (from, until) = (workload.at().to_string(), to.to_string());
    let job = ["work", &workload.recipe(), &from, &until, root, "/tmp/progress"];
    vm.check_for(&script(vm, &job), Duration::from_secs(900));
    workload.imagine(to);
}

/// Starts a workload in the guest, cuts the power once it has done so many operations, and returns the number of
/// the operation that may have been under way.
#[track_caller]
pub fn work_until_power_cut(mut vm: Vm, workload: &Workload, root: &str, at_least: usize) -> usize {
    let job = ["work", &workload.recipe(), "0", "1000000", root, "/host/progress"];
    let id = vm.spawn(&script(&vm, &job));
    let end = Instant::now() + Duration::from_secs(600);
    let progress = |vm: &Vm| std::fs::read_to_string(vm.share().join("progress")).unwrap_or_default();
    while progress(&vm).parse::<usize>().is_ok_and(|n| n < at_least) || progress(&vm).is_empty() {
        if vm.share().join(format!(".lab/{id}.rc")).exists() {
            panic!("the workload ended: {}", vm.result(&id, Duration::ZERO).output);
        }
        assert!(
            Instant::now() < end,
            "the workload came to {:?} only, not to {at_least}",
            progress(&vm)
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    vm.cut();
    progress(&vm).parse::<usize>().expect("a number") + 1
}

/// A workload in a process of its own on this host.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    progress: PathBuf,
    said: PathBuf,
}

/// Starts a workload, up to operation `to`, on a folder of the host; `dir` takes what it reports.
#[track_caller]
pub fn work_here(dir: &Path, workload: &Workload, to: usize, root: &Path) -> Worker {
    let name = workload.recipe();
    let (progress, said) = (
        dir.join(format!("{name}.progress")),
        dir.join(format!("{name}.said")),
    );
    let report = progress.display().to_string();
    let (from, to) = (workload.at().to_string(), to.to_string());
    let root = root.display().to_string();
    let job = ["work", &name, &from, &to, &root, &report].join("\n");
    let _ = std::fs::remove_file(&progress);
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", &entry()])
        .env(VARIABLE, job)
        .stdout(File::create(&said).expect("a log file"))
        .stderr(Stdio::null())
        .spawn()
        .expect("this program");
    Worker {
        child,
        progress,
        said,
    }
}

impl Worker {
    /// How many operations it has done.
    pub fn done(&self) -> usize {
        let text = std::fs::read_to_string(&self.progress).unwrap_or_default();
        text.parse().unwrap_or(0)
    }

    /// Waits until it has done so many; fails the test when it ends before.
    #[track_caller]
    pub fn wait_for(&mut self, at_least: usize) {
        let end = Instant::now() + Duration::from_secs(300);
        while self.done() < at_least {
            if self.child.try_wait().expect("waiting for a child").is_some() {
                let said = std::fs::read_to_string(&self.said).unwrap_or_default();
                panic!("the workload ended at {}:\n{said}", self.done());
            }
            assert!(
                Instant::now() < end,
                "the workload came to {} only, not to {at_least}",
                self.done()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until it has done all; fails the test when it could not.
    #[track_caller]
    pub fn finish(mut self) {
        let status = self.child.wait().expect("waiting for a child");
        let said = std::fs::read_to_string(&self.said).unwrap_or_default();
        assert!(status.success(), "the workload ended at {}:\n{said}", self.done());
    }

    /// After its filesystem has gone: waits for its end, and returns the number of the operation that may have
    /// been under way.
    #[track_caller]
    pub fn end(mut self) -> usize {
        let status = self.child.wait().expect("waiting for a child");
        assert!(!status.success(), "the workload came to its end");
        self.done() + 1
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The manifest of a folder in the guest.
#[track_caller]
pub fn walk_in_guest(vm: &Vm, root: &str) -> Manifest {
    let report = vm.share().join("manifest");
    vm.check_for(
        &script(vm, &["walk", root, "/host/manifest"]),
        Duration::from_secs(600),
    );
    let manifest = Manifest::read(&report);
    std::fs::remove_file(&report).expect("the report");
    manifest
}
