//! What holds for every manifest: written, it reads back the same; read, it
//! never panics; typed, it survives the way to the other end.

use bbot_manifest::json::{from_json, to_json};
use bbot_manifest::{
    Auxiliary, BuildResult, Era, InteractiveMode, Introducer, Mac, MachineHeader, MachineKind,
    MachineManifest, MachineRole, Manifest, NAME_LIMIT, OperationResult, Pair, RepositoryType,
    ResultRequest, SUMMARY_LIMIT, Status, Style, Task, TaskRequest, TaskResponse, cut_middle,
    log_text, merge_comment, parse, sanitize, serialize, split_comment, validate_value,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// Characters that a manifest may hold, most often those that mean something.
fn character() -> impl Strategy<Value = char> {
    let special = "\\\\\\\\\n\n\n  \t#:;x=\"'жé🐳1";
    let any = any::<char>().prop_filter("refused in manifests", |c| {
        *c != '\r' && validate_value(c.to_string().as_bytes(), "").is_ok()
    });
    prop_oneof![12 => select(special.chars().collect::<Vec<_>>()), 1 => any]
}

/// Any value without CR, from nothing to several lines' width.
fn value() -> impl Strategy<Value = String> {
    let text = |size| vec(character(), size).prop_map(String::from_iter);
    let words = vec(
        ("[a-zж\\\\]{0,90}", select(vec![" ", "\t", "\n", "  "])),
        0..8,
    )
    .prop_map(|words| {
        words
            .into_iter()
            .map(|(word, blank)| word + blank)
            .collect()
    });
    prop_oneof![4 => text(0..12), 3 => text(60..200), 3 => words]
}

/// Any name that the format can hold.
fn name() -> impl Strategy<Value = String> {
    let text = |size| {
        vec(character(), size).prop_map(|chars| {
            let name: String = chars
                .into_iter()
                .filter(|c| !matches!(c, ':' | ' ' | '\t' | '\n'))
                .collect();
            let name = name.trim_start_matches('#').to_owned();
            if name.is_empty() {
                "x".to_owned()
            } else {
                name
            }
        })
    };
    prop_oneof![5 => text(1..8), 1 => text(30..60)]
}

fn manifests() -> impl Strategy<Value = Vec<Manifest>> {
    let pair = (name(), value()).prop_map(|(name, value)| Pair::new(name, value));
    vec(vec(pair, 0..6).prop_map(Manifest::new), 0..4)
}

fn style() -> impl Strategy<Value = Style> {
    let introducer = select(vec![Introducer::Old, Introducer::New]);
    (introducer, any::<bool>()).prop_map(|(introducer, long_lines)| Style {
        introducer,
        long_lines,
    })
}

fn same(a: &[Manifest], b: &[Manifest]) -> bool {
    a.len() == b.len() && std::iter::zip(a, b).all(|(a, b)| a.same_data(b))
}

/// Bytes that look like manifests, more or less.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = select(vec![
        &b": 1\n"[..],
        b":",
        b"\n",
        b"\r",
        b"\r\n",
        b"\\",
        b"\\\n",
        b" ",
        b"\t",
        b"#",
        b"a",
        b"name: value",
        b"a:\n\\\n",
        b"a: \\\n",
        "ж".as_bytes(),
        b"\xd0",
        b"\xb6",
        b"\xff",
        b"\x1b[1m",
        b"\0",
        b"\xe2\x80\x8b",
        b"\xf0\x90",
    ]);
    let shaped = vec(piece, 0..24).prop_map(|pieces| pieces.concat());
    prop_oneof![4 => shaped, 1 => vec(any::<u8>(), 0..64)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn written_manifests_read_the_same(manifests in manifests(), style in style()) {
        let text = serialize(&manifests, style).unwrap();
        let read = parse(text.as_bytes()).unwrap();
        prop_assert!(same(&read, &manifests), "{text}");
        prop_assert_eq!(serialize(&read, style).unwrap(), text);
    }

    #[test]
    fn with_cr_a_second_way_changes_nothing(text in "[a\\\\\r\n ]{0,12}", style in style()) {
        let manifest = Manifest::new([Pair::new("a", text.clone())]);
        let first = parse(serialize(&[manifest], style).unwrap().as_bytes()).unwrap();
        let lines = text.replace("\r\n", "\n").replace('\r', "\n");
        prop_assert_eq!(&first[0].pairs[0].value, &lines);
    }

    #[test]
    fn lines_are_short_unless_asked_for(value in "[a-zA-Z0-9 ]{0,400}") {
        let manifest = Manifest::new([Pair::new("log", value)]);
        let text = serialize(&[manifest], Style::wire()).unwrap();
        prop_assert!(text.lines().all(|line| line.len() <= 78), "{text}");
    }

    #[test]
    fn no_input_makes_the_parser_panic(bytes in bytes()) {
        match parse(&bytes) {
            Ok(manifests) => {
                for pair in manifests.iter().flat_map(|m| &m.pairs) {
                    prop_assert!(!pair.name.is_empty() && !pair.value.contains('\r'));
                    prop_assert!(validate_value(pair.value.as_bytes(), "").is_ok());
                }
                // What can be read can be written.
                let text = serialize(&manifests, Style::wire()).unwrap();
                prop_assert!(same(&parse(text.as_bytes()).unwrap(), &manifests));
            }
            Err(error) => {
                let lines = bytes.iter().filter(|b| matches!(b, b'\n' | b'\r')).count() as u64;
                prop_assert!((1..=lines + 1).contains(&error.line), "{error}");
                prop_assert!((1..=bytes.len() as u64 + 1).contains(&error.column), "{error}");
            }
        }
        let typed = [
            TaskRequest::parse(&bytes, "").is_ok(),
            TaskResponse::parse(&bytes, "").is_ok(),
            ResultRequest::parse(&bytes, "").is_ok(),
        ];
        // Nothing of this has what they need.
        prop_assert_eq!(typed, [false; 3]);
    }

    #[test]
    fn a_newline_is_a_newline(bytes in bytes()) {
        // CRLF and LF read the same, errors and places included.
        let Ok(text) = String::from_utf8(bytes) else { return Ok(()) };
        let text = text.replace('\r', "");
        let crlf = text.replace('\n', "\r\n");
        match (parse(text.as_bytes()), parse(crlf.as_bytes())) {
            (Ok(a), Ok(b)) => prop_assert_eq!(a, b),
            (Err(a), Err(b)) => prop_assert_eq!(a, b),
            (a, b) => prop_assert!(false, "{a:?} {b:?}"),
        }
    }

    #[test]
    fn json_brings_everything_back(manifests in manifests()) {
        prop_assert!(same(&from_json(&to_json(&manifests)).unwrap(), &manifests));
    }

    #[test]
    fn cleaned_text_fits(bytes in vec(any::<u8>(), 0..80)) {
        for text in [sanitize(&bytes), log_text(&bytes)] {
            prop_assert_eq!(validate_value(text.as_bytes(), ""), Ok(()));
            prop_assert!(text.len() <= bytes.len());
            prop_assert_eq!(sanitize(text.as_bytes()), text.clone());
            prop_assert_eq!(log_text(text.as_bytes()), text);
        }
    }

    #[test]
    fn fitting_text_stays(text in value()) {
        prop_assert_eq!(sanitize(text.as_bytes()), text.clone());
        prop_assert_eq!(log_text(text.as_bytes()), text);
    }

    #[test]
    fn cut_text_fits(text in value(), max in 0_usize..260) {
        let cut = cut_middle(&text, max);
        if text.len() <= max {
            prop_assert_eq!(cut.as_ref(), text.as_str());
        } else {
            prop_assert!(cut.len() <= max);
        }
    }

    #[test]
    fn comments_come_apart_again(value in value(), comment in value()) {
        let one_line = !value.contains('\n') && !comment.contains('\n');
        // In one line, the blanks at the seam are lost by design.
        let blank = [' ', '\t'];
        prop_assume!(!one_line || (!value.ends_with(blank) && !comment.starts_with(blank)));
        let merged = merge_comment(&value, &comment);
        prop_assert_eq!(split_comment(&merged), (value, comment), "{:?}", merged);
    }
}

#[test]
fn an_epoch_alone_is_no_version() {
    for text in ["+1", "+110", "+0"] {
        let error = text.parse::<bbot_manifest::PackageVersion>().unwrap_err();
        assert_eq!(error.to_string(), "unexpected end", "{text}");
    }
}

// Typed manifests.

fn filled() -> impl Strategy<Value = String> {
    value().prop_map(|value| {
        if value.is_empty() {
            "-".to_owned()
        } else {
            value
        }
    })
}

/// A value that is not empty, of at most so many bytes.
fn word(limit: usize) -> impl Strategy<Value = String> {
    filled().prop_map(move |mut value| {
        value.truncate(value.floor_char_boundary(limit));
        value
    })
}

fn hex64() -> impl Strategy<Value = String> {
    "[0-9a-f]{64}"
}

/// The middle of names such as `<operation>-log`.
fn stem() -> impl Strategy<Value = String> {
    "[a-z]{1,6}(-[a-z]{1,4})?"
}

fn header() -> impl Strategy<Value = MachineHeader> {
    let role = select(vec![MachineRole::Build, MachineRole::Auxiliary]);
    let ram = || option::of(any::<u64>());
    let name = || word(NAME_LIMIT);
    (
        name(),
        name(),
        word(SUMMARY_LIMIT),
        option::of(role),
        ram(),
        ram(),
    )
        .prop_map(
            |(id, name, summary, role, ram_minimum, ram_maximum)| MachineHeader {
                id,
                name,
                summary,
                role,
                ram_minimum,
                ram_maximum,
            },
        )
}

fn auxiliaries() -> impl Strategy<Value = Vec<Auxiliary>> {
    btree_map(prop_oneof![Just(String::new()), stem()], value(), 0..3).prop_map(|map| {
        let auxiliary = |(name, value)| Auxiliary { name, value };
        map.into_iter().map(auxiliary).collect()
    })
}

fn task() -> impl Strategy<Value = Task> {
    let version = "[1-9]\\.[0-9]{1,3}(-[ab]\\.[1-9])?(\\+[1-9])?";
    let kind = select(vec![
        RepositoryType::Pkg,
        RepositoryType::Git,
        RepositoryType::Dir,
    ]);
    let list = || vec(value(), 0..3);
    let text = || option::of(value());
    let required = (filled(), version, filled(), filled(), filled());
    let lists = (list(), list(), list(), list(), list(), list());
    let texts = (text(), text(), text(), text(), text(), text());
    let others = (
        option::of(kind),
        option::of(any::<bool>()),
        auxiliaries(),
        auxiliaries(),
    );
    (required, lists, texts, others).prop_map(|(required, lists, texts, others)| {
        let (name, version, url, machine, target) = required;
        Task {
            trust: lists.0,
            requires: lists.1,
            tests: lists.2,
            examples: lists.3,
            benchmarks: lists.4,
            warning_regex: lists.5,
            dependency_checksum: texts.0,
            environment: texts.1,
            target_config: texts.2,
            package_config: texts.3,
            interactive: texts.4,
            worker_checksum: texts.5,
            repository_type: others.0,
            host: others.1,
            auxiliary_machines: others.2,
            auxiliary_environments: others.3,
            ..Task::new(name, version, url, machine, target)
        }
    })
}

fn status() -> impl Strategy<Value = Status> {
    select(Status::ALL.to_vec())
}

fn build_result() -> impl Strategy<Value = BuildResult> {
    let operations = btree_map(stem(), (status(), value()), 0..4).prop_map(|map| {
        let operation = |(name, (status, log))| OperationResult { name, status, log };
        map.into_iter().map(operation).collect()
    });
    let checksum = || option::of(value());
    (
        filled(),
        filled(),
        status(),
        operations,
        checksum(),
        checksum(),
    )
        .prop_map(
            |(name, version, status, operations, worker_checksum, dependency_checksum)| {
                BuildResult {
                    name,
                    version,
                    status,
                    operations,
                    worker_checksum,
                    dependency_checksum,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn tasks_come_through(
        task in task(),
        session in filled(),
        challenge in option::of(hex64()),
        result_url in filled(),
        upload_urls in btree_map(stem(), filled(), 0..3),
        agent_checksum in option::of(value()),
    ) {
        let text = task.serialize(Era::Later).unwrap();
        prop_assert_eq!(&Task::parse(text.as_bytes(), "task").unwrap(), &task);
        let old = task.serialize(Era::Y2017).unwrap();
        let old = Task::parse(old.as_bytes(), "task").unwrap();
        prop_assert_eq!(&old.target_config, &task.target_config);
        prop_assert_eq!(&old.warning_regex, &task.warning_regex);
        prop_assert_eq!(&old.repository_url, &task.repository_url);
        prop_assert_eq!(old.package_config, None);

        let response = TaskResponse {
            session,
            challenge,
            result_url: Some(result_url),
            upload_urls,
            agent_checksum,
            task: Some(task),
        };
        let text = response.serialize(Era::Later).unwrap();
        prop_assert_eq!(TaskResponse::parse(text.as_bytes(), "response").unwrap(), response);
    }

    #[test]
    fn results_come_through(
        result in build_result(),
        session in filled(),
        challenge in option::of(vec(any::<u8>(), 1..300)),
        agent_checksum in option::of(value()),
    ) {
        let text = result.serialize(Era::Later).unwrap();
        prop_assert_eq!(&BuildResult::parse(text.as_bytes(), "result").unwrap(), &result);
        let request = ResultRequest { session, challenge, agent_checksum, result };
        let text = request.serialize(Era::Later).unwrap();
        prop_assert_eq!(&ResultRequest::parse(text.as_bytes(), "").unwrap(), &request);
        let old = request.serialize(Era::Y2017).unwrap();
        let old = ResultRequest::parse(old.as_bytes(), "").unwrap();
        prop_assert_eq!(old.agent_checksum, None);
        prop_assert_eq!(old.challenge, request.challenge);
        let logs = |r: &BuildResult| r.operations.iter().map(|o| o.log.clone()).collect::<Vec<_>>();
        prop_assert_eq!(logs(&old.result), logs(&request.result));
    }

    #[test]
    fn requests_come_through(
        agent in word(NAME_LIMIT),
        toolchain_name in word(NAME_LIMIT),
        version in "[1-9]\\.[0-9]\\.[0-9](-a\\.[1-9](\\.[1-9][0-9]{0,9}(\\.[0-9a-f]{12})?)?)?",
        mode in option::of(select(vec![
            InteractiveMode::False, InteractiveMode::True, InteractiveMode::Both,
        ])),
        interactive_login in option::of(filled()),
        fingerprint in option::of(hex64()),
        auxiliary_ram in option::of(any::<u64>()),
        machines in vec(header(), 1..4),
    ) {
        let request = TaskRequest {
            agent,
            toolchain_name,
            toolchain_version: version.parse().unwrap(),
            interactive_mode: mode,
            interactive_login,
            fingerprint,
            auxiliary_ram,
            machines,
        };
        let text = request.serialize(Era::Later).unwrap();
        prop_assert_eq!(&TaskRequest::parse(text.as_bytes(), "").unwrap(), &request);
        let old = request.serialize(Era::Y2017).unwrap();
        let old = TaskRequest::parse(old.as_bytes(), "").unwrap();
        prop_assert_eq!(old.fingerprint, request.fingerprint);
        prop_assert!(old.machines.iter().all(|m| m.role.is_none() && m.ram_minimum.is_none()));
    }

    #[test]
    fn machines_come_through(
        header in header(),
        kind in select(vec![MachineKind::Kvm, MachineKind::Nspawn]),
        mac in option::of(any::<[u8; 6]>()),
        options in option::of(vec("[a-z \"'=]{0,8}", 0..4)),
        changes in vec(value(), 0..3),
    ) {
        let machine = MachineManifest {
            header,
            kind,
            mac: mac.map(Mac),
            options: options.as_ref().map(bbot_manifest::quoting::join),
            changes,
        };
        let text = machine.serialize().unwrap();
        let read = MachineManifest::parse(text.as_bytes(), "").unwrap();
        prop_assert_eq!(read.option_list().unwrap(), options);
        prop_assert_eq!(read, machine);
    }
}
