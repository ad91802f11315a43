//! A node of a cluster in user space: the lock engine, the lock daemon's part and the network, under the trait.
//!
//! One lock guards the node ([`host`](self)); the calling thread itself runs the engine and writes to the sockets, so
//! that nothing waits for another thread to be scheduled; two threads wait for the network and for the membership
//! service. When the last handle of a node is dropped, with every lockspace left before, it says goodbye and is gone;
//! with one still joined it is just gone, and its peers fence it.

mod host;
mod threads;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, Thread};

use parking_lot::{Mutex, MutexGuard};
use tracing::warn;

use crate::controld::codec::global_id;
use crate::controld::{Controld, Status as DaemonStatus};
use crate::engine::{Config, ResourceInfo};
use crate::event::queue;
use crate::fence::agent::{missing, unfence};
use crate::fence::conf::DlmConf;
use crate::membership::Membership;
use crate::transport::{Network, Poller, Traffic, Transport};
use crate::wake::Wake;
use crate::wire::{LockspaceId, Version};
use crate::{
    Caps, Cast, ClusterInfo, CrashSafety, Dlm, EventQueue, JoinOptions, Leave, Lkf, LockError, LockId,
    Lockspace, Lvb, Mode, NodeId, Plock, PlockOp, ResName, SlotSource,
};
use host::Host;
use threads::MembershipThread;

/// How a node takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WireOptions {
    /// The highest version of the protocol we speak.
    pub version: Version,
    /// `dlm.conf`.
    pub conf: DlmConf,
    /// The cluster that is meant; any other is refused.
    pub cluster: Option<String>,
}

impl WireOptions {
    /// The newest protocol.
    #[must_use]
    pub const fn new(conf: DlmConf) -> Self {
        Self {
            version: Version::V3_2,
            conf,
            cluster: None,
        }
    }
}

/// What the threads and the handles share.
struct Shared {
    host: Mutex<Host>,
    poller: Poller,
    stop: AtomicBool,
    /// The membership's thread, to be woken: out of the membership service's wait, or out of its sleep.
    wake_members: Wake,
    membership: Mutex<Option<Thread>>,
}

impl Shared {
    fn wake_membership(&self) {
        self.wake_members.wake();
        if let Some(thread) = &*self.membership.lock() {
            thread.unpark();
        }
    }

    /// Does something with the host, and wakes whoever has something to do because of that.
    fn with<T>(&self, act: impl FnOnce(&mut Host) -> T) -> T {
        let mut host = self.host.lock();
        let done = act(&mut host);
        self.release(host);
        done
    }

    /// Gives the host's lock back and wakes whoever has something to do because of what was done under it: not before,
    /// for all of them want the lock first.
    fn release(&self, mut host: MutexGuard<'_, Host>) {
        let told = host.take_told();
        let (requests, due) = (host.has_requests(), host.is_due_early());
        drop(host);
        for (reader, events) in told {
            reader.wake(events);
        }
        if requests {
            self.wake_membership();
        }
        if due {
            self.poller.wake();
        }
    }
}

/// A running node; the last one dropped ends it.
struct Running {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.with(Host::shut_down);
        self.shared.stop.store(true, Ordering::Release);
        self.shared.poller.wake();
        self.shared.wake_membership();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// A node of a cluster, in user space.
#[derive(Clone)]
pub struct WireDlm {
    running: Arc<Running>,
    cluster: ClusterInfo,
    conf: Arc<DlmConf>,
}

impl std::fmt::Debug for WireDlm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WireDlm")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Tells this life of the node from others; never 0.
fn stamp() -> u32 {
    let [a, b, c, d, ..] = random().to_le_bytes();
    u32::from_le_bytes([a, b, c, d]).max(1)
}

impl WireDlm {
    /// Starts a node: `membership` says who is in the cluster, `transport`, registered with `poller`, connects to them.
    ///
    /// # Errors
    /// Another cluster than the one that is meant, an agent that does not undo an earlier fencing, or no threads.
    pub fn start<M: Membership + Send + 'static>(
        membership: M,
        transport: Box<dyn Transport>,
        poller: Poller,
        options: &WireOptions,
    ) -> Result<Self, LockError> {
        let config = membership.config().clone();
        if let Some(wanted) = &options.cluster {
            let checked = config.check_name(wanted);
            checked.map_err(|error| LockError::Service(error.to_string()))?;
        }
        let cluster = ClusterInfo {
            name: config.name.clone(),
            node: config.us,
        };
        let us = config.us;
        unfence(&options.conf, us).map_err(LockError::Service)?;
        let others: Vec<NodeId> = config
            .nodes
            .iter()
            .map(|info| info.node)
            .filter(|id| *id != us)
            .collect();
        let search = std::env::var_os("PATH").unwrap_or_default();
        for line in missing(&options.conf, &others, &search) {
            warn!("{line}");
        }
        let life = stamp();
        let (controld, actions) = Controld::new(config, options.conf.clone(), life);
        let network = Network::new(us, options.version, Some(life), transport);
        let mut host = Host::new(us, network, controld);
        host.carry_out(actions);
        let shared = Arc::new(Shared {
            host: Mutex::new(host),
            poller,
            stop: AtomicBool::new(false),
            wake_members: Wake::new().map_err(|e| LockError::Service(format!("no descriptors: {e}")))?,
            membership: Mutex::new(None),
        });
        let mut running = Running {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
        };
        let no_thread = |e: std::io::Error| LockError::Service(format!("no thread: {e}"));
        let port = options.conf.port;
        let for_members = Arc::clone(&shared);
        let members = std::thread::Builder::new()
            .name("dlm-members".to_owned())
            .spawn(move || MembershipThread::new(for_members, membership, port).run())
            .map_err(no_thread)?;
        *shared.membership.lock() = Some(members.thread().clone());
        running.threads.push(members);
        let network = std::thread::Builder::new()
            .name("dlm-network".to_owned())
            .spawn(move || threads::network(&shared))
            .map_err(no_thread)?;
        running.threads.push(network);
        Ok(Self {
            running: Arc::new(running),
            cluster,
            conf: Arc::new(options.conf.clone()),
        })
    }

    /// For those who look at the node without keeping it alive.
    #[must_use]
    pub fn observer(&self) -> Observer {
        Observer {
            shared: Arc::clone(&self.running.shared),
            node: self.cluster.node,
        }
    }

    /// See [`Observer::status`].
    #[must_use]
    pub fn status(&self) -> DaemonStatus {
        self.observer().status()
    }

    /// See [`Observer::dump`].
    #[must_use]
    pub fn dump(&self, lockspace: &str) -> Option<Vec<ResourceInfo>> {
        self.observer().dump(lockspace)
    }

    /// See [`Observer::plock_lines`].
    #[must_use]
    pub fn plock_lines(&self, lockspace: &str) -> Option<Vec<String>> {
        self.observer().plock_lines(lockspace)
    }

    /// See [`Observer::acknowledge_fencing`].
    pub fn acknowledge_fencing(&self, node: NodeId) {
        self.observer().acknowledge_fencing(node);
    }
}

/// A look at a node, which ends without regard to it.
#[derive(Clone)]
pub struct Observer {
    shared: Arc<Shared>,
    node: NodeId,
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Observer {
    /// The node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// How the lock daemon's part stands.
    #[must_use]
    pub fn status(&self) -> DaemonStatus {
        self.shared.host.lock().status()
    }

    /// What was done for messages since the node started.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.shared.host.lock().traffic()
    }

    /// What the lock daemon said last, with the time (seconds since 1970, and since the start of the machine).
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.shared.host.lock().said()
    }

    /// All resources of a lockspace and their locks; `None` when it is not joined.
    #[must_use]
    pub fn dump(&self, lockspace: &str) -> Option<Vec<ResourceInfo>> {
        let host = self.shared.host.lock();
        host.engine(LockspaceId(global_id(lockspace)))
            .map(|engine| engine.resources_info())
    }

    /// The POSIX locks of a lockspace, a line each as `dlm_tool plocks` prints them.
    #[must_use]
    pub fn plock_lines(&self, lockspace: &str) -> Option<Vec<String>> {
        self.shared.host.lock().controld().plock_lines(lockspace)
    }

    /// A person says that a node is surely down (`dlm_tool fence_ack`).
    pub fn acknowledge_fencing(&self, node: NodeId) {
        self.shared.with(|host| host.acknowledge_fencing(node));
    }
}

impl Dlm for WireDlm {
    fn cluster(&self) -> ClusterInfo {
        self.cluster.clone()
    }

    fn join(
        &self,
        name: &str,
        _options: &JoinOptions,
    ) -> Result<(Arc<dyn Lockspace>, EventQueue), LockError> {
        if name.is_empty() || name.len() > crate::resource::RESNAME_MAX {
            return Err(LockError::NameLength { len: name.len() });
        }
        let id = LockspaceId(global_id(name));
        let mut config = Config::new(self.cluster.node, id, random());
        config.nodir = self.conf.nodir(name);
        config.pid = std::process::id();
        let (sender, events) = queue();
        let shared = &self.running.shared;
        shared.with(|host| host.join(name, config, sender))?;
        let space = WireLockspace {
            running: Arc::clone(&self.running),
            id,
        };
        Ok((Arc::new(space), events))
    }
}

struct WireLockspace {
    running: Arc<Running>,
    id: LockspaceId,
}

impl WireLockspace {
    fn with<T>(&self, act: impl FnOnce(&mut Host) -> T) -> T {
        self.running.shared.with(act)
    }
}

impl Lockspace for WireLockspace {
    fn request(&self, name: &ResName, mode: Mode, flags: Lkf, token: u64) -> Result<LockId, LockError> {
        self.with(|host| host.call(self.id, |e| e.request(name, mode, flags, token), |_| None))
            .map(|(id, _)| id)
    }

    fn convert(&self, id: LockId, mode: Mode, flags: Lkf, lvb: Option<&Lvb>) -> Result<(), LockError> {
        self.with(|host| host.call(self.id, |e| e.convert(id, mode, flags, lvb), |()| None))
            .map(|_| ())
    }

    fn unlock(&self, id: LockId, flags: Lkf, lvb: Option<&Lvb>) -> Result<(), LockError> {
        self.with(|host| host.call(self.id, |e| e.unlock(id, flags, lvb), |()| None))
            .map(|_| ())
    }

    fn cancel(&self, id: LockId) -> Result<(), LockError> {
        self.with(|host| host.call(self.id, |e| e.cancel(id), |()| None))
            .map(|_| ())
    }

    fn request_now(
        &self,
        name: &ResName,
        mode: Mode,
        flags: Lkf,
        token: u64,
    ) -> Result<(LockId, Option<Cast>), LockError> {
        self.with(|host| host.call(self.id, |e| e.request(name, mode, flags, token), |id| Some(*id)))
    }

    fn convert_now(
        &self,
        id: LockId,
        mode: Mode,
        flags: Lkf,
        lvb: Option<&Lvb>,
    ) -> Result<Option<Cast>, LockError> {
        self.with(|host| host.call(self.id, |e| e.convert(id, mode, flags, lvb), |()| Some(id)))
            .map(|(_, cast)| cast)
    }

    fn plock(&self, op: PlockOp, lock: &Plock, token: u64) -> Result<(), LockError> {
        self.with(|host| host.plock(self.id, op, lock, token))
    }

    fn plock_cancel(&self, token: u64) -> Result<(), LockError> {
        self.with(|host| host.plock_cancel(self.id, token))
    }

    fn caps(&self) -> Caps {
        Caps {
            slots: SlotSource::Exact,
            recovery_events: true,
            crash_safety: CrashSafety::Fenced,
            has_peers: true,
        }
    }

    fn leave(&self, how: Leave) -> Result<(), LockError> {
        self.with(|host| match how {
            Leave::Clean => host.leave(self.id),
            Leave::AsFailed => {
                host.abandon("left as failed");
                Ok(())
            }
            Leave::Abandon => {
                host.abandon("abandoned");
                Ok(())
            }
        })
    }
}
