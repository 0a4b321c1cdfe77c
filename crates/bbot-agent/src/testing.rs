//! What the tests share.

/// Whether a test that needs `what` can run. Where it cannot and `BBOT_REQUIRE`
/// lists it, the test fails; else it says that it is skipped.
pub(crate) fn required(what: &str, there: bool) -> bool {
    if !there {
        let must = std::env::var("BBOT_REQUIRE").unwrap_or_default();
        assert!(
            !must.split(',').any(|w| w.trim() == what),
            "{what} is not there although BBOT_REQUIRE lists it"
        );
        println!("skipped: no {what}");
    }
    there
}
