//! From what a worker uploaded to the result that a controller takes.
//!
//! Pure: name and version always come from the task, what cannot be read is
//! `abnormal`, no log is lost that can be kept, and the whole fits the limit.

use std::io::Read as _;

use bbot_manifest::{
    BuildResult, Era, OPERATIONS, OperationResult, ResultRequest, SerializeError, Status, Task,
    cut_middle, log_text,
};

/// What controllers of the original take: a body must be smaller than this.
pub const STRANGERS_LIMIT: usize = 10_240_000;

/// What a result may be when it is unpacked (docs/protocol.md, section 3).
pub const UNPACKED_LIMIT: u64 = 64 * 1024 * 1024;

/// The operation under which the agent says why there is no better result. Its
/// name is opaque to controllers.
pub const AGENT_OPERATION: &str = "agent";

/// The operation under which it says, to a controller of ours, why the machine of a task failed before its worker asked
/// for anything.
pub const MACHINE_OPERATION: &str = "machine";

/// A result, and what was wrong with what the worker uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// What is posted.
    pub result: BuildResult,
    /// Why it is abnormal although the worker uploaded something.
    pub fault: Option<String>,
}

/// A result that the agent itself makes: the reason is the log.
pub fn of_agent(task: &Task, status: Status, reason: &str) -> BuildResult {
    let mut result = BuildResult::new(&task.name, &task.version, status);
    result.operations.push(reason_operation(status, reason));
    result
}

/// The result of a build that ended without one of its own: the reason, and then the
/// log until there.
pub fn cut_short(task: &Task, status: Status, reason: &str, log: &str) -> BuildResult {
    let mut result = of_agent(task, status, reason);
    append_log(&mut result, log);
    result
}

/// Puts the log of a build below the reason for which nothing else is known of it.
pub fn append_log(result: &mut BuildResult, log: &str) {
    if let (false, Some(last)) = (log.is_empty(), result.operations.last_mut()) {
        last.log.push_str("the log of the build until then:\n\n");
        last.log.push_str(log);
    }
}

/// Puts what a guest said last on its console below the reason for which nothing else
/// is known of its build.
pub fn append_console(result: &mut BuildResult, words: &str) {
    if let (false, Some(last)) = (words.trim().is_empty(), result.operations.last_mut()) {
        if !last.log.ends_with('\n') {
            last.log.push('\n');
        }
        last.log
            .push_str("the end of what the machine said on its console:\n\n");
        last.log.push_str(&log_text(words.as_bytes()));
        last.log.push('\n');
    }
}

/// What is said of a task that is given back: why, under the operation that tells what kept it from being done.
pub fn not_done(task: &Task, operation: &str, reason: &str) -> BuildResult {
    let mut result = BuildResult::new(&task.name, &task.version, Status::Interrupt);
    let why = reason_operation(Status::Abort, reason);
    let name = operation.to_owned();
    result.operations.push(OperationResult { name, ..why });
    result
}

fn reason_operation(status: Status, reason: &str) -> OperationResult {
    OperationResult {
        name: AGENT_OPERATION.to_owned(),
        status,
        log: format!("{}\n", log_text(reason.as_bytes())),
    }
}

/// Unpacks `result.manifest.lz4`.
///
/// # Errors
///
/// When it is no LZ4 frame, or unpacks to more than [`UNPACKED_LIMIT`].
pub fn unpack(packed: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    lz4_flex::frame::FrameDecoder::new(packed)
        .take(UNPACKED_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| format!("the result is no LZ4 frame: {e}"))?;
    if bytes.len() as u64 > UNPACKED_LIMIT {
        return Err(format!(
            "the result unpacks to more than {UNPACKED_LIMIT} bytes"
        ));
    }
    Ok(bytes)
}

/// Reads an uploaded result against the task that it answers.
pub fn judge(task: &Task, uploaded: &[u8]) -> Judged {
    // A worker that does not clean its logs must not lose them.
    let parsed = BuildResult::parse(uploaded, "result manifest").or_else(|first| {
        BuildResult::parse(log_text(uploaded).as_bytes(), "result manifest").map_err(|_| first)
    });
    let mut result = match parsed {
        Ok(result) => result,
        Err(e) => {
            let fault = e.to_string();
            return Judged {
                result: of_agent(task, Status::Abnormal, &fault),
                fault: Some(fault),
            };
        }
    };
    // A worker that could not read its task knows neither name nor version (the
    // seed); nobody else may answer with other ones.
    let unknown = result.status == Status::Abnormal && result.version == "0";
    let fault =
        (!unknown && (result.name != task.name || result.version != task.version)).then(|| {
            format!(
                "the task is {} {}, but the result is for {} {}",
                task.name, task.version, result.name, result.version
            )
        });
    if let Some(fault) = &fault {
        result.status = Status::Abnormal;
        result.operations.retain(|o| o.name != AGENT_OPERATION);
        // With room for one more.
        result.operations.truncate(OPERATIONS - 1);
        result
            .operations
            .push(reason_operation(Status::Abnormal, fault));
    }
    result.name.clone_from(&task.name);
    result.version.clone_from(&task.version);
    Judged { result, fault }
}

/// The body of the post, smaller than `limit`: where the logs are too long, their
/// middles are cut, the longest first.
///
/// # Errors
///
/// When a value that is not a log cannot be written.
pub fn fit(request: &ResultRequest, era: Era, limit: usize) -> Result<String, SerializeError> {
    let mut request = request.clone();
    for operation in &mut request.result.operations {
        // What the manifest will hold, so that lengths are those on the wire.
        operation.log = log_text(operation.log.as_bytes());
    }
    let whole: Vec<String> = request
        .result
        .operations
        .iter_mut()
        .map(|o| std::mem::take(&mut o.log))
        .collect();
    let lengths: Vec<usize> = whole.iter().map(String::len).collect();
    let bare = request.serialize(era)?;
    // On the wire a log is longer by its escapes: the room shrinks until it fits.
    let may_take = limit.saturating_sub(bare.len() + 1);
    let mut room = lengths.iter().sum::<usize>().min(may_take);
    while room > 0 {
        let level = fair_level(&lengths, room);
        for (operation, log) in request.result.operations.iter_mut().zip(&whole) {
            operation.log = cut_middle(log, level).into_owned();
        }
        let body = request.serialize(era)?;
        if body.len() < limit {
            return Ok(body);
        }
        let takes = (body.len() - bare.len()).max(1);
        let share = (may_take as u128 * room as u128 / takes as u128) * 99 / 100;
        room = usize::try_from(share).unwrap_or(room).min(room - 1);
    }
    Ok(bare)
}

/// The greatest length such that logs cut to it have `room` together.
fn fair_level(lengths: &[usize], room: usize) -> usize {
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable();
    let mut room = room;
    for (place, length) in sorted.iter().enumerate() {
        let share = room / (sorted.len() - place);
        if *length > share {
            return share;
        }
        room -= length;
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn task() -> Task {
        Task::new("libhello", "1.0.0", "http://r", "linux", "x86_64-linux-gnu")
    }

    fn result(name: &str, version: &str, status: Status) -> BuildResult {
        let mut result = BuildResult::new(name, version, status);
        result.operations.push(OperationResult {
            name: "update".to_owned(),
            status,
            log: "the log\n".to_owned(),
        });
        result
    }

    fn judged(result: &BuildResult) -> Judged {
        judge(&task(), result.serialize(Era::Later).unwrap().as_bytes())
    }

    #[test]
    fn a_good_result_is_taken_as_it_is() {
        let good = result("libhello", "1.0.0", Status::Warning);
        assert_eq!(
            judged(&good),
            Judged {
                result: good,
                fault: None
            }
        );
    }

    /// What a controller would refuse is never posted, whatever the guest has uploaded.
    #[test]
    fn what_is_judged_can_be_posted() {
        let with = |names: Vec<String>| {
            let mut text = ": 1\nname: other\nversion: 1.0.0\nstatus: success\n".to_owned();
            for name in names {
                text.push_str(&format!("{name}-status: success\n"));
            }
            text
        };
        let numbered = |count| with((0..count).map(|n| format!("o{n}")).collect());
        for (text, fault) in [
            (numbered(OPERATIONS), "the task is"),
            (numbered(OPERATIONS + 1), "more than 256 operations"),
            (with(vec!["x".repeat(128)]), "the task is"),
            (with(vec!["x".repeat(1_000_000)]), "more than 128 bytes"),
        ] {
            let judged = judge(&task(), text.as_bytes());
            let told = judged.fault.unwrap();
            assert!(told.contains(fault) && told.len() < 400, "{fault}: {told}");
            assert_eq!(judged.result.status, Status::Abnormal);
            let posted = judged.result.serialize(Era::Later).unwrap();
            assert_eq!(
                BuildResult::parse(posted.as_bytes(), "").unwrap(),
                judged.result
            );
        }
    }

    #[test]
    fn another_name_or_version_is_abnormal_with_its_log_kept() {
        for (name, version) in [
            ("libhullo", "1.0.0"),
            ("libhello", "1.0.1"),
            ("libhello", "0"),
        ] {
            let judged = judged(&result(name, version, Status::Success));
            assert_eq!(judged.result.status, Status::Abnormal);
            assert_eq!(
                (judged.result.name.as_str(), judged.result.version.as_str()),
                ("libhello", "1.0.0")
            );
            assert_eq!(judged.result.operations[0].log, "the log\n");
            assert_eq!(judged.result.operations[1].name, AGENT_OPERATION);
            assert!(judged.fault.unwrap().contains(name));
        }
    }

    #[test]
    fn a_worker_that_could_not_read_its_task_gets_the_tasks_name() {
        let unknown = judged(&result("unknown", "0", Status::Abnormal));
        assert_eq!(
            unknown.result,
            result("libhello", "1.0.0", Status::Abnormal)
        );
        assert_eq!(unknown.fault, None);
    }

    #[test]
    fn what_cannot_be_read_is_abnormal_and_says_where() {
        for (bytes, says) in [
            (&b""[..], "result manifest:1:1: error:"),
            (b": 1\nname: x\n", "result manifest:"),
            (b"\0\xff", "result manifest:1:1: error:"),
        ] {
            let judged = judge(&task(), bytes);
            assert_eq!(judged.result.status, Status::Abnormal);
            assert_eq!(judged.result.name, "libhello");
            let fault = judged.fault.unwrap();
            assert!(fault.contains(says), "{fault}");
            assert_eq!(judged.result.operations[0].log, format!("{fault}\n"));
        }
    }

    #[test]
    fn a_log_that_was_not_cleaned_is_cleaned_and_kept() {
        let bytes = b": 1\nname: libhello\nversion: 1.0.0\nstatus: error\nupdate-status: error\nupdate-log: \\\n\
                      \x1b[31mred\x1b[0m \xff\x07\n\\\n";
        let judged = judge(&task(), bytes);
        assert_eq!(judged.fault, None);
        assert_eq!(judged.result.status, Status::Error);
        assert_eq!(judged.result.operations[0].log, "red ??");
    }

    #[test]
    fn lz4_is_unpacked_within_bounds() {
        let pack = |bytes: &[u8]| {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let limit = usize::try_from(UNPACKED_LIMIT).unwrap();
        assert_eq!(unpack(&pack(b"hello")).unwrap(), b"hello");
        assert!(unpack(b"hello").unwrap_err().contains("no LZ4 frame"));
        let bomb = pack(&vec![0; limit + 1]);
        assert!(bomb.len() < 1_000_000);
        assert!(unpack(&bomb).unwrap_err().contains("more than"));
        assert_eq!(
            unpack(&pack(&vec![0; limit])).unwrap().len() as u64,
            UNPACKED_LIMIT
        );
    }

    fn request(logs: &[String]) -> ResultRequest {
        let mut result = BuildResult::new("libhello", "1.0.0", Status::Error);
        for (number, log) in logs.iter().enumerate() {
            result.operations.push(OperationResult {
                name: format!("op{number}"),
                status: Status::Error,
                log: log.clone(),
            });
        }
        ResultRequest {
            session: "s".to_owned(),
            challenge: None,
            agent_checksum: None,
            result,
        }
    }

    #[test]
    fn long_logs_are_cut_in_the_middle_and_short_ones_kept() {
        let short = "short\n".to_owned();
        let long: String = (0..40_000).map(|n| format!("line {n}\n")).collect();
        // One line without an end, and one full of what is replaced or escaped.
        let wide = "x".repeat(1_000_000);
        let dirty = "\u{1b}[1m\\\n\u{7}".repeat(100_000);
        let all = request(&[short.clone(), long.clone(), wide, dirty]);
        for limit in [1_000_000, 50_000, 5_000] {
            let body = fit(&all, Era::Y2017, limit).unwrap();
            assert!(
                body.len() < limit && body.len() > limit / 2,
                "{} of {limit}",
                body.len()
            );
            let back = ResultRequest::parse(body.as_bytes(), "body")
                .unwrap()
                .result;
            assert_eq!(back.operations.len(), 4);
            assert_eq!(back.operations[0].log, short);
            let kept = &back.operations[1].log;
            assert!(
                kept.starts_with("line 0\n") && kept.ends_with("line 39999\n"),
                "{limit}"
            );
            assert!(kept.contains(" bytes cut here "), "{limit}");
        }
        let whole = request(&[short, long]);
        let body = fit(&whole, Era::Y2017, STRANGERS_LIMIT).unwrap();
        assert_eq!(body, whole.serialize(Era::Y2017).unwrap());
    }

    #[test]
    fn a_line_of_50_mb_is_cut_to_what_strangers_take() {
        let line = format!("{}é\u{7}", "x".repeat(97)).repeat(500_000);
        let body = fit(&request(&[line]), Era::Y2017, STRANGERS_LIMIT).unwrap();
        assert!(
            body.len() < STRANGERS_LIMIT && body.len() > STRANGERS_LIMIT * 9 / 10,
            "{}",
            body.len()
        );
        let back = ResultRequest::parse(body.as_bytes(), "body")
            .unwrap()
            .result;
        let log = &back.operations[0].log;
        assert!(log.starts_with("xxx") && log.ends_with("xé?") && log.contains("bytes cut here"));
    }

    #[test]
    fn the_limit_itself_is_too_much() {
        let one = request(&["abc\n".repeat(1000)]);
        let whole = one.serialize(Era::Y2017).unwrap();
        assert_eq!(fit(&one, Era::Y2017, whole.len() + 1).unwrap(), whole);
        assert!(fit(&one, Era::Y2017, whole.len()).unwrap().len() < whole.len());
        // Less than the fields alone: as small as can be, and no endless loop.
        let least = fit(&one, Era::Y2017, 1).unwrap();
        assert!(ResultRequest::parse(least.as_bytes(), "least").is_ok());
    }

    #[test]
    fn fair_levels() {
        assert_eq!(fair_level(&[10, 20, 30], 60), usize::MAX);
        assert_eq!(fair_level(&[10, 20, 30], 50), 20);
        assert_eq!(fair_level(&[10, 20, 30], 40), 15);
        assert_eq!(fair_level(&[100, 100], 20), 10);
        assert_eq!(fair_level(&[100, 100], 0), 0);
    }
}
