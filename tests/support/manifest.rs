//! What a tree looks like, as text that can be compared: one line per inode name, one field per fact.
//!
//! Invariants:
//! * a line is `PATH FIELD=VALUE ...`; bytes outside printable ASCII, and space, `\`, `=` are `\xHH`;
//! * lines and fields are sorted, so equal trees give equal text;
//! * `.` is the root of the tree, `#statfs` a line of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::path::Path;

/// The facts of one name.
pub type Fields = BTreeMap<String, String>;

/// A whole tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Facts by escaped path.
    pub entries: BTreeMap<String, Fields>,
}

/// How many differences a report shows.
const SHOWN: usize = 40;

impl Manifest {
    /// Reads the text form.
    #[track_caller]
    pub fn parse(text: &str) -> Manifest {
        let mut entries = BTreeMap::new();
        for line in text.lines() {
            let (path, fields) = line.split_once(' ').unwrap_or((line, ""));
            let fields = fields.split(' ').filter(|f| !f.is_empty()).map(|f| {
                let (key, value) = f
                    .split_once('=')
                    .unwrap_or_else(|| panic!("no value in {f:?} of {line:?}"));
                (key.to_owned(), value.to_owned())
            });
            let twice = entries.insert(path.to_owned(), fields.collect());
            assert!(twice.is_none(), "{path} stands twice in the manifest");
        }
        assert!(!entries.is_empty(), "an empty manifest");
        Manifest { entries }
    }

    /// Reads a file of the text form.
    #[track_caller]
    pub fn read(path: &Path) -> Manifest {
        Manifest::parse(&std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    /// The facts of this path.
    #[track_caller]
    pub fn at(&self, path: &str) -> &Fields {
        self.entries
            .get(path)
            .unwrap_or_else(|| panic!("no {path} in the manifest"))
    }

    /// The same tree without the fields of these names.
    pub fn without(&self, fields: &[&str]) -> Manifest {
        let keep = |f: &Fields| {
            let kept = f.iter().filter(|(k, _)| !fields.contains(&k.as_str()));
            kept.map(|(k, v)| (k.clone(), v.clone())).collect()
        };
        Manifest {
            entries: self.entries.iter().map(|(p, f)| (p.clone(), keep(f))).collect(),
        }
    }

    /// The same tree with the other's device numbers where this one says 0,0.
    ///
    /// The kernel's GFS2 (6.1 and 6.12) shows 0,0 for a device as soon as it has to read its inode from the
    /// disk, where the numbers still are: what it shows is no measure of them.
    pub fn with_devices_of(&self, other: &Manifest) -> Manifest {
        let mut out = self.clone();
        for (path, fields) in &mut out.entries {
            let known = other.entries.get(path).and_then(|f| f.get("rdev"));
            if let (Some(rdev), Some(known)) = (fields.get_mut("rdev"), known)
                && rdev == "0,0"
            {
                rdev.clone_from(known);
            }
        }
        out
    }

    /// Every difference, one line each: path, field, this value, the other's.
    pub fn differences(&self, other: &Manifest) -> Vec<String> {
        let none = Fields::new();
        let mut found = Vec::new();
        let paths: BTreeSet<&String> = self.entries.keys().chain(other.entries.keys()).collect();
        for path in paths {
            let (mine, theirs) = match (self.entries.get(path), other.entries.get(path)) {
                (Some(_), None) => {
                    found.push(format!("{path}: only on the left"));
                    continue;
                }
                (None, Some(_)) => {
                    found.push(format!("{path}: only on the right"));
                    continue;
                }
                (mine, theirs) => (mine.unwrap_or(&none), theirs.unwrap_or(&none)),
            };
            let keys: BTreeSet<&String> = mine.keys().chain(theirs.keys()).collect();
            for key in keys {
                let (left, right) = (mine.get(key), theirs.get(key));
                if left != right {
                    let show = |v: Option<&String>| v.map_or("-".to_owned(), |v| shorten(v));
                    found.push(format!("{path}: {key}: {} | {}", show(left), show(right)));
                }
            }
        }
        found
    }

    /// Fails the test unless both are the same.
    #[track_caller]
    pub fn assert_same(&self, left: &str, other: &Manifest, right: &str) {
        let found = self.differences(other);
        let shown = &found[..found.len().min(SHOWN)];
        assert!(
            found.is_empty(),
            "{} differences, {left} | {right}:\n{}",
            found.len(),
            shown.join("\n")
        );
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, fields) in &self.entries {
            f.write_str(path)?;
            for (key, value) in fields {
                write!(f, " {key}={value}")?;
            }
            f.write_char('\n')?;
        }
        Ok(())
    }
}

fn shorten(value: &str) -> String {
    if value.len() <= 160 {
        value.to_owned()
    } else {
        format!("{}... ({} bytes)", &value[..150], value.len())
    }
}

/// Bytes as a word of the text form.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &b in bytes {
        match b {
            b'\\' | b'=' | b' ' => write!(out, "\\x{b:02x}").expect("a string takes everything"),
            0x21..=0x7e => out.push(char::from(b)),
            _ => write!(out, "\\x{b:02x}").expect("a string takes everything"),
        }
    }
    out
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
            write!(out, "{b:02x}").expect("a string takes everything");
            out
        })
}
