//! Running fence agents: arguments on standard input, the exit status is the answer (FenceAgentAPI).
//!
//! Invariants: an agent is killed only while it has not been reaped, so never another process of the same number; its
//! end is reported once, unless it was stopped; its output goes nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;
use rustix::fs::{Access, access};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::conf::{DEFAULT_AGENT, DlmConf};
use crate::NodeId;

/// What an agent that cannot be run at all counts as.
pub(crate) const NOT_RUN: i32 = 127;

/// What to do about an agent that cannot be run.
pub(crate) fn repair(agent: &str) -> &'static str {
    if agent == DEFAULT_AGENT {
        "install it (package dlm-controld of Debian, dlm of Fedora, libdlm of openSUSE) where Pacemaker is, or name a \
         fence device in dlm.conf"
    } else {
        "install it, or correct dlm.conf"
    }
}

/// Can a program of that name, or at that path, be run? `search` is what `PATH` is.
fn is_there(agent: &str, search: &OsStr) -> bool {
    let runs = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    if agent.contains('/') {
        return runs(Path::new(agent));
    }
    std::env::split_paths(search).any(|folder| runs(&folder.join(agent)))
}

/// Agents that fence one of `nodes`, by the configuration, and are not there: one line each, which says what to do.
pub(crate) fn missing(conf: &DlmConf, nodes: &[NodeId], search: &OsStr) -> Vec<String> {
    if !conf.enable_fencing {
        return Vec::new();
    }
    let devices = nodes.iter().flat_map(|node| conf.devices(*node));
    let agents: BTreeSet<String> = devices.map(|device| device.agent).collect();
    let absent = agents.iter().filter(|agent| !is_there(agent, search));
    absent
        .map(|agent| {
            let default = if agent == DEFAULT_AGENT {
                ", which asks Pacemaker and is the default where dlm.conf names no fence device,"
            } else {
                ""
            };
            format!(
                "fence agent {agent}{default} is not there: {}; without it this node cannot fence",
                repair(agent)
            )
        })
        .collect()
}

/// An agent that runs; none once it is reaped.
type Running = Arc<Mutex<Option<Child>>>;

/// The agents that run. `K` names one.
#[derive(Debug)]
pub struct Agents<K> {
    running: BTreeMap<K, Running>,
}

impl<K> Default for Agents<K> {
    fn default() -> Self {
        Self {
            running: BTreeMap::new(),
        }
    }
}

fn start(agent: &str, input: &str) -> std::io::Result<Child> {
    let mut child = Command::new(agent)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    // A pipe takes 4096 bytes, the most an agent gets, at once; an agent that reads nothing is its own business.
    if let Some(mut stdin) = child.stdin.take() {
        let _unread = stdin.write_all(input.as_bytes());
    }
    Ok(child)
}

/// Waits for the end of an agent, without reaping it before the lock is held.
fn wait(running: &Running) -> i32 {
    let pid = running.lock().as_ref().and_then(pid_of);
    if let Some(pid) = pid {
        while let Err(rustix::io::Errno::INTR) =
            waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        {}
    }
    let child = running.lock().take();
    let status = child.and_then(|mut child| child.wait().ok());
    status.and_then(|status| status.code()).unwrap_or(-1)
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

impl<K: Ord + Copy + Send + 'static> Agents<K> {
    /// Starts an agent; its process. `done` is called with its exit status from a thread of its own: 127 when it cannot
    /// be run at all, -1 when a signal ended it.
    ///
    /// # Errors
    /// Why it cannot be run; `done` is called all the same.
    pub fn run<F>(&mut self, key: K, agent: &str, input: &str, done: F) -> Result<u32, String>
    where
        F: FnOnce(K, i32) + Send + 'static,
    {
        let child = match start(agent, input) {
            Ok(child) => child,
            Err(error) => {
                done(key, NOT_RUN);
                return Err(format!(
                    "fence agent {agent} cannot be run: {error}; {}",
                    repair(agent)
                ));
            }
        };
        let pid = child.id();
        let running: Running = Arc::new(Mutex::new(Some(child)));
        self.running.insert(key, Arc::clone(&running));
        let named = thread::Builder::new().name("fence-agent".to_owned());
        let spawned = named.spawn(move || done(key, wait(&running)));
        spawned
            .map(|_detached| pid)
            .map_err(|error| format!("fence agent {agent}: no thread to wait for it: {error}"))
    }

    /// Kills an agent, with what it started.
    pub fn stop(&mut self, key: K) {
        let Some(running) = self.running.remove(&key) else {
            return;
        };
        let child = running.lock();
        if let Some(pid) = child.as_ref().and_then(pid_of) {
            // It may have ended by itself: it is not reaped while the lock is held, so the number is still its own.
            let _gone = kill_process_group(pid, Signal::KILL);
        }
    }

    /// Forgets an agent that has ended.
    pub fn ended(&mut self, key: K) {
        self.running.remove(&key);
    }
}

/// Undoes an earlier fencing of our node with the devices that are configured for that, before it joins anything.
///
/// # Errors
/// The first agent that fails: the node must not join.
pub fn unfence(conf: &DlmConf, us: NodeId) -> Result<(), String> {
    for device in conf.devices(us).iter().filter(|device| device.unfence) {
        let input = device.input(us, "action=on\n");
        let ended = start(&device.agent, &input).and_then(|mut child| child.wait());
        match ended {
            Ok(status) if status.success() => {}
            Ok(status) => {
                return Err(format!(
                    "unfencing with {} ({}) failed: {status}; the node stays out of the cluster until it works",
                    device.agent, device.name
                ));
            }
            Err(error) => {
                return Err(format!(
                    "fence agent {} cannot be run: {error}; {}",
                    device.agent,
                    repair(&device.agent)
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "agent/tests.rs"]
mod tests;
