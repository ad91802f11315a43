//! The socket against people who mean well and others.

use super::*;
use crate::backend::wire::{WireDlm, WireOptions};
use crate::fence::conf::DlmConf;
use crate::membership::memory::{MemoryCluster, MemoryMembership};
use crate::transport::{MemoryHub, Poller};
use crate::{Dlm, Event, JoinOptions, Lkf, Mode, ResName};
use parking_lot::Mutex;

fn node() -> WireDlm {
    let cluster = Arc::new(Mutex::new(MemoryCluster::new(1)));
    let poller = Poller::new().unwrap();
    let transport = MemoryHub::new().attach(NodeId(1), poller.clone());
    let conf = DlmConf::parse("enable_fencing=0\n").unwrap();
    let membership = MemoryMembership::new(&cluster, NodeId(1));
    WireDlm::start(membership, Box::new(transport), poller, &WireOptions::new(conf)).unwrap()
}

#[test]
fn what_is_asked_is_answered_as_the_stock_tool_does() {
    let dlm = node();
    let dir = tempfile::tempdir().unwrap();
    let control = Control::serve(dlm.observer(), &dir.path().join("dlm")).unwrap();
    let mode = fs::metadata(control.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(find(&dir.path().join("dlm")).as_deref(), Ok(control.path()));
    assert_eq!(ask(control.path(), "ls").unwrap(), "");
    let (space, queue) = dlm.join("fs", &JoinOptions::default()).unwrap();
    assert!(matches!(queue.recv(), Some(Event::RecoverDone { .. })));
    let name = ResName::new(b"a \"name\"").unwrap();
    let id = space.request(&name, Mode::Ex, Lkf::empty(), 1).unwrap();
    assert!(matches!(queue.recv(), Some(Event::Cast(_))));
    assert_eq!(
        ask(control.path(), "ls").unwrap(),
        "dlm lockspaces\nname          fs\nid            0xd0b621e6\nflags         0x00000000 \n\
         change        member 1 joined 1 remove 0 failed 0 seq 1,1\nmembers       1 \n\n"
    );
    let status = ask(control.path(), "status").unwrap();
    assert!(
        status.starts_with("cluster nodeid 1 quorate 1 ring seq "),
        "{status}"
    );
    assert!(status.contains(" stateful_merge_wait=0 \n"), "{status}");
    assert!(status.contains("\nnode 1 M add "), "{status}");
    assert_eq!(
        ask(control.path(), "locks fs").unwrap(),
        format!(
            "id {:08x} gr EX rq IV pid {} master 0 \"a \\\"name\\\"\"\n",
            id.0,
            std::process::id()
        )
    );
    assert_eq!(ask(control.path(), "plocks fs json").unwrap(), "[]\n");
    assert!(
        ask(control.path(), "dump")
            .unwrap()
            .contains("lockspace fs: change 1")
    );
    let refused = ask(control.path(), "locks nosuch").unwrap_err();
    assert!(refused.contains("no lockspace nosuch here"), "{refused}");
    let refused = ask(control.path(), "fence-ack 1").unwrap_err();
    assert!(refused.contains("node 1 is not awaited"), "{refused}");
    assert!(
        ask(control.path(), "fence-ack x")
            .unwrap_err()
            .contains("is no node id")
    );
    assert_eq!(
        ask(control.path(), "nonsense").unwrap_err(),
        "the request is not known"
    );
}

#[test]
fn hostile_requests_harm_nobody_else() {
    let dlm = node();
    let dir = tempfile::tempdir().unwrap();
    let control = Control::serve(dlm.observer(), dir.path()).unwrap();
    for bytes in [&[b'x'; 100_000][..], b"\xff\xfe\n", b"", b"\n", b"ls \0\n"] {
        let mut stream = UnixStream::connect(control.path()).unwrap();
        let _broken = stream.write_all(bytes);
        let _broken = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _broken = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"ok"), "{answer:?}");
    }
    assert_eq!(ask(control.path(), "ls").unwrap(), "");
    let second = Control::serve(dlm.observer(), dir.path()).unwrap_err();
    assert!(second.contains("runs already"), "{second}");
    let path = control.path().to_owned();
    drop(control);
    assert!(!path.exists());
    assert!(
        ask(&path, "ls")
            .unwrap_err()
            .contains("is the file system mounted?")
    );
    assert!(
        find(dir.path())
            .unwrap_err()
            .contains("no lock daemon of ours runs on this host")
    );
}
