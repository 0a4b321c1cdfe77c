use super::*;
use proptest::prelude::*;

const GOOD: Facts = Facts {
    session: SessionState::Current(State::Building),
    proof: Proof::Good,
    identity: Identity::Same,
    status: Status::Success,
    skip: Skip::NotOffered,
    again: Again::No,
    tries: Tries::Many,
    machine: Machine::Unmentioned,
    interrupts: 0,
    lapses: 0,
};

#[test]
fn table() {
    let s = |session| Facts { session, ..GOOD };
    for (facts, expected) in [
        (GOOD, Verdict::Keep(State::Built)),
        (
            Facts {
                status: Status::Abort,
                ..GOOD
            },
            Verdict::Keep(State::Built),
        ),
        (
            Facts {
                status: Status::Abnormal,
                ..GOOD
            },
            Verdict::Keep(State::Built),
        ),
        (
            Facts {
                status: Status::Interrupt,
                ..GOOD
            },
            Verdict::Requeue,
        ),
        (
            Facts {
                status: Status::Skip,
                ..GOOD
            },
            Verdict::Wrong(Mistake::Skip),
        ),
        (
            Facts {
                status: Status::Skip,
                skip: Skip::Different,
                ..GOOD
            },
            Verdict::Wrong(Mistake::Checksums),
        ),
        (
            Facts {
                status: Status::Skip,
                skip: Skip::Same,
                ..GOOD
            },
            Verdict::Unchanged(State::Built),
        ),
        // A rebuild that somebody has asked for is not what found nothing changed.
        (
            Facts {
                status: Status::Skip,
                skip: Skip::Same,
                again: Again::Yes,
                ..s(SessionState::Overtaken)
            },
            Verdict::Unchanged(State::Queued),
        ),
        // What is built is built, whether it had to be or not.
        (
            Facts {
                skip: Skip::Different,
                ..GOOD
            },
            Verdict::Keep(State::Built),
        ),
        (
            Facts {
                again: Again::Yes,
                ..GOOD
            },
            Verdict::Keep(State::Queued),
        ),
        // A success is one, whatever was before.
        (
            Facts {
                interrupts: 100,
                ..GOOD
            },
            Verdict::Keep(State::Built),
        ),
        (
            Facts {
                status: Status::Interrupt,
                machine: Machine::Failed,
                ..GOOD
            },
            Verdict::Retry,
        ),
        // Too often is too often.
        (
            Facts {
                status: Status::Interrupt,
                machine: Machine::Failed,
                interrupts: 3,
                lapses: 1,
                ..GOOD
            },
            Verdict::GiveUp,
        ),
        // Late, but nobody else has it.
        (
            s(SessionState::Current(State::Queued)),
            Verdict::Keep(State::Built),
        ),
        // Late, another agent has it, but nobody has delivered.
        (s(SessionState::Overtaken), Verdict::Keep(State::Built)),
        (
            Facts {
                again: Again::Yes,
                ..s(SessionState::Overtaken)
            },
            Verdict::Keep(State::Queued),
        ),
        (
            Facts {
                proof: Proof::Wrong,
                ..s(SessionState::Overtaken)
            },
            Verdict::Drop(Dropped::WrongAnswer),
        ),
        // The lapse was counted already.
        (
            Facts {
                status: Status::Interrupt,
                interrupts: 4,
                ..s(SessionState::Overtaken)
            },
            Verdict::Release,
        ),
        (
            Facts {
                status: Status::Interrupt,
                lapses: 4,
                ..s(SessionState::Current(State::Queued))
            },
            Verdict::Release,
        ),
        // Given back: once more is no news, and a result comes too late.
        (
            Facts {
                status: Status::Interrupt,
                ..s(SessionState::GivenBack)
            },
            Verdict::Repeat,
        ),
        (
            s(SessionState::GivenBack),
            Verdict::Drop(Dropped::Superseded),
        ),
        (
            s(SessionState::Current(State::Built)),
            Verdict::Drop(Dropped::Superseded),
        ),
        (
            s(SessionState::Superseded),
            Verdict::Drop(Dropped::Superseded),
        ),
        // Cancelled: nobody waits for it, whatever came first at its agent.
        (
            s(SessionState::Cancelled),
            Verdict::Drop(Dropped::Cancelled),
        ),
        (
            Facts {
                proof: Proof::Missing,
                ..s(SessionState::Cancelled)
            },
            Verdict::Drop(Dropped::Cancelled),
        ),
        (
            Facts {
                status: Status::Interrupt,
                ..s(SessionState::Cancelled)
            },
            Verdict::Repeat,
        ),
        (
            s(SessionState::Current(State::Cancelled)),
            Verdict::Drop(Dropped::Superseded),
        ),
        (s(SessionState::Unknown), Verdict::Drop(Dropped::Unknown)),
        (s(SessionState::Answered), Verdict::Repeat),
        (
            Facts {
                identity: Identity::Different,
                ..GOOD
            },
            Verdict::Wrong(Mistake::Identity),
        ),
        (
            Facts {
                identity: Identity::Different,
                ..s(SessionState::Superseded)
            },
            Verdict::Wrong(Mistake::Identity),
        ),
        (
            Facts {
                identity: Identity::Different,
                ..s(SessionState::Unknown)
            },
            Verdict::Drop(Dropped::Unknown),
        ),
        (
            Facts {
                proof: Proof::Missing,
                ..GOOD
            },
            Verdict::Drop(Dropped::NoAnswer),
        ),
        (
            Facts {
                proof: Proof::Unexpected,
                ..GOOD
            },
            Verdict::Drop(Dropped::UnexpectedAnswer),
        ),
        (
            Facts {
                proof: Proof::Wrong,
                ..GOOD
            },
            Verdict::Drop(Dropped::WrongAnswer),
        ),
        (
            Facts {
                proof: Proof::Wrong,
                status: Status::Interrupt,
                ..GOOD
            },
            Verdict::Drop(Dropped::WrongAnswer),
        ),
    ] {
        assert_eq!(decide(facts), expected, "{facts:?}");
    }
}

#[test]
fn a_task_is_given_back_a_bounded_number_of_times() {
    let interrupt = |interrupts, again| {
        decide(Facts {
            status: Status::Interrupt,
            interrupts,
            again,
            ..GOOD
        })
    };
    for (before, expected) in [
        (0, Verdict::Requeue),
        (3, Verdict::Requeue),
        (4, Verdict::GiveUp),
        (5, Verdict::GiveUp),
    ] {
        assert_eq!(interrupt(before, Again::No), expected, "{before}");
        assert_eq!(interrupt(before, Again::Yes), Verdict::Requeue, "{before}");
    }
    let late = Facts {
        session: SessionState::Superseded,
        status: Status::Interrupt,
        interrupts: 4,
        ..GOOD
    };
    assert_eq!(decide(late), Verdict::Drop(Dropped::Superseded));
    // Lapses count with them.
    let mixed = |interrupts, lapses| {
        decide(Facts {
            status: Status::Interrupt,
            interrupts,
            lapses,
            ..GOOD
        })
    };
    assert_eq!(mixed(1, 2), Verdict::Requeue);
    assert_eq!(mixed(2, 2), Verdict::GiveUp);
    // One that is handed out once: not again by itself.
    for (again, expected) in [(Again::No, Verdict::GiveUp), (Again::Yes, Verdict::Requeue)] {
        let once = Facts {
            status: Status::Interrupt,
            tries: Tries::Once,
            again,
            ..GOOD
        };
        assert_eq!(decide(once), expected);
    }
    let log = once_log(false, Some("h1"), Some("m"), Some("no room"));
    assert!(
        log.contains("h1 with the machine m, was stopped") && log.contains("\n  no room\n"),
        "{log}"
    );
    let log = once_log(true, None, None, None);
    assert!(
        log.contains(
            "unknown with the machine unknown, was not heard of in time\ninfo: an interactive"
        ),
        "{log}"
    );
    let none = Failures::default();
    let log = given_up_log(0, &none, Some("h1"), None, None);
    assert!(log.contains("5 times") && log.contains("h1 with the machine unknown"));
    assert!(!log.contains("of these"), "{log}");
    assert!(given_up_log(2, &none, None, None, None).contains("2 times of these"));
    let failures = none.with("h2").with("h1").with("h2");
    let log = given_up_log(0, &failures, Some("h1"), None, None);
    assert!(
        log.contains("once of these a machine of h1 failed before its worker asked")
            && log.contains("2 times of these a machine of h2 failed"),
        "{log}"
    );
}

#[test]
fn the_last_agents_reason_is_said_within_bounds() {
    let none = Failures::default();
    let of = |reason: &str| given_up_log(0, &none, Some("h1"), Some("m"), Some(reason));
    let silent = given_up_log(0, &none, Some("h1"), Some("m"), None);
    for nothing in ["", " \n"] {
        assert_eq!(of(nothing), silent, "{nothing:?}");
    }
    let log = of("no room: \u{1b}[31mred\u{7}\nerror: forged\n");
    assert!(
        log.contains("machine m, and said why:\n  no room: red?\n  error: forged\ninfo: "),
        "{log}"
    );
    let log = of(&format!("the beginning {} the end", "x".repeat(100_000)));
    assert!(
        log.len() < silent.len() + 2 * REASON
            && log.contains("  the beginning")
            && log.contains("the end\n"),
        "{log}"
    );
    let lines = of(&"y\n".repeat(100_000));
    assert!(lines.len() < silent.len() + 3 * REASON, "{}", lines.len());
}

fn any_facts() -> impl Strategy<Value = Facts> {
    (
        prop_oneof![
            Just(SessionState::Unknown),
            Just(SessionState::Answered),
            Just(SessionState::GivenBack),
            Just(SessionState::Overtaken),
            Just(SessionState::Superseded),
            Just(SessionState::Cancelled),
            proptest::sample::select(State::ALL.to_vec()).prop_map(SessionState::Current),
        ],
        proptest::sample::select(vec![
            Proof::Good,
            Proof::Missing,
            Proof::Unexpected,
            Proof::Wrong,
        ]),
        proptest::sample::select(vec![Identity::Same, Identity::Different]),
        proptest::sample::select(vec![
            Status::Skip,
            Status::Success,
            Status::Warning,
            Status::Error,
            Status::Abort,
            Status::Abnormal,
            Status::Interrupt,
        ]),
        proptest::sample::select(vec![Skip::NotOffered, Skip::Same, Skip::Different]),
        proptest::sample::select(vec![Again::No, Again::Yes]),
        proptest::sample::select(vec![Tries::Many, Tries::Once]),
        proptest::sample::select(vec![Machine::Failed, Machine::Unmentioned]),
        0_u32..8,
        0_u32..8,
    )
        .prop_map(
            |(
                session,
                proof,
                identity,
                status,
                skip,
                again,
                tries,
                machine,
                interrupts,
                lapses,
            )| Facts {
                session,
                proof,
                identity,
                status,
                skip,
                again,
                tries,
                machine,
                interrupts,
                lapses,
            },
        )
}

proptest! {
    #[test]
    fn only_proved_current_results_change_a_build(facts in any_facts()) {
        let verdict = decide(facts);
        if matches!(verdict, Verdict::Keep(_) | Verdict::Unchanged(_) | Verdict::Requeue | Verdict::Retry | Verdict::GiveUp | Verdict::Release) {
            prop_assert_eq!(facts.proof, Proof::Good);
            prop_assert_eq!(facts.identity, Identity::Same);
            prop_assert!(matches!(
                facts.session,
                SessionState::Overtaken | SessionState::Current(State::Queued | State::Building)
            ));
        }
        // What is counted is counted once: at the lapse, or when it is given back.
        if matches!(verdict, Verdict::Requeue | Verdict::Retry | Verdict::GiveUp) {
            prop_assert_eq!(facts.session, SessionState::Current(State::Building));
        }
    }

    /// Whatever it is that failed: only what is given back is tried again, and so often.
    #[test]
    fn what_was_built_is_not_retried(facts in any_facts()) {
        let verdict = decide(facts);
        if verdict == Verdict::Retry {
            prop_assert_eq!((facts.status, facts.machine), (Status::Interrupt, Machine::Failed));
            prop_assert!(
                facts.again == Again::Yes
                    || facts.tries == Tries::Many && facts.interrupts + facts.lapses + 1 < INTERRUPTS
            );
        }
        if facts.status != Status::Interrupt {
            prop_assert!(!matches!(verdict, Verdict::Retry | Verdict::Requeue));
        }
    }

    #[test]
    fn a_rebuild_that_was_asked_for_is_never_lost(facts in any_facts()) {
        if facts.again == Again::Yes {
            prop_assert!(!matches!(
                decide(facts),
                Verdict::Keep(State::Built) | Verdict::Unchanged(State::Built) | Verdict::GiveUp
            ));
        }
    }
}
