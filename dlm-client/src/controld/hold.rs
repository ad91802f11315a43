//! Starts of lock engines wait while the daemon does not know whether the cluster still counts it in.
//!
//! A daemon that stood still finds a backlog: news of changes long past, with all the messages for a start among them.
//! Whether it was given up meanwhile is told only behind them. So no engine is started between [`Action::Suspend`] and
//! [`Action::Resume`], nor after a pause until the backlog is over; what a start that was overtaken would have told of members gone, the next one tells.

use std::collections::BTreeMap;

use super::action::{Action, Gone, Order, Out, Start};

/// A start that the engine has not been given.
#[derive(Debug)]
struct Held {
    start: Start,
    /// Still to be given; otherwise a stop has overtaken it.
    due: bool,
}

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Hold {
    suspended: bool,
    behind: bool,
    starts: BTreeMap<String, Held>,
}

/// The later of two starts, for an engine that was not given the earlier.
fn merged(earlier: Option<Held>, mut start: Start) -> Start {
    let Some(Held { start: earlier, .. }) = earlier else {
        return start;
    };
    start.joining |= earlier.joining;
    for Gone { node, failed } in earlier.gone {
        match start.gone.iter_mut().find(|gone| gone.node == node) {
            Some(gone) => gone.failed |= failed,
            None => start.gone.push(Gone { node, failed }),
        }
    }
    start
}

impl Hold {
    /// Takes out of the actions what must wait, and puts in what has waited long enough. `behind`: there may be news that
    /// we have not heard.
    pub(super) fn sift(&mut self, behind: bool, out: &mut Out) {
        self.behind = behind;
        for action in std::mem::take(&mut out.0) {
            match action {
                Action::Suspend => self.suspended = true,
                Action::Resume => self.suspended = false,
                Action::Engine { lockspace, order } => {
                    self.order(lockspace, order, out);
                    continue;
                }
                _ => {}
            }
            out.push(action);
        }
        if !self.suspended && !behind {
            self.release(out);
        }
    }

    fn order(&mut self, lockspace: String, order: Order, out: &mut Out) {
        let order = match order {
            Order::Start(start) => {
                let start = merged(self.starts.remove(&lockspace), start);
                if self.suspended || self.behind {
                    self.starts.insert(lockspace, Held { start, due: true });
                    return;
                }
                Order::Start(start)
            }
            Order::Stop => match self.starts.get_mut(&lockspace) {
                // It is stopped: the start never came to it.
                Some(held) => {
                    held.due = false;
                    return;
                }
                None => Order::Stop,
            },
            Order::Left => {
                self.starts.remove(&lockspace);
                Order::Left
            }
        };
        out.push(Action::Engine { lockspace, order });
    }

    fn release(&mut self, out: &mut Out) {
        let due = self.starts.extract_if(.., |_, held| held.due);
        for (lockspace, held) in due {
            let order = Order::Start(held.start);
            out.push(Action::Engine { lockspace, order });
        }
    }
}

#[cfg(test)]
#[path = "hold/tests.rs"]
mod tests;
