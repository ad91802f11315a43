//! Reads, prints and parses the value of one field.

use super::{Field, Kind};
use std::fmt::Write as _;

/// The value of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// An unsigned number.
    Number(u64),
    /// A two's complement number.
    Signed(i64),
    /// Text up to its NUL, and what else has a text form only: UUIDs.
    Text(String),
    /// Bytes without meaning.
    Bytes(Vec<u8>),
}

impl Field {
    /// The field's bytes in the bytes of its structure; `None` when those end before.
    #[must_use]
    pub fn slice<'a>(&self, structure: &'a [u8]) -> Option<&'a [u8]> {
        structure.get(self.offset..self.offset.checked_add(self.size)?)
    }

    /// The field's value in the bytes of its structure.
    #[must_use]
    pub fn read(&self, structure: &[u8]) -> Option<Value> {
        let bytes = self.slice(structure)?;
        Some(match self.kind {
            Kind::Text => {
                let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
                Value::Text(String::from_utf8_lossy(bytes.get(..end)?).into_owned())
            }
            Kind::Uuid => Value::Text(uuid_text(bytes)),
            Kind::Reserved => Value::Bytes(bytes.to_vec()),
            Kind::Signed | Kind::SignedBlocks | Kind::Seconds => Value::Signed(signed(bytes)?),
            _ => Value::Number(unsigned(bytes)?),
        })
    }

    /// The value for people: number with its meaning.
    #[must_use]
    pub fn display(&self, structure: &[u8]) -> Option<String> {
        let text = match (self.read(structure)?, self.kind) {
            (Value::Number(n), Kind::Hex) => format!("0x{n:0width$x}", width = self.size * 2),
            (Value::Number(n), Kind::Mode) => format!("0{n:o}"),
            (Value::Number(n), Kind::Pointer) => format!("{n} (0x{n:x})"),
            (Value::Number(n), Kind::Names(names)) => match name_of(n, names) {
                Some(name) => format!("{n} ({name})"),
                None => format!("{n} (unknown)"),
            },
            (Value::Number(n), Kind::Flags(names)) => match flags_text(n, names) {
                text if text.is_empty() => format!("0x{n:08x}"),
                text => format!("0x{n:08x} ({text})"),
            },
            (Value::Number(n), _) => n.to_string(),
            (Value::Signed(n), _) => n.to_string(),
            (Value::Text(text), Kind::Text) => format!("\"{}\"", text.escape_default()),
            (Value::Text(text), _) => text,
            (Value::Bytes(bytes), _) if bytes.iter().all(|b| *b == 0) => "0".to_owned(),
            (Value::Bytes(bytes), _) => hex(&bytes),
        };
        Some(text)
    }

    /// The bytes for a value in text form: a decimal, hexadecimal (0x) or octal (0o) number, a negative one, the name
    /// of a value, names of flags joined by `|`, text in quotes, a UUID, or (for any field) `hex:` and its bytes.
    ///
    /// # Errors
    /// A sentence saying what is wrong with the text.
    pub fn parse(&self, text: &str) -> Result<Vec<u8>, String> {
        let text = text.trim();
        if let Some(digits) = text.strip_prefix("hex:") {
            let bytes = unhex(digits).ok_or_else(|| format!("{text}: not an even number of hex digits"))?;
            return self.exactly(bytes, text);
        }
        match self.kind {
            Kind::Text => {
                let inner = text
                    .strip_prefix('"')
                    .and_then(|t| t.strip_suffix('"'))
                    .unwrap_or(text);
                let mut bytes = inner.as_bytes().to_vec();
                if bytes.len() < self.size {
                    bytes.resize(self.size, 0);
                }
                self.exactly(bytes, text)
            }
            Kind::Uuid => {
                let digits = text.replace('-', "");
                let bytes = unhex(&digits).ok_or_else(|| format!("{text}: not a UUID"))?;
                self.exactly(bytes, text)
            }
            Kind::Reserved if self.size > 8 => match text {
                "0" => Ok(vec![0; self.size]),
                _ => Err(format!("{}: give its {} bytes as hex:...", self.name, self.size)),
            },
            Kind::Flags(names) => {
                let bits = text.split('|').try_fold(0, |bits, part| {
                    let part = part.trim();
                    let value = names.iter().find(|(_, name)| *name == part);
                    value
                        .map_or_else(|| number(part), |(bit, _)| Ok(*bit))
                        .map(|b| bits | b)
                });
                self.number_bytes(bits?, text)
            }
            Kind::Names(names) => {
                let value = names.iter().find(|(_, name)| *name == text);
                let n = value.map_or_else(|| number(text), |(n, _)| Ok(*n))?;
                self.number_bytes(n, text)
            }
            _ => self.number_bytes(number(text)?, text),
        }
    }

    /// [`Field::parse`], stored into the bytes of the field's structure.
    ///
    /// # Errors
    /// As [`Field::parse`]; a structure that ends before the field.
    pub fn write(&self, structure: &mut [u8], text: &str) -> Result<(), String> {
        let bytes = self.parse(text)?;
        let target = structure
            .get_mut(self.offset..)
            .and_then(|rest| rest.get_mut(..self.size));
        match target {
            Some(target) => {
                target.copy_from_slice(&bytes);
                Ok(())
            }
            None => Err(format!("{}: the block ends before it", self.name)),
        }
    }

    fn exactly(&self, bytes: Vec<u8>, text: &str) -> Result<Vec<u8>, String> {
        match bytes.len() == self.size {
            true => Ok(bytes),
            false => Err(format!(
                "{text}: {} has {} bytes, this is {}",
                self.name,
                self.size,
                bytes.len()
            )),
        }
    }

    fn number_bytes(&self, n: u64, text: &str) -> Result<Vec<u8>, String> {
        let all = n.to_be_bytes();
        let (high, low) = all
            .split_at_checked(8usize.saturating_sub(self.size))
            .unwrap_or((&[], &all));
        let sign = low.first().is_some_and(|b| b & 0x80 != 0);
        let negative = text.starts_with('-') && sign && high.iter().all(|b| *b == 0xff);
        match high.iter().all(|b| *b == 0) || negative {
            true => Ok(low.to_vec()),
            false => Err(format!(
                "{text}: too large for the {} bytes of {}",
                self.size, self.name
            )),
        }
    }
}

fn number(text: &str) -> Result<u64, String> {
    let bad = || format!("{text}: not a number, and no name this field knows");
    let parsed = match text.split_at_checked(2) {
        Some(("0x", digits)) => u64::from_str_radix(digits, 16).ok(),
        Some(("0o", digits)) => u64::from_str_radix(digits, 8).ok(),
        _ if text.starts_with('-') => text.parse::<i64>().ok().map(i64::cast_unsigned),
        _ => text.parse().ok(),
    };
    parsed.ok_or_else(bad)
}

/// Big-endian, at most 8 bytes.
fn unsigned(bytes: &[u8]) -> Option<u64> {
    let mut all = [0; 8];
    all.get_mut(8usize.checked_sub(bytes.len())?..)?
        .copy_from_slice(bytes);
    Some(u64::from_be_bytes(all))
}

fn signed(bytes: &[u8]) -> Option<i64> {
    let fill = if bytes.first()? & 0x80 == 0 { 0 } else { 0xff };
    let mut all = [fill; 8];
    all.get_mut(8usize.checked_sub(bytes.len())?..)?
        .copy_from_slice(bytes);
    Some(i64::from_be_bytes(all))
}

fn name_of(value: u64, names: &[(u64, &'static str)]) -> Option<&'static str> {
    names.iter().find(|(v, _)| *v == value).map(|(_, name)| *name)
}

/// The names of the bits that are set, and the rest of them as a number.
fn flags_text(value: u64, names: &[(u64, &'static str)]) -> String {
    let mut rest = value;
    let mut out = String::new();
    for (bit, name) in names.iter().filter(|(bit, _)| value & bit == *bit) {
        rest &= !bit;
        let _ = write!(out, "{}{name}", if out.is_empty() { "" } else { "|" });
    }
    if rest != 0 && rest != value {
        let _ = write!(out, "|0x{rest:x}");
    }
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("hex:"), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    if !digits.is_ascii() {
        return None;
    }
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [_, _] => u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok(),
            _ => None,
        })
        .collect()
}

fn uuid_text(bytes: &[u8]) -> String {
    let mut out = String::new();
    for (n, b) in bytes.iter().enumerate() {
        let dash = if matches!(n, 4 | 6 | 8 | 10) { "-" } else { "" };
        let _ = write!(out, "{dash}{b:02x}");
    }
    out
}
