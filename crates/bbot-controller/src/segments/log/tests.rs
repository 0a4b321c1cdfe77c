use super::*;
use proptest::prelude::*;

fn small() -> Bounds {
    Bounds {
        head: 400,
        tail: 400,
    }
}

fn log(dir: &tempfile::TempDir, bounds: Bounds) -> RunLog {
    RunLog::open(dir.path().join("b/7.log"), bounds).unwrap()
}

/// Everything from a position on: bytes with their operation, gaps.
fn all(log: &RunLog, mut from: Position) -> Vec<Piece> {
    let mut pieces = Vec::new();
    while let Some((piece, next)) = log.read(from).unwrap() {
        assert!(next.at > from.at || next.number > from.number, "it goes on");
        from = next;
        pieces.push(piece);
    }
    pieces
}

fn bytes(pieces: &[Piece]) -> Vec<u8> {
    let of = |piece: &Piece| match piece {
        Piece::Bytes { bytes, .. } => bytes.clone(),
        Piece::Gap { .. } => Vec::new(),
    };
    pieces.iter().flat_map(of).collect()
}

fn store(log: &RunLog, number: u64, operation: &str, data: &[u8]) {
    assert_eq!(
        log.append(number, Skip::No, operation, data).unwrap(),
        Appended::Stored { next: number + 1 }
    );
}

#[test]
fn segments_are_numbered_and_taken_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = log(&dir, Bounds::default());
    assert_eq!(all(&log, Position::default()), []);
    store(&log, 1, "configure", b"one\n");
    store(&log, 2, "update", b"two");
    let append = |number, skip| log.append(number, skip, "update", b"x").unwrap();
    assert_eq!(append(1, Skip::No), Appended::Known { next: 3 });
    assert_eq!(append(2, Skip::Yes), Appended::Known { next: 3 });
    assert_eq!(append(4, Skip::No), Appended::Gap { next: 3 });
    assert_eq!(append(u64::MAX, Skip::Yes), Appended::Gap { next: 3 });
    store(&log, 3, "update", b"\x1b[31m\0\xff");
    assert_eq!(append(6, Skip::Yes), Appended::Stored { next: 7 });
    let piece = |operation: &str, bytes: &[u8]| Piece::Bytes {
        operation: operation.to_owned(),
        bytes: bytes.to_owned(),
    };
    let gap = Piece::Gap {
        left_out: 0,
        missing: 2,
    };
    assert_eq!(
        all(&log, Position::default()),
        [
            piece("configure", b"one\n"),
            piece("update", b"two\x1b[31m\0\xff"),
            gap,
            piece("update", b"x")
        ]
    );
    // From within a segment.
    let from = Position { at: 5, number: 0 };
    assert!(bytes(&all(&log, from)).starts_with(b"wo\x1b"));
    assert_eq!(log.read(Position { at: 999, number: 0 }).unwrap(), None);
}

#[test]
fn whoever_waits_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let log = log(&dir, Bounds::default());
    let mut grown = log.grown();
    assert!(!grown.has_changed().unwrap());
    store(&log, 1, "a", b"12345");
    assert_eq!(*grown.borrow_and_update(), 5);
}

#[test]
fn of_a_long_log_the_two_ends_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let log = log(&dir, small());
    let mut whole = Vec::new();
    for number in 1..=100 {
        let line = format!("line {number:03} {}\n", "x".repeat(20));
        store(&log, number, "update", line.as_bytes());
        whole.extend_from_slice(line.as_bytes());
    }
    let on_disk: u64 = fs::read_dir(dir.path().join("b"))
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum();
    assert!(on_disk <= 800, "{on_disk}");
    let check = |log: &RunLog| {
        let pieces = all(log, Position::default());
        let gaps: Vec<&Piece> = pieces
            .iter()
            .filter(|p| matches!(p, Piece::Gap { .. }))
            .collect();
        let [
            Piece::Gap {
                left_out,
                missing: 0,
            },
        ] = gaps.as_slice()
        else {
            panic!("{pieces:?}");
        };
        let kept = bytes(&pieces);
        assert_eq!(kept.len() as u64 + left_out, whole.len() as u64);
        assert!(kept.starts_with(b"line 001") && kept.ends_with(&whole[whole.len() - 100..]));
        // A reader that fell behind into the gap.
        let lost = Position {
            at: 1500,
            number: 0,
        };
        let pieces = all(log, lost);
        assert!(matches!(pieces[0], Piece::Gap { .. }), "{pieces:?}");
        assert!(whole.ends_with(&bytes(&pieces)));
    };
    check(&log);
    drop(log);
    let log = RunLog::open(dir.path().join("b/7.log"), small()).unwrap();
    assert_eq!(log.next(), 101);
    check(&log);
    remove(&dir.path().join("b/7.log")).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("b")).unwrap().count(), 0);
}

#[test]
fn another_runs_files_are_not_this_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in [
        "7.log", "7.log.1", "7.log.x", "7.log.0", "7.logs", "77.log", "17.log",
    ] {
        fs::write(path(name), "").unwrap();
    }
    let mut found = part_indices(&path("7.log")).unwrap();
    found.sort_unstable();
    assert_eq!(found, [0, 1]);
    remove(&path("7.log")).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
}

#[test]
fn a_full_disk_leaves_nothing_half() {
    let dir = tempfile::tempdir().unwrap();
    let log = log(&dir, Bounds::default());
    store(&log, 1, "update", b"one");
    // A device that is always full, in the place of the file.
    log.lock().file = Some(File::options().append(true).open("/dev/full").unwrap());
    assert!(log.append(2, Skip::No, "update", b"two").is_err());
    assert_eq!(log.next(), 2);
    log.lock().file = None;
    store(&log, 2, "update", b"two");
    assert_eq!(bytes(&all(&log, Position::default())), b"onetwo");
}

/// After a kill the file ends anywhere in the last record: what was acknowledged before is there, and the same number
/// can be sent again.
#[test]
fn a_torn_end_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("7.log");
    let whole = RunLog::open(path.clone(), Bounds::default()).unwrap();
    store(&whole, 1, "update", b"one");
    let one = fs::metadata(&path).unwrap().len();
    store(&whole, 2, "update", b"two");
    let bytes_on_disk = fs::read(&path).unwrap();
    for length in one..bytes_on_disk.len() as u64 {
        for filler in [0_usize, 40] {
            // Cut, and then as a power cut may leave it: longer, with zeros.
            let mut torn = bytes_on_disk[..usize::try_from(length).unwrap()].to_vec();
            torn.resize(torn.len() + filler, 0);
            fs::write(&path, torn).unwrap();
            let log = RunLog::open(path.clone(), Bounds::default()).unwrap();
            assert_eq!(log.next(), 2, "{length} {filler}");
            assert_eq!(fs::metadata(&path).unwrap().len(), one);
            store(&log, 2, "update", b"TWO");
            assert_eq!(bytes(&all(&log, Position::default())), b"oneTWO");
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Next { length: usize, operation: u8 },
    Again,
    Ahead,
    Skip,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1_usize..90, 0_u8..2).prop_map(|(length, operation)| Step::Next { length, operation }),
        1 => Just(Step::Again),
        1 => Just(Step::Ahead),
        1 => Just(Step::Skip),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever comes in whatever order: what is kept is what was sent, in its place; only the middle is missing, and
    /// the files stay within their bounds.
    #[test]
    fn what_is_read_is_what_was_sent(steps in proptest::collection::vec(step(), 1..60), from in 0_u64..3000) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(&dir, small());
        let (mut whole, mut number) = (Vec::new(), 0);
        for step in steps {
            match step {
                Step::Next { length, operation } => {
                    number += 1;
                    let data: Vec<u8> = (0..length).map(|i| u8::try_from((whole.len() + i) % 251).unwrap()).collect();
                    store(&log, number, ["a", "b"][usize::from(operation)], &data);
                    whole.extend(data);
                }
                Step::Again if number > 0 => {
                    prop_assert_eq!(log.append(number, Skip::No, "a", b"z").unwrap(), Appended::Known { next: number + 1 });
                }
                Step::Ahead => {
                    prop_assert_eq!(log.append(number + 2, Skip::No, "a", b"z").unwrap(), Appended::Gap { next: number + 1 });
                }
                Step::Skip => {
                    number += 3;
                    let taken = log.append(number, Skip::Yes, "a", b"s").unwrap();
                    prop_assert_eq!(taken, Appended::Stored { next: number + 1 });
                    whole.push(b's');
                }
                Step::Again | Step::Reopen => log = RunLog::open(dir.path().join("b/7.log"), small()).unwrap(),
            }
        }
        let mut at = from.min(whole.len() as u64);
        let mut position = Position { at, number: 0 };
        while let Some((piece, next)) = log.read(position).unwrap() {
            match piece {
                Piece::Bytes { bytes, .. } => {
                    let begin = usize::try_from(at).unwrap();
                    prop_assert_eq!(&whole[begin..begin + bytes.len()], bytes.as_slice());
                    at += bytes.len() as u64;
                }
                Piece::Gap { left_out, .. } => at += left_out,
            }
            prop_assert_eq!(at, next.at);
            position = next;
        }
        prop_assert_eq!(at, whole.len() as u64);
        let kept: u64 = fs::read_dir(dir.path().join("b")).map_or(0, |entries| {
            entries.map(|e| e.unwrap().metadata().unwrap().len()).sum()
        });
        prop_assert!(kept <= 800, "{}", kept);
    }
}
