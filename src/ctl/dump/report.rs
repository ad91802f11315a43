//! What a dump found, as a tree that prints as text and as JSON.

use gfs2_format::BlockAddr;
use gfs2_format::describe::{Kind, Structure, Value as FieldValue};
use serde_json::{Map, Value, json};
use std::fmt::{Display, Write as _};

/// A structure, or a part of the volume, with its fields and lists.
#[derive(Debug, Default)]
pub(super) struct Item {
    title: String,
    json: Map<String, Value>,
    lines: Vec<Line>,
    lists: Vec<List>,
    problems: Vec<String>,
}

#[derive(Debug)]
struct Line {
    name: String,
    text: String,
}

/// A named list within an item.
#[derive(Debug)]
pub(super) struct List {
    name: &'static str,
    rows: Vec<Row>,
}

#[derive(Debug)]
enum Row {
    Text(String, Value),
    Item(Item),
}

impl List {
    /// An empty list.
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            rows: Vec::new(),
        }
    }

    /// A row of one line.
    pub(super) fn row(&mut self, text: impl Display, json: Value) {
        self.rows.push(Row::Text(text.to_string(), json));
    }

    /// A row that is a structure.
    pub(super) fn item(&mut self, item: Item) {
        self.rows.push(Row::Item(item));
    }
}

impl Item {
    /// Something that stands in no single block.
    pub(super) fn new(what: &str) -> Self {
        let mut json = Map::new();
        json.insert("structure".to_owned(), what.into());
        Self {
            title: what.to_owned(),
            json,
            ..Self::default()
        }
    }

    /// Something that begins a block.
    pub(super) fn at_block(what: &str, addr: BlockAddr) -> Self {
        let mut item = Self::new(what);
        item.title = format!("{what} at block {addr} (0x{:x})", addr.get());
        item.json.insert("block".to_owned(), addr.get().into());
        item
    }

    /// Something within a block.
    pub(super) fn at_offset(what: &str, offset: usize) -> Self {
        let mut item = Self::new(what);
        item.title = format!("{what} at byte {offset}");
        item.json.insert("offset".to_owned(), offset.into());
        item
    }

    /// Puts words behind the title, for people.
    pub(super) fn titled(mut self, more: impl Display) -> Self {
        let _ = write!(self.title, ": {more}");
        self
    }

    /// A field of our own.
    pub(super) fn field(&mut self, name: &str, text: impl Display, json: Value) {
        self.lines.push(Line {
            name: name.to_owned(),
            text: text.to_string(),
        });
        self.json.insert(name.to_owned(), json);
    }

    /// All fields of a structure; reserved ones only when they are not zero.
    pub(super) fn structure(&mut self, structure: &Structure, bytes: &[u8]) {
        let mut fields = Map::new();
        for field in structure.fields {
            let (Some(value), Some(text)) = (field.read(bytes), field.display(bytes)) else {
                let end = field.offset.saturating_add(field.size);
                self.problem(format!("{} ends before byte {end}", structure.name));
                break;
            };
            if field.kind == Kind::Reserved && text == "0" {
                continue;
            }
            let unit = field.kind.unit();
            let shown = match field.kind {
                Kind::Pointer | Kind::Seconds | Kind::Nanoseconds => text.clone(),
                _ if unit.is_empty() => text.clone(),
                _ => format!("{text} {unit}"),
            };
            self.lines.push(Line {
                name: field.name.to_owned(),
                text: shown,
            });
            fields.insert(field.name.to_owned(), field_json(field.kind, value, &text));
        }
        self.json.insert("fields".to_owned(), Value::Object(fields));
    }

    /// A list below the fields.
    pub(super) fn list(&mut self, list: List) {
        let rows = list.rows.iter().map(|row| match row {
            Row::Text(_, json) => json.clone(),
            Row::Item(item) => item.to_json(),
        });
        self.json.insert(list.name.to_owned(), rows.collect());
        self.lists.push(list);
    }

    /// Something that contradicts the format, or could not be read.
    pub(super) fn problem(&mut self, problem: impl Display) {
        self.problems.push(problem.to_string());
    }

    /// The problems of this item and of those below it.
    pub(super) fn problems(&self) -> Vec<String> {
        let below = self.lists.iter().flat_map(|list| &list.rows);
        let below = below.filter_map(|row| match row {
            Row::Item(item) => Some(item.problems()),
            Row::Text(..) => None,
        });
        self.problems.iter().cloned().chain(below.flatten()).collect()
    }

    /// The item as JSON.
    pub(super) fn to_json(&self) -> Value {
        let mut json = self.json.clone();
        if !self.problems.is_empty() {
            json.insert("problems".to_owned(), json!(self.problems));
        }
        Value::Object(json)
    }

    /// The item as text, newline at its end.
    pub(super) fn to_text(&self) -> String {
        let mut out = String::new();
        self.write_text(&mut out, 0);
        out
    }

    fn write_text(&self, out: &mut String, indent: usize) {
        let _ = writeln!(out, "{:indent$}{}", "", self.title);
        let inner = indent + 2;
        for line in &self.lines {
            let _ = writeln!(out, "{:inner$}{:<28} {}", "", line.name, line.text);
        }
        for problem in &self.problems {
            let _ = writeln!(out, "{:inner$}PROBLEM: {problem}", "");
        }
        for list in &self.lists {
            let _ = writeln!(out, "{:inner$}{} ({}):", "", list.name, list.rows.len());
            for row in &list.rows {
                match row {
                    Row::Text(text, _) => {
                        let _ = writeln!(out, "{:inner$}  {text}", "");
                    }
                    Row::Item(item) => item.write_text(out, inner + 2),
                }
            }
        }
    }
}

/// A field's value for programs: numbers as numbers; sets and names with their words beside.
fn field_json(kind: Kind, value: FieldValue, text: &str) -> Value {
    match (value, kind) {
        (FieldValue::Number(n), Kind::Flags(_) | Kind::Names(_)) => {
            let words = text.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
            json!({ "value": n, "text": words.unwrap_or("") })
        }
        (FieldValue::Number(n), _) => n.into(),
        (FieldValue::Signed(n), _) => n.into(),
        (FieldValue::Text(text), _) => text.into(),
        (FieldValue::Bytes(_), _) => text.into(),
    }
}

/// A name or other bytes for people.
pub(super) fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// The bytes of a name whose text is not the name itself; null for the others.
pub(super) fn name_hex(name: &[u8]) -> Value {
    if printable(name).as_bytes() == name {
        return Value::Null;
    }
    let digits = name.iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    });
    digits.into()
}

/// Adds the rows of a dump in hexadecimal; runs of equal rows are one line.
pub(super) fn hex_rows(list: &mut List, bytes: &[u8], base: usize) {
    let mut last: Option<&[u8]> = None;
    let mut skipped = false;
    for (n, row) in bytes.chunks(16).enumerate() {
        let offset = base.saturating_add(n.saturating_mul(16));
        if last == Some(row) && bytes.len() > n.saturating_add(1).saturating_mul(16) {
            if !skipped {
                list.row("*", Value::from("*"));
            }
            skipped = true;
            continue;
        }
        (last, skipped) = (Some(row), false);
        let digits = row.iter().fold(String::new(), |mut out, b| {
            let _ = write!(out, "{b:02x} ");
            out
        });
        let shown: String = row
            .iter()
            .map(|b| {
                if (0x20..0x7f).contains(b) {
                    char::from(*b)
                } else {
                    '.'
                }
            })
            .collect();
        let text = format!("{offset:05x}  {digits:<48} {shown}");
        let json = Value::from(digits.trim_end());
        list.row(text, json);
    }
}
