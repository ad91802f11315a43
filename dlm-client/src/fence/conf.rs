//! `/etc/dlm/dlm.conf`, with the syntax of `dlm_controld`.
//!
//! Lines `key=value` set options. A section begins with `device`, `fence_all` or `lockspace`, goes on with lines that
//! belong to it, and ends with an empty line (or one that starts with a space). `#` starts a comment line. The stock
//! daemon passes over much that it cannot use; we say where the error is and what to do, because a fence device that
//! is not there is noticed on the worst day.

use std::collections::BTreeMap;

use crate::NodeId;

/// Longest set of arguments for an agent, in bytes.
pub const ARGS_MAX: usize = 4096;
/// Longest name of a device or agent.
pub const NAME_MAX: usize = 255;
/// Most devices for one node.
pub const DEVICES_MAX: usize = 4;
/// What fences when nothing is configured: the bridge to Pacemaker.
pub const DEFAULT_AGENT: &str = "dlm_stonith";

/// An error in the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("dlm.conf line {line}: {what}; {advice}")]
pub struct ConfError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub advice: &'static str,
}

/// A way to fence one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name; devices in a row whose names are equal up to a colon must all succeed.
    pub name: String,
    /// The program.
    pub agent: String,
    /// Arguments of the device.
    pub args: String,
    /// Arguments of the node at this device.
    pub connect: String,
    /// Is the node to be unfenced when it starts?
    pub unfence: bool,
}

impl Device {
    /// Must both succeed?
    #[must_use]
    pub fn parallel_to(&self, other: &Self) -> bool {
        let base = |name: &str| name.split_once(':').map(|(base, _)| base.to_owned());
        self.name == other.name
            || base(&self.name)
                .zip(base(&other.name))
                .is_some_and(|(ours, theirs)| ours == theirs)
    }

    /// What the agent gets on its standard input: one `key=value` per line.
    #[must_use]
    pub fn input(&self, node: NodeId, extra: &str) -> String {
        let mut input = String::new();
        for args in [&self.args, &self.connect] {
            for arg in args.split(' ').filter(|arg| !arg.is_empty()) {
                input.push_str(arg);
                input.push('\n');
            }
        }
        if !input.contains("node=") {
            input.push_str(&format!("node={}\n", node.0));
        }
        input.push_str(extra);
        input
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct DeviceSection {
    line: usize,
    device: Device,
    nodes: Vec<(NodeId, String)>,
}

/// A `lockspace` section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct LockspaceSection {
    nodir: bool,
    masters: Vec<(NodeId, u32)>,
}

/// The configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DlmConf {
    /// `log_debug`.
    pub log_debug: bool,
    /// `protocol`: `detect`, `tcp` or `sctp`.
    pub protocol: String,
    /// `port`.
    pub port: u16,
    /// `mark`.
    pub mark: u32,
    /// `enable_plock`.
    pub enable_plock: bool,
    /// `plock_debug`.
    pub plock_debug: bool,
    /// `plock_rate_limit`, operations a second; 0 is no limit.
    pub plock_rate_limit: u32,
    /// `post_join_delay`, seconds.
    pub post_join_delay: u32,
    /// `enable_fencing`.
    pub enable_fencing: bool,
    /// `enable_concurrent_fencing`.
    pub enable_concurrent_fencing: bool,
    /// `enable_startup_fencing`.
    pub enable_startup_fencing: bool,
    /// `enable_quorum_fencing`.
    pub enable_quorum_fencing: bool,
    /// `enable_quorum_lockspace`.
    pub enable_quorum_lockspace: bool,
    /// `repeat_failed_fencing`.
    pub repeat_failed_fencing: bool,
    /// `plock_cancel`: the daemons of this cluster know the message that takes back a waiting POSIX lock (dlm 4.3 and
    /// later). All members must agree on it.
    pub plock_cancel: bool,
    fence_all: Option<Device>,
    devices: Vec<DeviceSection>,
    lockspaces: BTreeMap<String, LockspaceSection>,
    marks: BTreeMap<NodeId, u32>,
}

impl Default for DlmConf {
    fn default() -> Self {
        Self {
            log_debug: false,
            protocol: "detect".to_owned(),
            port: 21064,
            mark: 0,
            enable_plock: true,
            plock_debug: false,
            plock_rate_limit: 0,
            post_join_delay: 30,
            enable_fencing: true,
            enable_concurrent_fencing: false,
            enable_startup_fencing: true,
            enable_quorum_fencing: true,
            enable_quorum_lockspace: true,
            repeat_failed_fencing: true,
            plock_cancel: false,
            fence_all: None,
            devices: Vec::new(),
            lockspaces: BTreeMap::new(),
            marks: BTreeMap::new(),
        }
    }
}

const IGNORED: &[&str] = &[
    "bind_all",
    "timewarn",
    "debug_logfile",
    "drop_resources_time",
    "drop_resources_count",
    "drop_resources_age",
    "enable_helper",
    "foreground",
    "daemon_debug",
];

enum Section {
    None,
    Device(DeviceSection),
    FenceAll(Device),
    Lockspace { name: String, section: LockspaceSection },
}

struct Parser {
    conf: DlmConf,
    section: Section,
    line: usize,
}

impl DlmConf {
    /// Reads the text of the file.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str) -> Result<Self, ConfError> {
        let mut parser = Parser {
            conf: Self::default(),
            section: Section::None,
            line: 0,
        };
        for line in text.lines() {
            parser.line = parser.line.saturating_add(1);
            parser.line(line)?;
        }
        parser.end_section();
        parser.conf.check_counts()?;
        Ok(parser.conf)
    }

    fn check_counts(&self) -> Result<(), ConfError> {
        let mut counts: BTreeMap<NodeId, usize> = BTreeMap::new();
        for section in &self.devices {
            for (node, _) in &section.nodes {
                let count = counts.entry(*node).or_default();
                *count = count.saturating_add(1);
                if *count > DEVICES_MAX {
                    return Err(ConfError {
                        line: section.line,
                        what: format!("node {} has more than {DEVICES_MAX} fence devices", node.0),
                        advice: "remove its connect line from one of them",
                    });
                }
            }
        }
        Ok(())
    }

    /// The devices of a node, best first.
    #[must_use]
    pub fn devices(&self, node: NodeId) -> Vec<Device> {
        if let Some(device) = &self.fence_all {
            return vec![device.clone()];
        }
        let mut found = Vec::new();
        for section in &self.devices {
            if let Some((_, args)) = section.nodes.iter().find(|(id, _)| *id == node) {
                found.push(Device {
                    connect: args.clone(),
                    ..section.device.clone()
                });
            }
        }
        if found.is_empty() {
            found.push(Device {
                name: "fence_all".to_owned(),
                agent: DEFAULT_AGENT.to_owned(),
                args: String::new(),
                connect: String::new(),
                unfence: false,
            });
        }
        found
    }

    /// The share of a node in mastering resources of a lockspace.
    #[must_use]
    pub fn weight(&self, lockspace: &str, node: NodeId) -> u32 {
        match self.lockspaces.get(lockspace) {
            Some(section) if !section.masters.is_empty() => section
                .masters
                .iter()
                .find(|(master, _)| *master == node)
                .map_or(0, |(_, weight)| *weight),
            _ => 1,
        }
    }

    /// Does the lockspace go without a directory?
    #[must_use]
    pub fn nodir(&self, lockspace: &str) -> bool {
        self.lockspaces
            .get(lockspace)
            .is_some_and(|section| section.nodir)
    }

    /// The mark of packets to a node.
    #[must_use]
    pub fn mark_of(&self, node: NodeId) -> u32 {
        self.marks.get(&node).copied().unwrap_or(self.mark)
    }
}

/// A word and what follows it, without the blanks between.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    let (word, rest) = text.split_at(text.find(char::is_whitespace).unwrap_or(text.len()));
    (word, rest.trim())
}

/// The value of `key=` among arguments.
fn argument<'a>(args: &'a str, key: &str) -> Option<&'a str> {
    args.split_whitespace()
        .find_map(|arg| arg.strip_prefix(key)?.strip_prefix('='))
}

impl Parser {
    fn error<T>(&self, what: String, advice: &'static str) -> Result<T, ConfError> {
        Err(ConfError {
            line: self.line,
            what,
            advice,
        })
    }

    fn end_section(&mut self) {
        match std::mem::replace(&mut self.section, Section::None) {
            Section::None => {}
            Section::Device(section) => self.conf.devices.push(section),
            Section::FenceAll(device) => self.conf.fence_all = Some(device),
            Section::Lockspace { name, section } => {
                self.conf.lockspaces.insert(name, section);
            }
        }
    }

    fn line(&mut self, line: &str) -> Result<(), ConfError> {
        if line.starts_with('#') {
            return Ok(());
        }
        if line.trim().is_empty() || line.starts_with(' ') {
            self.end_section();
            if line.trim().is_empty() || line.trim_start().starts_with('#') {
                return Ok(());
            }
            return self.error(
                "the line starts with a blank".to_owned(),
                "dlm_controld takes that as the end of a section: remove the blank",
            );
        }
        let (keyword, rest) = word(line);
        if keyword != "unfence_all" && matches!(self.section, Section::FenceAll(_)) {
            self.end_section();
        }
        match keyword {
            "device" => self.device(rest),
            "connect" => self.connect(rest),
            "unfence" => self.unfence(rest),
            "fence_all" => self.fence_all(rest),
            "unfence_all" => self.unfence_all(),
            "lockspace" => self.lockspace(rest),
            "master" => self.master(rest),
            "node" => self.node(rest),
            _ => self.option(line),
        }
    }

    fn named<'a>(&self, what: &str, text: &'a str) -> Result<(&'a str, &'a str), ConfError> {
        let (name, rest) = word(text);
        if name.is_empty() || name.len() > NAME_MAX {
            return self.error(
                format!("the {what} has a name of {} bytes", name.len()),
                "give a name of 1 to 255 bytes",
            );
        }
        if rest.len() > ARGS_MAX {
            return self.error(
                format!("arguments of {} bytes", rest.len()),
                "agents get at most 4096 bytes",
            );
        }
        Ok((name, rest))
    }

    fn device(&mut self, rest: &str) -> Result<(), ConfError> {
        self.end_section();
        let (name, rest) = self.named("device", rest)?;
        let (agent, args) = self.named("agent of the device", rest)?;
        if self.conf.fence_all.is_some() {
            return self.error(
                "a device after fence_all".to_owned(),
                "fence_all is for all nodes: use it alone, or only device sections",
            );
        }
        if self
            .conf
            .devices
            .iter()
            .any(|section| section.device.name == name)
        {
            return self.error(
                format!("device {name} is there twice"),
                "give devices names of their own",
            );
        }
        self.section = Section::Device(DeviceSection {
            line: self.line,
            device: Device {
                name: name.to_owned(),
                agent: agent.to_owned(),
                args: args.to_owned(),
                connect: String::new(),
                unfence: false,
            },
            nodes: Vec::new(),
        });
        Ok(())
    }

    fn connect(&mut self, rest: &str) -> Result<(), ConfError> {
        let (name, args) = self.named("device of the connect line", rest)?;
        let node = argument(args, "node").and_then(|value| value.parse().ok());
        let problem = match (&mut self.section, node) {
            (Section::Device(section), _) if section.device.name != name => (
                format!("connect {name} in the section of device {}", section.device.name),
                "connect lines follow the line of their device, without an empty line between",
            ),
            (Section::Device(_), None | Some(0)) => (
                "a connect line without node=ID".to_owned(),
                "name the node by its corosync nodeid",
            ),
            (Section::Device(section), Some(node)) => {
                let node = NodeId(node);
                if section.nodes.iter().any(|(id, _)| *id == node) {
                    (
                        format!("node {} is connected twice to device {name}", node.0),
                        "keep one of the lines",
                    )
                } else {
                    section.nodes.push((node, args.to_owned()));
                    return Ok(());
                }
            }
            _ => (
                "a connect line outside the section of a device".to_owned(),
                "put it right after the line of its device",
            ),
        };
        self.error(problem.0, problem.1)
    }

    fn unfence(&mut self, rest: &str) -> Result<(), ConfError> {
        let (name, _) = word(rest);
        match &mut self.section {
            Section::Device(section) if section.device.name == name => {
                section.device.unfence = true;
                Ok(())
            }
            _ => self.error(
                format!("unfence {name} is not in the section of device {name}"),
                "put it after the connect lines of its device",
            ),
        }
    }

    fn fence_all(&mut self, rest: &str) -> Result<(), ConfError> {
        self.end_section();
        let (agent, args) = self.named("agent of fence_all", rest)?;
        if !self.conf.devices.is_empty() || self.conf.fence_all.is_some() {
            return self.error(
                "fence_all next to other fence devices".to_owned(),
                "fence_all is for all nodes: use it alone, or only device sections",
            );
        }
        let device = Device {
            name: "fence_all".to_owned(),
            agent: agent.to_owned(),
            args: args.to_owned(),
            connect: String::new(),
            unfence: false,
        };
        self.section = Section::FenceAll(device);
        Ok(())
    }

    fn unfence_all(&mut self) -> Result<(), ConfError> {
        match &mut self.section {
            Section::FenceAll(device) => {
                device.unfence = true;
                Ok(())
            }
            _ => self.error(
                "unfence_all does not follow fence_all".to_owned(),
                "put it on the line right after fence_all",
            ),
        }
    }

    fn lockspace(&mut self, rest: &str) -> Result<(), ConfError> {
        self.end_section();
        let (name, args) = self.named("lockspace", rest)?;
        let nodir = match argument(args, "nodir") {
            None | Some("0") => false,
            Some("1") => true,
            Some(other) => return self.error(format!("nodir={other}"), "write nodir=0 or nodir=1"),
        };
        self.section = Section::Lockspace {
            name: name.to_owned(),
            section: LockspaceSection {
                nodir,
                masters: Vec::new(),
            },
        };
        Ok(())
    }

    fn master(&mut self, rest: &str) -> Result<(), ConfError> {
        let (master, args) = self.named("lockspace of the master line", rest)?;
        let node = argument(args, "node").map(str::parse::<u32>);
        let weight = argument(args, "weight").map_or(Ok(1), str::parse::<u32>);
        match (&mut self.section, node, weight) {
            (Section::Lockspace { name, section }, Some(Ok(node)), Ok(weight))
                if name == master && node != 0 =>
            {
                section.masters.push((NodeId(node), weight));
                Ok(())
            }
            (Section::Lockspace { name, .. }, ..) if name == master => self.error(
                format!("master {master} {args}"),
                "write: master LOCKSPACE node=ID [weight=NUMBER]",
            ),
            _ => self.error(
                format!("master {master} is not in the section of lockspace {master}"),
                "put it after the line of its lockspace, without an empty line between",
            ),
        }
    }

    fn node(&mut self, rest: &str) -> Result<(), ConfError> {
        let id = argument(rest, "id").and_then(|value| value.parse().ok());
        let mark = argument(rest, "mark").and_then(number);
        match (id, mark) {
            (Some(id), Some(mark)) => {
                self.conf.marks.insert(NodeId(id), mark);
                Ok(())
            }
            _ => self.error(format!("node {rest}"), "write: node id=ID mark=NUMBER"),
        }
    }

    fn option(&mut self, line: &str) -> Result<(), ConfError> {
        if matches!(self.section, Section::Device(_)) {
            return self.error(
                format!("{line:?} in the section of a device"),
                "only connect and unfence lines belong there; end the section with an empty line",
            );
        }
        self.end_section();
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let (key, value) = (key.trim(), value.trim());
        if key == "log_debug" || key == "plock_debug" {
            let on = if key == "log_debug" {
                &mut self.conf.log_debug
            } else {
                &mut self.conf.plock_debug
            };
            *on = true;
            return Ok(());
        }
        if IGNORED.contains(&key) {
            return Ok(());
        }
        if key == "protocol" {
            if !["detect", "tcp", "sctp", "0", "1", "2"].contains(&value) {
                return self.error(format!("protocol={value}"), "write detect, tcp or sctp");
            }
            value.clone_into(&mut self.conf.protocol);
            return Ok(());
        }
        let Some(number) = number(value) else {
            return self.unreadable(key, value);
        };
        self.numeric(key, number)
    }

    fn unreadable(&self, key: &str, value: &str) -> Result<(), ConfError> {
        self.error(
            format!("{key:?} with value {value:?}"),
            "write option=number with an option of dlm.conf(5), or a section line",
        )
    }

    fn numeric(&mut self, key: &str, number: u32) -> Result<(), ConfError> {
        let conf = &mut self.conf;
        let flag = match key {
            "enable_plock" => &mut conf.enable_plock,
            "enable_fencing" => &mut conf.enable_fencing,
            "enable_concurrent_fencing" => &mut conf.enable_concurrent_fencing,
            "enable_startup_fencing" => &mut conf.enable_startup_fencing,
            "enable_quorum_fencing" => &mut conf.enable_quorum_fencing,
            "enable_quorum_lockspace" => &mut conf.enable_quorum_lockspace,
            "repeat_failed_fencing" => &mut conf.repeat_failed_fencing,
            "plock_cancel" => &mut conf.plock_cancel,
            _ => return self.plain(key, number),
        };
        *flag = number != 0;
        Ok(())
    }

    fn plain(&mut self, key: &str, number: u32) -> Result<(), ConfError> {
        match (key, number) {
            ("mark", mark) => self.conf.mark = mark,
            ("post_join_delay", seconds) => self.conf.post_join_delay = seconds,
            ("plock_rate_limit", limit) => self.conf.plock_rate_limit = limit,
            ("port", port) => match u16::try_from(port) {
                Ok(port) if port != 0 => self.conf.port = port,
                _ => return self.error(format!("port={port}"), "a port is 1 to 65535"),
            },
            ("plock_ownership" | "enable_fscontrol", 0) => {}
            ("plock_ownership", _) => {
                return self.error(
                    "plock_ownership=1 is not supported: daemons then send messages about POSIX locks that ours do not know"
                        .to_owned(),
                    "set it to 0 on all nodes of the cluster: all must have the same",
                );
            }
            ("enable_fscontrol", _) => {
                return self.error(
                    "enable_fscontrol=1 is not supported: daemons then speak version 2 of their protocol, not 3"
                        .to_owned(),
                    "remove it on all nodes of the cluster: all must have the same",
                );
            }
            _ => return self.unreadable(key, &number.to_string()),
        }
        Ok(())
    }
}

/// A number as C reads it: decimal, 0x hexadecimal.
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
#[path = "conf/tests.rs"]
mod tests;
