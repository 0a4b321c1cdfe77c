//! Diagnostics on standard error: lines for people in the seed's form (`error: ...`,
//! `warning: ...`, `info: ...`, `trace: ...`), or a JSON object per line; for systemd
//! each line begins with `<level>`.
//!
//! What is said within a span named `task` or `bootstrap` carries the span's
//! `session`, `machine` and `run`: shortened in brackets for people, whole in JSON. A
//! session is worth a result where a controller asks for no key, so these lines are
//! for those who may read the agent's log.
//!
//! Names in messages come from controllers and guests. They cannot forge a line:
//! control characters are replaced, what follows a newline is indented.

mod line;
mod recent;
mod time;

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use line::Line;
pub use recent::{Told, recent};

/// Where the lines go, and how they look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// To a person.
    Plain,
    /// To systemd's journal: `sd-daemon(3)` prefixes.
    Systemd,
    /// To a program: a JSON object per line.
    Json,
    /// JSON behind systemd's prefixes, which the journal takes off.
    SystemdJson,
}

impl Form {
    /// What `--log-format` and `--systemd-daemon` ask for.
    pub fn of(options: &crate::options::Options) -> Self {
        use crate::options::LogFormat;
        match (options.log_format, options.systemd_daemon) {
            (LogFormat::Text, false) => Form::Plain,
            (LogFormat::Text, true) => Form::Systemd,
            (LogFormat::Json, false) => Form::Json,
            (LogFormat::Json, true) => Form::SystemdJson,
        }
    }
}

/// The seed's levels 0 to 6 as a filter: 0 errors, 1 what an operator wants, 2
/// to 4 our own parts' traces, 5 and 6 those of the libraries too.
pub fn filter(verbose: u8) -> &'static str {
    match verbose {
        0 => "error",
        1 => "info",
        2 => "info,bbot_agent=debug,bbot_machine=debug",
        3 => "info,bbot_agent=trace,bbot_machine=debug,bbot_tftp=debug",
        4 => "info,bbot_agent=trace,bbot_machine=trace,bbot_tftp=trace",
        5 => "debug,bbot_agent=trace,bbot_machine=trace,bbot_tftp=trace",
        _ => "trace",
    }
}

/// Sends the diagnostics of this process to standard error.
pub fn install(verbose: u8, form: Form) {
    let subscriber = tracing_subscriber::registry().with(layer(verbose, form, Box::new(stderr)));
    // Only fails when the program that embeds us has installed its own: then it
    // decides.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// One write per message, so that those of several threads do not mix. Where standard
/// error is gone there is nobody to tell.
fn stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

type Sink = Box<dyn Fn(&str) + Send + Sync>;

fn layer<S>(verbose: u8, form: Form, sink: Sink) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    // All of `filter` are constants that a test parses.
    let targets: Targets = filter(verbose).parse().unwrap_or_default();
    let most = targets
        .iter()
        .map(|(_, level)| level)
        .chain(targets.default_level())
        .fold(LevelFilter::INFO, LevelFilter::max);
    // A span is known at any verbosity: its errors carry it.
    let targets = tracing_subscriber::filter::FilterFn::new(move |metadata| {
        (metadata.is_span() && is_run(metadata.name()))
            || targets.would_enable(metadata.target(), metadata.level())
    })
    .with_max_level_hint(most);
    Lines { form, sink }.with_filter(targets)
}

/// What is said before there are diagnostics, or as the last word: `error: ...`. The
/// message is ours: its lines that begin with `info: ` stand for themselves.
pub fn fatal(form: Form, message: &str) -> String {
    let line = Line {
        priority: 2,
        word: "error",
        message,
        own_words: true,
        ..Line::default()
    };
    line.render(form, SystemTime::now())
}

fn is_run(name: &str) -> bool {
    matches!(name, "task" | "bootstrap")
}

struct Lines {
    form: Form,
    sink: Sink,
}

impl<S> Layer<S> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if !is_run(attributes.metadata().name()) {
            return;
        }
        if let Some(span) = context.span(id) {
            let mut run = RunFields::default();
            attributes.record(&mut run);
            span.extensions_mut().insert(run);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(run) = span.extensions_mut().get_mut::<RunFields>()
        {
            values.record(run);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let metadata = event.metadata();
        let (priority, word) = match *metadata.level() {
            Level::ERROR => (3, "error"),
            Level::WARN => (4, "warning"),
            Level::INFO => (6, "info"),
            Level::DEBUG | Level::TRACE => (7, "trace"),
        };
        let mut line = Line {
            priority,
            word,
            target: metadata.target(),
            message: &text.message,
            fields: &text.fields,
            ..Line::default()
        };
        let scope = context.event_scope(event);
        let mut run = RunFields::default();
        for span in scope.into_iter().flatten() {
            if let Some(of_span) = span.extensions().get::<RunFields>() {
                run.fill(of_span);
            }
        }
        line.session = run.session.as_deref();
        line.machine = run.machine.as_deref();
        line.run = run.run.as_deref();
        let now = SystemTime::now();
        if priority <= 4 {
            recent::remember(word, &line.told(), now);
        }
        (self.sink)(&line.render(self.form, now));
    }
}

/// What a span tells of its run.
#[derive(Debug, Default, Clone)]
struct RunFields {
    session: Option<String>,
    machine: Option<String>,
    run: Option<String>,
}

impl RunFields {
    /// The inner span's fields count; what it lacks an outer one may have.
    fn fill(&mut self, outer: &RunFields) {
        let pairs = [
            (&mut self.session, &outer.session),
            (&mut self.machine, &outer.machine),
            (&mut self.run, &outer.run),
        ];
        for (own, theirs) in pairs {
            if own.is_none() {
                own.clone_from(theirs);
            }
        }
    }
}

impl Visit for RunFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        let slot = match field.name() {
            "session" => &mut self.session,
            "machine" => &mut self.machine,
            "run" => &mut self.run,
            _ => return,
        };
        *slot = Some(value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[derive(Default)]
struct Text {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.push_str(value),
            name => self.fields.push((name, value.to_owned())),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            // Writing to a string cannot fail.
            "message" => {
                let _ = write!(self.message, "{value:?}");
            }
            name => self.fields.push((name, format!("{value:?}"))),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What is told of this at that verbosity.
    pub(crate) fn told(verbose: u8, form: Form, act: impl FnOnce()) -> String {
        let text = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&text);
        let sink: Sink = Box::new(move |line| sink.lock().unwrap().push_str(line));
        let subscriber = tracing_subscriber::registry().with(layer(verbose, form, sink));
        tracing::subscriber::with_default(subscriber, act);
        std::mem::take(&mut *text.lock().unwrap())
    }

    #[test]
    fn every_level_is_a_filter() {
        for verbose in 0..=6 {
            assert!(filter(verbose).parse::<Targets>().is_ok(), "{verbose}");
        }
    }

    #[test]
    fn each_line_of_a_run_carries_its_session() {
        let session = "0123456789abcdef".repeat(4);
        let act = || {
            let span =
                tracing::error_span!("task", session = %session, machine = "debian-12", run = 7);
            let _entered = span.enter();
            let inner = tracing::info_span!("upload");
            let _inner = inner.enter();
            tracing::info!("one\ntwo");
            tracing::debug!("hidden");
        };
        assert_eq!(
            told(1, Form::Plain, act),
            "info: [s=01234567..89abcdef/debian-12] one\n  two\n"
        );
        let json = told(1, Form::Json, act);
        let object: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(object["session"], session);
        assert_eq!(object["machine"], "debian-12");
        assert_eq!(object["run"], "7");
        assert_eq!(object["message"], "one\ntwo");
        // Also where only errors are told.
        let quiet = told(0, Form::Plain, || {
            let _entered =
                tracing::error_span!("bootstrap", machine = "m", session = tracing::field::Empty)
                    .entered();
            tracing::error!("bad");
        });
        assert_eq!(quiet, "error: [m] bad\n");
    }

    #[test]
    fn a_session_may_be_told_later() {
        let text = told(1, Form::Plain, || {
            let span = tracing::info_span!("task", session = tracing::field::Empty, machine = "m");
            let _entered = span.enter();
            tracing::info!("first");
            span.record("session", "abc");
            tracing::info!("second");
        });
        assert_eq!(text, "info: [m] first\ninfo: [s=abc/m] second\n");
    }

    #[test]
    fn spans_of_parallel_runs_do_not_mix() {
        let text = told(1, Form::Plain, || {
            let (a, b) = (
                tracing::info_span!("task", session = "a", machine = "m"),
                tracing::info_span!("task", session = "b", machine = "n"),
            );
            a.in_scope(|| tracing::info!("1"));
            b.in_scope(|| tracing::info!("2"));
            a.in_scope(|| tracing::warn!("3"));
            tracing::info!("4");
        });
        assert_eq!(
            text,
            "info: [s=a/m] 1\ninfo: [s=b/n] 2\nwarning: [s=a/m] 3\ninfo: 4\n"
        );
    }

    #[test]
    fn errors_are_kept_for_the_status() {
        told(0, Form::Plain, || tracing::error!("only here: a wolf"));
        assert!(
            recent()
                .iter()
                .any(|error| error.message == "only here: a wolf" && error.level == "error")
        );
    }

    #[test]
    fn fields_are_told_to_those_who_look_closer() {
        let act = || tracing::info!(answer = 42, who = "x\ny", "message");
        assert_eq!(told(1, Form::Plain, act), "info: message\n");
        let object: serde_json::Value = serde_json::from_str(&told(1, Form::Json, act)).unwrap();
        assert_eq!(object["fields"]["answer"], "42");
        assert_eq!(object["fields"]["who"], "x\ny");
        let act = || tracing::trace!(target: "bbot_agent::x", answer = 42, "message");
        assert_eq!(
            told(6, Form::Plain, act),
            "trace: bbot_agent::x: message answer=42\n"
        );
    }
}
