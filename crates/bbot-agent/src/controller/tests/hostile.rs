//! Controllers that are broken or mean, over real sockets: each ends in an error that says
//! what it was, in a bounded time and with bounded memory, and none in a result that is
//! taken for delivered.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use super::*;

const SHORT: Duration = Duration::from_secs(1);

/// A server that does this with each connection, in a thread of its own; it ends with the
/// test's process.
fn server(serve: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = parse_url(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let serve = serve.clone();
            std::thread::spawn(move || {
                stream
                    .set_read_timeout(Some(Duration::from_secs(20)))
                    .unwrap();
                serve(&mut stream);
            });
        }
    });
    url
}

/// A server that reads the request and writes this.
fn says(answer: impl Into<Vec<u8>>) -> Url {
    let answer = answer.into();
    server(move |stream| {
        read_request(stream);
        let _ = stream.write_all(&answer);
    })
}

fn read_request(stream: &mut TcpStream) {
    // Small requests come in one piece over the loopback.
    let _ = stream.read(&mut [0; 16 * 1024]);
}

/// Writes a byte at a time until the peer has gone.
fn drip(stream: &mut TcpStream, bytes: &[u8]) {
    for byte in bytes {
        if stream.write_all(&[*byte]).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

async fn ask(http: &Http, url: &Url) -> Result<TaskAnswer, LinkError> {
    http.request_task(url, ": 1\n".to_owned(), Duration::ZERO.into())
        .await
}

async fn ask_shortly(url: &Url) -> String {
    let begin = Instant::now();
    let http = Http::new(SHORT).unwrap();
    let error = ask(&http, url).await.unwrap_err();
    assert!(begin.elapsed() < SHORT * 3, "{:?}", begin.elapsed());
    error.to_string()
}

#[tokio::test]
async fn an_answer_that_drips_is_given_up_in_time() {
    let long = "x".repeat(10_000);
    let head = server({
        let head = format!("HTTP/1.1 200 OK\r\nX-Long: {long}\r\n");
        move |stream| {
            read_request(stream);
            drip(stream, head.as_bytes());
        }
    });
    assert_eq!(ask_shortly(&head).await, "no answer within 1 s");
    let body = server(move |stream| {
        read_request(stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n");
        drip(stream, long.as_bytes());
    });
    assert_eq!(ask_shortly(&body).await, "no answer within 1 s");
    // Of a result the status says it all.
    let begin = Instant::now();
    let http = Http::new(SHORT).unwrap();
    assert_eq!(
        http.post_result(&to(&body, Kin::Stranger), Vec::new())
            .await,
        Posted::Taken
    );
    assert!(begin.elapsed() < SHORT * 3);
    let posted = http
        .post_result(&to(&head, Kin::Stranger), Vec::new())
        .await;
    assert!(matches!(posted, Posted::Unreachable(_)), "{posted:?}");
}

#[tokio::test]
async fn a_message_that_drips_does_not_hold_up_what_its_status_says() {
    let url = server(|stream| {
        read_request(stream);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad\r\nContent-Length: 10000\r\n\r\nno ");
        drip(stream, &[b'x'; 10_000]);
    });
    let begin = Instant::now();
    let posted = http()
        .post_result(&to(&url, Kin::Stranger), Vec::new())
        .await;
    assert!(
        matches!(&posted, Posted::Refused(why) if why.starts_with("400 Bad Request: no x")),
        "{posted:?}"
    );
    assert!(begin.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn endless_headers_and_bodies_end() {
    let headers = server(|stream| {
        read_request(stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(b"X-More: and more\r\n").is_ok() {}
    });
    let error = ask(&http(), &headers).await.unwrap_err();
    assert!(
        error.to_string().contains("too large") || error.to_string().contains("header"),
        "{error}"
    );
    let line = server(|stream| {
        read_request(stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX-Long: ");
        while stream.write_all(&[b'x'; 4096]).is_ok() {}
    });
    assert!(ask(&http(), &line).await.is_err());
    let body = server(|stream| {
        read_request(stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let chunk = [b"1000\r\n", &[b'x'; 0x1000][..], b"\r\n"].concat();
        while stream.write_all(&chunk).is_ok() {}
    });
    let error = ask(&http(), &body).await.unwrap_err();
    assert!(matches!(error, LinkError::TooLong { .. }), "{error}");
    assert_eq!(
        http()
            .post_result(&to(&body, Kin::Stranger), Vec::new())
            .await,
        Posted::Taken
    );
    let dir = tempfile::tempdir().unwrap();
    let fetch = Http::new(SHORT).unwrap();
    let to = dir.path().join("a");
    let fetched = fetch
        .fetch(&headers, Kin::Stranger, &"0".repeat(64), &to)
        .await;
    assert!(fetched.is_err() && std::fs::read_dir(dir.path()).unwrap().count() == 0);
}

#[tokio::test]
async fn what_is_no_answer_is_an_error_and_nothing_is_taken() {
    for (answer, what) in [
        ("", "nothing"),
        ("\r\n\r\n", "empty lines"),
        ("hello\n", "another protocol"),
        ("<html>ok</html>", "HTTP/0.9"),
        ("HTTP/1.1 200\u{0}OK\r\n\r\n", "a NUL"),
        ("HTTP/1.1 2000 OK\r\n\r\n", "a status of four digits"),
        ("HTTP/1.1 099 OK\r\n\r\n", "a status below 100"),
        ("HTTP/9.9 200 OK\r\n\r\n", "another version"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "a negative length",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
            "two lengths",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "a length that is none",
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            "an upgrade",
        ),
        ("HTTP/1.1 100 Continue\r\n\r\n", "go on, and nothing"),
        ("HTTP/1.1 200 OK\r\nX: a\r\n", "half of the headers"),
        (
            "HTTP/1.1 200 OK\r\n: no name\r\n\r\n",
            "a header without a name",
        ),
    ] {
        let url = says(answer);
        let http = Http::new(SHORT).unwrap();
        let error = ask(&http, &url).await;
        assert!(error.is_err(), "{what}: {error:?}");
        let posted = http.post_result(&to(&url, Kin::Stranger), Vec::new()).await;
        assert!(
            matches!(posted, Posted::Unreachable(_) | Posted::Again(_)),
            "{what}: {posted:?}"
        );
    }
    for (answer, what) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n: 1\nsession:\n",
            "half of the body",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n",
            "chunks that are none",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n: 1\n\r\n",
            "no last chunk",
        ),
    ] {
        let error = ask(&Http::new(SHORT).unwrap(), &says(answer)).await;
        assert!(
            matches!(error, Err(LinkError::Transport(_))),
            "{what}: {error:?}"
        );
    }
}

#[tokio::test]
async fn nothing_is_unpacked_that_was_not_asked_for() {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..64 {
        packer.write_all(&[0; 1 << 20]).unwrap();
    }
    let bomb = packer.finish().unwrap();
    assert!(bomb.len() < 100_000);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
        bomb.len()
    );
    let url = says([head.as_bytes(), &bomb].concat());
    let answer = ask(&http(), &url).await.unwrap();
    assert_eq!(answer.body, bomb);
    assert_eq!(
        http()
            .post_result(&to(&url, Kin::Stranger), Vec::new())
            .await,
        Posted::Taken
    );
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("a");
    let hash = hex::encode(Sha256::digest(&bomb));
    http().fetch(&url, Kin::Stranger, &hash, &to).await.unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), bomb);

    let (url, server) = serve(vec![scripted::answer("404 Not Found", "", ""); 2]);
    let _ = http().fetch(&url, Kin::Stranger, &hash, &to).await;
    let _ = ask(&http(), &url).await;
    for seen in server.join().unwrap() {
        assert_eq!(seen.header("accept-encoding"), Some("identity"));
    }
}

#[tokio::test]
async fn redirects_lead_nowhere_else_and_never_make_a_get() {
    for location in [
        "https://127.0.0.1/",
        "http://127.0.0.1:1/",
        "http://localhost/",
        "//evil.example/",
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "data:text/plain,x",
        "javascript:1",
        "http://",
        "\u{ff}\u{fe}://",
    ] {
        let url = says(format!(
            "HTTP/1.1 307 T\r\nContent-Length: 0\r\nLocation: {location}\r\nConnection: close\r\n\r\n"
        ));
        let error = ask(&http(), &url).await.unwrap_err();
        assert!(
            matches!(error, LinkError::Redirect { .. } | LinkError::Transport(_)),
            "{location}: {error}"
        );
        let posted = http()
            .post_result(&to(&url, Kin::Stranger), Vec::new())
            .await;
        assert!(
            matches!(posted, Posted::Again(_) | Posted::Unreachable(_)),
            "{location}: {posted:?}"
        );
    }
    // See other means a GET, which is no way to post.
    let other = answer("303 See Other", "Location: /result\r\n", "");
    let (url, server) = serve(vec![other.clone(), other]);
    let error = ask(&http(), &url).await.unwrap_err();
    assert_eq!(error.to_string(), "303 See Other");
    let posted = http()
        .post_result(&to(&url, Kin::Stranger), Vec::new())
        .await;
    assert_eq!(posted, Posted::Again("303 See Other".to_owned()));
    let lines: Vec<String> = server.join().unwrap().into_iter().map(|s| s.line).collect();
    assert_eq!(lines, ["POST / HTTP/1.1"; 2]);
}

#[tokio::test]
async fn redirects_that_drip_are_bounded_together() {
    let url = server(|stream| {
        read_request(stream);
        std::thread::sleep(Duration::from_millis(400));
        let _ = stream.write_all(
            b"HTTP/1.1 307 T\r\nContent-Length: 0\r\nLocation: /\r\nConnection: close\r\n\r\n",
        );
    });
    assert_eq!(ask_shortly(&url).await, "no answer within 1 s");
}

fn unsigned(url: Url) -> Channel {
    Channel { url, key: None }
}

#[tokio::test]
async fn leases_and_segments_are_posted_as_the_protocol_says() {
    let ours = "Bbot-Controller: 1\r\n";
    let (url, server) = serve(vec![
        answer(
            "200 OK",
            "Bbot-Controller: 1\r\nBbot-Session-Url: http://x/s\r\nBbot-Renew: 0.25\r\n",
            "",
        ),
        answer(
            "204 No Content",
            "Bbot-Controller: 1\r\nBbot-Lease: 60\r\nBbot-Renew: 15\r\n",
            "",
        ),
        answer("410 Gone", ours, "the task was given away"),
        answer("410 Gone", "", "a proxy's word"),
        answer("200 OK", "", "a proxy's login page"),
        answer(
            "204 No Content",
            "Bbot-Controller: 1\r\nBbot-Log-Next: 8\r\n",
            "",
        ),
        answer(
            "409 Conflict",
            "Bbot-Controller: 1\r\nBbot-Log-Next: 3\r\n",
            "",
        ),
        answer("409 Conflict", ours, ""),
        answer("404 Not Found", ours, ""),
        answer("404 Not Found", "", ""),
        answer("200 OK", "", "a proxy's login page"),
        answer("413 Too Large", "", "a proxy's bound"),
        answer("413 Too Large", ours, ""),
        answer("503 Busy", ours, ""),
    ]);
    let http = http();
    let task = ask(&http, &url).await.unwrap();
    assert_eq!(task.session_url.as_deref(), Some("http://x/s"));
    assert_eq!(task.renew, Some(Duration::from_millis(250)));
    let session = unsigned(url.join("s/1").unwrap());
    let renew = async || {
        http.renew_lease(&session, 1, Duration::ZERO, Duration::from_secs(5))
            .await
    };
    assert_eq!(renew().await, Renewed::Until(Some(Duration::from_secs(15))));
    let over = "410 Gone: the task was given away".to_owned();
    assert_eq!(renew().await, Renewed::Over(over));
    // The answer of somebody between us and a controller that is away.
    assert!(matches!(renew().await, Renewed::Again(_)));
    assert!(matches!(renew().await, Renewed::Again(_)));
    let post = async |number, skips| {
        http.post_segment(&session, number, skips, b"update\nx".to_vec())
            .await
    };
    assert_eq!(post(7, false).await, Acknowledged::Taken);
    assert_eq!(post(8, true).await, Acknowledged::Gap(3));
    assert!(matches!(post(8, false).await, Acknowledged::Again(_)));
    assert!(matches!(post(8, false).await, Acknowledged::Over(_)));
    for _ in 0..3 {
        assert!(matches!(post(8, false).await, Acknowledged::Silence(_)));
    }
    assert!(matches!(post(8, false).await, Acknowledged::Refused(_)));
    assert!(matches!(post(8, false).await, Acknowledged::Again(_)));
    let seen = server.join().unwrap();
    assert_eq!(seen[1].line, "POST /s/1/lease HTTP/1.1");
    assert_eq!(
        (seen[1].header("bbot-agent"), seen[1].body.len()),
        (Some("1"), 0)
    );
    assert_eq!(seen[5].line, "POST /s/1/log/7 HTTP/1.1");
    assert_eq!(
        seen[5].header("content-type"),
        Some("application/octet-stream")
    );
    assert_eq!(seen[5].body, b"update\nx");
    let skips = |n: usize| seen[n].header("bbot-log-skip");
    assert_eq!((skips(5), skips(6)), (None, Some("1")));
}

#[tokio::test]
async fn a_renewal_that_hangs_is_given_up_within_its_time() {
    let silent = server(|stream| {
        read_request(stream);
        let _ = stream.read(&mut [0; 1]);
    });
    let begin = Instant::now();
    let silent = unsigned(silent);
    let renewed = http().renew_lease(&silent, 1, Duration::ZERO, SHORT).await;
    assert!(matches!(renewed, Renewed::Again(_)) && begin.elapsed() < SHORT * 3);
}

#[test]
fn times_that_a_controller_names_stay_sensible() {
    for (text, expected) in [
        ("15", Some(15_000)),
        ("0.25", Some(250)),
        ("0.0001", Some(200)),
        ("1e30", Some(3_600_000)),
        ("0", None),
        ("-1", None),
        ("NaN", None),
        ("inf", None),
        ("soon", None),
        ("", None),
    ] {
        let got = super::super::http::sensible(text).map(|d| d.as_millis());
        assert_eq!(got, expected, "{text}");
    }
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Alone in its process: others would open files of their own.
#[tokio::test]
async fn thousands_of_failing_requests_leave_no_connection_behind() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = parse_url(&format!("http://{}/", free.local_addr().unwrap())).unwrap();
    drop(free);
    let closes = server(read_request);
    let broken = says("no HTTP\r\n\r\n");
    let busy = server(|stream| {
        // Kept alive, as a good server does.
        let mut bytes = [0; 4096];
        while stream.read(&mut bytes).is_ok_and(|n| n > 0) {
            let said = stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
            if said.is_err() {
                return;
            }
        }
    });
    let silent = server(|stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let http = Http::new(Duration::from_millis(100)).unwrap();
    let mut before = 0;
    for round in 0..600 {
        for url in [&refused, &closes, &broken, &busy] {
            assert!(ask(&http, url).await.is_err());
        }
        if round % 60 == 0 {
            assert!(ask(&http, &silent).await.is_err());
        }
        if round == 50 {
            before = open_files();
        }
    }
    // Both ends are in this process, and the other ends close in threads of their own.
    let begin = Instant::now();
    while open_files() > before + 8 {
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{before}, {}",
            open_files()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
