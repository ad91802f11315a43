//! Goal: a demote never waits for a request that waits for the demote. Method: in place of the kernel's cache, one that
//! is emptied only when a verb for which the kernel keeps a page locked has been answered.

use super::rig::{ROOT_USER, check, mount, volume};
use crate::glock::{GlockName, KernelCache, State};
use crate::ops::types::SetAttr;
use crate::ops::{Fs, OpenFlags};
use gfs2_format::BlockAddr;
use gfs2_format::device::BlockDevice;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Longer than any of the verbs takes on any machine, shorter than for ever.
const LONG: Duration = Duration::from_secs(20);

type Verb = Box<dyn FnOnce(&Fs) + Send>;

/// A kernel's cache with a page locked for a verb.
struct Locked {
    inode: BlockAddr,
    verb: Mutex<Option<(Arc<Fs>, Verb)>>,
    said: Mutex<Vec<Result<(), RecvTimeoutError>>>,
}

impl KernelCache for Locked {
    fn flush_and_invalidate(&self, inode_number: u64, _keep_clean: bool) {
        if inode_number != self.inode.get() {
            return;
        }
        let Some((fs, verb)) = self.verb.lock().unwrap().take() else {
            return;
        };
        let (answer, answered) = channel();
        thread::spawn(move || {
            verb(&fs);
            drop(fs);
            let _ = answer.send(());
        });
        self.said.lock().unwrap().push(answered.recv_timeout(LONG));
    }
}

#[test]
fn what_a_locked_page_waits_for_is_served_during_a_demote() {
    let device = volume(96, 4096, 1);
    let rig = mount(&(Arc::clone(&device) as Arc<dyn BlockDevice>));
    let root = rig.root();
    let file = rig.create(root, "file").num.addr;
    rig.write(file, 0, &[7; 9000]).unwrap();
    let link = rig.fs.symlink(&ROOT_USER, root, b"link", b"target").unwrap();
    let link = link.attr.num.addr;
    let reader = rig.fs.open(file, OpenFlags::READ).unwrap();
    let writer = rig.fs.open(file, OpenFlags::READ | OpenFlags::WRITE).unwrap();
    let verbs: [(&str, BlockAddr, Verb); 6] = [
        (
            "readlink",
            link,
            Box::new(move |fs| assert_eq!(fs.readlink(link).unwrap(), b"target")),
        ),
        (
            "read",
            file,
            Box::new(move |fs| assert_eq!(fs.read(reader, 0, &mut [0; 512]).unwrap(), 512)),
        ),
        (
            "read of a writer",
            file,
            Box::new(move |fs| assert_eq!(fs.read(writer, 0, &mut [0; 512]).unwrap(), 512)),
        ),
        (
            "write",
            file,
            Box::new(move |fs| {
                assert_eq!(
                    fs.write(&ROOT_USER, writer, 4096, &[8; 4096], false, true)
                        .unwrap(),
                    4096
                );
            }),
        ),
        (
            "write back",
            file,
            Box::new(move |fs| assert_eq!(fs.write_back(writer, 0, &[9; 4096], true).unwrap(), 4096)),
        ),
        (
            "cut",
            file,
            Box::new(move |fs| {
                let set = SetAttr {
                    size: Some(5000),
                    ..SetAttr::default()
                };
                assert_eq!(fs.setattr(&ROOT_USER, file, &set).unwrap().size, 5000);
            }),
        ),
    ];
    for (name, inode, verb) in verbs {
        // Held, so that there is something to take away.
        if inode == link {
            rig.fs.readlink(link).unwrap();
        } else {
            rig.fs.read(reader, 0, &mut [0; 16]).unwrap();
        }
        let kernel = Arc::new(Locked {
            inode,
            verb: Mutex::new(Some((Arc::clone(&rig.fs), verb))),
            said: Mutex::default(),
        });
        rig.glocks
            .set_kernel_cache(Some(Arc::clone(&kernel) as Arc<dyn KernelCache>));
        let glock = GlockName::inode(inode.get());
        assert!(rig.glocks.demote(glock, State::Un), "{name}");
        let glock = rig.glocks.find(glock).expect("a glock");
        assert!(glock.wait_demoted(LONG * 2), "{name}: {}", rig.glocks.dump_text());
        assert_eq!(*kernel.said.lock().unwrap(), [Ok(())], "{name}");
        rig.glocks.set_kernel_cache(None);
    }
    let mut found = [0; 6000];
    assert_eq!(rig.fs.read(reader, 0, &mut found).unwrap(), 5000);
    assert_eq!((found[4095], found[4096]), (9, 8));
    rig.fs.release(reader);
    rig.fs.release(writer);
    for ino in [file, link] {
        rig.fs.forget(ino, 1);
    }
    rig.unmount();
    check(&device);
}
