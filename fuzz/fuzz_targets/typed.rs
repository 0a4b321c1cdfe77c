//! Every typed manifest: what can be read can be written for both eras, and reads the same in today's.
#![no_main]

use std::fmt::Debug;

use bbot_manifest::{
    BootstrapManifest, BootstrappedMachine, BuildResult, Era, MachineHeader, MachineManifest,
    ManifestError, ResultRequest, RunManifest, SerializeError, Task, TaskRequest, TaskResponse,
    ToolchainManifest,
};
use libfuzzer_sys::fuzz_target;

fn check<T: PartialEq + Debug>(
    data: &[u8],
    parse: fn(&[u8], &str) -> Result<T, ManifestError>,
    serialize: impl Fn(&T) -> Result<String, SerializeError>,
) {
    if let Ok(value) = parse(data, "input") {
        let text = serialize(&value).expect("what was read can be written");
        assert_eq!(
            parse(text.as_bytes(), "written").as_ref(),
            Ok(&value),
            "{text}"
        );
    }
}

/// The wire of 2017 may leave fields out, but what it holds stays what it is.
fn check_old<T: PartialEq + Debug>(
    data: &[u8],
    parse: fn(&[u8], &str) -> Result<T, ManifestError>,
    serialize: fn(&T, Era) -> Result<String, SerializeError>,
) {
    check(data, parse, |value| serialize(value, Era::Later));
    if let Ok(value) = parse(data, "input") {
        let text = serialize(&value, Era::Y2017).expect("what was read can be written for 2017");
        let old = parse(text.as_bytes(), "written").expect("what was written for 2017 can be read");
        assert_eq!(serialize(&old, Era::Y2017).as_ref(), Ok(&text));
    }
}

fuzz_target!(|data: &[u8]| {
    check_old(data, Task::parse, Task::serialize);
    check_old(data, TaskRequest::parse, TaskRequest::serialize);
    check_old(data, TaskResponse::parse, TaskResponse::serialize);
    check_old(data, BuildResult::parse, BuildResult::serialize);
    check_old(data, ResultRequest::parse, ResultRequest::serialize);
    check_old(data, MachineHeader::parse, MachineHeader::serialize);
    check(data, MachineManifest::parse, MachineManifest::serialize);
    check(data, ToolchainManifest::parse, ToolchainManifest::serialize);
    check(data, BootstrapManifest::parse, BootstrapManifest::serialize);
    check(
        data,
        BootstrappedMachine::parse,
        BootstrappedMachine::serialize,
    );
    check(data, RunManifest::parse, RunManifest::serialize);
});
