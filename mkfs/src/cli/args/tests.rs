//! Goal: arguments mean what they mean to the original, and take effect in order.

use super::*;

fn take(line: &str) -> Result<Request, Failure> {
    let args: Vec<OsString> = std::iter::once("mkfs.gfs2")
        .chain(line.split_whitespace())
        .map(OsString::from)
        .collect();
    parse(&args)
}

fn made(line: &str) -> Invocation {
    match take(line) {
        Ok(Request::Make(invocation)) => *invocation,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn the_command_line_is_well_formed() {
    command().debug_assert();
}

#[test]
fn defaults_are_the_originals() {
    let invocation = made("/dev/x");
    let expected = Options {
        time: source_date_epoch(),
        ..Options::default()
    };
    assert_eq!(invocation.options, expected);
    assert_eq!(invocation.lock_proto, "lock_dlm");
    assert!(invocation.discard && !invocation.quiet && !invocation.debug && !invocation.override_prompt);
}

#[test]
fn every_option_arrives() {
    let invocation = made(
        "-b 1024 -c 2 -D -J 16 -j3 -KOq -o align=0,format=1801 -p lock_nolock -r 64 -t a:b \
         -U 1b4e28ba-2fa1-11d2-883f-b9a761bde3fb gfs2 /dev/x 100000",
    );
    let options = &invocation.options;
    assert_eq!(options.block_size, Some(1024));
    assert_eq!(options.quota_change_mb, 2);
    assert_eq!(options.journal_mb, Some(16));
    assert_eq!(options.journals, 3);
    assert_eq!(options.rgrp_mb, 64);
    assert_eq!(options.lock_table.as_deref(), Some("a:b"));
    assert_eq!(options.blocks, Some(100_000));
    assert_eq!(options.format, 1801);
    assert!(!options.align);
    assert_eq!(options.uuid.unwrap()[..4], [0x1b, 0x4e, 0x28, 0xba]);
    assert_eq!(invocation.device, "/dev/x");
    assert_eq!(invocation.lock_proto, "lock_nolock");
    assert!(!invocation.discard && invocation.quiet && invocation.debug && invocation.override_prompt);
}

#[test]
fn the_last_of_repeated_options_counts() {
    let invocation = made("-j 2 -j 4 -t a:b -t c:d -o sunit=4096 -o swidth=8192 /dev/x -j 5");
    assert_eq!(invocation.options.journals, 5);
    assert_eq!(invocation.options.lock_table.as_deref(), Some("c:d"));
    assert!(invocation.options.stripe.is_some());
}

#[test]
fn what_comes_first_decides() {
    assert!(matches!(take("-h -Z"), Ok(Request::Help)));
    assert!(matches!(take("/dev/x -V -h"), Ok(Request::Version)));
    assert!(matches!(take("--help"), Ok(Request::Help)));
    assert!(matches!(take("-o help -Z"), Ok(Request::ExtendedHelp)));
    for line in ["-Z -h", "-o bogus -h", "a b -h", "-b x -h"] {
        assert_eq!(take(line).unwrap_err().code, 255, "{line}");
    }
}

#[test]
fn bad_arguments_are_named() {
    let cases = [
        ("", "No device specified. Use -h for help"),
        ("gfs2", "No device specified. Use -h for help"),
        (
            "/dev/x -U",
            "mkfs.gfs2: option requires an argument -- 'U'\nPlease use '-h' for help.",
        ),
        (
            "-Z /dev/x",
            "mkfs.gfs2: invalid option -- 'Z'\nPlease use '-h' for help.",
        ),
        (
            "--frob /dev/x",
            "mkfs.gfs2: unrecognized option '--frob'\nPlease use '-h' for help.",
        ),
        ("a b", "More than one device specified (try -h for help)"),
        ("a 1 2", "More than one device specified (try -h for help)"),
        ("-j -1 /dev/x", "Number of journals cannot be negative: -1"),
        (
            "-J 128M /dev/x",
            "Bad value for -J: '128M' is not a whole number (megabytes)",
        ),
        (
            "/dev/x 12k",
            "Bad value for size: '12k' is not a whole number (file system blocks)",
        ),
    ];
    for (line, message) in cases {
        let failure = take(line).unwrap_err();
        assert_eq!(
            (failure.code, failure.message.as_deref()),
            (255, Some(message)),
            "{line}"
        );
    }
    for uuid in [
        "42",
        "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb4",
        "1b4e28ba-2fa1-11d2-883f-b9a761bde3f",
        "1b4e28ba2fa111d2883fb9a761bde3fb",
        "{1b4e28ba-2fa1-11d2-883f-b9a761bde3f}",
    ] {
        let line = format!("-U {uuid} /dev/x");
        assert_eq!(take(&line).unwrap_err().code, 255, "{uuid}");
    }
}

#[test]
fn the_help_names_every_option() {
    let text = help();
    for letter in "bcDhJjKOopqrtUV".chars() {
        assert!(text.contains(&format!("\n -{letter} ")), "-{letter}: {text}");
    }
    assert!(text.contains(" -o <key>[=<value>][,...]  Specify"), "{text}");
}
