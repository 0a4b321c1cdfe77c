//! The buildtab: errors name a place in it, what is read keeps to its bounds, and no machine's name takes long to match.
#![no_main]

// Not by way of the controller, whose database and web server would have to be built with instrumentation too.
#[path = "../../crates/bbot-controller/src/buildtab.rs"]
#[expect(dead_code, reason = "what only the controller uses")]
mod buildtab;
#[path = "../../crates/bbot-controller/src/pattern.rs"]
mod pattern;

use bbot_fuzz::Input;
use buildtab::Buildtab;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let machine = String::from_utf8_lossy(input.short());
    let text = String::from_utf8_lossy(input.rest());
    match Buildtab::parse(&text, "buildtab") {
        Ok(tab) => {
            assert!(tab.configurations().len() <= text.lines().count());
            for (index, configuration) in tab.configurations().iter().enumerate() {
                assert!(!configuration.name.is_empty() && !configuration.target.is_empty());
                assert!(
                    configuration
                        .name
                        .chars()
                        .all(|c| !c.is_control() && c != ' ' && c != '/')
                );
                assert!((1..=text.lines().count()).contains(&configuration.line));
                let again = |c: &buildtab::Configuration| {
                    c.name == configuration.name && c.target == configuration.target
                };
                assert!(!tab.configurations()[..index].iter().any(again));
                // Whether it does is for the pattern's own tests: here it has to end.
                let _ = configuration.takes(&machine);
            }
        }
        Err(error) => {
            let lines: Vec<&str> = text.lines().collect();
            let line = lines
                .get(error.line.wrapping_sub(1))
                .expect("the error is on a line that is there");
            assert!(
                (1..=line.chars().count() + 1).contains(&error.column),
                "{error}"
            );
        }
    }
});
