use std::time::Duration;

use bbot_manifest::{BootstrapManifest, MachineManifest, ToolchainManifest};
use proptest::prelude::*;

use super::*;

fn of(name: &str, revision: u32, ram_kib: u64) -> Of {
    let text = format!(
        ": 1\nid: {name}-{revision}\nname: {name}\nsummary: A\ntype: kvm\nmac: de:ad:be:ef:de:ad\n"
    );
    let share = Share { cpus: 1, ram_kib };
    Of {
        manifest: BootstrappedMachine {
            machine: MachineManifest::parse(text.as_bytes(), "").unwrap(),
            toolchain: ToolchainManifest { id: "t".to_owned() },
            bootstrap: BootstrapManifest::ours(),
        },
        share,
    }
}

fn machine(name: &str, used: Option<u64>) -> Candidate {
    let begin = *BEGIN;
    Candidate {
        of: of(name, 1, 100),
        used: used.map(|seconds| begin + Duration::from_secs(seconds)),
    }
}

static BEGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);

/// What is there in the end, and what went on the way, in order.
fn all(mut ready: Vec<Of>, candidates: &[Candidate], means: Means) -> (Vec<String>, Vec<usize>) {
    let first = plan(&ready, candidates.to_vec(), means);
    for place in first.drop.iter().rev() {
        ready.remove(*place);
    }
    for _ in 0..100 {
        let plan = plan(&ready, candidates.to_vec(), means);
        assert!(plan.drop.is_empty(), "{plan:?}");
        match plan.make {
            Some(of) => ready.push(of),
            None => break,
        }
    }
    (
        ready.iter().map(|of| of.name().to_owned()).collect(),
        first.drop,
    )
}

#[test]
fn what_was_used_last_is_there_first_and_twice_only_when_all_are() {
    let candidates = [
        machine("a", None),
        machine("b", Some(1)),
        machine("c", Some(2)),
    ];
    for (most, ram_kib, expected) in [
        (0, 1000, &[][..]),
        (1, 1000, &["c"]),
        (2, 1000, &["c", "b"]),
        (3, 1000, &["c", "b", "a"]),
        (5, 1000, &["c", "c", "b", "b", "a"]),
        // Memory bounds them as well.
        (5, 299, &["c", "b"]),
        (5, 99, &[]),
    ] {
        let means = Means { most, ram_kib };
        let (mut names, _) = all(Vec::new(), &candidates, means);
        let mut expected: Vec<String> = expected.iter().map(|&name| name.to_owned()).collect();
        names.sort();
        expected.sort();
        assert_eq!(names, expected, "{most} {ram_kib}");
    }
}

#[test]
fn what_is_of_no_use_any_more_goes() {
    let candidates = [machine("a", None)];
    let means = Means {
        most: 1,
        ram_kib: 1000,
    };
    // Another revision, another share, a machine that is gone, one too many.
    for (ready, drop) in [
        (vec![of("a", 1, 100)], vec![]),
        (vec![of("a", 2, 100)], vec![0]),
        (vec![of("a", 1, 200)], vec![0]),
        (vec![of("b", 1, 100)], vec![0]),
        (vec![of("a", 1, 100), of("a", 1, 100)], vec![1]),
    ] {
        assert_eq!(all(ready, &candidates, means), (vec!["a".to_owned()], drop));
    }
    // The host runs short.
    let nothing = Means {
        most: 0,
        ram_kib: 0,
    };
    let (names, drop) = all(vec![of("a", 1, 100)], &candidates, nothing);
    assert_eq!((names.len(), drop), (0, vec![0]));
}

proptest! {
    /// Whatever is there: in the end there are as many as there may be, and nothing that went is made again.
    #[test]
    fn it_comes_to_rest_within_its_means(
        used in prop::collection::vec(prop::option::of(0u64..5), 0..4),
        ready in prop::collection::vec((0usize..5, 1u32..3), 0..6),
        most in 0usize..6,
        ram_kib in 0u64..700,
    ) {
        let candidates: Vec<Candidate> = used
            .iter()
            .enumerate()
            .map(|(index, used)| machine(&format!("m{index}"), *used))
            .collect();
        let ready = ready.into_iter();
        let ready: Vec<Of> = ready.map(|(index, revision)| of(&format!("m{index}"), revision, 100)).collect();
        let means = Means { most, ram_kib };
        let (names, _) = all(ready, &candidates, means);
        let expected = match candidates.is_empty() {
            true => 0,
            false => most.min(usize::try_from(ram_kib / 100).unwrap()),
        };
        prop_assert_eq!(names.len(), expected);
    }
}
