//! Owner records: what was read can be written and reads the same, and nothing that may be alive is ever taken for gone.
#![no_main]

use bbot_fuzz::Input;
use bbot_machine::owner::{Facts, Lock, Process, Record, Verdict, is_gone};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let facts = input.byte();
    let Ok(text) = std::str::from_utf8(input.rest()) else {
        return;
    };
    let Ok(record) = Record::parse(text) else {
        return;
    };
    for field in [&record.temporary, &record.instance, &record.boot_id] {
        assert!(!field.is_empty() && !field.contains('\n'));
    }
    assert_eq!(Record::parse(&record.to_text()).as_ref(), Ok(&record));

    let lock = [Lock::Held, Lock::Free, Lock::Unknown][usize::from(facts & 3).min(2)];
    let started = record.start_time ^ u64::from(facts >> 4 & 1);
    let process = match facts >> 2 & 3 {
        0 => Process::Running {
            start_time: started,
        },
        1 => Process::Ended,
        _ => Process::Unknown,
    };
    let same_boot = facts & 32 == 0;
    let boot_id = if same_boot {
        record.boot_id.clone()
    } else {
        format!("{}x", record.boot_id)
    };
    let verdict = is_gone(
        &record,
        &Facts {
            boot_id,
            lock,
            process,
        },
    );
    let may_live = same_boot
        && (process == Process::Unknown
            || process
                == Process::Running {
                    start_time: record.start_time,
                });
    match lock {
        Lock::Held => assert_eq!(verdict, Verdict::Present),
        Lock::Free => assert_ne!(verdict, Verdict::Present),
        Lock::Unknown => assert_eq!(verdict == Verdict::Present, may_live),
    }
});
