//! What is counted, for `GET /metrics` (OpenMetrics text). All names are here: `bbot_controller_` and what it counts, in base
//! units.

use std::fmt::Write as _;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// Bounds of the buckets of times that builds wait, in seconds: from what a waiting agent takes to what a night takes.
const WAITED: [f64; 12] = [
    0.005, 0.01, 0.05, 0.2, 1.0, 5.0, 20.0, 60.0, 300.0, 1800.0, 7200.0, 28_800.0,
];

/// Bounds of the buckets of times that requests take, in seconds. Those that are held until there is a task are not in it.
const TOOK: [f64; 10] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.2, 1.0, 5.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStatus {
    status: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    kind: &'static str,
    code: u16,
}

/// What is not counted but looked up when somebody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Now {
    pub(crate) queued: i64,
    pub(crate) building: i64,
    /// Agents by what they do: building, asking, silent.
    pub(crate) agents: [i64; 3],
    /// Requests for a task that are held.
    pub(crate) held: i64,
    /// For so many seconds a lease should have lapsed.
    pub(crate) overdue: i64,
}

/// The figures of one controller since its start.
#[derive(Debug)]
pub(crate) struct Figures {
    registry: Registry,
    builds: Family<ByState, Gauge>,
    agents: Family<ByState, Gauge>,
    held: Gauge,
    overdue: Gauge,
    submitted: Counter,
    handed_out: Counter,
    waited: Histogram,
    results: Family<ByStatus, Counter>,
    cancelled: Counter,
    came_back: Family<ByKind, Counter>,
    segments: Counter,
    segment_bytes: Counter,
    requests: Family<Answered, Counter>,
    took: Family<ByKind, Histogram>,
}

/// Why a task came back without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CameBack {
    /// Its agent gave it back.
    Given,
    /// Its machine failed before its worker asked for anything.
    Failed,
    /// Nothing was heard of its agent in time.
    Lapsed,
    /// Its agent was gone before it was told.
    NotTold,
}

impl Figures {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("bbot_controller");
        let info = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What runs", info);
        let builds = Family::<ByState, Gauge>::default();
        registry.register(
            "builds",
            "Builds that are not done, by state",
            builds.clone(),
        );
        let agents = Family::<ByState, Gauge>::default();
        registry.register(
            "agents",
            "Agents that were heard of since the start, by what they do",
            agents.clone(),
        );
        let held = Gauge::default();
        registry.register(
            "held_requests",
            "Requests of agents that wait for a task",
            held.clone(),
        );
        let overdue = Gauge::default();
        registry.register_with_unit(
            "overdue_lease",
            "For how long a lease should have lapsed: nothing, or builds are stuck",
            Unit::Seconds,
            overdue.clone(),
        );
        let submitted = Counter::default();
        registry.register(
            "submitted_builds",
            "Builds that were queued",
            submitted.clone(),
        );
        let handed_out = Counter::default();
        registry.register(
            "handed_out_tasks",
            "Tasks that agents got",
            handed_out.clone(),
        );
        let waited = Histogram::new(WAITED);
        registry.register_with_unit(
            "pick_up",
            "From a build being queued to an agent having it",
            Unit::Seconds,
            waited.clone(),
        );
        let results = Family::<ByStatus, Counter>::default();
        registry.register(
            "results",
            "Results that were kept, by status",
            results.clone(),
        );
        let cancelled = Counter::default();
        registry.register(
            "cancelled_builds",
            "Builds that were cancelled, queued or under way",
            cancelled.clone(),
        );
        let came_back = Family::<ByKind, Counter>::default();
        registry.register(
            "came_back_tasks",
            "Tasks that came back without a result: given by the agent, lapsed, or not told since it was gone",
            came_back.clone(),
        );
        let segments = Counter::default();
        registry.register(
            "log_segments",
            "Pieces of running builds' logs",
            segments.clone(),
        );
        let segment_bytes = Counter::default();
        registry.register_with_unit(
            "log",
            "Running builds' logs",
            Unit::Bytes,
            segment_bytes.clone(),
        );
        let requests = Family::<Answered, Counter>::default();
        registry.register(
            "requests",
            "Requests that were answered, by what for and how",
            requests.clone(),
        );
        let took = Family::<ByKind, Histogram>::new_with_constructor(|| Histogram::new(TOOK));
        registry.register_with_unit(
            "request",
            "How long requests took that were not held",
            Unit::Seconds,
            took.clone(),
        );
        Self {
            registry,
            builds,
            agents,
            held,
            overdue,
            submitted,
            handed_out,
            waited,
            results,
            cancelled,
            came_back,
            segments,
            segment_bytes,
            requests,
            took,
        }
    }

    pub(crate) fn submitted(&self, builds: usize) {
        self.submitted.inc_by(builds as u64);
    }

    pub(crate) fn handed_out(&self, waited: Duration) {
        self.handed_out.inc();
        self.waited.observe(waited.as_secs_f64());
    }

    pub(crate) fn result(&self, status: bbot_manifest::Status) {
        let status = status.to_string();
        self.results.get_or_create(&ByStatus { status }).inc();
    }

    pub(crate) fn cancelled(&self) {
        self.cancelled.inc();
    }

    pub(crate) fn came_back(&self, why: CameBack) {
        let kind = match why {
            CameBack::Given => "given",
            CameBack::Failed => "failed",
            CameBack::Lapsed => "lapsed",
            CameBack::NotTold => "not-told",
        };
        self.came_back.get_or_create(&ByKind { kind }).inc();
    }

    pub(crate) fn segment(&self, bytes: usize) {
        self.segments.inc();
        self.segment_bytes.inc_by(bytes as u64);
    }

    /// A request was answered; `took` is none for one that was held.
    pub(crate) fn answered(&self, kind: &'static str, code: u16, took: Option<Duration>) {
        self.requests.get_or_create(&Answered { kind, code }).inc();
        if let Some(took) = took {
            self.took
                .get_or_create(&ByKind { kind })
                .observe(took.as_secs_f64());
        }
    }

    /// All of it as text.
    pub(crate) fn text(&self, now: Now) -> String {
        for (state, count) in [("queued", now.queued), ("building", now.building)] {
            self.builds.get_or_create(&ByState { state }).set(count);
        }
        for (state, count) in ["building", "asking", "silent"].into_iter().zip(now.agents) {
            self.agents.get_or_create(&ByState { state }).set(count);
        }
        self.held.set(now.held);
        self.overdue.set(now.overdue);
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            // To write to a text does not fail; a scraper that gets half of it would take it for all.
            text.clear();
            let _ = text.write_str("# EOF\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_in_the_text() {
        let figures = Figures::new();
        figures.submitted(3);
        figures.handed_out(Duration::from_millis(3));
        figures.handed_out(Duration::from_secs(400));
        figures.result(bbot_manifest::Status::Warning);
        figures.came_back(CameBack::Lapsed);
        figures.segment(100);
        figures.answered("task", 200, None);
        figures.answered("api", 404, Some(Duration::from_millis(3)));
        let text = figures.text(Now {
            queued: 2,
            building: 1,
            agents: [1, 2, 3],
            held: 2,
            overdue: 7,
        });
        for line in [
            "bbot_controller_builds{state=\"queued\"} 2",
            "bbot_controller_agents{state=\"silent\"} 3",
            "bbot_controller_held_requests 2",
            "bbot_controller_overdue_lease_seconds 7",
            "bbot_controller_submitted_builds_total 3",
            "bbot_controller_pick_up_seconds_bucket{le=\"0.005\"} 1",
            "bbot_controller_pick_up_seconds_count 2",
            "bbot_controller_results_total{status=\"warning\"} 1",
            "bbot_controller_came_back_tasks_total{kind=\"lapsed\"} 1",
            "bbot_controller_log_bytes_total 100",
            "bbot_controller_requests_total{kind=\"task\",code=\"200\"} 1",
            "bbot_controller_request_seconds_count{kind=\"api\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
    }
}
