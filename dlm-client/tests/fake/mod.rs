//! The kernel's DLM device in this process: bytes in, bytes out, by the offsets of the interface; the engine decides.
//!
//! It knows nothing of the backend's own layouts, so that a field in the wrong place is found. Every join is a node of
//! its own process: its locks become orphans when it closes the device without leaving. What waits then is ended, but not
//! what has no answer yet ([`FakeKernel::slow`]). What makes a kernel panic or use freed memory is an error.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::{self, Cursor, ErrorKind, Read};
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
    /// Whose it was at last.
    thread: u32,
    mark: u64,
    name: ResName,
    mode: Option<Mode>,
    /// castparam, castaddr, bastparam, bastaddr, lksb
    marks: [u64; 5],
    lvb: Option<Lvb>,
    persistent: bool,
    converts: bool,
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
    /// Conversions of dead processes that have no answer yet.
    unanswered: Vec<u32>,
}

#[derive(Default)]
struct State {
    spaces: HashMap<String, Space>,
    processes: HashMap<u32, Process>,
    last: u32,
    /// Threads that are no more.
    ended: HashSet<u32>,
    log: Vec<Vec<u8>>,
    blocked: bool,
    recoveries: u32,
    /// What the next write answers.
    refuse: Option<i32>,
    /// Requests of who dies are still on their way.
    slow: bool,
    list: List,
}

/// What there is to read of the locks.
#[allow(dead_code)]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum List {
    #[default]
    True,
    /// There is no debugfs.
    Missing,
    Broken(&'static str),
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
            unanswered: Vec::new(),
        }
    }

    fn cast(&mut self, cast: &Cast) -> Option<(u32, Vec<u8>)> {
        let lkid = cast.id.0;
        let lock = self.locks.get_mut(&lkid)?;
        lock.converts = false;
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
            lock.converts = true;
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
            thread: process,
            mark: long(bytes, 32),
            name,
            mode: None,
            marks,
            lvb: flags.contains(Lkf::VALBLK).then_some([0; 32]),
            persistent: flags.contains(Lkf::PERSISTENT),
            converts: false,
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
                    let (mode, lvb) = (lock.mode, lock.lvb);
                    *lock = Lock { mode, lvb, ..fresh };
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
        if self.unanswered.contains(&lkid) {
            return Err(errno(EBUSY));
        }
        if lock.process.is_none() {
            // Of a process that is no more: the kernel follows a pointer into it.
            return Err(errno(EIO));
        }
        let lvb: Lvb = bytes[88..120].try_into().unwrap();
        let done = self.engine.unlock(LockId(lkid), flags, Some(&lvb));
        done.map(|()| 0).map_err(|e| refusal(&e))
    }

    /// As `<lockspace>_all` of debugfs, which has no order that means anything.
    fn list(&self) -> String {
        let mut text = "version rsb 1.1 lvb 1.1 lkb 1.1\n".to_owned();
        let mut resources: BTreeMap<&ResName, Vec<(&u32, &Lock)>> = BTreeMap::new();
        for (lkid, lock) in &self.locks {
            resources.entry(&lock.name).or_default().push((lkid, lock));
        }
        for (name, locks) in resources.iter().rev() {
            let bytes = name.as_bytes();
            let shown = if bytes.iter().all(|b| (b' '..=b'~').contains(b)) {
                format!("str {}", String::from_utf8_lossy(bytes))
            } else {
                bytes
                    .iter()
                    .fold("hex".to_owned(), |all, b| format!("{all} {b:02x}"))
            };
            text += &format!("rsb 00000000deadbeef 0 0 0 0 0 0 {} {shown}\n", bytes.len());
            for (lkid, lock) in locks {
                let asked = u8::from(lock.persistent) << 7;
                let mode = lock.mode.map_or(-1, |mode| i32::from(mode.number()));
                let (thread, mark) = (lock.thread, lock.mark);
                text += &format!("lkb {lkid:x} 0 0 {thread} {mark} {asked:x} 1 2 {mode} -1 0 0 0 0 9 0\n");
            }
        }
        text
    }

    fn close(&mut self, process: u32, slow: bool) {
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
                if !slow {
                    let _idle = self.engine.cancel(LockId(lkid));
                } else if lock.converts {
                    self.unanswered.push(lkid);
                }
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

    /// The thread of a process ends; each has one number with the first.
    pub(crate) fn end_thread(&self, thread: u32) {
        self.change(|state| state.ended.extend([thread]));
    }

    /// A process is killed. Whoever was it must be forgotten, and not dropped.
    pub(crate) fn kill(&self, space: &str, process: u32) {
        self.end_thread(process);
        self.change(|state| {
            let slow = state.slow;
            state.spaces.get_mut(space).expect("joined").close(process, slow);
            state.hand_out(space);
        });
    }

    /// The conversions that had no answer when their process died are ended.
    pub(crate) fn answer(&self, space: &str) {
        self.change(|state| {
            let joined = state.spaces.get_mut(space).expect("joined");
            for lkid in std::mem::take(&mut joined.unanswered) {
                joined.engine.cancel(LockId(lkid)).expect("under way");
            }
            state.hand_out(space);
        });
    }

    /// Whether what waits stays when its process dies, as what has no answer yet.
    pub(crate) fn slow(&self, slow: bool) {
        self.change(|state| state.slow = slow);
    }

    /// What is read for the list of locks.
    pub(crate) fn list(&self, list: List) {
        self.change(|state| state.list = list);
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

    fn has_list(&self) -> Result<(), LockError> {
        match self.0.state.lock().list {
            List::Missing => Err(LockError::Service("no debugfs".to_owned())),
            _ => Ok(()),
        }
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
            // It may panic.
            6 => Err(errno(EIO)),
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

    fn list(&self) -> io::Result<Box<dyn Read>> {
        let state = self.kernel.0.state.lock();
        let text = match (&state.list, state.spaces.get(&self.space)) {
            (List::True, Some(space)) => space.list(),
            (List::Broken(text), Some(_)) => (*text).to_owned(),
            _ => return Err(errno(ENOENT)),
        };
        Ok(Box::new(Cursor::new(text)))
    }

    fn is_gone(&self, thread: u32) -> bool {
        let state = self.kernel.0.state.lock();
        state.ended.contains(&thread) || !state.processes.contains_key(&thread)
    }

    fn close(&self, leave: bool) -> io::Result<()> {
        self.kernel.change(|state| {
            if let Some(space) = state.spaces.get_mut(&self.space) {
                space.close(self.process, state.slow);
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
