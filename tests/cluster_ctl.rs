//! Goal: `gfs2ctl dlm` shows what the lock daemon knows, says of fencing that is awaited what to do, and ends it when a
//! person says so.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dlm_client::backend::wire::{WireDlm, WireOptions};
use dlm_client::control::Control;
use dlm_client::fence::conf::DlmConf;
use dlm_client::membership::memory::{MemoryCluster, MemoryMembership};
use dlm_client::transport::{MemoryHub, Poller};
use dlm_client::{
    Dlm, Event, EventQueue, JoinOptions, Lkf, Lockspace, Mode, NodeId, Plock, PlockOp, ResName,
};
use parking_lot::Mutex;
use serde_json::Value;

struct Cluster {
    membership: Arc<Mutex<MemoryCluster>>,
    hub: MemoryHub,
    conf: String,
}

struct Node {
    dlm: WireDlm,
    space: Arc<dyn Lockspace>,
    queue: EventQueue,
}

impl Cluster {
    fn new(nodes: u32, agent: &str) -> Self {
        Self {
            membership: Arc::new(Mutex::new(MemoryCluster::new(nodes))),
            hub: MemoryHub::new(),
            conf: format!("enable_startup_fencing=0\npost_join_delay=0\nfence_all {agent}\n"),
        }
    }

    fn node(&self, id: u32) -> Node {
        let poller = Poller::new().unwrap();
        let transport = self.hub.attach(NodeId(id), poller.clone());
        let membership = MemoryMembership::new(&self.membership, NodeId(id));
        let options = WireOptions::new(DlmConf::parse(&self.conf).unwrap());
        let dlm = WireDlm::start(membership, Box::new(transport), poller, &options).unwrap();
        let (space, queue) = dlm.join("fs", &JoinOptions::default()).unwrap();
        Node { dlm, space, queue }
    }
}

impl Node {
    /// Takes events up to the end of a recovery with so many members.
    #[track_caller]
    fn recovered(&self, members: usize) {
        loop {
            match self
                .queue
                .recv_timeout(Duration::from_secs(60))
                .expect("the end of a recovery")
            {
                Event::RecoverDone { slots, .. } if slots.len() == members => return,
                Event::Fatal(error) => panic!("{error}"),
                _ => {}
            }
        }
    }
}

fn gfs2ctl(socket: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gfs2ctl"))
        .args(["dlm", "--socket"])
        .arg(socket)
        .args(words)
        .output()
        .unwrap()
}

#[track_caller]
fn answer(socket: &Path, words: &[&str]) -> String {
    let output = gfs2ctl(socket, words);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

/// Asks until the answer is as wanted.
#[track_caller]
fn until(socket: &Path, words: &[&str], wanted: impl Fn(&str) -> bool) -> String {
    let begin = Instant::now();
    loop {
        let text = answer(socket, words);
        if wanted(&text) {
            return text;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{words:?} says:\n{text}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_healthy_lockspace_is_listed_in_text_and_json() {
    let cluster = Cluster::new(2, "/bin/true");
    let one = cluster.node(1);
    one.recovered(1);
    let two = cluster.node(2);
    two.recovered(2);
    one.recovered(2);
    let dir = tempfile::tempdir().unwrap();
    let control = Control::serve(one.dlm.observer(), dir.path()).unwrap();
    let socket = control.path();

    let name = ResName::new(b"       2              16").unwrap();
    one.space.request(&name, Mode::Ex, Lkf::empty(), 1).unwrap();
    let lock = Plock {
        number: 22,
        start: 0,
        end: 9,
        owner: 0xabc,
        pid: 7,
        exclusive: true,
    };
    one.space.plock(PlockOp::Lock { wait: false }, &lock, 2).unwrap();

    let text = until(socket, &["ls"], |text| text.contains("\nmembers       1 2 \n"));
    assert!(
        text.starts_with("dlm lockspaces\nname          fs\nid            0xd0b621e6\n"),
        "{text}"
    );
    let text = answer(socket, &["status", "-v"]);
    assert!(text.starts_with("cluster nodeid 1 quorate 1 ring seq "), "{text}");
    assert!(
        text.contains("\nnode 2 M add ") && text.contains(" stateful_merge_wait=0 "),
        "{text}"
    );
    let text = until(socket, &["locks", "fs"], |text| text.contains("gr EX"));
    assert!(text.contains("\"       2              16\"\n"), "{text}");
    let text = until(socket, &["plocks", "fs"], |text| !text.is_empty());
    assert_eq!(text, "22 WR 0-9 nodeid 1 pid 7 owner abc rown 0\n");
    assert!(answer(socket, &["dump"]).contains("lockspace fs: change "));

    for words in [
        &["ls"][..],
        &["status"],
        &["dump"],
        &["locks", "fs"],
        &["plocks", "fs"],
    ] {
        let words: Vec<&str> = ["--json"].iter().chain(words).copied().collect();
        let json: Value = serde_json::from_str(&answer(socket, &words)).unwrap();
        match words[1] {
            "ls" => assert_eq!(json[0]["change"]["members"], serde_json::json!([1, 2])),
            "status" => assert_eq!(json["nodes"][1]["member"], true),
            "locks" => assert_eq!(json[0]["locks"][0]["granted"], "EX"),
            _ => assert!(json[0].is_string(), "{json}"),
        }
    }
}

#[test]
fn fencing_that_does_not_end_says_so_and_ends_when_a_person_says_so() {
    for (agent, failed) in [
        ("/bin/false", "last failure 1 on node "),
        ("/nosuch/fence_agent", "which cannot be run on node "),
    ] {
        let cluster = Cluster::new(3, agent);
        // One of three has no quorum: all of them first.
        let (one, two, three) = (cluster.node(1), cluster.node(2), cluster.node(3));
        for node in [&one, &two, &three] {
            node.recovered(3);
        }
        let dir = tempfile::tempdir().unwrap();
        let control = Control::serve(one.dlm.observer(), dir.path()).unwrap();
        let socket = control.path();
        cluster.membership.lock().turn_off(NodeId(3));

        let text = until(socket, &["status"], |text| text.contains(failed));
        let line = text.lines().find(|line| line.starts_with("waiting ")).unwrap();
        for part in [
            " s for node 3 to be fenced: by node ",
            agent,
            ", attempt ",
            "gfs2ctl dlm fence-ack 3",
        ] {
            assert!(line.contains(part), "{part:?} is not in {line:?}");
        }
        let text = answer(socket, &["ls"]);
        assert!(
            text.contains("kern_stop") && text.contains("new status    wait fencing\n"),
            "{text}"
        );
        let json: Value = serde_json::from_str(&answer(socket, &["--json", "status"])).unwrap();
        assert_eq!(json["nodes"][2]["fencing"]["agent"], agent);

        let wrong = gfs2ctl(socket, &["fence-ack", "2"]);
        assert_eq!(wrong.status.code(), Some(1));
        let complaint = String::from_utf8_lossy(&wrong.stderr).into_owned();
        assert!(
            complaint.contains("the fencing of node 2 is not awaited"),
            "{complaint}"
        );
        answer(socket, &["fence-ack", "3"]);
        for node in [&one, &two] {
            node.recovered(2);
        }
        let text = answer(socket, &["status"]);
        assert!(!text.contains("waiting "), "{text}");
    }
}

#[test]
fn without_a_daemon_it_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let output = gfs2ctl(&dir.path().join("9.sock"), &["ls"]);
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    assert!(
        complaint.contains("no lock daemon listens there; is the file system mounted?"),
        "{complaint}"
    );
    let output = gfs2ctl(dir.path(), &["fence-ack", "nobody"]);
    assert_eq!(output.status.code(), Some(2));
}
