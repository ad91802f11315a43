//! Goal: the structure stays what it claims to be. Method: read the sources as text.
//!
//! Layers go one way, the transport's device is known in one place, no crate depends on one it must not know, files
//! stay small and ASCII, and words that mean unfinished work do not land.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules of the driver, lowest first: each may use itself and those before it.
const LAYERS: &[&str] = &[
    "completions",
    "error",
    "health",
    "hash",
    "sleep",
    "glock",
    "cache",
    "journal",
    "txn",
    "rgrp",
    "inode",
    "dir",
    "xattr",
    "statfs",
    "recovery",
    "ops",
    "fuse",
    "mount",
    "ctl",
];

/// Lines of code a file may have (tests apart).
const LINES_MAX: usize = 800;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)
            .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
            .flatten()
        {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() {
                if name != "target" && !name.to_string_lossy().starts_with('.') {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no sources below {}", folder.display());
    found
}

fn is_test(path: &Path) -> bool {
    path.components()
        .any(|c| c.as_os_str() == "tests" || c.as_os_str() == "fuzz" || c.as_os_str() == "benches")
        || path
            .file_name()
            .is_some_and(|n| n == "tests.rs" || n == "testing.rs")
}

fn shown(path: &Path) -> String {
    path.strip_prefix(top()).unwrap_or(path).display().to_string()
}

/// The text before the inline tests of a file.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod ").next().unwrap_or(text)
}

#[test]
fn driver_modules_use_only_layers_below() {
    let mut wrong = Vec::new();
    for path in sources(&top().join("src")) {
        if is_test(&path) {
            continue;
        }
        let relative = path.strip_prefix(top().join("src")).unwrap();
        let module = relative
            .iter()
            .next()
            .unwrap()
            .to_string_lossy()
            .trim_end_matches(".rs")
            .to_owned();
        let Some(rank) = LAYERS.iter().position(|l| *l == module) else {
            assert!(
                matches!(module.as_str(), "lib" | "main" | "bin"),
                "{module} has no layer; add it to LAYERS"
            );
            continue;
        };
        let text = fs::read_to_string(&path).unwrap();
        let used = code(&text)
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .flat_map(|line| {
                line.match_indices("crate::").map(|(at, word)| {
                    line[at + word.len()..]
                        .split(|c: char| !c.is_alphanumeric() && c != '_')
                        .next()
                        .unwrap_or("")
                        .to_owned()
                })
            });
        for other in used {
            if let Some(below) = LAYERS.iter().position(|l| *l == other)
                && below > rank
            {
                wrong.push(format!("{}: {module} uses {other}", shown(&path)));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "layers that reach upward:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn only_the_transport_knows_its_device() {
    for path in sources(&top().join("src")) {
        if path.starts_with(top().join("src/fuse")) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let bad = text
            .lines()
            .find(|l| l.contains("\"/dev/fuse\"") && !l.trim_start().starts_with("//"));
        assert!(bad.is_none(), "{}: {}", shown(&path), bad.unwrap_or(""));
    }
}

#[test]
fn crates_form_a_star() {
    let allowed: &[(&str, &[&str])] = &[
        ("gfs2-format", &[]),
        ("dlm-client", &[]),
        ("mkfs", &["gfs2-format"]),
        // dlm-client has never heard of GFS2: checker and driver stay witnesses for each other.
        ("fsck", &["gfs2-format", "dlm-client"]),
    ];
    let ours = ["gfs2-format", "dlm-client", "gfs2-mkfs", "gfs2-fsck", "fuse-gfs2"];
    for (krate, may) in allowed {
        let text = fs::read_to_string(top().join(krate).join("Cargo.toml")).unwrap();
        let dependencies = text
            .split("[dependencies]")
            .nth(1)
            .unwrap_or("")
            .split("\n[")
            .next()
            .unwrap_or("");
        for other in ours {
            let named = dependencies
                .lines()
                .any(|l| l.starts_with(&format!("{other}.")) || l.starts_with(&format!("{other} ")));
            assert!(!named || may.contains(&other), "{krate} depends on {other}");
        }
    }
    // The program asks which nodes have a volume mounted; what it then does with the volume knows no lock service.
    for path in sources(&top().join("fsck/src")) {
        let knows = fs::read_to_string(&path).unwrap().contains("dlm_client");
        let may = path.ends_with("fsck/src/cluster.rs");
        assert_eq!(knows, may, "{} and the lock service", shown(&path));
    }
    let library = fs::read_to_string(top().join("fsck/src/lib.rs")).unwrap();
    assert!(!library.contains("mod cluster"), "the library asks no cluster");
}

#[test]
fn files_are_small_ascii_and_finished() {
    let banned = ["todo!(", "unimplemented!(", "dbg!(", "FIXME", "XXX", "#[ignore"];
    let folders = ["src", "gfs2-format", "dlm-client", "mkfs", "fsck", "tests"];
    let mut wrong = Vec::new();
    for path in folders.iter().flat_map(|f| sources(&top().join(f))) {
        if path.ends_with("tests/layering.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let lines = code(&text).lines().count();
        if !is_test(&path) && lines > LINES_MAX {
            wrong.push(format!("{}: {lines} lines, more than {LINES_MAX}", shown(&path)));
        }
        if let Some((n, _)) = text.lines().enumerate().find(|(_, l)| !l.is_ascii()) {
            wrong.push(format!("{}:{}: not ASCII", shown(&path), n + 1));
        }
        for word in banned {
            if let Some((n, _)) = text.lines().enumerate().find(|(_, l)| l.contains(word)) {
                wrong.push(format!("{}:{}: {word}", shown(&path), n + 1));
            }
        }
        let stem = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if !is_test(&path)
            && ["util", "utils", "helper", "helpers", "common", "misc"].contains(&stem.as_str())
        {
            wrong.push(format!("{}: a file named after nothing", shown(&path)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_top_level_is_what_our_user_asked_for() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "gfs2-format",
        "dlm-client",
        "mkfs",
        "fsck",
        "tests",
        "fixtures",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "target",
    ];
    for entry in fs::read_dir(top()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(
            name.starts_with('.') || allowed.contains(&name.as_str()),
            "{name} at the top level"
        );
    }
}
