//! Which names the server grants, and that none leaves its root.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::bench::{Bench, data, error_code, request};
use crate::support::content;
use bbot_tftp::packet::{self, ErrorCode, Packet};
use bbot_tftp::{REQUEST_PORT, Root};
use proptest::prelude::*;

#[test]
fn get_names_and_folders() {
    let folder = tempfile::tempdir().unwrap();
    let tools = folder.path().join("tools");
    fs::create_dir_all(tools.join("sub")).unwrap();
    fs::write(tools.join("bootstrap"), "#!/bin/sh\n").unwrap();
    fs::write(tools.join("sub/inner"), "inner").unwrap();
    fs::write(tools.join(".hidden"), "hidden").unwrap();
    fs::write(folder.path().join("task"), "task").unwrap();
    std::os::unix::fs::symlink("../task", tools.join("link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        tools.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let root = Root::new()
        .get_file("manifest", folder.path().join("task"))
        .get_file("task.manifest", folder.path().join("task"))
        .get_bytes("run.manifest", *b"run")
        .get_folder(&tools);
    let mut bench = Bench::new(root);
    let mut get = |name: &str| {
        bench
            .download(&packet::read_request(name, &[]))
            .map(|b| String::from_utf8(b).unwrap())
    };
    assert_eq!(get("manifest").unwrap(), "task");
    assert_eq!(get("/task.manifest").unwrap(), "task");
    assert_eq!(get("run.manifest").unwrap(), "run");
    assert_eq!(get("bootstrap").unwrap(), "#!/bin/sh\n");
    assert_eq!(get("nothing"), Err(ErrorCode::NotFound));
    for name in [
        "link",
        "fifo",
        "sub",
        "sub/inner",
        ".hidden",
        "..",
        "../task",
        "//bootstrap",
        "/",
        "",
        "a\x07b",
    ] {
        assert_eq!(get(name), Err(ErrorCode::AccessViolation), "{name:?}");
    }
    assert_eq!(get(&"x".repeat(129)), Err(ErrorCode::AccessViolation));
    assert_eq!(get(&"x".repeat(128)), Err(ErrorCode::NotFound));
    // An upload is not granted by anything here.
    assert_eq!(
        error_code(&bench.upload("manifest", b"x")),
        ErrorCode::AccessViolation
    );
    assert_eq!(bench.server.sessions(), 0);
}

/// Pieces of names that have opened other people's servers.
fn wicked_name() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"..".to_vec()),
        Just(b"/".to_vec()),
        Just(b"\\".to_vec()),
        Just(b".".to_vec()),
        Just(b"%2e%2e%2f".to_vec()),
        Just(b"\xc0\xae\xc0\xae\xc0\xaf".to_vec()),
        Just(b"secret".to_vec()),
        Just(b"in".to_vec()),
        Just(b"link".to_vec()),
        Just(b"folder".to_vec()),
        Just(b"allowed".to_vec()),
        Just(b"/proc/self/root/".to_vec()),
        proptest::collection::vec(1..=255u8, 1..4),
    ];
    proptest::collection::vec(piece, 0..7).prop_map(|pieces| pieces.concat())
}

fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry
            .file_name()
            .into_string()
            .unwrap_or_else(|name| format!("{name:?}"));
        let kind = entry.file_type().unwrap();
        if kind.is_symlink() {
            let target = fs::read_link(entry.path()).unwrap();
            files.insert(name, target.into_os_string().into_encoded_bytes());
        } else if kind.is_dir() {
            files.extend(
                tree(&entry.path())
                    .into_iter()
                    .map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)),
            );
        } else {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    files
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the name: only the folder's own files go out, and nothing comes in beside it.
    #[test]
    fn no_name_leaves_the_root(name in prop_oneof![wicked_name(), proptest::collection::vec(1..=255u8, 0..140)]) {
        let world = tempfile::tempdir().unwrap();
        let inside = world.path().join("in");
        fs::create_dir_all(inside.join("folder")).unwrap();
        fs::write(world.path().join("secret"), "SECRET").unwrap();
        fs::write(inside.join("folder/secret"), "SECRET").unwrap();
        fs::write(inside.join("allowed"), "allowed").unwrap();
        std::os::unix::fs::symlink("../secret", inside.join("link")).unwrap();
        std::os::unix::fs::symlink("..", inside.join("linkfolder")).unwrap();
        let mut bench = Bench::new(Root::new().get_folder(&inside).put_any(&inside, 100));
        for sent in bench.send(REQUEST_PORT, &request(1, &name, b"octet", &[])) {
            if let Ok(Packet::Data { data, .. }) = Packet::decode(&sent.1) {
                prop_assert_eq!(data, b"allowed");
            }
        }
        let before = tree(world.path());
        bench.peer.set_port(4001);
        let (port, _) = bench.ask(REQUEST_PORT, &request(2, &name, b"octet", &[]));
        bench.send(port, &data(1, b"mine"));
        drop(bench);
        let changed: Vec<_> =
            tree(world.path()).into_iter().filter(|(path, bytes)| before.get(path) != Some(bytes)).collect();
        prop_assert!(changed.len() <= 1, "{changed:?}");
        for (path, bytes) in changed {
            // A link itself may be replaced by the file; what it points to may not.
            prop_assert!(path.strip_prefix("in/").is_some_and(|name| !name.contains('/')), "{path}");
            prop_assert_eq!(bytes, b"mine");
        }
    }

    /// Bytes from outside never stop the server, in whatever state it is.
    #[test]
    fn no_bytes_stop_it(packets in proptest::collection::vec((0..3u8, proptest::collection::vec(any::<u8>(), 0..40)), 0..20)) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new().get_bytes("file", content(3000, 1)).put_any(folder.path(), 10_000);
        let mut bench = Bench::new(root);
        let (get, _) = bench.ask(REQUEST_PORT, &packet::read_request("file", &[("windowsize", 3)]));
        bench.peer.set_port(4001);
        let (put, _) = bench.ask(REQUEST_PORT, &packet::write_request("up", &[("windowsize", 3)]));
        for (to, mut packet) in packets {
            if let [high, low, ..] = packet.as_mut_slice() {
                (*high, *low) = (0, *low % 8);
            }
            bench.peer.set_port(if to == 1 { 4000 } else { 4001 });
            bench.send([REQUEST_PORT, get, put][usize::from(to)], &packet);
            bench.pass(Duration::from_millis(300));
        }
        prop_assert!(bench.server.sessions() <= 4);
    }
}
