//! Answers as text, in the lines that `dlm_tool` prints and that resource agents look for.

use std::fmt::Write;

use crate::controld::{ChangeStatus, LockspaceStatus, NodeStatus, Status, Wait};
use crate::engine::{LockInfo, LockRole, ResourceInfo};
use crate::{Mode, NodeId};

/// Flags of a lockspace, by their numbers in the stock daemon's interface.
const FLAGS: [(u32, &str); 4] = [
    (1, "joining"),
    (2, "leaving"),
    (4, "kern_stop"),
    (16, "need_plock"),
];

/// The flags of a lockspace.
pub(super) fn flags(space: &LockspaceStatus) -> (u32, Vec<&'static str>) {
    let set = [space.joining, space.leaving, space.stopped, !space.has_plocks];
    let on = || FLAGS.iter().zip(set).filter(|(_, on)| *on).map(|(flag, _)| flag);
    (
        on().map(|(bit, _)| bit).sum(),
        on().map(|(_, name)| *name).collect(),
    )
}

/// What a lockspace waits for, in the stock tool's word, with the nodes it waits for.
pub(super) fn wait(wait: &Wait) -> (String, &[NodeId]) {
    match wait {
        Wait::Ring => ("ringid".to_owned(), &[]),
        Wait::Quorum => ("quorum".to_owned(), &[]),
        Wait::Fencing(nodes) => ("fencing".to_owned(), nodes),
        Wait::Messages(nodes) => (format!("messages {}", nodes.len()), nodes),
    }
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().fold(String::new(), |mut text, node| {
        let _ = write!(text, "{} ", node.0);
        text
    })
}

fn change(title: &str, change: &ChangeStatus, out: &mut String) {
    let info = &change.info;
    let _ = writeln!(
        out,
        "{title:<14}member {} joined {} remove {} failed {} seq {},{}",
        info.member_count,
        info.joined_count,
        info.remove_count,
        info.failed_count,
        info.started_count,
        change.seq
    );
}

/// `dlm_tool ls`.
pub(super) fn ls(status: &Status) -> String {
    let mut out = String::new();
    if !status.lockspaces.is_empty() {
        out.push_str("dlm lockspaces\n");
    }
    for space in &status.lockspaces {
        let (bits, names) = flags(space);
        let _ = writeln!(out, "name          {}", space.name);
        let _ = writeln!(out, "id            0x{:08x}", space.global_id);
        let _ = writeln!(out, "flags         0x{bits:08x} {}", names.join(","));
        if let Some(started) = &space.started {
            change("change", started, &mut out);
            let _ = writeln!(out, "members       {}", list(&started.info.members));
        }
        if let Some(next) = &space.next {
            change("new change", next, &mut out);
        }
        if let Some(waits) = &space.wait {
            let (word, nodes) = wait(waits);
            let _ = writeln!(out, "new status    wait {word}");
            if !nodes.is_empty() {
                let _ = writeln!(out, "waiting for   {}", list(nodes));
            }
        }
        if let Some(next) = &space.next {
            let _ = writeln!(out, "new members   {}", list(&next.info.members));
        }
        out.push('\n');
    }
    out
}

fn node_line(node: &NodeStatus, out: &mut String) {
    let seconds = |time: Option<std::time::Duration>| time.map_or(0, |time| time.as_secs());
    let _ = writeln!(
        out,
        "node {} {} add {} rem {} fail {} fence {} at {} {}",
        node.node.0,
        if node.member { "M" } else { "X" },
        seconds(node.added),
        seconds(node.removed),
        seconds(node.failed),
        node.fenced.map_or(0, |fenced| fenced.by.0),
        node.fenced.map_or(0, |fenced| fenced.at.mono.as_secs()),
        node.fenced.map_or(0, |fenced| fenced.at.wall),
    );
}

/// `dlm_tool status -v`, and what is to be done about fencing that is awaited.
pub(super) fn status(us: NodeId, status: &Status) -> String {
    let mut out = String::new();
    let bit = u8::from;
    let _ = writeln!(
        out,
        "cluster nodeid {} quorate {} ring seq {} {}",
        us.0,
        bit(status.quorate),
        status.ring,
        status.daemon_ring
    );
    let agents = status.nodes.iter().filter_map(|node| node.fencing.as_ref()?.pid);
    let _ = writeln!(
        out,
        "daemon now {} fence_pid {} {}",
        status.now.as_secs(),
        agents.min().unwrap_or(0),
        if status.fencing_unknown { "fence_init" } else { "" }
    );
    let members = status.nodes.iter().filter(|node| node.member).count();
    let _ = writeln!(
        out,
        " member_count={members} daemon_ringid={} cluster_ringid={} quorate={} fence_in_progress_unknown={} \
         stateful_merge_wait={} ",
        status.daemon_ring,
        status.ring,
        bit(status.quorate),
        bit(status.fencing_unknown),
        bit(status.merge_wait)
    );
    for node in &status.nodes {
        node_line(node, &mut out);
    }
    for line in status.fencing_lines() {
        let _ = writeln!(out, "{line}");
    }
    if status.merge_wait {
        out.push_str(
            "partitions that both have state have merged: waiting for the other side to throw this node out; if it \
             does not, reset one side\n",
        );
    }
    out
}

pub(super) fn lines(lines: &[String]) -> String {
    lines.iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{line}");
        text
    })
}

/// A name as it can be shown.
pub(super) fn name(resource: &ResourceInfo) -> String {
    resource.name.as_bytes().escape_ascii().to_string()
}

pub(super) const fn mode(mode: Option<Mode>) -> &'static str {
    match mode {
        None => "IV",
        Some(Mode::Nl) => "NL",
        Some(Mode::Cr) => "CR",
        Some(Mode::Cw) => "CW",
        Some(Mode::Pr) => "PR",
        Some(Mode::Pw) => "PW",
        Some(Mode::Ex) => "EX",
    }
}

fn lock(lock: &LockInfo, name: &str, out: &mut String) {
    let role = match lock.role {
        LockRole::Local => "master 0".to_owned(),
        LockRole::Held { master } => format!("master {}", master.map_or(-1, |node| i64::from(node.0))),
        LockRole::Mastered { holder } => format!("MSTCPY {}", holder.0),
    };
    let (granted, requested) = (mode(lock.granted), mode(lock.requested));
    let (id, pid) = (lock.id.0, lock.pid);
    let _ = writeln!(
        out,
        "id {id:08x} gr {granted} rq {requested} pid {pid} {role} \"{name}\""
    );
}

/// `dlm_tool lockdump -M`.
pub(super) fn locks(resources: &[ResourceInfo]) -> String {
    let mut out = String::new();
    for resource in resources {
        let name = name(resource);
        for one in &resource.locks {
            lock(one, &name, &mut out);
        }
    }
    out
}
