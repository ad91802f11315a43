//! The power of the nodes, and a switch for it that fence agents can reach.
//!
//! An agent runs inside the namespaces of its node and cannot see the processes of another: it puts a file `off.NODE.TAG`
//! into the switch's folder and waits until that is called `done.NODE.TAG`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::lab::clock;

/// The power of the nodes that are on.
pub(crate) type Powers = Arc<Mutex<BTreeMap<u32, Arc<Power>>>>;

/// The power of one node in one of its lives: the first process of its namespace, with which all others end.
pub(crate) struct Power {
    init: u32,
    /// The same process, whoever gets its number later.
    handle: OwnedFd,
    /// What the kernel calls the namespace of its processes.
    space: PathBuf,
}

impl Power {
    /// `init`: the first process of the namespace, as the host numbers it.
    pub(crate) fn of(init: u32) -> Self {
        let pid = Pid::from_raw(init as i32).expect("a process");
        Self {
            init,
            handle: pidfd_open(pid, PidfdFlags::empty()).expect("the first process of a node"),
            space: fs::read_link(format!("/proc/{init}/ns/pid")).expect("its namespace"),
        }
    }

    /// Takes the power away.
    pub(crate) fn off(&self) {
        let _gone = pidfd_send_signal(&self.handle, Signal::KILL);
    }

    /// What runs in the node but for its first process, as the host numbers it.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|text| text.parse::<i32>().ok()) else {
                continue;
            };
            let inside = fs::read_link(entry.path().join("ns/pid")).is_ok_and(|its| its == self.space);
            if inside && pid != self.init as i32 {
                pids.extend(Pid::from_raw(pid));
            }
        }
        pids
    }

    /// Does nothing run any more? What is dead and not yet waited for does not: its parent may be stopped.
    fn is_off(&self) -> bool {
        self.processes().iter().all(|pid| {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
            let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
            state.is_none_or(|state| state.starts_with(['Z', 'X']))
        })
    }
}

/// Does what agents ask for, until it is dropped.
pub(crate) struct Switch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// `folder` takes the requests; whatever was done is written into `log`, one line `TIME fence NODE` each.
    pub(crate) fn start(folder: PathBuf, log: PathBuf, powers: Powers) -> Self {
        fs::create_dir_all(&folder).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Acquire) {
                serve(&folder, &log, &powers);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // Its panic was printed; ours would end the process.
            let _panicked = thread.join();
        }
    }
}

fn serve(folder: &Path, log: &Path, powers: &Powers) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let name = entry.file_name().into_string().expect("text");
        let Some(request) = name.strip_prefix("off.") else {
            continue;
        };
        let (node, _tag) = request.split_once('.').expect("off.NODE.TAG");
        let node: u32 = node.parse().expect("a node");
        let power = powers.lock().get(&node).cloned();
        if let Some(power) = power {
            let begin = Instant::now();
            power.off();
            while !power.is_off() {
                assert!(
                    begin.elapsed() < Duration::from_secs(30),
                    "node {node} does not go off"
                );
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let log = File::options().append(true).create(true).open(log);
        writeln!(log.unwrap(), "{:.6} fence {node}", clock()).unwrap();
        fs::rename(entry.path(), folder.join(format!("done.{request}"))).unwrap();
    }
}
