//! The commands a driven node takes.
//!
//! `join NAME`, `leave`, `lock TOKEN NAME MODE FLAGS`, `convert TOKEN MODE FLAGS LVB`, `unlock TOKEN FLAGS LVB`,
//! `cancel TOKEN`; `events`: what happened since it was asked last; `wait TOKEN MILLISECONDS`: events up to the end of
//! the lock's operation; `await WORDS MILLISECONDS` up to one that begins with these words (`_` for blanks);
//! `quiet MILLISECONDS`: an error if anything happens; `trip TOKEN`: a lock held in NL is taken to CR and back, and with
//! it everything before it has reached the master and come back; `quit`; and those of [`crate::measure`]. FLAGS are the
//! DLM's numbers in hex.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use dlm_client::{Lkf, Mode};

use crate::measure;
use crate::party::{Node, Party, Report, hex, lvb};

/// How long a round trip may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node and what it has told.
pub(crate) struct Driven<N> {
    node: N,
    told: VecDeque<Report>,
}

pub(crate) fn line(report: &Report) -> String {
    match report {
        Report::Cast {
            token,
            status,
            sb,
            lvb,
        } => format!(
            "cast {token} {status} {sb:x} {}",
            lvb.map_or("-".to_owned(), |lvb| hex(&lvb))
        ),
        Report::Bast { token, mode } => format!("bast {token} {mode}"),
        Report::Other(text) => text.clone(),
    }
}

fn mode(text: &str) -> Result<Mode, String> {
    let all = Mode::ALL.into_iter();
    all.clone()
        .find(|mode| mode.to_string() == text)
        .ok_or_else(|| format!("{text} is no mode"))
}

fn flags(text: &str) -> Result<Lkf, String> {
    let bits = u32::from_str_radix(text, 16).map_err(|e| format!("{text}: {e}"))?;
    Lkf::from_bits(bits).ok_or_else(|| format!("{text}: unknown flags"))
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|e| format!("{text}: {e}"))
}

impl<N: Node> Driven<N> {
    pub(crate) const fn new(node: N) -> Self {
        Self {
            node,
            told: VecDeque::new(),
        }
    }

    /// Takes reports in up to one that is `wanted`.
    fn until(&mut self, limit: Duration, wanted: impl Fn(&Report) -> bool) -> Result<Report, String> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.node.report(left) {
                Some(report) if wanted(&report) => return Ok(report),
                Some(report) => self.told.push_back(report),
                None if left.is_zero() => {
                    let told: Vec<String> = self.told.iter().map(line).collect();
                    return Err(format!("not in {limit:?}; till now {told:?}"));
                }
                None => {}
            }
        }
    }

    fn ended(&mut self, token: u64, limit: Duration) -> Result<Report, String> {
        self.until(
            limit,
            |r| matches!(r, Report::Cast { token: t, .. } if *t == token),
        )
    }

    fn trip(&mut self, token: u64) -> Result<(), String> {
        for mode in [Mode::Cr, Mode::Nl] {
            self.node.convert(token, mode, Lkf::empty(), &[0; 32])?;
            match self.ended(token, PATIENCE)? {
                Report::Cast { status: 0, .. } => {}
                other => return Err(line(&other)),
            }
        }
        Ok(())
    }

    fn news(&mut self) -> Vec<String> {
        while let Some(report) = self.node.report(Duration::ZERO) {
            self.told.push_back(report);
        }
        self.told.drain(..).map(|report| line(&report)).collect()
    }

    fn command(&mut self, words: &[&str]) -> Result<Vec<String>, String> {
        let silent = |done: Result<(), String>| done.map(|()| Vec::new());
        match *words {
            ["join", name] => silent(self.node.join(name)),
            ["leave"] => {
                self.told.clear();
                silent(self.node.leave())
            }
            ["lock", token, name, wanted, bits] => {
                silent(
                    self.node
                        .request(number(token)?, name, mode(wanted)?, flags(bits)?),
                )
            }
            ["convert", token, wanted, bits, block] => silent(self.node.convert(
                number(token)?,
                mode(wanted)?,
                flags(bits)?,
                &lvb(block.trim_matches('-'))?,
            )),
            ["unlock", token, bits, block] => silent(self.node.unlock(
                number(token)?,
                flags(bits)?,
                &lvb(block.trim_matches('-'))?,
            )),
            ["cancel", token] => silent(self.node.cancel(number(token)?)),
            ["events"] => Ok(self.news()),
            ["wait", token, limit] => {
                let token = number(token)?;
                let of = |r: &Report| matches!(r, Report::Cast { token: t, .. } if *t == token);
                if let Some(at) = self.told.iter().position(of) {
                    return Ok(self.told.drain(..=at).map(|r| line(&r)).collect());
                }
                let last = self.ended(token, Duration::from_millis(number(limit)?))?;
                self.told.push_back(last);
                Ok(self.told.drain(..).map(|r| line(&r)).collect())
            }
            ["await", begin, limit] => {
                let begin = begin.replace('_', " ");
                if let Some(at) = self.told.iter().position(|r| line(r).starts_with(&begin)) {
                    return Ok(self.told.drain(..=at).map(|r| line(&r)).collect());
                }
                let limit = Duration::from_millis(number(limit)?);
                let last = self.until(limit, |r| line(r).starts_with(&begin))?;
                self.told.push_back(last);
                Ok(self.told.drain(..).map(|r| line(&r)).collect())
            }
            ["quiet", limit] => {
                let limit = Duration::from_millis(number(limit)?);
                let first = self.told.pop_front().or_else(|| self.node.report(limit));
                first.map_or(Ok(Vec::new()), |report| Err(line(&report)))
            }
            ["trip", token] => silent(self.trip(number(token)?)),
            ref other => match measure::command(&mut self.node, other) {
                Some(done) => done,
                None => self.node.other(other),
            },
        }
    }
}

impl<N: Node> Party for Driven<N> {
    fn ask(&mut self, command: &str) -> Result<Vec<String>, String> {
        let words: Vec<&str> = command.split_whitespace().collect();
        self.command(&words)
    }
}

/// Serves one connection after another until one says `quit`.
pub(crate) fn serve(node: impl Node, address: &str) -> Result<(), String> {
    let listener = TcpListener::bind(address).map_err(|e| format!("{address}: {e}"))?;
    let mut driven = Driven::new(node);
    loop {
        let (stream, _) = listener.accept().map_err(|e| format!("{address}: {e}"))?;
        match converse(&mut driven, stream) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(e) => eprintln!("dlmdrive: a connection: {e}"),
        }
    }
}

/// True: it is over.
fn converse<N: Node>(driven: &mut Driven<N>, stream: TcpStream) -> std::io::Result<bool> {
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    for command in BufReader::new(stream).lines() {
        let command = command?;
        if command.trim() == "quit" {
            out.write_all(b"ok\n")?;
            return Ok(true);
        }
        let mut answer = String::new();
        match driven.ask(&command) {
            Ok(lines) => {
                lines
                    .iter()
                    .for_each(|line| answer.push_str(&format!("{line}\n")));
                answer.push_str("ok\n");
            }
            Err(error) => answer.push_str(&format!("error {}\n", error.replace('\n', " "))),
        }
        out.write_all(answer.as_bytes())?;
    }
    Ok(false)
}
