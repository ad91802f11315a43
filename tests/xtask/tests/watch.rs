//! Goal: a test program that hangs ends with a report. Method: `xtask watch` with a limit of a second on programs that
//! end, fail and sleep.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn watch(script: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["watch", "bash", "-c", script])
        .env("FUSE_GFS2_TEST_LIMIT", "2")
        .output()
        .expect("xtask runs")
}

#[test]
fn what_ends_passes_its_status_on() {
    assert_eq!(watch("exit 0").status.code(), Some(0));
    assert_eq!(watch("exit 101").status.code(), Some(101));
    assert_eq!(watch("kill -ABRT $$").status.code(), Some(101));
}

#[test]
fn what_hangs_is_described_and_killed_with_what_it_started() {
    let begun = Instant::now();
    let out = watch("sleep 4321 & echo $! >&2; wait");
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(120), "{said}");
    assert!(said.contains("bash has not ended after 2 s"), "{said}");
    assert!(said.contains("sleep 4321"), "{said}");
    assert!(said.contains("State:"), "{said}");
    let sleeper = said.lines().next().expect("a line");
    // A kill takes its time; a zombie is gone but for its parent.
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{sleeper}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") {
            break;
        }
        assert!(Instant::now() < end, "left: {stat}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
