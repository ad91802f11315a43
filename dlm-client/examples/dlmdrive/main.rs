//! Drives one node of a lockspace from outside: the kernel's through its device, or ours; and compares two of them.
//!
//! * `dlmdrive kernel ADDRESS` (the bare device), `dlmdrive device ADDRESS` (the kernel backend) and
//!   `dlmdrive wire ADDRESS [DLM.CONF]` serve commands, a line each, to one connection at a time, and answer with lines
//!   of which the last begins with `ok` or `error` ([`serve`] lists the commands).
//! * `dlmdrive ask ADDRESS COMMAND...` sends commands and prints the answers; fails when one is an error.
//! * `dlmdrive stream SEED COUNT ADDRESS...` plays a random stream of operations on the nodes and prints what came of it.
//! * `dlmdrive posix FILE` locks a file as POSIX says, all of it, and waits for it; says `held`, and lets it go when its
//!   input ends. `dlmdrive posix-try FILE` says `free` or `taken`.

mod device;
mod measure;
mod ours;
mod party;
mod report;
mod serve;
mod stream;

use std::process::ExitCode;

use party::{Party, Remote};
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

fn ask(words: &[String]) -> Result<(), String> {
    let (address, commands) = words.split_first().ok_or("ask whom?")?;
    let mut remote = Remote::connect(address)?;
    for command in commands {
        for line in remote.ask(command)? {
            println!("{line}");
        }
    }
    Ok(())
}

fn posix(path: &str, wait: bool) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{path}: {e}");
    let open = std::fs::OpenOptions::new().read(true).write(true).open(path);
    let file = open.map_err(failed)?;
    if !wait {
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => println!("free"),
            Err(Errno::AGAIN | Errno::ACCESS) => println!("taken"),
            Err(e) => return Err(failed(e.into())),
        }
        return Ok(());
    }
    fcntl_lock(&file, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
    println!("held");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())
        .map(|_| ())
        .map_err(failed)
}

fn play(words: &[String]) -> Result<(), String> {
    let [seed, count, addresses @ ..] = words else {
        return Err("stream SEED COUNT ADDRESS...".to_owned());
    };
    let number = |text: &String| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
    let parties = addresses.iter().map(|address| Remote::connect(address));
    let mut parties = parties.collect::<Result<Vec<_>, _>>()?;
    let mut parties: Vec<&mut dyn Party> = parties.iter_mut().map(|p| p as &mut dyn Party).collect();
    stream::play(number(seed)?, number(count)?, &mut parties, &mut |line| {
        println!("{line}")
    })
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.split_first() {
        Some((mode, rest)) => match (mode.as_str(), rest) {
            ("kernel", [address]) => serve::serve(device::KernelNode::default(), address),
            ("device", [address]) => ours::device().and_then(|node| serve::serve(node, address)),
            ("wire", [address]) => ours::wire("").and_then(|node| serve::serve(node, address)),
            ("wire", [address, conf]) => std::fs::read_to_string(conf)
                .map_err(|e| format!("{conf}: {e}"))
                .and_then(|text| ours::wire(&text))
                .and_then(|node| serve::serve(node, address)),
            ("ask", rest) => ask(rest),
            ("stream", rest) => play(rest),
            ("posix", [path]) => posix(path, true),
            ("posix-try", [path]) => posix(path, false),
            _ => Err(format!(
                "what is {mode}? kernel, device, wire, ask, stream, posix"
            )),
        },
        None => Err("kernel, device, wire, ask, stream, posix".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dlmdrive: {error}");
            ExitCode::FAILURE
        }
    }
}
