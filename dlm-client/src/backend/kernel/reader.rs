//! The thread that reads results, and the log before it believes them.

use std::io::ErrorKind;

use super::abi::{self, Told};
use super::log::{Follower, News};
use super::writer::Task;
use super::{Device, Shared, State};
use crate::{Event, Leave, LockError};

/// Results that are read before the log is.
const BATCH: usize = 64;
/// More than a record of the log has.
const RECORD_MAX: usize = 8192;
/// How often the history is begun anew because it was overwritten meanwhile.
const HISTORIES: u32 = 5;

/// Overwritten before it was read.
const EPIPE: i32 = 32;
/// A record that does not fit.
const EINVAL: i32 = 22;

struct Reader<'a> {
    shared: &'a Shared,
    device: &'a dyn Device,
    follower: Follower,
}

/// What reading a record of the log gave.
enum Record {
    Text(usize),
    None,
    Overwritten,
}

/// Reads until the lockspace is left or lost.
pub(super) fn run(shared: &Shared, device: &dyn Device) {
    let follower = Follower::new(&shared.name, shared.us, shared.need_slots);
    let mut reader = Reader {
        shared,
        device,
        follower,
    };
    if let Err(text) = reader.history().and_then(|()| reader.follow()) {
        shared.fatal(LockError::Service(text));
    }
}

impl Reader<'_> {
    fn next_record(&self, buffer: &mut [u8]) -> Result<Record, String> {
        loop {
            match self.device.read_log(buffer) {
                Ok(0) => return Ok(Record::None),
                Ok(len) => return Ok(Record::Text(len)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Record::None),
                Err(e) if e.kind() == ErrorKind::Interrupted || e.raw_os_error() == Some(EINVAL) => {}
                Err(e) if e.raw_os_error() == Some(EPIPE) => return Ok(Record::Overwritten),
                Err(e) => return Err(format!("the kernel's log: {e}")),
            }
        }
    }

    /// What happened before we came: the lockspace may have been joined by a process that died.
    fn history(&mut self) -> Result<(), String> {
        let mut buffer = vec![0; RECORD_MAX];
        for _ in 0..HISTORIES {
            self.follower = Follower::new(&self.shared.name, self.shared.us, self.shared.need_slots);
            let rewound = self.device.rewind_log();
            rewound.map_err(|e| format!("the kernel's log: {e}"))?;
            loop {
                match self.next_record(&mut buffer)? {
                    Record::Text(len) => self.follower.history(buffer.get(..len).unwrap_or(&[])),
                    Record::Overwritten => break,
                    Record::None => {
                        let news = self.follower.begin();
                        return self.heard(news);
                    }
                }
            }
        }
        Err("the kernel's log is overwritten faster than it can be read".to_owned())
    }

    /// Acts on what the log says. The caller has the results that were read before.
    fn heard(&self, news: News) -> Result<(), String> {
        if let News::NoSlots(why) = news {
            self.shared.fatal(LockError::NoSlots(why.to_owned()));
            return Ok(());
        }
        let mut state = self.shared.books.lock();
        match news {
            News::Nothing | News::NoSlots(_) => {}
            News::Prepare => {
                state.settled = false;
                self.send(&mut state, Event::RecoverPrep);
            }
            News::Settled(events) => {
                for event in events {
                    self.send(&mut state, event);
                }
                state.settled = true;
                for event in std::mem::take(&mut state.held) {
                    self.send(&mut state, event);
                }
            }
            News::Lost(text) => return Err(text),
        }
        Ok(())
    }

    fn send(&self, state: &mut State, event: Event) {
        if !state.left && !self.shared.sender.send(event) {
            state.left = true;
            self.shared.outbox.push_last(Task::Leave(Leave::Abandon));
        }
    }

    /// Reads the log to its end.
    fn drain_log(&mut self, buffer: &mut [u8]) -> Result<(), String> {
        loop {
            match self.next_record(buffer)? {
                Record::Text(len) => {
                    let news = self.follower.record(buffer.get(..len).unwrap_or(&[]));
                    self.heard(news)?;
                }
                Record::None => return Ok(()),
                Record::Overwritten => {
                    return Err("the kernel's log was overwritten before it was read: \
                         there may have been a recovery that nobody knows of"
                        .to_owned());
                }
            }
        }
    }

    /// Up to a batch of results.
    fn batch(&self) -> Result<Vec<Told>, String> {
        let mut told = Vec::new();
        let mut buffer = [0; abi::RESULT_MAX];
        while told.len() < BATCH {
            match self.device.read(&mut buffer) {
                Ok(len) => {
                    let bytes = buffer.get(..len).unwrap_or(&[]);
                    told.push(abi::result(bytes).map_err(|e| e.to_string())?);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(format!("the DLM's device: {e}")),
            }
        }
        Ok(told)
    }

    fn follow(&mut self) -> Result<(), String> {
        let mut buffer = vec![0; RECORD_MAX];
        while !self.shared.books.lock().left {
            let told = self.batch()?;
            self.drain_log(&mut buffer)?;
            if told.is_empty() {
                let wait = self.device.wait();
                wait.map_err(|e| format!("waiting for the DLM's device: {e}"))?;
                continue;
            }
            let mut state = self.shared.books.lock();
            for told in &told {
                let Some(event) = state.books.told(told)? else {
                    continue;
                };
                if !self.shared.deliver(&mut state, event) {
                    state.left = true;
                    self.shared.outbox.push_last(Task::Leave(Leave::Abandon));
                }
            }
        }
        Ok(())
    }
}
