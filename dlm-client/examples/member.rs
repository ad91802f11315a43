//! What a mount does to be a node of a cluster, step by step; and the group server, which does corosync's part for
//! several nodes on one machine.
//!
//! `member server SOCKET CLUSTER NODES` serves the cluster until it is killed. `member node SOCKET CLUSTER NODEID
//! LOCKSPACE DLM.CONF DIRECTORY` is a node of it with a control socket in DIRECTORY, to be asked with `gfs2ctl dlm
//! --socket DIRECTORY/NODEID.sock`. Commands on its standard input: `lock NAME MODE`, `plock FILE FIRST LAST OWNER`,
//! `leave`; what happens goes to standard output, a line each. With corosync the only difference is the membership:
//! `CorosyncMembership::connect()`.

use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use dlm_client::backend::wire::{WireDlm, WireOptions};
use dlm_client::control::Control;
use dlm_client::fence::conf::DlmConf;
use dlm_client::membership::Membership;
use dlm_client::membership::server::{GroupServer, ServerMembership};
use dlm_client::transport::{Poller, TcpTransport};
use dlm_client::{
    Dlm, Event, EventQueue, JoinOptions, Leave, Lkf, Lockspace, Mode, NodeId, Plock, PlockOp, ResName,
};

/// How long the server waits before it looks at its processes again.
const TURN: Duration = Duration::from_millis(100);

fn say(line: &str) {
    // Whoever does not listen does not need it.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

fn server(socket: &str, cluster: &str, nodes: &str) -> Result<(), String> {
    let nodes = nodes.parse().map_err(|error| format!("{nodes}: {error}"))?;
    let bound = GroupServer::bind(Path::new(socket), cluster, nodes);
    let mut server = bound.map_err(|error| format!("{socket}: {error}"))?;
    say("serving");
    loop {
        server.turn(TURN);
    }
}

/// A node that serves its control socket: drop it after the lockspace was left, the socket goes first.
struct Member {
    _control: Control,
    dlm: WireDlm,
}

/// Every error is one line that says what to do.
fn start(socket: &str, cluster: &str, node: u32, conf: &str, directory: &str) -> Result<Member, String> {
    // 1. The configuration: the one of the stock daemon.
    let text = std::fs::read_to_string(conf).map_err(|error| format!("{conf}: {error}"))?;
    let conf = DlmConf::parse(&text).map_err(|error| error.to_string())?;
    // 2. Who is in the cluster.
    let joined = ServerMembership::connect(Path::new(socket), cluster, NodeId(node));
    let mut membership = joined.map_err(|error| error.to_string())?;
    // 3. Our address in it: listened on before anybody hears of us.
    let us = membership.config().us;
    let addresses = membership.addresses(us).map_err(|error| error.to_string())?;
    let ip = addresses.first().ok_or("the cluster has no address of ours")?;
    let poller = Poller::new().map_err(|error| error.to_string())?;
    let listen = TcpTransport::listen(SocketAddr::new(*ip, conf.port), poller.clone());
    let transport = listen.map_err(|error| error.to_string())?;
    // 4. The node. The superblock names the cluster that is meant: in another one the locks would protect nothing.
    let mut options = WireOptions::new(conf);
    options.cluster = Some(cluster.to_owned());
    let started = WireDlm::start(membership, Box::new(transport), poller, &options);
    let dlm = started.map_err(|error| error.to_string())?;
    // 5. The control socket, before the lockspace is joined: that is what one may have to ask about.
    let control = Control::serve(dlm.observer(), Path::new(directory))?;
    say(&format!("control {}", control.path().display()));
    Ok(Member {
        _control: control,
        dlm,
    })
}

fn shown(event: &Event) -> String {
    match event {
        Event::Cast(cast) => format!("cast {} {:?}", cast.token, cast.status),
        Event::Bast { token, mode, .. } => format!("bast {token} {mode}"),
        Event::RecoverPrep => "prepare".to_owned(),
        Event::RecoverSlot { failed } => format!("failed node {} slot {}", failed.node.0, failed.slot),
        Event::RecoverDone { slots, .. } => {
            let nodes: Vec<String> = slots.iter().map(|slot| slot.node.0.to_string()).collect();
            format!("members {}", nodes.join(" "))
        }
        Event::Plock(done) => format!("plock {} {:?}", done.token, done.status),
        Event::Fatal(error) => format!("fatal {error}"),
        other => format!("{other:?}"),
    }
}

/// The one thread that hears what happens to the lockspace, until it is left.
fn listen(queue: &EventQueue) {
    while let Some(event) = queue.recv() {
        say(&shown(&event));
    }
    say("left");
}

/// One command; tokens are the numbers of the lines.
fn command(space: &Arc<dyn Lockspace>, line: &str, token: u64) -> Result<(), String> {
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["lock", name, mode] => {
            let name = ResName::new(name.as_bytes()).map_err(|error| error.to_string())?;
            let mode = Mode::ALL.into_iter().find(|known| known.to_string() == mode);
            let mode = mode.ok_or_else(|| format!("{line}: unknown mode"))?;
            let asked = space.request(&name, mode, Lkf::empty(), token);
            asked.map(drop).map_err(|error| error.to_string())
        }
        ["plock", file, start, end, owner] => {
            let lock = Plock {
                number: number(file)?,
                start: number(start)?,
                end: number(end)?,
                owner: number(owner)?,
                pid: std::process::id(),
                exclusive: true,
            };
            let asked = space.plock(PlockOp::Lock { wait: true }, &lock, token);
            asked.map_err(|error| error.to_string())
        }
        ["leave"] => space.leave(Leave::Clean).map_err(|error| error.to_string()),
        _ => Err(format!("what is {line:?}?")),
    }
}

fn node(member: &Member, lockspace: &str) -> Result<(), String> {
    // 6. The lockspace: the part of the lock table behind the colon. The first event is the end of the first recovery.
    let joined = member.dlm.join(lockspace, &JoinOptions::default());
    let (space, queue) = joined.map_err(|error| error.to_string())?;
    let listener = std::thread::spawn(move || listen(&queue));
    for (token, line) in (1..).zip(std::io::stdin().lock().lines().map_while(Result::ok)) {
        if let Err(error) = command(&space, &line, token) {
            say(&format!("error {error}"));
        }
        if line == "leave" {
            break;
        }
    }
    // 7. Whoever goes without leaving is dead to the others. After a leave the queue ends when the links have.
    listener.join().map_err(|_| "the listener panicked".to_owned())
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["server", socket, cluster, nodes] => server(socket, cluster, nodes),
        ["node", socket, cluster, id, lockspace, conf, directory] => id
            .parse()
            .map_err(|error| format!("{id}: {error}"))
            .and_then(|id| start(socket, cluster, id, conf, directory))
            .and_then(|member| node(&member, lockspace)),
        _ => Err(
            "member server SOCKET CLUSTER NODES, or member node SOCKET CLUSTER NODEID LOCKSPACE DLM.CONF \
                  DIRECTORY"
                .to_owned(),
        ),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("member: {error}");
            ExitCode::FAILURE
        }
    }
}
