//! Who is in a lockspace, asked by a program that is in none and joins nothing.
//!
//! Two places are asked: the kernel of this machine (`/sys/kernel/dlm`, `/sys/kernel/config/dlm`), and the corosync of
//! this machine, whose group `dlm:ls:NAME` has a process of every node that is in the lockspace (dlm_controld, or ours).
//! Nodes that this machine's corosync does not see (another partition, another cluster) are not found: an empty list is
//! no proof that nobody is there.

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::{Group, MembershipError, corosync, is_meant};
use crate::NodeId;

/// How long corosync may take to answer; one that does not run is known at once.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The lockspace of the kernel.
const SPACES: &str = "/sys/kernel/dlm";
/// What the kernel was told of its cluster.
const CONFIG: &str = "/sys/kernel/config/dlm/cluster";

/// The nodes that are in lockspace `lockspace` of cluster `cluster`, ascending, as far as this machine knows. Takes no
/// longer than [`PATIENCE`].
///
/// # Errors
/// [`MembershipError::Unavailable`]: this machine is in no cluster that we may ask, or in another one;
/// [`MembershipError::Failed`]: its corosync runs, but does not answer. Either way nothing is known.
pub fn members(cluster: &str, lockspace: &str) -> Result<Vec<NodeId>, MembershipError> {
    let here = of_kernel(Path::new(SPACES), Path::new(CONFIG), cluster, lockspace);
    let (tell, told) = mpsc::channel();
    let (cluster, group) = (cluster.to_owned(), Group::Lockspace(lockspace.to_owned()));
    // Its library waits without end for a corosync that was stopped.
    let asking = thread::Builder::new()
        .name("corosync-lookup".to_owned())
        .spawn(move || tell.send(corosync::members(&cluster, &group)));
    let silent = |reason: String| MembershipError::Failed {
        service: "corosync".to_owned(),
        call: "the question who is in a group",
        reason,
    };
    let found = match asking {
        Ok(_) => told
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| Err(silent(format!("no answer in {} seconds", PATIENCE.as_secs())))),
        Err(error) => Err(silent(error.to_string())),
    };
    match (found, here) {
        (Ok(mut nodes), here) => {
            nodes.extend(here);
            nodes.sort_unstable();
            nodes.dedup();
            Ok(nodes)
        }
        (Err(_), Some(us)) => Ok(vec![us]),
        (Err(error), None) => Err(error),
    }
}

/// This machine's node, if its kernel is in the lockspace.
fn of_kernel(spaces: &Path, config: &Path, cluster: &str, lockspace: &str) -> Option<NodeId> {
    // Names of files, nothing that leads elsewhere.
    let is_name = !lockspace.is_empty() && !lockspace.contains('/') && !lockspace.starts_with('.');
    if !is_name || !spaces.join(lockspace).is_dir() {
        return None;
    }
    let name = std::fs::read_to_string(config.join("cluster_name")).ok()?;
    is_meant(name.trim_end(), cluster).ok()?;
    let comms = std::fs::read_dir(config.join("comms")).ok()?;
    comms.flatten().find_map(|comm| {
        let number = |file: &str| {
            let text = std::fs::read_to_string(comm.path().join(file)).ok()?;
            text.trim().parse::<u32>().ok()
        };
        (number("local")? == 1).then(|| number("nodeid").map(NodeId))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_kernel_is_asked_for_its_lockspace_cluster_and_node() {
        let dir = tempfile::tempdir().unwrap();
        let (spaces, config) = (dir.path().join("dlm"), dir.path().join("cluster"));
        let ask = |cluster, space| of_kernel(&spaces, &config, cluster, space);
        assert_eq!(ask("lab", "fs"), None, "no DLM at all");
        fs::create_dir_all(spaces.join("fs")).unwrap();
        assert_eq!(ask("lab", "fs"), None, "no configuration");
        for (node, local) in [(3, 0), (5, 1)] {
            let comm = config.join(format!("comms/{node}"));
            fs::create_dir_all(&comm).unwrap();
            fs::write(comm.join("nodeid"), format!("{node}\n")).unwrap();
            fs::write(comm.join("local"), format!("{local}\n")).unwrap();
        }
        fs::write(config.join("cluster_name"), "lab\n").unwrap();
        assert_eq!(ask("lab", "fs"), Some(NodeId(5)));
        for (cluster, space) in [
            ("other", "fs"),
            ("lab", "else"),
            ("lab", ""),
            ("lab", "../dlm/fs"),
            ("lab", ".."),
        ] {
            assert_eq!(ask(cluster, space), None, "{cluster}:{space}");
        }
    }
}
