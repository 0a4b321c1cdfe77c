//! What the pages have in common: the frame, a build's line, marks of colour and word, times and sizes.

use axum::http::HeaderMap;
use bbot_manifest::Status;

use super::sign;
use crate::clock::Millis;
use crate::http::{App, params};
use crate::package;
use crate::queue::State;
use crate::roll::Doing;
use crate::source::Source;
use crate::store::Build;

/// What every page has around it.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    /// What links begin with: the path of the external URL, or nothing.
    pub(super) root: String,
    /// Which entry of the navigation is this page's.
    pub(super) here: &'static str,
    /// The secret of this browser's forms when it is signed in.
    pub(super) signed_in: Option<String>,
    /// Where signing in leads back to, as a URL parameter.
    pub(super) next: String,
    pub(super) version: &'static str,
}

impl Frame {
    pub(super) fn of(app: &App, headers: &HeaderMap, path: &str, here: &'static str) -> Self {
        Self {
            root: app
                .addressed_from_outside(headers)
                .map_or_else(String::new, |e| e.path().to_owned()),
            here,
            signed_in: sign::signed_in(app, headers).map(|s| s.form),
            next: params::encode(path),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// A state or status as word, colour and sign: never by colour alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) word: &'static str,
    pub(super) class: &'static str,
    pub(super) glyph: &'static str,
}

impl Mark {
    pub(super) fn of(status: Status) -> Self {
        let (class, glyph) = match status {
            Status::Skip => ("", "»"),
            Status::Success => ("good", "✓"),
            Status::Warning => ("warn", "!"),
            Status::Error => ("bad", "✕"),
            Status::Abort | Status::Abnormal => ("odd", "⚡"),
            Status::Interrupt => ("", "↺"),
        };
        Self {
            word: status.as_str(),
            class,
            glyph,
        }
    }

    /// Of a status from the store; the store holds only real ones.
    pub(super) fn of_text(text: &str) -> Self {
        text.parse().map_or(
            Self {
                word: "unknown",
                class: "odd",
                glyph: "?",
            },
            Self::of,
        )
    }

    pub(super) fn of_agent(doing: Doing) -> Self {
        let (class, glyph) = match doing {
            Doing::Building => ("run", "◐"),
            Doing::Asking => ("good", "○"),
            Doing::Silent => ("", "–"),
        };
        Self {
            word: doing.as_str(),
            class,
            glyph,
        }
    }

    fn of_build(build: &Build) -> Self {
        match (build.state, build.status) {
            (State::Queued, _) => Self {
                word: "queued",
                class: "",
                glyph: "○",
            },
            (State::Building, _) => Self {
                word: "building",
                class: "run",
                glyph: "◐",
            },
            (State::Built, Some(status)) => Self::of(status),
            (State::Built, None) => Self {
                word: "built",
                class: "",
                glyph: "?",
            },
            (State::Cancelled, _) => Self {
                word: "cancelled",
                class: "",
                glyph: "×",
            },
        }
    }
}

/// A build in a list.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: i64,
    pub(super) mark: Mark,
    pub(super) package: String,
    pub(super) version: String,
    pub(super) configuration: String,
    pub(super) target: String,
    /// The package configuration, where it is not the one that all have.
    pub(super) variant: Option<String>,
    pub(super) machine: Option<String>,
    pub(super) agent: Option<String>,
    pub(super) queued: String,
    pub(super) took: String,
}

impl Row {
    pub(super) fn of(build: &Build, now: Millis) -> Self {
        let waiting = !build.is_begun();
        let end = match build.state {
            State::Building => Some(now),
            State::Queued | State::Built | State::Cancelled => {
                build.finished.filter(|_| build.is_begun())
            }
        };
        Self {
            id: build.id,
            mark: Mark::of_build(build),
            package: build.package.clone(),
            version: build.version.clone(),
            configuration: build.configuration.clone(),
            target: build.target.clone(),
            variant: Some(build.package_configuration.clone())
                .filter(|name| name != package::DEFAULT),
            machine: build.machine.clone().filter(|_| !waiting),
            agent: build.agent.clone().filter(|_| !waiting),
            queued: time(build.queued),
            took: build
                .started
                .zip(end)
                .map(|(from, to)| duration(from, to))
                .unwrap_or_default(),
        }
    }
}

/// The auxiliary machines that a build has, else those that it wants: each with the name of its environment.
pub(super) fn auxiliaries(build: &Build) -> Vec<String> {
    let line = |(name, machine): (&String, &String)| match name.as_str() {
        "" => machine.clone(),
        name => format!("{name}: {machine}"),
    };
    if build.is_begun() {
        let all = build.auxiliaries.iter().map(|a| (&a.name, &a.machine));
        all.map(line).collect()
    } else {
        build.lane.auxiliaries.iter().map(line).collect()
    }
}

/// Where a package comes from, in words.
#[derive(Debug)]
pub(super) struct SourceLine {
    pub(super) what: &'static str,
    pub(super) detail: String,
    pub(super) archive: Option<String>,
}

impl SourceLine {
    pub(super) fn unknown() -> Self {
        Self {
            what: "unknown",
            detail: String::new(),
            archive: None,
        }
    }

    pub(super) fn of(source: &Source) -> Self {
        let archive = source.archive().map(str::to_owned);
        match source {
            Source::Archive(sha256) => Self {
                what: "uploaded",
                detail: format!("sha256 {}…", sha256.get(..16).unwrap_or_default()),
                archive,
            },
            Source::Git(git) => Self {
                what: "git",
                detail: format!(
                    "{} at {}",
                    git.url,
                    git.commit.get(..12).unwrap_or_default()
                ),
                archive,
            },
            Source::Repository(repository) => Self {
                what: "repository",
                detail: repository.url.clone(),
                archive,
            },
        }
    }
}

/// `2026-11-23 15:18:35 UTC`.
pub(super) fn time(time: Millis) -> String {
    let text = time.to_string();
    match (text.get(..10), text.get(11..19)) {
        (Some(day), Some(clock)) => format!("{day} {clock} UTC"),
        _ => text,
    }
}

/// `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`; nothing when the end is before the beginning.
pub(super) fn duration(from: Millis, to: Millis) -> String {
    let Ok(millis) = u64::try_from(to.0.saturating_sub(from.0)) else {
        return String::new();
    };
    let seconds = millis / 1000;
    match seconds {
        0..10 => format!("{}.{} s", seconds, millis % 1000 / 100),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// `0 bytes`, `812 bytes`, `12.3 kB`, `4.0 MB`.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        1 => "1 byte".to_owned(),
        0..1000 => format!("{bytes} bytes"),
        1000..1_000_000 => format!("{}.{} kB", bytes / 1000, bytes % 1000 / 100),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_numbers() {
        let d = |ms| duration(Millis(0), Millis(ms));
        assert_eq!(
            [d(0), d(450), d(12_000), d(200_000), d(7_500_000), d(-1)],
            ["0.0 s", "0.4 s", "12 s", "3 min 20 s", "2 h 5 min", ""]
        );
        assert_eq!(
            [size(0), size(1), size(999), size(12_345), size(4_000_000)],
            ["0 bytes", "1 byte", "999 bytes", "12.3 kB", "4.0 MB"]
        );
        assert_eq!(time(Millis(0)), "1970-01-01 00:00:00 UTC");
        assert!(!time(Millis(i64::MAX)).is_empty());
    }

    #[test]
    fn every_status_has_a_word() {
        for status in Status::ALL {
            assert_eq!(Mark::of(status).word, status.to_string());
            assert_eq!(
                Mark::of_text(&status.to_string()).class,
                Mark::of(status).class
            );
        }
        assert_eq!(Mark::of_text("<b>").word, "unknown");
    }
}
