//! What can be lost of resource groups, and what must come of its repair.

use super::contents::{Contents, contents};
use super::{Map, reference};
use gfs2_format::bitmap::RgrpLayout;
use gfs2_format::damage;
use gfs2_format::device::{FaultDevice, MemDevice};
use gfs2_format::log::LogTime;
use gfs2_fsck::{Collect, Policy, check};
use std::fmt::Write;

/// Zeroes these entries of the index.
pub(crate) fn entries(which: impl IntoIterator<Item = usize>) -> String {
    let mut script = String::new();
    for n in which {
        for field in ["ri_addr", "ri_length", "ri_data0", "ri_data", "ri_bitbytes"] {
            let _ = writeln!(script, "set rindex({n}).{field} = 0");
        }
    }
    script
}

/// Zeroes the header of this group, and so many bitmap blocks behind it.
pub(crate) fn blocks(group: &RgrpLayout, bitmaps: u32) -> String {
    let count = u64::from(bitmaps.min(group.length() - 1)) + 1;
    (0..count).fold(String::new(), |mut script, n| {
        let _ = writeln!(script, "zero block {}", group.addr().get() + n);
        script
    })
}

/// Damage by name: what a shape's groups come to.
pub(crate) fn damages(groups: &[RgrpLayout]) -> Vec<(String, String)> {
    let last = groups.len() - 1;
    let mut damages = Vec::new();
    for n in [0, 2, 4, last] {
        damages.push((format!("entry {n}"), entries([n])));
        damages.push((format!("header {n}"), blocks(&groups[n], 0)));
        damages.push((format!("bitmap {n}"), blocks(&groups[n], u32::MAX)));
    }
    for n in [2, 4] {
        let both = entries([n]) + &blocks(&groups[n], 0);
        damages.push((format!("entry and header {n}"), both));
    }
    damages.push(("neighbours' entries".into(), entries([3, 4])));
    damages.push((
        "one entry, another header".into(),
        entries([3]) + &blocks(&groups[5], 0),
    ));
    damages.push(("all entries".into(), entries(0..=last)));
    let headers = groups.iter().map(|group| blocks(group, 0)).collect();
    damages.push(("all headers".into(), headers));
    damages
}

/// Damage that leaves less than is needed to know where the groups were.
pub(crate) fn ruins(groups: &[RgrpLayout]) -> Vec<(String, String)> {
    let every = 0..groups.len();
    let headers: String = groups.iter().map(|group| blocks(group, 0)).collect();
    let whole = |n: usize| blocks(&groups[n], u32::MAX);
    vec![
        ("entry and whole group 2".into(), entries([2]) + &whole(2)),
        ("entry and whole group 3".into(), entries([3]) + &whole(3)),
        (
            "entries and headers 3, 4".into(),
            entries([3, 4]) + &blocks(&groups[3], 0) + &blocks(&groups[4], 0),
        ),
        (
            "all entries, a header".into(),
            entries(every.clone()) + &blocks(&groups[3], 0),
        ),
        (
            "all entries, the large group's header".into(),
            entries(every.clone()) + &blocks(&groups[2], 0),
        ),
        (
            "all entries, the first header".into(),
            entries(every.clone()) + &blocks(&groups[0], 0),
        ),
        ("all entries and headers".into(), entries(every) + &headers),
    ]
}

/// Where groups are and how large: address, length, data blocks.
pub(crate) fn places(device: &MemDevice) -> Vec<(u64, u32, u32)> {
    let groups = Map::new(device).groups();
    groups
        .iter()
        .map(|g| (g.addr().get(), g.length(), g.data()))
        .collect()
}

/// What must come of a repair.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Every group is where and as large as it was.
    Exact,
    /// The groups may be others.
    Others,
    /// Nothing is written: too little is left to know.
    Alone,
}

/// Repairs the damage of a volume. All contents must be there, and the reference agrees.
pub(crate) fn repaired(volume: &MemDevice, name: &str, script: &str, ending: Ending) -> Result<(), String> {
    let now = LogTime {
        sec: 1_700_000_000,
        nsec: 0,
    };
    let device = volume.clone();
    let (before, wanted) = (places(&device), contents(&device));
    damage::run(script, &device).map_err(|e| format!("{name}: {e}"))?;
    let mut found = Collect {
        answer: true,
        ..Collect::default()
    };
    let counted = FaultDevice::new(&device);
    let outcome = check(&counted, &Policy::repair(now), &mut found).map_err(|e| format!("{name}: {e}"))?;
    let problems = || {
        found
            .problems
            .iter()
            .take(6)
            .fold(String::new(), |all, p| format!("{all}\n    {p}"))
    };
    if ending == Ending::Alone {
        let alone = outcome.errors > 0 && outcome.corrected == 0 && counted.counts().writes == 0;
        return match alone {
            true => Ok(()),
            false => Err(format!("{name}: was to be left alone: {outcome:?}{}", problems())),
        };
    }
    if outcome.errors == 0 || outcome.uncorrected() != 0 || outcome.stopped {
        return Err(format!("{name}: {outcome:?}{}", problems()));
    }
    let again = FaultDevice::new(&device);
    let outcome = check(&again, &Policy::repair(now), &mut Collect::default()).unwrap();
    if outcome.errors != 0 || again.counts().writes != 0 {
        return Err(format!("{name}: a second run: {outcome:?}"));
    }
    if ending == Ending::Exact && places(&device) != before {
        return Err(format!(
            "{name}: {:?}, not {before:?}{}",
            places(&device),
            problems()
        ));
    }
    let found = contents(&device);
    if found != wanted {
        let differ = |one: &Contents, other: &Contents| {
            let paths = one
                .iter()
                .filter(|(path, digest)| other.get(*path) != Some(digest));
            paths.map(|(path, _)| path.clone()).collect::<Vec<_>>().join(" ")
        };
        return Err(format!(
            "{name}: the contents are not what they were: before {}, now {}; groups {:?}, not {before:?}",
            differ(&wanted, &found),
            differ(&found, &wanted),
            places(&device)
        ));
    }
    reference(&device).map_err(|e| format!("{name}: {e}"))
}

/// Loses of a volume's groups what can be lost, one thing after the other; what did not end as it must. `alone`: what leaves
/// too little of this volume.
pub(crate) fn lose_and_repair(volume: &MemDevice, alone: &[&str]) -> Vec<String> {
    let groups = Map::new(volume).groups();
    let exact = damages(&groups).into_iter().map(|damage| (damage, Ending::Exact));
    let ruins = ruins(&groups).into_iter().map(|ruin| {
        let ending = match alone.contains(&&*ruin.0) {
            true => Ending::Alone,
            false => Ending::Others,
        };
        (ruin, ending)
    });
    exact
        .chain(ruins)
        .filter_map(|((name, script), ending)| repaired(volume, &name, &script, ending).err())
        .collect()
}
