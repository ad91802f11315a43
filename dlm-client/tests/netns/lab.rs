//! A cluster of network namespaces: a switch, and nodes with a corosync each, all on this machine.
//!
//! Invariants: nothing outside the namespaces is changed; whatever was started dies with the thread that started it, and
//! with it the namespaces, mounts and links.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

use crate::power::{Power, Powers};

/// Corosync's token time, in milliseconds: a silent node is given up after 2.2 times that.
pub(crate) const TOKEN: u64 = 1500;
/// The cluster's name.
pub(crate) const CLUSTER: &str = "lab";

/// How long corosyncs that were just started may take to find each other (two seconds on a quiet machine), and how often
/// it is tried.
const RING_LIMIT: Duration = Duration::from_secs(45);
const RING_ATTEMPTS: u32 = 3;

/// Seconds of the clock that all logs use.
pub(crate) fn clock() -> f64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut found: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begin.elapsed() < limit, "{what}: not in {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that dies with the thread that started it.
fn spawn(argv: &[&str], output: &Path) -> Child {
    let output = File::options().append(true).create(true).open(output).unwrap();
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .args(argv)
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap_or_else(|error| panic!("{argv:?}: {error}"))
}

fn run(argv: &[&str], stdin: Stdio) {
    let done = Command::new(argv[0]).args(&argv[1..]).stdin(stdin).output();
    let done = done.unwrap_or_else(|error| panic!("{argv:?}: {error}"));
    let text = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{argv:?}: {}: {text}", done.status);
}

/// The only child of a process, once it is there.
fn child_of(parent: u32) -> u32 {
    wait_for("a namespace", Duration::from_secs(20), || {
        let path = format!("/proc/{parent}/task/{parent}/children");
        let children = fs::read_to_string(path).unwrap_or_default();
        children.split_whitespace().next()?.parse().ok()
    })
}

/// A node: a process in namespaces of its own, and what runs in them.
struct Node {
    holder: Child,
    /// The first process inside, as the host numbers it.
    init: u32,
    power: Arc<Power>,
    process: Option<Child>,
    /// Corosync and what else was started with it.
    services: Vec<Child>,
    lives: u32,
}

pub(crate) struct Lab {
    dir: TempDir,
    switch: Child,
    nodes: Vec<Option<Node>>,
    lives: Vec<u32>,
    /// When which life of which node began: node, life, time.
    boots: Vec<(u32, u32, f64)>,
    /// Votes of a quorum device.
    qdevice: bool,
    server: Option<Node>,
    powers: Powers,
    /// Where our process on a node looks for programs, if that is not where this one does.
    search: BTreeMap<u32, String>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        // All at once: each takes its time to go.
        for node in self.nodes.iter().flatten() {
            node.power.off();
        }
        for id in 1..=self.count() {
            self.power_off(id);
        }
        if let Some(server) = self.server.take() {
            end(server);
        }
        let _ = self.switch.kill();
        let _ = self.switch.wait();
    }
}

/// Takes the power away: with the first process of its namespace, all of them die.
fn end(mut node: Node) {
    node.power.off();
    node.process.into_iter().chain(node.services).for_each(reap);
    let _ = node.holder.wait();
}

fn reap(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

impl Lab {
    /// `count` nodes, all off; `qdevice`: with a server that has a vote.
    pub(crate) fn new(count: u32, qdevice: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let switch = spawn(
            &["unshare", "--net", "--", "sleep", "infinity"],
            &dir.path().join("switch.out"),
        );
        let mut lab = Self {
            dir,
            switch,
            nodes: (0..count).map(|_| None).collect(),
            lives: vec![0; count as usize],
            boots: Vec::new(),
            qdevice,
            server: None,
            powers: Powers::default(),
            search: BTreeMap::new(),
        };
        wait_for("the switch", Duration::from_secs(20), || {
            let ours = fs::read_link("/proc/self/ns/net").ok()?;
            let its = fs::read_link(format!("/proc/{}/ns/net", lab.switch.id())).ok()?;
            (its != ours).then_some(())
        });
        lab.in_switch(
            "ip link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0; ip link set br0 up",
        );
        lab.write_conf();
        if qdevice {
            let mut server = lab.namespace(100);
            let listen = ["corosync-qnetd", "-f", "-s", "off", "-l", "10.77.0.100"];
            let service = lab.start_in(&server, &listen, "qnetd.out");
            server.services.push(service);
            lab.server = Some(server);
        }
        lab
    }

    pub(crate) fn count(&self) -> u32 {
        self.nodes.len() as u32
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn in_switch(&self, script: &str) {
        let pid = self.switch.id().to_string();
        run(
            &["nsenter", "-t", &pid, "-n", "--", "sh", "-ec", script],
            Stdio::null(),
        );
    }

    /// Configuration files of all nodes.
    fn write_conf(&self) {
        let nodes = (1..=self.count()).fold(String::new(), |mut text, id| {
            let _ = write!(
                text,
                "  node {{\n    ring0_addr: 10.77.0.{id}\n    name: n{id}\n    nodeid: {id}\n  }}\n"
            );
            text
        });
        let votes = self.count() - 1;
        let device = if self.qdevice {
            format!(
                "  device {{\n    model: net\n    votes: {votes}\n    timeout: 4000\n    sync_timeout: 6000\n    net {{\n      \
                 host: 10.77.0.100\n      algorithm: lms\n      tls: off\n      tie_breaker: lowest\n      \
                 connect_timeout: 2000\n    }}\n  }}\n"
            )
        } else {
            String::new()
        };
        let corosync = format!(
            "totem {{\n  version: 2\n  cluster_name: {CLUSTER}\n  transport: knet\n  crypto_cipher: none\n  crypto_hash: none\n  \
             token: {TOKEN}\n  token_coefficient: 0\n}}\nnodelist {{\n{nodes}}}\nquorum {{\n  provider: \
             corosync_votequorum\n{device}}}\nlogging {{\n  to_stderr: no\n  to_syslog: no\n  to_logfile: yes\n  logfile: \
             /var/log/corosync/corosync.log\n}}\n"
        );
        fs::write(self.path("corosync.conf"), corosync).unwrap();
        let agent = self.agent();
        let log = self.path("fences");
        let script = format!(
            "#!/bin/sh\nwhile read -r line; do\n  case $line in node=*) node=${{line#node=}};; esac\ndone\n\
             in_switch='nsenter --net=/run/switch'\n\
             if $in_switch ip link show \"p$node\" > /dev/null 2>&1; then\n  \
             $in_switch ip link set \"p$node\" down || exit 1\nfi\n\
             read -r up rest < /proc/uptime\necho \"$up fence $node\" >> {}\n",
            log.display()
        );
        fs::write(&agent, script).unwrap();
        fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
        self.fence_with(2, &self.agent());
    }

    /// The agent that takes a node's link away.
    pub(crate) fn agent(&self) -> String {
        self.path("fence_switch").display().to_string()
    }

    /// The delay in seconds after which nodes are fenced that do not come back by themselves, and the agent that does
    /// it, on all nodes that are started from now on.
    pub(crate) fn fence_with(&self, delay: u32, agent: &str) {
        self.fence_by_default(delay);
        let conf = File::options().append(true).open(self.path("dlm.conf"));
        writeln!(conf.unwrap(), "fence_all {agent}").unwrap();
    }

    /// The same without a fence device in dlm.conf.
    pub(crate) fn fence_by_default(&self, delay: u32) {
        let conf = format!("post_join_delay={delay}\nenable_startup_fencing=0\n");
        fs::write(self.path("dlm.conf"), conf).unwrap();
    }

    /// Where our process on a node looks for programs, from its next start on.
    pub(crate) fn search(&mut self, id: u32, path: &str) {
        self.search.insert(id, path.to_owned());
    }

    /// The power of the nodes that are on, now and later.
    pub(crate) fn powers(&self) -> Powers {
        Arc::clone(&self.powers)
    }

    /// A person says that a node is off, and it is.
    pub(crate) fn acknowledge(&mut self, by: u32, id: u32) {
        assert!(self.nodes[id as usize - 1].is_none(), "node {id} is on");
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.path("fences"));
        writeln!(log.unwrap(), "{:.6} fence {id}", clock()).unwrap();
        self.tell(by, &format!("ack {id}"));
    }

    /// A namespace, connected to the switch.
    fn namespace(&self, id: u32) -> Node {
        let namespaces = [
            "unshare",
            "--net",
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--mount-proc",
            "--propagation",
            "private",
            "--",
            "sleep",
            "infinity",
        ];
        let holder = spawn(&namespaces, &self.path(&format!("n{id}.out")));
        let init = child_of(holder.id());
        let root = self.path(&format!("n{id}"));
        for part in ["etc", "lib", "log"] {
            fs::create_dir_all(root.join(part)).unwrap();
        }
        fs::copy(self.path("corosync.conf"), root.join("etc/corosync.conf")).unwrap();
        let (root, pid) = (root.display(), init.to_string());
        let setup = format!(
            "hostname n{id}\nmount -t tmpfs -o mode=1777 tmpfs /dev/shm\nmount --bind {root}/etc /etc/corosync\n\
             mount --bind {root}/lib /var/lib/corosync\nmount --bind {root}/log /var/log/corosync\n\
             mount -t tmpfs tmpfs /run\nmkdir -p /run/corosync-qdevice /run/corosync-qnetd /run/lock\n\
             touch /run/switch\nmount -c --bind /proc/self/fd/0 /run/switch\nip link set lo up\n"
        );
        wait_for("the namespaces of a node", Duration::from_secs(20), || {
            let ours = fs::read_link("/proc/self/ns/mnt").ok()?;
            (fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()? != ours).then_some(())
        });
        let switch = File::open(format!("/proc/{}/ns/net", self.switch.id())).unwrap();
        let enter = [
            "nsenter", "-t", &pid, "-m", "-u", "-i", "-n", "-p", "--", "sh", "-ec", &setup,
        ];
        run(&enter, switch.into());
        self.in_switch(&format!(
            "ip link del p{id} 2>/dev/null || true; ip link add p{id} type veth peer name eth0 netns {pid}; \
             ip link set p{id} master br0 up"
        ));
        let address = format!("ip addr add 10.77.0.{id}/24 dev eth0; ip link set eth0 up");
        run(
            &["nsenter", "-t", &pid, "-n", "--", "sh", "-ec", &address],
            Stdio::null(),
        );
        Node {
            holder,
            init,
            power: Arc::new(Power::of(init)),
            process: None,
            services: Vec::new(),
            lives: 0,
        }
    }

    /// Starts something on a node that is up; it ends with the node.
    pub(crate) fn serve(&mut self, id: u32, argv: &[&str], output: &str) {
        let service = self.start_in(self.nodes[id as usize - 1].as_ref().expect("on"), argv, output);
        self.node(id).services.push(service);
    }

    /// What a command on a node says; it has 20 seconds.
    pub(crate) fn ask(&mut self, id: u32, argv: &[&str]) -> Output {
        let mut command = self.command(id, Path::new("timeout"));
        command.arg("20").args(argv).output().unwrap()
    }

    fn start_in(&self, node: &Node, argv: &[&str], output: &str) -> Child {
        let pid = node.init.to_string();
        let mut enter = vec!["nsenter", "-t", &pid, "-m", "-u", "-i", "-n", "-p", "--"];
        enter.extend(argv);
        spawn(&enter, &self.path(output))
    }

    /// The node comes up, with its corosync and our process.
    pub(crate) fn power_on(&mut self, id: u32) {
        self.boot(id);
        self.run(id);
    }

    /// Boots nodes, with or without our process, until their corosyncs are one ring. That is corosync's to do: nodes whose
    /// corosyncs have not done it are booted anew, which is said, and never done for what ours do.
    #[track_caller]
    pub(crate) fn boot_all(&mut self, ids: &[u32], run: bool) {
        for attempt in 1..=RING_ATTEMPTS {
            for id in ids {
                self.boot(*id);
                if run {
                    self.run(*id);
                }
            }
            let begin = Instant::now();
            let counts = loop {
                let counts: Vec<Option<u32>> = ids.iter().map(|id| self.votes(*id)).collect();
                let whole = |votes: &Option<u32>| votes.is_some_and(|votes| votes as usize >= ids.len());
                if counts.iter().all(whole) {
                    return;
                }
                if begin.elapsed() >= RING_LIMIT {
                    break counts;
                }
                std::thread::sleep(Duration::from_millis(50));
            };
            eprintln!(
                "attempt {attempt}: the corosyncs of nodes {ids:?} are not one ring in {RING_LIMIT:?}; the votes they \
                 count: {counts:?}"
            );
            for id in ids {
                self.show_file(&self.corosync_log(*id), usize::MAX);
                self.power_off(*id);
            }
        }
        panic!(
            "{RING_ATTEMPTS} times the corosyncs of nodes {ids:?} did not find each other; see their logs above"
        );
    }

    fn corosync_log(&self, id: u32) -> PathBuf {
        self.path(&format!("n{id}/log/corosync.log"))
    }

    /// There where Pacemaker runs, too.
    pub(crate) fn pacemaker_log(&self, id: u32) -> PathBuf {
        self.path(&format!("n{id}/pacemaker-log/pacemaker.log"))
    }

    /// The last lines of a file.
    fn show_file(&self, path: &Path, most: usize) {
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("--- {}", path.display());
        let from = lines.len().saturating_sub(most);
        lines[from..].iter().for_each(|line| eprintln!("{line}"));
    }

    /// A node with corosync, without a process of ours.
    pub(crate) fn boot(&mut self, id: u32) {
        let begin = clock();
        let mut node = self.namespace(id);
        let corosync = self.start_in(&node, &["corosync", "-f"], &format!("corosync{id}.out"));
        node.services.push(corosync);
        if self.qdevice {
            let wait =
                "until corosync-quorumtool > /dev/null 2>&1; do sleep 0.2; done; exec corosync-qdevice -f";
            let device = ["sh", "-c", wait];
            let service = self.start_in(&node, &device, &format!("qdevice{id}.out"));
            node.services.push(service);
        }
        let index = id as usize - 1;
        self.lives[index] += 1;
        node.lives = self.lives[index];
        self.boots.push((id, node.lives, begin));
        self.powers.lock().insert(id, Arc::clone(&node.power));
        self.nodes[index] = Some(node);
    }

    /// Our process on a node that is up.
    pub(crate) fn run(&mut self, id: u32) {
        let log = self.log_of(id);
        File::create(&log).unwrap();
        let node = self.node(id);
        let (pid, lives) = (node.init.to_string(), node.lives);
        let us = std::env::current_exe().unwrap();
        let search = self.search.get(&id).cloned();
        let search = search.unwrap_or_else(|| std::env::var("PATH").expect("where programs are"));
        let error = File::create(self.path(&format!("process{id}.{lives}.out"))).unwrap();
        let process = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "--",
                "nsenter",
                "-t",
                &pid,
                "-m",
                "-u",
                "-i",
                "-n",
                "-p",
                "--",
                "env",
                &format!("PATH={search}"),
            ])
            .arg(us)
            .env("NETNS_NODE", id.to_string())
            .env("NETNS_LOG", &log)
            .env("NETNS_CONF", self.path("dlm.conf"))
            .env("NETNS_CLUSTER", CLUSTER)
            .stdin(Stdio::piped())
            .stdout(error.try_clone().unwrap())
            .stderr(error)
            .spawn()
            .unwrap();
        self.node(id).process = Some(process);
    }

    /// A command in the namespaces of a node that is up; the files are this machine's, but for what a node has of its own.
    pub(crate) fn command(&mut self, id: u32, program: &Path) -> Command {
        let pid = self.node(id).init.to_string();
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "-m", "-u", "-i", "-n", "-p", "--"]);
        command.arg(program).stdin(Stdio::null());
        command
    }

    /// What a second process of ours on a node says when it starts: the one line of why it does not.
    pub(crate) fn attempt(&mut self, id: u32, conf: &str, cluster: &str) -> String {
        let path = self.path("attempt.conf");
        fs::write(&path, conf).unwrap();
        let us = std::env::current_exe().unwrap();
        let done = self
            .command(id, &us)
            .env("NETNS_NODE", id.to_string())
            .env("NETNS_TRY", "1")
            .env("NETNS_CONF", path)
            .env("NETNS_CLUSTER", cluster)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8(done.stdout).unwrap();
        let said = said.trim_end_matches('\n').to_owned();
        assert!(!said.is_empty() && !said.contains('\n'), "not one line: {said:?}");
        said
    }

    /// Changes a node's corosync.conf and lets its corosync read it again.
    pub(crate) fn reload(&mut self, id: u32, from: &str, to: &str) {
        let conf = self.path(&format!("n{id}/etc/corosync.conf"));
        let text = fs::read_to_string(&conf).unwrap();
        assert!(text.contains(from), "{from:?} is not in {text}");
        fs::write(&conf, text.replace(from, to)).unwrap();
        let done = self.ask(id, &["corosync-cfgtool", "-R"]);
        assert!(done.status.success(), "{done:?}");
    }

    /// The votes that a node counts.
    pub(crate) fn votes(&mut self, id: u32) -> Option<u32> {
        let done = self.ask(id, &["corosync-quorumtool", "-s"]);
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let line = text.lines().find(|line| line.starts_with("Total votes:"))?;
        line.split_whitespace().last()?.parse().ok()
    }

    fn node(&mut self, id: u32) -> &mut Node {
        self.nodes[id as usize - 1].as_mut().expect("the node is on")
    }

    fn log_of(&self, id: u32) -> PathBuf {
        self.path(&format!("log{id}.{}", self.lives[id as usize - 1]))
    }

    /// Power off, without a word.
    pub(crate) fn power_off(&mut self, id: u32) {
        self.powers.lock().remove(&id);
        if let Some(node) = self.nodes[id as usize - 1].take() {
            end(node);
        }
    }

    /// Our processes and corosync's in a node, as the host numbers them.
    fn pids(&mut self, id: u32, name: Option<&str>) -> Vec<Pid> {
        let power = Arc::clone(&self.node(id).power);
        let mut pids = power.processes();
        pids.retain(|pid| {
            let comm = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
            name.is_none_or(|name| comm.is_ok_and(|comm| comm.trim().starts_with(name)))
        });
        pids
    }

    /// Sends a signal to the processes of a node whose name begins so, or to all.
    pub(crate) fn signal(&mut self, id: u32, name: Option<&str>, signal: Signal) {
        let pids = self.pids(id, name);
        assert!(!pids.is_empty(), "node {id} has no process {name:?}");
        for pid in pids {
            let _gone = kill_process(pid, signal);
        }
    }

    /// The link between a node and the switch.
    pub(crate) fn link(&self, id: u32, up: bool) {
        self.in_switch(&format!("ip link set p{id} {}", if up { "up" } else { "down" }));
    }

    /// Tells our process on a node something.
    pub(crate) fn tell(&mut self, id: u32, line: &str) {
        let process = self.node(id).process.as_mut().unwrap();
        let stdin = process.stdin.as_mut().unwrap();
        writeln!(stdin, "{line}").unwrap();
        stdin.flush().unwrap();
    }

    /// The lines of the log of a node's present life.
    pub(crate) fn lines(&self, id: u32) -> Vec<String> {
        whole_lines(&self.log_of(id))
    }

    /// Waits for a line after the time `since` that contains `what`; its time.
    #[track_caller]
    pub(crate) fn wait_line(&self, id: u32, since: f64, what: &str, limit: Duration) -> f64 {
        wait_for(&format!("node {id}: {what:?}"), limit, || {
            let lines = self.lines(id);
            let times = lines
                .iter()
                .filter(|line| line.contains(what))
                .map(|line| time_of(line));
            times.into_iter().find(|time| *time >= since)
        })
    }

    /// All logs: node, life, lines.
    pub(crate) fn logs(&self) -> Vec<(u32, u32, Vec<String>)> {
        let mut logs = Vec::new();
        for id in 1..=self.count() {
            for life in 1..=self.lives[id as usize - 1] {
                logs.push((id, life, whole_lines(&self.path(&format!("log{id}.{life}")))));
            }
        }
        logs
    }

    /// When the machine of a life started again: what that life held ended before, fenced or not.
    pub(crate) fn end_of(&self, node: u32, life: u32) -> f64 {
        let next = self
            .boots
            .iter()
            .find(|boot| boot.0 == node && boot.1 == life + 1);
        next.map_or(f64::INFINITY, |boot| boot.2)
    }

    /// When which node was fenced.
    pub(crate) fn fences(&self) -> Vec<(f64, u32)> {
        let text = fs::read_to_string(self.path("fences")).unwrap_or_default();
        let words = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        words
            .map(|words| (words[0].parse().unwrap(), words[2].parse().unwrap()))
            .collect()
    }

    /// What a failed test wants to show.
    pub(crate) fn show(&mut self) {
        for id in 1..=self.count() {
            let process = self.nodes[id as usize - 1]
                .as_mut()
                .and_then(|node| node.process.as_mut());
            let Some(stdin) = process.and_then(|process| process.stdin.as_mut()) else {
                continue;
            };
            // Whoever is dead tells nothing any more.
            if writeln!(stdin, "status").is_ok() {
                let begin = Instant::now();
                let told = |lab: &Self| lab.lines(id).iter().any(|line| line.contains(" status "));
                while !told(self) && begin.elapsed() < Duration::from_secs(2) {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        let most = std::env::var("TAIL").map_or(25, |n| n.parse().unwrap());
        for entry in fs::read_dir(self.dir.path()).unwrap().flatten() {
            self.show_file(&entry.path(), most);
        }
        // What corosync did from its start on fits: it says little.
        for id in 1..=self.count() {
            self.show_file(&self.corosync_log(id), most.max(150));
            self.show_file(&self.pacemaker_log(id), most.max(150));
        }
    }
}

/// The name of our processes, as the kernel shortens it.
pub(crate) fn ours() -> String {
    let us = std::env::current_exe().unwrap();
    us.file_name()
        .unwrap()
        .to_string_lossy()
        .chars()
        .take(15)
        .collect()
}

/// The lines of a file that is being written.
fn whole_lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(str::to_owned).collect()
}

pub(crate) fn time_of(line: &str) -> f64 {
    line.split(' ')
        .next()
        .and_then(|time| time.parse().ok())
        .unwrap_or(0.0)
}
