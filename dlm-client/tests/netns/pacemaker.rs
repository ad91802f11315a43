//! Fencing where dlm.conf names no device: our daemons run the stock `dlm_stonith`, which asks a real Pacemaker.
//!
//! Pacemaker has one fence device for all nodes, an agent of the test's that asks the switch of their power.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dlm_client::fence::conf::DEFAULT_AGENT;
use rustix::process::Signal;

use crate::lab::{self, Lab, TOKEN, clock, time_of, wait_for};
use crate::power::Switch;
use crate::{LONG, RECOVERY, Watch, all_have, judge, up};

/// Pacemakers that were just started elect one of them and start the fence device: 15 seconds on a quiet machine.
const PACEMAKERS: Duration = Duration::from_secs(150);

/// The clock of a shell script counts hundredths of a second.
const TICK: f64 = 0.01;

/// What Pacemaker is to know when it starts: a fence device, no waiting for more nodes than there are.
const CIB: &str = r#"<cib admin_epoch="0" epoch="1" num_updates="0" validate-with="pacemaker-3.0">
  <configuration>
    <crm_config>
      <cluster_property_set id="options">
        <nvpair id="options-stonith" name="stonith-enabled" value="true"/>
        <nvpair id="options-quorum" name="no-quorum-policy" value="freeze"/>
        <nvpair id="options-unseen" name="startup-fencing" value="false"/>
        <nvpair id="options-election" name="dc-deadtime" value="5s"/>
      </cluster_property_set>
    </crm_config>
    <nodes/>
    <resources>
      <primitive id="power" class="stonith" type="fence_lab">
        <instance_attributes id="power-attributes">
          <nvpair id="power-hosts" name="pcmk_host_list" value="n1 n2 n3"/>
          <nvpair id="power-reboot" name="pcmk_reboot_action" value="off"/>
        </instance_attributes>
      </primitive>
    </resources>
    <constraints/>
  </configuration>
  <status/>
</cib>
"#;

const METADATA: &str = r#"<?xml version="1.0" ?>
<resource-agent name="fence_lab" shortdesc="the switch of the nodes' power">
  <longdesc>The switch of the nodes' power.</longdesc>
  <parameters>
    <parameter name="port" unique="0" required="0"><content type="string"/><shortdesc>node</shortdesc></parameter>
  </parameters>
  <actions>
    <action name="on"/><action name="off"/><action name="reboot"/><action name="status"/>
    <action name="monitor"/><action name="metadata"/>
  </actions>
</resource-agent>
"#;

fn program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Where a program of the host is.
fn find(program: &str) -> String {
    let found = Command::new("sh")
        .args(["-c", "command -v \"$0\"", program])
        .output()
        .unwrap();
    assert!(
        found.status.success(),
        "there is no {program}: run tests/lab/setup.sh as root"
    );
    String::from_utf8(found.stdout).unwrap().trim_end().to_owned()
}

/// One run of `dlm_stonith`.
#[derive(Debug)]
struct Asked {
    node: String,
    begin: f64,
    end: f64,
    status: i32,
    /// What it was given.
    input: String,
}

/// Three nodes with Pacemaker.
struct Cluster {
    // It ends before what it works in.
    _switch: Switch,
    watch: Watch,
}

impl Cluster {
    /// The nodes' corosyncs, Pacemakers and processes of ours come up.
    fn start() -> Self {
        let mut watch = Watch(Lab::new(3, false));
        let lab = &mut watch.0;
        let switch = Switch::start(lab.path("switch"), lab.path("fences"), lab.powers());
        write_programs(lab);
        lab.fence_by_default(2);
        let search = format!("{}:{}", lab.path("bin").display(), std::env::var("PATH").unwrap());
        let all = [1, 2, 3];
        lab.boot_all(&all, false);
        for id in all {
            lab.search(id, &search);
            pacemaker(lab, id);
        }
        let begin = clock();
        online(lab, &all);
        eprintln!("three Pacemakers are up after {:.1} s", clock() - begin);
        all.iter().for_each(|id| lab.run(*id));
        all_have(lab, &all, &all, 0.0);
        assert!(lab.fences().is_empty(), "{:?}", lab.fences());
        Self {
            _switch: switch,
            watch,
        }
    }

    fn lab(&mut self) -> &mut Lab {
        &mut self.watch.0
    }

    /// What `dlm_stonith` was asked, and has answered.
    fn asked(&mut self) -> Vec<Asked> {
        let text = fs::read_to_string(self.lab().path("asked")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let words = whole.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        words
            .map(|words| Asked {
                node: words[0].to_owned(),
                begin: words[1].parse().unwrap(),
                end: words[2].parse().unwrap(),
                status: words[3].parse().unwrap(),
                input: words[4].replace('|', "\n"),
            })
            .collect()
    }

    /// A node that is off boots, with all that runs on it.
    fn come_back(&mut self, id: u32) {
        let lab = self.lab();
        lab.power_off(id);
        std::thread::sleep(Duration::from_millis(TOKEN * 3));
        let since = clock();
        lab.boot(id);
        pacemaker(lab, id);
        online(lab, &[1, 2, 3]);
        lab.run(id);
        all_have(lab, &[1, 2, 3], &[1, 2, 3], since);
        // No agent waits for nodes that may come back by themselves.
        std::thread::sleep(Duration::from_secs(3));
    }

    /// The fencing of `lost` since then: exactly one, that of the switch, and what `dlm_stonith` said about it, which is
    /// that it is done. It was given what it needs and nothing else.
    #[track_caller]
    fn fenced_once(&mut self, lost: u32, since: f64, wall: u64) -> (f64, Asked) {
        let fences: Vec<(f64, u32)> = self.lab().fences();
        let fences: Vec<(f64, u32)> = fences.into_iter().filter(|(time, _)| *time >= since).collect();
        let [(time, node)] = fences[..] else {
            panic!("not one fencing: {fences:?}")
        };
        assert_eq!(node, lost);
        let mut asked = self.asked();
        asked.retain(|asked| asked.begin >= since);
        assert_eq!(asked.len(), 1, "{asked:?}");
        let asked = asked.remove(0);
        assert_eq!(
            (asked.node.as_str(), asked.status),
            ("n1", 0),
            "the actor: {asked:?}"
        );
        let begin = format!("node={lost}\nfail_time=");
        let failed = asked.input.strip_prefix(&begin);
        let failed = failed.and_then(|rest| rest.strip_suffix('\n'));
        let failed: u64 = failed.and_then(|time| time.parse().ok()).expect("a time");
        let now = wall_clock();
        assert!(
            (wall..=now).contains(&failed),
            "{asked:?}: not between {wall} and {now}"
        );
        (time, asked)
    }

    /// What Pacemaker says it has fenced, and for whom.
    fn history(&mut self, id: u32) -> String {
        let node = format!("n{id}");
        let done = self
            .lab()
            .ask(1, &["stonith_admin", "--history", &node, "--verbose"]);
        String::from_utf8_lossy(&done.stdout).into_owned()
    }
}

/// Seconds of the clock that Pacemaker's times are of.
fn wall_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The fence agent, which takes longer than the news of a failure takes to all: Pacemaker's history and `fail_time` count
/// whole seconds, and a fencing that is over before we hear of the failure does not count for it. And what is run in the place of `dlm_stonith`: that itself, which waits while there is a file `hold`,
/// and a line of what it was asked and said.
fn write_programs(lab: &Lab) {
    for needed in ["pacemakerd", "crm_mon", "stonith_admin"] {
        find(needed);
    }
    let stock = find(DEFAULT_AGENT);
    fs::create_dir_all(lab.path("bin")).unwrap();
    let dir = lab.path("").display().to_string();
    let wrapper = format!(
        "#!/bin/sh\ninput=$(cat; echo .)\nread -r begin rest < /proc/uptime\n\
         while [ -e {dir}/hold ]; do sleep 0.05; done\n\
         printf %s \"${{input%.}}\" | {stock}\nstatus=$?\nread -r end rest < /proc/uptime\n\
         echo \"$(hostname) $begin $end $status $(printf %s \"${{input%.}}\" | tr '\\n' '|')\" >> {dir}/asked\n\
         exit $status\n"
    );
    program(&lab.path("bin").join(DEFAULT_AGENT), &wrapper);
    let agent = format!(
        "#!/bin/sh\naction=reboot\nwhile read -r line; do\n  case $line in\n    action=*) action=${{line#*=}};;\n    \
         port=*|nodename=*) node=${{line#*=n}};;\n  esac\ndone\n\
         echo \"$(hostname) $action $node\" >> {dir}/agent\n\
         case $action in\n  metadata) cat {dir}/metadata;;\n  on|monitor|status) ;;\n  off|reboot)\n    \
         sleep 1.5\n    tag=$node.$(hostname).$$\n    : > {dir}/switch/off.$tag\n    \
         until [ -e {dir}/switch/done.$tag ]; do sleep 0.05; done;;\n  *) exit 1;;\nesac\n"
    );
    program(&lab.path("fence_lab"), &agent);
    fs::write(lab.path("metadata"), METADATA).unwrap();
}

/// Pacemaker on a node that is up, with files of its own; what it looks for in /usr/sbin is put there, for this node only.
fn pacemaker(lab: &mut Lab, id: u32) {
    let root = lab.path(&format!("n{id}"));
    let agent = lab.path("fence_lab");
    if !root.join("pacemaker").exists() {
        for part in [
            "pacemaker/cib",
            "pacemaker/pengine",
            "pacemaker/cores",
            "pacemaker/blackbox",
        ] {
            fs::create_dir_all(root.join(part)).unwrap();
        }
        fs::create_dir_all(root.join("pacemaker-log")).unwrap();
        fs::write(root.join("pacemaker/cib/cib.xml"), CIB).unwrap();
        fs::set_permissions(
            root.join("pacemaker/cib/cib.xml"),
            fs::Permissions::from_mode(0o600),
        )
        .unwrap();
    }
    let (root, agent) = (root.display(), agent.display());
    let setup = format!(
        "mkdir -p /run/crm /run/sbin/upper /run/sbin/work\n\
         mount -t overlay -o lowerdir=/usr/sbin,upperdir=/run/sbin/upper,workdir=/run/sbin/work overlay /usr/sbin\n\
         cp {agent} /usr/sbin/fence_lab\n\
         mount --bind {root}/pacemaker /var/lib/pacemaker\nmount --bind {root}/pacemaker-log /var/log/pacemaker\n\
         chown -R hacluster:haclient /var/lib/pacemaker /var/log/pacemaker /run/crm\n\
         chmod 750 /var/lib/pacemaker /var/lib/pacemaker/*\nchmod 770 /var/log/pacemaker /run/crm\n"
    );
    let done = lab.ask(id, &["sh", "-ec", &setup]);
    assert!(done.status.success(), "node {id}: {done:?}");
    let daemon = [
        "env",
        "PCMK_logfile=/var/log/pacemaker/pacemaker.log",
        "PCMK_logfacility=none",
        "pacemakerd",
        "-f",
    ];
    lab.serve(id, &daemon, &format!("pacemakerd{id}.out"));
}

/// Waits until these nodes' Pacemakers are one cluster, and all of its nodes that are up can fence any of them.
#[track_caller]
fn online(lab: &mut Lab, ids: &[u32]) {
    wait_for("Pacemaker", PACEMAKERS, || {
        std::thread::sleep(Duration::from_millis(300));
        let seen = lab.ask(ids[0], &["crm_mon", "-1", "--output-as=xml"]);
        let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
        let is_online = |id: &u32| {
            let name = format!("<node name=\"n{id}\"");
            let line = seen.lines().find(|line| line.contains(&name));
            let wanted = ["online=\"true\"", "pending=\"false\"", "unclean=\"false\""];
            line.is_some_and(|line| wanted.iter().all(|wanted| line.contains(wanted)))
        };
        let can_fence = |by: &u32, lab: &mut Lab| {
            let victim = ids.iter().find(|id| *id != by).expect("more than one");
            let listed = lab.ask(*by, &["stonith_admin", "--list", &format!("n{victim}")]);
            String::from_utf8_lossy(&listed.stdout).contains("power")
        };
        let whole = ids.iter().all(is_online) && seen.contains("role=\"Started\"");
        (whole && ids.iter().all(|id| can_fence(id, lab))).then_some(())
    });
}

/// A node that stops is fenced by Pacemaker, and what we ask for then is done already. A daemon's death is nobody's
/// business but ours: its node is fenced because we ask. Where it had a lockspace its corosync is told to end, too, so that
/// Pacemaker and we want the same at the same time.
pub(crate) fn pacemaker_fences_for_us_and_once() {
    let mut cluster = Cluster::start();
    pacemaker_is_first(&mut cluster);
    cluster.come_back(3);
    only_we_ask(&mut cluster);
    cluster.come_back(2);
    both_ask(&mut cluster);
    let grants = judge::judge(cluster.lab());
    assert!(grants > 100, "only {grants} grants");
}

fn pacemaker_is_first(cluster: &mut Cluster) {
    let hold = cluster.lab().path("hold");
    fs::write(&hold, "").unwrap();
    let (since, wall) = (clock(), wall_clock());
    cluster.lab().signal(3, None, Signal::STOP);
    let fenced = wait_for("Pacemaker's own fencing", LONG, || {
        cluster.lab().fences().first().map(|(time, _)| *time)
    });
    eprintln!("freeze: Pacemaker fences after {:.2} s", fenced - since);
    for id in [1, 2] {
        cluster.lab().wait_line(id, since, "prepare", LONG);
    }
    // Nobody of ours believes it before the agent has said so.
    let stopped = clock();
    std::thread::sleep(Duration::from_secs_f64(RECOVERY / 2.0));
    let released = clock();
    for id in [1, 2] {
        let lines = cluster.lab().lines(id);
        let late = lines
            .iter()
            .find(|line| line.contains("grant") && time_of(line) > stopped);
        assert_eq!(late, None, "node {id} goes on though its agent has not answered");
    }
    fs::remove_file(&hold).unwrap();
    let went_on = all_have(cluster.lab(), &[1, 2], &[1, 2], since);
    let (fenced, asked) = cluster.fenced_once(3, since, wall);
    assert!(fenced < released && released <= asked.end + TICK && asked.end <= went_on + TICK);
    eprintln!(
        "dlm_stonith says after {:.2} s that it is done; the others went on {:.2} s later",
        asked.end - released,
        went_on - asked.end
    );
    let history = cluster.history(3);
    assert!(
        history.contains("pacemaker-controld") && !history.contains("stonith-api"),
        "{history}"
    );
}

fn only_we_ask(cluster: &mut Cluster) {
    let asked = clock();
    cluster.lab().tell(2, "leave");
    cluster.lab().wait_line(2, asked, "left", LONG);
    all_have(cluster.lab(), &[1, 3], &[1, 3], asked);
    online(cluster.lab(), &[1, 2, 3]);

    let (since, wall) = (clock(), wall_clock());
    cluster.lab().signal(2, Some(&lab::ours()), Signal::KILL);
    wait_for("our own fencing", LONG, || {
        cluster
            .asked()
            .iter()
            .any(|asked| asked.begin >= since)
            .then_some(())
    });
    // A second fencing would be here by then.
    std::thread::sleep(Duration::from_secs_f64(RECOVERY / 2.0));
    let (fenced, asked) = cluster.fenced_once(2, since, wall);
    assert!(asked.begin <= fenced + TICK && fenced <= asked.end + TICK);
    eprintln!(
        "kill -9 of our daemon without a lockspace: asked after {:.2} s, fenced after {:.2}, answered after {:.2}",
        asked.begin - since,
        fenced - since,
        asked.end - since
    );
    let history = cluster.history(2);
    assert!(
        history.contains("stonith-api") && !history.contains("pacemaker-controld"),
        "{history}"
    );
}

fn both_ask(cluster: &mut Cluster) {
    let (since, wall) = (clock(), wall_clock());
    cluster.lab().signal(3, Some(&lab::ours()), Signal::KILL);
    let went_on = all_have(cluster.lab(), &[1, 2], &[1, 2], since);
    std::thread::sleep(Duration::from_secs_f64(RECOVERY / 2.0));
    let (fenced, asked) = cluster.fenced_once(3, since, wall);
    assert!(fenced <= asked.end + TICK && asked.end <= went_on + TICK);
    eprintln!(
        "kill -9 of our daemon: asked after {:.2} s, fenced after {:.2}, answered after {:.2}, the others went on after \
         {:.2}\n{}",
        asked.begin - since,
        fenced - since,
        asked.end - since,
        went_on - since,
        cluster.history(3)
    );
}

/// Node 1 has no `dlm_stonith`, node 2 has one and no Pacemaker.
pub(crate) fn without_pacemaker_nothing_is_granted_and_both_nodes_say_what_is_missing() {
    find(DEFAULT_AGENT);
    let mut watch = Watch(Lab::new(3, false));
    let lab = &mut watch.0;
    lab.fence_by_default(2);
    lab.search(1, "/nowhere");
    let all = [1, 2, 3];
    up(lab, &all);
    let off = clock();
    lab.power_off(3);
    for id in [1, 2] {
        lab.wait_line(id, off, "prepare", LONG);
    }
    let stopped = clock();
    let said: [(u32, &[&str]); 2] = [
        (1, &["cannot be run on node 1", "dlm-controld"]),
        (2, &["on node 2", "Pacemaker"]),
    ];
    for (id, says) in said {
        let line = wait_for(&format!("node {id}: {says:?}"), LONG, || {
            let asked = clock();
            lab.tell(id, "fencing");
            lab.wait_line(id, asked, " fencing ", LONG);
            let lines = lab.lines(id);
            let line = lines.iter().rfind(|line| line.contains(" fencing "))?;
            says.iter().all(|says| line.contains(says)).then(|| line.clone())
        });
        eprintln!("{line}");
        for what in [
            "for node 3 to be fenced",
            DEFAULT_AGENT,
            "gfs2ctl dlm fence-ack 3",
        ] {
            assert!(line.contains(what), "{line:?} does not say {what:?}");
        }
    }
    std::thread::sleep(Duration::from_secs_f64(RECOVERY));
    for id in [1, 2] {
        let lines = lab.lines(id);
        let late = lines
            .iter()
            .find(|line| line.contains("grant") && time_of(line) > stopped);
        assert_eq!(late, None, "node {id} goes on though nobody was fenced");
    }
    let since = clock();
    lab.acknowledge(2, 3);
    all_have(lab, &[1, 2], &[1, 2], since);
    judge::judge(lab);
}
