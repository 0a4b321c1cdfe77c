//! The agent's figures as text for Prometheus (exposition format 0.0.4), over HTTP
//! where `--metrics` asks for it, and over the status socket.
//!
//! All names are here, each with its help text: `bbot_agent_` and what it counts, in
//! base units (seconds, bytes), `_total` for what only grows.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::resources::{Level, VolumeFacts};
use crate::status::{BUCKETS, Histogram, Mode, RunKind, Server, Status};

/// The longest request that is read.
const REQUEST: usize = 8192;

/// How long a scraper may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many may scrape at once.
const CONNECTIONS: usize = 8;

/// The states of a machine, so that each has a value even when no machine is in it.
const STATES: [&str; 5] = [
    "usable",
    "must-bootstrap",
    "bootstrapping",
    "backing-off",
    "bad",
];

/// Where the metrics may be listened for.
///
/// # Errors
///
/// When others could read them and that was not asked for: they name packages and
/// controllers, and need no password.
pub fn check_address(address: SocketAddr, public: bool) -> Result<(), String> {
    if public || address.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err(format!(
        "--metrics {address}: other hosts could read the metrics there; give a loopback address, \
         or --metrics-public if that is meant"
    ))
}

/// Answers scrapers until it is dropped.
pub async fn serve(listener: TcpListener, server: Server) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                // One too many is closed: a scraper comes again.
                if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
                    let server = server.clone();
                    connections.spawn(async move {
                        let _permit = permit;
                        match timeout(PATIENCE, answer(stream, &server)).await {
                            Ok(Ok(())) => {}
                            Ok(Err(e)) => tracing::debug!("metrics: {e}"),
                            Err(_) => tracing::debug!("metrics: a scraper is too slow"),
                        }
                    });
                }
            }
            Err(e) => {
                tracing::debug!("metrics: {e}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// One request, one answer: no library is needed to say one page.
async fn answer(mut stream: TcpStream, server: &Server) -> io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..length]);
        if request.len() > REQUEST {
            return respond(&mut stream, "431 Request Header Fields Too Large", "", true).await;
        }
    }
    let line = request.split(|&byte| byte == b'\r').next().unwrap_or(&[]);
    let mut words = line.split(|&byte| byte == b' ');
    let (method, target) = (words.next().unwrap_or(&[]), words.next().unwrap_or(&[]));
    let path = target.split(|&byte| byte == b'?').next().unwrap_or(&[]);
    match (method, path) {
        (b"GET" | b"HEAD", b"/metrics") => {
            let body = text(&server.status());
            respond(&mut stream, "200 OK", &body, method == b"GET").await
        }
        (b"GET" | b"HEAD", _) => {
            respond(
                &mut stream,
                "404 Not Found",
                "see /metrics\n",
                method == b"GET",
            )
            .await
        }
        _ => respond(&mut stream, "405 Method Not Allowed", "GET only\n", true).await,
    }
}

async fn respond(
    stream: &mut TcpStream,
    status: &str,
    body: &str,
    with_body: bool,
) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if with_body {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

/// The figures of this status.
pub fn text(status: &Status) -> String {
    let mut page = Page(String::with_capacity(8192));
    host(&mut page, status);
    work(&mut page, status);
    controllers(&mut page, status);
    resources(&mut page, status);
    page.0
}

fn host(page: &mut Page, status: &Status) {
    page.family("info", "gauge", "What runs; always 1.");
    let labels = [
        ("agent", status.agent.as_str()),
        ("toolchain", &status.toolchain),
        ("version", &status.version),
    ];
    page.sample("info", &labels, 1.0);
    page.gauge(
        "start_time_seconds",
        "When the agent was started, in seconds since 1970.",
        float(status.started),
    );
    page.gauge(
        "uptime_seconds",
        "How long the agent has been running, by the monotonic clock.",
        status.uptime.0,
    );
    let takes = status.mode == Mode::Running;
    page.gauge("accepting", "Whether the agent takes tasks.", flag(takes));
    page.gauge(
        "slots",
        "How many machines may run at once.",
        f64::from(status.slots.total),
    );
    page.gauge(
        "slots_used",
        "How many slots are in use.",
        f64::from(status.slots.used),
    );
    let budgets = &status.budgets;
    let cpus = "Virtual processors that may be given to machines.";
    page.gauge("budget_cpus", cpus, f64::from(budgets.cpus));
    let used = "Virtual processors that are given to machines.";
    page.gauge("budget_cpus_used", used, f64::from(budgets.cpus_used));
    page.gauge(
        "budget_memory_bytes",
        "Memory that may be given to machines.",
        float(budgets.ram_kib) * 1024.0,
    );
    page.gauge(
        "budget_memory_used_bytes",
        "Memory that is given to machines, suspended ones too.",
        float(budgets.ram_kib_used) * 1024.0,
    );
    page.family("machines", "gauge", "Machines of the inventory, by state.");
    for state in STATES {
        let count = status.machines.iter().filter(|m| m.state.word() == state);
        page.sample("machines", &[("state", state)], float(count.count() as u64));
    }
    page.gauge(
        "prepared_machines",
        "Machines that are restored or started already and wait for a task.",
        float(status.machines.iter().map(|m| m.prepared).sum()),
    );
    page.gauge(
        "suspended_machines",
        "Machines that are kept for a person.",
        float(status.suspended.len() as u64),
    );
}

fn work(page: &mut Page, status: &Status) {
    let counters = &status.counters;
    page.family("runs", "gauge", "What runs now, by kind.");
    let bootstraps = status
        .runs
        .iter()
        .filter(|run| run.what == RunKind::Bootstrap)
        .count() as u64;
    let tasks = status.runs.len() as u64 - bootstraps;
    page.sample("runs", &[("kind", "bootstrap")], float(bootstraps));
    page.sample("runs", &[("kind", "task")], float(tasks));
    let overdue = status
        .runs
        .iter()
        .filter(|run| {
            run.timeout_at
                .is_some_and(|at| at.0 + OVERDUE_SECONDS < status.uptime.0)
        })
        .count() as u64;
    page.gauge(
        "runs_overdue",
        "Runs whose phase should have been over a minute ago. Always 0, or something is broken.",
        float(overdue),
    );
    page.family("tasks_total", "counter", "Tasks that ended, by status.");
    for (word, &count) in &counters.tasks {
        page.sample("tasks_total", &[("status", word)], float(count));
    }
    page.family("bootstraps_total", "counter", "Bootstraps, by outcome.");
    let (done, failed) = (counters.bootstraps, counters.bootstraps_failed);
    page.sample("bootstraps_total", &[("outcome", "done")], float(done));
    page.sample("bootstraps_total", &[("outcome", "failed")], float(failed));
    for (name, help, value) in [
        (
            "tasks_given_back_total",
            "Tasks that were given back unfinished.",
            counters.given_back,
        ),
        (
            "misboots_total",
            "Machines that gave no sign of life in time.",
            counters.misboots,
        ),
        (
            "interrupts_total",
            "Runs that were interrupted.",
            counters.interrupts,
        ),
        (
            "suspensions_total",
            "Machines that were kept for a person.",
            counters.suspensions,
        ),
        (
            "host_failures_total",
            "Runs that failed because the host ran out of something.",
            counters.host_failures,
        ),
    ] {
        page.counter(name, help, value);
    }
    page.histogram(
        "pickup_seconds",
        "From a task's arrival to the first request of its guest.",
        &counters.pickup_seconds,
    );
    page.histogram(
        "run_seconds",
        "From a task's arrival to its result.",
        &counters.run_seconds,
    );
}

/// How long after its time-out a phase may still be told as running.
const OVERDUE_SECONDS: f64 = 60.0;

fn controllers(page: &mut Page, status: &Status) {
    let counters = &status.counters;
    page.family(
        "controller_up",
        "gauge",
        "Whether the controller's last answer was a good one.",
    );
    for controller in &status.controllers {
        if controller.last_answer.is_some() || controller.trouble.is_some() {
            let good = controller.trouble.is_none();
            page.sample(
                "controller_up",
                &[("controller", &controller.url)],
                flag(good),
            );
        }
    }
    page.family("asks_total", "counter", "Requests for a task, by outcome.");
    for (word, &count) in &counters.asks {
        page.sample("asks_total", &[("outcome", word)], float(count));
    }
    page.histogram(
        "ask_seconds",
        "How long a request for a task took that was not held by the controller.",
        &counters.ask_seconds,
    );
    page.counter(
        "results_taken_total",
        "Results that a controller has taken.",
        counters.results_taken,
    );
    page.counter(
        "results_refused_total",
        "Results that a controller has refused for good.",
        counters.results_refused,
    );
    page.counter(
        "sends_failed_total",
        "Attempts to send that failed and are made again.",
        counters.sends_failed,
    );
    let spool = &status.spool;
    let waiting = "Results that no controller has taken yet.";
    page.gauge("spool_results", waiting, float(spool.waiting));
    let segments = "Log segments that no controller has taken yet.";
    page.gauge("spool_segments", segments, float(spool.segments));
    page.gauge("spool_bytes", "Size of the spool.", float(spool.bytes));
    if let Some(oldest) = spool.oldest {
        page.gauge(
            "spool_oldest_time_seconds",
            "When the oldest waiting result was written, in seconds since 1970.",
            float(oldest),
        );
    }
}

fn resources(page: &mut Page, status: &Status) {
    let level = match status.resources.level {
        Level::Ok => 0.0,
        Level::Low => 1.0,
        Level::Critical => 2.0,
    };
    page.gauge(
        "host_shortage",
        "Whether the host has enough left: 0 yes, 1 no new work, 2 what runs is in danger.",
        level,
    );
    let facts = &status.resources.facts;
    let mut volumes = |name: &str, help: &str, value: fn(&VolumeFacts) -> Option<u64>| {
        page.family(name, "gauge", help);
        for volume in &facts.volumes {
            if let Some(value) = value(volume) {
                let path = volume.path.display().to_string();
                page.sample(name, &[("path", &path)], float(value));
            }
        }
    };
    volumes("disk_free_bytes", "Free space of a volume.", |v| {
        Some(v.free)
    });
    volumes("disk_size_bytes", "Size of a volume.", |v| Some(v.total));
    volumes("disk_free_inodes", "Free inodes of a volume.", |v| {
        v.free_inodes
    });
    for (name, help, value) in [
        (
            "memory_available_bytes",
            "Memory that the host has left.",
            facts.memory_available.map(float),
        ),
        (
            "memory_pressure_ratio",
            "Share of the last ten seconds in which everything waited for memory.",
            facts.memory_pressure.map(ratio),
        ),
        (
            "cpu_pressure_ratio",
            "Share of the last ten seconds in which something waited for a processor.",
            facts.cpu_pressure.map(ratio),
        ),
        (
            "io_pressure_ratio",
            "Share of the last ten seconds in which everything waited for disks.",
            facts.io_pressure.map(ratio),
        ),
        (
            "open_file_handles",
            "File handles of the agent that are open.",
            facts.handles.map(|handles| float(handles.used)),
        ),
        (
            "max_file_handles",
            "File handles that the agent may open.",
            facts.handles.map(|handles| float(handles.limit)),
        ),
        (
            "pids_left",
            "Processes that may still be started.",
            facts.pids.map(|pids| float(pids.left())),
        ),
    ] {
        if let Some(value) = value {
            page.gauge(name, help, value);
        }
    }
}

/// Whole numbers beyond 2^53 lose their last digits, as everywhere in Prometheus.
#[expect(clippy::cast_precision_loss, reason = "Prometheus knows floats only")]
fn float(value: u64) -> f64 {
    value as f64
}

fn flag(value: bool) -> f64 {
    if value { 1.0 } else { 0.0 }
}

fn ratio(percent: f32) -> f64 {
    f64::from(percent) / 100.0
}

struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = write!(
            self.0,
            "# HELP bbot_agent_{name} {help}\n# TYPE bbot_agent_{name} {kind}\n"
        );
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.0, "bbot_agent_{name}");
        for (index, (label, text)) in labels.iter().enumerate() {
            let open = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{open}{label}=\"{}\"", escape(text));
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, &[], float(value));
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        let mut so_far = 0;
        for (bound, count) in BUCKETS.iter().zip(&histogram.buckets) {
            so_far += count;
            self.sample(&bucket, &[("le", &bound.to_string())], float(so_far));
        }
        self.sample(&bucket, &[("le", "+Inf")], float(histogram.count));
        self.sample(&format!("{name}_sum"), &[], histogram.sum);
        self.sample(&format!("{name}_count"), &[], float(histogram.count));
    }
}

/// A label's value: the format has words for three characters, all others may stand.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '"' => escaped.push_str("\\\""),
            '\n' => escaped.push_str("\\n"),
            c if c.is_control() => escaped.push('?'),
            c => escaped.push(c),
        }
    }
    escaped
}
