//! Goal: the engine behaves as the kernel's DLM does. Method: a random stream of lock operations was played on lockspaces
//! of real kernels and recorded; played on nodes of ours it must go the same way, line for line.
//!
//! `tests/dlm_kernel.rs` at the top of the project plays them live and mixed, and records anew (`DLM_RECORD`).

#[allow(dead_code, unreachable_pub)]
mod cluster;
#[path = "../examples/dlmdrive/measure.rs"]
#[allow(dead_code)]
mod measure;
#[path = "../examples/dlmdrive/party.rs"]
#[allow(dead_code)]
mod party;
#[path = "../examples/dlmdrive/report.rs"]
mod report;
#[path = "../examples/dlmdrive/serve.rs"]
#[allow(dead_code)]
mod serve;
#[path = "../examples/dlmdrive/stream.rs"]
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Cluster, Wires, join};
use dlm_client::wire::Version;
use dlm_client::wire::hash::{Weighted, directory_node, directory_nodes, name_hash};
use dlm_client::{EventQueue, Lkf, LockId, Lockspace, Lvb, Mode, NodeId, ResName};
use party::{Node, Party, Report};
use serve::Driven;

/// A node of this process.
struct Inside {
    space: Arc<dyn Lockspace>,
    queue: EventQueue,
    locks: BTreeMap<u64, LockId>,
}

impl Node for Inside {
    fn join(&mut self, _: &str) -> Result<(), String> {
        Err("joined already".to_owned())
    }
    fn leave(&mut self) -> Result<(), String> {
        Err("stays".to_owned())
    }
    fn request(&mut self, token: u64, name: &str, mode: Mode, flags: Lkf) -> Result<(), String> {
        let name = ResName::new(name.as_bytes()).expect("a name");
        let id = self.space.request(&name, mode, flags, token);
        self.locks.insert(token, id.map_err(|e| report::refused(&e))?);
        Ok(())
    }
    fn convert(&mut self, token: u64, mode: Mode, flags: Lkf, lvb: &Lvb) -> Result<(), String> {
        let id = self.locks[&token];
        let done = self.space.convert(id, mode, flags, Some(lvb));
        done.map_err(|e| report::refused(&e))
    }
    fn unlock(&mut self, token: u64, flags: Lkf, lvb: &Lvb) -> Result<(), String> {
        let done = self.space.unlock(self.locks[&token], flags, Some(lvb));
        done.map_err(|e| report::refused(&e))
    }
    fn cancel(&mut self, token: u64) -> Result<(), String> {
        let done = self.space.cancel(self.locks[&token]);
        done.map_err(|e| report::refused(&e))
    }
    fn report(&mut self, timeout: Duration) -> Option<Report> {
        self.queue.recv_timeout(timeout).map(|e| report::report(&e))
    }
    fn other(&mut self, words: &[&str]) -> Result<Vec<String>, String> {
        Err(format!("{words:?}"))
    }
}

fn played(nodes: u32, seed: u64, count: u64) -> Vec<String> {
    let cluster = Cluster::new(nodes, Wires::Memory, "");
    let mut driven = Vec::new();
    for id in 1..=nodes {
        let joined = join(cluster.node(id, Version::V3_2), "foo");
        joined.wait_recovered();
        driven.push(Driven::new(Inside {
            space: joined.space,
            queue: joined.queue,
            locks: BTreeMap::new(),
        }));
    }
    let last = format!("await done_generation_{nodes} 60000");
    for node in driven.iter_mut().rev().skip(1) {
        node.ask(&last).expect("the last recovery");
        node.ask("events").expect("what was told");
    }
    let mut parties: Vec<&mut dyn Party> = driven.iter_mut().map(|p| p as &mut dyn Party).collect();
    let mut lines = Vec::new();
    stream::play(seed, count, &mut parties, &mut |line| lines.push(line.to_owned())).expect("a stream");
    lines
}

/// The first difference, with what led to it.
#[track_caller]
fn same(kernel: &str, ours: &[String]) {
    let kernel: Vec<&str> = kernel.lines().collect();
    let at = (0..kernel.len().max(ours.len()))
        .find(|at| kernel.get(*at).copied() != ours.get(*at).map(String::as_str));
    if let Some(at) = at {
        let from = at.saturating_sub(40);
        let show = |lines: &[&str]| {
            let end = lines.len().min(at + 4);
            lines.get(from..end).unwrap_or_default().join("\n")
        };
        let ours: Vec<&str> = ours.iter().map(String::as_str).collect();
        panic!(
            "line {}:\nkernel\n{}\nours\n{}",
            at + 1,
            show(&kernel),
            show(&ours)
        );
    }
}

/// What two kernels did, by seed.
fn recordings() -> Vec<(u64, String)> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut found = Vec::new();
    for entry in data.read_dir().expect("the recordings") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let Some(seed) = name.strip_prefix("kernel-stream-") else {
            continue;
        };
        let text = std::fs::read_to_string(&path).expect("a recording");
        found.push((seed.parse().expect("a seed"), text));
    }
    assert!(
        found.len() >= 4,
        "{} recordings in {}",
        found.len(),
        data.display()
    );
    found
}

#[test]
fn two_nodes_behave_as_two_kernels() {
    for (seed, text) in recordings() {
        let count = text.lines().filter(|line| !line.starts_with(' ')).count();
        let count = u64::try_from(count).expect("a number");
        same(&text, &played(2, seed, count));
    }
}

/// The first to lock a name is its master; who that is and who keeps its directory meet in every way.
#[test]
fn the_recordings_have_masters_and_directories_on_both_nodes() {
    let members = [1, 2].map(|node| Weighted {
        node: NodeId(node),
        weight: 1,
    });
    let table = directory_nodes(&members);
    let mut seen: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    for (_, text) in recordings() {
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let ["lock", token, name, ..] = words[..] else {
                continue;
            };
            let token: u32 = token.parse().expect("a number");
            let hash = name_hash(&ResName::new(name.as_bytes()).expect("a name"));
            let directory = directory_node(&table, hash).expect("a node").0;
            seen.entry(name.to_owned()).or_insert((token % 2 + 1, directory));
        }
    }
    let ways: BTreeSet<(u32, u32)> = seen.values().copied().collect();
    assert_eq!(ways.len(), 4, "{seen:?}");
}
