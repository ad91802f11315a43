//! How fast a node is. Every command answers with the microseconds it took.
//!
//! `keep PREFIX FIRST COUNT MODE`: locks on as many names, that stay; so many under way at once as keep the node busy.
//! `pairs PREFIX NAMES COUNT`: EX requested and unlocked, one after the other. `want NAME COUNT`: EX is given up when
//! somebody else wants it, until it was had so often; to be asked of two nodes at once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use dlm_client::{Lkf, Mode};

use crate::party::{Node, Report};
use crate::serve::line;

/// Requests under way at once.
const WINDOW: usize = 256;
const PATIENCE: Duration = Duration::from_secs(60);
const EUNLOCK: i32 = -0x1_0002;
/// Tokens of measured locks; those of locks that stay follow.
const PAIR: u64 = 1 << 32;
const WANT: u64 = PAIR + 1;
const KEPT: u64 = PAIR + 2;

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|e| format!("{text}: {e}"))
}

/// The next completion; what else happens is nobody's business here.
fn cast(node: &mut impl Node) -> Result<(u64, i32), String> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(Report::Cast { token, status, .. }) = node.report(PATIENCE) {
            return Ok((token, status));
        }
    }
    Err(format!("nothing ended in {PATIENCE:?}"))
}

fn expect(node: &mut impl Node, token: u64, status: i32) -> Result<(), String> {
    match cast(node)? {
        found if found == (token, status) => Ok(()),
        found => Err(format!("{found:?} ended, not {:?}", (token, status))),
    }
}

fn keep(node: &mut impl Node, prefix: &str, first: u64, count: u64, mode: Mode) -> Result<(), String> {
    let mut under_way = BTreeSet::new();
    for at in first..first + count {
        node.request(KEPT + at, &format!("{prefix}{at}"), mode, Lkf::empty())?;
        under_way.insert(KEPT + at);
        while under_way.len() >= WINDOW || (at + 1 == first + count && !under_way.is_empty()) {
            match cast(node)? {
                (token, 0) => under_way.remove(&token),
                other => return Err(format!("{other:?}")),
            };
        }
    }
    Ok(())
}

fn pairs(node: &mut impl Node, prefix: &str, names: u64, count: u64) -> Result<(), String> {
    for at in 0..count {
        let name = format!("{prefix}{}", at % names);
        node.request(PAIR, &name, Mode::Ex, Lkf::empty())?;
        expect(node, PAIR, 0)?;
        node.unlock(PAIR, Lkf::empty(), &[0; 32])?;
        expect(node, PAIR, EUNLOCK)?;
    }
    Ok(())
}

fn want(node: &mut impl Node, name: &str, count: u64) -> Result<(), String> {
    node.request(WANT, name, Mode::Nl, Lkf::empty())?;
    expect(node, WANT, 0)?;
    node.convert(WANT, Mode::Ex, Lkf::empty(), &[0; 32])?;
    let (mut had, mut mode, mut leaving) = (0, Mode::Nl, false);
    loop {
        let report = node.report(PATIENCE);
        match report.ok_or_else(|| format!("nothing in {PATIENCE:?}, had {had}"))? {
            Report::Cast {
                token: WANT,
                status: 0,
                ..
            } if mode == Mode::Nl => {
                (mode, had) = (Mode::Ex, had + 1);
                if had == count {
                    node.unlock(WANT, Lkf::empty(), &[0; 32])?;
                    return expect(node, WANT, EUNLOCK);
                }
            }
            Report::Cast {
                token: WANT,
                status: 0,
                ..
            } => {
                (mode, leaving) = (Mode::Nl, false);
                node.convert(WANT, Mode::Ex, Lkf::empty(), &[0; 32])?;
            }
            Report::Bast { token: WANT, .. } if mode == Mode::Ex && !leaving => {
                leaving = true;
                node.convert(WANT, Mode::Nl, Lkf::empty(), &[0; 32])?;
            }
            Report::Bast { .. } => {}
            other => return Err(line(&other)),
        }
    }
}

/// A command of these, if it is one.
pub(crate) fn command(node: &mut impl Node, words: &[&str]) -> Option<Result<Vec<String>, String>> {
    let start = Instant::now();
    let done = match *words {
        ["keep", prefix, first, count, mode] => number(count).and_then(|count| {
            let mode = Mode::ALL.into_iter().find(|m| m.to_string() == mode);
            keep(node, prefix, number(first)?, count, mode.ok_or("no mode")?)
        }),
        ["pairs", prefix, names, count] => number(names)
            .and_then(|names| number(count).map(|count| (names.max(1), count)))
            .and_then(|(names, count)| pairs(node, prefix, names, count)),
        ["want", name, count] => number(count).and_then(|count| want(node, name, count)),
        _ => return None,
    };
    Some(done.map(|()| vec![start.elapsed().as_micros().to_string()]))
}
