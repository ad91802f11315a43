//! Glocks as text, in the format of the kernel's debugfs file `glocks`, which operators and scripts know.
//!
//! One line per thing; G glock, H holder, then what the object adds, indented by one blank. `d:` is the demote wanted
//! (EX: none) and for how many microseconds; `m:` the hold time in ms; the holder's place in the code stands where the
//! kernel prints a symbol.

use std::fmt;
use std::sync::Arc;

use super::lock::Glock;
use super::machine::{GlockFlags, Holder, Phase};
use super::state::State;
use super::thread_id;

/// Writes one glock.
///
/// # Errors
/// Those of the writer.
pub(crate) fn glock(glock: &Arc<Glock>, f: &mut dyn fmt::Write) -> fmt::Result {
    let holders: Vec<Holder>;
    let state;
    {
        let inner = glock.inner.lock();
        let machine = &inner.machine;
        state = machine.state();
        holders = machine.holders().to_vec();
        let (demote, since) = machine.demote().unwrap_or((State::Ex, glock.shared.now()));
        let demoting = machine.flags().contains(GlockFlags::DEMOTE);
        let age = if demoting {
            glock.shared.now().saturating_sub(since).as_micros()
        } else {
            0
        };
        // One reference is ours, one the table's; the kernel counts neither.
        let references = Arc::strong_count(glock).saturating_sub(2);
        writeln!(
            f,
            "G:  s:{state} n:{} f:{} t:{} d:{demote}/{age} a:{} v:{} r:{references} m:{} p:0",
            glock.name(),
            letters(
                glock,
                machine.flags(),
                machine.phase(),
                !holders.is_empty(),
                references
            ),
            machine.target(),
            glock.ail_count(),
            glock.revokes(),
            machine.hold_time().as_millis(),
        )?;
    }
    for holder in &holders {
        write_holder(holder, f)?;
    }
    if state != State::Un {
        glock.ops().dump(glock, f)?;
    }
    Ok(())
}

fn write_holder(holder: &Holder, f: &mut dyn fmt::Write) -> fmt::Result {
    let thread = holder.owner.unwrap_or(0);
    let name = match holder.owner {
        None => "(none)".to_owned(),
        Some(thread) => thread_id::name_of(thread).unwrap_or_else(|| "(ended)".to_owned()),
    };
    let flags = holder.flags.letters(holder.is_granted());
    writeln!(
        f,
        " H: s:{} f:{flags} e:0 p:{thread} [{name}] {}",
        holder.state, holder.site
    )
}

fn letters(glock: &Glock, flags: GlockFlags, phase: Phase, queued: bool, references: usize) -> String {
    let table = [
        (phase != Phase::Idle, 'l'),
        (flags.contains(GlockFlags::DEMOTE), 'D'),
        (flags.contains(GlockFlags::PENDING_DEMOTE), 'd'),
        (flags.contains(GlockFlags::DEMOTE_IN_PROGRESS), 'p'),
        (glock.is_dirty(), 'y'),
        (glock.needs_log_flush(), 'f'),
        (flags.contains(GlockFlags::INVALIDATE_IN_PROGRESS), 'i'),
        (flags.contains(GlockFlags::PENDING_REPLY), 'R'),
        (flags.contains(GlockFlags::INITIAL), 'a'),
        (flags.contains(GlockFlags::HAVE_FROZEN_REPLY), 'F'),
        (queued, 'q'),
        (references == 0, 'L'),
        (glock.has_object(), 'o'),
        (flags.contains(GlockFlags::BLOCKING), 'b'),
        (flags.contains(GlockFlags::INSTANTIATE_NEEDED), 'n'),
        (flags.contains(GlockFlags::INSTANTIATE_IN_PROG), 'N'),
    ];
    table
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, letter)| *letter)
        .collect()
}
