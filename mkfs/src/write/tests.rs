//! Goal: whatever stops the writing, the device holds the old volume, or the new one, or plainly none.

use super::*;
use crate::options::{Options, Topology};
use crate::plan::plan;
use gfs2_format::device::{Fault, FaultDevice, FaultOp, FaultRule, MemDevice, RecordDevice};
use gfs2_format::ondisk::Superblock;
use std::sync::Mutex;

const SIZE: u64 = 17 << 20;

fn options(uuid: u8) -> Options {
    Options {
        uuid: Some([uuid; 16]),
        time: Some(uuid.into()),
        first_sequence: Some(1),
        ..Options::nolock()
    }
}

fn planned(uuid: u8) -> Plan {
    plan(&options(uuid), &Topology::of_size(SIZE)).unwrap()
}

fn bytes(device: &dyn BlockDevice, from: u64) -> Vec<u8> {
    let mut all = vec![0; (SIZE - from) as usize];
    device.read_at(from, &mut all).unwrap();
    all
}

fn uuid_on(device: &dyn BlockDevice) -> Option<u8> {
    let mut block = [0; 4096];
    device.read_at(SUPERBLOCK_OFFSET, &mut block).unwrap();
    Superblock::decode(&block).ok().map(|sb| sb.uuid[0])
}

/// A device with a volume of UUID 1 on it, and some old data in between.
fn used() -> MemDevice {
    let device = MemDevice::new(SIZE);
    device.write_at(0, &vec![0xa5; SIZE as usize]).unwrap();
    write_plan(&device, &planned(1), &NoProgress).unwrap();
    device
}

#[test]
fn power_lost_at_any_moment_leaves_the_old_volume_the_new_one_or_none() {
    let initial = used();
    let device = RecordDevice::new(initial.clone());
    write_plan(&device, &planned(2), &NoProgress).unwrap();
    let log = device.log();
    let beyond = SUPERBLOCK_OFFSET + 4096;
    let (old, new) = (bytes(&initial, beyond), bytes(&device, beyond));
    assert!(old != new);
    let mut seen = [0; 3];
    for position in 0..=log.entries().len() {
        for seed in 0..4 {
            let image = log.crash_image(&initial, position, seed).unwrap();
            match uuid_on(&image) {
                None => seen[0] += 1,
                Some(1) => {
                    seen[1] += 1;
                    assert!(
                        bytes(&image, beyond) == old,
                        "position {position} seed {seed}: the old superblock on a changed volume"
                    );
                }
                Some(_) => {
                    seen[2] += 1;
                    assert!(
                        bytes(&image, beyond) == new,
                        "position {position} seed {seed}: the new superblock on an unfinished volume"
                    );
                }
            }
        }
    }
    assert!(seen.iter().all(|times| *times > 0), "{seen:?}");
}

#[test]
fn a_write_that_fails_ends_the_work_without_a_superblock() {
    let counted = FaultDevice::new(used());
    write_plan(&counted, &planned(2), &NoProgress).unwrap();
    let writes = counted.counts().writes;
    assert!(writes > 10);
    for after in 0..writes {
        let device = FaultDevice::new(used());
        device.add(FaultRule::always(FaultOp::Write, Fault::Errno(28)).after(after));
        let error = write_plan(&device, &planned(2), &NoProgress).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("No space left on device"), "{error}");
        let expected = (after == 0).then_some(1);
        assert_eq!(uuid_on(&device), expected, "after {after} writes");
    }
}

#[test]
fn a_flush_that_fails_is_told() {
    for after in 0..2 {
        let device = FaultDevice::new(used());
        device.add(FaultRule::always(FaultOp::Flush, Fault::Errno(5)).after(after));
        assert!(write_plan(&device, &planned(2), &NoProgress).is_err());
        assert_eq!(uuid_on(&device), None, "after {after} flushes");
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Heard {
    fn say(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }
}

impl Progress for Heard {
    fn begin(&self, phase: Phase, total: u64) {
        self.say(format!("{phase:?} {total}"));
    }
    fn advance(&self, units: u64) {
        self.say(units.to_string());
    }
    fn end(&self, phase: Phase) {
        self.say(format!("{phase:?}"));
    }
}

#[test]
fn progress_adds_up() {
    let options = Options {
        journals: 3,
        ..options(3)
    };
    let plan = plan(&options, &Topology::of_size(1 << 30)).unwrap();
    let heard = Heard::default();
    write_plan(&MemDevice::new(1 << 30), &plan, &heard).unwrap();
    let words = heard.0.into_inner().unwrap();
    let groups = plan.layout().rgrps();
    assert_eq!(words[..5], ["Journals 3", "1", "1", "1", "Journals"]);
    assert_eq!(
        words[5..8],
        [
            format!("ResourceGroups {groups}"),
            groups.to_string(),
            "ResourceGroups".into()
        ]
    );
    assert_eq!(
        words[8..],
        ["SystemFiles 1", "SystemFiles", "Superblock 1", "Superblock"]
    );
}
