//! Locks inside one process: no other node, no daemon, no wire.
//!
//! For `lock_nolock` one member joins and nobody else ever wants its locks. It is a whole lock service all the same:
//! locks of the process exclude each other by the DLM's rules, and a second join of the same name makes a second
//! member, so that tests can have several nodes in one process. [`LocalHook`] plays the nodes that are not there.
//!
//! The lock rules are those of [`crate::engine`], which here is the only member of a lockspace of its own; the members of
//! this one share it, and `owners` says whose a lock is.
//!
//! Invariants: one mutex orders all calls and all events; `owners` has the locks of the engine, no more and no less;
//! a resource without locks does not exist. Slots are given as a DLM gives them: the lowest free one, kept until the member
//! leaves; the generation grows by one with every change.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::engine::{Config, Engine, Member as EngineMember, Output, Start};
use crate::event::{EventSender, queue};
use crate::plock::table::{Locked, NodeLock, PlockTable, Waiter};
use crate::resource::RESNAME_MAX;
use crate::wire::LockspaceId;
use crate::{
    Caps, Cast, ClusterInfo, CrashSafety, Dlm, Event, EventQueue, JoinOptions, Leave, Lkf, LockError, LockId,
    Lockspace, Lvb, Mode, NodeId, Plock, PlockDone, PlockOp, PlockStatus, ResName, Slot, SlotSource, Status,
};

/// An event and the member it is for.
type Effect = (u32, Event);

/// The lock service of one process.
#[derive(Debug, Default)]
pub struct LocalDlm {
    spaces: Mutex<HashMap<String, Arc<Space>>>,
}

impl LocalDlm {
    /// A lock service nobody else takes part in.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The test hook of a lockspace that was joined before.
    #[must_use]
    pub fn hook(&self, lockspace: &str) -> Option<LocalHook> {
        let spaces = self.spaces.lock();
        let space = spaces.get(lockspace)?;
        Some(LocalHook {
            space: Arc::downgrade(space),
        })
    }
}

impl Dlm for LocalDlm {
    fn cluster(&self) -> ClusterInfo {
        ClusterInfo {
            name: String::new(),
            node: NodeId(1),
        }
    }

    fn join(
        &self,
        name: &str,
        _options: &JoinOptions,
    ) -> Result<(Arc<dyn Lockspace>, EventQueue), LockError> {
        if name.is_empty() || name.len() > RESNAME_MAX {
            return Err(LockError::NameLength { len: name.len() });
        }
        let space = Arc::clone(self.spaces.lock().entry(name.to_owned()).or_default());
        let (sender, events) = queue();
        let member = space.state.lock().join(sender);
        Ok((Arc::new(LocalLockspace { space, member }), events))
    }
}

/// Plays other nodes, for rehearsing demotes and recovery.
#[derive(Clone, Debug)]
pub struct LocalHook {
    space: Weak<Space>,
}

impl LocalHook {
    /// Delivers to every holder in its way the blocking callback that a request for `mode` from another node would
    /// cause. No lock is asked for. Returns how many were told.
    pub fn bast(&self, resource: &ResName, mode: Mode) -> usize {
        let Some(space) = self.space.upgrade() else {
            return 0;
        };
        let mut state = space.state.lock();
        let info = state.engine.resource_info(resource);
        let effects: Vec<Effect> = info
            .iter()
            .flat_map(|info| &info.locks)
            .filter(|lock| lock.granted.is_some_and(|granted| !granted.compatible(mode)))
            .filter_map(|lock| {
                let (id, token) = (lock.id, lock.token);
                Some((*state.owners.get(&id)?, Event::Bast { id, token, mode }))
            })
            .collect();
        let told = effects.len();
        state.deliver(effects);
        told
    }

    /// Queues an event to every member, as if the lock service had sent it.
    pub fn inject(&self, event: &Event) {
        let Some(space) = self.space.upgrade() else { return };
        let mut state = space.state.lock();
        let effects = state
            .members
            .keys()
            .map(|&member| (member, event.clone()))
            .collect();
        state.deliver(effects);
    }

    /// How many locks exist, NL included.
    #[must_use]
    pub fn locks(&self) -> usize {
        self.space
            .upgrade()
            .map_or(0, |space| space.state.lock().owners.len())
    }
}

#[derive(Debug, Default)]
struct Space {
    state: Mutex<State>,
}

#[derive(Debug)]
struct Member {
    sender: EventSender,
    slot: u16,
}

#[derive(Debug)]
struct State {
    members: BTreeMap<u32, Member>,
    engine: Engine,
    owners: HashMap<LockId, u32>,
    plocks: PlockTable,
    last_member: u32,
    generation: u32,
}

impl Default for State {
    fn default() -> Self {
        let node = NodeId(1);
        let mut config = Config::new(node, LockspaceId(0), 1);
        // There is no directory elsewhere to be asked again.
        config.toss = Duration::ZERO;
        let mut engine = Engine::new(config);
        engine.start(&Start {
            members: vec![EngineMember {
                node,
                weight: 1,
                renewed: false,
            }],
            failed: Vec::new(),
        });
        while engine.output().is_some() {}
        Self {
            members: BTreeMap::new(),
            engine,
            owners: HashMap::new(),
            plocks: PlockTable::default(),
            last_member: 0,
            generation: 0,
        }
    }
}

impl State {
    fn join(&mut self, sender: EventSender) -> u32 {
        self.last_member = self.last_member.wrapping_add(1);
        let member = self.last_member;
        let taken = |slot: &u16| self.members.values().any(|other| other.slot == *slot);
        let slot = (1..u16::MAX).find(|slot| !taken(slot)).unwrap_or(u16::MAX);
        self.send_all(&Event::RecoverPrep);
        self.members.insert(member, Member { sender, slot });
        self.recover_done();
        member
    }

    /// Takes a member out; `failed` is what the others are told of it.
    fn remove(&mut self, member: u32, failed: bool) -> Option<Member> {
        let gone = self.members.remove(&member)?;
        self.send_all(&Event::RecoverPrep);
        if failed {
            let failed = Slot {
                node: NodeId(member),
                slot: gone.slot,
            };
            self.send_all(&Event::RecoverSlot { failed });
        }
        let mut effects = self.purge(member);
        effects.extend(self.plocks.purge(NodeId(member)).iter().map(plock_granted));
        self.recover_done();
        self.deliver(effects);
        Some(gone)
    }

    fn plock(&mut self, member: u32, op: PlockOp, lock: &Plock, token: u64) -> Result<(), LockError> {
        self.check_member(member)?;
        lock.check()?;
        let want = NodeLock {
            node: NodeId(member),
            lock: *lock,
        };
        let (status, ended) = match op {
            PlockOp::Lock { wait } => {
                let (locked, granted) = self.plocks.lock(want, wait, token);
                let status = match locked {
                    Locked::Granted => Some(PlockStatus::Granted),
                    Locked::Again => Some(PlockStatus::Again),
                    Locked::Waiting => None,
                };
                (status, granted.iter().map(plock_granted).collect())
            }
            PlockOp::Unlock { close } => {
                let (cleared, granted) = self.plocks.unlock(want, close);
                let cleared = cleared
                    .iter()
                    .map(|waiter| plock_ended(waiter, PlockStatus::Canceled));
                let ended: Vec<_> = cleared.chain(granted.iter().map(plock_granted)).collect();
                (Some(PlockStatus::Unlocked), ended)
            }
            PlockOp::Test => {
                let status = self
                    .plocks
                    .test(&want)
                    .map_or(PlockStatus::Free, |held| PlockStatus::Held {
                        node: held.node,
                        lock: held.lock,
                    });
                (Some(status), Vec::new())
            }
        };
        let own = status.map(|status| (member, Event::Plock(PlockDone { token, status })));
        self.deliver(own.into_iter().chain(ended).collect());
        Ok(())
    }

    fn plock_cancel(&mut self, member: u32, token: u64) -> Result<(), LockError> {
        self.check_member(member)?;
        let waiting = self
            .plocks
            .waiter(NodeId(member), token)
            .ok_or(LockError::NoSuchPlock(token))?;
        let (canceled, granted) = self.plocks.cancel(&waiting, Some(token));
        let canceled = canceled
            .iter()
            .map(|waiter| plock_ended(waiter, PlockStatus::Canceled));
        let ended = canceled.chain(granted.iter().map(plock_granted)).collect();
        self.deliver(ended);
        Ok(())
    }

    fn send_all(&self, event: &Event) {
        for member in self.members.values() {
            // One that abandoned its queue is found out when it is to be told something of its locks.
            let _heard = member.sender.send(event.clone());
        }
    }

    fn recover_done(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        let slots: Vec<Slot> = self
            .members
            .iter()
            .map(|(&member, info)| Slot {
                node: NodeId(member),
                slot: info.slot,
            })
            .collect();
        for member in self.members.values() {
            let _heard = member.sender.send(Event::RecoverDone {
                slots: slots.clone(),
                our_slot: member.slot,
                generation: self.generation,
            });
        }
    }

    /// Hands out events; a member that no longer listens has abandoned the lockspace.
    fn deliver(&mut self, effects: Vec<Effect>) {
        let mut deaf = Vec::new();
        for (owner, event) in effects {
            if let Some(member) = self.members.get(&owner)
                && !member.sender.send(event)
            {
                deaf.push(owner);
            }
        }
        for member in deaf {
            self.remove(member, true);
        }
    }

    /// Drops all locks of a member that is gone. A lost writer leaves the value block invalid.
    fn purge(&mut self, member: u32) -> Vec<Effect> {
        let mut locks: Vec<LockId> = self
            .owners
            .iter()
            .filter(|(_, owner)| **owner == member)
            .map(|(&id, _)| id)
            .collect();
        locks.sort_unstable();
        for id in locks {
            let writer = self
                .engine
                .lock_info(id)
                .is_some_and(|lock| lock.flags.contains(Lkf::VALBLK));
            let spoil = if writer { Lkf::IVVALBLK } else { Lkf::empty() };
            let dropped = self.engine.unlock(id, Lkf::FORCEUNLOCK | spoil, None);
            debug_assert_eq!(dropped, Ok(()));
        }
        self.effects()
    }

    /// What the last call brought about, and for whom; forgets the locks it ended.
    fn effects(&mut self) -> Vec<Effect> {
        let mut effects = Vec::with_capacity(2);
        while let Some(output) = self.engine.output() {
            let Output::Event(event) = output else { continue };
            let id = match &event {
                Event::Cast(cast) => cast.id,
                Event::Bast { id, .. } => *id,
                _ => continue,
            };
            let Some(&owner) = self.owners.get(&id) else {
                continue;
            };
            if matches!(event, Event::Cast(_)) && !self.engine.has_lock(id) {
                self.owners.remove(&id);
            }
            effects.push((owner, event));
        }
        effects
    }

    fn check_member(&self, member: u32) -> Result<(), LockError> {
        if self.members.contains_key(&member) {
            Ok(())
        } else {
            Err(LockError::Left)
        }
    }

    fn request(
        &mut self,
        member: u32,
        name: &ResName,
        mode: Mode,
        flags: Lkf,
        token: u64,
    ) -> Result<(LockId, Vec<Effect>), LockError> {
        self.check_member(member)?;
        let id = self.engine.request(name, mode, flags, token)?;
        self.owners.insert(id, member);
        Ok((id, self.effects()))
    }

    /// Does something with a lock of `member`.
    fn on_lock<F>(&mut self, member: u32, id: LockId, operation: F) -> Result<Vec<Effect>, LockError>
    where
        F: FnOnce(&mut Engine) -> Result<(), LockError>,
    {
        self.check_member(member)?;
        if self.owners.get(&id) != Some(&member) {
            return Err(LockError::NoSuchLock(id));
        }
        operation(&mut self.engine)?;
        Ok(self.effects())
    }
}

fn plock_ended(waiter: &Waiter, status: PlockStatus) -> Effect {
    let token = waiter.token;
    (waiter.want.node.0, Event::Plock(PlockDone { token, status }))
}

fn plock_granted(waiter: &Waiter) -> Effect {
    plock_ended(waiter, PlockStatus::Granted)
}

/// A member's handle.
#[derive(Debug)]
struct LocalLockspace {
    space: Arc<Space>,
    member: u32,
}

/// Takes the Cast that ends the operation on `id` out of its effects, if it ended.
fn take_cast(effects: &mut Vec<Effect>, id: LockId) -> Option<Cast> {
    let index = effects
        .iter()
        .position(|(_, event)| matches!(event, Event::Cast(cast) if cast.id == id))?;
    match effects.remove(index) {
        (_, Event::Cast(cast)) => Some(cast),
        _ => None,
    }
}

impl Lockspace for LocalLockspace {
    fn request(&self, name: &ResName, mode: Mode, flags: Lkf, token: u64) -> Result<LockId, LockError> {
        let mut state = self.space.state.lock();
        let (id, effects) = state.request(self.member, name, mode, flags, token)?;
        state.deliver(effects);
        Ok(id)
    }

    fn request_now(
        &self,
        name: &ResName,
        mode: Mode,
        flags: Lkf,
        token: u64,
    ) -> Result<(LockId, Option<Cast>), LockError> {
        let mut state = self.space.state.lock();
        let (id, mut effects) = state.request(self.member, name, mode, flags, token)?;
        let cast = take_cast(&mut effects, id);
        state.deliver(effects);
        Ok((id, cast))
    }

    fn convert(&self, id: LockId, mode: Mode, flags: Lkf, lvb: Option<&Lvb>) -> Result<(), LockError> {
        let mut state = self.space.state.lock();
        let effects = state.on_lock(self.member, id, |engine| engine.convert(id, mode, flags, lvb))?;
        state.deliver(effects);
        Ok(())
    }

    fn convert_now(
        &self,
        id: LockId,
        mode: Mode,
        flags: Lkf,
        lvb: Option<&Lvb>,
    ) -> Result<Option<Cast>, LockError> {
        let mut state = self.space.state.lock();
        let mut effects = state.on_lock(self.member, id, |engine| engine.convert(id, mode, flags, lvb))?;
        let cast = take_cast(&mut effects, id);
        state.deliver(effects);
        Ok(cast)
    }

    fn unlock(&self, id: LockId, flags: Lkf, lvb: Option<&Lvb>) -> Result<(), LockError> {
        let mut state = self.space.state.lock();
        let effects = state.on_lock(self.member, id, |engine| engine.unlock(id, flags, lvb))?;
        debug_assert!(effects.iter().any(|(_, event)| matches!(
            event,
            Event::Cast(cast) if cast.id == id && cast.status == Status::Unlocked
        )));
        state.deliver(effects);
        Ok(())
    }

    fn cancel(&self, id: LockId) -> Result<(), LockError> {
        let mut state = self.space.state.lock();
        let effects = state.on_lock(self.member, id, |engine| engine.cancel(id))?;
        state.deliver(effects);
        Ok(())
    }

    fn plock(&self, op: PlockOp, lock: &Plock, token: u64) -> Result<(), LockError> {
        self.space.state.lock().plock(self.member, op, lock, token)
    }

    fn plock_cancel(&self, token: u64) -> Result<(), LockError> {
        self.space.state.lock().plock_cancel(self.member, token)
    }

    fn caps(&self) -> Caps {
        Caps {
            slots: SlotSource::Exact,
            recovery_events: true,
            crash_safety: CrashSafety::SingleNode,
            has_peers: false,
        }
    }

    fn leave(&self, how: Leave) -> Result<(), LockError> {
        let mut state = self.space.state.lock();
        let gone = state
            .remove(self.member, how != Leave::Clean)
            .ok_or(LockError::Left)?;
        gone.sender.close();
        Ok(())
    }
}
