//! What a worker uploads as its result: name and version are always the task's, it can always be posted, and the post
//! fits.
#![no_main]

use bbot_agent::result::{UNPACKED_LIMIT, fit, judge, unpack};
use bbot_fuzz::Input;
use bbot_manifest::{Era, ResultRequest, Status, Task};
use libfuzzer_sys::fuzz_target;

fn check(task: &Task, uploaded: &[u8], limit: usize) {
    let judged = judge(task, uploaded);
    assert_eq!(
        (&judged.result.name, &judged.result.version),
        (&task.name, &task.version)
    );
    if judged.fault.is_some() {
        assert_eq!(judged.result.status, Status::Abnormal);
    }
    let request = ResultRequest {
        session: "session".to_owned(),
        challenge: None,
        agent_checksum: None,
        result: judged.result,
    };
    for era in [Era::Y2017, Era::Later] {
        let bare = {
            let mut bare = request.clone();
            bare.result
                .operations
                .iter_mut()
                .for_each(|operation| operation.log.clear());
            bare.serialize(era)
                .expect("what was judged can be written")
                .len()
        };
        let body = fit(&request, era, limit).expect("what was judged can be written");
        // Only logs are cut: less than the rest takes is not to be had.
        assert!(
            body.len() < limit.max(bare + 1),
            "{} of {limit}",
            body.len()
        );
        let back = ResultRequest::parse(body.as_bytes(), "post")
            .expect("what was written can be read")
            .result;
        assert_eq!(
            (back.name, back.version, back.status),
            (
                task.name.clone(),
                task.version.clone(),
                request.result.status
            )
        );
        assert_eq!(back.operations.len(), request.result.operations.len());
    }
}

fuzz_target!(|data: &[u8]| {
    let task = Task::new("libhello", "1.0.0", "http://r", "linux", "x86_64-linux-gnu");
    let mut input = Input::new(data);
    match input.byte() {
        b'z' => {
            if let Ok(bytes) = unpack(input.rest()) {
                assert!(bytes.len() as u64 <= UNPACKED_LIMIT);
                // More is no other case, and takes its time.
                if bytes.len() < 1 << 20 {
                    check(&task, &bytes, 100_000);
                }
            }
        }
        first => check(&task, input.rest(), usize::from(first) * 64),
    }
});
