//! Extended options: `-o key[=value][,...]`.

use super::Failure;
use crate::options::{IoLimits, Stripe};
use gfs2_format::ondisk::{FORMAT_MAX, FORMAT_MIN};

/// The text of `-o help`.
pub(super) fn help() -> String {
    let keys = [
        ("help", "Display this help, then exit"),
        (
            "swidth=N",
            "Specify the stripe width of the device, overriding probed values",
        ),
        (
            "sunit=N",
            "Specify the stripe unit of the device, overriding probed values",
        ),
        ("align=[0|1]", "Disable or enable alignment of resource groups"),
        ("format=N", "Specify the format version number"),
    ];
    let lines = keys
        .iter()
        .map(|(key, text)| format!("{key:>15}  {text:<22}\n"))
        .collect::<String>();
    format!("Extended options:\n{lines}")
}

/// What became of one `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Options,
    Help,
}

/// All extended options so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extended {
    unit: Option<u64>,
    width: Option<u64>,
    pub(super) align: bool,
    pub(super) format: Option<u32>,
    pub(super) root_inherit_jdata: bool,
    pub(super) topology: Option<IoLimits>,
}

impl Default for Extended {
    fn default() -> Self {
        Self {
            unit: None,
            width: None,
            align: true,
            format: None,
            root_inherit_jdata: false,
            topology: None,
        }
    }
}

impl Extended {
    /// Takes one argument of `-o`. `block_size` is the unit of the suffix `b`, if `-b` came before.
    pub(super) fn take(&mut self, text: &str, block_size: Option<i64>) -> Result<Taken, Failure> {
        let bsize = block_size
            .and_then(|bsize| u64::try_from(bsize).ok())
            .unwrap_or(4096);
        for option in text.split(',') {
            let mut parts = option.split('=');
            let key = parts.next().unwrap_or_default();
            let value = parts.next();
            let number = |max| size(key, value, bsize, max);
            match key {
                "" => return Err(Failure::usage("Missing argument to '-o' option")),
                "help" => return Ok(Taken::Help),
                "sunit" => self.unit = Some(number(None)?),
                "swidth" => self.width = Some(number(None)?),
                "align" => self.align = boolean(key, value)?,
                "format" => self.format = Some(format(value, number(Some(u64::from(FORMAT_MAX)))?)?),
                "root_inherit_jdata" => {
                    self.root_inherit_jdata = value.is_none() || number(Some(1))? == 1;
                }
                "test_topology" => self.topology = Some(topology(value, bsize)?),
                _ => {
                    return Err(Failure::usage(format!(
                        "Invalid extended option (specified with -o): '{key}' (try -o help)"
                    )));
                }
            }
        }
        Ok(Taken::Options)
    }

    /// The stripes, which take two options to say.
    pub(super) fn stripe(&self) -> Result<Option<Stripe>, Failure> {
        match (self.unit, self.width) {
            (None, None) => Ok(None),
            (Some(unit), Some(width)) => Ok(Some(Stripe { unit, width })),
            _ => Err(Failure::usage(
                "Stripe unit and stripe width must be specified together",
            )),
        }
    }
}

fn format(text: Option<&str>, value: u64) -> Result<u32, Failure> {
    u32::try_from(value)
        .ok()
        .filter(|value| *value >= FORMAT_MIN)
        .ok_or_else(|| {
            let text = text.unwrap_or_default();
            Failure::usage(format!(
                "Invalid filesystem format: {text} (it can be 1801 or 1802)"
            ))
        })
}

fn boolean(key: &str, value: Option<&str>) -> Result<bool, Failure> {
    match value {
        Some("0") => Ok(false),
        Some("1") => Ok(true),
        _ => Err(Failure::usage(format!("Option '{key}' must be either 1 or 0"))),
    }
}

fn topology(value: Option<&str>, bsize: u64) -> Result<IoLimits, Failure> {
    let values: Vec<&str> = value.map(|value| value.split(':').collect()).unwrap_or_default();
    let key = "test_topology";
    match values[..] {
        [a, b, c, d, e] => {
            let number = |text| size(key, Some(text), bsize, None);
            Ok(IoLimits {
                alignment_offset: number(a)?,
                logical_sector: number(b)?,
                minimum_io: number(c)?,
                optimal_io: number(d)?,
                physical_sector: number(e)?,
            })
        }
        _ if values.len() > 5 => Err(Failure::usage("Too many topology values.")),
        _ => Err(Failure::usage("Too few topology values.")),
    }
}

/// A number with an optional suffix, not above `max`.
fn size(key: &str, value: Option<&str>, bsize: u64, max: Option<u64>) -> Result<u64, Failure> {
    let Some(text) = value.filter(|text| !text.is_empty()) else {
        return Err(Failure::usage(format!("Missing argument to '{key}'")));
    };
    parse_size(text, bsize)
        .filter(|value| max.is_none_or(|max| *value <= max))
        .ok_or_else(|| Failure::usage(format!("Value of '{key}' is invalid: {text}")))
}

/// Decimal, octal (`0...`) or hexadecimal (`0x...`), then one of b (blocks), s (sectors of 512 bytes), k, m, g, t, p, e.
fn parse_size(text: &str, bsize: u64) -> Option<u64> {
    let text = text.trim_start();
    let text = text.strip_prefix('+').unwrap_or(text);
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = match lower.strip_prefix("0x") {
        Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => (hex, 16),
        _ if lower.starts_with('0') => (lower.as_str(), 8),
        _ => (lower.as_str(), 10),
    };
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    let (digits, suffix) = digits.split_at(end);
    let value = u64::from_str_radix(digits, radix).ok()?;
    let unit = match suffix {
        "" => 1,
        "b" => bsize,
        "s" => 512,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        "p" => 1 << 50,
        "e" => 1 << 60,
        _ => return None,
    };
    value
        .checked_mul(unit)
        .filter(|value| i64::try_from(*value).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_suffixes_and_bases() {
        let cases = [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("0x10", Some(16)),
            ("010", Some(8)),
            ("2b", Some(2048)),
            ("3s", Some(1536)),
            ("64K", Some(65536)),
            ("64k", Some(65536)),
            ("1m", Some(1 << 20)),
            ("1G", Some(1 << 30)),
            ("1t", Some(1 << 40)),
            ("1p", Some(1 << 50)),
            ("1e", Some(1 << 60)),
            ("8e", None),
            ("1kb", None),
            ("k", None),
            ("-1", None),
            ("1.5m", None),
            ("", None),
            ("99999999999999999999", None),
        ];
        for (text, value) in cases {
            assert_eq!(parse_size(text, 1024), value, "{text}");
        }
    }

    #[test]
    fn options_are_taken_and_refused() {
        let mut all = Extended::default();
        let taken = all
            .take(
                "sunit=64k,swidth=384k,align=0,format=1801,root_inherit_jdata",
                None,
            )
            .unwrap();
        assert_eq!(taken, Taken::Options);
        assert_eq!(
            all.stripe().unwrap(),
            Some(Stripe {
                unit: 65536,
                width: 393_216
            })
        );
        assert!(!all.align && all.root_inherit_jdata);
        assert_eq!(all.format, Some(1801));
        assert_eq!(all.take("align=1,help,bogus", None).unwrap(), Taken::Help);
        for bad in [
            "",
            ",",
            "bogus",
            "sunit",
            "sunit=",
            "sunit=x",
            "align",
            "align=2",
            "align=01",
            "format=1800",
            "format=1803",
            "format=-1",
            "root_inherit_jdata=",
            "root_inherit_jdata=42",
            "root_inherit_jdata=X",
            "test_topology",
            "test_topology=0:0:0:0",
            "test_topology=0:0:0:0:0:0",
            "test_topology=0:0:0:0:x",
        ] {
            let failure = Extended::default().take(bad, None).unwrap_err();
            assert_eq!(failure.code, 255, "{bad}");
        }
        let mut half = Extended::default();
        half.take("sunit=4096", None).unwrap();
        assert_eq!(half.stripe().unwrap_err().code, 255);
    }

    #[test]
    fn blocks_as_a_unit_are_those_of_an_earlier_option() {
        let mut all = Extended::default();
        all.take("sunit=2b", Some(512)).unwrap();
        all.take("swidth=2b", None).unwrap();
        let stripe = all.stripe().unwrap().unwrap();
        assert_eq!((stripe.unit, stripe.width), (1024, 8192));
    }
}
