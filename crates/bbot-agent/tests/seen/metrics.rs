//! The metrics: a page that a strict reader takes, over HTTP, whoever asks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bbot_agent::metrics::{self, check_address};
use bbot_agent::resources::{Facts, Level, Use, VolumeFacts};
use bbot_agent::status::{
    Controller, Counters, Machine, MachineState, Mode, Moment, Resources, Run, RunKind, Slots,
    Status,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::Agent;
use super::exposition::{Family, read};

const BOUND: Duration = Duration::from_secs(20);

fn busy() -> Status {
    let mut status = Status {
        agent: "host \"one\"\\\n\u{1b}".to_owned(),
        mode: Mode::Running,
        slots: Slots { total: 4, used: 2 },
        uptime: Moment(1000.0),
        ..Status::default()
    };
    let task = RunKind::Task {
        name: "libfoo".to_owned(),
        version: "1".to_owned(),
        session: "s".to_owned(),
        controller: "u".to_owned(),
    };
    for (what, timeout_at) in [
        (RunKind::Bootstrap, 2000.0),
        (task.clone(), 2000.0),
        (task, 900.0),
    ] {
        status.runs.push(Run {
            what,
            timeout_at: Some(Moment(timeout_at)),
            ..Run::default()
        });
    }
    status.machines.push(Machine {
        state: MachineState::Bad {
            problem: "p".to_owned(),
        },
        ..Machine::default()
    });
    for (url, trouble) in [("http://a", None), ("http://b", Some("down".to_owned()))] {
        status.controllers.push(Controller {
            url: url.to_owned(),
            last_answer: Some((Moment(1.0), "nothing".to_owned())),
            trouble,
            ..Controller::default()
        });
    }
    let counters = &mut status.counters;
    for word in ["success", "success", "interrupt"] {
        Counters::count(&mut counters.tasks, word);
    }
    Counters::count(&mut counters.asks, "task");
    for milliseconds in [70, 300, 9_000_000] {
        let duration = Duration::from_millis(milliseconds);
        counters.pickup_seconds.record(duration);
    }
    status.resources = Resources {
        level: Level::Low,
        facts: Facts {
            volumes: vec![VolumeFacts {
                path: "/m".into(),
                free: 1 << 40,
                total: 1 << 41,
                free_inodes: None,
            }],
            memory_pressure: Some(12.5),
            handles: Some(Use {
                used: 10,
                limit: 100,
            }),
            ..Facts::default()
        },
        ..Resources::default()
    };
    status
}

/// The value of a family's one sample with these labels.
fn value(families: &BTreeMap<String, Family>, name: &str, labels: &[(&str, &str)]) -> f64 {
    let family = &families[&format!("bbot_agent_{name}")];
    let all: Vec<_> = family.samples.values().flatten().collect();
    let found = all.iter().find(|(of, _)| {
        of.iter()
            .map(|(label, text)| (label.as_str(), text.as_str()))
            .eq(labels.iter().copied())
    });
    found
        .unwrap_or_else(|| panic!("{name}{labels:?} in {all:?}"))
        .1
}

#[test]
fn a_strict_reader_takes_every_page() {
    read(&metrics::text(&Status::default()));
    let families = read(&metrics::text(&busy()));
    for (name, labels, expected) in [
        ("slots", &[][..], 4.0),
        ("slots_used", &[], 2.0),
        ("accepting", &[], 1.0),
        ("runs", &[("kind", "task")], 2.0),
        ("runs", &[("kind", "bootstrap")], 1.0),
        ("runs_overdue", &[], 1.0),
        ("machines", &[("state", "bad")], 1.0),
        ("machines", &[("state", "usable")], 0.0),
        ("tasks_total", &[("status", "success")], 2.0),
        ("tasks_total", &[("status", "interrupt")], 1.0),
        ("asks_total", &[("outcome", "task")], 1.0),
        ("controller_up", &[("controller", "http://a")], 1.0),
        ("controller_up", &[("controller", "http://b")], 0.0),
        ("host_shortage", &[], 1.0),
        ("disk_free_bytes", &[("path", "/m")], 1_099_511_627_776.0),
        ("memory_pressure_ratio", &[], 0.125),
        ("max_file_handles", &[], 100.0),
    ] {
        let found = value(&families, name, labels);
        assert!((found - expected).abs() < 1e-9, "{name}: {found}");
    }
    let buckets =
        &families["bbot_agent_pickup_seconds"].samples["bbot_agent_pickup_seconds_bucket"];
    let at = |le: &str| buckets.iter().find(|(l, _)| l[0].1 == le).unwrap().1;
    assert_eq!(
        [at("0.05"), at("0.1"), at("3600"), at("+Inf")],
        [0.0, 1.0, 2.0, 3.0]
    );
    let info = &families["bbot_agent_info"].samples["bbot_agent_info"][0].0;
    assert_eq!(info[0].1, "host \"one\"\\\n?");
}

#[test]
fn others_may_read_them_only_when_that_is_meant() {
    for (address, public, allowed) in [
        ("127.0.0.1:1", false, true),
        ("127.9.9.9:1", false, true),
        ("[::1]:1", false, true),
        ("[::ffff:127.0.0.1]:1", false, true),
        ("0.0.0.0:1", false, false),
        ("[::]:1", false, false),
        ("192.0.2.1:1", false, false),
        ("192.0.2.1:1", true, true),
    ] {
        let address: SocketAddr = address.parse().unwrap();
        let checked = check_address(address, public);
        assert_eq!(checked.is_ok(), allowed, "{address}");
        if let Err(why) = checked {
            assert!(why.contains("--metrics-public"), "{why}");
        }
    }
}

async fn http(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(request).await;
    let mut text = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = timeout(BOUND, stream.read_to_end(&mut text)).await.unwrap();
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_scraper_gets_the_page_and_nothing_else() {
    let agent = Agent::start(busy());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(metrics::serve(listener, agent.server.clone()));
    let answer = http(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains("Content-Type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(
        head.contains(&format!("Content-Length: {}", body.len())),
        "{head}"
    );
    read(body);
    for (request, status) in [
        (&b"HEAD /metrics?x=1 HTTP/1.1\r\n\r\n"[..], "200"),
        (b"GET / HTTP/1.1\r\n\r\n", "404"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", "404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"\x16\x03\x01\0\xff\r\n\r\n", "405"),
    ] {
        let answer = http(address, request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert_eq!(answer.ends_with("\r\n\r\n"), request.starts_with(b"HEAD"));
    }
    let endless = [
        b"GET /metrics HTTP/1.1\r\nX: ".to_vec(),
        vec![b'x'; 1 << 17],
    ]
    .concat();
    let answer = http(address, &endless).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );
    // Those who say nothing hold nobody up.
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let answer = http(address, b"GET /metrics HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    serving.abort();
}
