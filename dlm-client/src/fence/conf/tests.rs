use super::*;

fn agents(conf: &DlmConf, node: u32) -> Vec<String> {
    let devices = conf.devices(NodeId(node));
    devices
        .iter()
        .map(|d| format!("{} {}", d.name, d.agent))
        .collect()
}

#[test]
fn the_examples_of_the_manual_are_read() {
    let text = "\
# a comment
log_debug=1
post_join_delay=10
protocol=tcp

device  foo fence_foo ipaddr=1.1.1.1 login=x password=y
connect foo node=1 port=1
connect foo node=2 port=2
unfence foo

device  bar fence_bar ipaddr=2.2.2.2
connect bar node=1 port=7

lockspace foo nodir=1
master    foo node=1 weight=2
master    foo node=2

node id=1 mark=42
";
    let conf = DlmConf::parse(text).unwrap();
    assert!(conf.log_debug);
    assert_eq!((conf.post_join_delay, conf.protocol.as_str()), (10, "tcp"));
    assert_eq!(agents(&conf, 1), ["foo fence_foo", "bar fence_bar"]);
    assert_eq!(agents(&conf, 2), ["foo fence_foo"]);
    let device = &conf.devices(NodeId(2))[0];
    assert!(device.unfence);
    assert_eq!(
        device.input(NodeId(2), "fail_time=5\n"),
        "ipaddr=1.1.1.1\nlogin=x\npassword=y\nnode=2\nport=2\nfail_time=5\n"
    );
    assert!(conf.nodir("foo") && !conf.nodir("other"));
    let weights: Vec<u32> = (1..4).map(|node| conf.weight("foo", NodeId(node))).collect();
    assert_eq!(weights, [2, 1, 0]);
    assert_eq!(conf.weight("other", NodeId(3)), 1);
    assert_eq!((conf.mark_of(NodeId(1)), conf.mark_of(NodeId(2))), (42, 0));
}

#[test]
fn without_devices_pacemaker_is_asked() {
    let conf = DlmConf::parse("enable_fencing=1\n").unwrap();
    assert_eq!(conf, DlmConf::default());
    assert_eq!(agents(&conf, 9), ["fence_all dlm_stonith"]);
    let input = conf.devices(NodeId(9))[0].input(NodeId(9), "fail_time=1\n");
    assert_eq!(input, "node=9\nfail_time=1\n");
    let all = DlmConf::parse("fence_all fence_x a=1 b=2\nunfence_all\npost_join_delay=1\n").unwrap();
    assert_eq!(agents(&all, 9), ["fence_all fence_x"]);
    assert!(all.devices(NodeId(9))[0].unfence);
    assert_eq!(all.post_join_delay, 1);
}

#[test]
fn every_option_of_the_manual_is_known() {
    for option in [
        "log_debug",
        "protocol=sctp",
        "port=21065",
        "bind_all=1",
        "mark=0x2a",
        "debug_logfile",
        "enable_plock=0",
        "plock_debug",
        "plock_rate_limit=100",
        "plock_ownership=0",
        "drop_resources_time=1",
        "drop_resources_count=1",
        "drop_resources_age=1",
        "post_join_delay=0",
        "enable_fencing=0",
        "enable_concurrent_fencing=1",
        "enable_startup_fencing=0",
        "enable_quorum_fencing=0",
        "enable_quorum_lockspace=0",
        "repeat_failed_fencing=0",
        "enable_helper=0",
        "timewarn=5",
    ] {
        assert!(DlmConf::parse(option).is_ok(), "{option}");
    }
    let conf = DlmConf::parse("enable_fencing=0\nmark=0x2a\nport=21065\nenable_plock=0").unwrap();
    assert!(!conf.enable_fencing && !conf.enable_plock);
    assert_eq!((conf.mark, conf.port), (42, 21065));
}

#[test]
fn errors_name_the_line_and_what_to_do() {
    let cases: &[(&str, usize, &str)] = &[
        ("\nenable_fecing=0\n", 2, "enable_fecing"),
        ("port=0\n", 1, "port=0"),
        ("port=70000\n", 1, "port=70000"),
        ("post_join_delay=soon\n", 1, "soon"),
        ("plock_ownership=1\n", 1, "plock_ownership"),
        ("enable_fscontrol=1\n", 1, "enable_fscontrol"),
        ("device foo\n", 1, "agent"),
        ("connect foo node=1\n", 1, "outside"),
        ("device a x\n\nconnect a node=1\n", 3, "outside"),
        ("device a x\nconnect b node=1\n", 2, "connect b in the section"),
        ("device a x\nconnect a port=1\n", 2, "without node="),
        ("device a x\nconnect a node=0\n", 2, "without node="),
        ("device a x\nconnect a node=1\nconnect a node=1\n", 3, "twice"),
        ("device a x\nunfence b\n", 2, "unfence b"),
        ("device a x\nlog_debug=1\n", 2, "section of a device"),
        ("device a x\n\ndevice a x\n", 3, "there twice"),
        ("fence_all x\n\ndevice a x\n", 3, "after fence_all"),
        ("device a x\n\nfence_all x\n", 3, "next to other"),
        ("fence_all x\n\nunfence_all\n", 3, "does not follow"),
        ("master a node=1\n", 1, "not in the section"),
        ("lockspace a nodir=2\n", 1, "nodir=2"),
        ("lockspace a\nmaster a weight=1\n", 2, "master a"),
        ("node id=1\n", 1, "node id=1"),
        (" device a x\n", 1, "starts with a blank"),
        ("protocol=udp\n", 1, "protocol=udp"),
    ];
    for (text, line, what) in cases {
        let error = DlmConf::parse(text).unwrap_err();
        assert_eq!(error.line, *line, "{text:?}: {error}");
        assert!(error.to_string().contains(what), "{text:?}: {error}");
        assert!(!error.advice.is_empty());
    }
    let many: String = (0..5)
        .map(|n| format!("device d{n} x\nconnect d{n} node=3\n\n"))
        .collect();
    let error = DlmConf::parse(&many).unwrap_err();
    assert_eq!(error.line, 13);
    let long = format!("device a x {}\n", "k=v ".repeat(2000));
    assert!(DlmConf::parse(&long).is_err());
}

/// What changes the messages between daemons cannot be passed over: the others would not be understood.
#[test]
fn options_that_change_the_protocol_are_refused_in_one_line_that_says_why() {
    let cases = [
        (
            "post_join_delay=3\nplock_ownership=1\n",
            "dlm.conf line 2: plock_ownership=1 is not supported: daemons then send messages about POSIX locks that \
             ours do not know; set it to 0 on all nodes of the cluster: all must have the same",
        ),
        (
            "enable_fscontrol=1\n",
            "dlm.conf line 1: enable_fscontrol=1 is not supported: daemons then speak version 2 of their protocol, not 3; \
             remove it on all nodes of the cluster: all must have the same",
        ),
    ];
    for (text, line) in cases {
        assert_eq!(DlmConf::parse(text).unwrap_err().to_string(), line);
    }
    assert!(DlmConf::parse("plock_ownership=0\nenable_fscontrol=0\n").is_ok());
}

#[test]
fn parallel_devices_have_one_name_up_to_the_colon() {
    let text = "device foo:1 x\nconnect foo:1 node=1\n\ndevice foo:2 x\nconnect foo:2 node=1\n\n\
                device foobar x\nconnect foobar node=1\n";
    let conf = DlmConf::parse(text).unwrap();
    let devices = conf.devices(NodeId(1));
    assert!(devices[0].parallel_to(&devices[1]));
    assert!(!devices[1].parallel_to(&devices[2]) && !devices[0].parallel_to(&devices[2]));
}

#[test]
fn random_text_never_does_more_than_fail() {
    let words = [
        "device ",
        "connect ",
        "unfence ",
        "fence_all ",
        "a",
        "b:1",
        " node=1",
        "\n",
        "\n\n",
        "=",
        " ",
        "#",
        "master ",
        "lockspace ",
        "nodir=1",
        "x=y",
        "port=1",
    ];
    let mut random = fastrand::Rng::with_seed(9);
    for _ in 0..20_000 {
        let len = random.usize(0..30);
        let text: String = (0..len).map(|_| words[random.usize(0..words.len())]).collect();
        if let Ok(conf) = DlmConf::parse(&text) {
            assert!(!conf.devices(NodeId(1)).is_empty());
        }
    }
}
