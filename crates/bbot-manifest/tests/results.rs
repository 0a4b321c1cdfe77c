//! Results and the requests that carry them.

mod refused;

use bbot_manifest::{
    BuildResult, Era, OPERATION_LIMIT, OPERATIONS, OperationResult, ResultRequest, Status,
};
use refused::refused;

const RESULT: &str = ": 1
name: libhello
version: 1.4.0+3
status: warning
configure-status: success
update-status: warning
test-installed-status: skip
worker-checksum: 1
dependency-checksum: 5feceb66
configure-log: \\
+ b configure
done
\\
update-log: \\
hello.cxx:42:7: warning: unused variable ‘path’
   42 |   int path; // C:\\\\

\\
test-installed-log:
";

#[test]
fn result() {
    let result = BuildResult::parse(RESULT.as_bytes(), "result").unwrap();
    let operation = |name: &str, status, log: &str| OperationResult {
        name: name.to_owned(),
        status,
        log: log.to_owned(),
    };
    assert_eq!(
        result.operations,
        [
            operation("configure", Status::Success, "+ b configure\ndone"),
            operation(
                "update",
                Status::Warning,
                "hello.cxx:42:7: warning: unused variable ‘path’\n   42 |   int path; // C:\\\n"
            ),
            operation("test-installed", Status::Skip, ""),
        ]
    );
    assert_eq!(result.status, Status::Warning);
    assert_eq!(result.serialize(Era::Later).unwrap(), RESULT);
    let older = result.serialize(Era::Y2017).unwrap();
    assert!(!older.contains("checksum"));
    assert!(older.contains("\ntest-installed-status: success\n"));
}

#[test]
fn result_in_any_order() {
    // The newer introducer, logs mixed with statuses, checksums behind logs.
    let input = ": 1
update-log:
\\
no
\\
status: error
update-status: error
configure-status: success
name: n
version: anything at all
configure-log: yes
worker-checksum: 1
";
    let result = BuildResult::parse(input.as_bytes(), "").unwrap();
    assert_eq!(result.operations[0].name, "update");
    assert_eq!(result.operations[0].log, "no");
    assert_eq!(result.operations[1].log, "yes");
    assert_eq!(result.version, "anything at all");
    assert_eq!(result.worker_checksum.as_deref(), Some("1"));
}

#[test]
fn result_of_a_worker_that_knows_nothing() {
    let input = b": 1\nname: unknown\nversion: 0\nstatus: abnormal\n";
    let result = BuildResult::parse(input, "").unwrap();
    assert_eq!(result, BuildResult::new("unknown", "0", Status::Abnormal));
    assert_eq!(result.serialize(Era::Y2017).unwrap().as_bytes(), input);
}

#[test]
fn a_log_that_nobody_cleaned_is_written_clean() {
    let mut result = BuildResult::new("n", "1", Status::Error);
    result.operations.push(OperationResult {
        name: "update".to_owned(),
        status: Status::Error,
        log: "\u{1b}[1merror:\u{1b}[0m \u{7}\u{feff}no\n".to_owned(),
    });
    let text = result.serialize(Era::Later).unwrap();
    assert!(
        text.ends_with("update-log: \\\nerror: ??no\n\n\\\n"),
        "{text}"
    );
    // Everything else is refused: nobody may write it so.
    result.name.push('\u{7}');
    assert_eq!(
        result.serialize(Era::Later).unwrap_err().to_string(),
        "cannot write manifest field `name`: invalid value: invalid Unicode codepoint (control)"
    );
}

#[test]
fn result_refused() {
    let base = ": 1\nname: n\nversion: 1\nstatus: success\n";
    let with = |lines: &str| format!("{base}{lines}\n");
    refused(
        BuildResult::parse,
        &[
            (
                ": 1\nname: n\nversion: 1\n",
                "4:1: error: result has no required field `status`",
            ),
            (
                ": 1\nname: n\nversion: 1\nstatus: fine\n",
                "4:9: error: invalid result field `status`: unknown status `fine`",
            ),
            (
                &with("a-status: Success"),
                "5:11: error: invalid result field `a-status`: unknown status `Success`",
            ),
            (
                &with("a-log: x"),
                "5:1: error: result field `a-log` without a status of that operation",
            ),
            (
                &with("a-status: skip\na-status: skip"),
                "6:1: error: result field `a-status` occurs more than once (first in line 5)",
            ),
            (
                &with("a-status: skip\na-log: x\nb-status: skip\na-log: y"),
                "8:1: error: result field `a-log` occurs more than once (first in line 6)",
            ),
            (
                &with("a-status: skip\na-log: \\\nx\n\u{1b}[m\n\\"),
                "8:1: error: invalid manifest value: invalid Unicode codepoint (control)",
            ),
        ],
    );
}

#[test]
fn status_order_and_words() {
    use Status::{Abnormal, Abort, Error, Interrupt, Skip, Success, Warning};
    let order = [Skip, Success, Warning, Error, Abort, Abnormal, Interrupt];
    assert!(order.is_sorted());
    assert_eq!(order, Status::ALL);
    for status in order {
        assert_eq!(status.to_string().parse(), Ok(status));
        assert_eq!(status.is_built(), status <= Warning);
        assert_eq!(status.for_era(Era::Later), status);
    }
    assert_eq!(Skip.for_era(Era::Y2017), Success);
    assert_eq!(Interrupt.for_era(Era::Y2017), Abort);
    assert_eq!(Abnormal.for_era(Era::Y2017), Abnormal);
    assert!("".parse::<Status>().is_err());
}

/// The example of the original's developers.
const RESULT_REQUEST: &str = ": 1
session: <SESSION>
agent-checksum: 1
:
name: foo
version: 1.0.0
status: success
";

#[test]
fn result_request() {
    let request = ResultRequest::parse(RESULT_REQUEST.as_bytes(), "").unwrap();
    assert_eq!(request.session, "<SESSION>");
    assert_eq!(request.challenge, None);
    assert_eq!(request.agent_checksum.as_deref(), Some("1"));
    assert_eq!(request.serialize(Era::Later).unwrap(), RESULT_REQUEST);
    assert_eq!(
        request.serialize(Era::Y2017).unwrap(),
        RESULT_REQUEST.replace("agent-checksum: 1\n", "")
    );
}

#[test]
fn result_request_with_an_answer() {
    let mut request = ResultRequest::parse(RESULT_REQUEST.as_bytes(), "").unwrap();
    // The lengths of keys from 1024 to 4096 bits, and the edges of a line.
    for length in [1, 56, 57, 58, 113, 114, 115, 128, 256, 512] {
        let answer: Vec<u8> = (0..=250).cycle().take(length).collect();
        request.challenge = Some(answer);
        let text = request.serialize(Era::Y2017).unwrap();
        let manifests = bbot_manifest::parse(text.as_bytes()).unwrap();
        assert_eq!(manifests[0].pairs[1].name, "challenge");
        let lines: Vec<&str> = manifests[0].pairs[1].value.split('\n').collect();
        let (last, full) = lines.split_last().unwrap();
        assert!(full.iter().all(|line| line.len() == 76), "{text}");
        assert!((1..=76).contains(&last.len()), "{text}");
        assert_eq!(lines.concat().len(), usize::div_ceil(length, 3) * 4);
        assert_eq!(lines.len() > 1, length > 57, "{text}");
        let read = ResultRequest::parse(text.as_bytes(), "").unwrap();
        assert_eq!(read.challenge, request.challenge);
    }
}

#[test]
fn result_request_refused() {
    refused(
        ResultRequest::parse,
        &[
            (
                ": 1\nsession:\n:\nname: n\nversion: 1\nstatus: skip\n",
                "2:9: error: invalid result request field `session`: the value is empty",
            ),
            (
                ": 1\nsession: s\nchallenge: a?b=\n:\nname: n\nversion: 1\nstatus: skip\n",
                "3:12: error: invalid result request field `challenge`: not base64: Invalid \
                 symbol 63, offset 1.",
            ),
            (": 1\nsession: s\n", "3:1: error: result manifest expected"),
        ],
    );
}

/// What a hostile guest may upload is bounded, and so is what an error repeats.
#[test]
fn nothing_grows_without_bound() {
    let many = ": 1\n".to_owned() + &"a:\n".repeat(200_000);
    let error = BuildResult::parse(many.as_bytes(), "s").unwrap_err();
    assert_eq!(
        error.to_string(),
        "s:100001:1: error: more than 100000 fields"
    );
    let word = format!(
        ": 1\nstatus: {}\nname: n\nversion: 1\n",
        "x".repeat(1_000_000)
    );
    let error = BuildResult::parse(word.as_bytes(), "s")
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("s:2:9: error: invalid result field `status`: unknown status `xx"));
    assert!(error.len() < 300, "{}", error.len());
    let operations = |names: &[String]| {
        let statuses: String = names
            .iter()
            .map(|n| format!("{n}-status: skip\n"))
            .collect();
        let text = format!(": 1\nname: n\nversion: 1\nstatus: skip\n{statuses}");
        BuildResult::parse(text.as_bytes(), "s").map_err(|e| e.to_string())
    };
    assert!(operations(&["x".repeat(OPERATION_LIMIT)]).is_ok());
    let error = operations(&["x".repeat(1_000_000)]).unwrap_err();
    assert!(
        error.starts_with("s:5:1: error: result field `xxx"),
        "{error}"
    );
    assert!(
        error.ends_with("...` names an operation with more than 128 bytes") && error.len() < 300,
        "{error}"
    );
    let mut many: Vec<String> = (0..OPERATIONS).map(|n| format!("o{n}")).collect();
    assert!(operations(&many).is_ok());
    many.push("last".to_owned());
    assert_eq!(
        operations(&many).unwrap_err(),
        "s:261:1: error: result field `last-status` is one of more than 256 operations"
    );
}
