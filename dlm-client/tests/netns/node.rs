//! One node's process: our lock manager on the node's corosync, a user that locks, and a log of what it was given.
//!
//! Lines of the log begin with the time. `grant RES MODE COUNT` is written after a grant was heard, `release RES COUNT`
//! before it is given up; COUNT is the number in the lock value block, which every EX holder raises by one, or `lost`.

use std::fs::File;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dlm_client::backend::wire::{WireDlm, WireOptions};
use dlm_client::fence::conf::DlmConf;
use dlm_client::membership::Membership;
use dlm_client::membership::corosync::CorosyncMembership;
use dlm_client::transport::{Poller, TcpTransport};
use dlm_client::{
    Cast, Dlm, Event, EventQueue, JoinOptions, LVB_LEN, Leave, Lkf, LockId, Lockspace, Lvb, Mode, NodeId,
    Plock, PlockOp, ResName, SbFlags, Status,
};
use parking_lot::Mutex;

use crate::lab::{clock, wait_for};

/// Resources that all nodes fight for.
pub(crate) const RESOURCES: usize = 3;

struct Log(Mutex<File>);

impl Log {
    fn line(&self, text: &str) {
        let mut file = self.0.lock();
        writeln!(file, "{:.6} {text}", clock()).expect("the log can be written");
    }
}

struct User {
    log: Arc<Log>,
    space: Arc<dyn Lockspace>,
    queue: EventQueue,
    quit: Arc<AtomicBool>,
    locks: Vec<LockId>,
    random: fastrand::Rng,
}

/// The end of the lockspace.
struct Over;

impl User {
    /// Everything that comes; a Cast is returned.
    fn event(&self, event: Option<Event>) -> Result<Option<Cast>, Over> {
        match event {
            Some(Event::Cast(cast)) => return Ok(Some(cast)),
            Some(Event::Fatal(error)) => {
                self.log.line(&format!("fatal {error}"));
                return Err(Over);
            }
            Some(Event::RecoverPrep) => self.log.line("prepare"),
            Some(Event::RecoverSlot { failed }) => {
                self.log.line(&format!("slot of {} failed", failed.node.0))
            }
            Some(Event::RecoverDone { slots, .. }) => {
                let members: Vec<String> = slots.iter().map(|slot| slot.node.0.to_string()).collect();
                self.log.line(&format!("members {}", members.join(",")));
            }
            Some(Event::Plock(done)) => self.log.line(&format!("plock {} {:?}", done.token, done.status)),
            Some(_) => {}
            None => {
                self.log.line("ended");
                return Err(Over);
            }
        }
        Ok(None)
    }

    fn cast(&self, id: LockId) -> Result<Cast, Over> {
        loop {
            if let Some(cast) = self.event(self.queue.recv())?
                && cast.id == id
            {
                return Ok(cast);
            }
        }
    }

    fn is_ok<T>(&self, done: Result<T, dlm_client::LockError>) -> Result<T, Over> {
        done.map_err(|error| {
            self.log.line(&format!("error {error}"));
            // The queue says why, if it says anything more.
            while let Ok(Some(_) | None) = self.event(self.queue.recv()) {}
            Over
        })
    }

    /// One lock for each resource, in NL, so that the value blocks stay.
    fn begin(&mut self) -> Result<(), Over> {
        for number in 0..RESOURCES {
            let name = ResName::new(format!("res{number}").as_bytes()).expect("a name");
            let id = self.is_ok(self.space.request(&name, Mode::Nl, Lkf::VALBLK, 0))?;
            assert_eq!(self.cast(id)?.status, Status::Granted);
            self.locks.push(id);
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<(), Over> {
        let number = self.random.usize(0..RESOURCES);
        let id = self.locks[number];
        let mode = if self.random.u8(0..3) == 0 {
            Mode::Ex
        } else {
            Mode::Pr
        };
        let now = self.is_ok(self.space.convert_now(id, mode, Lkf::VALBLK, None))?;
        let cast = match now {
            Some(cast) => cast,
            None => self.cast(id)?,
        };
        assert_eq!(cast.status, Status::Granted, "{cast:?}");
        let lvb = cast.lvb.unwrap_or([0; LVB_LEN]);
        let (head, _) = lvb.split_first_chunk().expect("8 bytes");
        let mut count = u64::from_le_bytes(*head);
        let said = if cast.sb.contains(SbFlags::VALNOTVALID) {
            "lost".to_owned()
        } else {
            count.to_string()
        };
        self.log.line(&format!("grant {number} {mode:?} {said}"));
        std::thread::sleep(Duration::from_micros(self.random.u64(0..3000)));
        let mut new: Lvb = lvb;
        if mode == Mode::Ex {
            count += 1;
            new[..8].copy_from_slice(&count.to_le_bytes());
        }
        self.log.line(&format!("release {number} {count}"));
        let done = self.is_ok(self.space.convert_now(id, Mode::Nl, Lkf::VALBLK, Some(&new)))?;
        if done.is_none() {
            self.cast(id)?;
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), Over> {
        // The first event is the end of the join.
        self.event(self.queue.recv())?;
        self.begin()?;
        self.log.line("ready");
        while !self.quit.load(Ordering::Acquire) {
            self.turn()?;
            while let Some(event) = self.queue.try_recv() {
                self.event(Some(event))?;
            }
        }
        self.is_ok(self.space.leave(Leave::Clean))?;
        while self.event(self.queue.recv()).is_ok() {}
        self.log.line("left");
        Ok(())
    }
}

fn plock(space: &Arc<dyn Lockspace>, words: &[&str]) -> Option<()> {
    let [token, op, number, start, end, owner, kind] = words[..] else {
        return None;
    };
    let token = token.parse().ok()?;
    let op = match op {
        "lock" => PlockOp::Lock { wait: true },
        "try" => PlockOp::Lock { wait: false },
        "unlock" => PlockOp::Unlock { close: false },
        "test" => PlockOp::Test,
        "cancel" => return space.plock_cancel(token).ok(),
        _ => return None,
    };
    let lock = Plock {
        number: number.parse().ok()?,
        start: start.parse().ok()?,
        end: end.parse().ok()?,
        owner: owner.parse().ok()?,
        pid: std::process::id(),
        exclusive: kind == "w",
    };
    space.plock(op, &lock, token).ok()
}

fn variable(name: &str) -> String {
    std::env::var(name).expect("set by the lab")
}

/// Starts our node as the lab says; an error is one line.
fn start() -> Result<WireDlm, String> {
    let text = std::fs::read_to_string(variable("NETNS_CONF")).expect("dlm.conf");
    let conf = DlmConf::parse(&text).map_err(|error| error.to_string())?;
    let membership = CorosyncMembership::connect().map_err(|error| error.to_string())?;
    let us = membership.config().us;
    assert_eq!(us.0.to_string(), variable("NETNS_NODE"));
    let poller = Poller::new().expect("a poller");
    let address = ([10, 77, 0, us.0 as u8], conf.port).into();
    let transport = TcpTransport::listen(address, poller.clone()).map_err(|error| error.to_string())?;
    let mut options = WireOptions::new(conf);
    options.cluster = Some(variable("NETNS_CLUSTER"));
    WireDlm::start(membership, Box::new(transport), poller, &options).map_err(|error| error.to_string())
}

/// A node's process; the lab says which by its environment.
pub(crate) fn process() {
    if std::env::var_os("NETNS_TRY").is_some() {
        return println!("{}", start().err().unwrap_or_default());
    }
    let level = std::env::var("DLM_LOG").unwrap_or_else(|_| "dlm_client=debug".to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(level)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let log = Arc::new(Log(Mutex::new(
        File::options()
            .append(true)
            .open(variable("NETNS_LOG"))
            .expect("the log"),
    )));
    // Corosync may be starting.
    let dlm = wait_for("our node", Duration::from_secs(60), || {
        start().inspect_err(|error| eprintln!("{error}")).ok()
    });
    let (space, queue) = dlm.join("fs", &JoinOptions::default()).expect("joined");
    let quit = Arc::new(AtomicBool::new(false));
    let mut user = User {
        log: Arc::clone(&log),
        space: Arc::clone(&space),
        queue,
        quit: Arc::clone(&quit),
        locks: Vec::new(),
        random: fastrand::Rng::new(),
    };
    let worker = std::thread::spawn(move || drop(user.run()));
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["quit"] => quit.store(true, Ordering::Release),
            // The node stays without a lockspace.
            ["leave"] => {
                quit.store(true, Ordering::Release);
                continue;
            }
            ["plocks"] => {
                let lines = dlm.plock_lines("fs").unwrap_or_default();
                log.line(&format!("plocks {}", lines.join(" | ")));
            }
            ["status"] => log.line(&format!("status {:?}", dlm.status())),
            ["fencing"] => {
                let lines = dlm.status().fencing_lines();
                log.line(&format!("fencing {}", lines.join(" | ")));
            }
            ["ack", node] => dlm.acknowledge_fencing(NodeId(node.parse().expect("a node"))),
            ["plock", ..] if plock(&space, &words[1..]).is_some() => {}
            _ => log.line(&format!("refused {line}")),
        }
        if quit.load(Ordering::Acquire) {
            break;
        }
    }
    worker.join().expect("the user did not panic");
}
