//! Goal: the program answers every argument as the original does, and a refused run leaves the device alone.
//! Method: each refused run is made on a file full of a pattern, whose bytes are compared afterwards; where the original
//! is installed it gets the same arguments and must end with the same status.

mod support;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use support::volume::Volume;
use support::{image, ours, reference, run, run_ok};

const SIZE: u64 = 40 << 20;

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

/// A file without holes, so that any write to it shows.
fn patterned(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let pattern: Vec<u8> = (0..SIZE as u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(&path, pattern).unwrap();
    path
}

fn with_input(mut command: Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that ends without reading closes the pipe early; that is its right.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn help_is_the_originals() {
    let texts: Vec<String> = [["-h"].as_slice(), &["--help"]]
        .iter()
        .map(|args| stdout(&run_ok(ours().args(*args))))
        .collect();
    assert_eq!(texts[0], texts[1]);
    assert!(texts[0].starts_with("Usage:\nmkfs.gfs2 [options] <device> [size]\n"));
    let extended = stdout(&run_ok(ours().args(["-o", "help"])));
    assert!(extended.starts_with("Extended options:\n"));
    if let (Some(mut plain), Some(mut with_o)) = (reference("mkfs.gfs2"), reference("mkfs.gfs2")) {
        let named = |text: String| {
            let (first, rest) = text.split_once("[options]").unwrap();
            assert!(first.contains("mkfs.gfs2"));
            rest.to_owned()
        };
        assert_eq!(named(texts[0].clone()), named(stdout(&run_ok(plain.arg("-h")))));
        assert_eq!(extended, stdout(&run_ok(with_o.args(["-o", "help"]))));
    }
}

#[test]
fn version_names_the_program() {
    for flag in ["-V", "--version"] {
        let text = stdout(&run_ok(ours().arg(flag)));
        assert!(
            text.starts_with(concat!("mkfs.gfs2 ", env!("CARGO_PKG_VERSION"))),
            "{text}"
        );
    }
}

#[test]
fn completions_name_every_option() {
    let mut script = Vec::new();
    gfs2_mkfs::cli::completions(gfs2_mkfs::cli::Shell::Bash, &mut script);
    let script = String::from_utf8(script).unwrap();
    for letter in "bcDhJjKOopqrtUV".chars() {
        let option = format!("-{letter}");
        let mut words = script.split(|c: char| c.is_whitespace() || c == '"');
        assert!(words.any(|word| word == option), "{option}");
    }
}

/// Arguments before the device, after it, and the exit status both programs must end with.
const REFUSED: &[(&str, &str, i32)] = &[
    ("", "", 255),
    ("-p badprotocol", "", 255),
    ("-p lock_dlm", "", 255),
    ("-p lock_nolock -r 31", "", 255),
    ("-p lock_nolock -r 2049", "", 255),
    ("-p lock_nolock -r -1", "", 255),
    ("-p lock_nolock -J 7", "", 255),
    ("-p lock_nolock -J 1025", "", 255),
    ("-p lock_nolock -J 30", "", 255),
    ("-p lock_nolock -j 0", "", 255),
    ("-p lock_nolock -j -1", "", 255),
    ("-p lock_nolock -j 3", "", 255),
    ("-p lock_nolock -c 0", "", 255),
    ("-p lock_nolock -c 65", "", 255),
    ("-p lock_nolock -b 511", "", 255),
    ("-p lock_nolock -b 256", "", 255),
    ("-p lock_nolock -b 3000", "", 255),
    ("-p lock_nolock -b 131072", "", 255),
    ("-p lock_nolock -b x", "", 255),
    ("-p lock_nolock", "10241", 255),
    ("-p lock_nolock", "0", 255),
    ("-p lock_nolock", "100", 255),
    ("-p lock_nolock", "another", 255),
    ("-p lock_nolock", "1 2", 255),
    ("-p lock_nolock -o format=-1", "", 255),
    ("-p lock_nolock -o format=1800", "", 255),
    ("-p lock_nolock -o format=1803", "", 255),
    ("-p lock_nolock -o bogus", "", 255),
    ("-p lock_nolock -o align=2", "", 255),
    ("-p lock_nolock -o sunit=4096", "", 255),
    ("-p lock_nolock -o sunit=1000,swidth=2000", "", 255),
    ("-p lock_nolock -o sunit=8192,swidth=12288", "", 255),
    ("-p lock_nolock -o test_topology=1:2:3", "", 255),
    (
        "-p lock_nolock -o test_topology=0:4096:4096:0:4096 -b 512",
        "",
        255,
    ),
    ("-p lock_nolock -o root_inherit_jdata=42", "", 255),
    ("-p lock_nolock -o root_inherit_jdata=", "", 255),
    ("-p lock_nolock -t :", "", 255),
    ("-p lock_nolock -t a", "", 255),
    ("-p lock_nolock -t a:", "", 255),
    ("-p lock_nolock -t :a", "", 255),
    ("-p lock_nolock -t a:b:c", "", 255),
    ("-p lock_nolock -t a:b/c", "", 255),
    ("-t 123456789012345678901234567890123:12345678", "", 255),
    ("-t 12345678901234567:1234567890123456789012345678901", "", 255),
    ("-p lock_nolock", "-U", 255),
    ("-p lock_nolock -U 42", "", 255),
    ("-p lock_nolock -U 1b4e28ba-2fa1-11d2-883f-b9a761bde3fb4", "", 255),
    ("-p lock_nolock -U 1b4e28ba-2fa1-11d2-883f-b9a761bde3f", "", 255),
    ("-p lock_nolock -Z", "", 255),
];

#[test]
fn refused_runs_leave_the_device_untouched_and_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let device = patterned(dir.path(), "device");
    let before = std::fs::read(&device).unwrap();
    for (options, operands, status) in REFUSED {
        let build = |mut command: Command| {
            command.arg("-O").args(options.split_whitespace()).arg(&device);
            run(command.args(operands.split_whitespace()))
        };
        let output = build(ours());
        let what = format!("{options} DEVICE {operands}");
        assert_eq!(code(&output), Some(*status), "{what}: {}", stderr(&output));
        let message = stderr(&output);
        assert!(!message.is_empty(), "{what}");
        let lines = message.trim_end().lines().count();
        assert!(
            lines == 1 || message.contains("Please use '-h'"),
            "{what}: {message}"
        );
        assert!(!message.contains("panicked"), "{what}: {message}");
        assert!(std::fs::read(&device).unwrap() == before, "{what}");
        if let Some(original) = reference("mkfs.gfs2") {
            assert_eq!(code(&build(original)), Some(*status), "the original with {what}");
            assert!(
                std::fs::read(&device).unwrap() == before,
                "the original with {what}"
            );
        }
    }
}

#[test]
fn without_a_usable_device_nothing_happens() {
    let dir = tempfile::tempdir().unwrap();
    let empty = image(dir.path(), "empty", 0);
    let tiny = image(dir.path(), "tiny", 100);
    let small = image(dir.path(), "small", (16 << 20) - 1);
    let cases: [(&str, i32, &str); 7] = [
        ("/nonexistent/device", 1, "No such file or directory"),
        (dir.path().to_str().unwrap(), 1, "Is a directory"),
        ("/dev/null", 1, "is not a block device or regular file"),
        (empty.to_str().unwrap(), 255, "will not fit"),
        (tiny.to_str().unwrap(), 255, "will not fit"),
        (small.to_str().unwrap(), 255, "will not fit"),
        ("gfs2", 255, "No device specified"),
    ];
    for (path, status, message) in cases {
        let output = run(ours().args(["-O", "-p", "lock_nolock", path]));
        assert_eq!(code(&output), Some(status), "{path}");
        assert!(stderr(&output).contains(message), "{path}: {}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "{path}");
        if let Some(mut original) = reference("mkfs.gfs2") {
            let theirs = run(original.args(["-O", "-p", "lock_nolock", path]));
            assert_eq!(code(&theirs), Some(status), "the original with {path}");
        }
    }
    let output = run(&mut ours());
    assert_eq!(
        (code(&output), stderr(&output).as_str()),
        (Some(255), "No device specified. Use -h for help\n")
    );
}

#[test]
fn the_question_decides() {
    let dir = tempfile::tempdir().unwrap();
    for (input, agreed, asked) in [
        ("y\n", true, 1),
        ("Y", true, 1),
        ("n\n", false, 1),
        ("", false, 1),
        ("what\n\nno\n", false, 3),
        ("\nyes\n", true, 2),
    ] {
        let device = patterned(dir.path(), "device");
        let before = std::fs::read(&device).unwrap();
        let mut command = ours();
        command.args(["-p", "lock_nolock"]).arg(&device);
        let output = with_input(command, input);
        let text = stdout(&output);
        let question = "Are you sure you want to proceed? [y/n] ";
        assert_eq!(code(&output), Some(if agreed { 0 } else { 255 }), "{input:?}");
        assert!(
            text.contains("This will destroy any data on "),
            "{input:?}: {text}"
        );
        assert_eq!(text.matches(question).count(), asked, "{input:?}: {text}");
        assert_eq!(std::fs::read(&device).unwrap() != before, agreed, "{input:?}");
        if let Some(mut original) = reference("mkfs.gfs2") {
            let device = patterned(dir.path(), "device");
            original.args(["-p", "lock_nolock"]).arg(&device);
            let theirs = with_input(original, input);
            assert_eq!(code(&theirs), code(&output), "the original with {input:?}");
            if !agreed {
                assert_eq!(stdout(&theirs), text, "{input:?}");
            }
        }
    }
}

#[test]
fn quiet_is_quiet() {
    let dir = tempfile::tempdir().unwrap();
    let device = image(dir.path(), "device", SIZE);
    for _ in 0..2 {
        let args = [
            "-q",
            "-O",
            "-p",
            "lock_nolock",
            "-o",
            "test_topology=7168:512:0:0:4096",
            "-b",
            "512",
        ];
        let output = run_ok(ours().args(args).arg(&device));
        assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("", ""));
    }
    // What must be asked is asked all the same.
    let mut command = ours();
    command.args(["-q", "-p", "lock_nolock"]).arg(&device);
    let output = with_input(command, "n\n");
    assert!(stdout(&output).contains("[y/n]") && stdout(&output).contains("gfs2"));
}

#[test]
fn existing_contents_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let device = image(dir.path(), "device", SIZE);
    run_ok(ours().args(["-O", "-q", "-p", "lock_nolock"]).arg(&device));
    let output = run_ok(ours().args(["-O", "-p", "lock_nolock"]).arg(&device));
    let text = stdout(&output);
    assert!(
        text.starts_with("It appears to contain an existing filesystem (gfs2)\n"),
        "{text}"
    );
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&device, &link).unwrap();
    let text = stdout(&run_ok(ours().args(["-O", "-p", "lock_nolock"]).arg(&link)));
    let real = std::fs::canonicalize(&device).unwrap();
    assert!(
        text.contains(&format!(
            "{} is a symbolic link to {}\nThis will destroy any data on {}\n",
            link.display(),
            real.display(),
            real.display()
        )),
        "{text}"
    );
}

#[test]
fn debugging_shows_options_groups_and_dinodes() {
    let dir = tempfile::tempdir().unwrap();
    let device = image(dir.path(), "device", SIZE);
    let text = stdout(&run_ok(
        ours().args(["-O", "-D", "-p", "lock_nolock"]).arg(&device),
    ));
    for line in [
        "File system options:\n  bsize = 4096\n",
        "  rgrp align = (disabled)\n",
        "Placing resource group for journal0\n  ri_addr: 17  ri_length: 1  ri_data0: 18  ri_data: 2056",
        "Next Inum: 13\n",
        "  sc_dinodes: 12\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn a_file_that_another_program_has_locked_is_busy() {
    let dir = tempfile::tempdir().unwrap();
    let device = image(dir.path(), "device", SIZE);
    let held = File::open(&device).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let output = run(ours().args(["-O", "-p", "lock_nolock"]).arg(&device));
    assert_eq!(code(&output), Some(1));
    assert!(
        stderr(&output).contains("Device or resource busy"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_full_disk_leaves_no_filesystem_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    // In a mount namespace of its own, which ends with the shell.
    let script = format!(
        "mount -t tmpfs -o size=6m none {dir} && truncate -s 64M {dir}/image && \
         {{ {mkfs} -O -p lock_nolock {dir}/image >{dir}/out; echo status $?; \
         od -An -tx1 -j65536 -N8 {dir}/image; }}",
        dir = dir.path().display(),
        mkfs = env!("CARGO_BIN_EXE_mkfs-gfs2"),
    );
    let output = run(Command::new("unshare").args(["-m", "sh", "-c", &script]));
    if stderr(&output).contains("Operation not permitted") {
        eprintln!("NOT TESTED: a full disk, for want of the right to mount one");
        return;
    }
    let text = stdout(&output);
    assert!(text.contains("status 1\n"), "{text}{}", stderr(&output));
    assert!(text.contains("00 00 00 00 00 00 00 00"), "no superblock: {text}");
    let message = stderr(&output);
    assert!(
        message.contains("No space left on device") && message.contains("there is no filesystem on it now"),
        "{message}"
    );
}

/// A loop device, given back when dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(image: &Path, read_only: bool) -> Option<Self> {
        let mut command = Command::new("losetup");
        command.args(["-f", "--show"]);
        if read_only {
            command.arg("-r");
        }
        let output = command.arg(image).output();
        match output {
            Ok(output) if output.status.success() => {
                let device = Self(stdout(&output).trim().into());
                if !read_only {
                    // Whoever had it before may have left it read-only.
                    run_ok(Command::new("blockdev").arg("--setrw").arg(&device.0));
                }
                Some(device)
            }
            _ => {
                eprintln!("NOT TESTED: block devices, for want of a loop device");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn block_devices_are_made_as_the_original_makes_them() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "image", 200 << 20);
    let Some(device) = Loop::new(&image, false) else {
        return;
    };
    let uuid = "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb";
    let args = ["-O", "-p", "lock_nolock", "-j", "2", "-U", uuid];
    let output = run_ok(ours().args(args).arg(&device.0));
    assert!(
        stdout(&output).contains("Discarding device contents (may take a while on large devices): Done\n")
    );
    let volume = Volume::open(&image);
    assert_eq!(volume.journals().len(), 2);
    let kept = stdout(&run_ok(ours().args(args).arg("-K").arg(&device.0)));
    assert!(!kept.contains("Discarding"), "{kept}");
    if let Some(mut checker) = reference("fsck.gfs2") {
        run_ok(checker.arg("-n").arg(&device.0));
    }
    if let Some(mut original) = reference("mkfs.gfs2") {
        // The second time both find what the first left.
        let theirs = stdout(&run_ok(original.args(args).arg(&device.0)));
        let ours = stdout(&run_ok(ours().args(args).arg(&device.0)));
        assert_eq!(ours, theirs);
    }
}

#[test]
fn busy_and_read_only_devices_are_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let image = patterned(dir.path(), "image");
    let before = std::fs::read(&image).unwrap();
    let Some(device) = Loop::new(&image, false) else {
        return;
    };
    let refuse = |path: &Path, words: &str| {
        let output = run(ours().args(["-O", "-p", "lock_nolock"]).arg(path));
        assert_eq!(code(&output), Some(1), "{}", stdout(&output));
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1);
        if let Some(mut original) = reference("mkfs.gfs2") {
            let theirs = run(original.args(["-O", "-p", "lock_nolock"]).arg(path));
            assert_eq!(code(&theirs), Some(1));
        }
    };
    let holder = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::EXCL.bits().cast_signed())
        .open(&device.0)
        .unwrap();
    refuse(&device.0, "Device or resource busy");
    drop(holder);
    drop(device);
    let Some(device) = Loop::new(&image, true) else {
        return;
    };
    refuse(&device.0, "Read-only");
    drop(device);
    assert!(std::fs::read(&image).unwrap() == before);
}

#[test]
fn the_manual_describes_every_option() {
    let manual = include_str!("../mkfs.gfs2.8");
    for letter in "bcDhJjKOopqrtUV".chars() {
        let entry = manual
            .lines()
            .any(|line| line.starts_with(".B") && line.contains(&format!(r"\-{letter}")));
        assert!(entry, "-{letter}");
    }
    for key in [
        "sunit=",
        "swidth=",
        "align=",
        "format=",
        "root_inherit_jdata",
        "test_topology=",
    ] {
        assert!(manual.contains(key), "{key}");
    }
}
