//! Text to statements.

use super::DamageError;
use crate::describe::{Field, Structure, structure};
use crate::ondisk::BlockState;

/// A block of the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The superblock.
    Superblock,
    /// An absolute block.
    Block(u64),
    /// The header of the N-th resource group of the rindex.
    Rgrp(u64),
    /// A block of a journal.
    Journal {
        /// The journal.
        jid: u32,
        /// Counted from its start.
        block: u32,
    },
    /// The dinode a path from the root leads to.
    Path(String),
    /// The dinode a path from the master directory leads to.
    Master(String),
}

/// Where a structure stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// At a byte offset of a block.
    At(Place, u64),
    /// The entry of the last name of this path.
    Dirent(Place),
    /// An entry of the rindex.
    Rindex(u64),
    /// The totals, in the master statfs file.
    Statfs,
    /// A node's change of them.
    StatfsChange(u64),
}

/// One statement, with the line it stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// Sets a field.
    Set {
        /// Line in the script.
        line: usize,
        /// Where the structure stands.
        target: Target,
        /// The structure.
        structure: &'static Structure,
        /// The field.
        field: &'static Field,
        /// Its new bytes.
        bytes: Vec<u8>,
        /// Makes the structure's checksum fit afterwards.
        fix: bool,
    },
    /// Sets a block pointer.
    Pointer {
        /// Line in the script.
        line: usize,
        /// The block that holds it.
        place: Place,
        /// Which, from 0.
        index: u64,
        /// Its new value.
        value: u64,
    },
    /// Sets a block's state in the bitmap and nothing else.
    Bitmap {
        /// Line in the script.
        line: usize,
        /// The block.
        block: u64,
        /// Its new state.
        state: BlockState,
    },
    /// Fills a block with one byte.
    Fill {
        /// Line in the script.
        line: usize,
        /// The block.
        place: Place,
        /// The byte.
        byte: u8,
    },
    /// Copies a block over another.
    Copy {
        /// Line in the script.
        line: usize,
        /// The block read.
        from: Place,
        /// The block written.
        to: Place,
    },
    /// Writes bytes into a block.
    Poke {
        /// Line in the script.
        line: usize,
        /// The block.
        place: Place,
        /// Byte offset in it.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
}

/// Parses a script.
///
/// # Errors
/// [`DamageError::Syntax`].
pub fn parse(script: &str) -> Result<Vec<Statement>, DamageError> {
    let lines = (1..).zip(script.lines());
    lines
        .map(|(line, text)| (line, without_comment(text).trim()))
        .filter(|(_, text)| !text.is_empty())
        .map(|(line, text)| {
            statement(line, text).map_err(|message| DamageError::syntax(line, format!("{text}: {message}")))
        })
        .collect()
}

/// A `#` begins a comment at the start of a line and after a space: names may contain one.
fn without_comment(text: &str) -> &str {
    match text.find(" #") {
        _ if text.trim_start().starts_with('#') => "",
        Some(at) => text.get(..at).unwrap_or(text),
        None => text,
    }
}

fn statement(line: usize, text: &str) -> Result<Statement, String> {
    let (verb, rest) = text.split_once(' ').ok_or("one word is no statement")?;
    let rest = rest.trim();
    match verb {
        "set" => set(line, rest),
        "bitmap" => bitmap(line, rest),
        "zero" => Ok(Statement::Fill {
            line,
            place: place(rest)?,
            byte: 0,
        }),
        "fill" => {
            let (at, byte) = rest
                .rsplit_once(" with ")
                .ok_or("expected `fill PLACE with BYTE`")?;
            let byte = u8::try_from(number(byte)?).map_err(|_| "a byte is at most 255")?;
            let place = place(at)?;
            Ok(Statement::Fill { line, place, byte })
        }
        "copy" => {
            let (from, to) = rest.split_once(" to ").ok_or("expected `copy PLACE to PLACE`")?;
            let (from, to) = (place(from)?, place(to)?);
            Ok(Statement::Copy { line, from, to })
        }
        "poke" => poke(line, rest),
        other => Err(format!("no statement begins with `{other}`")),
    }
}

fn set(line: usize, rest: &str) -> Result<Statement, String> {
    let (left, value) = rest
        .split_once('=')
        .ok_or("expected `set STRUCTURE(PLACE).FIELD = VALUE`")?;
    let (left, value) = (left.trim(), value.trim());
    let (value, fix) = match value.rsplit_once(',') {
        Some((value, last)) if last.trim() == "fix crc" => (value.trim(), true),
        _ => (value, false),
    };
    if let Some(inner) = left
        .strip_prefix("pointer(")
        .and_then(|rest| rest.strip_suffix(')'))
    {
        let (at, index) = inner.rsplit_once(',').ok_or("expected `pointer(PLACE, INDEX)`")?;
        return Ok(Statement::Pointer {
            line,
            place: place(at)?,
            index: number(index)?,
            value: number(value)?,
        });
    }
    let (name, argument, field_name) = split_left(left)?;
    let structure_name = if name == "statfs" { "statfs_change" } else { name };
    let structure = structure(structure_name).ok_or_else(|| format!("no structure is named {name}"))?;
    let field = structure
        .field(field_name)
        .ok_or_else(|| format!("{name} has no field {field_name}, or more than one"))?;
    if fix && !matches!(structure.name, "rgrp" | "log_header") {
        return Err(format!("{name} has no checksum to fix"));
    }
    Ok(Statement::Set {
        line,
        target: target(name, argument)?,
        structure,
        field,
        bytes: field.parse(value)?,
        fix,
    })
}

/// `name(argument).field` or `name.field`. A path may contain any of these characters, so the argument ends at the
/// last `).`.
fn split_left(left: &str) -> Result<(&str, Option<&str>, &str), String> {
    let plain = left.split_once('.');
    match left.split_once('(') {
        Some((name, rest)) if plain.is_none_or(|(first, _)| name.len() < first.len()) => {
            let (argument, field) = rest.rsplit_once(").").ok_or("expected `).` and a field")?;
            Ok((name.trim(), Some(argument.trim()), field.trim()))
        }
        _ => {
            let (name, field) = plain.ok_or("expected a dot and a field")?;
            Ok((name.trim(), None, field.trim()))
        }
    }
}

fn target(name: &str, argument: Option<&str>) -> Result<Target, String> {
    let Some(argument) = argument else {
        return match name {
            "sb" => Ok(Target::At(Place::Superblock, 0)),
            "statfs" => Ok(Target::Statfs),
            _ => Err(format!("say which {name}: {name}(PLACE)")),
        };
    };
    if let Ok(n) = number(argument) {
        return match name {
            "rgrp" => Ok(Target::At(Place::Rgrp(n), 0)),
            "rindex" => Ok(Target::Rindex(n)),
            "statfs_change" => Ok(Target::StatfsChange(n)),
            _ => Err(format!("{name} is not counted; say {name}(block {n})")),
        };
    }
    if name == "dirent" && !argument.contains(" at ") {
        return match place(argument)? {
            path @ (Place::Path(_) | Place::Master(_)) => Ok(Target::Dirent(path)),
            _ => Err("say dirent(PATH) or dirent(block N at OFFSET)".to_owned()),
        };
    }
    if let Some((at, offset)) = argument.rsplit_once(" at ")
        && let Ok(offset) = number(offset)
    {
        return Ok(Target::At(place(at)?, offset));
    }
    Ok(Target::At(place(argument)?, 0))
}

fn bitmap(line: usize, rest: &str) -> Result<Statement, String> {
    let (left, state) = rest.split_once('=').ok_or("expected `bitmap block N = STATE`")?;
    let Place::Block(block) = place(left)? else {
        return Err("expected `block N`".to_owned());
    };
    let state = match state.trim() {
        "free" => BlockState::Free,
        "used" => BlockState::Used,
        "unlinked" => BlockState::Unlinked,
        "dinode" => BlockState::Dinode,
        other => return Err(format!("{other} is no state: free, used, unlinked, dinode")),
    };
    Ok(Statement::Bitmap { line, block, state })
}

fn poke(line: usize, rest: &str) -> Result<Statement, String> {
    let form = "expected `poke PLACE at OFFSET hex:DIGITS`";
    let (at, rest) = rest.rsplit_once(" at ").ok_or(form)?;
    let (offset, digits) = rest.trim().split_once(' ').ok_or(form)?;
    let digits = digits.trim().strip_prefix("hex:").ok_or(form)?;
    let pairs = digits.as_bytes().chunks(2);
    let bytes: Option<Vec<u8>> = pairs
        .map(|pair| match pair {
            [_, _] => u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok(),
            _ => None,
        })
        .collect();
    Ok(Statement::Poke {
        line,
        place: place(at)?,
        offset: number(offset)?,
        bytes: bytes.filter(|b| !b.is_empty()).ok_or(form)?,
    })
}

fn place(text: &str) -> Result<Place, String> {
    let text = text.trim();
    if text == "sb" {
        return Ok(Place::Superblock);
    }
    if text.starts_with('/') {
        return Ok(Place::Path(text.to_owned()));
    }
    if let Some(path) = text.strip_prefix("master:") {
        return Ok(Place::Master(path.to_owned()));
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    let small = |word: &str| u32::try_from(number(word)?).map_err(|_| format!("{word}: too large"));
    match words.as_slice() {
        ["block", n] => Ok(Place::Block(number(n)?)),
        ["rgrp", n] => Ok(Place::Rgrp(number(n)?)),
        ["journal", jid, "block", block] => Ok(Place::Journal {
            jid: small(jid)?,
            block: small(block)?,
        }),
        _ => Err(format!(
            "`{text}` is no place: sb, block N, rgrp N, journal J block B, /PATH, master:/PATH"
        )),
    }
}

fn number(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    parsed.ok_or_else(|| format!("`{text}` is no number"))
}
