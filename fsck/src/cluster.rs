//! Which nodes of this machine's cluster have a volume mounted? Whoever mounts a volume of `lock_dlm` is in the lockspace
//! that its lock table names, for as long as it is mounted, also when it writes nothing.
//!
//! The only place of this package that knows a lock service; the library does without.

use dlm_client::NodeId;
use dlm_client::membership::{Group, MembershipError, lookup};
use gfs2_format::device::BlockDevice;
use gfs2_format::volume::read_superblock;
use std::fmt;

/// Nodes that have a volume mounted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Users {
    nodes: Vec<NodeId>,
    cluster: String,
    lockspace: String,
}

impl fmt::Display for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<String> = self.nodes.iter().map(|node| node.0.to_string()).collect();
        let word = if nodes.len() == 1 { "node" } else { "nodes" };
        let group = Group::Lockspace(self.lockspace.clone()).name();
        write!(
            f,
            "is in use by {word} {} of cluster {} (group {group})",
            nodes.join(", "),
            self.cluster
        )
    }
}

/// The nodes that have the volume mounted; `None` when nobody has, as far as can be known here. An error is why a cluster
/// that is there cannot be asked.
pub(crate) fn users_of(device: &dyn BlockDevice) -> Option<Result<Users, String>> {
    let (superblock, _) = read_superblock(device).ok()?;
    let (cluster, lockspace) = lockspace_of(&superblock.lockproto(), &superblock.locktable())?;
    match lookup::members(&cluster, &lockspace) {
        Ok(nodes) if nodes.is_empty() => None,
        Ok(nodes) => Some(Ok(Users {
            nodes,
            cluster,
            lockspace,
        })),
        Err(MembershipError::Unavailable { .. }) => None,
        Err(error) => Some(Err(error.to_string())),
    }
}

/// Cluster and lockspace of a volume that several nodes may mount. A check that was interrupted has left `fsck_dlm`.
fn lockspace_of(lockproto: &str, locktable: &str) -> Option<(String, String)> {
    if !matches!(lockproto, "lock_dlm" | "fsck_dlm") {
        return None;
    }
    let (cluster, lockspace) = locktable.split_once(':')?;
    let named = !cluster.is_empty() && !lockspace.is_empty();
    named.then(|| (cluster.to_owned(), lockspace.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shared_volumes_have_a_lockspace() {
        let known = Some(("lab".to_owned(), "fs".to_owned()));
        assert_eq!(lockspace_of("lock_dlm", "lab:fs"), known);
        assert_eq!(lockspace_of("fsck_dlm", "lab:fs"), known);
        for (proto, table) in [
            ("lock_nolock", "lab:fs"),
            ("fsck_nolock", "lab:fs"),
            ("lock_dlm", "unknown"),
            ("lock_dlm", ":fs"),
            ("lock_dlm", "lab:"),
            ("lock_dlm", ""),
        ] {
            assert_eq!(lockspace_of(proto, table), None, "{proto} {table}");
        }
    }

    #[test]
    fn users_are_named() {
        let users = |nodes: &[u32]| Users {
            nodes: nodes.iter().copied().map(NodeId).collect(),
            cluster: "lab".to_owned(),
            lockspace: "fs".to_owned(),
        };
        assert_eq!(
            users(&[2, 3]).to_string(),
            "is in use by nodes 2, 3 of cluster lab (group dlm:ls:fs)"
        );
        assert_eq!(
            users(&[2]).to_string(),
            "is in use by node 2 of cluster lab (group dlm:ls:fs)"
        );
    }
}
