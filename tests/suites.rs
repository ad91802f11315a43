//! Goal: the suites others wrote find nothing. Method: pjdfstest and fsx from crates.io (`cargo xtask tools` builds them
//! into target/tools) on mounts of ours, plain and while locks are taken away at random; what pjdfstest does not pass is
//! listed case by case in tests/suites/pjdfstest-expected.toml, and the list must be true in both directions.
//!
//! `FSX_OPS=n` makes each fsx process do so many operations, `FSX_SEED=n` chooses other ones.

mod ours;
mod support;

use ours::watch::watched;
use ours::{Mount, mkfs};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::guest::Kernel;
use support::host::{Host, assert_fsck_clean, checkout, reference_mkfs, sparse};
use support::tool::libraries;
use support::vm::Vm;

/// Operations of an fsx process, unless FSX_OPS says more.
const FSX_OPS: u64 = 10_000;
/// While locks are taken away.
const FSX_OPS_REHEARSED: u64 = 3000;

/// A program that `cargo xtask tools` builds.
fn tool(name: &str) -> PathBuf {
    let path = checkout().join("target/tools/bin").join(name);
    assert!(
        path.exists(),
        "{} is missing; run cargo xtask tools",
        path.display()
    );
    path
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{variable}={text}: {e}")))
}

fn volume(dir: &Path, mib: u64) -> PathBuf {
    let image = sparse(&dir.join("volume.img"), mib << 20);
    mkfs(&image, &["-p", "lock_nolock"]);
    image
}

/// A case of pjdfstest that is not passed, and why.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    outcome: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    case: Vec<Case>,
}

fn expected() -> BTreeMap<String, String> {
    let path = checkout().join("tests/suites/pjdfstest-expected.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let list: Expected = toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut cases = BTreeMap::new();
    for case in list.case {
        assert!(
            !case.reason.is_empty() && ["skipped", "FAILED"].contains(&case.outcome.as_str()),
            "{}: {case:?}",
            path.display()
        );
        let twice = cases.insert(case.name.clone(), case.outcome);
        assert!(twice.is_none(), "{}: {} stands twice", path.display(), case.name);
    }
    cases
}

/// The configuration, with a folder of another filesystem and two users.
fn configuration(second: &str, users: [(&str, &str); 2]) -> String {
    let path = checkout().join("tests/suites/pjdfstest.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let entries = users.map(|(user, group)| format!("[\"{user}\", \"{group}\"]"));
    let known = r#"[["nobody", "nogroup"], ["daemon", "daemon"]]"#;
    assert!(text.contains("SECOND") && text.contains(known), "{text}");
    text.replace("SECOND", second)
        .replace(known, &format!("[{}]", entries.join(", ")))
}

/// What pjdfstest said of each case that was not passed, and the number of those that were.
#[track_caller]
fn outcomes(said: &str) -> (BTreeMap<String, String>, usize) {
    assert!(
        said.contains("\nSummary: "),
        "pjdfstest did not come to its end:\n{said}"
    );
    let mut passed = 0;
    let mut others = BTreeMap::new();
    for line in said.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [_, "ok"] => passed += 1,
            [name, outcome @ ("skipped" | "FAILED")] => {
                others.insert(name.to_owned(), outcome.to_owned());
            }
            _ => {}
        }
    }
    (others, passed)
}

/// Fails the test unless what was said is what is listed.
#[track_caller]
fn assert_as_listed(said: &str) {
    let (others, passed) = outcomes(said);
    assert!(passed > 350, "only {passed} cases were passed:\n{said}");
    let listed = expected();
    let differs: Vec<String> = others
        .iter()
        .filter(|(name, outcome)| listed.get(*name) != Some(outcome))
        .map(|(name, outcome)| format!("{name}: {outcome}, not listed"))
        .chain(
            listed
                .iter()
                .filter(|(name, outcome)| others.get(*name) != Some(outcome))
                .map(|(name, outcome)| format!("{name}: listed as {outcome}, but it is not")),
        )
        .collect();
    assert!(differs.is_empty(), "{}\n{said}", differs.join("\n"));
    println!("{passed} passed, {} as listed", listed.len());
}

fn pjdfstest_on(environment: &[(&str, &str)]) {
    let dir = support::scratch("pjdfstest");
    let image = volume(dir.path(), 512);
    let second = dir.path().join("second");
    fs::create_dir(&second).expect("a folder");
    let config = dir.path().join("config.toml");
    let users = [("nobody", "nogroup"), ("daemon", "daemon")];
    fs::write(&config, configuration(second.to_str().expect("a path"), users)).expect("the configuration");
    let mount = Mount::try_new_in(&image, "acl", environment).expect("a mount");
    let ran = watched(&mount, Duration::from_secs(240), || {
        Host::new(tool("pjdfstest"))
            .arg("-c")
            .arg(&config)
            .arg("-p")
            .arg(mount.path())
            .limit(Duration::from_secs(300))
            .run()
    });
    assert_as_listed(&ran.output);
    let left: Vec<_> = fs::read_dir(mount.path()).expect("the root").collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    mount.unmount();
    assert_fsck_clean(&image);
}

#[test]
fn pjdfstest_finds_what_is_listed_and_nothing_else() {
    pjdfstest_on(&[]);
}

#[test]
fn pjdfstest_finds_the_same_while_locks_are_taken_away() {
    pjdfstest_on(&[("FUSE_GFS2_REHEARSE", "11")]);
}

/// Goal: the judge can say no, in both directions.
#[test]
fn a_list_that_is_not_true_is_refused() {
    let names = |skip: usize| {
        let listed = expected();
        let lines = listed.iter().skip(skip).map(|(n, o)| format!("{n} {o}\n"));
        lines.collect::<String>()
    };
    let passed: String = (0..400).map(|n| format!("case::{n} ok\n")).collect();
    let end = "\nSummary: it ended\n";
    assert_as_listed(&format!("{passed}{}{end}", names(0)));
    for lie in [
        format!("{passed}{}{end}", names(1)),
        format!("{passed}{}open::other FAILED\n{end}", names(0)),
        format!("{}{end}", names(0)),
        format!("{passed}{}", names(0)),
    ] {
        let refused = std::panic::catch_unwind(|| assert_as_listed(&lie));
        assert!(refused.is_err(), "a lie was taken for the truth");
    }
}

/// Goal: the list is that of GFS2 itself. Method: the same suite with the same configuration on the kernel's gfs2: case by
/// case the same outcome.
#[test]
fn pjdfstest_finds_the_same_on_the_kernels_gfs2() {
    let dir = support::scratch("pjdfstest");
    let image = sparse(&dir.path().join("volume.img"), 512 << 20);
    reference_mkfs(&image, &["-j", "1", "-J", "32"]);
    let vm = Vm::start(Kernel::V6_12, &[&image]);
    let folder = vm.share().join("pjd");
    fs::create_dir(&folder).expect("a folder on the share");
    let program = tool("pjdfstest");
    for file in libraries(&program).iter().chain([&program]) {
        let name = file.file_name().expect("a file name");
        fs::copy(file, folder.join(name)).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
    let config = configuration("/tmp", [("u1", "g1"), ("u2", "g2")]);
    fs::write(folder.join("config.toml"), config).expect("the configuration");
    vm.check("cp -r /host/pjd /pjd; modprobe gfs2; mount -t gfs2 -o acl /dev/vda /mnt");
    let run = "/pjd/ld-linux-x86-64.so.2 --library-path /pjd /pjd/pjdfstest -c /pjd/config.toml -p /mnt";
    let ran = vm.run_for(run, Duration::from_secs(900));
    vm.check("umount /mnt");
    assert_as_listed(&ran.output);
    vm.assert_kernel_content();
}

/// An fsx process on a file of its own.
struct Fsx {
    child: Child,
    said: PathBuf,
    line: String,
}

impl Fsx {
    fn start(dir: &Path, mount: &Mount, seed: u64, ops: u64, msync: bool) -> Self {
        let config = dir.join(format!("fsx-{seed}.toml"));
        let (flen, sync, nomsync) = if msync {
            (1 << 20, 1.0, false)
        } else {
            (262_144, 0.1, true)
        };
        let text = format!(
            "flen = {flen}\nnomsyncafterwrite = {nomsync}\n[weights]\nclose_open = 1\nread = 10\nwrite = 10\n\
             mapread = 10\nmapwrite = 10\ninvalidate = {sync:.1}\ntruncate = 3\nfsync = {sync:.1}\n\
             fdatasync = {sync:.1}\nposix_fallocate = 1\nsendfile = 3\nposix_fadvise = 2\ncopy_file_range = 3\n"
        );
        fs::write(&config, text).expect("the configuration");
        let said = dir.join(format!("fsx-{seed}.said"));
        let log = File::create(&said).expect("a log file");
        let mut command = Command::new(tool("fsx"));
        command
            .arg("-f")
            .arg(&config)
            .args(["-N", &ops.to_string(), "-S", &seed.to_string(), "-P"])
            .arg(dir)
            .arg(mount.join(format!("fsx-{seed}")))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle"))
            .stderr(log);
        let line = format!("{command:?}");
        let child = command.spawn().expect("fsx");
        Self { child, said, line }
    }

    #[track_caller]
    fn finish(mut self) {
        let status = self.child.wait().expect("waiting for fsx");
        let said = fs::read_to_string(&self.said).unwrap_or_default();
        assert!(
            status.success() && said.contains("All operations completed"),
            "{status}: {}\n{}",
            self.line,
            said.chars().take(20_000).collect::<String>()
        );
    }
}

impl Drop for Fsx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Several processes at a time on one volume: two that sync their mappings, two that leave that to the kernel.
fn fsx_on(options: &str, environment: &[(&str, &str)], ops: u64) {
    let dir = support::scratch("fsx");
    let image = volume(dir.path(), 512);
    let mount = Mount::try_new_in(&image, options, environment).expect("a mount");
    let seed = number("FSX_SEED").unwrap_or(1);
    let ops = number("FSX_OPS").unwrap_or(ops);
    // Far slower than any healthy run.
    let patience = Duration::from_secs(240 + ops / 20);
    watched(&mount, patience, || {
        let running = [true, true, false, false]
            .into_iter()
            .zip(seed * 10..)
            .map(|(msync, seed)| Fsx::start(dir.path(), &mount, seed, ops, msync));
        running.collect::<Vec<_>>().into_iter().for_each(Fsx::finish);
    });
    let files: Vec<(PathBuf, Vec<u8>)> = (seed * 10..seed * 10 + 4)
        .map(|seed| PathBuf::from(format!("fsx-{seed}")))
        .map(|name| (name.clone(), fs::read(mount.join(&name)).expect("a file of fsx")))
        .collect();
    mount.unmount();
    assert_fsck_clean(&image);
    let mount = Mount::new(&image, "ro");
    for (name, bytes) in files {
        assert!(
            fs::read(mount.join(&name)).expect("a file of fsx") == bytes,
            "{}: other bytes after a remount",
            name.display()
        );
    }
    mount.unmount();
}

#[test]
fn fsx_in_several_processes_with_mappings() {
    fsx_on("", &[], FSX_OPS);
}

#[test]
fn fsx_while_the_kernel_keeps_writes_back() {
    fsx_on("writeback_cache", &[], FSX_OPS);
}

#[test]
fn fsx_while_locks_are_taken_away() {
    fsx_on("", &[("FUSE_GFS2_REHEARSE", "12")], FSX_OPS_REHEARSED);
}
