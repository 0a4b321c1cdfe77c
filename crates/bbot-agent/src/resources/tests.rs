//! The verdicts by table, and what is told of them.

use super::*;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn disk(free: u64) -> Facts {
    Facts {
        volumes: vec![VolumeFacts {
            path: PathBuf::from("/m"),
            free,
            total: 100 * GIB,
            free_inodes: Some(1 << 20),
        }],
        ..Facts::default()
    }
}

fn left(left: u64) -> Option<Use> {
    Some(Use {
        used: 0,
        limit: left,
    })
}

#[test]
fn each_kind_has_its_marks() {
    let limits = Limits::default();
    let cases: [(Facts, &[(Kind, Level)]); 13] = [
        (Facts::default(), &[]),
        (disk(2 * GIB), &[]),
        (disk(2 * GIB - 1), &[(Kind::Disk, Level::Low)]),
        (disk(GIB / 2 - 1), &[(Kind::Disk, Level::Critical)]),
        (disk(0), &[(Kind::Disk, Level::Critical)]),
        (
            Facts {
                memory_available: Some(255 * MIB),
                ..Facts::default()
            },
            &[(Kind::Memory, Level::Low)],
        ),
        (
            Facts {
                memory_available: Some(63 * MIB),
                ..Facts::default()
            },
            &[(Kind::Memory, Level::Critical)],
        ),
        (
            Facts {
                handles: left(63),
                ..Facts::default()
            },
            &[(Kind::Handles, Level::Low)],
        ),
        (
            Facts {
                pids: left(31),
                ..Facts::default()
            },
            &[(Kind::Pids, Level::Critical)],
        ),
        (
            Facts {
                memory_pressure: Some(50.9),
                ..Facts::default()
            },
            &[],
        ),
        (
            Facts {
                memory_pressure: Some(100.0),
                ..Facts::default()
            },
            &[(Kind::MemoryPressure, Level::Low)],
        ),
        (
            Facts {
                handles: left(40),
                ..disk(0)
            },
            &[(Kind::Disk, Level::Critical), (Kind::Handles, Level::Low)],
        ),
        (
            Facts {
                volumes: vec![VolumeFacts {
                    free: 100 * GIB,
                    free_inodes: Some(3),
                    ..VolumeFacts::default()
                }],
                ..Facts::default()
            },
            &[(Kind::Inodes, Level::Critical)],
        ),
    ];
    for (facts, expected) in cases {
        let found: Vec<_> = judge(&limits, &facts, &[])
            .into_iter()
            .map(|shortage| (shortage.kind, shortage.level))
            .collect();
        assert_eq!(found, expected, "{facts:?}");
    }
}

#[test]
fn a_mark_of_zero_is_none() {
    let limits = Limits {
        disk: Mark::at(0),
        ..Limits::default()
    };
    assert_eq!(judge(&limits, &disk(0), &[]), []);
}

#[test]
fn what_is_short_remains_so_until_there_is_a_quarter_more() {
    let mut watch = Watch::new(Limits::default());
    let mut at = |free: u64| {
        watch.observe(disk(free), Duration::ZERO);
        watch.level()
    };
    assert_eq!(at(3 * GIB), Level::Ok);
    assert_eq!(at(2 * GIB - 1), Level::Low);
    assert_eq!(at(2 * GIB + GIB / 2 - 1), Level::Low);
    assert_eq!(at(2 * GIB + GIB / 2), Level::Ok);
    assert_eq!(at(2 * GIB), Level::Ok);
    assert_eq!(at(GIB / 2 - 1), Level::Critical);
    assert_eq!(at(GIB / 2 + GIB / 8 - 1), Level::Critical);
    assert_eq!(at(GIB / 2 + GIB / 8), Level::Low);
    assert_eq!(at(GIB / 2), Level::Low);
}

#[test]
fn a_shortage_is_told_once_and_its_end_once() {
    let mut watch = Watch::new(Limits::default());
    let mut told = Vec::new();
    for free in [
        5 * GIB,
        GIB,
        GIB + 1,
        GIB - 1,
        0,
        1,
        0,
        GIB,
        GIB,
        5 * GIB,
        5 * GIB,
    ] {
        told.extend(watch.observe(disk(free), Duration::ZERO).news);
    }
    let [
        News::Short {
            level: Level::Low,
            text: low,
        },
        News::Short {
            level: Level::Critical,
            ..
        },
        News::Over { text: over },
    ] = &told[..]
    else {
        panic!("{told:?}");
    };
    assert_eq!(
        low,
        "1 GiB free on /m, less than 2 GiB: make room there, or lower --min-free-disk"
    );
    assert_eq!(over, "there is enough again: disk space on /m");
    assert_eq!(watch.reasons(), Vec::<String>::new());
}

/// A value that swings around a mark is told once, not at every swing.
#[test]
fn a_value_at_the_mark_does_not_flutter() {
    let mut watch = Watch::new(Limits::default());
    let news: usize = (0..100)
        .map(|n| {
            let free = 2 * GIB + (n % 2) * 100 * MIB - 50 * MIB;
            watch.observe(disk(free), Duration::ZERO).news.len()
        })
        .sum();
    assert_eq!(news, 1);
}

#[test]
fn the_newest_run_is_interrupted_and_then_the_next_but_not_at_once() {
    let mut watch = Watch::new(Limits::default());
    let mut relief = |free: u64, second: u64| {
        watch
            .observe(disk(free), Duration::from_secs(second))
            .relief
            .is_some()
    };
    assert!(!relief(GIB, 0), "low is no reason");
    assert!(relief(0, 5));
    assert!(!relief(0, 10), "what it gives back has to show");
    assert!(!relief(0, 24));
    assert!(relief(0, 25));
    assert!(!relief(5 * GIB, 30));
    assert!(relief(0, 31), "a new emergency");
}

#[test]
fn volumes_are_judged_each_by_itself() {
    let mut facts = disk(GIB);
    facts.volumes.push(VolumeFacts {
        path: PathBuf::from("/n"),
        free: 50 * GIB,
        ..VolumeFacts::default()
    });
    let mut watch = Watch::new(Limits::default());
    assert_eq!(watch.observe(facts.clone(), Duration::ZERO).news.len(), 1);
    facts.volumes[1].free = 0;
    let news = watch.observe(facts.clone(), Duration::ZERO).news;
    assert_eq!(news.len(), 1, "{news:?}");
    facts.volumes[0].free = 50 * GIB;
    let news = watch.observe(facts, Duration::ZERO).news;
    assert!(matches!(&news[..], [News::Over { text }] if text.ends_with("/m")));
    assert_eq!(watch.level(), Level::Critical);
}

/// Over any course of things: nothing is short above a mark and a quarter, everything
/// is below it, and the news always account for the verdict.
#[test]
fn the_verdict_follows_the_facts_whatever_their_course() {
    let limits = Limits::default();
    let mut watch = Watch::new(limits);
    let mut known = std::collections::BTreeSet::new();
    // A simple generator is enough: any course will do, and it has to be the same one.
    let mut state = 7_u64;
    for second in 0..20_000 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let free = (state >> 33) % (4 * GIB);
        let observed = watch.observe(disk(free), Duration::from_secs(second));
        for news in observed.news {
            match news {
                News::Short { level, .. } => assert!(known.insert(level)),
                News::Over { .. } => known.clear(),
            }
        }
        let level = watch.level();
        assert_eq!(level > Level::Ok, !known.is_empty());
        if free < limits.disk.low {
            assert!(level >= Level::Low);
        }
        if free >= limits.disk.low * 5 / 4 {
            assert_eq!(level, Level::Ok);
        }
        if free < limits.disk.critical {
            assert_eq!(level, Level::Critical);
        }
        if level < Level::Critical {
            known.remove(&Level::Critical);
        }
    }
}

/// Most figures are read from files: without a handle there are none, and that is no
/// reason to take all for well.
#[test]
fn without_file_handles_what_was_known_remains() {
    let mut watch = Watch::new(Limits::default());
    watch.observe(disk(GIB), Duration::ZERO);
    let blind = Facts {
        handles: Some(Use {
            used: 100,
            limit: 100,
        }),
        ..Facts::default()
    };
    let news = watch.observe(blind, Duration::ZERO).news;
    assert!(
        matches!(&news[..], [News::Short { text, .. }] if text.starts_with("0 file handles")),
        "{news:?}"
    );
    assert_eq!(watch.reasons().len(), 2);
}

#[test]
fn the_supervisor_hears_what_is_short_and_no_figures() {
    let mut watch = Watch::new(Limits::default());
    assert_eq!(watch.host_state(), HostState::Ok);
    let facts = Facts {
        handles: left(40),
        ..disk(0)
    };
    watch.observe(facts, Duration::ZERO);
    let short = HostState::Low("there is too little of: disk space on /m, file handles".to_owned());
    assert_eq!(watch.host_state(), short);
    // The other is the worse one now.
    let facts = Facts {
        handles: left(1),
        ..disk(1 << 30)
    };
    watch.observe(facts, Duration::ZERO);
    assert_eq!(watch.host_state(), short);
}

#[test]
fn sizes_are_for_people() {
    for (bytes, text) in [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (256 << 20, "256 MiB"),
        (2 << 30, "2 GiB"),
        (u64::MAX, "16383 PiB"),
    ] {
        assert_eq!(size(bytes), text);
    }
}
