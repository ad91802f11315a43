//! `gfs2ctl dlm`: asks the lock daemon of a node of ours.

use clap::{Parser, Subcommand};
use dlm_client::control;
use std::path::{Path, PathBuf};

/// Ask the lock daemon of a mounted node
#[derive(Debug, Parser)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// The node to ask, where several run on this host
    #[arg(long, value_name = "NODEID", global = true, conflicts_with = "socket")]
    node: Option<u32>,
    /// Its control socket
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the lockspaces, their members, and what they wait for
    Ls,
    /// Show quorum, nodes, and fencing that is awaited
    Status {
        /// Accepted for those who know dlm_tool: everything is shown anyway
        #[arg(short)]
        verbose: bool,
    },
    /// Print what the daemon said last
    Dump,
    /// List the locks of a lockspace
    Locks {
        /// The lockspace
        lockspace: String,
    },
    /// List the POSIX locks of a lockspace
    Plocks {
        /// The lockspace
        lockspace: String,
    },
    /// Say that a node is surely down, so that nobody waits for its fencing
    FenceAck {
        /// The node
        nodeid: u32,
    },
}

impl What {
    fn request(&self) -> String {
        match self {
            Self::Ls => "ls".to_owned(),
            Self::Status { .. } => "status".to_owned(),
            Self::Dump => "dump".to_owned(),
            Self::Locks { lockspace } => format!("locks {lockspace}"),
            Self::Plocks { lockspace } => format!("plocks {lockspace}"),
            Self::FenceAck { nodeid } => format!("fence-ack {nodeid}"),
        }
    }
}

/// The answer, or a line that says what is wrong.
pub(super) fn run(args: &Args) -> Result<String, String> {
    let directory = Path::new(control::DIRECTORY);
    let socket = match (&args.socket, args.node) {
        (Some(path), _) => path.clone(),
        (None, Some(node)) => directory.join(format!("{node}.sock")),
        (None, None) => control::find(directory)?,
    };
    let json = if args.json { " json" } else { "" };
    control::ask(&socket, &format!("{}{json}", args.what.request()))
}
