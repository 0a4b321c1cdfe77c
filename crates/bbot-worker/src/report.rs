//! The result as it goes to the agent: logs cut so that the whole fits.

use bbot_manifest::{BuildResult, Era, Status, cut_middle, log_text};

/// The largest result that every controller takes, in bytes (the original's limit of 2017 to 2024).
const LIMIT: usize = 10_240_000;

/// Room for all that is not a log: names, statuses, the session and the answer to the challenge that the agent adds.
const MARGIN: usize = 64 * 1024;

/// The worst of the operations' statuses; without operations there is nothing that could have succeeded.
pub(crate) fn overall(statuses: impl IntoIterator<Item = Status>) -> Status {
    statuses.into_iter().max().unwrap_or(Status::Abnormal)
}

/// The result's manifest, its logs cleaned and, if the result is too large, cut in their middle.
pub(crate) fn manifest(result: &BuildResult) -> Result<String, bbot_manifest::SerializeError> {
    let mut result = result.clone();
    for operation in &mut result.operations {
        operation.log = log_text(operation.log.as_bytes());
    }
    let mut room = LIMIT - MARGIN;
    loop {
        fit(&mut result, room);
        let text = result.serialize(Era::Later)?;
        // The form of a manifest may add to a log; then less of it has to do.
        if text.len() <= LIMIT - MARGIN / 2 || room < MARGIN {
            return Ok(text);
        }
        room -= room / 16;
    }
}

/// Cuts the longest logs so that all of them take `room` bytes at most.
fn fit(result: &mut BuildResult, room: usize) {
    let mut lengths: Vec<usize> = result
        .operations
        .iter()
        .map(|operation| operation.log.len())
        .collect();
    if lengths.iter().sum::<usize>() <= room {
        return;
    }
    // Short logs stay whole; what they leave is shared by the others.
    lengths.sort_unstable();
    let mut left = room;
    let mut share = 0;
    for (index, length) in lengths.iter().enumerate() {
        share = left / (lengths.len() - index);
        if *length > share {
            break;
        }
        left -= length;
    }
    for operation in &mut result.operations {
        operation.log = cut_middle(&operation.log, share).into_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bbot_manifest::OperationResult;

    fn result(logs: &[String]) -> BuildResult {
        let mut result = BuildResult::new("p", "1", Status::Error);
        for (index, log) in logs.iter().enumerate() {
            result.operations.push(OperationResult {
                name: format!("o{index}"),
                status: Status::Success,
                log: log.clone(),
            });
        }
        result
    }

    #[test]
    fn the_worst_status_counts() {
        assert_eq!(
            overall([Status::Warning, Status::Error, Status::Success]),
            Status::Error
        );
        assert_eq!(overall([]), Status::Abnormal);
    }

    #[test]
    fn a_result_that_fits_is_not_touched() {
        let result = result(&["one\n".to_owned(), "two\n".to_owned()]);
        let read = BuildResult::parse(manifest(&result).unwrap().as_bytes(), "r").unwrap();
        assert_eq!(read, result);
    }

    #[test]
    fn short_logs_stay_whole_and_long_ones_keep_both_ends() {
        let short = "short\n".to_owned();
        let long = format!("first\n{}last\n", "x".repeat(50_000_000));
        let text = manifest(&result(&[short.clone(), long.clone(), long])).unwrap();
        assert!(text.len() <= LIMIT);
        let read = BuildResult::parse(text.as_bytes(), "r").unwrap();
        assert_eq!(read.operations[0].log, short);
        for operation in &read.operations[1..] {
            assert!(operation.log.starts_with("first\n"));
            assert!(operation.log.ends_with("last\n"));
            assert!(operation.log.contains("bytes cut here"));
            assert!(operation.log.len() > 4_000_000);
        }
    }
}
