//! The kernel's DLM device in this process: bytes in, bytes out, by the offsets of the interface; the engine decides.
//!
//! It knows nothing of the backend's own layouts, so that a field in the wrong place is found. Every join is a node of
//! its own process: its locks become orphans when it closes the device without leaving.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use dlm_client::backend::kernel::{Device, Kernel};
use dlm_client::engine::{Config, Engine, Member, Output, Start};
use dlm_client::lvb::{LvbMove, transfer};
use dlm_client::wire::LockspaceId;
use dlm_client::{Cast, ClusterInfo, Event, Lkf, LockError, LockId, Lvb, Mode, NodeId, ResName, Status};
use parking_lot::{Condvar, Mutex};

const ENOENT: i32 = 2;
const EIO: i32 = 5;
const EAGAIN: i32 = 11;
const EBUSY: i32 = 16;
const EINVAL: i32 = 22;
const EPIPE: i32 = 32;

struct Lock {
    process: Option<u32>,
    name: ResName,
    mode: Option<Mode>,
    /// castparam, castaddr, bastparam, bastaddr, lksb
    marks: [u64; 5],
    lvb: Option<Lvb>,
    persistent: bool,
}

#[derive(Default)]
struct Process {
    results: VecDeque<Vec<u8>>,
    wakes: bool,
    /// How much of the log it has read.
    read: usize,
    overrun: bool,
}

struct Space {
    engine: Engine,
    locks: BTreeMap<u32, Lock>,
    /// A request waited when its process closed the device: the kernel panics at the next purge.
    broken: bool,
}

#[derive(Default)]
struct State {
    spaces: HashMap<String, Space>,
    processes: HashMap<u32, Process>,
    last: u32,
    log: Vec<Vec<u8>>,
    blocked: bool,
    recoveries: u32,
    /// What the next write answers.
    refuse: Option<i32>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

/// A kernel.
#[derive(Clone, Default)]
pub(crate) struct FakeKernel(Arc<Inner>);

impl std::fmt::Debug for FakeKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeKernel")
    }
}

struct FakeDevice {
    kernel: FakeKernel,
    process: u32,
    space: String,
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A result without lock value block.
pub(crate) fn result(address: u64, param: u64, status: i32, lkid: u32) -> Vec<u8> {
    let mut bytes = vec![0; 72];
    (bytes[0], bytes[8], bytes[12]) = (6, 2, 72);
    bytes[16..24].copy_from_slice(&address.to_le_bytes());
    bytes[24..32].copy_from_slice(&param.to_le_bytes());
    bytes[40..44].copy_from_slice(&status.to_le_bytes());
    bytes[44..48].copy_from_slice(&lkid.to_le_bytes());
    bytes[56..64].copy_from_slice(&u64::MAX.to_le_bytes());
    bytes
}

fn number(status: Status) -> i32 {
    match status {
        Status::Granted => 0,
        Status::Again => -EAGAIN,
        Status::Deadlock => -35,
        Status::Unlocked => -0x1_0002,
        Status::Canceled => -0x1_0001,
        Status::TimedOut => -110,
        Status::Err(errno) => -errno,
    }
}

fn refusal(error: &LockError) -> io::Error {
    errno(match error {
        LockError::Busy(_) => EBUSY,
        LockError::NoSuchLock(_) => ENOENT,
        _ => EINVAL,
    })
}

impl Space {
    fn new() -> Self {
        let node = NodeId(1);
        let mut engine = Engine::new(Config::new(node, LockspaceId(1), 7));
        let member = Member {
            node,
            weight: 1,
            renewed: false,
        };
        engine.start(&Start {
            members: vec![member],
            failed: Vec::new(),
        });
        while engine.output().is_some() {}
        Self {
            engine,
            locks: BTreeMap::new(),
            broken: false,
        }
    }

    fn cast(&mut self, cast: &Cast) -> Option<(u32, Vec<u8>)> {
        let lkid = cast.id.0;
        let lock = self.locks.get_mut(&lkid)?;
        let [param, address, ..] = lock.marks;
        let mut bytes = result(address, param, number(cast.status), lkid);
        bytes[32..40].copy_from_slice(&lock.marks[4].to_le_bytes());
        bytes[48] = u8::try_from(cast.sb.bits()).unwrap();
        if cast.status == Status::Granted {
            let before = lock.mode.unwrap_or(Mode::Nl);
            if let (Some(block), Some(read)) = (&mut lock.lvb, cast.lvb) {
                *block = read;
            }
            if transfer(before, cast.mode) != LvbMove::Keep
                && let Some(block) = lock.lvb
            {
                (bytes[12], bytes[68]) = (104, 72);
                bytes.extend_from_slice(&block);
            }
        }
        let process = lock.process;
        if cast.status == Status::Unlocked || (lock.mode.is_none() && cast.status != Status::Granted) {
            self.locks.remove(&lkid);
        } else {
            lock.mode = Some(cast.mode);
        }
        Some((process?, bytes))
    }

    /// What the engine has to say, for whom.
    fn results(&mut self) -> Vec<(u32, Vec<u8>)> {
        let mut all = Vec::new();
        while let Some(output) = self.engine.output() {
            match output {
                Output::Event(Event::Cast(cast)) => all.extend(self.cast(&cast)),
                Output::Event(Event::Bast { id, mode, .. }) => {
                    let Some(lock) = self.locks.get(&id.0) else {
                        continue;
                    };
                    let mut bytes = result(lock.marks[3], lock.marks[2], 0, id.0);
                    bytes[64] = mode.number();
                    all.extend(lock.process.map(|process| (process, bytes)));
                }
                _ => {}
            }
        }
        all
    }

    fn lock(&mut self, process: u32, bytes: &[u8]) -> io::Result<u32> {
        let mode = Mode::from_number(bytes[16]).ok_or_else(|| errno(EINVAL))?;
        let flags = Lkf::from_bits(word(bytes, 20)).ok_or_else(|| errno(EINVAL))?;
        let marks = [48, 56, 64, 72, 80].map(|at| long(bytes, at));
        if marks[1] == 0 || marks[4] == 0 {
            return Err(errno(EINVAL));
        }
        let lvb: Lvb = bytes[88..120].try_into().unwrap();
        if flags.contains(Lkf::CONVERT) {
            let lkid = word(bytes, 24);
            let lock = self.locks.get_mut(&lkid).ok_or_else(|| errno(ENOENT))?;
            if flags.contains(Lkf::VALBLK) {
                lock.lvb.get_or_insert_default();
            }
            if let Some(block) = &mut lock.lvb {
                *block = lvb;
            }
            (lock.marks, lock.persistent) = (marks, flags.contains(Lkf::PERSISTENT));
            let done = self
                .engine
                .convert(LockId(lkid), mode, flags.difference(Lkf::CONVERT), Some(&lvb));
            return done.map(|()| 0).map_err(|e| refusal(&e));
        }
        assert_eq!(
            bytes.len(),
            120 + usize::from(bytes[17]),
            "the length of the name"
        );
        let name = ResName::new(&bytes[120..]).map_err(|_| errno(EINVAL))?;
        let fresh = Lock {
            process: Some(process),
            name,
            mode: None,
            marks,
            lvb: flags.contains(Lkf::VALBLK).then_some([0; 32]),
            persistent: flags.contains(Lkf::PERSISTENT),
        };
        if flags.contains(Lkf::ORPHAN) {
            return self.adopt(fresh, mode);
        }
        let id = self.engine.request(&name, mode, flags, 0);
        let id = id.map_err(|e| refusal(&e))?;
        self.locks.insert(id.0, fresh);
        Ok(id.0)
    }

    fn adopt(&mut self, fresh: Lock, mode: Mode) -> io::Result<u32> {
        let mut others = false;
        for (lkid, lock) in &mut self.locks {
            if lock.process.is_none() && lock.name == fresh.name {
                if lock.mode == Some(mode) {
                    (lock.process, lock.marks, lock.persistent) =
                        (fresh.process, fresh.marks, fresh.persistent);
                    return Ok(*lkid);
                }
                others = true;
            }
        }
        Err(errno(if others { EAGAIN } else { ENOENT }))
    }

    fn unlock(&mut self, bytes: &[u8]) -> io::Result<u32> {
        let flags = Lkf::from_bits(word(bytes, 20)).ok_or_else(|| errno(EINVAL))?;
        let lkid = word(bytes, 24);
        let lock = self.locks.get_mut(&lkid).ok_or_else(|| errno(ENOENT))?;
        lock.marks[0] = long(bytes, 48);
        if flags.contains(Lkf::CANCEL) {
            return match self.engine.cancel(LockId(lkid)) {
                Ok(()) | Err(LockError::NothingToCancel(_)) => Ok(0),
                Err(e) => Err(refusal(&e)),
            };
        }
        let lvb: Lvb = bytes[88..120].try_into().unwrap();
        let done = self.engine.unlock(LockId(lkid), flags, Some(&lvb));
        done.map(|()| 0).map_err(|e| refusal(&e))
    }

    fn purge(&mut self) -> io::Result<u32> {
        if self.broken {
            return Err(errno(EIO));
        }
        let orphans: Vec<u32> = self
            .locks
            .iter()
            .filter(|(_, lock)| lock.process.is_none())
            .map(|(lkid, _)| *lkid)
            .collect();
        for lkid in orphans {
            let flags = Lkf::FORCEUNLOCK | Lkf::IVVALBLK;
            self.engine.unlock(LockId(lkid), flags, None).unwrap();
        }
        Ok(0)
    }

    fn close(&mut self, process: u32) {
        let own: Vec<(u32, bool)> = self
            .locks
            .iter()
            .filter(|(_, lock)| lock.process == Some(process))
            .map(|(lkid, lock)| (*lkid, lock.persistent))
            .collect();
        for (lkid, persistent) in own {
            let lock = self.locks.get_mut(&lkid).unwrap();
            lock.process = None;
            if persistent {
                self.broken |= lock.mode.is_none();
                let _idle = self.engine.cancel(LockId(lkid));
            } else {
                let _gone = self.engine.unlock(LockId(lkid), Lkf::FORCEUNLOCK, None);
            }
        }
    }
}

impl State {
    fn say(&mut self, text: &str) {
        let seq = self.log.len();
        self.log
            .push(format!("6,{seq},{},-;{text}\n SUBSYSTEM=x\n", seq * 7).into_bytes());
    }

    fn recovery(&mut self, space: &str, said: &[&str], slots: &str) {
        self.recoveries += 1;
        let n = self.recoveries;
        self.say(&format!("dlm: {space}: dlm_recover {n}"));
        for line in said {
            self.say(&format!("dlm: {space}: {line}"));
        }
        self.say(&format!("dlm: {space}: generation {n} slots {slots}"));
        self.say(&format!(
            "dlm: {space}: dlm_recover {n} generation {n} done: 3 ms"
        ));
    }

    fn hand_out(&mut self, space: &str) {
        let results = self.spaces.get_mut(space).map(Space::results);
        for (process, bytes) in results.unwrap_or_default() {
            if let Some(process) = self.processes.get_mut(&process) {
                process.results.push_back(bytes);
            }
        }
    }
}

#[allow(dead_code)]
impl FakeKernel {
    fn change<T>(&self, what: impl FnOnce(&mut State) -> T) -> T {
        let done = what(&mut self.0.state.lock());
        self.0.changed.notify_all();
        done
    }

    /// A line of the kernel.
    pub(crate) fn say(&self, text: &str) {
        self.change(|state| state.say(text));
    }

    /// A whole recovery.
    pub(crate) fn recovery(&self, space: &str, said: &[&str], slots: &str) {
        self.change(|state| state.recovery(space, said, slots));
    }

    /// While blocked, no write returns.
    pub(crate) fn block(&self, blocked: bool) {
        self.change(|state| state.blocked = blocked);
    }

    /// The next write is answered so.
    pub(crate) fn refuse(&self, errno: i32) {
        self.change(|state| state.refuse = Some(errno));
    }

    /// All processes read these bytes next.
    pub(crate) fn inject(&self, bytes: &[u8]) {
        self.change(|state| {
            for process in state.processes.values_mut() {
                process.results.push_back(bytes.to_vec());
            }
        });
    }

    /// A result and a line in one moment.
    pub(crate) fn inject_after_line(&self, text: &str, bytes: &[u8]) {
        self.change(|state| {
            state.say(text);
            for process in state.processes.values_mut() {
                process.results.push_back(bytes.to_vec());
            }
        });
    }

    /// The log runs over.
    pub(crate) fn overrun(&self) {
        self.change(|state| {
            for process in state.processes.values_mut() {
                process.overrun = true;
            }
        });
    }

    /// Locks there are, orphans included.
    pub(crate) fn locks(&self, space: &str) -> usize {
        let state = self.0.state.lock();
        state.spaces.get(space).map_or(0, |space| space.locks.len())
    }

    /// Waits until it is so.
    pub(crate) fn wait_for(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let end = std::time::Instant::now() + Duration::from_secs(30);
        while !so(self) {
            let mut state = self.0.state.lock();
            let late = self.0.changed.wait_for(&mut state, Duration::from_millis(50));
            drop(state);
            assert!(
                !late.timed_out() || std::time::Instant::now() < end,
                "not in time: {what}"
            );
        }
    }

    /// Has this node left?
    pub(crate) fn is_left(&self, space: &str) -> bool {
        !self.0.state.lock().spaces.contains_key(space)
    }
}

impl Kernel for FakeKernel {
    fn cluster(&self) -> Result<ClusterInfo, LockError> {
        Ok(ClusterInfo {
            name: "fake".to_owned(),
            node: NodeId(1),
        })
    }

    fn open(&self, lockspace: &str) -> Result<Arc<dyn Device>, LockError> {
        let process = self.change(|state| {
            if !state.spaces.contains_key(lockspace) {
                state.say(&format!("dlm: {lockspace}: joining the lockspace group..."));
                state.recovery(lockspace, &["add member 1"], "1 1:1");
                state.spaces.insert(lockspace.to_owned(), Space::new());
            }
            state.last += 1;
            let process = state.last;
            state.processes.insert(process, Process::default());
            process
        });
        Ok(Arc::new(FakeDevice {
            kernel: self.clone(),
            process,
            space: lockspace.to_owned(),
        }))
    }
}

impl Device for FakeDevice {
    fn write(&self, request: &[u8]) -> io::Result<u32> {
        assert!(
            (120..=184).contains(&request.len()),
            "{} bytes written",
            request.len()
        );
        assert_eq!((word(request, 0), request[13]), (6, 1), "version and layout");
        let inner = &self.kernel.0;
        let mut state = inner.state.lock();
        while state.blocked {
            inner.changed.wait(&mut state);
        }
        if let Some(number) = state.refuse.take() {
            return Err(errno(number));
        }
        let space = state.spaces.get_mut(&self.space).ok_or_else(|| errno(ENOENT))?;
        let done = match request[12] {
            1 => space.lock(self.process, request),
            2 => space.unlock(request),
            6 => space.purge(),
            _ => Err(errno(EINVAL)),
        };
        state.hand_out(&self.space);
        inner.changed.notify_all();
        done
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(buffer.len() >= 104);
        self.kernel.change(|state| {
            let process = state.processes.get_mut(&self.process).expect("open");
            let bytes = process.results.pop_front().ok_or(ErrorKind::WouldBlock)?;
            buffer[..bytes.len()].copy_from_slice(&bytes);
            Ok(bytes.len())
        })
    }

    fn read_log(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.kernel.change(|state| {
            let process = state.processes.get_mut(&self.process).expect("open");
            if std::mem::take(&mut process.overrun) {
                return Err(errno(EPIPE));
            }
            let record = state.log.get(process.read).ok_or(ErrorKind::WouldBlock)?;
            process.read += 1;
            buffer[..record.len()].copy_from_slice(record);
            Ok(record.len())
        })
    }

    fn rewind_log(&self) -> io::Result<()> {
        self.kernel
            .change(|state| state.processes.get_mut(&self.process).expect("open").read = 0);
        Ok(())
    }

    fn wait(&self) -> io::Result<()> {
        let inner = &self.kernel.0;
        let mut state = inner.state.lock();
        loop {
            let lines = state.log.len();
            let process = state.processes.get_mut(&self.process).expect("open");
            let woken = std::mem::take(&mut process.wakes);
            if woken || process.overrun || !process.results.is_empty() || process.read < lines {
                return Ok(());
            }
            inner.changed.wait(&mut state);
        }
    }

    fn wake(&self) {
        self.kernel
            .change(|state| state.processes.get_mut(&self.process).expect("open").wakes = true);
    }

    fn close(&self, leave: bool) -> io::Result<()> {
        self.kernel.change(|state| {
            if let Some(space) = state.spaces.get_mut(&self.space) {
                space.close(self.process);
            }
            state.hand_out(&self.space);
            state.processes.remove(&self.process);
            if leave {
                state.spaces.remove(&self.space);
            }
        });
        Ok(())
    }
}
