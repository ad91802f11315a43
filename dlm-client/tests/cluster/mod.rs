//! Nodes of a cluster in this process: real engines, daemons and threads over memory or loopback TCP.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use dlm_client::backend::wire::{WireDlm, WireOptions};
use dlm_client::fence::conf::DlmConf;
use dlm_client::membership::memory::{MemoryCluster, MemoryMembership};
use dlm_client::transport::{MemoryHub, Poller, TcpTransport, Transport};
use dlm_client::wire::Version;
use dlm_client::{Event, EventQueue, JoinOptions, Lockspace, NodeId};
use parking_lot::Mutex;

/// What connects the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wires {
    Memory,
    Tcp,
}

pub(crate) struct Cluster {
    membership: Arc<Mutex<MemoryCluster>>,
    hub: MemoryHub,
    wires: Wires,
    port: u16,
    conf: String,
}

/// A port that is free on all addresses a node may have, below those the system picks for connections.
fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = u16::try_from(std::process::id() % 200).unwrap() * 100;
    loop {
        let port = 10_000 + (base + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if (1..=8).all(|id| TcpListener::bind((Ipv4Addr::new(127, 0, 0, id), port)).is_ok()) {
            return port;
        }
    }
}

impl Cluster {
    /// `conf` is added to a dlm.conf without fencing.
    pub(crate) fn new(nodes: u32, wires: Wires, conf: &str) -> Self {
        let port = port();
        Self {
            membership: Arc::new(Mutex::new(MemoryCluster::new(nodes))),
            hub: MemoryHub::new(),
            wires,
            port,
            conf: format!("enable_fencing=0\nenable_quorum_lockspace=0\nport={port}\n{conf}"),
        }
    }

    /// Turns a node on.
    pub(crate) fn node(&self, id: u32, version: Version) -> WireDlm {
        let membership = MemoryMembership::new(&self.membership, NodeId(id));
        let poller = Poller::new().unwrap();
        let transport: Box<dyn Transport> = match self.wires {
            Wires::Memory => Box::new(self.hub.attach(NodeId(id), poller.clone())),
            Wires::Tcp => {
                let [high, low] = u16::try_from(id).unwrap().to_be_bytes();
                let addr = ([127, 0, high, low], self.port).into();
                Box::new(TcpTransport::listen(addr, poller.clone()).unwrap())
            }
        };
        let mut options = WireOptions::new(DlmConf::parse(&self.conf).unwrap());
        options.version = version;
        WireDlm::start(membership, transport, poller, &options).unwrap()
    }
}

/// A node that joined a lockspace.
pub(crate) struct Joined {
    pub(crate) space: Arc<dyn Lockspace>,
    pub(crate) queue: EventQueue,
}

impl Joined {
    /// Takes events up to the end of a recovery.
    #[track_caller]
    pub(crate) fn wait_recovered(&self) {
        loop {
            let event = self.queue.recv_timeout(Duration::from_secs(60));
            match event.expect("the end of a recovery in a minute") {
                Event::RecoverDone { .. } => return,
                Event::Fatal(e) => panic!("{e}"),
                _ => {}
            }
        }
    }
}

pub(crate) fn join(dlm: WireDlm, name: &str) -> Joined {
    use dlm_client::Dlm;
    let (space, queue) = dlm.join(name, &JoinOptions::default()).unwrap();
    Joined { space, queue }
}
