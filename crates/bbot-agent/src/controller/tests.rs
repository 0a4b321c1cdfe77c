use std::net::TcpListener;
use std::thread::JoinHandle;

use sha2::{Digest as _, Sha256};

use super::http::TASK_LIMIT;
use super::*;
use scripted::{Seen, answer};

mod hostile;
#[path = "scripted.rs"]
mod scripted;
mod signed;
mod tls;

fn serve(answers: Vec<String>) -> (Url, JoinHandle<Vec<Seen>>) {
    let (url, server) = scripted::serve(answers);
    (parse_url(&url).unwrap(), server)
}

fn to(url: &Url, kin: Kin) -> Destination {
    Destination {
        url: url.clone(),
        kin,
        key: None,
        log: None,
    }
}

fn http() -> Http {
    Http::new(Duration::from_secs(10)).unwrap()
}

#[test]
fn urls() {
    assert_eq!(
        task_url("http://h").unwrap().as_str(),
        "http://h/?build-task"
    );
    assert_eq!(
        task_url("https://h/p?build-task&r=x").unwrap().as_str(),
        "https://h/p?build-task&r=x"
    );
    for wrong in [
        "",
        "h",
        "file:///etc/passwd",
        "ftp://h/",
        "100=http://h/",
        "http://",
    ] {
        assert!(task_url(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_result_goes_to_its_controller_or_where_it_is_allowed() {
    let controller = task_url("https://c.example/x").unwrap();
    let allowed = [parse_url("https://other.example/results/").unwrap()];
    for (url, may) in [
        ("https://c.example/?build-result", true),
        ("https://c.example:443/@t?build-result", true),
        ("http://c.example/?build-result", false),
        ("https://c.example:444/?build-result", false),
        ("https://c.example.evil.example/?build-result", false),
        ("https://c.example@evil.example/?build-result", false),
        ("https://other.example/results/1", true),
        ("https://other.example/elsewhere", false),
    ] {
        let url = parse_url(url).unwrap();
        assert_eq!(may_post(&url, &controller, &allowed), may, "{url}");
    }
}

#[test]
fn statuses() {
    let of = |kin, is_ours, code: u16| {
        let status = StatusCode::from_u16(code).unwrap();
        match verdict(status, kin, is_ours, "") {
            Posted::Taken => "taken",
            Posted::TooLarge => "too large",
            Posted::Refused(_) => "refused",
            Posted::Again(_) => "again",
            Posted::Unreachable(_) => "unreachable",
        }
    };
    let all = [
        200, 201, 204, 303, 304, 400, 401, 403, 404, 405, 407, 408, 410, 411, 413, 421, 422, 429,
        431, 451, 500, 502, 503, 504, 511,
    ];
    for code in all {
        let ours = match code {
            200..=299 => "taken",
            413 => "too large",
            401 | 408 | 421 | 429 => "again",
            400..=499 => "refused",
            _ => "again",
        };
        assert_eq!(of(Kin::Ours, true, code), ours, "ours {code}");
        // A proxy in front of it: its login page, its "no such host".
        let proxy = if code == 413 { "too large" } else { "again" };
        assert_eq!(of(Kin::Ours, false, code), proxy, "a proxy {code}");
        let stranger = match code {
            200..=299 => "taken",
            413 => "too large",
            400 => "refused",
            _ => "again",
        };
        for marked in [true, false] {
            assert_eq!(of(Kin::Stranger, marked, code), stranger, "{code}");
        }
    }
}

#[tokio::test]
async fn what_a_proxy_says_of_a_result_is_not_its_controllers_word() {
    let ours = "Bbot-Controller: 1\r\n";
    let (url, server) = serve(vec![
        answer("404 Not Found", "", "no such site"),
        answer("200 OK", "", "<html>please sign in"),
        answer("404 Not Found", ours, "the session is not known"),
        answer("200 OK", ours, ""),
    ]);
    let mut posted = Vec::new();
    for _ in 0..4 {
        posted.push(http().post_result(&to(&url, Kin::Ours), Vec::new()).await);
    }
    let by_proxy = |text: &str| Posted::Again(format!("{text}, not by the controller itself"));
    assert_eq!(
        posted,
        [
            by_proxy("404 Not Found: no such site"),
            by_proxy("200 OK: <html>please sign in"),
            Posted::Refused("404 Not Found: the session is not known".to_owned()),
            Posted::Taken,
        ]
    );
    server.join().unwrap();
}

#[tokio::test]
async fn a_task_request_is_a_post_with_our_mark() {
    let (url, server) = serve(vec![
        answer("200 OK", "Bbot-Controller: 1\r\n", ": 1\nsession:\n"),
        answer("200 OK", "", ": 1\nsession:\n"),
    ]);
    let url = task_url(url.as_str()).unwrap();
    let ours = http()
        .request_task(
            &url,
            ": 1\nagent: a\n".to_owned(),
            Duration::from_secs(7).into(),
        )
        .await
        .unwrap();
    assert_eq!(
        ours,
        TaskAnswer {
            body: b": 1\nsession:\n".to_vec(),
            kin: Kin::Ours,
            session_url: None,
            renew: None,
            agreement: None,
        }
    );
    let stranger = http()
        .request_task(&url, String::new(), Duration::from_secs(7).into())
        .await
        .unwrap();
    assert_eq!(stranger.kin, Kin::Stranger);
    let seen = server.join().unwrap();
    assert_eq!(seen[0].line, "POST /?build-task HTTP/1.1");
    assert_eq!(seen[0].header("content-type"), Some("text/manifest"));
    assert_eq!(seen[0].header("bbot-agent"), Some("1"));
    assert_eq!(seen[0].header("bbot-wait"), Some("7"));
    assert_eq!(seen[0].body, b": 1\nagent: a\n");
}

#[tokio::test]
async fn redirects_stay_posts_and_within_the_origin() {
    let (url, server) = serve(vec![
        answer("302 Found", "Location: /two\r\n", ""),
        answer("301 Moved", "Location: three?x\r\n", ""),
        answer("200 OK", "", ""),
        answer("302 Found", "Location: http://127.0.0.1:1/\r\n", ""),
    ]);
    assert_eq!(
        http()
            .post_result(&to(&url, Kin::Stranger), b"body".to_vec())
            .await,
        Posted::Taken
    );
    let elsewhere = http()
        .post_result(&to(&url, Kin::Stranger), b"body".to_vec())
        .await;
    assert!(
        matches!(&elsewhere, Posted::Again(why) if why.contains("give the final URL")),
        "{elsewhere:?}"
    );
    let seen = server.join().unwrap();
    let lines: Vec<&str> = seen.iter().map(|s| s.line.as_str()).collect();
    assert_eq!(
        lines,
        [
            "POST / HTTP/1.1",
            "POST /two HTTP/1.1",
            "POST /three?x HTTP/1.1",
            "POST / HTTP/1.1"
        ]
    );
    assert!(seen.iter().all(|s| s.body == b"body"));
}

#[tokio::test]
async fn endless_redirects_end() {
    let (url, server) = serve(vec![answer("307 T", "Location: /\r\n", ""); 6]);
    let error = http()
        .request_task(&url, String::new(), Duration::from_secs(7).into())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
    server.join().unwrap();
}

#[tokio::test]
async fn what_a_controller_says_is_told_on_one_line() {
    let (url, server) = serve(vec![
        answer("400 Bad Request", "", "invalid \u{1b}session\nmore"),
        answer("401 Unauthorized", "", ""),
    ]);
    assert_eq!(
        http()
            .post_result(&to(&url, Kin::Stranger), Vec::new())
            .await,
        Posted::Refused("400 Bad Request: invalid ?session".to_owned())
    );
    let error = http()
        .request_task(&url, String::new(), Duration::from_secs(7).into())
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "401 Unauthorized");
    server.join().unwrap();
}

#[tokio::test]
async fn a_response_without_end_is_cut_off() {
    let long = "x".repeat(usize::try_from(TASK_LIMIT).unwrap() + 1);
    let (url, server) = serve(vec![answer("200 OK", "", &long)]);
    let error = http()
        .request_task(&url, String::new(), Duration::from_secs(7).into())
        .await
        .unwrap_err();
    assert!(matches!(error, LinkError::TooLong { .. }), "{error}");
    server.join().unwrap();
}

#[tokio::test]
async fn a_controller_that_is_down_or_silent_is_an_error_in_time() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = parse_url(&format!("http://{}/", free.local_addr().unwrap())).unwrap();
    // Listens, and never answers.
    let silent = Http::new(Duration::from_secs(1)).unwrap();
    let error = silent
        .request_task(&url, String::new(), Duration::from_secs(7).into())
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "no answer within 1 s");
    drop(free);
    let down = http()
        .post_result(&to(&url, Kin::Stranger), Vec::new())
        .await;
    assert!(
        matches!(&down, Posted::Unreachable(why) if why.contains("refused")),
        "{down:?}"
    );
}

#[tokio::test]
async fn an_archive_is_kept_only_with_the_right_hash() {
    let sum = hex::encode(Sha256::digest(b"archive"));
    let (url, server) = serve(vec![
        answer("200 OK", "", "archive"),
        answer("200 OK", "", "another"),
        answer("404 Not Found", "", "gone"),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("a");
    http().fetch(&url, Kin::Stranger, &sum, &to).await.unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), b"archive");
    std::fs::remove_file(&to).unwrap();
    assert!(matches!(
        http().fetch(&url, Kin::Stranger, &sum, &to).await,
        Err(LinkError::Hash { .. })
    ));
    let gone = http()
        .fetch(&url, Kin::Stranger, &sum, &to)
        .await
        .unwrap_err();
    assert_eq!(gone.to_string(), "404 Not Found: gone");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    server.join().unwrap();
}

#[test]
fn who_says_so_decides_whether_an_archive_is_asked_for_again() {
    let status = |code: u16| LinkError::Status {
        status: StatusCode::from_u16(code).unwrap(),
        message: String::new(),
    };
    let hash = || LinkError::Hash {
        expected: "1".to_owned(),
        actual: "2".to_owned(),
    };
    let redirect = || LinkError::Redirect {
        to: "https://login.example/".to_owned(),
    };
    let write = || LinkError::Write {
        path: "/x".into(),
        source: std::io::ErrorKind::PermissionDenied.into(),
    };
    // Of a stranger, of ours with its mark, of a proxy in front of ours.
    for (of, expected) in [
        (
            &(|| status(400)) as &dyn Fn() -> LinkError,
            [false, false, true],
        ),
        (&|| status(401), [false, false, true]),
        (&|| status(404), [false, false, true]),
        (&|| status(408), [true, true, true]),
        (&|| status(429), [true, true, true]),
        (&|| status(503), [true, true, true]),
        (&hash, [false, false, true]),
        (&|| LinkError::TooLong { limit: 1 }, [false, false, true]),
        (&redirect, [false, true, true]),
        (&write, [false, false, false]),
        (
            &|| LinkError::Transport("down".to_owned()),
            [true, true, true],
        ),
    ] {
        let passes = |kin, is_ours| not_fetched(of(), kin, is_ours).is_passing();
        let seen = [
            passes(Kin::Stranger, false),
            passes(Kin::Ours, true),
            passes(Kin::Ours, false),
        ];
        assert_eq!(seen, expected, "{}", of());
        assert_eq!(passes(Kin::Stranger, true), expected[0], "{}", of());
    }
}

#[tokio::test]
async fn what_a_proxy_says_of_an_archive_is_not_its_controllers_word() {
    let ours = "Bbot-Controller: 1\r\n";
    let sum = hex::encode(Sha256::digest(b"archive"));
    let (url, server) = serve(vec![
        answer("404 Not Found", "", "no such site"),
        answer("200 OK", "", "<html>please sign in"),
        answer("302 Found", "Location: https://login.example/\r\n", ""),
        answer("404 Not Found", ours, "gone"),
        answer("200 OK", ours, "another"),
        answer("200 OK", "", "archive"),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("a");
    let mut fetched = Vec::new();
    for _ in 0..6 {
        let got = http().fetch(&url, Kin::Ours, &sum, &to).await;
        fetched.push(got.map_err(|e| (e.is_passing(), e.to_string())));
    }
    assert_eq!(
        fetched[0],
        Err((
            true,
            "404 Not Found: no such site, not by the controller itself".to_owned()
        ))
    );
    assert!(matches!(&fetched[1], Err((true, why)) if why.contains("SHA-256")));
    assert!(matches!(&fetched[2], Err((true, why)) if why.contains("login.example")));
    assert_eq!(fetched[3], Err((false, "404 Not Found: gone".to_owned())));
    assert!(matches!(&fetched[4], Err((false, _))));
    // Its hash is all that counts.
    assert_eq!(fetched[5], Ok(()));
    server.join().unwrap();
}

#[tokio::test]
async fn an_archive_may_come_slowly_but_not_stop() {
    use std::io::{Read as _, Write as _};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = parse_url(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
    let pause = Duration::from_millis(400);
    let server = std::thread::spawn(move || {
        for sends in [7, 2] {
            let (mut stream, _) = listener.accept().unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(2)))
                .unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 7\r\n\r\n")
                .unwrap();
            for byte in &b"archive"[..sends] {
                std::thread::sleep(pause);
                stream.write_all(&[*byte]).unwrap();
            }
            if sends < 7 {
                // Until the client has had enough.
                let _ = stream.read(&mut [0; 1]);
            }
        }
    });
    let sum = hex::encode(Sha256::digest(b"archive"));
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("a");
    let short = Http::new(Duration::from_secs(1)).unwrap();
    short.fetch(&url, Kin::Stranger, &sum, &to).await.unwrap();
    let error = short
        .fetch(&url, Kin::Stranger, &sum, &to)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "no answer within 1 s");
    assert!(error.is_passing());
    drop(short);
    server.join().unwrap();
}
