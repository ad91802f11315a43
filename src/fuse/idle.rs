//! A thread that runs only where nothing else wants to: SCHED_IDLE, for which no crate at hand has a safe call.

#![allow(unsafe_code)]

use rustix::thread::Pid;
use std::io;

/// From now on this thread gives way to any other of its processor at once.
///
/// # Errors
/// The system's.
pub(super) fn give_way(thread: Pid) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the structure lives during the call, which only reads it; who has this number is the kernel's business.
    let result =
        unsafe { libc::sched_setscheduler(thread.as_raw_nonzero().get(), libc::SCHED_IDLE, &parameters) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn the_kernel_shows_the_policy() {
        let (tell, told) = channel();
        let (_end, ended) = channel::<()>();
        std::thread::spawn(move || {
            tell.send(rustix::thread::gettid()).unwrap();
            let _ = ended.recv();
        });
        let id = told.recv().unwrap();
        let policy = || {
            let text =
                std::fs::read_to_string(format!("/proc/self/task/{}/stat", id.as_raw_nonzero())).unwrap();
            // Field 41, counted from behind the name.
            let after = text.rsplit(')').next().unwrap().to_owned();
            after.split_whitespace().nth(38).unwrap().parse::<i32>().unwrap()
        };
        assert_eq!(policy(), libc::SCHED_OTHER);
        give_way(id).unwrap();
        assert_eq!(policy(), libc::SCHED_IDLE);
    }
}
