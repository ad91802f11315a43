//! Lock daemons on the group server: real sockets and clocks, no corosync, no lock engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dlm_client::controld::driver::{Deed, Driver, Handle};
use dlm_client::controld::{Order, Start};
use dlm_client::fence::conf::DlmConf;
use dlm_client::membership::server::{GroupServer, ServerMembership};
use dlm_client::{NodeId, Plock, PlockOp, PlockStatus};

const LONG: Duration = Duration::from_secs(30);

/// A thread that turns until it is told to stop.
struct Turning {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Turning {
    fn new(mut turn: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Acquire) {
                turn();
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Turning {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.thread.take().map(JoinHandle::join);
    }
}

fn server(folder: &Path, nodes: u32) -> (PathBuf, Turning) {
    let path = folder.join("group");
    let mut server = GroupServer::bind(&path, "demo", nodes).unwrap();
    (path, Turning::new(move || server.turn(Duration::from_millis(5))))
}

struct Node {
    handle: Handle,
    deeds: Receiver<Deed>,
    /// Dropping it is the death of the node: its connection ends.
    _turning: Turning,
}

impl Node {
    fn new(path: &Path, id: u32) -> Self {
        let conf = DlmConf::parse("enable_fencing=0\n").unwrap();
        let membership = ServerMembership::connect(path, "demo", NodeId(id)).unwrap();
        let (mut driver, handle) = Driver::start(membership, conf).unwrap();
        let (sender, deeds) = channel();
        let turning = Turning::new(move || {
            for deed in driver.turn() {
                let _heard = sender.send(deed);
            }
        });
        Self {
            handle,
            deeds,
            _turning: turning,
        }
    }

    /// Waits for a deed.
    #[track_caller]
    fn until<T>(&self, mut wanted: impl FnMut(Deed) -> Option<T>) -> T {
        let end = Instant::now() + LONG;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let deed = self.deeds.recv_timeout(left).expect("what was waited for");
            if let Deed::Fatal(fatal) = &deed {
                panic!("{fatal}");
            }
            if let Some(found) = wanted(deed) {
                return found;
            }
        }
    }

    #[track_caller]
    fn started_with(&self, members: &[u32]) -> Start {
        self.until(|deed| match deed {
            Deed::Engine {
                order: Order::Start(start),
                ..
            } => {
                let found: Vec<u32> = start.members.iter().map(|member| member.node.0).collect();
                (found == members).then_some(start)
            }
            _ => None,
        })
    }

    #[track_caller]
    fn plock_done(&self, token: u64) -> PlockStatus {
        self.until(|deed| match deed {
            Deed::Plock { done, .. } if done.token == token => Some(done.status),
            _ => None,
        })
    }

    fn lock(&self, start: u64, end: u64, wait: bool, token: u64) {
        let lock = Plock {
            number: 7,
            start,
            end,
            owner: 1,
            pid: 1,
            exclusive: true,
        };
        self.handle
            .plock("fs", PlockOp::Lock { wait }, &lock, token)
            .unwrap();
    }
}

#[test]
fn daemons_meet_die_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _server) = server(folder.path(), 3);
    let mut nodes: Vec<Node> = (1..=3).map(|id| Node::new(&path, id)).collect();
    for node in &nodes {
        node.handle.join("fs").unwrap();
    }
    for node in &nodes {
        node.started_with(&[1, 2, 3]);
    }
    nodes[2].lock(0, 99, false, 1);
    assert_eq!(nodes[2].plock_done(1), PlockStatus::Granted);
    nodes[0].lock(0, 9, false, 2);
    assert_eq!(nodes[0].plock_done(2), PlockStatus::Again);
    nodes[0].lock(0, 9, true, 3);
    nodes[1].lock(200, 209, false, 4);
    assert_eq!(nodes[1].plock_done(4), PlockStatus::Granted);

    drop(nodes.pop());
    let start = nodes[0].until(|deed| match deed {
        Deed::Plock { done, .. } if done.token == 3 => {
            assert_eq!(done.status, PlockStatus::Granted);
            None
        }
        Deed::Engine {
            order: Order::Start(start),
            ..
        } => Some(start),
        _ => None,
    });
    assert_eq!(start.members.len(), 2);
    assert!(
        start
            .gone
            .iter()
            .any(|gone| gone.node == NodeId(3) && gone.failed)
    );
    nodes[1].started_with(&[1, 2]);

    nodes.push(Node::new(&path, 3));
    nodes[2].handle.join("fs").unwrap();
    for node in &nodes {
        node.started_with(&[1, 2, 3]);
    }
    // Ordered after the transfer: when it is done, the table is here.
    nodes[2].lock(300, 300, false, 5);
    assert_eq!(nodes[2].plock_done(5), PlockStatus::Granted);
    nodes[0].lock(400, 400, false, 6);
    assert_eq!(nodes[0].plock_done(6), PlockStatus::Granted);
    nodes[2].lock(400, 400, false, 7);
    assert_eq!(nodes[2].plock_done(7), PlockStatus::Again);
    let lines = nodes[0].handle.plock_lines("fs").unwrap();
    assert_eq!(
        lines,
        [
            "7 WR 200-209 nodeid 2 pid 1 owner 1 rown 0",
            "7 WR 0-9 nodeid 1 pid 1 owner 1 rown 0",
            "7 WR 300-300 nodeid 3 pid 1 owner 1 rown 0",
            "7 WR 400-400 nodeid 1 pid 1 owner 1 rown 0",
        ]
    );
    assert_eq!(nodes[2].handle.plock_lines("fs"), Some(lines));

    nodes[1].handle.leave("fs").unwrap();
    nodes[1].until(|deed| match deed {
        Deed::Engine {
            order: Order::Left, ..
        } => Some(()),
        _ => None,
    });
    let start = nodes[0].started_with(&[1, 3]);
    assert!(start.gone.iter().all(|gone| !gone.failed), "{start:?}");
}

#[test]
fn whoever_does_not_belong_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _server) = server(folder.path(), 2);
    let _first = Node::new(&path, 1);
    for (name, id, why) in [
        ("other", 2, "this is cluster demo, not other"),
        ("demo", 1, "node 1 is here already"),
        ("demo", 3, "nodes are 1 to 2, not 3"),
    ] {
        let error = ServerMembership::connect(&path, name, NodeId(id)).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    let error = ServerMembership::connect(&folder.path().join("none"), "demo", NodeId(1)).unwrap_err();
    assert!(error.to_string().contains("start it first"), "{error}");
}

#[test]
fn a_client_that_talks_nonsense_is_cut_off_and_the_others_go_on() {
    use std::io::{Read, Write};
    let folder = tempfile::tempdir().unwrap();
    let (path, _server) = server(folder.path(), 2);
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..50 {
        let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let mut bytes = vec![0_u8; 64];
        random.fill(&mut bytes);
        bytes[..4].copy_from_slice(&60_u32.to_le_bytes());
        bytes[4] |= 0x80;
        stream.write_all(&bytes).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "the connection ends");
    }
    let node = Node::new(&path, 2);
    node.handle.join("fs").unwrap();
    node.started_with(&[2]);
}
