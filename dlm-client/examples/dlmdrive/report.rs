//! What our lock manager tells, in the words of the kernel's device.

use dlm_client::{Event, LockError, Status};

use crate::party::Report;

/// An error of a call in words both lock managers share.
pub(crate) fn refused(error: &LockError) -> String {
    match error {
        LockError::Busy(_) => "busy".to_owned(),
        LockError::InvalidFlags { .. } => "invalid".to_owned(),
        LockError::NothingToCancel(_) => "nothing to cancel".to_owned(),
        other => other.to_string(),
    }
}

/// The status in the numbers of the device.
fn number(status: Status) -> i32 {
    match status {
        Status::Granted => 0,
        Status::Again => -11,
        Status::Deadlock => -35,
        Status::Unlocked => -0x1_0002,
        Status::Canceled => -0x1_0001,
        Status::TimedOut => -110,
        Status::Err(errno) => -errno,
    }
}

/// An event as a report.
pub(crate) fn report(event: &Event) -> Report {
    match event {
        Event::Cast(cast) => Report::Cast {
            token: cast.token,
            status: number(cast.status),
            sb: cast.sb.bits(),
            lvb: cast.lvb,
        },
        Event::Bast { token, mode, .. } => Report::Bast {
            token: *token,
            mode: *mode,
        },
        Event::RecoverPrep => Report::Other("prepare".to_owned()),
        Event::RecoverSlot { failed } => {
            Report::Other(format!("failed node {} slot {}", failed.node.0, failed.slot))
        }
        Event::RecoverDone {
            slots,
            our_slot,
            generation,
        } => {
            let slots: Vec<String> = slots.iter().map(|s| format!("{}:{}", s.slot, s.node.0)).collect();
            Report::Other(format!(
                "done generation {generation} our slot {our_slot} slots {}",
                slots.join(" ")
            ))
        }
        Event::Plock(done) => Report::Other(format!("plock {} {:?}", done.token, done.status)),
        Event::Fatal(error) => Report::Other(format!("fatal {error}")),
        other => Report::Other(format!("{other:?}")),
    }
}
