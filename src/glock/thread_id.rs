//! The number of the running thread, as the kernel knows it (so that a dump's `p:` can be found in `ps -L`).

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

thread_local! {
    static CURRENT: Cell<u32> = const { Cell::new(0) };
}

/// Numbers for threads whose kernel number is unknown (no /proc): above any real one.
static UNKNOWN: AtomicU32 = AtomicU32::new(1 << 30);

/// The current thread's number; not zero.
pub(crate) fn current() -> u32 {
    CURRENT.with(|current| {
        if current.get() == 0 {
            current.set(kernel_number().unwrap_or_else(|| UNKNOWN.fetch_add(1, Ordering::Relaxed)));
        }
        current.get()
    })
}

fn kernel_number() -> Option<u32> {
    let link = std::fs::read_link("/proc/thread-self").ok()?;
    link.file_name()?
        .to_str()?
        .parse()
        .ok()
        .filter(|number| *number != 0)
}

/// The name of a thread of this process, if it still lives.
pub(crate) fn name_of(thread: u32) -> Option<String> {
    let comm = std::fs::read_to_string(format!("/proc/self/task/{thread}/comm")).ok()?;
    Some(comm.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_have_different_numbers_and_their_names() {
        let here = current();
        assert_eq!(here, current());
        let other = std::thread::Builder::new().name("glock-other".into());
        let other = other
            .spawn(|| (current(), name_of(current())))
            .unwrap()
            .join()
            .unwrap();
        assert_ne!(here, other.0);
        assert_eq!(other.1.as_deref(), Some("glock-other"));
        assert_eq!(name_of(other.0), None, "it has ended");
    }
}
