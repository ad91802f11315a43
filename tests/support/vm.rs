//! One emulated machine (QEMU, TCG) on raw images, driven by scripts; dropping it is a power cut.
//!
//! Invariants:
//! * an image is opened without host cache or image lock: what the guest's disk completed is in the file,
//!   at any moment, also after `kill -9`;
//! * no guest has a network: two nodes of a cluster share a wire, a socket in the scratch folder, and more a hub of such;
//! * the clock is the HPET: under load the guest calibrates the TSC wrong by a factor.
//!
//! `LAB_PCAP=FOLDER` captures what passes over the wire.

use super::guest::{Guest, Kernel};
use super::host::{Host, Ran, SETUP, checkout, wait_within};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const BOOT_LIMIT: Duration = Duration::from_secs(180);
const RUN_LIMIT: Duration = Duration::from_secs(120);
const AGENT_LIMIT: Duration = Duration::from_secs(60);
const CUT_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// What in a kernel log means that the filesystem or the kernel met something it should not.
const ALARMS: [&str; 9] = [
    "BUG:",
    "Oops",
    "WARNING:",
    "Call Trace",
    "fatal:",
    "withdraw",
    "consistency",
    "assertion",
    "I/O error",
];

/// Boots of guests go one after another: two at once on few cores take longer than twice one.
static BOOTING: Mutex<()> = Mutex::new(());

/// A disk of a running guest.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Its node in the guest.
    pub node: String,
    id: String,
}

/// A running guest.
#[derive(Debug)]
pub struct Vm {
    guest: Guest,
    dir: TempDir,
    /// The guard around QEMU, and the pipe whose end is the power cut.
    child: Mutex<Child>,
    power: Option<ChildStdin>,
    agent: Mutex<UnixStream>,
    next: AtomicU32,
}

impl Vm {
    /// Boots this kernel with these images as /dev/vda, /dev/vdb ... and waits until it takes commands.
    #[track_caller]
    pub fn start(kernel: Kernel, disks: &[&Path]) -> Vm {
        Vm::boot(kernel, disks, 1, None)
    }

    /// Boots two nodes, n1 and n2, on the same images and joined by a wire (10.77.0.1 and 10.77.0.2).
    #[track_caller]
    pub fn start_pair(kernel: Kernel, disks: &[&Path]) -> [Vm; 2] {
        let first = Vm::boot(kernel, disks, 1, Some("server=on,addr.path=wire.sock".to_owned()));
        let second = Vm::start_beside(&first, disks);
        [first, second]
    }

    /// Boots a node, for the first time or again, on a hub.
    #[track_caller]
    pub fn start_on(hub: &Hub, kernel: Kernel, node: u8) -> Vm {
        Vm::boot(kernel, &[], node, Some(hub.port(node)))
    }

    /// Boots n2, for the first time or again, on the wire of an n1 that `start_pair` booted.
    #[track_caller]
    pub fn start_beside(first: &Vm, disks: &[&Path]) -> Vm {
        let folder = first.dir.path().file_name();
        let folder = folder.expect("a scratch folder").to_string_lossy().into_owned();
        let wire = format!("server=off,addr.path=../{folder}/wire.sock");
        Vm::boot(first.guest.kernel, disks, 2, Some(wire))
    }

    #[track_caller]
    fn boot(kernel: Kernel, disks: &[&Path], node: u8, wire: Option<String>) -> Vm {
        let guest = Guest::build(kernel);
        let dir = super::scratch("vm");
        fs::create_dir_all(dir.path().join("share/.lab")).expect("the share");
        let _turn = BOOTING.lock().unwrap_or_else(|e| e.into_inner());
        let stderr = File::create(dir.path().join("qemu.err")).expect("a log file");
        let mut child = Command::new(checkout().join("tests/lab/qemu-guard.sh"))
            .arg("qemu-system-x86_64")
            .args(arguments(&guest, dir.path(), disks, node))
            .args(network(node, wire))
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run the emulator: {e}; {SETUP}"));
        let power = child.stdin.take();
        let agent = connect(dir.path(), "agent.sock", &mut child);
        let vm = Vm {
            guest,
            dir,
            child: Mutex::new(child),
            power,
            agent: Mutex::new(agent),
            next: AtomicU32::new(0),
        };
        let ready = vm.lab_file("ready");
        vm.wait_until("the guest to boot", BOOT_LIMIT, || ready.exists().then_some(()));
        vm
    }

    /// Runs a script in the guest's bash; 124 is "no end in two minutes", 125 "the guest is gone".
    #[track_caller]
    pub fn run(&self, script: &str) -> Ran {
        self.run_for(script, RUN_LIMIT)
    }

    /// Runs a script with a time limit of its own.
    #[track_caller]
    pub fn run_for(&self, script: &str, limit: Duration) -> Ran {
        self.result(&self.spawn(script), limit)
    }

    /// Runs a script that must succeed; returns what it printed.
    #[track_caller]
    pub fn check(&self, script: &str) -> String {
        self.check_for(script, RUN_LIMIT)
    }

    /// Runs a script that must succeed within a time limit of its own.
    #[track_caller]
    pub fn check_for(&self, script: &str, limit: Duration) -> String {
        let ran = self.run_for(&format!("set -e\n{script}"), limit);
        assert!(
            ran.rc == 0,
            "guest {}: exit {} from:\n{script}\n{}",
            self.guest.kernel,
            ran.rc,
            ran.output
        );
        ran.output
    }

    /// Starts a script and returns its id, for `result`, as soon as the guest has taken it.
    #[track_caller]
    pub fn spawn(&self, script: &str) -> String {
        let id = format!("{:04}", self.next.fetch_add(1, Ordering::Relaxed));
        fs::write(self.lab_file(&format!("{id}.sh")), format!("{script}\n")).expect("a script on the share");
        let mut agent = self.agent.lock().unwrap_or_else(|e| e.into_inner());
        agent
            .set_write_timeout(Some(AGENT_LIMIT))
            .expect("a socket option");
        let sent = agent.write_all(format!("{id}\n").as_bytes());
        sent.unwrap_or_else(|e| panic!("the guest's agent: {e}{}", self.last_words()));
        let (wanted, mut heard) = (format!("GOT {id}"), Vec::new());
        agent
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a socket option");
        self.wait_until("the guest to take a command", AGENT_LIMIT, || {
            let mut buf = [0; 256];
            match agent.read(&mut buf) {
                Ok(n) => heard.extend_from_slice(&buf[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) => panic!("the guest's agent: {e}{}", self.last_words()),
            }
            heard
                .windows(wanted.len())
                .any(|w| w == wanted.as_bytes())
                .then_some(())
        });
        id
    }

    /// Waits for a script that `spawn` started; 124 and 125 as for `run`.
    #[track_caller]
    pub fn result(&self, id: &str, limit: Duration) -> Ran {
        let (rc_file, end) = (self.lab_file(&format!("{id}.rc")), Instant::now() + limit);
        let rc = loop {
            if let Some(rc) = fs::read_to_string(&rc_file)
                .ok()
                .and_then(|t| t.trim().parse().ok())
            {
                break rc;
            }
            if self.exit_status().is_some() {
                break 125;
            }
            if Instant::now() > end {
                break 124;
            }
            std::thread::sleep(POLL);
        };
        let output = fs::read(self.lab_file(&format!("{id}.out"))).unwrap_or_default();
        Ran {
            rc,
            output: String::from_utf8_lossy(&output).into_owned(),
        }
    }

    /// Plugs in an image; returns the disk.
    #[track_caller]
    pub fn attach(&self, image: &Path) -> Disk {
        let id = format!("plug{}", self.next.fetch_add(1, Ordering::Relaxed));
        self.qmp("blockdev-add", blockdev(&id, image));
        self.qmp(
            "device_add",
            json!({"driver": "virtio-blk-pci", "drive": id, "id": id, "share-rw": true, "serial": id}),
        );
        let find = format!(
            "i=0; while [ $i -lt 200 ]; do for s in /sys/block/vd*/serial; do \
             [ \"$(cat $s 2>/dev/null)\" != {id} ] || {{ basename ${{s%/serial}}; exit 0; }}; done; \
             sleep 0.05; i=$((i+1)); done; exit 1"
        );
        let name = self.check(&find);
        Disk {
            node: format!("/dev/{}", name.trim()),
            id,
        }
    }

    /// Unplugs a disk, which must not be mounted.
    #[track_caller]
    pub fn detach(&self, disk: Disk) {
        self.qmp("device_del", json!({"id": disk.id}));
        // The guest lets the device go in its own time; until then its image is in use.
        let end = Instant::now() + AGENT_LIMIT;
        while let Err(why) = self.try_qmp("blockdev-del", json!({"node-name": disk.id})) {
            assert!(Instant::now() < end, "{} stays in use: {why}", disk.node);
            std::thread::sleep(POLL);
        }
    }

    /// The folder the guest sees as /host.
    pub fn share(&self) -> PathBuf {
        self.dir.path().join("share")
    }

    /// Kernel and version.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Everything the guest's console has shown.
    pub fn console(&self) -> String {
        let bytes = fs::read(self.dir.path().join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What the kernel said of GFS2, without time stamps.
    pub fn gfs2_log(&self) -> Vec<String> {
        let log = self.check("dmesg");
        let lines = log.lines().filter(|l| l.contains("gfs2") || l.contains("GFS2"));
        lines
            .map(|l| l.split_once("] ").map_or(l, |(_, text)| text).to_owned())
            .collect()
    }

    /// Fails the test when the kernel complained of anything.
    #[track_caller]
    pub fn assert_kernel_content(&self) {
        let log = self.console();
        let bad: Vec<&str> = log
            .lines()
            .filter(|l| ALARMS.iter().any(|a| l.contains(a)))
            .collect();
        assert!(
            bad.is_empty(),
            "the {} kernel complained:\n{}",
            self.guest.kernel,
            bad.join("\n")
        );
    }

    /// Does something while the guest stands still.
    #[track_caller]
    pub fn paused<T>(&self, what: impl FnOnce() -> T) -> T {
        self.qmp("stop", json!({}));
        let done = what();
        self.qmp("cont", json!({}));
        done
    }

    /// Power cut: QEMU is killed, nothing is flushed by the guest.
    pub fn crash(mut self) {
        self.cut();
    }

    /// The same, and the share stays to be read.
    pub fn cut(&mut self) {
        self.power = None;
        let child = self.child.get_mut().unwrap_or_else(|e| e.into_inner());
        // What the kernel keeps (a disk that does not answer) is told and left, rather than waited for without end.
        let said = match wait_within(child, CUT_LIMIT) {
            Ok(Some(_)) => return,
            Ok(None) => format!("the emulator is still there {CUT_LIMIT:?} after its power was cut"),
            Err(e) => format!("waiting for the emulator: {e}"),
        };
        if std::thread::panicking() {
            eprintln!("{said}");
        } else {
            panic!("{said}");
        }
    }

    fn exit_status(&self) -> Option<std::process::ExitStatus> {
        let mut child = self.child.lock().unwrap_or_else(|e| e.into_inner());
        child.try_wait().expect("waiting for the emulator")
    }

    fn lab_file(&self, name: &str) -> PathBuf {
        self.dir.path().join("share/.lab").join(name)
    }

    #[track_caller]
    fn wait_until<T>(&self, what: &str, limit: Duration, mut done: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + limit;
        loop {
            if let Some(value) = done() {
                return value;
            }
            if let Some(status) = self.exit_status() {
                panic!(
                    "waiting for {what}: the emulator is gone ({status}){}",
                    self.last_words()
                );
            }
            assert!(
                Instant::now() < end,
                "waited {limit:?} for {what}{}",
                self.last_words()
            );
            std::thread::sleep(POLL);
        }
    }

    fn last_words(&self) -> String {
        let error = fs::read_to_string(self.dir.path().join("qemu.err")).unwrap_or_default();
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let alarm = lines.iter().position(|l| ALARMS.iter().any(|a| l.contains(a)));
        let from = alarm.unwrap_or(lines.len().saturating_sub(30));
        let shown = lines[from..].iter().take(60).copied().collect::<Vec<_>>();
        let kernel = self.guest.kernel;
        format!(
            "\n{error}from the console of the {kernel} guest:\n{}",
            shown.join("\n")
        )
    }

    #[track_caller]
    fn qmp(&self, command: &str, arguments: Value) -> Value {
        self.try_qmp(command, arguments)
            .unwrap_or_else(|e| panic!("QMP {command}: {e}"))
    }

    fn try_qmp(&self, command: &str, arguments: Value) -> Result<Value, String> {
        let end = Instant::now() + AGENT_LIMIT;
        let socket = loop {
            match connect_once(self.dir.path(), "qmp.sock") {
                Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < end => {
                    std::thread::sleep(POLL)
                }
                other => break other.map_err(|e| format!("the emulator's monitor: {e}"))?,
            }
        };
        for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
            set(&socket, Some(AGENT_LIMIT)).expect("a socket option");
        }
        let mut reader = BufReader::new(&socket);
        let mut line = String::new();
        reader.read_line(&mut line).map_err(|e| e.to_string())?;
        let mut answer = Value::Null;
        let enter = json!({"execute": "qmp_capabilities"});
        for message in [enter, json!({"execute": command, "arguments": arguments})] {
            writeln!(&socket, "{message}").map_err(|e| e.to_string())?;
            answer = loop {
                line.clear();
                let n = reader.read_line(&mut line).map_err(|e| e.to_string())?;
                let value: Value = serde_json::from_str(&line).map_err(|e| format!("{e} in {n} bytes"))?;
                if value.get("event").is_none() {
                    break value;
                }
            };
        }
        match answer.get("error") {
            Some(error) => Err(error["desc"].as_str().unwrap_or("no reason given").to_owned()),
            None => Ok(answer["return"].clone()),
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.last_words());
        }
        self.cut();
    }
}

/// The wire of more than two nodes: an emulator without a machine, which gives each frame to all others.
#[derive(Debug)]
pub struct Hub {
    dir: TempDir,
    child: Child,
    power: Option<ChildStdin>,
}

impl Hub {
    /// A hub for n1 up to n`nodes`.
    #[track_caller]
    pub fn start(nodes: u8) -> Hub {
        let dir = super::scratch("hub");
        let stderr = File::create(dir.path().join("qemu.err")).expect("a log file");
        let mut hub = Command::new(checkout().join("tests/lab/qemu-guard.sh"));
        hub.args(["qemu-system-x86_64", "-nodefaults", "-no-user-config"]);
        hub.args(["-M", "none", "-display", "none"]);
        for node in 1..=nodes {
            let wire = format!("stream,id=wire{node},server=on,addr.type=unix,addr.path=wire{node}.sock");
            hub.args(["-netdev", &wire]);
            hub.args([
                "-netdev",
                &format!("hubport,id=port{node},hubid=0,netdev=wire{node}"),
            ]);
        }
        let mut child = hub
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run the emulator: {e}; {SETUP}"));
        let power = child.stdin.take();
        let mut hub = Hub { dir, child, power };
        let end = Instant::now() + AGENT_LIMIT;
        while !(1..=nodes).all(|node| hub.dir.path().join(format!("wire{node}.sock")).exists()) {
            let gone = hub.child.try_wait().expect("waiting for the hub");
            if gone.is_some() || Instant::now() > end {
                let said = fs::read_to_string(hub.dir.path().join("qemu.err")).unwrap_or_default();
                panic!("the hub did not start in {AGENT_LIMIT:?} ({gone:?}):\n{said}{SETUP}");
            }
            std::thread::sleep(POLL);
        }
        hub
    }

    fn port(&self, node: u8) -> String {
        let folder = self.dir.path().file_name();
        let folder = folder.expect("a scratch folder").to_string_lossy();
        format!("server=off,addr.path=../{folder}/wire{node}.sock")
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.power = None;
        if !matches!(wait_within(&mut self.child, CUT_LIMIT), Ok(Some(_))) {
            eprintln!("the hub is still there {CUT_LIMIT:?} after its power was cut");
        }
    }
}

fn blockdev(id: &str, image: &Path) -> Value {
    let file = json!({"driver": "file", "filename": absolute(image), "aio": "threads", "locking": "off",
        "cache": {"direct": true, "no-flush": true}});
    // Writes go to the file at once, so a flush of the host would only take time. In that time the kernel (6.1) may look
    // for the header its replay has just sent, not find it, and refuse the mount.
    let cache = json!({"direct": true, "no-flush": true});
    json!({"driver": "raw", "node-name": id, "cache": cache, "file": file})
}

fn absolute(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn arguments(guest: &Guest, dir: &Path, disks: &[&Path], node: u8) -> Vec<String> {
    let comma = |p: &Path| p.display().to_string().replace(',', ",,");
    let kernel_line = "console=ttyS0 panic=-1 loglevel=7 nokaslr mitigations=off random.trust_cpu=on audit=0 \
        tsc=unstable clocksource=hpet no_timer_check init_on_alloc=0 cryptomgr.notests rodata=off lab.node=";
    let fixed = "-nodefaults -no-user-config -no-reboot -display none -machine pc,graphics=off,hpet=on \
        -accel tcg -cpu max -m 512 -smp 1 -object rng-random,filename=/dev/urandom,id=rng0 \
        -device virtio-rng-pci,rng=rng0 -chardev file,id=con,path=console.log -serial chardev:con \
        -chardev socket,id=agent,path=agent.sock,server=on,wait=off -serial chardev:agent \
        -qmp unix:qmp.sock,server=on,wait=off -device virtio-9p-pci,fsdev=share,mount_tag=host";
    let mut args: Vec<String> = fixed.split_whitespace().map(str::to_owned).collect();
    let mut add = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    let share = comma(&absolute(&dir.join("share")));
    add(
        "-fsdev",
        format!("local,id=share,path={share},security_model=none,multidevs=remap"),
    );
    add("-kernel", guest.vmlinux.display().to_string());
    add("-initrd", guest.initrd.display().to_string());
    add("-append", format!("{kernel_line}{node}"));
    for (i, disk) in disks.iter().enumerate() {
        add("-blockdev", blockdev(&format!("disk{i}"), disk).to_string());
        add(
            "-device",
            format!("virtio-blk-pci,drive=disk{i},share-rw=on,serial=disk{i}"),
        );
    }
    args
}

fn network(node: u8, wire: Option<String>) -> Vec<String> {
    let Some(wire) = wire else { return Vec::new() };
    let netdev = format!("stream,id=wire,addr.type=unix,{wire}");
    let device = format!("virtio-net-pci,netdev=wire,romfile=,mac=52:54:00:77:00:{node:02x}");
    let mut arguments = ["-netdev", &netdev, "-device", &device]
        .map(str::to_owned)
        .to_vec();
    if let Some(folder) = std::env::var_os("LAB_PCAP") {
        let file = Path::new(&folder).join(format!("n{node}.pcap"));
        arguments.push("-object".to_owned());
        arguments.push(format!("filter-dump,id=dump,netdev=wire,file={}", file.display()));
    }
    arguments
}

/// Connects through the folder's descriptor: the path of a socket may have 107 bytes only. `WouldBlock` when too many
/// wait for the emulator already, where connect(2) itself would wait without end.
fn connect_once(dir: &Path, socket: &str) -> std::io::Result<UnixStream> {
    let folder = File::open(dir)?;
    let path = format!("/proc/self/fd/{}/{socket}", folder.as_raw_fd());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::connect(&fd, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[track_caller]
fn connect(dir: &Path, socket: &str, child: &mut Child) -> UnixStream {
    let end = Instant::now() + AGENT_LIMIT;
    loop {
        match connect_once(dir, socket) {
            Ok(stream) => return stream,
            Err(e) => {
                let gone = child.try_wait().expect("waiting for the emulator");
                if gone.is_some() || Instant::now() > end {
                    let said = fs::read_to_string(dir.join("qemu.err")).unwrap_or_default();
                    panic!("the emulator did not start ({gone:?}, {e}):\n{said}{SETUP}");
                }
                std::thread::sleep(POLL);
            }
        }
    }
}

/// The host's version of the emulator, for what a test prints of its surroundings.
pub fn emulator() -> String {
    let text = Host::new("qemu-system-x86_64").arg("--version").check();
    text.lines().next().unwrap_or_default().to_owned()
}
