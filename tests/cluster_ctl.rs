//! Goal: `gfs2ctl dlm` shows what the lock daemon knows, says of fencing that is awaited what to do, and ends it when a
//! person says so.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
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

/// Seconds since the machine started.
fn uptime() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap();
    text.split('.').next().unwrap().parse().unwrap()
}

/// The number after `fence_pid` in the answer to `status`.
#[track_caller]
fn fence_pid(text: &str) -> u32 {
    let line = text
        .lines()
        .find(|line| line.starts_with("daemon now "))
        .expect(text);
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!((words[3], words[5]), ("fence_pid", ""), "{line:?}");
    words[4].parse().expect(line)
}

#[test]
fn an_agent_that_runs_is_named_with_its_process_and_the_clock_is_the_machines() {
    let dir = tempfile::tempdir().unwrap();
    let agent = dir.path().join("fence_slow");
    let text = dir.path().join("text");
    std::fs::write(&text, "#!/bin/sh\nexec sleep 600\n").unwrap();
    // By a process of its own: what is open for writing, in a child that another test starts just now, cannot be run.
    let mut install = Command::new("install");
    install.args(["-m", "755"]).args([&text, &agent]);
    assert!(install.status().unwrap().success());
    let cluster = Cluster::new(3, agent.to_str().unwrap());
    let nodes = [cluster.node(1), cluster.node(2), cluster.node(3)];
    nodes.iter().for_each(|node| node.recovered(3));
    let control = Control::serve(nodes[0].dlm.observer(), dir.path()).unwrap();
    let socket = control.path();
    let before = uptime();
    let text = answer(socket, &["status"]);
    assert_eq!(fence_pid(&text), 0);
    let now = text
        .split("daemon now ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let now: u64 = now.unwrap().parse().unwrap();
    assert!((before..=uptime()).contains(&now), "{now}");

    cluster.membership.lock().turn_off(NodeId(3));
    let text = until(socket, &["status"], |text| fence_pid(text) != 0);
    let pid = fence_pid(&text);
    // While it begins to run another program a process has no words at all.
    let ran = || {
        let ran = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        String::from_utf8_lossy(&ran).replace('\0', " ")
    };
    let begin = Instant::now();
    while ran().is_empty() {
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "process {pid} runs nothing"
        );
        std::thread::yield_now();
    }
    let ran = ran();
    assert!(ran == "sleep 600 " || ran.contains("fence_slow"), "{ran}");
    let json: Value = serde_json::from_str(&answer(socket, &["--json", "status"])).unwrap();
    assert_eq!(json["nodes"][2]["fencing"]["pid"], pid);
    answer(socket, &["fence-ack", "3"]);
    nodes[..2].iter().for_each(|node| node.recovered(2));
    let text = answer(socket, &["status"]);
    assert_eq!(fence_pid(&text), 0);
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

/// A process of `dlm-client/examples/member.rs`, which does what a mount does; it dies with this handle.
struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    fn new(program: &Path, words: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            let heard = |line| sender.send(line).is_ok();
            stdout.lines().map_while(Result::ok).all(heard);
        });
        Self { child, lines }
    }

    /// Lines up to one that begins so.
    #[track_caller]
    fn until(&self, begin: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        let mut heard = Vec::new();
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(line) if line.starts_with(begin) => return,
                Ok(line) => heard.push(line),
                Err(why) => panic!("{begin:?} is not in {heard:?}: {why}"),
            }
        }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The example, built from what is there now, as this program was.
fn member() -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "-q", "-p", "dlm-client", "--example", "member"]);
    build.args((!cfg!(debug_assertions)).then_some("--release"));
    let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
    assert!(built.success(), "the example does not build");
    let gfs2ctl = Path::new(env!("CARGO_BIN_EXE_gfs2ctl"));
    gfs2ctl.with_file_name("examples").join("member")
}

/// A port that is free on the addresses of nodes 1 to 3.
fn port() -> u16 {
    let free = |port| (1..=3).all(|id| TcpListener::bind((Ipv4Addr::new(127, 0, 0, id), port)).is_ok());
    let first = 21_000 + u16::try_from(std::process::id() % 4000).unwrap();
    (first..first + 1000)
        .find(|port| free(*port))
        .expect("a free port")
}

/// A cluster of processes on one machine, with an agent that never works.
struct Machine {
    dir: tempfile::TempDir,
    program: PathBuf,
    _server: Process,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = member();
        let conf = format!(
            "enable_startup_fencing=0\npost_join_delay=0\nport={}\nfence_all /bin/false\n",
            port()
        );
        std::fs::write(dir.path().join("dlm.conf"), conf).unwrap();
        let socket = dir.path().join("group");
        let server = Process::new(&program, &["server", socket.to_str().unwrap(), "demo", "3"]);
        server.until("serving");
        Self {
            dir,
            program,
            _server: server,
        }
    }

    fn words(&self, cluster: &str, id: u32) -> Vec<String> {
        let path = |name: &str| self.dir.path().join(name).to_str().unwrap().to_owned();
        let words = [
            "node".to_owned(),
            path("group"),
            cluster.to_owned(),
            id.to_string(),
            "fs".to_owned(),
            path("dlm.conf"),
            path("run"),
        ];
        words.to_vec()
    }

    fn node(&self, id: u32) -> Process {
        let words = self.words("demo", id);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let node = Process::new(&self.program, &words);
        node.until("control ");
        node
    }

    /// What a node that does not start says: one line.
    fn refused(&self, cluster: &str, id: u32) -> String {
        let output = Command::new(&self.program)
            .args(self.words(cluster, id))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(line.lines().count(), 1, "{line}");
        line
    }

    fn socket(&self, id: u32) -> PathBuf {
        self.dir.path().join(format!("run/{id}.sock"))
    }
}

/// What every line of an answer of `dlm_tool` begins with.
fn first_words(text: &str) -> Vec<&str> {
    let lines = text.lines().filter(|line| !line.is_empty());
    lines.filter_map(|line| line.split_whitespace().next()).collect()
}

#[test]
fn processes_that_do_as_a_mount_does_are_asked_by_gfs2ctl() {
    let machine = Machine::new();
    let line = machine.refused("other", 1);
    assert!(line.contains("this is cluster demo, not other"), "{line}");
    let mut one = machine.node(1);
    one.until("members 1");
    let mut two = machine.node(2);
    two.until("members 1 2");
    one.until("members 1 2");
    let line = machine.refused("demo", 2);
    assert!(line.contains("node 2 is here already"), "{line}");
    let mut three = machine.node(3);
    for node in [&one, &two, &three] {
        node.until("members 1 2 3");
    }
    three.tell("lock grave EX");
    three.until("cast 1 Granted");
    two.tell("plock 77 0 9 5");
    two.until("plock 1 Granted");
    one.tell("lock grave PR");
    three.until("bast 1 PR");

    for id in 1..=3 {
        let socket = machine.socket(id);
        let text = answer(&socket, &["ls"]);
        let words = ["dlm", "name", "id", "flags", "change", "members"];
        assert_eq!(first_words(&text), words, "{text}");
        assert!(text.contains("\nmembers       1 2 3 \n"), "{text}");
        let text = answer(&socket, &["status"]);
        assert!(
            text.starts_with(&format!("cluster nodeid {id} quorate 1 ring seq ")),
            "{text}"
        );
        let words = first_words(&text);
        assert_eq!((words[1], &words[3..]), ("daemon", &["node"; 3][..]), "{text}");
        let text = answer(&socket, &["plocks", "fs"]);
        assert!(text.starts_with("77 WR 0-9 nodeid 2 pid "), "{text}");
        assert!(answer(&socket, &["dump"]).contains("lockspace fs: change "));
        for words in [
            &["ls"][..],
            &["status"],
            &["dump"],
            &["locks", "fs"],
            &["plocks", "fs"],
        ] {
            let words: Vec<&str> = words.iter().chain(&["--json"]).copied().collect();
            let json: Value = serde_json::from_str(&answer(&socket, &words)).unwrap();
            assert!(!json.is_null(), "{words:?}");
        }
    }
    let held = answer(&machine.socket(3), &["locks", "fs"]);
    assert!(
        held.contains(" gr EX rq IV pid ") && held.contains("\"grave\""),
        "{held}"
    );
    let waits = answer(&machine.socket(1), &["locks", "fs"]);
    assert!(waits.contains(" gr IV rq PR pid "), "{waits}");

    // A death: nothing is given away until a person says that the node is down.
    three.child.kill().unwrap();
    one.until("prepare");
    let text = until(&machine.socket(1), &["status"], |text| {
        text.contains("last failure 1 on node ")
    });
    assert!(text.contains("gfs2ctl dlm fence-ack 3"), "{text}");
    assert!(answer(&machine.socket(2), &["ls"]).contains("new status    wait fencing\n"));
    answer(&machine.socket(1), &["fence-ack", "3"]);
    one.until("failed node 3 slot 3");
    one.until("members 1 2");
    one.until("cast 1 Granted");
    two.until("members 1 2");

    let three = machine.node(3);
    three.until("members 1 2 3");
    for (id, node) in [(1, &mut one), (2, &mut two)] {
        node.tell("leave");
        node.until("left");
        assert!(node.child.wait().unwrap().success());
        assert!(!machine.socket(id).exists(), "the socket of node {id}");
    }
    three.until("members 3");
}
