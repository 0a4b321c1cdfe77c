use super::*;

/// Adds a plain file.
fn file<W: Write>(writer: &mut Writer<W>, name: &str, contents: &str) -> Added {
    let content = Content::File {
        contents: &mut contents.as_bytes(),
        size: contents.len() as u64,
        mode: Mode::Plain,
    };
    writer.add(Path::new(name), Some(7), content).unwrap()
}

fn add<W: Write>(writer: &mut Writer<W>, name: &str, content: Content<'_>) -> Added {
    writer.add(Path::new(name), None, content).unwrap()
}

/// Kind, name, target, mode, time, contents of each entry.
fn read(bytes: &[u8]) -> Vec<(EntryType, String, String, u32, u64, String)> {
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
    tar.entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            let (kind, mode) = (header.entry_type(), header.mode().unwrap());
            let time = header.mtime().unwrap();
            let path = |path: Option<std::borrow::Cow<'_, Path>>| {
                path.map(|path| path.display().to_string())
                    .unwrap_or_default()
            };
            let name = path(Some(entry.path().unwrap()));
            let target = path(entry.link_name().unwrap());
            let mut contents = String::new();
            entry.read_to_string(&mut contents).unwrap();
            (kind, name, target, mode, time, contents)
        })
        .collect()
}

#[test]
fn what_was_added_comes_out_in_its_order() {
    let mut writer = Writer::new(Vec::new(), Some("p-1")).unwrap();
    assert_eq!(add(&mut writer, "./", Content::Directory), Added::Written);
    assert_eq!(file(&mut writer, "./b", "two"), Added::Written);
    let run = Content::File {
        contents: &mut &b"#!"[..],
        size: 2,
        mode: Mode::of(0o4711),
    };
    assert_eq!(add(&mut writer, "a", run), Added::Written);
    assert_eq!(add(&mut writer, "d/", Content::Directory), Added::Written);
    let long = format!("d/{}", "x".repeat(150));
    assert_eq!(file(&mut writer, &long, ""), Added::Written);
    for (name, content) in [
        ("d/link", Content::Symlink(Path::new("../a"))),
        ("hard", Content::HardLink(Path::new("./b"))),
    ] {
        assert_eq!(add(&mut writer, name, content), Added::Written);
    }
    let archive = writer.finish().unwrap();
    assert_eq!(archive.files, 4);
    let entry = |kind, name: &str, target: &str, mode, time, contents: &str| {
        let words = [name, target, contents].map(ToOwned::to_owned);
        let [name, target, contents] = words;
        (kind, name, target, mode, time, contents)
    };
    let long = format!("p-1/{long}");
    assert_eq!(
        read(&archive.output),
        [
            entry(EntryType::Directory, "p-1/", "", 0o755, 0, ""),
            entry(EntryType::Regular, "p-1/b", "", 0o644, 7, "two"),
            entry(EntryType::Regular, "p-1/a", "", 0o755, 0, "#!"),
            entry(EntryType::Directory, "p-1/d/", "", 0o755, 0, ""),
            entry(EntryType::Regular, &long, "", 0o644, 7, ""),
            entry(EntryType::Symlink, "p-1/d/link", "../a", 0o777, 0, ""),
            entry(EntryType::Link, "p-1/hard", "p-1/b", 0o777, 0, ""),
        ]
    );
}

#[test]
fn the_bytes_have_no_time_of_their_own_and_the_hash_is_theirs() {
    let write = || {
        let mut writer = Writer::new(Vec::new(), None).unwrap();
        assert_eq!(file(&mut writer, "a", "one"), Added::Written);
        writer.finish().unwrap()
    };
    let archive = write();
    assert_eq!(archive.output, write().output);
    // RFC 1952, 2.3: no flags, so no name; then the time.
    assert_eq!(archive.output[3..8], [0; 5]);
    assert_eq!(archive.size, archive.output.len() as u64);
    assert_eq!(archive.sha256, hex::encode(Sha256::digest(&archive.output)));
}

#[test]
fn what_no_unpacker_takes_is_left_out() {
    let mut writer = Writer::new(Vec::new(), Some("p-1")).unwrap();
    assert_eq!(file(&mut writer, "d/file", "x"), Added::Written);
    let to = |target: &'static str| Path::new(target);
    let out = |target: &str| LeftOut::LeadsOut(target.into());
    let none = |target: &str| LeftOut::NoFile(target.into());
    for (name, content, why) in [
        ("l", Content::Symlink(to("/etc")), out("/etc")),
        // Inside the archive, but beside the package.
        ("l", Content::Symlink(to("../p-2")), out("../p-2")),
        ("d/l", Content::Symlink(to("../../x")), out("../../x")),
        ("l", Content::Symlink(to("")), out("")),
        ("h", Content::HardLink(to("../x")), out("../x")),
        ("h", Content::HardLink(to("later")), none("later")),
        ("h", Content::HardLink(to("d")), none("d")),
        ("d/file", Content::HardLink(to("d/file")), none("d/file")),
        ("d/file/x", Content::Directory, LeftOut::Below),
        ("d/file", Content::Directory, LeftOut::Taken),
        ("d", Content::Symlink(to(".")), LeftOut::Taken),
        (".", Content::Symlink(to("d")), LeftOut::Taken),
        ("dev", Content::Other, LeftOut::Kind),
    ] {
        let left_out = Added::LeftOut(why);
        assert_eq!(add(&mut writer, name, content), left_out, "{name}");
    }
    let archive = writer.finish().unwrap();
    let names: Vec<_> = read(&archive.output).into_iter().map(|e| e.1).collect();
    assert_eq!(names, ["p-1/", "p-1/d/file"]);
}

#[test]
fn names_that_lead_out_are_errors() {
    assert!(matches!(
        Writer::new(Vec::new(), Some("../p")),
        Err(WriteError::Name(_))
    ));
    let mut writer = Writer::new(Vec::new(), None).unwrap();
    for name in ["../x", "/x", "a/../../x"] {
        let error = writer
            .add(Path::new(name), None, Content::Directory)
            .unwrap_err();
        assert!(error.to_string().contains("leaves the package"), "{error}");
    }
}

#[test]
fn a_file_has_the_size_that_was_said() {
    let add = |size| {
        let mut writer = Writer::new(Vec::new(), None).unwrap();
        let content = Content::File {
            contents: &mut &b"12345"[..],
            size,
            mode: Mode::Plain,
        };
        let _ = writer.add(Path::new("f"), None, content)?;
        writer.finish()
    };
    assert_eq!(read(&add(3).unwrap().output)[0].5, "123");
    assert!(matches!(add(6), Err(WriteError::Short(name)) if name == Path::new("f")));
}

#[test]
fn a_full_disk_is_an_error() {
    #[derive(Debug)]
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let result = Writer::new(Full, None).and_then(Writer::finish);
    assert!(matches!(result, Err(WriteError::Finish(_))), "{result:?}");
}
