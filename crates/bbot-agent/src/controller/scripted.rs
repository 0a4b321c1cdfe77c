//! An HTTP server that plays a script, for tests: raw answers, one per connection.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::thread::JoinHandle;
use std::time::Duration;

/// What a scripted server saw of one request.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) headers: Vec<String>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|h| {
            let (n, v) = h.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| v.trim())
        })
    }
}

/// A server that gives these raw answers, one per connection.
pub(crate) fn serve(answers: Vec<String>) -> (String, JoinHandle<Vec<Seen>>) {
    serve_at("127.0.0.1:0", answers)
}

/// The same at this address.
pub(crate) fn serve_at(address: &str, answers: Vec<String>) -> (String, JoinHandle<Vec<Seen>>) {
    let listener = TcpListener::bind(address).unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let mut seen = Vec::new();
        for answer in answers {
            let (stream, _) = listener.accept().unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let mut headers = Vec::new();
            loop {
                let mut header = String::new();
                reader.read_line(&mut header).unwrap();
                if header.trim().is_empty() {
                    break;
                }
                headers.push(header.trim().to_owned());
            }
            let mut request = Seen {
                line: line.trim().to_owned(),
                headers,
                body: Vec::new(),
            };
            let length = request
                .header("content-length")
                .map_or(0, |l| l.parse().unwrap());
            request.body = vec![0; length];
            reader.read_exact(&mut request.body).unwrap();
            seen.push(request);
            // The client may have seen enough and gone.
            let _ = (&stream).write_all(answer.as_bytes());
        }
        seen
    });
    (url, thread)
}

pub(crate) fn answer(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}
