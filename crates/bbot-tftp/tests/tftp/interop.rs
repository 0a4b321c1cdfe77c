//! Our server with other people's clients, and our client with somebody else's server.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::server::{Ours, TftpdHpa};
use crate::support::{assert_same, content, have, run};
use bbot_tftp::client::{self, Options};
use bbot_tftp::{Event, Failure, Limits, Root};

/// Lengths at which clients and servers go wrong.
fn lengths(block_size: usize) -> Vec<usize> {
    vec![
        0,
        1,
        block_size - 1,
        block_size,
        block_size + 1,
        8 * block_size,
        300_000,
    ]
}

/// Wraps the block number at 512 bytes a block.
const WRAPPING: usize = 65_536 * 512 + 700;

type Client = fn(&Path, SocketAddr, &str, usize) -> Command;

/// Runs a client's GET for every length and compares.
fn check_get(program: &str, block_size: usize, lengths: &[usize], command: Client) {
    if !have(program) {
        return;
    }
    let (served, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Ours::of_folder(served.path(), Limits::default());
    for &length in lengths {
        let bytes = content(length, 1);
        fs::write(served.path().join("file"), &bytes).unwrap();
        let output = run(&mut command(own.path(), server.address, "file", block_size));
        let what = format!("{program}, {length} bytes in blocks of {block_size}: {output:?}");
        assert!(output.status.success(), "{what}");
        assert_same(
            &fs::read(own.path().join("file")).expect(&what),
            &bytes,
            &what,
        );
        assert_eq!(
            server.outcome(),
            Event::Fetched {
                name: "file".into(),
                bytes: length as u64
            },
            "{what}"
        );
        fs::remove_file(own.path().join("file")).unwrap();
    }
}

/// Runs a client's PUT for every length and compares.
fn check_put(program: &str, block_size: usize, lengths: &[usize], command: Client) {
    if !have(program) {
        return;
    }
    let (served, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Ours::of_folder(served.path(), Limits::default());
    for &length in lengths {
        let bytes = content(length, 2);
        fs::write(own.path().join("file"), &bytes).unwrap();
        let output = run(&mut command(own.path(), server.address, "file", block_size));
        let what = format!("{program}, {length} bytes in blocks of {block_size}: {output:?}");
        assert!(output.status.success(), "{what}");
        // The client was acknowledged, so the file is there.
        assert_same(
            &fs::read(served.path().join("file")).expect(&what),
            &bytes,
            &what,
        );
        let Event::Uploaded { bytes: told, .. } = server.outcome() else {
            panic!("{what}")
        };
        assert_eq!(told, length as u64);
        fs::remove_file(served.path().join("file")).unwrap();
    }
}

fn curl_get(folder: &Path, server: SocketAddr, name: &str, block_size: usize) -> Command {
    let mut curl = Command::new("curl");
    curl.args([
        "-sS",
        "--max-time",
        "90",
        "--tftp-blksize",
        &block_size.to_string(),
        "-o",
        name,
    ]);
    curl.arg(format!("tftp://{server}/{name}"))
        .current_dir(folder);
    curl
}

fn curl_put(folder: &Path, server: SocketAddr, name: &str, block_size: usize) -> Command {
    let mut curl = Command::new("curl");
    curl.args([
        "-sS",
        "--max-time",
        "90",
        "--tftp-blksize",
        &block_size.to_string(),
        "-T",
        name,
    ]);
    curl.arg(format!("tftp://{server}/{name}"))
        .current_dir(folder);
    curl
}

fn hpa(folder: &Path, server: SocketAddr, words: &[&str]) -> Command {
    let mut tftp = Command::new("tftp");
    tftp.args([
        "-m",
        "binary",
        &server.ip().to_string(),
        &server.port().to_string(),
        "-c",
    ]);
    tftp.args(words).current_dir(folder);
    tftp
}

fn hpa_get(folder: &Path, server: SocketAddr, name: &str, _: usize) -> Command {
    hpa(folder, server, &["get", name])
}

fn hpa_put(folder: &Path, server: SocketAddr, name: &str, _: usize) -> Command {
    hpa(folder, server, &["put", name])
}

fn atftp(folder: &Path, server: SocketAddr, options: &[String], way: &str, name: &str) -> Command {
    let mut atftp = Command::new("atftp");
    for option in options {
        atftp.args(["--option", option]);
    }
    atftp.args([
        way,
        "-r",
        name,
        "-l",
        name,
        &server.ip().to_string(),
        &server.port().to_string(),
    ]);
    atftp.current_dir(folder);
    atftp
}

fn atftp_options(block_size: usize, window: usize) -> Vec<String> {
    vec![
        format!("blksize {block_size}"),
        format!("windowsize {window}"),
        "tsize enable".into(),
    ]
}

fn busybox(folder: &Path, server: SocketAddr, way: &str, name: &str, block_size: usize) -> Command {
    let mut busybox = Command::new("busybox");
    busybox.args([
        "tftp",
        way,
        "-b",
        &block_size.to_string(),
        "-r",
        name,
        "-l",
        name,
    ]);
    busybox
        .args([&server.ip().to_string(), &server.port().to_string()])
        .current_dir(folder);
    busybox
}

#[test]
fn curl_gets() {
    for block_size in [512, 1428, 8192, 65464] {
        check_get("curl", block_size, &lengths(block_size), curl_get);
    }
    check_get("curl", 512, &[WRAPPING], curl_get);
}

#[test]
fn curl_puts() {
    for block_size in [512, 1428, 8192, 65464] {
        check_put("curl", block_size, &lengths(block_size), curl_put);
    }
    check_put("curl", 512, &[WRAPPING], curl_put);
}

#[test]
fn curl_moves_100_megabytes() {
    check_get("curl", 1428, &[100 << 20], curl_get);
    check_put("curl", 1428, &[100 << 20], curl_put);
}

#[test]
fn tftp_hpa_gets_and_puts() {
    check_get("tftp", 512, &lengths(512), hpa_get);
    check_put("tftp", 512, &lengths(512), hpa_put);
    check_get("tftp", 512, &[WRAPPING], hpa_get);
    check_put("tftp", 512, &[WRAPPING], hpa_put);
}

#[test]
fn tftp_hpa_gets_text() {
    if !have("tftp") {
        return;
    }
    let own = tempfile::tempdir().unwrap();
    let text = "one\ntwo\rthree\r\n\n".repeat(1000);
    let server = Ours::start(
        Root::new().get_bytes("text", text.clone().into_bytes()),
        Limits::default(),
    );
    let mut tftp = Command::new("tftp");
    tftp.args([
        "-m",
        "ascii",
        "127.0.0.1",
        &server.address.port().to_string(),
        "-c",
        "get",
        "text",
    ]);
    let output = run(tftp.current_dir(own.path()));
    assert!(output.status.success(), "{output:?}");
    assert_same(
        &fs::read(own.path().join("text")).unwrap(),
        text.as_bytes(),
        "text",
    );
}

#[test]
fn atftp_gets_and_puts_with_windows() {
    for (block_size, window) in [(512, 1), (512, 8), (1428, 32), (8192, 16), (1468, 64)] {
        type Ways = (Client, Client);
        // Plain functions, so one for each case.
        let (get, put): Ways = match (block_size, window) {
            (_, 1) => (
                |f, s, n, b| atftp(f, s, &atftp_options(b, 1), "-g", n),
                |f, s, n, b| atftp(f, s, &atftp_options(b, 1), "-p", n),
            ),
            (_, 8) => (
                |f, s, n, b| atftp(f, s, &atftp_options(b, 8), "-g", n),
                |f, s, n, b| atftp(f, s, &atftp_options(b, 8), "-p", n),
            ),
            (_, 16) => (
                |f, s, n, b| atftp(f, s, &atftp_options(b, 16), "-g", n),
                |f, s, n, b| atftp(f, s, &atftp_options(b, 16), "-p", n),
            ),
            (_, 32) => (
                |f, s, n, b| atftp(f, s, &atftp_options(b, 32), "-g", n),
                |f, s, n, b| atftp(f, s, &atftp_options(b, 32), "-p", n),
            ),
            _ => (
                |f, s, n, b| atftp(f, s, &atftp_options(b, 64), "-g", n),
                |f, s, n, b| atftp(f, s, &atftp_options(b, 64), "-p", n),
            ),
        };
        let mut lengths = lengths(block_size);
        lengths.push(window * block_size);
        lengths.push(4 << 20);
        check_get("atftp", block_size, &lengths, get);
        check_put("atftp", block_size, &lengths, put);
    }
}

#[test]
fn busybox_gets_and_puts() {
    for block_size in [512, 1468] {
        check_get("busybox", block_size, &lengths(block_size), |f, s, n, b| {
            busybox(f, s, "-g", n, b)
        });
        check_put("busybox", block_size, &lengths(block_size), |f, s, n, b| {
            busybox(f, s, "-p", n, b)
        });
    }
}

#[test]
fn our_client_with_tftpd_hpa() {
    if !have("in.tftpd") || !testkit::root() {
        return;
    }
    let served = tempfile::tempdir().unwrap();
    let server = TftpdHpa::start(served.path());
    for block_size in [512, 1428, 8192, 65464] {
        // It does not know windowsize: the transfer goes on without.
        let options = Options {
            block_size,
            ..Options::default()
        };
        for length in lengths(block_size.into()) {
            let bytes = content(length, 3);
            fs::write(served.path().join("down"), &bytes).unwrap();
            let mut got = Vec::new();
            assert_eq!(
                client::get(server.address, "down", &mut got, &options).unwrap(),
                length as u64
            );
            assert_same(&got, &bytes, "what our client got");
            let _ = fs::remove_file(served.path().join("up"));
            let put = client::put(
                server.address,
                "up",
                &mut bytes.as_slice(),
                Some(length as u64),
                &options,
            );
            assert_eq!(put.unwrap(), length as u64);
            assert_same(
                &settled(&served.path().join("up"), length),
                &bytes,
                "what tftpd-hpa got",
            );
        }
    }
    let error = client::get(
        server.address,
        "absent",
        &mut Vec::new(),
        &Options::default(),
    )
    .unwrap_err();
    assert!(error.is_not_found() && !error.is_timeout(), "{error}");
    // Wrapping, with the smallest block that it takes.
    let bytes = content(WRAPPING, 4);
    fs::write(served.path().join("down"), &bytes).unwrap();
    let mut got = Vec::new();
    let plain = Options {
        block_size: 512,
        window: 1,
        ..Options::default()
    };
    client::get(server.address, "down", &mut got, &plain).unwrap();
    assert_same(&got, &bytes, "what our client got");
}

/// tftpd-hpa acknowledges before it writes: waits until the file has its length.
fn settled(path: &Path, length: usize) -> Vec<u8> {
    for _ in 0..500 {
        let bytes = fs::read(path).unwrap_or_default();
        if bytes.len() == length {
            return bytes;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    fs::read(path).unwrap()
}

#[test]
fn our_client_with_our_server() {
    let folder = tempfile::tempdir().unwrap();
    let server = Ours::of_folder(folder.path(), Limits::default());
    for (block_size, window) in [(512, 1), (1468, 16), (8192, 64), (65464, 4)] {
        let options = Options {
            block_size,
            window,
            ..Options::default()
        };
        for length in [0, 1, usize::from(block_size), 5 << 20] {
            let bytes = content(length, 5);
            let put = client::put(
                server.address,
                "file",
                &mut bytes.as_slice(),
                None,
                &options,
            );
            assert_eq!(put.unwrap(), length as u64);
            assert!(matches!(server.outcome(), Event::Uploaded { .. }));
            let own = tempfile::NamedTempFile::new().unwrap();
            let mut file = File::create(own.path()).unwrap();
            assert_eq!(
                client::get(server.address, "file", &mut file, &options).unwrap(),
                length as u64
            );
            assert_same(&fs::read(own.path()).unwrap(), &bytes, "there and back");
            assert!(matches!(server.outcome(), Event::Fetched { .. }));
        }
    }
}

#[test]
fn windows_of_all_sizes_fit_the_buffers() {
    let folder = tempfile::tempdir().unwrap();
    let server = Ours::of_folder(folder.path(), Limits::default());
    // From blocks that go as a run with one system call to those that go alone, and lengths that end
    // in the middle of a run and at its end.
    for block_size in [512, 1428, 8192, 32_000, 65_464] {
        for (window, blocks) in [(2, 40), (44, 200), (64, 128), (200, 129)] {
            let length = usize::from(block_size) * blocks;
            for length in [length, length - 1] {
                let options = Options {
                    block_size,
                    window,
                    ..Options::default()
                };
                let bytes = content(length, 3);
                let what = format!("{block_size} {window} {length}");
                let mut from = bytes.as_slice();
                client::put(server.address, "file", &mut from, None, &options).expect(&what);
                let mut got = Vec::new();
                client::get(server.address, "file", &mut got, &options).expect(&what);
                assert_same(&got, &bytes, &what);
            }
        }
    }
}

#[test]
fn clients_are_told_of_refusals() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mine"), "x").unwrap();
    let root = Root::new().put_once(&["result"], folder.path(), 1000);
    let server = Ours::start(root, Limits::default());
    if have("curl") {
        let code = |command: &mut Command| run(command).status.code();
        // curl's codes: 68 not found, 69 no permission, 70 disk full, 73 exists.
        assert_eq!(
            code(&mut curl_get(folder.path(), server.address, "absent", 512)),
            Some(68)
        );
        assert_eq!(
            code(&mut curl_put(folder.path(), server.address, "mine", 512)),
            Some(69)
        );
        let mut large = curl_put(folder.path(), server.address, "result", 512);
        fs::write(folder.path().join("large"), [0; 5000]).unwrap();
        fs::rename(folder.path().join("large"), folder.path().join("upload")).unwrap();
        large = {
            let mut curl = Command::new(large.get_program());
            curl.args([
                "-sS",
                "-T",
                "upload",
                &format!("tftp://{}/result", server.address),
            ]);
            curl.current_dir(folder.path());
            curl
        };
        assert_eq!(code(&mut large), Some(70));
    }
    let none = Options::default();
    let error = client::get(server.address, "absent", &mut Vec::new(), &none).unwrap_err();
    assert!(error.is_not_found());
    client::put(server.address, "result", &mut &b"first"[..], Some(5), &none).unwrap();
    let error = client::put(
        server.address,
        "result",
        &mut &b"second"[..],
        Some(6),
        &none,
    )
    .unwrap_err();
    assert!(error.to_string().contains("error 6"), "{error}");
    assert_eq!(fs::read(folder.path().join("result")).unwrap(), b"first");
}

#[test]
fn our_client_keeps_its_bounds() {
    use std::time::{Duration, Instant};
    let server = Ours::start(
        Root::new().get_bytes("large", vec![0; 100_000]),
        Limits::default(),
    );
    let limited = Options {
        limit: 50_000,
        ..Options::default()
    };
    let error = client::get(server.address, "large", &mut Vec::new(), &limited).unwrap_err();
    assert!(
        matches!(error.reason, client::Reason::TooLarge { limit: 50_000 }),
        "{error}"
    );
    assert!(matches!(
        server.outcome(),
        Event::Failed {
            reason: Failure::Peer { .. },
            ..
        }
    ));

    // Nobody there: until the deadline, and not for longer.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let started = Instant::now();
    let hurried = Options {
        deadline: Some(started + Duration::from_millis(300)),
        ..Options::default()
    };
    let error =
        client::get(silent.local_addr().unwrap(), "x", &mut Vec::new(), &hurried).unwrap_err();
    assert!(error.is_timeout() && !error.is_not_found(), "{error}");
    assert!((300..3000).contains(&started.elapsed().as_millis()));

    // A place that cannot be written.
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let error = client::get(server.address, "large", &mut Full, &Options::default()).unwrap_err();
    assert!(matches!(error.reason, client::Reason::Write(_)), "{error}");
}

#[test]
fn a_stopped_server_ends_its_transfers() {
    let folder = tempfile::tempdir().unwrap();
    let server = Ours::of_folder(folder.path(), Limits::default());
    let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(std::time::Duration::from_secs(10)))
        .unwrap();
    peer.send_to(b"\0\x02file\0octet\0", server.address)
        .unwrap();
    let mut buffer = [0; 600];
    let (length, transfer) = peer.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], [0, 4, 0, 0]);
    let started = std::time::Instant::now();
    drop(server);
    assert!(
        started.elapsed() < std::time::Duration::from_millis(900),
        "it waits for nobody"
    );
    let (length, from) = peer.recv_from(&mut buffer).unwrap();
    assert_eq!((from, &buffer[..4]), (transfer, &[0, 5, 0, 0][..]));
    assert!(length > 5);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_address_is_needed() {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let error = bbot_tftp::udp::serve(
        socket,
        &Root::new(),
        &Limits::default(),
        &bbot_tftp::udp::Stop::new(),
        &drop,
    );
    assert!(matches!(
        error,
        Err(bbot_tftp::udp::ServeError::Unspecified(_))
    ));
}

#[test]
fn one_port_one_request_after_the_other() {
    use std::net::UdpSocket;
    // Some clients in firmware never change their port, and ask for the next file right after the
    // last ACK of the one before.
    let root = Root::new().get_bytes("one", *b"1").get_bytes("two", *b"2");
    let server = Ours::start(root, Limits::default());
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(std::time::Duration::from_secs(5)))
        .unwrap();
    let mut buffer = [0; 600];
    for round in 0..200 {
        let name = if round % 2 == 0 { "one" } else { "two" };
        peer.send_to(format!("\0\x01{name}\0octet\0").as_bytes(), server.address)
            .unwrap();
        let (length, transfer) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!(
            buffer[..length],
            [0, 3, 0, 1, if name == "one" { b'1' } else { b'2' }]
        );
        peer.send_to(&[0, 4, 0, 1], transfer).unwrap();
    }
    for _ in 0..200 {
        assert!(matches!(server.outcome(), Event::Fetched { bytes: 1, .. }));
    }
}
