//! The worker as a machine runs it: as root, against a real TFTP server.

#![expect(clippy::unwrap_used, unreachable_pub, reason = "tests")]

mod support;

use std::time::Duration;

use bbot_manifest::Status;
use support::{Cards, Outcome, Run, Saved, task};

/// A makefile that wants no compiler.
const PLAIN: &str = "all:\n\t@echo building\n\t@id -u >who\ncheck:\n\t@echo checked\n";

#[test]
fn a_makefile_package_is_built_by_another_user_in_a_clean_environment() {
    if !testkit::root() {
        return;
    }
    let makefile = "all:\n\t@echo \"uid $$(id -u) groups $$(id -G)\"\n\t@env | sort\n\t@echo done >out\n\
                    test:\n\t@cat out\n\t@grep NoNewPrivs /proc/self/status\n\t@test ! -t 0\n";
    let outcome = Run::build(&[("Makefile", 0o644, makefile)]).run();
    assert_eq!(
        outcome.statuses(),
        "configure: success, update: success, test: success"
    );
    let result = outcome.result();
    assert_eq!(
        (result.name.as_str(), result.version.as_str()),
        ("p", "1.0")
    );
    assert_eq!(result.status, Status::Success);
    assert_eq!(outcome.output.status.code(), Some(0));
    assert!(outcome.log("configure").contains("nothing to configure"));

    let update = outcome.log("update");
    assert!(update.starts_with("+ make -j"), "{update}");
    assert!(!update.contains("uid 0"), "{update}");
    assert!(update.contains("uid "), "{update}");
    assert!(!update.contains("leaked"), "{update}");
    for line in ["LANG=C.UTF-8", "PATH=/usr/local/bin:/usr/bin:/bin:"] {
        assert!(update.contains(line), "{line}: {update}");
    }
    let test = outcome.log("test");
    assert!(test.starts_with("+ make test\ndone\n"), "{test}");
    assert!(test.contains("NoNewPrivs:\t1"), "{test}");

    let names: Vec<&str> = outcome.raw.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["configure", "update", "test"]);
    for (name, raw) in &outcome.raw {
        assert_eq!(String::from_utf8_lossy(raw), outcome.log(name));
    }
}

/// A build that tries all it can to speak with the agent.
fn intruder(address: &str) -> String {
    format!(
        "all:\n\t-printf ': 1\\nname: p\\nversion: 1.0\\nstatus: success\\n' >forged\n\
         \t-curl -sS -m 2 -T forged tftp://{address}/manifest && echo FORGED\n\
         \t-curl -sS -m 2 -o stolen tftp://{address}/task.manifest && echo STOLEN\n\
         \t@test ! -s stolen\n\t@false\n"
    )
}

#[test]
fn a_build_cannot_reach_the_agent() {
    if !testkit::root() || !testkit::program("curl", "tftp") {
        return;
    }
    for (cards, address) in [
        (Cards::Loopback, "127.0.0.1"),
        (Cards::WireAndAnother, "196.254.111.222"),
    ] {
        let mut run = Run::build(&[("Makefile", 0o644, &intruder(address))]);
        run.cards = cards;
        let outcome = run.run();
        let update = outcome.log("update");
        assert_eq!(
            outcome.statuses(),
            "configure: success, update: error",
            "{cards:?}: {update}"
        );
        assert!(
            !update.contains("\nFORGED") && !update.contains("\nSTOLEN"),
            "{cards:?}: {update}"
        );
        // It has really tried.
        assert!(update.contains("curl: ("), "{cards:?}: {update}");
    }
}

#[test]
fn with_a_second_card_a_build_has_a_network() {
    if !testkit::root() {
        return;
    }
    let makefile = "all:\n\t@cat /proc/net/route\n";
    let mut run = Run::build(&[("Makefile", 0o644, makefile)]);
    run.cards = Cards::WireAndAnother;
    assert!(run.run().log("update").contains("other0"));
    // Without one there is the loopback, and it is up.
    let makefile = "all:\n\t@cat /proc/net/dev; cat /proc/net/fib_trie\n";
    let outcome = Run::build(&[("Makefile", 0o644, makefile)]).run();
    let log = outcome.log("update");
    assert!(log.contains("lo:") && log.contains("127.0.0.1"), "{log}");
    assert!(!log.contains("other0") && !log.contains("eth0"), "{log}");
}

#[test]
fn a_packages_own_scripts_build_it() {
    if !testkit::root() {
        return;
    }
    let mut task = task();
    task.target_config = Some("MODE=fast --deep".to_owned());
    let outcome = Run::build(&[
        (
            ".bbot/configure",
            0o755,
            "#!/bin/sh\necho \"args: $*; mode $MODE\"; touch made\n",
        ),
        // It has lost its right to be run.
        (
            ".bbot/update",
            0o644,
            "ls made && echo \"mode $MODE, jobs $BBOT_JOBS, as $USER\"\n",
        ),
        ("Makefile", 0o644, PLAIN),
    ])
    .task(&task)
    .run();
    assert_eq!(
        outcome.statuses(),
        "configure: success, update: success, test: success"
    );
    let log = outcome.log("configure");
    assert!(
        log.contains("with its own scripts\n")
            && log.ends_with("+ ./.bbot/configure --deep\nargs: --deep; mode fast\n"),
        "{log}"
    );
    let log = outcome.log("update");
    let jobs = std::thread::available_parallelism().unwrap();
    assert!(
        log.starts_with(&format!(
            "+ sh ./.bbot/update\nmade\nmode fast, jobs {jobs}, as "
        )),
        "{log}"
    );
    assert_eq!(outcome.log("test"), "info: no .bbot/test: nothing to do\n");

    let outcome = Run::build(&[(".bbot/test", 0o755, "#!/bin/sh\nexit 7\n")])
        .task(&task)
        .run();
    assert_eq!(
        outcome.statuses(),
        "configure: success, update: success, test: error"
    );
    assert!(
        outcome
            .log("configure")
            .ends_with("left out, it is for that: --deep\n"),
        "{}",
        outcome.log("configure")
    );
}

#[test]
fn a_configure_script_written_by_hand_gets_variables_by_its_environment() {
    if !testkit::root() {
        return;
    }
    let configure = "#!/bin/sh\nfor a; do case $a in --static) ;; *) echo \"unknown option: $a\"; exit 1;; esac; done\n\
                     echo \"CC is $CC, flags are $CFLAGS\"\nprintf 'all:\\n\\t@echo \"x.c:1: warning: odd\"\\n' >Makefile\n";
    let mut task = task();
    task.target_config = Some("CC=mycc 'CFLAGS=-O2 -g' --static config.x=y".to_owned());
    let outcome = Run::build(&[
        ("configure", 0o644, configure),
        ("CMakeLists.txt", 0o644, ""),
    ])
    .task(&task)
    .run();
    assert_eq!(
        outcome.statuses(),
        "configure: success, update: warning, test: success"
    );
    assert_eq!(outcome.result().status, Status::Warning);
    let log = outcome.log("configure");
    assert!(
        log.contains("+ sh ./configure --static\nCC is mycc, flags are -O2 -g\n"),
        "{log}"
    );
    assert!(
        log.contains("left out") && log.contains("config.x=y"),
        "{log}"
    );
    assert!(outcome.log("test").contains("nothing to test"));
}

#[test]
fn autoconfs_configure_gets_variables_as_arguments_and_check_is_made() {
    if !testkit::root() {
        return;
    }
    let configure = "#!/bin/sh\n# Generated by GNU Autoconf 2.71 for p 1.0.\necho \"args: $*\"\n\
                     printf 'all:\\n\\ncheck:\\n\\t@echo checking\\ntest:\\n\\t@echo testing\\n' >Makefile\n";
    let mut task = task();
    task.target_config = Some("CC=mycc --enable-x".to_owned());
    let outcome = Run::build(&[("configure", 0o755, configure)])
        .task(&task)
        .run();
    assert!(
        outcome
            .log("configure")
            .contains("args: --enable-x CC=mycc\n")
    );
    assert!(
        outcome.log("test").ends_with("+ make check\nchecking\n"),
        "{}",
        outcome.log("test")
    );
}

#[test]
fn a_cmake_package_is_built() {
    if !testkit::root() || !testkit::program("cmake", "cmake") {
        return;
    }
    let lists = "cmake_minimum_required(VERSION 3.10)\nproject(p C)\nenable_testing()\nadd_executable(p p.c)\n\
                 target_compile_definitions(p PRIVATE N=${N})\nadd_test(NAME runs COMMAND p)\n";
    let program =
        "#include <stdio.h>\nint main(void) { printf(\"N is %d\\n\", N); return N - 7; }\n";
    let mut task = task();
    task.target_config = Some("CFLAGS=-O1 N=7".to_owned());
    let outcome = Run::build(&[("CMakeLists.txt", 0o644, lists), ("p.c", 0o644, program)])
        .task(&task)
        .run();
    assert_eq!(
        outcome.statuses(),
        "configure: success, update: success, test: success"
    );
    assert!(outcome.log("configure").contains("-DN=7"));
    assert!(outcome.log("test").contains("100% tests passed"));
}

#[test]
fn a_syntax_error_is_an_error_with_the_compilers_words() {
    if !testkit::root() || !testkit::program("cc", "cc") {
        return;
    }
    let outcome = Run::build(&[
        ("Makefile", 0o644, "p: p.c\n\tcc -o p p.c\ncheck:\n\t./p\n"),
        ("p.c", 0o644, "int main(void) {\n  return 0\n}\n"),
    ])
    .run();
    assert_eq!(outcome.statuses(), "configure: success, update: error");
    assert_eq!(outcome.result().status, Status::Error);
    assert_eq!(outcome.output.status.code(), Some(0));
    let log = outcome.log("update");
    assert!(
        log.contains("p.c:2:") && log.contains("error: expected"),
        "{log}"
    );
    // Complete to its last line.
    assert!(log.ends_with("error: make exited with code 2\n"), "{log}");
}

#[test]
fn a_step_that_is_killed_is_abnormal_and_reported() {
    if !testkit::root() {
        return;
    }
    let outcome = Run::build(&[(
        "Makefile",
        0o644,
        "all:\n\t@echo before\n\t@kill -9 $$PPID\n",
    )])
    .run();
    assert_eq!(outcome.statuses(), "configure: success, update: abnormal");
    assert_eq!(outcome.result().status, Status::Abnormal);
    assert!(
        outcome
            .log("update")
            .contains("before\nerror: make was killed by signal 9\n")
    );
    assert_eq!(outcome.output.status.code(), Some(2));
}

#[test]
fn a_pattern_that_is_none_ends_the_task() {
    if !testkit::root() {
        return;
    }
    let mut task = task();
    task.warning_regex = vec!["fine".to_owned(), "(unclosed".to_owned()];
    let outcome = Run::build(&[("Makefile", 0o644, PLAIN)]).task(&task).run();
    assert_eq!(outcome.statuses(), "configure: abort");
    assert!(
        outcome.log("configure").contains("\"(unclosed\""),
        "{}",
        outcome.log("configure")
    );
}

#[test]
fn a_tasks_own_pattern_finds_warnings() {
    if !testkit::root() {
        return;
    }
    let mut task = task();
    task.warning_regex = vec!["^checke?d$".to_owned()];
    let outcome = Run::build(&[("Makefile", 0o644, PLAIN)]).task(&task).run();
    assert_eq!(
        outcome.statuses(),
        "configure: success, update: success, test: warning"
    );
}

#[test]
fn what_a_build_leaves_running_neither_holds_it_up_nor_survives() {
    if !testkit::root() {
        return;
    }
    let makefile = "all:\n\t@setsid sh -c 'echo $$$$ >pid; while :; do echo noise; sleep 0.01; done' & sleep 0.2\n\
                    check:\n\t@if kill -0 $$(cat pid); then echo ALIVE; fi\n";
    let outcome = Run::build(&[("Makefile", 0o644, makefile)]).run();
    assert_eq!(
        outcome.statuses(),
        "configure: success, update: success, test: success"
    );
    assert!(outcome.log("update").contains("noise"));
    assert!(
        outcome.log("test").contains("No such process"),
        "{}",
        outcome.log("test")
    );
    assert!(outcome.took < Duration::from_secs(60));
}

#[test]
fn a_log_of_any_bytes_is_kept() {
    if !testkit::root() {
        return;
    }
    let makefile = "all:\n\t@printf 'red \\033[31mtext\\033[0m, bell \\007, bad \\377\\376, tab\\t.\\nno newline'\n";
    let outcome = Run::build(&[("Makefile", 0o644, makefile)]).run();
    let log = outcome.log("update");
    assert!(
        log.contains("\nred text, bell ?, bad ??, tab\t.\nno newline"),
        "{log:?}"
    );
    let (_, raw) = outcome
        .raw
        .iter()
        .find(|(name, _)| name == "update")
        .unwrap();
    let wanted = b"red \x1b[31mtext\x1b[0m, bell \x07, bad \xff\xfe, tab\t.\nno newline\n";
    assert!(raw.ends_with(wanted), "{}", String::from_utf8_lossy(raw));
}

#[test]
fn a_line_of_50_mb_is_cut_in_the_middle() {
    if !testkit::root() {
        return;
    }
    let makefile =
        "all:\n\t@echo first; head -c 50000000 /dev/zero | tr '\\0' x; echo; echo last\n";
    let outcome = Run::build(&[("Makefile", 0o644, makefile)]).run();
    assert_eq!(
        outcome.statuses(),
        "configure: success, update: success, test: success"
    );
    assert!(outcome.result_size <= 10_240_000);
    let log = outcome.log("update");
    assert!(log.len() > 9_000_000);
    assert!(log.contains("\nfirst\nxxx") && log.ends_with("x\nlast\n"));
    assert!(log.contains(" bytes "), "no mark");
}

#[test]
fn without_a_source_or_with_another_one_nothing_is_built() {
    if !testkit::root() {
        return;
    }
    let mut run = Run::build(&[]);
    run.source = None;
    let outcome = run.run();
    assert_eq!(outcome.statuses(), "configure: abort");
    assert!(outcome.log("configure").contains("no source archive"));

    let mut run = Run::build(&[("Makefile", 0o644, PLAIN)]);
    run.sha256 = Some("0".repeat(64));
    let outcome = run.run();
    assert_eq!(outcome.statuses(), "configure: abort");
    assert!(
        outcome
            .log("configure")
            .contains("is not the one that was submitted")
    );

    let outcome = Run::build(&[("README", 0o644, "words")]).run();
    assert_eq!(outcome.statuses(), "configure: error");
    assert!(outcome.log("configure").contains("autoconf, CMake, make"));
}

#[test]
fn what_would_come_out_the_same_is_skipped() {
    if !testkit::root() {
        return;
    }
    let files = [("Makefile", 0o644, PLAIN)];
    let first = Run::build(&files).run();
    let made_with = |outcome: &Outcome| {
        let result = outcome.result();
        (
            result.worker_checksum.clone(),
            result.dependency_checksum.clone(),
        )
    };
    let (worker, dependency) = made_with(&first);
    assert!(worker.is_some() && dependency.is_some());
    let mut again = task();
    again.worker_checksum.clone_from(&worker);
    again.dependency_checksum.clone_from(&dependency);
    let skipped = Run::build(&files).task(&again).run();
    assert_eq!(skipped.result().status, Status::Skip);
    assert_eq!(skipped.statuses(), "");
    assert_eq!(made_with(&skipped), (worker, dependency.clone()));
    // Another source, another worker.
    let other = Run::build(&[("Makefile", 0o644, "all:\n")])
        .task(&again)
        .run();
    assert_eq!(other.result().status, Status::Success);
    assert_ne!(made_with(&other).1, dependency);
    again.worker_checksum = Some("0".repeat(64));
    assert_eq!(
        Run::build(&files).task(&again).run().result().status,
        Status::Success
    );
    // With a network a build may find something else each time; and what was cut short says nothing.
    let mut networked = Run::build(&files).task(&again);
    networked.cards = Cards::WireAndAnother;
    assert_eq!(made_with(&networked.run()), (None, None));
    let killed = Run::build(&[("Makefile", 0o644, "all:\n\t@kill -9 $$PPID\n")]).run();
    assert_eq!(killed.result().status, Status::Abnormal);
    assert_eq!(made_with(&killed), (None, None));
}

#[test]
fn startup_builds_in_the_environment_that_the_task_names() {
    if !testkit::root() {
        return;
    }
    let makefile =
        "all:\n\t@echo \"greeting $$GREETING target $$TARGET leak '$$TEST_LEAK' user $$USER\"\n";
    let script = |greeting: &str| {
        format!(
            "#!/bin/sh\nTARGET=$1; shift\nGREETING={greeting}\nexport TARGET GREETING\nexec \"$@\"\n"
        )
    };
    let scripts = vec![("default", script("hello")), ("other", script("bye"))];
    for (environment, greeting) in [(None, "hello"), (Some("other"), "bye")] {
        let mut task = task();
        task.environment = environment.map(str::to_owned);
        let mut run = Run::build(&[("Makefile", 0o644, makefile)])
            .task(&task)
            .startup();
        run.scripts = scripts.clone();
        let outcome = run.run();
        assert_eq!(
            outcome.statuses(),
            "configure: success, update: success, test: success"
        );
        let wanted = format!("greeting {greeting} target x86_64-linux-gnu leak '' user ");
        assert!(
            outcome.log("update").contains(&wanted),
            "{}",
            outcome.log("update")
        );
    }
    let mut task = task();
    task.environment = Some("missing".to_owned());
    let outcome = Run::build(&[("Makefile", 0o644, makefile)])
        .task(&task)
        .startup()
        .run();
    assert_eq!(outcome.statuses(), "configure: abort");
}

#[test]
fn startup_answers_for_a_build_that_dies_and_for_a_task_that_cannot_be_read() {
    if !testkit::root() {
        return;
    }
    let mut run = Run::build(&[("Makefile", 0o644, PLAIN)]).startup();
    run.scripts = vec![("default", "#!/bin/sh\nkill -SEGV $$\n".to_owned())];
    let outcome = run.run();
    let result = outcome.result();
    assert_eq!(
        (result.name.as_str(), result.status),
        ("p", Status::Abnormal)
    );
    assert!(outcome.log("configure").contains("ended without a result"));

    let mut run = Run::build(&[("Makefile", 0o644, PLAIN)]).startup();
    run.task = b": 1\nname: p\nnonsense\n".to_vec();
    let outcome = run.run();
    let result = outcome.result();
    assert_eq!(
        (result.name.as_str(), result.version.as_str()),
        ("unknown", "0")
    );
    assert_eq!(result.status, Status::Abnormal);
    assert!(
        outcome.log("configure").contains("task.manifest:3:"),
        "{}",
        outcome.log("configure")
    );
}

/// A build process that was ready before the machine was saved gets the task; where there is none any more, or the task
/// needs an environment, one is started as ever.
#[test]
fn a_build_that_was_ready_before_the_machine_was_saved_gets_the_task() {
    if !testkit::root() {
        return;
    }
    let makefile =
        "all:\n\t@echo \"greeting '$$GREETING' leak '$$TEST_LEAK'\"; ls -R ../..; sleep 600 &\n";
    let script = "#!/bin/sh\nGREETING=hello\nexport GREETING\nshift\nexec \"$@\"\n";
    for (saved, environment, is_started) in [
        (Saved::Restored, None, false),
        (Saved::Never, None, false),
        (Saved::WithoutItsBuild, None, true),
        (Saved::Restored, Some("other"), true),
    ] {
        let mut task = task();
        task.environment = environment.map(str::to_owned);
        let mut run = Run::build(&[("Makefile", 0o644, makefile)]);
        run.saved = Some(saved);
        run.scripts = vec![("other", script.to_owned())];
        let outcome = run.task(&task).startup().run();
        assert_eq!(
            outcome.statuses(),
            "configure: success, update: success, test: success"
        );
        let greeting = environment.map_or("", |_| "hello");
        let wanted = format!("greeting '{greeting}' leak ''");
        let update = outcome.log("update");
        assert!(update.contains(&wanted), "{update}");
        let said = String::from_utf8_lossy(&outcome.output.stderr);
        let starts = said.lines().any(|line| line.contains(" --build "));
        assert_eq!(starts, is_started, "{said}");
        // One that was saved would be told its time.
        let lacks = said.contains("makes its time and entropy its own");
        assert_eq!(lacks, saved != Saved::Never, "{said}");
        // It was rehearsed before and after the machine was restored, of which nothing is left.
        assert!(!said.contains("rehears"), "{said}");
        assert!(!update.contains("rehears"), "{update}");
    }
}

/// A build that is done is not lost since the agent's host has no room for its result for a while.
#[test]
fn a_result_waits_for_room_on_the_agents_host() {
    if !testkit::root() {
        return;
    }
    let mut run = Run::build(&[("Makefile", 0o644, PLAIN)]);
    run.host_is_full = true;
    let outcome = run.startup().run();
    assert_eq!(outcome.result().status, Status::Success);
    assert!(outcome.output.status.success());
    let said = String::from_utf8_lossy(&outcome.output.stderr).into_owned();
    assert!(
        said.contains("try later (No space left on device"),
        "{said}"
    );
}
