//! Goal: a volume that another node of the cluster has mounted is not repaired, also while that node writes nothing. Method:
//! real corosyncs in network namespaces (the laboratory of dlm-client), lock daemons of ours in the lockspace that a volume
//! names, and the program on a node beside them.
//!
//! Needs root, corosync and its client libraries, iproute2 and util-linux; where one is missing the test fails and says
//! which.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must fail"
)]

#[allow(dead_code, reason = "the laboratory has more than this test uses")]
#[path = "../../dlm-client/tests/netns/lab.rs"]
mod lab;
#[path = "../../dlm-client/tests/netns/node.rs"]
mod node;
#[allow(dead_code, reason = "nobody's power is cut here")]
#[path = "../../dlm-client/tests/netns/power.rs"]
mod power;
mod support;

use gfs2_format::damage;
use lab::{CLUSTER, Lab, wait_for};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use support::{fixture, save};

const PROGRAM: &str = env!("CARGO_BIN_EXE_fsck-gfs2");
const LONG: Duration = Duration::from_secs(60);
/// A check of the volume with nobody to ask, many times over.
const SOON: Duration = Duration::from_secs(4);

fn main() {
    if std::env::var_os("NETNS_NODE").is_some() {
        return node::process();
    }
    let wanted = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let name = "a_volume_in_the_lockspace_of_an_idle_node_is_not_repaired";
    if wanted.is_none_or(|wanted| name.contains(&wanted)) {
        let begin = Instant::now();
        println!("{name} ...");
        a_volume_in_the_lockspace_of_an_idle_node_is_not_repaired();
        println!("{name}: ok, {:.1} s", begin.elapsed().as_secs_f64());
    }
}

/// A volume of this lock table with a wrong link count.
fn damaged(path: &Path, table: &str) {
    let image = fixture("clean1k");
    let script = format!(
        "set sb.sb_lockproto = lock_dlm\nset sb.sb_locktable = {table}\nset dinode(/links/t).di_nlink = 9"
    );
    damage::run(&script, &image).unwrap();
    save(&image, path);
}

/// What a run came to.
struct Run {
    code: i32,
    errors: String,
    took: Duration,
}

fn run(command: &mut Command, args: &[&str], image: &Path) -> Run {
    let begin = Instant::now();
    let output: Output = command.args(args).arg(image).output().unwrap();
    Run {
        code: output.status.code().unwrap(),
        errors: String::from_utf8(output.stderr).unwrap(),
        took: begin.elapsed(),
    }
}

fn a_volume_in_the_lockspace_of_an_idle_node_is_not_repaired() {
    let mut lab = Lab::new(3, false);
    let image: PathBuf = lab.path("volume");
    // The daemons of the laboratory are in lockspace "fs".
    let table = format!("{CLUSTER}:fs");

    // A machine without a cluster: nothing is asked, nothing is waited for.
    damaged(&image, &table);
    let alone = run(&mut Command::new(PROGRAM), &["-y"], &image);
    assert_eq!((alone.code, &*alone.errors), (1, ""));
    assert!(alone.took < SOON, "{:?}", alone.took);

    lab.boot_all(&[1, 2, 3], false);
    lab.run(2);
    lab.run(3);
    for id in [2, 3] {
        lab.wait_line(id, 0.0, "members 2,3", LONG);
    }
    let on = |lab: &mut Lab, args: &[&str], image: &Path| {
        run(&mut lab.command(1, Path::new(PROGRAM)), args, image)
    };
    damaged(&image, &table);
    let before = std::fs::read(&image).unwrap();
    let users = format!("is in use by nodes 2, 3 of cluster {CLUSTER} (group dlm:ls:fs)");
    for args in [&["-y"][..], &["-p", "-f"], &[]] {
        let refused = on(&mut lab, args, &image);
        let line = format!(
            "fsck.gfs2: {}: {users}; unmount it there first\n",
            image.display()
        );
        assert_eq!((refused.code, refused.errors), (16, line), "{args:?}");
    }
    // Only looking is allowed, with a warning; preening does not touch a shared volume in any case, and does not ask.
    for (args, code) in [(&["-n"][..], 4), (&["--dry-run"], 4)] {
        let looked = on(&mut lab, args, &image);
        assert_eq!(looked.code, code, "{args:?}: {}", looked.errors);
        let warning = format!("{users}: what is found may be about to change\n");
        assert!(looked.errors.contains(&warning), "{args:?}: {}", looked.errors);
    }
    let preened = on(&mut lab, &["-p"], &image);
    assert_eq!((preened.code, &*preened.errors), (0, ""));
    assert!(std::fs::read(&image).unwrap() == before, "it was written to");

    // Other clusters and other lockspaces are not meant.
    let other = lab.path("other");
    for table in ["other:fs", &format!("{CLUSTER}:els"), &format!("{CLUSTER}:f")] {
        damaged(&other, table);
        let repaired = on(&mut lab, &["-y"], &other);
        assert_eq!((repaired.code, &*repaired.errors), (1, ""), "{table}");
        assert!(repaired.took < SOON, "{table}: {:?}", repaired.took);
    }
    let forced = on(&mut lab, &["-y", "--force-mounted"], &image);
    assert_eq!(forced.code, 1, "{}", forced.errors);
    assert!(forced.errors.contains(&users), "{}", forced.errors);

    // One leaves in order, one dies: whoever is left is named, and when nobody is, the volume is repaired.
    damaged(&image, &table);
    lab.tell(2, "quit");
    lab.wait_line(2, 0.0, "left", LONG);
    let refused = on(&mut lab, &["-y"], &image);
    assert_eq!(refused.code, 16, "{}", refused.errors);
    let users = format!("is in use by node 3 of cluster {CLUSTER} (group dlm:ls:fs)");
    assert!(refused.errors.contains(&users), "{}", refused.errors);
    lab.signal(3, Some(&lab::ours()), Signal::KILL);
    let repaired = wait_for("the death of the last member", LONG, || {
        let run = on(&mut lab, &["-y"], &image);
        (run.code != 16).then_some(run)
    });
    assert_eq!((repaired.code, &*repaired.errors), (1, ""));

    // A corosync that hangs holds nothing up; that it was not to be asked is said.
    damaged(&image, &table);
    lab.signal(1, Some("corosync"), Signal::STOP);
    let unsure = on(&mut lab, &["-y"], &image);
    lab.signal(1, Some("corosync"), Signal::CONT);
    assert_eq!(unsure.code, 1, "{}", unsure.errors);
    assert!(
        unsure
            .errors
            .contains("cannot tell whether other nodes have it mounted"),
        "{}",
        unsure.errors
    );
    assert!(unsure.took < Duration::from_secs(15), "{:?}", unsure.took);
}
