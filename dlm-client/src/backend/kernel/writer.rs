//! The thread that joins, writes what was asked for, and leaves; and its queue.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::books::{Call, Written};
use super::{Device, Kernel, Shared, abi, orphans, reader};
use crate::{Event, Leave, LockError};

/// After how long a write is tried again that the kernel was too busy for.
const AGAIN: Duration = Duration::from_millis(5);
/// How long the end of what was taken back is waited for: the node that masters them may be gone.
const TAKE_BACK: Duration = Duration::from_secs(2);

/// What is to be written.
#[derive(Debug)]
pub(super) enum Task {
    Call(Call),
    Purge,
    Leave(Leave),
}

#[derive(Debug, Default)]
struct Tasks {
    queue: VecDeque<Task>,
    /// Nothing is taken after the last one.
    ended: bool,
}

/// The queue of the writer.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    tasks: Mutex<Tasks>,
    more: Condvar,
}

impl Outbox {
    pub(super) fn push(&self, task: Task) {
        let mut tasks = self.tasks.lock();
        if !tasks.ended {
            tasks.queue.push_back(task);
            self.more.notify_one();
        }
    }

    /// The end, before all that has not been written.
    pub(super) fn push_last(&self, task: Task) {
        let mut tasks = self.tasks.lock();
        if !std::mem::replace(&mut tasks.ended, true) {
            tasks.queue.clear();
            tasks.queue.push_back(task);
            self.more.notify_one();
        }
    }

    /// The next task; `None` when there is none until then.
    fn pop(&self, until: Option<Instant>) -> Option<Task> {
        let mut tasks = self.tasks.lock();
        loop {
            if let Some(task) = tasks.queue.pop_front() {
                return Some(task);
            }
            match until {
                None => self.more.wait(&mut tasks),
                Some(until) => {
                    if self.more.wait_until(&mut tasks, until).timed_out() {
                        return tasks.queue.pop_front();
                    }
                }
            }
        }
    }
}

/// Starts the threads of a lockspace.
pub(super) fn start(kernel: Arc<dyn Kernel>, shared: Arc<Shared>) -> Result<(), LockError> {
    std::thread::Builder::new()
        .name("dlm-write".to_owned())
        .spawn(move || {
            match join(kernel.as_ref(), &shared) {
                Ok((device, reader)) => Writer {
                    shared: &shared,
                    device,
                    reader: Some(reader),
                    later: VecDeque::new(),
                }
                .run(),
                Err(error) => shared.fatal(error),
            }
            shared.closed.set();
            shared.sender.close();
        })
        .map(|_detached| ())
        .map_err(no_thread)
}

fn no_thread(e: std::io::Error) -> LockError {
    LockError::Service(format!("no thread: {e}"))
}

fn join(kernel: &dyn Kernel, shared: &Arc<Shared>) -> Result<(Arc<dyn Device>, JoinHandle<()>), LockError> {
    let device = kernel.open(&shared.name)?;
    let (for_reader, its_device) = (Arc::clone(shared), Arc::clone(&device));
    let reader = std::thread::Builder::new()
        .name("dlm-read".to_owned())
        .spawn(move || reader::run(&for_reader, its_device.as_ref()))
        .map_err(no_thread)?;
    Ok((device, reader))
}

struct Writer<'a> {
    shared: &'a Arc<Shared>,
    device: Arc<dyn Device>,
    reader: Option<JoinHandle<()>>,
    /// Writes the kernel was too busy for, and all later ones to the same locks.
    later: VecDeque<(Instant, Call)>,
}

impl Writer<'_> {
    fn run(mut self) {
        loop {
            let due = self.later.front().map(|(due, _)| *due);
            if let Some(due) = due
                && Instant::now() >= due
                && let Some((_, call)) = self.later.pop_front()
            {
                self.write(call);
                continue;
            }
            match self.shared.outbox.pop(due) {
                Some(Task::Call(call)) if self.later.iter().any(|(_, before)| before.id == call.id) => {
                    self.put_off(call);
                }
                Some(Task::Call(call)) => self.write(call),
                Some(Task::Purge) => {
                    if let Err(why) = orphans::purge(self.shared, self.device.as_ref()) {
                        self.fatal(format!("orphans could not be dropped: {why}"));
                    }
                }
                Some(Task::Leave(how)) => return self.leave(how),
                None => {}
            }
        }
    }

    fn fatal(&self, text: String) {
        self.shared.fatal(LockError::Service(text));
    }

    fn put_off(&mut self, call: Call) {
        let now = Instant::now();
        self.later
            .push_back((now.checked_add(AGAIN).unwrap_or(now), call));
    }

    fn write(&mut self, call: Call) {
        let bytes = self.shared.books.lock().books.bytes(&call);
        let Some(bytes) = bytes else { return };
        let returned = match self.device.write(&bytes) {
            Ok(number) => Ok(number),
            Err(e) => match e.raw_os_error() {
                Some(errno) => Err(errno),
                None => return self.fatal(format!("the DLM's device: {e}")),
            },
        };
        let mut state = self.shared.books.lock();
        let written = state.books.written(&call, returned);
        match written {
            Written::Fine => {}
            Written::Later => {
                drop(state);
                self.put_off(call);
            }
            Written::Over(event) => self.deliver(&mut state, event),
            Written::Broken(text) => {
                drop(state);
                self.fatal(text);
            }
        }
    }

    fn deliver(&self, state: &mut super::State, event: Event) {
        if !self.shared.deliver(state, event) {
            state.left = true;
            self.shared.outbox.push_last(Task::Leave(Leave::Abandon));
        }
    }

    /// Takes back what waits. A kernel (6.1, 6.12) that finds a request at a close counts it among the orphans although it
    /// ends it: it stays in its memory until the lockspace is left, and a PURGE, whoever asks for it, breaks its lists.
    /// And of what is still on its way to another node then, it tells this process when it is no more.
    fn take_back(&self) {
        let books = || self.shared.books.lock();
        let calls = books().books.waiting();
        for call in &calls {
            let bytes = books().books.bytes(call);
            // One that has ended meanwhile is no error.
            if let Some(Err(e)) = bytes.map(|bytes| self.device.write(&bytes)) {
                tracing::debug!("taking back lock {:#x}: {e}", call.id.0);
            }
        }
        let now = Instant::now();
        let until = now.checked_add(TAKE_BACK).unwrap_or(now);
        let mut buffer = [0; abi::RESULT_MAX];
        while !books().books.waiting().is_empty() && Instant::now() < until {
            let told = match self.device.read(&mut buffer) {
                Ok(len) => abi::result(buffer.get(..len).unwrap_or(&[])),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(AGAIN);
                    continue;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            // What cannot be understood ends it: nobody is told of anything any more.
            if !told.is_ok_and(|told| books().books.told(&told).is_ok()) {
                return;
            }
        }
    }

    fn leave(mut self, how: Leave) {
        self.shared.books.lock().left = true;
        if let Some(reader) = self.reader.take() {
            self.device.wake();
            // If it panicked, it has said so.
            let _panicked = reader.join();
        }
        self.take_back();
        if let Err(e) = self.device.close(how == Leave::Clean) {
            let text = format!("leaving lockspace {}: {e}", self.shared.name);
            tracing::error!("{text}");
            let _nobody_listens = self.shared.sender.send(Event::Fatal(LockError::Service(text)));
        }
    }
}
