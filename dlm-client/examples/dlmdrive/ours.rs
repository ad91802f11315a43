//! Our own node: the wire backend on the corosync of this host, or the kernel backend on its dlm.ko.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dlm_client::backend::wire::{WireDlm, WireOptions};
use dlm_client::control::{self, Control};
use dlm_client::fence::conf::DlmConf;
use dlm_client::membership::Membership;
use dlm_client::membership::corosync::CorosyncMembership;
use dlm_client::transport::{Poller, TcpTransport};
use dlm_client::wire::Version;
use dlm_client::{
    Dlm, Event, EventQueue, JoinOptions, KernelDlm, Leave, Lkf, LockId, Lockspace, Lvb, Mode, NodeId, Plock,
    PlockOp,
};

use crate::party::{Node, Report, hex};
use crate::report::{refused, report};

/// How long a join or a leave may take.
const PATIENCE: Duration = Duration::from_secs(100);

struct Space {
    name: String,
    space: Arc<dyn Lockspace>,
    queue: EventQueue,
    locks: BTreeMap<u64, LockId>,
}

/// What a backend can do beyond the trait.
pub(crate) trait Backend: Dlm {
    /// How it stands, for those who wait in vain.
    fn state(&self) -> String;
    /// A command of its own. `lockspace` is what is joined.
    fn command(&self, lockspace: Option<&str>, words: &[&str]) -> Result<Vec<String>, String>;
}

/// Our node.
pub(crate) struct Ours<B> {
    /// What `gfs2ctl dlm` would ask. Before the node: it goes first.
    control: Option<Control>,
    dlm: B,
    space: Option<Space>,
}

/// Connects to corosync and starts the daemon's part; `conf` is a dlm.conf. `DLM_VERSION=3.1` speaks the old protocol.
pub(crate) fn wire(conf: &str) -> Result<Ours<WireDlm>, String> {
    let conf = DlmConf::parse(conf).map_err(|e| e.to_string())?;
    let mut membership = CorosyncMembership::connect().map_err(|e| e.to_string())?;
    let us = membership.config().us;
    let addresses = membership.addresses(us).map_err(|e| e.to_string())?;
    let ip = addresses.first().ok_or("corosync knows no address of ours")?;
    let poller = Poller::new().map_err(|e| e.to_string())?;
    let listen = SocketAddr::new(*ip, conf.port);
    let transport = TcpTransport::listen(listen, poller.clone()).map_err(|e| e.to_string())?;
    let mut options = WireOptions::new(conf);
    if std::env::var("DLM_VERSION").is_ok_and(|v| v == "3.1") {
        options.version = Version::V3_1;
    }
    let dlm = WireDlm::start(membership, Box::new(transport), poller, &options).map_err(|e| e.to_string())?;
    let control = Control::serve(dlm.observer(), Path::new(control::DIRECTORY))?;
    Ok(Ours {
        control: Some(control),
        dlm,
        space: None,
    })
}

/// The kernel's lock manager through our backend.
pub(crate) fn device() -> Result<Ours<KernelDlm>, String> {
    let dlm = KernelDlm::new().map_err(|e| e.to_string())?;
    Ok(Ours {
        control: None,
        dlm,
        space: None,
    })
}

fn dump(dlm: &WireDlm, name: &str) -> Result<Vec<String>, String> {
    let mut lines = Vec::new();
    for resource in dlm.dump(name).ok_or("not joined")? {
        let master = resource.master.map_or(0, |n| n.0);
        let text = String::from_utf8_lossy(resource.name.as_bytes()).into_owned();
        lines.push(format!(
            "resource {text:?} master {master} directory {} inactive {} lvb {} invalid {}",
            resource.directory.0,
            resource.inactive,
            resource.lvb.map_or("none".to_owned(), |lvb| hex(&lvb)),
            resource.lvb_invalid,
        ));
        for lock in resource.locks {
            lines.push(format!("  {lock:?}"));
        }
    }
    Ok(lines)
}

impl Backend for WireDlm {
    fn state(&self) -> String {
        format!("{:?}", self.status())
    }

    fn command(&self, lockspace: Option<&str>, words: &[&str]) -> Result<Vec<String>, String> {
        let joined = || lockspace.ok_or_else(|| "not joined".to_owned());
        match words {
            ["dump"] => dump(self, joined()?),
            ["status"] => {
                let status = self.status();
                let mut lines = vec![format!("{status:?}")];
                lines.extend(status.fencing_lines());
                Ok(lines)
            }
            ["plocks"] => self.plock_lines(joined()?).ok_or_else(|| "not joined".to_owned()),
            ["ack", node] => {
                let node = node.parse().map_err(|e| format!("{node}: {e}"))?;
                self.acknowledge_fencing(NodeId(node));
                Ok(Vec::new())
            }
            _ => Err(format!("what is {words:?}?")),
        }
    }
}

impl Backend for KernelDlm {
    fn state(&self) -> String {
        "the kernel says it in its log".to_owned()
    }

    fn command(&self, _: Option<&str>, words: &[&str]) -> Result<Vec<String>, String> {
        Err(format!("what is {words:?}?"))
    }
}

impl<B: Backend> Ours<B> {
    fn space(&mut self) -> Result<&mut Space, String> {
        self.space.as_mut().ok_or_else(|| "not joined".to_owned())
    }

    fn lock(&mut self, token: u64) -> Result<(&mut Space, LockId), String> {
        let space = self.space()?;
        let id = *space.locks.get(&token).ok_or("no such lock")?;
        Ok((space, id))
    }

    fn plock(&mut self, words: &[&str]) -> Result<Vec<String>, String> {
        let [token, kind, file, start, end, owner] = *words else {
            return Err("plock TOKEN w|r|u FILE FIRST LAST OWNER".to_owned());
        };
        let number = |text: &str| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
        let lock = Plock {
            number: number(file)?,
            start: number(start)?,
            end: number(end)?,
            owner: number(owner)?,
            pid: 77,
            exclusive: kind == "w",
        };
        let op = match kind {
            "u" => PlockOp::Unlock { close: false },
            _ => PlockOp::Lock { wait: true },
        };
        let token = number(token)?;
        self.space()?
            .space
            .plock(op, &lock, token)
            .map_err(|e| refused(&e))?;
        Ok(Vec::new())
    }
}

impl<B: Backend> Node for Ours<B> {
    fn join(&mut self, lockspace: &str) -> Result<(), String> {
        let joined = self.dlm.join(lockspace, &JoinOptions::default());
        let (space, queue) = joined.map_err(|e| e.to_string())?;
        // As the device does: joined is who has recovered.
        match queue.recv_timeout(PATIENCE) {
            Some(Event::RecoverDone { .. }) => {}
            Some(other) => return Err(format!("the first event of a join was {other:?}")),
            None => return Err(format!("no recovery in {PATIENCE:?}; {}", self.dlm.state())),
        }
        self.space = Some(Space {
            name: lockspace.to_owned(),
            space,
            queue,
            locks: BTreeMap::new(),
        });
        Ok(())
    }

    fn leave(&mut self) -> Result<(), String> {
        let space = self.space.take().ok_or("not joined")?;
        space.space.leave(Leave::Clean).map_err(|e| e.to_string())?;
        let end = std::time::Instant::now() + PATIENCE;
        while !space.queue.is_ended() {
            let left = end.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Err(format!("not left in {PATIENCE:?}; {}", self.dlm.state()));
            }
            if let Some(Event::Fatal(error)) = space.queue.recv_timeout(left) {
                return Err(error.to_string());
            }
        }
        Ok(())
    }

    fn request(&mut self, token: u64, name: &str, mode: Mode, flags: Lkf) -> Result<(), String> {
        let name = dlm_client::ResName::new(name.as_bytes()).map_err(|e| e.to_string())?;
        let space = self.space()?;
        let id = space
            .space
            .request(&name, mode, flags, token)
            .map_err(|e| refused(&e))?;
        space.locks.insert(token, id);
        Ok(())
    }

    fn convert(&mut self, token: u64, mode: Mode, flags: Lkf, lvb: &Lvb) -> Result<(), String> {
        let (space, id) = self.lock(token)?;
        space
            .space
            .convert(id, mode, flags, Some(lvb))
            .map_err(|e| refused(&e))
    }

    fn unlock(&mut self, token: u64, flags: Lkf, lvb: &Lvb) -> Result<(), String> {
        let (space, id) = self.lock(token)?;
        space.space.unlock(id, flags, Some(lvb)).map_err(|e| refused(&e))
    }

    fn cancel(&mut self, token: u64) -> Result<(), String> {
        let (space, id) = self.lock(token)?;
        space.space.cancel(id).map_err(|e| refused(&e))
    }

    fn report(&mut self, timeout: Duration) -> Option<Report> {
        let event = self.space.as_ref()?.queue.recv_timeout(timeout)?;
        Some(report(&event))
    }

    fn other(&mut self, words: &[&str]) -> Result<Vec<String>, String> {
        match words {
            ["plock", rest @ ..] => self.plock(rest),
            ["ctl", rest @ ..] => {
                let control = self.control.as_ref().ok_or("the kernel's is asked by dlm_tool")?;
                let said = control::ask(control.path(), &rest.join(" "))?;
                Ok(said.lines().map(str::to_owned).collect())
            }
            ["purge"] => {
                let purged = self.space()?.space.purge_orphans();
                purged.map(|()| Vec::new()).map_err(|e| refused(&e))
            }
            _ => {
                let name = self.space.as_ref().map(|space| space.name.as_str());
                self.dlm.command(name, words)
            }
        }
    }
}
