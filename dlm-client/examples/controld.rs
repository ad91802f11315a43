//! A lock daemon on the corosync of this host, without a lock engine: says what it would tell one.
//!
//! `controld [DLM.CONF]`; commands on standard input: `join NAME`, `leave NAME`, `lock NAME FILE FIRST LAST OWNER w|r`,
//! `unlock ...`, `plocks NAME`, `status`, `ack NODE`, `quit`. What happens goes to standard output, a line each, with
//! seconds since the start.

use std::io::BufRead;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use dlm_client::controld::driver::{Deed, Driver, Handle};
use dlm_client::fence::agent::unfence;
use dlm_client::fence::conf::DlmConf;
use dlm_client::membership::Membership;
use dlm_client::membership::corosync::CorosyncMembership;
use dlm_client::{NodeId, Plock, PlockOp};

fn command(handle: &Handle, line: &str, token: u64) -> Result<(), String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    match words[..] {
        ["join", name] => handle.join(name).map_err(|error| error.to_string()),
        ["leave", name] => handle.leave(name).map_err(|error| error.to_string()),
        ["lock" | "unlock", name, file, start, end, owner, kind] => {
            let lock = Plock {
                number: number(file)?,
                start: number(start)?,
                end: number(end)?,
                owner: number(owner)?,
                pid: std::process::id(),
                exclusive: kind == "w",
            };
            let op = match words[0] {
                "lock" => PlockOp::Lock { wait: true },
                _ => PlockOp::Unlock { close: false },
            };
            handle
                .plock(name, op, &lock, token)
                .map_err(|error| error.to_string())
        }
        ["plocks", name] => {
            for line in handle.plock_lines(name).unwrap_or_default() {
                println!("plock {line}");
            }
            Ok(())
        }
        ["status"] => {
            if let Some(status) = handle.status() {
                println!("{status:?}");
                status.fencing_lines().iter().for_each(|line| println!("{line}"));
            }
            Ok(())
        }
        ["ack", node] => {
            let node = u32::try_from(number(node)?).map_err(|error| error.to_string())?;
            handle.acknowledge_fencing(NodeId(node));
            Ok(())
        }
        _ => Err(format!("what is {line:?}?")),
    }
}

fn main() -> ExitCode {
    let begin = Instant::now();
    let started = start();
    let (mut driver, handle) = match started {
        Ok(started) => started,
        Err(error) => {
            eprintln!("controld: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("cluster {:?}", driver.membership().config());
    let quit = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&quit);
    std::thread::spawn(move || {
        for (token, line) in (1..).zip(std::io::stdin().lock().lines().map_while(Result::ok)) {
            if line == "quit" {
                asked.store(true, Ordering::Release);
            } else if let Err(error) = command(&handle, &line, token) {
                println!("error {error}");
            }
        }
    });
    while !quit.load(Ordering::Acquire) {
        for deed in driver.turn() {
            println!("{:.3} {deed:?}", begin.elapsed().as_secs_f64());
            if matches!(deed, Deed::Fatal(_)) {
                return ExitCode::from(3);
            }
        }
    }
    match driver.shut_down() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("controld: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<(Driver<CorosyncMembership>, Handle), String> {
    let path = std::env::args().nth(1);
    let text = path.map_or(Ok(String::new()), std::fs::read_to_string);
    let text = text.map_err(|error| format!("dlm.conf: {error}"))?;
    let conf = DlmConf::parse(&text).map_err(|error| error.to_string())?;
    let membership = CorosyncMembership::connect().map_err(|error| error.to_string())?;
    unfence(&conf, membership.config().us)?;
    Driver::start(membership, conf).map_err(|error| error.to_string())
}
