//! A thread that answers requests says so before it sleeps, so that another one takes over meanwhile.
//!
//! The transport registers, per thread, what is to be done; whoever is about to wait for a lock or a device calls
//! [`about_to_sleep`], or [`reading`] for a wait that soon ends by itself. Invariants: on a thread that registered
//! nothing it does nothing; it takes no lock that a sleeper could hold, and costs no more than a look at a thread-local
//! when it was called before.

use std::cell::RefCell;
use std::rc::Rc;

/// What a thread tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It may sleep now, nobody knows how long.
    Sleep,
    /// It waits for a read of the device, which ends by itself.
    Read,
    /// That read has ended.
    Woke,
}

type Hook = Rc<dyn Fn(Moment)>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// From now on this thread calls `hook` before it sleeps.
pub fn register(hook: impl Fn(Moment) + 'static) {
    HOOK.set(Some(Rc::new(hook)));
}

fn tell(moment: Moment) {
    // Cloned, so that the hook may wait itself.
    let hook = HOOK.with_borrow(Clone::clone);
    if let Some(hook) = hook {
        hook(moment);
    }
}

/// This thread may sleep now.
pub fn about_to_sleep() {
    tell(Moment::Sleep);
}

/// Reads from the device.
pub fn reading<T>(read: impl FnOnce() -> T) -> T {
    tell(Moment::Read);
    let result = read();
    tell(Moment::Woke);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_thread_that_registered_is_called() {
        about_to_sleep();
        let count = Rc::new(Cell::new(0));
        let seen = Rc::clone(&count);
        register(move |moment| {
            let value = match moment {
                Moment::Sleep => 1,
                Moment::Read => 10,
                Moment::Woke => 100,
            };
            seen.set(seen.get() + value);
        });
        about_to_sleep();
        std::thread::spawn(about_to_sleep).join().unwrap();
        about_to_sleep();
        assert_eq!(count.get(), 2);
        reading(|| assert_eq!(count.get(), 12));
        assert_eq!(count.get(), 112);
    }
}
