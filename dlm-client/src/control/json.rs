//! Answers as JSON, one document each.

use std::fmt::Write;

use super::render::{flags, mode, name, wait};
use crate::NodeId;
use crate::controld::{ChangeStatus, FenceStatus, LockspaceStatus, NodeStatus, Status};
use crate::engine::{LockInfo, LockRole, ResourceInfo};

/// A string, with what JSON wants escaped.
fn string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if u32::from(c) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn array(items: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", items.into_iter().collect::<Vec<_>>().join(","))
}

fn object(fields: &[(&str, String)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("\"{name}\":{value}"))
        .collect();
    format!("{{{}}}", fields.join(","))
}

fn optional(value: Option<String>) -> String {
    value.unwrap_or_else(|| "null".to_owned())
}

fn ids(nodes: &[NodeId]) -> String {
    array(nodes.iter().map(|node| node.0.to_string()))
}

fn change(change: &ChangeStatus) -> String {
    let removed = change
        .removed
        .iter()
        .map(|(node, failed)| object(&[("node", node.0.to_string()), ("failed", failed.to_string())]));
    object(&[
        ("seq", change.seq.to_string()),
        ("started_count", change.info.started_count.to_string()),
        ("joined_count", change.info.joined_count.to_string()),
        ("members", ids(&change.info.members)),
        ("removed", array(removed)),
    ])
}

fn space(space: &LockspaceStatus) -> String {
    let waits = space.wait.as_ref().map(|waits| {
        let (word, nodes) = wait(waits);
        object(&[("for", string(&word)), ("nodes", ids(nodes))])
    });
    object(&[
        ("name", string(&space.name)),
        ("id", space.global_id.to_string()),
        ("flags", array(flags(space).1.into_iter().map(string))),
        ("wait", optional(waits)),
        ("since_seconds", space.since.as_secs().to_string()),
        ("change", optional(space.started.as_ref().map(change))),
        ("new_change", optional(space.next.as_ref().map(change))),
    ])
}

pub(super) fn ls(status: &Status) -> String {
    array(status.lockspaces.iter().map(space)) + "\n"
}

fn fencing(fencing: &FenceStatus) -> String {
    let failure = fencing
        .last_failure
        .map(|(by, result)| object(&[("by", by.0.to_string()), ("result", result.to_string())]));
    object(&[
        ("since_seconds", fencing.since.as_secs().to_string()),
        ("actor", optional(fencing.actor.map(|node| node.0.to_string()))),
        ("agent", optional(fencing.agent.as_deref().map(string))),
        ("pid", optional(fencing.pid.map(|pid| pid.to_string()))),
        ("attempts", fencing.attempts.to_string()),
        ("delayed", fencing.delayed.to_string()),
        ("last_failure", optional(failure)),
    ])
}

fn node(node: &NodeStatus) -> String {
    let seconds = |time: Option<std::time::Duration>| optional(time.map(|time| time.as_secs().to_string()));
    let fenced = node.fenced.map(|fenced| {
        object(&[
            ("by", fenced.by.0.to_string()),
            ("at", fenced.at.wall.to_string()),
        ])
    });
    object(&[
        ("node", node.node.0.to_string()),
        ("member", node.member.to_string()),
        ("killed", node.killed.to_string()),
        ("merged", node.merged.to_string()),
        ("added", seconds(node.added)),
        ("removed", seconds(node.removed)),
        ("failed", seconds(node.failed)),
        ("fenced", optional(fenced)),
        ("fencing", optional(node.fencing.as_ref().map(fencing))),
    ])
}

pub(super) fn status(us: NodeId, status: &Status) -> String {
    let text = object(&[
        ("node", us.0.to_string()),
        ("quorate", status.quorate.to_string()),
        ("now", status.now.as_secs().to_string()),
        ("ring", status.ring.to_string()),
        ("daemon_ring", status.daemon_ring.to_string()),
        ("fence_in_progress_unknown", status.fencing_unknown.to_string()),
        ("stateful_merge_wait", status.merge_wait.to_string()),
        ("nodes", array(status.nodes.iter().map(node))),
        (
            "to_do",
            array(status.fencing_lines().iter().map(|line| string(line))),
        ),
    ]);
    text + "\n"
}

pub(super) fn lines(lines: &[String]) -> String {
    array(lines.iter().map(|line| string(line))) + "\n"
}

fn lock(lock: &LockInfo) -> String {
    let (master, holder) = match lock.role {
        LockRole::Local => (None, None),
        LockRole::Held { master } => (master, None),
        LockRole::Mastered { holder } => (None, Some(holder)),
    };
    object(&[
        ("id", lock.id.0.to_string()),
        ("granted", string(mode(lock.granted))),
        ("requested", string(mode(lock.requested))),
        ("pid", lock.pid.to_string()),
        ("master", optional(master.map(|node| node.0.to_string()))),
        ("holder", optional(holder.map(|node| node.0.to_string()))),
        ("waits", lock.waits.to_string()),
    ])
}

pub(super) fn locks(resources: &[ResourceInfo]) -> String {
    let resources = resources.iter().map(|resource| {
        object(&[
            ("name", string(&name(resource))),
            ("master", optional(resource.master.map(|node| node.0.to_string()))),
            ("directory", resource.directory.0.to_string()),
            ("locks", array(resource.locks.iter().map(lock))),
        ])
    });
    array(resources) + "\n"
}
