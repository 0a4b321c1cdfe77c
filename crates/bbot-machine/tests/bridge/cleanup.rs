//! What a bridge machine has on the host goes with it, and nothing else ever goes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use bbot_machine::bridge::{
    self, Attached, Facts, GuestEnd, Interface, Plan, RECORDS, Unusable, Wanted,
};
use bbot_machine::mac::Mac;
use bbot_machine::owner::Reason;

use super::namespace::{br1, inside, records, said, tables, taps};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

fn attach(name: &str) -> Attached {
    Attached::new(br1(), name, MAC, &GuestEnd::Tap, Path::new(RECORDS)).unwrap()
}

const ROLE: &str = "BBOT_TEST_HOLDS_A_TAP";

/// Not a test by itself: an agent that the tests below kill.
#[test]
fn holds_a_tap() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let attached = attach("victim");
    println!(
        "tap={} port={}",
        attached.tap_name(),
        attached.port().unwrap()
    );
    // Until killed; by itself if the test is gone.
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// Another agent, with a machine on the bridge.
struct Agent {
    child: Child,
    _stdin: ChildStdin,
    tap: String,
}

impl Agent {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cleanup::holds_a_tap", "--nocapture"])
            .env(ROLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let tap = lines
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("tap=")?.1.split(' ').next()?.to_owned()))
            .expect("it made no tap");
        let _stdin = child.stdin.take().unwrap();
        Self { child, _stdin, tap }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Others' taps, rules and records, named as much like ours as can be; they are there until the end of the namespace.
fn others() -> (Vec<String>, Vec<String>) {
    testkit::run("ip", &["tuntap", "add", "bbot9", "mode", "tap"]);
    testkit::run(
        "ip",
        &["link", "set", "bbot9", "alias", "bbot-0123456789abcdef"],
    );
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let rules = b"table ip bbot-0123456789abcdef {}\ntable bridge filter {}\ntable ip nat {}\n";
    nft.stdin.take().unwrap().write_all(rules).unwrap();
    assert!(nft.wait().unwrap().success());
    (taps(), tables())
}

#[test]
fn everything_goes_with_the_guard() {
    if !inside("cleanup::everything_goes_with_the_guard") {
        return;
    }
    let others = others();
    let first = attach("one");
    let second = attach("two");
    assert_eq!(first.tap_name().as_str(), "bbot0");
    assert_eq!(second.tap_name().as_str(), "bbot1");
    assert_ne!(first.port(), second.port());
    let link = said("ip", &["-details", "link", "show", "dev", "bbot0"]);
    for part in [
        "master br1",
        "isolated on",
        "alias bbot-",
        "fe:00:00:00:00:07",
        ",UP",
    ] {
        assert!(link.contains(part), "{part} is not in {link}");
    }
    assert_eq!(records(), [".bbot0.owner", ".bbot1.owner"]);
    // A port in use is passed over.
    drop(first);
    assert_eq!(taps().len(), others.0.len() + 1);
    assert_eq!(records(), [".bbot1.owner"]);
    // Nothing that lives is swept.
    let swept = bridge::sweep(Path::new(RECORDS));
    assert!(
        swept.removed.is_empty() && swept.problems.is_empty(),
        "{swept:?}"
    );
    assert_eq!(swept.kept.len(), 1);
    assert_eq!(swept.kept[0].tap, "bbot1");
    assert!(
        swept.kept[0].owner.contains("agent with machine two"),
        "{swept:?}"
    );
    drop(second);
    assert_eq!((taps(), tables()), others);
    assert!(records().is_empty());
}

#[test]
fn what_a_killed_agent_left_is_swept_and_nothing_else() {
    if !inside("cleanup::what_a_killed_agent_left_is_swept_and_nothing_else") {
        return;
    }
    let others = others();
    let dead = Agent::start();
    let alive = Agent::start();
    let own = attach("own");
    // The tap is still there, as if somebody held it.
    testkit::run("ip", &["tuntap", "add", "bbot7", "mode", "tap"]);
    let (dead_tap, alive_tap) = (dead.tap.clone(), alive.tap.clone());
    let rules_of_three = tables().len();
    dead.kill();
    assert!(
        !taps().contains(&dead_tap),
        "a tap goes with whoever holds it"
    );
    assert_eq!(
        tables().len(),
        rules_of_three,
        "rules do not go by themselves"
    );

    // A tap that outlived its agent, by the record's own word.
    let record = fs::read_to_string(format!("{RECORDS}/.{dead_tap}.owner")).unwrap();
    let word = record
        .lines()
        .find_map(|line| line.strip_prefix("table: "))
        .unwrap();
    testkit::run("ip", &["tuntap", "add", &dead_tap, "mode", "tap"]);
    testkit::run("ip", &["link", "set", &dead_tap, "alias", word]);
    let swept = bridge::sweep(Path::new(RECORDS));
    assert!(swept.problems.is_empty(), "{swept:?}");
    assert_eq!(swept.removed, [(dead_tap.clone(), Reason::Ended)]);
    assert_eq!(swept.kept.len(), 2, "{swept:?}");
    assert!(!taps().contains(&dead_tap));
    assert_eq!(tables().len(), rules_of_three - 2);
    let kept: Vec<String> = [&alive_tap, own.tap_name().as_str()]
        .iter()
        .map(|tap| format!(".{tap}.owner"))
        .collect();
    assert_eq!(records(), kept);

    // The name has gone to somebody else: the record goes, the tap stays.
    alive.kill();
    testkit::run("ip", &["tuntap", "add", &alive_tap, "mode", "tap"]);
    let swept = bridge::sweep(Path::new(RECORDS));
    assert_eq!(swept.removed, [(alive_tap.clone(), Reason::Ended)]);
    assert!(taps().contains(&alive_tap));
    // Taken: the next one gets another name.
    let next = attach("next");
    assert_ne!(next.tap_name().as_str(), alive_tap);
    drop((next, own));
    testkit::run("ip", &["link", "delete", "dev", &alive_tap]);
    testkit::run("ip", &["link", "delete", "dev", "bbot7"]);
    assert_eq!((taps(), tables()), others);
    let swept = bridge::sweep(Path::new(RECORDS));
    assert!(
        swept.removed.is_empty() && swept.kept.is_empty() && swept.problems.is_empty(),
        "{swept:?}"
    );
}

/// A bridge takes the lowest address of its ports: what machines that stay know of it would be wrong
/// for a minute once that machine goes.
#[test]
fn a_bridge_of_machines_alone_keeps_its_address() {
    if !inside("cleanup::a_bridge_of_machines_alone_keeps_its_address") {
        return;
    }
    let address = || {
        let link: serde_json::Value =
            serde_json::from_str(&said("ip", &["-json", "link", "show", "dev", "br1"])).unwrap();
        link[0]["address"].as_str().unwrap().to_owned()
    };
    let before = address();
    let first = attach("one");
    assert_eq!(address(), before);
    let second = attach("two");
    drop(first);
    assert_eq!(address(), before);
    drop(second);
    assert_eq!(address(), before);
}

/// Records that are malformed, of others, of another namespace: they are told of, kept, or gone as they should be.
#[test]
fn odd_records_harm_nothing() {
    if !inside("cleanup::odd_records_harm_nothing") {
        return;
    }
    let others = others();
    drop(attach("x"));
    let agent = Agent::start();
    let tap = agent.tap.clone();
    agent.kill();
    let path = format!("{RECORDS}/.{tap}.owner");
    let good = fs::read_to_string(&path).unwrap();
    let left = tables();
    let swept_with = |text: &str| {
        fs::write(&path, text).unwrap();
        let swept = bridge::sweep(Path::new(RECORDS));
        assert!(swept.removed.is_empty(), "{text}: {swept:?}");
        assert_eq!(tables(), left, "{text}");
        swept
    };
    let changed = |line: &str, to: &str| {
        let lines: Vec<String> = good
            .lines()
            .map(|old| {
                if old.starts_with(line) {
                    to.to_owned()
                } else {
                    old.to_owned()
                }
            })
            .collect();
        lines.join("\n") + "\n"
    };
    for text in [
        "nonsense\n".to_owned(),
        changed("owner-record:", "owner-record: other"),
        changed("temporary:", "temporary: bbot3"),
        changed("table:", "table: nat"),
        changed("table:", "table: bbot-x; flush ruleset"),
    ] {
        assert_eq!(swept_with(&text).problems.len(), 1, "{text}");
    }
    let swept = swept_with(&changed("network-namespace:", "network-namespace: 1"));
    assert_eq!(swept.kept.len(), 1, "{swept:?}");
    // Another boot: nothing can be left, but the record.
    fs::write(&path, changed("boot-id:", "boot-id: another")).unwrap();
    let swept = bridge::sweep(Path::new(RECORDS));
    assert_eq!(swept.removed, [(tap.clone(), Reason::OtherBoot)]);
    assert!(records().is_empty());
    assert_eq!(tables(), left);
    // A crash between making and filling it.
    fs::write(&path, "").unwrap();
    let swept = bridge::sweep(Path::new(RECORDS));
    assert!(
        swept.removed.is_empty() && swept.problems.is_empty(),
        "{swept:?}"
    );
    assert!(records().is_empty());
    // As it was, it goes.
    fs::write(&path, &good).unwrap();
    assert_eq!(
        bridge::sweep(Path::new(RECORDS)).removed,
        [(tap, Reason::Ended)]
    );
    assert_eq!((taps(), tables()), others);
    assert!(
        bridge::sweep(Path::new("/run/no/such/folder"))
            .problems
            .is_empty()
    );
}

/// A folder whose programs go before all others. Only for a test that is alone in its process.
fn programs_of_its_own() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = std::env::var("PATH").unwrap();
    #[expect(
        unsafe_code,
        reason = "the environment is the only way to plant the fault"
    )]
    // SAFETY: this process has one test, and no other thread of it looks at the environment now.
    unsafe {
        std::env::set_var("PATH", format!("{}:{path}", folder.path().display()));
    }
    folder
}

/// A container's end of its pair goes with its namespace, at any moment.
#[test]
fn a_tap_that_goes_by_itself_meanwhile_leaves_nothing() {
    if !inside("cleanup::a_tap_that_goes_by_itself_meanwhile_leaves_nothing") {
        return;
    }
    let others = others();
    let namespace = fs::File::open("/proc/self/ns/net").unwrap();
    let end = GuestEnd::In(namespace.into());
    let attached = Attached::new(br1(), "box", MAC, &end, Path::new(RECORDS)).unwrap();
    assert_eq!(attached.tap_name().as_str(), "bbot0");
    let folder = programs_of_its_own();
    let fake = folder.path().join("ip");
    let script = "#!/bin/sh\ncase \"$*\" in *' show dev bbot0') /usr/sbin/ip link delete dev bbot0 ;; esac\n\
                  exec /usr/sbin/ip \"$@\"\n";
    fs::write(&fake, script).unwrap();
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    drop(attached);
    assert_eq!(records(), [""; 0]);
    assert_eq!((taps(), tables()), others);
}

/// Whatever step fails, nothing is left of the ones before, and the error says which.
#[test]
fn a_place_that_cannot_be_had_leaves_nothing() {
    if !inside("cleanup::a_place_that_cannot_be_had_leaves_nothing") {
        return;
    }
    let others = others();
    let nothing_left = || {
        assert_eq!((taps(), tables()), others);
        assert!(records().is_empty(), "{:?}", records());
    };
    let refused = |bridge| {
        let error =
            Attached::new(bridge, "m", MAC, &GuestEnd::Tap, Path::new(RECORDS)).unwrap_err();
        let source = std::error::Error::source(&error);
        let text = format!(
            "{error}: {}",
            source.map(ToString::to_string).unwrap_or_default()
        );
        nothing_left();
        text
    };
    // The last port there is, and it is taken.
    let _taken = std::net::UdpSocket::bind("192.168.77.1:65535").unwrap();
    let mut bridge = br1();
    bridge.port = 65535;
    let text = refused(bridge);
    assert!(text.contains("no UDP port from 65535 on is free"), "{text}");

    // Programs that fail, at each of their uses.
    let folder = programs_of_its_own();
    let fails = |program: &str| {
        let fake = folder.path().join(program);
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in -f*|-batch*) ;; *) exec /usr/sbin/{program} \"$@\";; esac\n\
             input=$(cat)\ncase \"$input\" in *delete*) echo \"$input\" | /usr/sbin/{program} \"$@\"; exit $?;; esac\n\
             echo planted fault >&2; exit 1\n"
        );
        fs::write(&fake, script).unwrap();
        fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    };
    for (program, what) in [
        ("nft", "map 196.254.111.222 by nftables"),
        ("ip", "put tap bbot0 on its bridge"),
    ] {
        fails(program);
        let text = refused(br1());
        assert!(
            text.contains(what) && text.contains("planted fault"),
            "{text}"
        );
        fs::remove_file(folder.path().join(program)).unwrap();
    }
    drop(attach("m"));
    nothing_left();
    // What cannot be taken away is left to the next sweep, with its record.
    let attached = attach("m");
    let fake = folder.path().join("nft");
    fs::write(&fake, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    drop(attached);
    assert_eq!(records(), [".bbot0.owner"]);
    fs::remove_file(fake).unwrap();
    let swept = bridge::sweep(Path::new(RECORDS));
    assert_eq!(swept.removed, [("bbot0".to_owned(), Reason::LetGo)]);
    nothing_left();
}

#[test]
fn the_facts_of_a_host() {
    if !inside("cleanup::the_facts_of_a_host") {
        return;
    }
    let name = br1().name;
    let good = Facts {
        interface: Interface::Bridge {
            has_address: true,
            is_up: true,
        },
        may_change: true,
        tun: Ok(()),
        missing: None,
    };
    assert_eq!(bridge::facts(name), good);
    let plan = bridge::decide(Wanted::IfUsable(name), &bridge::facts(name), 23401);
    let mut by_default = br1();
    by_default.by_default = true;
    assert_eq!(plan, Ok(Plan::Bridge(by_default)));
    testkit::run("ip", &["address", "flush", "dev", "br1"]);
    let facts = bridge::facts(name);
    assert_eq!(
        facts.interface,
        Interface::Bridge {
            has_address: false,
            is_up: true
        }
    );
    let plan = bridge::decide(Wanted::Bridge(name), &facts, 23401);
    assert_eq!(plan, Err(Unusable::NoAddress(name)));
    testkit::run("ip", &["link", "delete", "dev", "br1"]);
    assert_eq!(bridge::facts(name).interface, Interface::Missing);
    testkit::run("ip", &["tuntap", "add", "br1", "mode", "tap"]);
    assert_eq!(bridge::facts(name).interface, Interface::NoBridge);
}
