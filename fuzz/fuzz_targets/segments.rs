//! Log segments: the operation is one short line of text, the rest is the log, byte by byte; and what is kept of them is
//! fit for a manifest.
#![no_main]

use bbot_agent::segments::split;
use bbot_manifest::{log_text, validate_value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let first = data.iter().position(|b| *b == b'\n');
    match split(data) {
        Some((operation, log)) => {
            let end = first.expect("there is a first line");
            assert_eq!(operation.as_bytes(), &data[..end]);
            assert_eq!(log, &data[end + 1..]);
            assert!(operation.len() < 256);
            let text = log_text(log);
            assert!(text.len() <= log.len());
            assert_eq!(validate_value(text.as_bytes(), ""), Ok(()));
        }
        None => assert!(
            first.is_none_or(|end| end >= 256 || std::str::from_utf8(&data[..end]).is_err())
        ),
    }
});
