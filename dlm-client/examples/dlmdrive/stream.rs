//! A random stream of lock operations on one to several nodes, after each of which all of them come to rest.
//!
//! The choice of operations follows from the seed and from what came of those before; two clusters whose lock managers
//! behave alike give the same lines. Each node masters a resource of its own on which every other holds a lock: a trip
//! to there and back by all, twice, carries out everything that is under way.

use dlm_client::lvb::{LvbMove, transfer};
use dlm_client::{Lkf, Mode};

use crate::party::{Party, hex};

/// Resources that are fought for.
const RESOURCES: u64 = 3;
/// Locks.
const LOCKS: usize = 12;
/// Tokens of the trips.
const TRIPS: u64 = 1000;

/// A lock as it must be after what was heard.
#[derive(Clone, Debug, Default)]
struct Lock {
    held: Option<Mode>,
    /// The mode asked for and the flags, while that is undecided.
    wanted: Option<(Option<Mode>, Lkf)>,
    /// The value block last given with a call.
    given: String,
    /// Has it asked for the value block? The device gives a lock no place for one when it is unlocked.
    block: bool,
}

struct Stream<'a, 'b> {
    random: fastrand::Rng,
    parties: &'a mut [&'b mut dyn Party],
    locks: Vec<Lock>,
    seed: u64,
}

fn bits(random: &mut fastrand::Rng, choices: &[(Lkf, u32)]) -> Lkf {
    let mut flags = Lkf::empty();
    for (flag, percent) in choices {
        if random.u32(0..100) < *percent {
            flags |= *flag;
        }
    }
    flags
}

impl Stream<'_, '_> {
    fn mode(&mut self) -> Mode {
        // The strong ones more often: they meet.
        let modes = [
            Mode::Nl,
            Mode::Cr,
            Mode::Cw,
            Mode::Pr,
            Mode::Pr,
            Mode::Pw,
            Mode::Ex,
            Mode::Ex,
        ];
        modes[self.random.usize(..modes.len())]
    }

    fn request(&mut self, at: usize) -> String {
        let mode = self.mode();
        let mut flags = bits(
            &mut self.random,
            &[
                (Lkf::NOQUEUE, 25),
                (Lkf::VALBLK, 60),
                (Lkf::HEADQUE, 5),
                (Lkf::NOORDER, 5),
                (Lkf::ALTPR, 4),
                (Lkf::ALTCW, 4),
            ],
        );
        if flags.contains(Lkf::NOQUEUE) && self.random.bool() {
            flags |= Lkf::NOQUEUEBAST;
        }
        if mode == Mode::Nl && !flags.contains(Lkf::NOQUEUE) && self.random.bool() {
            flags |= Lkf::EXPEDITE;
        }
        self.locks[at].wanted = Some((Some(mode), flags));
        let resource = self.random.u64(0..RESOURCES);
        format!("lock {at} s{}r{resource} {mode} {:x}", self.seed, flags.bits())
    }

    fn convert(&mut self, at: usize, from: Mode) -> String {
        let mode = self.mode();
        let mut flags = bits(
            &mut self.random,
            &[
                (Lkf::NOQUEUE, 20),
                (Lkf::VALBLK, 70),
                (Lkf::QUECVT, 25),
                (Lkf::HEADQUE, 5),
                (Lkf::NODLCKWT, 5),
                (Lkf::ALTPR, 4),
                (Lkf::ALTCW, 4),
            ],
        );
        if !from.quecvt_legal(mode) {
            flags.remove(Lkf::QUECVT);
        }
        if flags.contains(Lkf::NOQUEUE) && self.random.bool() {
            flags |= Lkf::NOQUEUEBAST;
        }
        if !flags.contains(Lkf::NOQUEUE) && self.random.u32(0..100) < 10 {
            flags |= Lkf::CONVDEADLK;
        }
        if self.random.u32(0..100) < 5 {
            flags |= Lkf::IVVALBLK;
        }
        self.locks[at].wanted = Some((Some(mode), flags));
        format!("convert {at} {mode} {:x} {}", flags.bits(), self.block(at))
    }

    fn unlock(&mut self, at: usize) -> String {
        let mut flags = bits(&mut self.random, &[(Lkf::VALBLK, 60), (Lkf::IVVALBLK, 8)]);
        if !self.locks[at].block {
            flags.remove(Lkf::VALBLK);
        }
        self.locks[at].wanted = Some((None, flags));
        format!("unlock {at} {:x} {}", flags.bits(), self.block(at))
    }

    fn block(&mut self, at: usize) -> String {
        let bytes: Vec<u8> = (0..32).map(|_| self.random.u8(..)).collect();
        self.locks[at].given = hex(&bytes);
        self.locks[at].given.clone()
    }

    /// The next operation: its lock and its command.
    fn choose(&mut self) -> (usize, String) {
        let at = self.random.usize(1..=LOCKS);
        let lock = &self.locks[at];
        let dice = self.random.u32(0..100);
        let command = match (lock.wanted, lock.held) {
            (None, None) => self.request(at),
            (None, Some(_)) if dice < 25 => self.unlock(at),
            (None, Some(from)) => self.convert(at, from),
            (Some(_), _) if dice < 50 => format!("cancel {at}"),
            (Some(_), Some(_)) if dice < 70 => format!("convert {at} NL 0 -"),
            (Some(_), _) => {
                // The kernel also takes an unforced unlock when the lock is only queued; our contract does not.
                let flags = Lkf::FORCEUNLOCK;
                format!("unlock {at} {:x} -", flags.bits())
            }
        };
        (at, command)
    }

    /// What a line says, without what is the device's own way of saying it.
    fn hear(&mut self, line: &str) -> Result<String, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["cast", token, status, sb, block] = words[..] else {
            return Ok(line.to_owned());
        };
        let strange = || format!("a strange line: {line}");
        let at: usize = token.parse().map_err(|_| strange())?;
        let status: i32 = status.parse().map_err(|_| strange())?;
        let sbflags = u32::from_str_radix(sb, 16).map_err(|_| strange())?;
        let lock = self.locks.get_mut(at).ok_or_else(strange)?;
        let (mode, flags) = lock.wanted.take().unwrap_or((None, Lkf::empty()));
        let mut said = format!("cast {token} {status} {sb}");
        let before = lock.held;
        match status {
            0 => {
                let mut mode = mode.ok_or_else(strange)?;
                if sbflags & 4 != 0 {
                    mode = if flags.contains(Lkf::ALTPR) {
                        Mode::Pr
                    } else {
                        Mode::Cw
                    };
                }
                lock.held = Some(mode);
                // Only a transition that reads says anything of the resource's block.
                let reads = transfer(before.unwrap_or(Mode::Nl), mode) == LvbMove::Read;
                // Of a resource without a block the device gives back what it was given, or zeros.
                let none = block == lock.given || block.bytes().all(|digit| digit == b'0');
                let block = if none { "-" } else { block };
                if reads && flags.contains(Lkf::VALBLK) {
                    said.push_str(&format!(" {block}"));
                }
            }
            -0x1_0002 => *lock = Lock::default(),
            _ if sbflags & 1 != 0 => lock.held = Some(Mode::Nl),
            _ => {}
        }
        Ok(said)
    }

    /// Brings all nodes to rest.
    fn settle(&mut self) -> Result<(), String> {
        let count = self.parties.len();
        for _ in 0..2 {
            for (at, party) in self.parties.iter_mut().enumerate() {
                for master in (0..count).filter(|master| *master != at || count == 1) {
                    party.ask(&format!("trip {}", TRIPS + u64::try_from(master).unwrap_or(0)))?;
                }
            }
        }
        Ok(())
    }
}

/// Plays `count` operations; `say` gets each and what came of it.
pub(crate) fn play(
    seed: u64,
    count: u64,
    parties: &mut [&mut dyn Party],
    say: &mut dyn FnMut(&str),
) -> Result<(), String> {
    for master in 0..parties.len() {
        let token = TRIPS + u64::try_from(master).unwrap_or(0);
        let mut order: Vec<usize> = (0..parties.len()).collect();
        order.rotate_left(master);
        for at in order {
            parties[at].ask(&format!("lock {token} s{seed}trip{master} NL 0"))?;
            parties[at].ask(&format!("wait {token} 60000"))?;
        }
    }
    let mut stream = Stream {
        random: fastrand::Rng::with_seed(seed),
        parties,
        locks: vec![Lock::default(); LOCKS + 1],
        seed,
    };
    for _ in 0..count {
        let (at, command) = stream.choose();
        let before = stream.locks[at].clone();
        say(&command);
        let nodes = stream.parties.len();
        if let Err(error) = stream.parties[at % nodes].ask(&command) {
            say(&format!("  refused: {error}"));
            // The operation that was under way still is.
            if before.wanted.is_none() {
                stream.locks[at].wanted = None;
            }
        } else if let Some((_, flags)) = stream.locks[at].wanted {
            stream.locks[at].block |= flags.contains(Lkf::VALBLK);
        }
        stream.settle()?;
        for node in 0..nodes {
            for line in stream.parties[node].ask("events")? {
                let said = stream.hear(&line)?;
                say(&format!("  {node}: {said}"));
            }
        }
    }
    finish(&mut stream)
}

/// Drops all locks.
fn finish(stream: &mut Stream<'_, '_>) -> Result<(), String> {
    let nodes = stream.parties.len();
    for at in 1..=LOCKS {
        let lock = &stream.locks[at];
        if lock.held.is_some() || lock.wanted.is_some() {
            let _ended_meanwhile = stream.parties[at % nodes].ask(&format!("unlock {at} 20000 -"));
            stream.settle()?;
        }
    }
    for node in 0..nodes {
        stream.parties[node].ask("events")?;
        for master in 0..nodes {
            let token = TRIPS + u64::try_from(master).unwrap_or(0);
            stream.parties[node].ask(&format!("unlock {token} 0 -"))?;
            stream.parties[node].ask(&format!("wait {token} 60000"))?;
        }
    }
    Ok(())
}
