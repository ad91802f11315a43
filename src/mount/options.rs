//! Mount options: every option of the original with its meaning or a clear refusal, and those of mount(8).
//!
//! Sources: FEATURES.md 1.1 (GFS2's own), mount(8) (the generic ones). Invariant: an option is never ignored
//! silently unless the original ignores it too.

use super::memory::{LEAST, parse_size};
use crate::fuse::Transport;
use std::fmt;

/// The longest `busy_poll=`, in microseconds: what waits longer than this for a request does not gain by being awake.
const BUSY_POLL_MAX_US: u32 = 100_000;

/// What to do after corruption was met (`errors=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnError {
    /// Stop writing, answer EIO, leave the journal for recovery.
    #[default]
    Withdraw,
    /// Abort the daemon at once (`errors=panic`, and `debug`).
    Panic,
}

/// Access time policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Atime {
    /// Only when older than the last change or a day (`relatime`, the default).
    #[default]
    Relative,
    /// Every access (`strictatime`).
    Strict,
    /// Never (`noatime`).
    Never,
}

/// The options of one mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// `ro`.
    pub read_only: bool,
    /// `spectator` or `norecovery`: read-only without a journal, replays nothing.
    pub spectator: bool,
    /// `lockproto=`, overriding the superblock's.
    pub lockproto: Option<String>,
    /// `locktable=`, overriding the superblock's.
    pub locktable: Option<String>,
    /// `hostdata=`: text for the lock module; `jid=N` in it chooses the journal with `lock_nolock`.
    pub hostdata: Option<String>,
    /// `acl`.
    pub acl: bool,
    /// `suiddir`.
    pub suiddir: bool,
    /// `meta`: the metadata root is the root of the mount (read-only).
    pub meta: bool,
    /// `commit=`, seconds between journal commits.
    pub commit_secs: u32,
    /// `errors=`.
    pub on_error: OnError,
    /// `statfs_quantum=`, seconds.
    pub statfs_quantum_secs: u32,
    /// `statfs_percent=`.
    pub statfs_percent: u8,
    /// `barrier`: flush the device's cache around journal writes.
    pub barrier: bool,
    /// `writeback_cache`: the kernel keeps writes and writes them back later.
    pub writeback_cache: bool,
    /// `io_uring`, `no_io_uring`: how the kernel's requests come.
    pub transport: Transport,
    /// `busy_poll=`, microseconds; 0: not.
    pub busy_poll_us: u32,
    /// `memory=`, bytes; 0: by the machine's memory.
    pub memory: usize,
    /// Access times.
    pub atime: Atime,
    /// `nodiratime`.
    pub nodiratime: bool,
    /// `sync`.
    pub sync: bool,
    /// `dirsync`.
    pub dirsync: bool,
    /// `nosuid`.
    pub nosuid: bool,
    /// `nodev`.
    pub nodev: bool,
    /// `noexec`.
    pub noexec: bool,
    /// `remount`.
    pub remount: bool,
    /// Options that say something specific to this filesystem, as given: what a remount may not change.
    pub specific: Vec<String>,
    /// Options that only programs around the mount look at, as given.
    pub passed_on: Vec<String>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            spectator: false,
            lockproto: None,
            locktable: None,
            hostdata: None,
            acl: false,
            suiddir: false,
            meta: false,
            commit_secs: 30,
            on_error: OnError::Withdraw,
            statfs_quantum_secs: 30,
            statfs_percent: 0,
            barrier: true,
            writeback_cache: false,
            transport: Transport::Auto,
            busy_poll_us: 0,
            memory: 0,
            atime: Atime::Relative,
            nodiratime: false,
            sync: false,
            dirsync: false,
            nosuid: false,
            nodev: false,
            noexec: false,
            remount: false,
            specific: Vec::new(),
            passed_on: Vec::new(),
        }
    }
}

/// An option that cannot be taken: which, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadOption {
    /// As it was given.
    pub option: String,
    /// What is wrong with it and what to do.
    pub why: String,
}

impl fmt::Display for BadOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "option '{}': {}", self.option, self.why)
    }
}

/// Words that are taken and mean nothing here: mount(8)'s own, and those the original ignores or implies.
const WITHOUT_EFFECT: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "_netdev",
    "nofail",
    "loud",
    "silent",
    "mand",
    "nomand",
    "lazytime",
    "nolazytime",
    "iversion",
    "noiversion",
    "async",
    "suid",
    "dev",
    "exec",
    "diratime",
    "norelatime",
    "nostrictatime",
    "upgrade",
    "ignore_local_fs",
    "localcaching",
    "localflocks",
    "nodebug",
    "noacl",
    "nosuiddir",
    "nodiscard",
    "noquota",
    "quota=off",
    "rgrplvb",
    "norgrplvb",
    "loccookie",
    "noloccookie",
    "data=ordered",
    "data=writeback",
    "allow_other",
    "default_permissions",
    "errors=withdraw",
    "barrier",
    "rw",
    "atime",
];

/// Every word that starts an option of ours, for the "did you mean" of a typo.
const KNOWN: &[&str] = &[
    "ro",
    "rw",
    "spectator",
    "norecovery",
    "lockproto=",
    "locktable=",
    "hostdata=",
    "localflocks",
    "acl",
    "noacl",
    "suiddir",
    "nosuiddir",
    "meta",
    "commit=",
    "errors=",
    "statfs_quantum=",
    "statfs_percent=",
    "quota_quantum=",
    "quota=",
    "noquota",
    "barrier",
    "nobarrier",
    "writeback_cache",
    "nowriteback_cache",
    "io_uring",
    "no_io_uring",
    "busy_poll=",
    "memory=",
    "discard",
    "nodiscard",
    "rgrplvb",
    "norgrplvb",
    "loccookie",
    "noloccookie",
    "data=",
    "debug",
    "nodebug",
    "noatime",
    "relatime",
    "strictatime",
    "nodiratime",
    "sync",
    "dirsync",
    "nosuid",
    "nodev",
    "noexec",
    "remount",
    "defaults",
    "lazytime",
    "_netdev",
    "nofail",
];

impl MountOptions {
    /// Parses the text after `-o` (several `-o` are joined by commas). With `sloppy` (mount's `-s`) unknown options
    /// are passed over.
    ///
    /// # Errors
    /// The first option that is unknown, malformed or refused.
    pub fn parse(text: &str, sloppy: bool) -> Result<Self, BadOption> {
        let mut options = Self::default();
        for word in text.split(',').filter(|w| !w.is_empty()) {
            match options.apply(word) {
                Ok(()) => {}
                Err(None) if sloppy => {}
                Err(None) => return Err(unknown(word)),
                Err(Some(why)) => {
                    return Err(BadOption {
                        option: word.to_owned(),
                        why,
                    });
                }
            }
        }
        options.check_combination()?;
        Ok(options)
    }

    /// Takes one word. `Err(None)`: not known.
    fn apply(&mut self, word: &str) -> Result<(), Option<String>> {
        if word == "_netdev" || word.starts_with("x-") {
            self.passed_on.push(word.to_owned());
        }
        if self.apply_generic(word)
            || word.starts_with("x-")
            || word.starts_with("X-")
            || word.starts_with("comment=")
            || is_shown_by_the_kernel(word)
        {
            return Ok(());
        }
        self.apply_specific(word)?;
        self.specific.push(word.to_owned());
        Ok(())
    }

    /// The options every filesystem has.
    fn apply_generic(&mut self, word: &str) -> bool {
        match word {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "noatime" => self.atime = Atime::Never,
            "atime" | "relatime" => self.atime = Atime::Relative,
            "strictatime" => self.atime = Atime::Strict,
            "nodiratime" => self.nodiratime = true,
            "diratime" => self.nodiratime = false,
            "sync" => self.sync = true,
            "async" => self.sync = false,
            "dirsync" => self.dirsync = true,
            "nosuid" => self.nosuid = true,
            "suid" => self.nosuid = false,
            "nodev" => self.nodev = true,
            "dev" => self.nodev = false,
            "noexec" => self.noexec = true,
            "exec" => self.noexec = false,
            "user" | "users" | "group" | "owner" => {
                // mount(8): these imply the three, unless overridden by a later word.
                self.nosuid = true;
                self.nodev = true;
                self.noexec = matches!(word, "user" | "users") || self.noexec;
            }
            "remount" => self.remount = true,
            // These have their generic meaning by default; anything specific is kept for the remount check.
            other => return WITHOUT_EFFECT.contains(&other) && !is_specific(other),
        }
        true
    }

    /// GFS2's own.
    fn apply_specific(&mut self, word: &str) -> Result<(), Option<String>> {
        let (key, value) = word.split_once('=').map_or((word, None), |(k, v)| (k, Some(v)));
        match (key, value) {
            ("spectator" | "norecovery", None) => {
                self.spectator = true;
                self.read_only = true;
            }
            ("lockproto", Some(v)) => match v {
                "lock_nolock" | "lock_dlm" => self.lockproto = Some(v.to_owned()),
                _ => return Err(Some("the lock protocols are lock_nolock and lock_dlm".into())),
            },
            ("locktable", Some(v)) => self.locktable = Some(v.to_owned()),
            ("hostdata", Some(v)) => self.hostdata = Some(v.to_owned()),
            ("acl", None) => self.acl = true,
            ("noacl", None) => self.acl = false,
            ("suiddir", None) => self.suiddir = true,
            ("nosuiddir", None) => self.suiddir = false,
            ("meta", None) => self.meta = true,
            ("debug", None) => self.on_error = OnError::Panic,
            ("nodebug", None) => self.on_error = OnError::Withdraw,
            ("errors", Some("panic")) => self.on_error = OnError::Panic,
            // Later kernels know "deactivate": stop at once, as a withdraw of ours does.
            ("errors", Some("withdraw" | "deactivate")) => self.on_error = OnError::Withdraw,
            ("errors", Some(_)) => return Err(Some("errors= takes withdraw or panic".into())),
            ("barrier", None) => self.barrier = true,
            ("nobarrier", None) => self.barrier = false,
            ("writeback_cache", None) => self.writeback_cache = true,
            ("nowriteback_cache", None) => self.writeback_cache = false,
            ("io_uring", None) => self.transport = Transport::Ring,
            ("no_io_uring", None) => self.transport = Transport::Device,
            ("busy_poll", Some(v)) => self.busy_poll_us = number(v, 0, BUSY_POLL_MAX_US)?,
            ("memory", Some(v)) => match parse_size(v) {
                Some(bytes) if bytes >= LEAST => self.memory = bytes,
                _ => return Err(Some("wants a size of at least 16M, such as 512M or 2G".into())),
            },
            ("commit", Some(v)) => self.commit_secs = number(v, 1, u32::MAX)?,
            ("statfs_quantum", Some(v)) => self.statfs_quantum_secs = number(v, 0, u32::MAX)?,
            ("statfs_percent", Some(v)) => self.statfs_percent = number(v, 0, 100)? as u8,
            ("quota_quantum", Some(v)) => {
                number(v, 1, u32::MAX)?;
            }
            ("data", Some("ordered" | "writeback")) => {}
            ("data", Some(_)) => return Err(Some("data= takes ordered or writeback".into())),
            ("quota", Some("off")) | ("noquota", None) => {}
            ("quota", None | Some("account" | "on" | "quiet")) => {
                return Err(Some(
                    "quotas are not supported; use quota=off (the default)".into(),
                ));
            }
            ("quota", Some(_)) => return Err(Some("quota= takes off".into())),
            ("discard", None) => {
                return Err(Some(
                    "online discard is not supported; use nodiscard (the default)".into(),
                ));
            }
            ("debug_withdraw" | "upgrade_fs", _) => return Err(None),
            _ if WITHOUT_EFFECT.contains(&word) => {}
            _ => return Err(None),
        }
        Ok(())
    }

    fn check_combination(&self) -> Result<(), BadOption> {
        let bad = |option: &str, why: &str| {
            Err(BadOption {
                option: option.into(),
                why: why.into(),
            })
        };
        let given = |word: &str| self.specific.iter().any(|s| s == word);
        if given("debug") && given("errors=panic") {
            return bad(
                "errors=panic",
                "cannot be combined with debug; leave one of them out",
            );
        }
        if self.meta && !self.read_only {
            return bad("meta", "the metadata view is read-only here; add ro");
        }
        Ok(())
    }
}

/// What `/proc/mounts` shows of every FUSE mount: mount(8) hands it back at a remount that names the target alone.
fn is_shown_by_the_kernel(word: &str) -> bool {
    ["user_id=", "group_id=", "max_read=", "blksize="]
        .iter()
        .any(|key| word.strip_prefix(key).is_some_and(|n| n.parse::<u32>().is_ok()))
}

/// Words without effect that still belong to this filesystem.
fn is_specific(word: &str) -> bool {
    !matches!(
        word,
        "defaults"
            | "auto"
            | "noauto"
            | "user"
            | "nouser"
            | "users"
            | "nousers"
            | "owner"
            | "noowner"
            | "group"
            | "nogroup"
            | "_netdev"
            | "nofail"
            | "loud"
            | "silent"
            | "mand"
            | "nomand"
            | "lazytime"
            | "nolazytime"
            | "iversion"
            | "noiversion"
            | "norelatime"
            | "nostrictatime"
            | "allow_other"
            | "default_permissions"
    )
}

fn number(text: &str, least: u32, most: u32) -> Result<u32, Option<String>> {
    match text.parse::<u32>() {
        Ok(n) if (least..=most).contains(&n) => Ok(n),
        _ if most == u32::MAX => Err(Some(format!("wants a whole number, at least {least}"))),
        _ => Err(Some(format!("wants a whole number from {least} to {most}"))),
    }
}

fn unknown(word: &str) -> BadOption {
    let key = word.split_once('=').map_or(word, |(k, _)| k);
    let nearest = KNOWN
        .iter()
        .map(|known| (distance(key, known.trim_end_matches('=')), known))
        .min_by_key(|(d, _)| *d)
        .filter(|(d, _)| *d <= 2);
    let why = match nearest {
        Some((_, known)) => format!("not known; did you mean '{known}'?"),
        None => "not known; see mount.fuse-gfs2(8) for the list".to_owned(),
    };
    BadOption {
        option: word.to_owned(),
        why,
    }
}

/// Edit distance of two short words.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MountOptions, BadOption> {
        MountOptions::parse(text, false)
    }

    #[test]
    fn every_option_of_the_original_is_taken_or_refused_with_a_reason() {
        let taken = "lockproto=lock_nolock,locktable=a:b,hostdata=jid=0,localflocks,ignore_local_fs,localcaching,\
                     upgrade,nodebug,acl,noacl,suiddir,nosuiddir,data=ordered,data=writeback,nodiscard,commit=5,\
                     errors=withdraw,errors=deactivate,statfs_quantum=0,statfs_percent=100,quota_quantum=60,noquota,\
                     quota=off,barrier,nobarrier,rgrplvb,norgrplvb,loccookie,noloccookie,rw,noatime,relatime,\
                     strictatime,lazytime,nodiratime,sync,dirsync,nosuid,nodev,noexec,defaults,_netdev,nofail,io_uring,\
                     x-systemd.automount,comment=x,noauto,spectator";
        let options = parse(taken).unwrap();
        assert!(options.spectator && options.read_only && !options.barrier && options.commit_secs == 5);
        for refused in [
            "discard",
            "quota=on",
            "quota=account",
            "quota",
            "data=journal",
            "errors=ignore",
            "commit=0",
            "statfs_percent=101",
            "lockproto=lock_gulm",
            "meta",
            "debug,errors=panic",
        ] {
            let bad = parse(refused).unwrap_err();
            assert!(!bad.why.starts_with("not known"), "{refused}: {bad}");
        }
    }

    #[test]
    fn a_typo_names_the_nearest_option_unless_sloppy() {
        let bad = parse("noatme").unwrap_err();
        assert!(bad.to_string().contains("'noatime'"), "{bad}");
        assert!(parse("colour=blue").unwrap_err().why.contains("not known"));
        assert!(MountOptions::parse("colour=blue,ro", true).unwrap().read_only);
    }

    #[test]
    fn what_the_kernel_shows_of_a_mount_can_be_handed_back_at_a_remount() {
        let shown =
            "rw,relatime,user_id=0,group_id=0,default_permissions,allow_other,max_read=1048576,blksize=4096";
        let options = parse(&format!("{shown},remount,ro")).unwrap();
        assert!(options.remount && options.read_only && options.specific.is_empty());
        assert!(parse("user_id=root").is_err() && parse("user_id").is_err());
    }

    #[test]
    fn later_words_win() {
        assert!(!parse("ro,rw").unwrap().read_only);
        let transport = |text| parse(text).unwrap().transport;
        assert_eq!(transport("ro"), Transport::Auto);
        assert_eq!(transport("no_io_uring,io_uring"), Transport::Ring);
        assert_eq!(transport("io_uring,no_io_uring"), Transport::Device);
        assert!(!parse("user,dev,suid,exec").unwrap().nodev);
        assert!(parse("users").unwrap().noexec);
        assert_eq!(parse("noatime,strictatime").unwrap().atime, Atime::Strict);
    }
}
