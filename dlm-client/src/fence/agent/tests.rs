use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use super::*;

/// A fake agent: a script that writes down what it reads.
fn agent(folder: &Path, name: &str, script: &str) -> String {
    let path = folder.join(name);
    let text = folder.join(format!("{name}.text"));
    fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
    // By a process of its own: what is open for writing, in a child that another test starts just now, cannot be run.
    let mut install = std::process::Command::new("install");
    install.args(["-m", "755"]).args([&text, &path]);
    assert!(install.status().unwrap().success());
    path.to_str().unwrap().to_owned()
}

fn run(agents: &mut Agents<u32>, key: u32, agent: &str, input: &str) -> mpsc::Receiver<(u32, i32)> {
    let (sender, receiver) = mpsc::channel();
    let _reported = agents.run(key, agent, input, move |key, status| {
        sender.send((key, status)).unwrap();
    });
    receiver
}

const LONG: Duration = Duration::from_secs(30);

#[test]
fn the_arguments_come_on_standard_input_and_the_status_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let seen = folder.path().join("seen");
    let script = format!("cat > {}; exit 3", seen.display());
    let agent = agent(folder.path(), "fence_fake", &script);
    let mut agents = Agents::default();
    let receiver = run(&mut agents, 7, &agent, "ip=1.2.3.4\nnode=2\n");
    assert_eq!(receiver.recv_timeout(LONG), Ok((7, 3)));
    assert_eq!(fs::read_to_string(seen).unwrap(), "ip=1.2.3.4\nnode=2\n");
}

#[test]
fn an_agent_that_is_not_there_or_dies_of_a_signal_has_failed() {
    let folder = tempfile::tempdir().unwrap();
    let mut agents = Agents::default();
    let (sender, receiver) = mpsc::channel();
    let error = agents.run(1, "/nowhere/fence_none", "", move |_, status| {
        sender.send(status).unwrap();
    });
    assert_eq!(receiver.recv_timeout(LONG), Ok(127));
    assert!(error.unwrap_err().contains("/nowhere/fence_none"));
    let dies = agent(folder.path(), "fence_dies", "kill -9 $$");
    assert_eq!(run(&mut agents, 2, &dies, "").recv_timeout(LONG), Ok((2, -1)));
}

#[test]
fn an_agent_that_is_not_there_is_told_before_it_is_needed_and_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = [2, 3].map(NodeId);
    let search = std::env::join_paths(["/nowhere".as_ref(), folder.path()]).unwrap();
    let told = |conf: &str| missing(&DlmConf::parse(conf).unwrap(), &nodes, &search);
    let default = told("");
    assert_eq!(default.len(), 1, "{default:?}");
    for what in ["dlm_stonith", "Pacemaker", "dlm-controld of Debian", "dlm.conf"] {
        assert!(default[0].contains(what), "{default:?}");
    }
    assert_eq!(told("enable_fencing=0\n"), [""; 0]);
    let own = told("device a /nowhere/fence_x\nconnect a node=2\n");
    assert_eq!(own.len(), 2, "node 3 is left to the default: {own:?}");
    assert!(own[0].starts_with("fence agent /nowhere/fence_x is not there: install it, or correct dlm.conf"));
    // A file that cannot be run is no program; one that can is found by its name and by its path.
    std::fs::write(folder.path().join(DEFAULT_AGENT), "").unwrap();
    assert_eq!(told(""), default);
    let path = agent(folder.path(), DEFAULT_AGENT, "exit 0");
    assert_eq!(told(""), [""; 0]);
    assert_eq!(told(&format!("fence_all {path}\n")), [""; 0]);
}

#[test]
fn an_agent_that_hangs_is_stopped_with_its_children() {
    let folder = tempfile::tempdir().unwrap();
    let mut agents = Agents::default();
    let ready = folder.path().join("ready");
    let made = std::process::Command::new("mkfifo").arg(&ready).status().unwrap();
    assert!(made.success());
    let script = format!("echo up > {}; sleep 1000 & wait", ready.display());
    let hangs = agent(folder.path(), "fence_hangs", &script);
    let receiver = run(&mut agents, 3, &hangs, "");
    assert_eq!(fs::read_to_string(&ready).unwrap(), "up\n");
    agents.stop(3);
    assert_eq!(receiver.recv_timeout(LONG), Ok((3, -1)));
    agents.stop(3);
}

#[test]
fn unfencing_runs_the_devices_that_say_so_and_fails_with_the_first_that_fails() {
    let folder = tempfile::tempdir().unwrap();
    let seen = folder.path().join("seen");
    let good = agent(folder.path(), "fence_good", &format!("cat >> {}", seen.display()));
    let bad = agent(folder.path(), "fence_bad", "exit 1");
    let text = format!(
        "device a {good} ip=1\nconnect a node=1 port=9\nunfence a\n\ndevice b {bad}\nconnect b node=1\n\n\
         device c {bad}\nconnect c node=2\nunfence c\n"
    );
    let conf = DlmConf::parse(&text).unwrap();
    assert_eq!(unfence(&conf, NodeId(1)), Ok(()));
    assert_eq!(
        fs::read_to_string(&seen).unwrap(),
        "ip=1\nnode=1\nport=9\naction=on\n"
    );
    assert!(unfence(&conf, NodeId(2)).unwrap_err().contains("fence_bad (c)"));
    assert_eq!(unfence(&conf, NodeId(3)), Ok(()));
}
