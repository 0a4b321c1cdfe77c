//! Controllers over TLS with certificates made here, good and bad, and HTTP/2 as nobody
//! should speak it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;

type Tls = StreamOwned<ServerConnection, TcpStream>;

/// An authority of the test's own, and its certificate in a file.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // Of two of one name the wrong signature would be told, and not the wrong signer.
        let name = dir.path().display().to_string();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let file = dir.path().join("ca.pem");
        let pem = params.self_signed(&key).unwrap().pem();
        std::fs::write(&file, pem).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            file,
            _dir: dir,
        }
    }

    fn server(&self, params: &CertificateParams, alpn: &[&str]) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        config(&certificate, &key, alpn)
    }

    fn http(&self) -> Http {
        let settings = Settings {
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            ca: Some(self.file.clone()),
        };
        Http::open(&settings).unwrap()
    }
}

fn config(certificate: &rcgen::Certificate, key: &KeyPair, alpn: &[&str]) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Arc::new(config)
}

fn good() -> CertificateParams {
    CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap()
}

fn is_told(error: &str, words: &[&str]) -> bool {
    words.iter().any(|word| error.contains(word))
}

/// Does this with each connection.
fn tls_server(config: Arc<ServerConfig>, serve: impl Fn(&mut Tls) + Send + 'static) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            let connection = ServerConnection::new(config.clone()).unwrap();
            serve(&mut StreamOwned::new(connection, stream));
        }
    });
    parse_url(&url).unwrap()
}

fn says_ok(stream: &mut Tls) {
    if stream.read(&mut [0; 16 * 1024]).is_ok() {
        let _ = stream.write_all(answer("200 OK", "", ": 1\nsession:\n").as_bytes());
        stream.conn.send_close_notify();
        let _ = stream.flush();
    }
}

async fn ask(http: &Http, url: &Url) -> Result<TaskAnswer, LinkError> {
    http.request_task(url, ": 1\n".to_owned(), Duration::ZERO.into())
        .await
}

#[tokio::test]
async fn a_given_authority_is_trusted_and_read_again() {
    let (one, other) = (Authority::new(), Authority::new());
    let url = tls_server(one.server(&good(), &[]), says_ok);
    ask(&one.http(), &url).await.unwrap();
    assert!(ask(&other.http(), &url).await.is_err());
    // The file is replaced, as before a reload.
    std::fs::copy(&one.file, &other.file).unwrap();
    ask(&other.http(), &url).await.unwrap();
}

#[tokio::test]
async fn a_bad_certificate_is_refused_with_what_is_wrong() {
    let authority = Authority::new();
    let mut expired = good();
    expired.not_before = date_time_ymd(2020, 1, 1);
    expired.not_after = date_time_ymd(2021, 1, 1);
    let mut early = good();
    early.not_before = date_time_ymd(2120, 1, 1);
    early.not_after = date_time_ymd(2121, 1, 1);
    let elsewhere = CertificateParams::new(vec!["other.example".to_owned()]).unwrap();
    let stranger = Authority::new();
    let key = KeyPair::generate().unwrap();
    let own = config(&good().self_signed(&key).unwrap(), &key, &[]);
    for (config, expected) in [
        (authority.server(&expired, &[]), &["expired", "Expired"][..]),
        (
            authority.server(&early, &[]),
            &["not valid yet", "NotValidYet"],
        ),
        (
            authority.server(&elsewhere, &[]),
            &["not valid for name", "NotValidForName"],
        ),
        (stranger.server(&good(), &[]), &["--ca"]),
        (own, &["--ca"]),
    ] {
        let url = tls_server(config, says_ok);
        let error = ask(&authority.http(), &url).await.unwrap_err();
        assert!(error.is_passing());
        let error = error.to_string();
        assert!(
            error.contains("certificate") && is_told(&error, expected),
            "{error}"
        );
        let posted = authority
            .http()
            .post_result(&to(&url, Kin::Stranger), b"secret".to_vec())
            .await;
        assert!(matches!(posted, Posted::Unreachable(_)), "{posted:?}");
    }
}

#[tokio::test]
async fn the_systems_authorities_know_nothing_of_ours() {
    let authority = Authority::new();
    let url = tls_server(authority.server(&good(), &[]), says_ok);
    let error = ask(&http(), &url).await.unwrap_err();
    assert!(!error.to_string().is_empty());
}

#[tokio::test]
async fn what_speaks_no_tls_is_an_error() {
    let (plain, server) = serve(vec![answer("200 OK", "", "")]);
    let secure = parse_url(&plain.as_str().replace("http:", "https:")).unwrap();
    let authority = Authority::new();
    assert!(ask(&authority.http(), &secure).await.is_err());
    // The scripted server has seen no request, but what it cannot read.
    drop(server);
    // Listens, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = parse_url(&format!("https://{}/", silent.local_addr().unwrap())).unwrap();
    let settings = Settings {
        timeout: Duration::from_secs(1),
        connect_timeout: Duration::from_secs(1),
        ca: Some(authority.file.clone()),
    };
    let error = ask(&Http::open(&settings).unwrap(), &url)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "no answer within 1 s");
}

#[test]
fn a_file_that_is_no_authority_is_named_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    let open = || {
        let settings = Settings {
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            ca: Some(file.clone()),
        };
        Http::open(&settings).unwrap_err().to_string()
    };
    assert!(open().contains("No such file"));
    for content in [
        &b""[..],
        b"not PEM",
        &[0xff; 100],
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        std::fs::write(&file, content).unwrap();
        let error = open();
        assert!(error.contains("ca.pem (--ca): "), "{error}");
    }
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200` (RFC 7541, appendix A).
const STATUS_200: &[u8] = &[0x88];

/// An HTTP/2 server that reads the request and then writes this.
fn h2_server(authority: &Authority, serve: impl Fn(&mut Tls) + Send + 'static) -> Url {
    let config = authority.server(&good(), &["h2"]);
    tls_server(config, move |stream| {
        // Preface, settings and request come within a few reads.
        let mut seen: Vec<u8> = Vec::new();
        let mut bytes = [0; 16 * 1024];
        let _ = stream.write_all(&frame(SETTINGS, 0, 0, &[]));
        while !seen.windows(4).any(|w| w == b": 1\n") {
            match stream.read(&mut bytes) {
                Ok(n) if n > 0 => seen.extend(&bytes[..n]),
                _ => return,
            }
        }
        let _ = stream.write_all(&frame(SETTINGS, 1, 0, &[]));
        serve(stream);
        let _ = stream.read_to_end(&mut Vec::new());
    })
}

#[tokio::test]
async fn http_2_is_spoken_where_it_is_offered() {
    let authority = Authority::new();
    let url = h2_server(&authority, |stream| {
        let _ = stream.write_all(&frame(HEADERS, END_HEADERS, 1, STATUS_200));
        let _ = stream.write_all(&frame(DATA, END_STREAM, 1, b": 1\nsession:\n"));
    });
    let answer = ask(&authority.http(), &url).await.unwrap();
    assert_eq!(answer.body, b": 1\nsession:\n");
}

#[tokio::test]
async fn http_2_as_nobody_should_speak_it_is_an_error_in_time() {
    type Serve = fn(&mut Tls);
    let authority = Authority::new();
    let cases: [(&str, Serve); 10] = [
        ("goes away", |s| {
            let _ = s.write_all(&frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 11]));
        }),
        ("resets", |s| {
            let _ = s.write_all(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 2]));
        }),
        ("endless headers", |s| {
            let _ = s.write_all(&frame(HEADERS, 0, 1, STATUS_200));
            // A literal without indexing, `x: ` and 1000 bytes, again and again.
            let mut field = vec![0, 1, b'x', 0x7f, 0xe9, 0x06];
            field.extend([b'a'; 1000]);
            while s.write_all(&frame(CONTINUATION, 0, 1, &field)).is_ok() {}
        }),
        ("empty continuations", |s| {
            let _ = s.write_all(&frame(HEADERS, 0, 1, STATUS_200));
            while s.write_all(&frame(CONTINUATION, 0, 1, &[])).is_ok() {}
        }),
        ("headers that are none", |s| {
            let _ = s.write_all(&frame(HEADERS, END_HEADERS, 1, &[0xff; 20]));
        }),
        ("no status", |s| {
            let _ = s.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &[]));
        }),
        ("data first", |s| {
            let _ = s.write_all(&frame(DATA, END_STREAM, 1, b": 1\n"));
        }),
        ("a promise nobody asked for", |s| {
            let _ = s.write_all(&frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82]));
        }),
        ("a frame that is too long", |s| {
            let _ = s.write_all(&[0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1]);
        }),
        ("pings and no answer", |s| {
            while s.write_all(&frame(PING, 0, 0, &[0; 8])).is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }),
    ];
    for (what, serve) in cases {
        let url = h2_server(&authority, serve);
        let settings = Settings {
            timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(2),
            ca: Some(authority.file.clone()),
        };
        let begin = std::time::Instant::now();
        let asked = ask(&Http::open(&settings).unwrap(), &url).await;
        assert!(
            matches!(asked, Err(LinkError::Transport(_))),
            "{what}: {asked:?}"
        );
        assert!(begin.elapsed() < Duration::from_secs(5), "{what}");
    }
}

#[tokio::test]
async fn an_endless_body_over_http_2_ends() {
    let authority = Authority::new();
    let url = h2_server(&authority, |stream| {
        let _ = stream.write_all(&frame(HEADERS, END_HEADERS, 1, STATUS_200));
        while stream.write_all(&frame(DATA, 0, 1, &[b'x'; 8192])).is_ok() {}
    });
    let error = ask(&authority.http(), &url).await.unwrap_err();
    assert!(
        matches!(error, LinkError::TooLong { .. } | LinkError::Transport(_)),
        "{error}"
    );
}
