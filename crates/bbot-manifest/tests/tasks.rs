//! Task requests, responses and tasks: what they read, what they refuse and
//! where, what they write for each era.

mod refused;

use bbot_manifest::{
    Auxiliary, Era, InteractiveMode, MachineRole, RepositoryType, Task, TaskRequest, TaskResponse,
};
use refused::refused;

const HEX: &str = "8d969eef6ecad3c29a3a629280e686cf0c3f5d5a86aff3ca12020c923adc6c92";

/// The example that the original's developers use.
const REQUEST: &str = ": 1
agent: bot
toolchain-name: dev
toolchain-version: 0.17.0-a.1
:
id: a2b0c4...b855
name: linux_debian_12-gcc_13.1
summary: Linux Debian 12 GCC 13.1
";

const LATER_REQUEST: &str = ": 1
agent: build-host-07
toolchain-name: queue
toolchain-version: 0.17.0
interactive-mode: both
interactive-login: ssh -p 2222 build@build-host-07.example.net; 10 minutes\\
 idle
fingerprint: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
auxiliary-ram: 8388608
:
id: linux_debian_12-gcc_12-1.7
name: linux_debian_12-gcc_12
summary: Debian 12 (bookworm) with GCC 12.2
role: build
ram-minimum: 4194304
ram-maximum: 16777216
:
id: postgresql-1
name: x86_64_linux_debian_12-postgresql_16
summary: PostgreSQL 16
role: auxiliary
";

#[test]
fn task_request() {
    let request = TaskRequest::parse(REQUEST.as_bytes(), "request").unwrap();
    assert_eq!(request.agent, "bot");
    assert_eq!(request.toolchain_name, "dev");
    assert_eq!(request.toolchain_version.to_string(), "0.17.0-a.1");
    assert_eq!(request.fingerprint, None);
    assert_eq!(request.machines.len(), 1);
    assert_eq!(request.machines[0].name, "linux_debian_12-gcc_13.1");
    assert_eq!(request.machines[0].role, None);
    assert_eq!(request.serialize(Era::Later).unwrap(), REQUEST);
    assert_eq!(request.serialize(Era::Y2017).unwrap(), REQUEST);

    let request = TaskRequest::parse(LATER_REQUEST.as_bytes(), "request").unwrap();
    assert_eq!(request.interactive_mode, Some(InteractiveMode::Both));
    assert_eq!(request.auxiliary_ram, Some(8_388_608));
    assert_eq!(request.machines[0].role, Some(MachineRole::Build));
    assert_eq!(request.machines[0].ram_maximum, Some(16_777_216));
    assert_eq!(request.machines[1].role, Some(MachineRole::Auxiliary));
    assert_eq!(request.serialize(Era::Later).unwrap(), LATER_REQUEST);
    assert_eq!(
        request.serialize(Era::Y2017).unwrap(),
        ": 1
agent: build-host-07
toolchain-name: queue
toolchain-version: 0.17.0
fingerprint: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
:
id: linux_debian_12-gcc_12-1.7
name: linux_debian_12-gcc_12
summary: Debian 12 (bookworm) with GCC 12.2
:
id: postgresql-1
name: x86_64_linux_debian_12-postgresql_16
summary: PostgreSQL 16
"
    );
}

#[test]
fn task_request_ignores_what_it_does_not_know() {
    let input = REQUEST
        .replace("agent: bot\n", "agent: bot\nfuture: 1\nfuture: 2\n")
        .replace("summary:", "colour: red\nsummary:");
    let known = TaskRequest::parse(REQUEST.as_bytes(), "").unwrap();
    assert_eq!(TaskRequest::parse(input.as_bytes(), "").unwrap(), known);
}

#[test]
fn task_request_refused() {
    let request = |lines: &str| format!(": 1\n{lines}\n:\nid: i\nname: n\nsummary: s\n");
    let base = "agent: a\ntoolchain-name: t\ntoolchain-version: 1.2.3\n";
    let with = |line: &str| request(&format!("{base}{line}"));
    refused(
        TaskRequest::parse,
        &[
            ("", "1:1: error: task request manifest expected"),
            ("# nothing\n", "2:1: error: task request manifest expected"),
            ("agent: a\n", "1:1: error: format version pair expected"),
            (": 1\nagent\n", "2:6: error: ':' expected after name"),
            (": 2\n", "1:3: error: unsupported format version 2"),
            (
                &request("toolchain-name: t\ntoolchain-version: 1.2.3"),
                "4:1: error: task request has no required field `agent`",
            ),
            (
                &request("agent:\ntoolchain-name: t\ntoolchain-version: 1.2.3"),
                "2:7: error: invalid task request field `agent`: the value is empty",
            ),
            (
                &request("agent: a\ntoolchain-name: t\ntoolchain-version: 1.2"),
                "4:20: error: invalid task request field `toolchain-version`: '.' expected after \
                 minor version",
            ),
            (
                &with("agent: b"),
                "5:1: error: task request field `agent` occurs more than once (first in line 2)",
            ),
            (
                &with("interactive-mode: maybe"),
                "5:19: error: invalid task request field `interactive-mode`: none of `false`, \
                 `true` and `both`",
            ),
            (
                &with(&format!("fingerprint: {}", HEX.to_uppercase())),
                "5:14: error: invalid task request field `fingerprint`: not 64 lower-case \
                 hexadecimal digits",
            ),
            (
                &with("auxiliary-ram: +5"),
                "5:16: error: invalid task request field `auxiliary-ram`: not an unsigned number",
            ),
            (
                ": 1\nagent: a\ntoolchain-name: t\ntoolchain-version: 1.2.3\n",
                "5:1: error: machine header manifest expected",
            ),
            (
                &format!("{}:\nid: j\n", with("")),
                "12:1: error: machine header has no required field `name`",
            ),
            (
                &with("").replace("summary: s", "summary: s\nrole: cook"),
                "10:7: error: invalid machine header field `role`: neither `build` nor `auxiliary`",
            ),
            (
                &with("").replace("agent: a", &format!("agent: {}", "x".repeat(257))),
                "2:8: error: invalid task request field `agent`: the value has more than 256 bytes",
            ),
            (
                &with("").replace(
                    "toolchain-name: t",
                    &format!("toolchain-name: {}", "x".repeat(257)),
                ),
                "3:17: error: invalid task request field `toolchain-name`: the value has more than \
                 256 bytes",
            ),
            (
                &with("").replace("id: i", &format!("id: {}", "x".repeat(257))),
                "7:5: error: invalid machine header field `id`: the value has more than 256 bytes",
            ),
            (
                &with("").replace("name: n", &format!("name: {}", "x".repeat(257))),
                "8:7: error: invalid machine header field `name`: the value has more than 256 bytes",
            ),
            (
                &with("").replace("summary: s", &format!("summary: {}", "x".repeat(513))),
                "9:10: error: invalid machine header field `summary`: the value has more than 512 \
                 bytes",
            ),
        ],
    );
}

// Task response and task.

const RESPONSE_2017: &str = ": 1
session: hello/1.0.0/linux-gcc/0.7.0/1503950000000000000
result-url: https://example.org/?build-result
:
name: hello
version: 1.0.0
repository: https://example.org/1/testing
trust: AB:CD
machine: linux-gcc
target: x86_64-linux-gnu
config: config.cc.coptions=\"-O2 -g\"
warning-regex: \"^warning: .+\" C4\\d+
";

const RESPONSE_LATER: &str = ": 1
session: libhello/1.4.0,linux_debian_12-gcc_12,x86_64-linux-gnu,1700736000
challenge: 8d969eef6ecad3c29a3a629280e686cf0c3f5d5a86aff3ca12020c923adc6c92
result-url: https://ci.example.org/@9e1c/pkg?build-result
bindist-upload-url: https://ci.example.org/@9e1c/pkg?upload=bindist
agent-checksum: 3
:
name: libhello
version: 1.4.0-b.2.20240117093012.4f1c2a9be07d
repository-url: https://git.example.org/hello/libhello.git#master@4f1c2a9
repository-type: git
trust: yes
requires: c++14
tests: libhello-tests == 1.4.0
examples: libhello-examples
benchmarks: libhello-benchmarks
dependency-checksum: 5feceb66
machine: linux_debian_12-gcc_12
auxiliary-machine: postgresql_16
auxiliary-machine-mysql: mysql_8
target: x86_64-linux-gnu
environment: default
auxiliary-environment: \\
DATABASE_HOST=10.0.0.7
DATABASE_USER='bbot'
\\
target-config: config.cc.coptions=\"-O3 -fsanitize=address\"
package-config: config.hello.fancy=true
host: true
warning-regex: \"^warning: .+\" C4\\d+
interactive: update:warning
worker-checksum: 1
";

#[test]
fn task_response_of_2017() {
    let response = TaskResponse::parse(RESPONSE_2017.as_bytes(), "response").unwrap();
    let task = response.task.as_ref().unwrap();
    assert_eq!(response.challenge, None);
    assert_eq!(task.repository_url, "https://example.org/1/testing");
    assert_eq!(
        task.target_config.as_deref(),
        Some("config.cc.coptions=\"-O2 -g\"")
    );
    assert_eq!(task.warning_regex, ["^warning: .+", r"C4\d+"]);
    assert_eq!(task.trust, ["AB:CD"]);
    assert_eq!(response.serialize(Era::Y2017).unwrap(), RESPONSE_2017);
    let later = response.serialize(Era::Later).unwrap();
    assert!(later.contains("\nrepository-url: https://example.org/1/testing\n"));
    assert!(later.contains("\ntarget-config: config.cc.coptions=\"-O2 -g\"\n"));
    assert_eq!(TaskResponse::parse(later.as_bytes(), "").unwrap(), response);
}

#[test]
fn task_response_of_today() {
    let response = TaskResponse::parse(RESPONSE_LATER.as_bytes(), "response").unwrap();
    assert_eq!(response.challenge.as_deref(), Some(HEX));
    assert_eq!(
        response.upload_urls["bindist"],
        "https://ci.example.org/@9e1c/pkg?upload=bindist"
    );
    let task = response.task.as_ref().unwrap();
    assert_eq!(task.repository_type, Some(RepositoryType::Git));
    assert_eq!(task.host, Some(true));
    assert_eq!(task.tests, ["libhello-tests == 1.4.0"]);
    let auxiliary = |name: &str, value: &str| Auxiliary {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    assert_eq!(
        task.auxiliary_machines,
        [
            auxiliary("", "postgresql_16"),
            auxiliary("mysql", "mysql_8")
        ]
    );
    assert_eq!(
        task.auxiliary_environments,
        [auxiliary(
            "",
            "DATABASE_HOST=10.0.0.7\nDATABASE_USER='bbot'"
        )]
    );
    assert_eq!(response.serialize(Era::Later).unwrap(), RESPONSE_LATER);
    assert_eq!(
        response.serialize(Era::Y2017).unwrap(),
        ": 1
session: libhello/1.4.0,linux_debian_12-gcc_12,x86_64-linux-gnu,1700736000
challenge: 8d969eef6ecad3c29a3a629280e686cf0c3f5d5a86aff3ca12020c923adc6c92
result-url: https://ci.example.org/@9e1c/pkg?build-result
:
name: libhello
version: 1.4.0-b.2.20240117093012.4f1c2a9be07d
repository: https://git.example.org/hello/libhello.git#master@4f1c2a9
trust: yes
machine: linux_debian_12-gcc_12
target: x86_64-linux-gnu
config: config.cc.coptions=\"-O3 -fsanitize=address\"
warning-regex: \"^warning: .+\" C4\\d+
"
    );
}

#[test]
fn no_task() {
    let none = TaskResponse::none();
    for era in [Era::Y2017, Era::Later] {
        assert_eq!(none.serialize(era).unwrap(), ": 1\nsession:\n");
    }
    assert_eq!(TaskResponse::parse(b": 1\nsession:\n", "").unwrap(), none);
    // Nothing else is written, whatever else is set.
    let odd = TaskResponse {
        result_url: Some("https://example.org/".to_owned()),
        task: Some(Task::new("n", "1", "r", "m", "t")),
        ..TaskResponse::none()
    };
    assert_eq!(odd.serialize(Era::Later).unwrap(), ": 1\nsession:\n");
}

#[test]
fn task_response_refused() {
    let task = ":\nname: n\nversion: 1\nrepository: r\nmachine: m\ntarget: t\n";
    let response = |lines: &str| format!(": 1\n{lines}\n{task}");
    let bad_challenge = |challenge: &str| {
        response(&format!(
            "session: s\nresult-url: u\nchallenge: {challenge}"
        ))
    };
    let why = "4:12: error: invalid task response field `challenge`: not 64 lower-case \
               hexadecimal digits";
    refused(
        TaskResponse::parse,
        &[
            (
                ": 1\n",
                "2:1: error: task response has no required field `session`",
            ),
            (
                &response("session:"),
                "3:1: error: unexpected manifest behind the last one",
            ),
            (
                ": 1\nsession:\nchallenge: x\n",
                "3:1: error: task response field `challenge` with an empty session",
            ),
            (
                ": 1\nsession:\nx-upload-url: y\n",
                "3:1: error: task response field `x-upload-url` with an empty session",
            ),
            (
                ": 1\nsession: s\nresult-url: u\n",
                "4:1: error: task manifest expected",
            ),
            (
                &response("session: s"),
                "3:1: error: task response has no required field `result-url`",
            ),
            (
                &format!("{}:\nname: n\n", response("session: s\nresult-url: u")),
                "10:1: error: unexpected manifest behind the last one",
            ),
            (&bad_challenge("x"), why),
            (&bad_challenge(&HEX[1..]), why),
            (&bad_challenge(&format!("{HEX}0")), why),
            (&bad_challenge(&HEX.to_uppercase()), why),
            (
                &response("session: s\nresult-url: u\nx-upload-url: a\nx-upload-url: b"),
                "5:1: error: task response field `x-upload-url` occurs more than once (first in \
                 line 4)",
            ),
        ],
    );
    // A challenge of two lines must not get past the check either.
    let two_lines = bad_challenge(&format!("\\\n{HEX}\nx\n\\"));
    assert!(TaskResponse::parse(two_lines.as_bytes(), "").is_err());
}

fn task_with(lines: &str) -> String {
    format!(": 1\nname: n\nversion: 1.2.3\nmachine: m\ntarget: t\n{lines}\n")
}

#[test]
fn task_spellings() {
    let parse = |lines: &str| Task::parse(task_with(lines).as_bytes(), "").unwrap();
    let older = parse("repository: r\nconfig: c");
    let later = parse("repository-url: r\ntarget-config: c");
    assert_eq!(older, later);
    assert_eq!(older.target_config.as_deref(), Some("c"));

    let regexes = |lines: &str| parse(&format!("repository: r\n{lines}")).warning_regex;
    for (lines, expected) in [
        ("", &[][..]),
        ("warning-regex:", &[]),
        ("warning-regex: a", &["a"]),
        ("warning-regex: a 'b c' d", &["a", "b c", "d"]),
        (r#"warning-regex: "^\w+: warning""#, &[r"^\w+: warning"]),
        (
            "warning-regex: ^warning: .+\nwarning-regex: ^.+: warning: .+",
            &["^warning: .+", "^.+: warning: .+"],
        ),
        (
            "warning-regex: 'a b'\nwarning-regex: unused '.+'\nwarning-regex: it's",
            &["a b", "unused '.+'", "it's"],
        ),
    ] {
        assert_eq!(regexes(lines), expected, "{lines}");
    }

    // Versions are kept to the letter.
    for version in [
        "1.2.3",
        "01.2",
        "+2-1.2-beta.3+4",
        "0",
        "2~1.3",
        "1.0.0-a.0.z",
        "2024c",
    ] {
        let input = task_with("repository: r").replace("1.2.3", version);
        let task = Task::parse(input.as_bytes(), "").unwrap();
        assert_eq!(task.version, version);
    }

    // Names that only look like auxiliary ones are unknown.
    let task = parse("repository: r\nauxiliary-machines: a\nauxiliary-machine-: b");
    assert_eq!(task.auxiliary_machines, []);
}

#[test]
fn task_refused() {
    refused(
        Task::parse,
        &[
            (
                &task_with(""),
                "7:1: error: task has no required field `repository-url`",
            ),
            (
                &task_with("repository: r\nrepository-url: s"),
                "6:1: error: task field `repository` means the same as `repository-url`: only one may be given",
            ),
            (
                &task_with("repository: r\ntarget-config: a\nconfig: b"),
                "8:1: error: task field `config` means the same as `target-config`: only one may be given",
            ),
            (
                &task_with("repository-url: r\nrepository-type: svn"),
                "7:18: error: invalid task field `repository-type`: none of `pkg`, `git` and `dir`",
            ),
            (
                &task_with("repository: r\nhost: 1"),
                "7:7: error: invalid task field `host`: neither `true` nor `false`",
            ),
            (
                &task_with("repository: r\nwarning-regex: a 'b"),
                "7:16: error: invalid task field `warning-regex`: unterminated quote at character \
                 3 of `a 'b`: close it, or remove it",
            ),
            (
                &task_with("repository: r\nmachine: m"),
                "7:1: error: task field `machine` occurs more than once (first in line 4)",
            ),
            (
                &task_with("repository: r\nauxiliary-machine-x: a\nauxiliary-machine-x: b"),
                "8:1: error: task field `auxiliary-machine-x` occurs more than once (first in \
                 line 7)",
            ),
            (
                &task_with("repository: r").replace("1.2.3", "1..2"),
                "3:10: error: invalid task field `version`: unexpected '.' character position",
            ),
            (
                &task_with("repository: r").replace("target: t", "target: \\\n\\"),
                "6:1: error: invalid task field `target`: the value is empty",
            ),
            (
                &format!("{}: 1\nname: n\n", task_with("repository: r")),
                "7:1: error: unexpected manifest behind the last one",
            ),
        ],
    );
}
