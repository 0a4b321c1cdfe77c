use super::*;
use proptest::prelude::*;

const FREE: Agent = Agent {
    ability: Ability::Able,
    hold: None,
    is_avoided: false,
    presence: Presence::Free,
};
const BUSY: Agent = Agent {
    presence: Presence::Busy,
    ..FREE
};
const SILENT: Agent = Agent {
    presence: Presence::Silent,
    ..FREE
};
const AVOIDED: Agent = Agent {
    is_avoided: true,
    ..BUSY
};

fn held(hold: Hold) -> Agent {
    Agent {
        hold: Some(hold),
        ..AVOIDED
    }
}

fn with(ability: Ability) -> Agent {
    Agent { ability, ..FREE }
}

#[test]
fn the_nearest_agents_tell_why() {
    let (drained, unapproved) = (held(Hold::Drained), held(Hold::Unapproved));
    let (unable, barred) = (with(Ability::None), with(Ability::Barred));
    let unknown = with(Ability::Unknown);
    let lacks = |lack| with(Ability::Lacks(lack));
    let gone = Agent {
        presence: Presence::Silent,
        ..unknown
    };
    for (agents, expected, number) in [
        (&[][..], Code::NoAgent, 0),
        (&[unable, unable], Code::NoMachine, 2),
        (&[unable, barred], Code::Era, 1),
        (&[unable, lacks(Lack::Key)], Code::Bot, 1),
        (&[lacks(Lack::Key), lacks(Lack::Service)], Code::Service, 1),
        (
            &[lacks(Lack::Service), lacks(Lack::Auxiliary)],
            Code::Auxiliary,
            1,
        ),
        (
            &[lacks(Lack::Auxiliary), lacks(Lack::Interactive)],
            Code::Interactive,
            1,
        ),
        (&[barred, lacks(Lack::Interactive)], Code::Era, 1),
        (&[unable, barred, SILENT, gone], Code::Silent, 2),
        (&[SILENT, unknown], Code::Unknown, 1),
        (&[unknown, AVOIDED, unable], Code::Avoided, 1),
        (&[AVOIDED, unapproved], Code::Unapproved, 1),
        (&[drained, unapproved, drained], Code::Drained, 2),
        (&[BUSY, AVOIDED, BUSY, drained], Code::Busy, 2),
        (&[BUSY, FREE, AVOIDED], Code::Next, 1),
    ] {
        let before = Before::Exactly(7);
        let told = why(true, agents.iter().copied(), before);
        let expected = Why {
            code: expected,
            agents: number,
            before,
        };
        assert_eq!(told, expected, "{agents:?}");
        let gone = why(false, agents.iter().copied(), before);
        assert_eq!((gone.code, gone.agents), (Code::NoConfiguration, 0));
    }
}

#[test]
fn sentences() {
    let pattern = Some("windows_10-msvc**");
    let of = |code, agents, before| {
        let why = Why {
            code,
            agents,
            before,
        };
        why.sentence("msvc", pattern, (&Lane::default(), false), &["h1", "h2"])
    };
    let none = Before::Exactly(0);
    for (code, agents, before, expected) in [
        (
            Code::Next,
            1,
            none,
            "1 agent could build it and may ask for it at any time.",
        ),
        (
            Code::Next,
            3,
            Before::Exactly(1),
            "3 agents could build it and may ask for it at any time; 1 build goes before it in this configuration.",
        ),
        (
            Code::Busy,
            2,
            Before::Exactly(5),
            "All 2 agents that could build it are busy; 5 builds go before it in this configuration.",
        ),
        (
            Code::Busy,
            1,
            Before::MoreThan(100),
            "The agent that could build it is busy; more than 100 builds go before it in this configuration.",
        ),
        (
            Code::Drained,
            1,
            none,
            "1 agent that could build it is drained: resume one.",
        ),
        (
            Code::Unapproved,
            2,
            none,
            "2 agents that could build it are not approved yet.",
        ),
        (
            Code::Avoided,
            2,
            none,
            "Its machine failed on h1, h2 before it had begun, and no agent on another host could build it now: when \
             none comes, it is tried there again.",
        ),
        (
            Code::Unknown,
            1,
            none,
            "1 agent has not said yet which machines there are.",
        ),
        (
            Code::Silent,
            2,
            none,
            "2 agents that could build it were not heard of for a while.",
        ),
        (
            Code::Era,
            1,
            none,
            "1 agent has a machine for msvc, but the wire of 2017, and its line is one of the later era.",
        ),
        (
            Code::NoMachine,
            4,
            none,
            "No machine of the 4 agents that are known matches windows_10-msvc**.",
        ),
        (
            Code::NoAgent,
            0,
            none,
            "No agent was heard of since the controller's start.",
        ),
        (
            Code::NoConfiguration,
            0,
            Before::Exactly(9),
            "The buildtab has no configuration msvc for this target any more: no agent will get this build.",
        ),
    ] {
        assert_eq!(of(code, agents, before), expected);
    }
}

#[test]
fn what_lanes_lack() {
    use super::super::lane::tests::{interactive, of_keys, of_service, with};
    let plain = Lane::default();
    let with_keys = |code, agents, lane: &Lane, is_operators| {
        let why = Why {
            code,
            agents,
            before: Before::Exactly(0),
        };
        why.sentence("gcc", None, (lane, is_operators), &[])
    };
    let of = |code, agents, lane: &Lane| with_keys(code, agents, lane, false);
    assert_eq!(
        with_keys(Code::Bot, 1, &of_keys(&["aa"]), true),
        "1 agent has a machine for gcc, but its package is for custom bots alone, and names only keys of the operator's own agents \
         (aa), which are none."
    );
    for (code, agents, lane, expected) in [
        (
            Code::Interactive,
            3,
            interactive(),
            "3 agents have a machine for gcc, but none of them takes interactive builds, and this is one.",
        ),
        (
            Code::Interactive,
            1,
            plain.clone(),
            "1 agent has a machine for gcc, but it does not take builds that are not interactive.",
        ),
        (
            Code::Service,
            2,
            of_service("ci"),
            "2 agents have a machine for gcc, but none of them asks for builds of the service ci.",
        ),
        (
            Code::Service,
            1,
            plain.clone(),
            "1 agent has a machine for gcc, but it does not ask for builds that are of no service.",
        ),
        (
            Code::Auxiliary,
            1,
            with(&[("a", "*-postgresql"), ("b", "*-redis")]),
            "1 agent has a machine for gcc, but it does not offer auxiliary machines, with memory for them, that match \
             *-postgresql, *-redis.",
        ),
        (
            Code::Bot,
            2,
            of_keys(&["aa", "bb"]),
            "2 agents have a machine for gcc, but its package is for custom bots alone, and none of them is one with a key that \
             it names (aa, bb).",
        ),
        (
            Code::Bot,
            1,
            of_keys(&["aa"]),
            "1 agent has a machine for gcc, but its package is for custom bots alone, and it is not one with a key that it names \
             (aa).",
        ),
        (
            Code::Bot,
            1,
            plain,
            "1 agent has a machine for gcc, but its package names no key of theirs: custom bots build only what names their key.",
        ),
    ] {
        assert_eq!(of(code, agents, &lane), expected);
    }
}

fn any_agent() -> impl Strategy<Value = Agent> {
    let abilities = vec![
        Ability::Unknown,
        Ability::None,
        Ability::Barred,
        Ability::Lacks(Lack::Interactive),
        Ability::Lacks(Lack::Auxiliary),
        Ability::Lacks(Lack::Service),
        Ability::Lacks(Lack::Key),
        Ability::Able,
    ];
    let holds = vec![None, Some(Hold::Drained), Some(Hold::Unapproved)];
    let presences = vec![Presence::Free, Presence::Busy, Presence::Silent];
    let select = proptest::sample::select::<Ability>;
    (
        select(abilities),
        proptest::sample::select(holds),
        any::<bool>(),
        proptest::sample::select(presences),
    )
        .prop_map(|(ability, hold, is_avoided, presence)| Agent {
            ability,
            hold,
            is_avoided,
            presence,
        })
}

proptest! {
    /// An agent more never makes a build further from being built.
    #[test]
    fn more_agents_come_no_less_near(
        agents in proptest::collection::vec(any_agent(), 0..8),
        more in any_agent(),
    ) {
        let told = |agents: &[Agent]| why(true, agents.iter().copied(), Before::Exactly(0));
        let few = told(&agents);
        let mut all = agents.clone();
        all.push(more);
        let all = told(&all);
        prop_assert!(all.code <= few.code);
        prop_assert!((1..=agents.len() + 1).contains(&all.agents));
    }
}
