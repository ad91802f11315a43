//! The users: random calls, all with what the oracle must know of them.

use super::oracle::{Doing, Life, Oracle};
use super::rng::Rng;
use crate::engine::Engine;
use crate::lvb::{LvbMove, transfer};
use crate::{Lkf, LockError, LockId, Lvb, Mode, ResName};

/// Locks a user has at most (keepers apart).
const LOCKS_MAX: usize = 12;

pub(super) fn name(resource: u64) -> ResName {
    let text = format!("{:8x}{:16x}", 2, resource.wrapping_mul(0x9e37_79b9));
    ResName::new(text.as_bytes()).expect("a name of 24 bytes")
}

fn bytes(rng: &mut Rng) -> Lvb {
    let mut value = [0u8; 32];
    for chunk in value.chunks_mut(8) {
        for (to, from) in chunk.iter_mut().zip(rng.next().to_le_bytes()) {
            *to = from;
        }
    }
    value
}

/// A lock on every resource that keeps its value block.
pub(super) fn keep(engine: &mut Engine, life: Life, resources: u64, oracle: &mut Oracle) {
    for resource in 0..resources {
        if let Ok(id) = engine.request(&name(resource), Mode::Nl, Lkf::VALBLK, resource) {
            oracle.requested(life, id, resource, true);
        }
    }
}

/// One call. `ending`: only towards having no locks.
pub(super) fn act(
    engine: &mut Engine,
    life: Life,
    resources: u64,
    ending: bool,
    oracle: &mut Oracle,
    rng: &mut Rng,
) {
    let locks = oracle.locks_of(life);
    let free: Vec<LockId> = locks
        .iter()
        .filter(|(_, lock)| lock.doing == Doing::Idle && (ending || !lock.keeper))
        .map(|(id, _)| *id)
        .collect();
    let busy: Vec<LockId> = locks
        .iter()
        .filter(|(_, lock)| !matches!(lock.doing, Doing::Idle | Doing::Cutting) && !lock.keeper)
        .map(|(id, _)| *id)
        .collect();
    if ending {
        // One at a time, so that what waits for us is granted and not cut off.
        if let Some(id) = rng.pick(&free) {
            unlock(engine, life, id, Lkf::empty(), oracle, rng);
        }
        return;
    }
    let count = locks.iter().filter(|(_, lock)| !lock.keeper).count();
    match rng.below(16) {
        0..=5 if count < LOCKS_MAX => request(engine, life, rng.below(resources), oracle, rng),
        0..=9 => {
            if let Some(id) = rng.pick(&free) {
                convert(engine, life, id, oracle, rng);
            }
        }
        10..=13 => {
            if let Some(id) = rng.pick(&free) {
                unlock(engine, life, id, Lkf::empty(), oracle, rng);
            }
        }
        14 => {
            if let Some(id) = rng.pick(&busy) {
                // What it comes to is told by Casts.
                let _nothing_to_cancel = engine.cancel(id);
            }
        }
        _ => {
            if let Some(id) = rng.pick(&busy).or_else(|| rng.pick(&free)) {
                unlock(engine, life, id, Lkf::FORCEUNLOCK, oracle, rng);
            }
        }
    }
}

fn some_mode(rng: &mut Rng) -> Mode {
    const MODES: [Mode; 12] = [
        Mode::Nl,
        Mode::Cr,
        Mode::Cw,
        Mode::Cw,
        Mode::Pr,
        Mode::Pr,
        Mode::Pr,
        Mode::Pw,
        Mode::Ex,
        Mode::Ex,
        Mode::Ex,
        Mode::Ex,
    ];
    rng.pick(&MODES).unwrap_or(Mode::Nl)
}

fn request(engine: &mut Engine, life: Life, resource: u64, oracle: &mut Oracle, rng: &mut Rng) {
    let mode = some_mode(rng);
    let mut flags = Lkf::VALBLK;
    match rng.below(10) {
        0 => flags |= Lkf::NOQUEUE,
        1 => flags |= Lkf::NOQUEUE | Lkf::NOQUEUEBAST,
        2 => flags |= Lkf::HEADQUE,
        3 => flags |= Lkf::NOORDER,
        4 => flags |= Lkf::ALTPR,
        5 => flags |= Lkf::ALTCW,
        6 if mode == Mode::Nl => flags |= Lkf::EXPEDITE,
        _ => {}
    }
    match engine.request(&name(resource), mode, flags, resource) {
        Ok(id) => oracle.requested(life, id, resource, false),
        Err(error) => {
            oracle
                .wrong
                .get_or_insert(format!("{life:?}: request {mode} {flags:?}: {error}"));
        }
    }
}

fn convert(engine: &mut Engine, life: Life, id: LockId, oracle: &mut Oracle, rng: &mut Rng) {
    let Some(lock) = oracle.lock(life, id) else { return };
    let Some(from) = lock.held else { return };
    let to = some_mode(rng);
    let mut flags = Lkf::VALBLK;
    match rng.below(8) {
        0 => flags |= Lkf::NOQUEUE,
        1 => flags |= Lkf::CONVDEADLK,
        2 => flags |= Lkf::HEADQUE,
        3..=5 if from.quecvt_legal(to) => flags |= Lkf::QUECVT,
        _ => {}
    }
    let writes = transfer(from, to) == LvbMove::Write;
    let invalidates = writes && rng.one_in(20);
    if invalidates {
        flags |= Lkf::IVVALBLK;
    }
    let value = bytes(rng);
    if let Err(error) = engine.convert(id, to, flags, Some(&value)) {
        oracle.wrong.get_or_insert(format!(
            "{life:?}: convert {id:?} {from} to {to} {flags:?}: {error}"
        ));
        return;
    }
    oracle.converting(life, id, to, flags);
    if invalidates {
        oracle.doubt(Some(lock.resource));
    } else if writes {
        oracle.value(lock.resource, value);
    }
}

fn unlock(engine: &mut Engine, life: Life, id: LockId, force: Lkf, oracle: &mut Oracle, rng: &mut Rng) {
    let Some(lock) = oracle.lock(life, id) else { return };
    let value = bytes(rng);
    // What a forced unlock of an operation under way would write depends on how far that is.
    let given = lock.doing == Doing::Idle;
    let flags = if given { Lkf::VALBLK | force } else { force };
    if let Err(error) = engine.unlock(id, flags, given.then_some(&value)) {
        if error == LockError::NoSuchLock(id) && lock.doing != Doing::Idle {
            // Its last Cast is held back by recovery.
            return;
        }
        oracle
            .wrong
            .get_or_insert(format!("{life:?}: unlock {id:?} {force:?} {lock:?}: {error}"));
        return;
    }
    if given && lock.held >= Some(Mode::Pw) {
        if lock.invalidates {
            oracle.doubt(Some(lock.resource));
        } else {
            oracle.value(lock.resource, value);
        }
    }
    oracle.unlocking(life, id);
}
