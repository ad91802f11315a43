//! A thread that answers requests says so before it sleeps, so that another one takes over meanwhile.
//!
//! The transport registers, per thread, what is to be done; whoever is about to wait for a lock or a device calls
//! [`about_to_sleep`]. Invariants: on a thread that registered nothing it does nothing; it takes no lock that a sleeper
//! could hold, and costs no more than a look at a thread-local when it was called before.

use std::cell::RefCell;
use std::rc::Rc;

type Hook = Rc<dyn Fn()>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// From now on this thread calls `hook` before it sleeps.
pub fn register(hook: impl Fn() + 'static) {
    HOOK.set(Some(Rc::new(hook)));
}

/// This thread may sleep now.
pub fn about_to_sleep() {
    // Cloned, so that the hook may wait itself.
    let hook = HOOK.with_borrow(Clone::clone);
    if let Some(hook) = hook {
        hook();
    }
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
        register(move || seen.set(seen.get() + 1));
        about_to_sleep();
        std::thread::spawn(about_to_sleep).join().unwrap();
        about_to_sleep();
        assert_eq!(count.get(), 2);
    }
}
