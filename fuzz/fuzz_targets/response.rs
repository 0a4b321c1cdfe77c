//! A controller's answer: what becomes an assignment is only what may be done, and URLs and redirects lead nowhere else.
#![no_main]

use std::sync::LazyLock;

use bbot_agent::assignment::{self, Terms};
use bbot_agent::controller::{self, Url};
use libfuzzer_sys::fuzz_target;

static CONTROLLER: LazyLock<Url> =
    LazyLock::new(|| controller::task_url("http://c.example:8080/bot").expect("this is a URL"));
static ALLOWED: LazyLock<Vec<Url>> = LazyLock::new(|| {
    vec![controller::parse_url("https://r.example/results/").expect("this is a URL")]
});

fn is_fine(url: &Url) {
    assert!(matches!(url.scheme(), "http" | "https") && url.has_host() && url.fragment().is_none());
    assert_eq!(controller::parse_url(url.as_str()).as_ref().ok(), Some(url));
}

fn answer(data: &[u8], has_key: bool) {
    let terms = Terms {
        has_key,
        allowed_result_urls: &ALLOWED,
    };
    let Ok(Some(assignment)) = assignment::read(data, &CONTROLLER, terms) else {
        return;
    };
    assert!(!assignment.session.is_empty() && !assignment.task.name.is_empty());
    assert!(!assignment.task.machine.is_empty());
    if let Some(challenge) = &assignment.challenge {
        let text = challenge.to_string();
        assert!(
            has_key
                && text.len() == 64
                && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        );
    }
    let url = assignment.result_url.expect("a session brings its URL");
    is_fine(&url);
    let allowed = url.origin() == ALLOWED[0].origin() && url.path().starts_with("/results/");
    assert!(url.origin() == CONTROLLER.origin() || allowed, "{url}");
}

fuzz_target!(|data: &[u8]| {
    answer(data, false);
    answer(data, true);
    let text = String::from_utf8_lossy(data);
    for url in [controller::parse_url(&text), controller::task_url(&text)]
        .into_iter()
        .flatten()
    {
        is_fine(&url);
    }
    if let Ok(to) = controller::redirected(&CONTROLLER, &text) {
        assert_eq!(to.origin(), CONTROLLER.origin());
        is_fine(&{
            let mut to = to;
            to.set_fragment(None);
            to
        });
    }
    if let Ok(assignment) = assignment::fake(data, "input") {
        assert!(!assignment.task.name.is_empty() && assignment.result_url.is_none());
    }
});
