//! Goal: `gfs2ctl dump` shows what the kernel sees, says what is wrong, writes nothing, and survives any bytes.

mod support;

use gfs2_format::damage;
use gfs2_format::device::OpenOptions;
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use support::fixture::Fixture;
use support::scratch;

fn gfs2ctl(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gfs2ctl"))
        .args(args)
        .output()
        .expect("gfs2ctl starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("gfs2ctl prints UTF-8")
}

/// Runs a dump that must succeed.
#[track_caller]
fn dump(image: &Path, what: &[&str]) -> String {
    let out = gfs2ctl(
        [OsStr::new("dump"), image.as_os_str()]
            .into_iter()
            .chain(what.iter().map(OsStr::new)),
    );
    assert!(out.status.success(), "{what:?}: {}", text(&out.stderr));
    assert!(out.stderr.is_empty(), "{what:?}: {}", text(&out.stderr));
    text(&out.stdout)
}

#[track_caller]
fn json(image: &Path, what: &[&str]) -> Vec<Value> {
    let words: Vec<&str> = ["--json"].iter().chain(what).copied().collect();
    match serde_json::from_str(&dump(image, &words)) {
        Ok(Value::Array(items)) => items,
        other => panic!("{what:?}: {other:?}"),
    }
}

/// Breaks an image as the script says.
#[track_caller]
fn harm(image: &Path, script: &str) {
    let device = OpenOptions::new().open(image).unwrap();
    damage::run(script, &device).unwrap();
}

/// The bytes a word of a manifest stands for.
fn unescape(word: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = word.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'\\' {
            let digits = std::str::from_utf8(&tail[1..3]).unwrap();
            out.push(u8::from_str_radix(digits, 16).unwrap());
            rest = &tail[3..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

#[test]
fn every_inode_is_shown_as_the_kernel_shows_it() {
    let dir = scratch("gfs2ctl");
    for name in ["clean4k", "clean2k", "clean1k"] {
        let fixture = Fixture::load(name);
        let image = fixture.unpack(dir.path());
        let manifest = fixture.manifest();
        let wanted: Vec<_> = manifest
            .entries
            .iter()
            .filter(|(path, _)| path.starts_with('.') && !path.starts_with("./big/"))
            .collect();
        assert!(wanted.len() > 100, "{name}: {} paths", wanted.len());
        let paths = wanted.iter().map(|(path, _)| {
            let mut bytes = b"/".to_vec();
            bytes.extend(unescape(path.strip_prefix("./").unwrap_or("")));
            OsString::from_vec(bytes)
        });
        let head = ["dump", "--json"].map(OsString::from).into_iter();
        let out = gfs2ctl(head.chain([image.clone().into_os_string()]).chain(paths));
        assert!(out.status.success(), "{name}: {}", text(&out.stderr));
        let items: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(items.len(), wanted.len(), "{name}");
        for ((path, facts), item) in wanted.iter().zip(&items) {
            let fields = &item["fields"];
            let number = |field: &str| fields[field].as_i64().unwrap().to_string();
            let fact = |key: &str| facts[key].clone();
            assert_eq!(number("di_num.no_addr"), fact("ino"), "{name} {path}");
            assert_eq!(number("di_size"), fact("size"), "{name} {path}");
            assert_eq!(number("di_nlink"), fact("nlink"), "{name} {path}");
            assert_eq!(number("di_uid"), fact("uid"), "{name} {path}");
            assert_eq!(number("di_gid"), fact("gid"), "{name} {path}");
            let mode = fields["di_mode"].as_u64().unwrap() & 0o7777;
            assert_eq!(format!("{mode:04o}"), fact("mode"), "{name} {path}");
            let sectors = fields["di_blocks"].as_u64().unwrap() * u64::from(fixture.block_size) / 512;
            assert_eq!(sectors.to_string(), fact("blocks"), "{name} {path}");
            let mtime = format!(
                "{}.{:09}",
                fields["di_mtime"],
                fields["di_mtime_nsec"].as_u64().unwrap()
            );
            assert_eq!(mtime, fact("mtime"), "{name} {path}");
        }
    }
}

#[test]
fn a_hashed_directory_lists_all_its_names() {
    let dir = scratch("gfs2ctl");
    let fixture = Fixture::load("clean2k");
    let image = fixture.unpack(dir.path());
    let items = json(&image, &["/big"]);
    let mut names: Vec<&str> = items[0]["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["name"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    let manifest = fixture.manifest();
    let mut wanted: Vec<&str> = manifest
        .entries
        .keys()
        .filter_map(|path| path.strip_prefix("./big/"))
        .collect();
    wanted.extend([".", ".."]);
    wanted.sort_unstable();
    assert_eq!(names, wanted);
}

#[test]
fn a_dirty_journal_says_what_its_replay_would_do() {
    let dir = scratch("gfs2ctl");
    for name in ["dirty4k", "dirty1k", "cluster2j-dirty", "clean4k"] {
        let fixture = Fixture::load(name);
        let image = fixture.unpack(dir.path());
        for (jid, journal) in fixture.journal.iter().enumerate() {
            let item = json(&image, &["journal", &jid.to_string()]).remove(0);
            let state = if journal.dirty { "dirty" } else { "clean" };
            assert_eq!(item["state"], state, "{name} {jid}");
            let Some(replay) = &journal.replay else {
                assert_eq!(item.get("replay"), None);
                continue;
            };
            let seen = &item["replay"];
            assert_eq!(item["head"], replay.head, "{name} {jid}");
            assert_eq!(item["tail"], replay.tail, "{name} {jid}");
            assert_eq!(seen["replayed"], replay.replayed, "{name} {jid}");
            assert_eq!(seen["found"], replay.logged, "{name} {jid}");
            assert_eq!(seen["revokes"], replay.revokes, "{name} {jid}");
            assert_eq!(
                seen["statfs_change"],
                Value::from(replay.statfs.to_vec()),
                "{name} {jid}"
            );
        }
    }
}

#[test]
fn the_system_structures_of_a_volume() {
    let dir = scratch("gfs2ctl");
    let image = Fixture::load("clean4k").unpack(dir.path());
    let sb = &json(&image, &[])[0];
    assert_eq!(sb["block"], 16);
    assert_eq!(sb["fields"]["sb_lockproto"], "lock_nolock");
    assert_eq!(sb["fields"]["mh_type"]["text"], "sb");
    let items = json(
        &image,
        &[
            "rindex", "rgrps", "rgrp", "0", "statfs", "master", "jindex", "root",
        ],
    );
    assert_eq!(items.len(), 7);
    let addresses: Vec<u64> = items[0]["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["fields"]["ri_addr"].as_u64().unwrap())
        .collect();
    assert_eq!(addresses, [17, 2074, 4131]);
    let groups = items[1]["rgrps"].as_array().unwrap();
    assert!(groups.iter().all(|group| group["crc"] == "right"));
    assert_eq!(items[2]["fields"]["rg_crc"], 0x2491_348d);
    // The counts of the bitmap are those of the header, and the master totals those of all groups.
    assert_eq!(items[2]["blocks free"], items[2]["fields"]["rg_free"]);
    let sum = |field: &str| {
        groups
            .iter()
            .map(|group| group[field].as_u64().unwrap())
            .sum::<u64>()
    };
    let totals = &items[3]["files"][0]["fields"];
    assert_eq!(totals["sc_total"], sum("data"));
    assert_eq!(totals["sc_free"], sum("free"));
    assert_eq!(totals["sc_dinodes"], sum("dinodes"));
    let names = |item: &Value| -> Vec<String> {
        let rows = item["dirents"].as_array().unwrap();
        rows.iter()
            .map(|row| row["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let master = names(&items[4]);
    for name in [
        ".", "..", "jindex", "per_node", "inum", "statfs", "rindex", "quota",
    ] {
        assert!(master.iter().any(|n| n == name), "{name} in {master:?}");
    }
    assert_eq!(names(&items[5]), [".", "..", "journal0", "journal1"]);
    assert_eq!(json(&image, &["master:/jindex"])[0], items[5]);
    assert_eq!(json(&image, &["/"])[0], items[6]);
}

#[test]
fn extended_attributes_and_extents_are_shown() {
    let dir = scratch("gfs2ctl");
    let image = Fixture::load("clean4k").unpack(dir.path());
    let item = &json(&image, &["/xattr/f3"])[0];
    let records: Vec<&Value> = item["xattr_blocks"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|block| block["xattrs"].as_array().unwrap())
        .collect();
    let big = records
        .iter()
        .find(|r| r["name"] == "user.big")
        .expect("user.big");
    assert_eq!(big["value_blocks"].as_array().unwrap().len(), 5);
    let item = &json(&image, &["--all", "/data/sparse_1T"])[0];
    assert!(!item["extents"].as_array().unwrap().is_empty());
    let all = json(&image, &["--all", "rgrp", "2"]);
    assert!(all[0]["states"].as_array().unwrap().len() > 10);
}

#[test]
fn every_block_of_an_image_can_be_printed() {
    let dir = scratch("gfs2ctl");
    let image = Fixture::load("clean1k").unpack(dir.path());
    let numbers: Vec<String> = (60..9000).step_by(3).map(|n: u32| n.to_string()).collect();
    let what: Vec<&str> = numbers.iter().flat_map(|n| ["block", n.as_str()]).collect();
    let items = json(&image, &what);
    let mut kinds: Vec<&str> = items
        .iter()
        .map(|item| item["structure"].as_str().unwrap())
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    let wanted = [
        "data",
        "dinode",
        "ea_block",
        "ea_data",
        "indirect",
        "journaled_data",
        "leaf",
        "log_block",
        "log_descriptor",
        "log_header",
        "rgrp",
        "rgrp_bitmap",
    ];
    assert_eq!(kinds, wanted);
    let quota = &json(&image, &["--all", "master:/per_node/quota_change0"])[0];
    let block = quota["extents"][0]["block"].as_u64().unwrap().to_string();
    assert_eq!(
        json(&image, &["block", &block])[0]["structure"],
        "quota_change_block"
    );
    let shown = dump(&image, &["--all", "block", "64"]);
    assert!(shown.starts_with("sb at block 64 (0x40)\n"), "{shown}");
}

#[test]
fn what_is_wrong_is_named_and_the_rest_is_printed() {
    let dir = scratch("gfs2ctl");
    // script, what to print, what must be said, what must be printed all the same
    let rows = [
        ("set rgrp(1).rg_free = 1", "rgrp 1", "rg_crc", "rg_free"),
        ("set dinode(/big).di_depth = 77", "/big", "di_depth: found 77", ""),
        ("set dinode(block 23).di_height = 9", "block 4655", "", "\"big\""),
        ("set rindex(1).ri_data = 7", "rindex", "ri_data", "2074"),
        (
            "set dirent(/deep).de_rec_len = 3",
            "root",
            "de_rec_len is 3",
            "\"names\"",
        ),
        (
            "set log_header(journal 0 block 1227).lh_crc = 1",
            "journal 0",
            "",
            "head",
        ),
        ("zero rgrp 2", "rgrps", "", "block 4131"),
        ("zero rgrp 2", "rgrp 2", "mh_", "blocks free"),
        ("zero master:/statfs", "statfs", "mh_magic", "statfs_change1"),
        ("zero master:/jindex", "sb rindex jindex", "mh_magic", "ri_addr"),
        ("set dirent(master:/rindex).de_hash = 0", "rgrps", "rindex", ""),
    ];
    let fixture = Fixture::load("clean4k");
    for (script, what, said, printed) in rows {
        let image = fixture.unpack(dir.path());
        harm(&image, script);
        let words = ["dump".as_ref(), image.as_os_str()]
            .into_iter()
            .chain(what.split(' ').map(OsStr::new));
        let out = gfs2ctl(words);
        let code = if said.is_empty() { 0 } else { 1 };
        let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
        assert_eq!(out.status.code(), Some(code), "{script}: {stderr}");
        assert!(stderr.contains(said), "{script}: {stderr}");
        assert!(stdout.contains(printed), "{script}: {stdout}");
        assert!(
            said.is_empty() || stdout.contains("PROBLEM: "),
            "{script}: {stdout}"
        );
    }
}

#[test]
fn nothing_is_written() {
    let dir = scratch("gfs2ctl");
    let image = Fixture::load("dirty4k").unpack(dir.path());
    let before = std::fs::read(&image).unwrap();
    let modified = std::fs::metadata(&image).unwrap().modified().unwrap();
    for what in ["sb", "rindex", "rgrps", "master", "root", "jindex", "statfs", "/"] {
        dump(&image, &["--all", what]);
    }
    dump(&image, &["--all", "journal", "0", "rgrp", "1"]);
    assert!(std::fs::read(&image).unwrap() == before);
    assert_eq!(std::fs::metadata(&image).unwrap().modified().unwrap(), modified);
}

#[test]
fn wrong_use_is_2_and_what_cannot_be_read_is_1() {
    let dir = scratch("gfs2ctl");
    let image = Fixture::load("clean4k").unpack(dir.path());
    let image = image.to_str().unwrap();
    let small = dir.path().join("small");
    std::fs::write(&small, [0; 100]).unwrap();
    let zeroes = dir.path().join("zeroes");
    std::fs::write(&zeroes, vec![0; 1 << 20]).unwrap();
    let folder = dir.path().to_str().unwrap();
    let missing = format!("{folder}/missing");
    let rows: Vec<(Vec<&str>, i32, &str)> = vec![
        (vec![], 2, "Usage"),
        (vec!["dump"], 2, "DEVICE"),
        (vec!["nonsense"], 2, "nonsense"),
        (vec!["dump", "--nonsense", image], 2, "--nonsense"),
        (vec!["dump", image, "nonsense"], 2, "nonsense"),
        (vec!["dump", image, "rgrp"], 2, "rgrp N"),
        (vec!["dump", image, "block", "x"], 2, "not a number"),
        (vec!["dump", &missing], 1, "missing"),
        (vec!["dump", folder], 1, folder),
        (vec!["dump", small.to_str().unwrap()], 1, "65536"),
        (vec!["dump", zeroes.to_str().unwrap()], 1, "mh_magic"),
        (vec!["dump", image, "/nowhere"], 1, "/nowhere: no such entry"),
        (vec!["dump", image, "block", "999999999"], 1, "block number"),
        (vec!["dump", image, "journal", "7"], 1, "no such entry"),
        (vec!["dump", image, "rgrp", "7"], 1, "no such entry"),
        (vec!["dump", image, "inode", "17"], 1, "mh_type"),
    ];
    for (args, code, said) in rows {
        let out = gfs2ctl(&args);
        let stderr = text(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    }
    for args in [
        &["--help"][..],
        &["--version"],
        &["dump", "--help"],
        &["help", "dump"],
    ] {
        let out = gfs2ctl(args);
        assert_eq!(out.status.code(), Some(0), "{args:?}");
        assert!(!out.stdout.is_empty() && out.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let dir = scratch("gfs2ctl");
    let image = Fixture::load("clean4k").unpack(dir.path());
    let mut child = Command::new(env!("CARGO_BIN_EXE_gfs2ctl"))
        .args(["dump", "--all"])
        .arg(&image)
        .args(["journal", "1", "/big", "rgrp", "2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), text(&out.stderr).as_str()), (Some(0), ""));
}

#[test]
fn any_bytes_end_in_a_dump_or_an_error() {
    let dir = scratch("gfs2ctl");
    let fixture = Fixture::load("clean1k");
    let image: PathBuf = fixture.unpack(dir.path());
    let file = File::options().read(true).write(true).open(&image).unwrap();
    let blocks: Vec<u64> = json(
        &image,
        &["rindex", "master", "root", "jindex", "/big", "/xattr/f3"],
    )
    .iter()
    .map(|item| item["block"].as_u64().unwrap())
    .chain([64, 65])
    .collect();
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut undo = Vec::new();
        for _ in 0..8 {
            let block = blocks[random.usize(..blocks.len())] * 1024;
            let span = if random.bool() { 1024 } else { 240 };
            let at = block + random.u64(..span);
            let mut old = [0];
            file.read_exact_at(&mut old, at).unwrap();
            undo.push((at, old));
            let new = if random.bool() { random.u8(..) } else { 0xff };
            file.write_all_at(&[new], at).unwrap();
        }
        let args = [
            "dump",
            "--all",
            image.to_str().unwrap(),
            "sb",
            "rindex",
            "rgrps",
            "rgrp",
            "1",
            "master",
            "root",
            "jindex",
            "journal",
            "0",
            "statfs",
            "/big",
            "/xattr/f3",
            "block",
            "65",
        ];
        let out = gfs2ctl(args);
        let code = out.status.code();
        assert!(
            matches!(code, Some(0 | 1)),
            "seed {seed}: {:?}: {}",
            out.status,
            text(&out.stderr)
        );
        for (at, old) in undo.iter().rev() {
            file.write_all_at(old, *at).unwrap();
        }
    }
}
