//! Diagnostics on standard error, in the seed's form: `error: ...`, `warning:
//! ...`, `info: ...`, `trace: ...`; for systemd each line begins with `<level>`.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Where the lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// To a person.
    Plain,
    /// To systemd's journal: `sd-daemon(3)` prefixes.
    Systemd,
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
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter(verbose)))
        .with_writer(std::io::stderr)
        .event_format(Lines(form))
        .finish();
    // Only fails when the program that embeds us has installed its own: then it
    // decides.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// What is said before there are diagnostics, or as the last word: `error: ...`.
pub fn fatal(form: Form, message: &str) -> String {
    lines(form, "<2>", "error", message)
}

#[derive(Debug)]
struct Lines(Form);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = Text::default();
        event.record(&mut text);
        let (priority, word) = match *event.metadata().level() {
            Level::ERROR => ("<3>", "error"),
            Level::WARN => ("<4>", "warning"),
            Level::INFO => ("<6>", "info"),
            Level::DEBUG | Level::TRACE => ("<7>", "trace"),
        };
        // A message stands alone; its fields are for those who look closer.
        let message = if word == "trace" {
            format!(
                "{}: {}{}",
                event.metadata().target(),
                text.message,
                text.fields
            )
        } else {
            text.message
        };
        writer.write_str(&lines(self.0, priority, word, &message))
    }
}

/// One line, or several: those after the first are indented unless they say
/// themselves what they are.
fn lines(form: Form, priority: &str, word: &str, message: &str) -> String {
    let prefix = match form {
        Form::Plain => "",
        Form::Systemd => priority,
    };
    let mut out = String::new();
    for (number, line) in message.lines().enumerate() {
        let line = line.trim_end();
        let _ = match number {
            0 => writeln!(out, "{prefix}{word}: {line}"),
            _ if line.starts_with("info: ") => writeln!(out, "{prefix}{line}"),
            _ => writeln!(out, "{prefix}  {line}"),
        };
    }
    out
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_for_systemd_has_its_level() {
        assert_eq!(
            lines(Form::Systemd, "<3>", "error", "one\ntwo\ninfo: three"),
            "<3>error: one\n<3>  two\n<3>info: three\n"
        );
        assert_eq!(lines(Form::Plain, "<3>", "error", "one\n"), "error: one\n");
    }

    #[test]
    fn every_level_is_a_filter() {
        for verbose in 0..=6 {
            assert!(filter(verbose).parse::<EnvFilter>().is_ok(), "{verbose}");
        }
    }
}
