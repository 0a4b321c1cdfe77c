use super::*;
use proptest::prelude::*;

fn read(text: &str) -> Result<Package, String> {
    Package::read(text.as_bytes(), "manifest").map_err(|e| e.to_string())
}

const MANIFEST: &str = ": 1\nname: libfoo\nversion: 1.2.3\nsummary: Foo\nrequires: c++14\nrequires: host\n\
    builds: all\nbuild-exclude: windows** ; No.\nbuild-email: a@b\n\
    cache-build-config:\\\nconfig.libfoo.cache=true\nconfig.libfoo.buffer=4096\n;\nEnable caching.\n\\\n\
    cache-builds: linux\nsys-build-config: ?sys:libz; Test with system dependencies.\nsys-build-include: linux**\n\
    sys-build-email:\nbuild-config: x\nbuild-auxiliary: *-pg\n";

#[test]
fn what_is_said_of_builds() {
    let package = read(MANIFEST).unwrap();
    let names: Vec<(&str, Option<&str>)> = package
        .configurations
        .iter()
        .map(|c| (c.name.as_str(), c.arguments.as_deref()))
        .collect();
    assert_eq!(
        names,
        [
            ("default", None),
            (
                "cache",
                Some("config.libfoo.cache=true\nconfig.libfoo.buffer=4096")
            ),
            ("sys", Some("?sys:libz")),
        ]
    );
    assert_eq!((package.builds.len(), package.constraints.len()), (1, 1));
    assert_eq!(package.configurations[1].builds.len(), 1);
    assert_eq!(package.configurations[2].constraints.len(), 1);
    assert_eq!(package.requires, ["c++14", "host"]);
    assert_eq!(
        package.auxiliaries,
        [(String::new(), "*-pg".to_owned())].into()
    );
    let particulars = package.particulars();
    assert_eq!(
        particulars.of("sys").unwrap().arguments.as_deref(),
        Some("?sys:libz")
    );
    assert_eq!(particulars.of("default"), None);
    let json = serde_json::to_string(&particulars).unwrap();
    assert_eq!(
        serde_json::from_str::<super::super::Particulars>(&json).unwrap(),
        particulars
    );
    assert_eq!(
        serde_json::to_string(&Package::default().particulars()).unwrap(),
        "{}"
    );
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    for (text, expected) in [
        (
            "name: x\n",
            "manifest:1:1: error: format version pair expected",
        ),
        (
            ": 1\nbuilds: all\nbuilds: default : -gcc\n",
            "manifest:3:9: error: invalid package builds: only the first of several can have classes before the `:`",
        ),
        (
            ": 1\n\nx-builds: +\n",
            "manifest:3:11: error: invalid package x-builds: a class or `(` expected behind `+`",
        ),
        (
            ": 1\nbuild-exclude: /t\n",
            "manifest:2:16: error: invalid package build-exclude: expected <configuration-pattern>[/<target-pattern>]",
        ),
        (
            ": 1\nx-build-config: a\nx-build-config: b\n",
            "manifest:3:1: error: `x-build-config` occurs more than once",
        ),
        (
            ": 1\nbuild-auxiliary-a: x\nbuild-auxiliary-a: y\n",
            "manifest:3:1: error: `build-auxiliary-a` occurs more than once",
        ),
        (
            ": 1\nx-build-auxiliary: ; No.\n",
            "manifest:2:20: error: invalid package x-build-auxiliary: expected a pattern of names of at most 256 characters",
        ),
        (
            ": 1\nbuild-auxiliary-a/b: x\n",
            "manifest:2:1: error: the environment's name has other than letters, digits and _ + . -, or is longer than 128",
        ),
        (
            ": 1\nbuild-bot: ssh-rsa AAAA\n",
            "manifest:2:12: error: invalid package build-bot: it is not an RSA public key in PEM form; make one with: openssl rsa -in KEY -pubout",
        ),
        (
            ": 1\nx/y-builds: all\n",
            "manifest:2:1: error: the package configuration's name has other than letters, digits and _ + . -, or is longer than 128",
        ),
    ] {
        assert_eq!(read(text).unwrap_err(), expected, "{text:?}");
    }
    let many =
        |line: &dyn Fn(usize) -> String| format!(": 1\n{}", (0..300).map(line).collect::<String>());
    for (text, expected) in [
        (
            many(&|n| format!("c{n}-build-config: a\n")),
            "64 package configurations",
        ),
        (
            many(&|n| format!("build-exclude: c{n}\n")),
            "256 classes and patterns",
        ),
        (
            many(&|_| "builds: +a\n".to_owned()),
            "256 classes and patterns",
        ),
        (many(&|n| format!("requires: c{n}\n")), "64 requirements"),
        (
            many(&|n| format!("build-auxiliary-c{n}: *\n")),
            "64 auxiliary machines",
        ),
    ] {
        let error = read(&text).unwrap_err();
        assert!(error.contains(&format!("more than {expected}")), "{error}");
    }
}

/// A public key, with its fingerprint.
fn key() -> (String, String) {
    let modulus = rsa::BigUint::from_bytes_be(&[0xff; 256]);
    let key = rsa::RsaPublicKey::new(modulus, 65537_u32.into()).unwrap();
    (auth::pem(&key), auth::fingerprint(&key))
}

#[test]
fn auxiliary_machines_and_custom_bots() {
    for (name, expected) in [
        ("build-auxiliary", Some(("", ""))),
        ("build-auxiliary-pg-sql", Some(("", "pg-sql"))),
        ("x-build-auxiliary", Some(("x", ""))),
        ("x-y-build-auxiliary-pg", Some(("x-y", "pg"))),
        ("xbuild-auxiliary", None),
        ("-build-auxiliary", None),
        ("build-auxiliary-", None),
        ("build-auxiliarypg", None),
    ] {
        assert_eq!(auxiliary(name), expected, "{name}");
    }
    let (one, of_one) = key();
    let value = |pem: &str| format!("\\\n{pem}\\\n");
    let text = format!(
        ": 1\nbuild-bot:{one}build-bot:{one}x-build-config: a=b\nx-build-auxiliary-a: *-pg ; X.\n",
        one = value(&one)
    );
    let package = read(&text).unwrap();
    assert_eq!(package.bots, [(of_one.clone(), one.clone())].into());
    let x = &package.configurations[1];
    assert_eq!(package.bots_of(x), &package.bots);
    assert_eq!(
        package.auxiliaries_of(x),
        &[("a".to_owned(), "*-pg".to_owned())].into()
    );
    assert!(
        package
            .auxiliaries_of(&package.configurations[0])
            .is_empty()
    );
    assert_eq!(package.particulars().bots, package.bots);
    let over = |text: &str| package.clone().overridden(text, "o").unwrap();
    let changed = over("build-auxiliary-b: *\n");
    assert!(changed.configurations[1].auxiliaries.is_empty() && changed.auxiliaries.len() == 1);
    let changed = over(&format!("x-build-bot:{}", value(&one)));
    assert_eq!(
        (changed.bots.len(), changed.configurations[1].bots.len()),
        (1, 1)
    );
    // So many, and no more: those of seventeen package configurations.
    let own = |n: usize| format!("c{n}-build-bot:{}", value(&one));
    let all = |n: usize| read(&format!(": 1\n{}", (0..n).map(own).collect::<String>()));
    all(16).unwrap();
    assert!(
        all(17)
            .unwrap_err()
            .contains("more than 16 keys of custom bots")
    );
}

#[test]
fn other_files_of_that_name_are_none() {
    for (text, expected) in [
        ("\n # c\n: 1\n", true),
        (": 1", true),
        (":", true),
        ("Manifest-Version: 1.0\r\n", false),
        ("{\"name\": 1}", false),
        ("", false),
        ("# only\n", false),
    ] {
        assert_eq!(is_manifest(text.as_bytes()), expected, "{text:?}");
    }
}

#[test]
fn a_submission_overrides_what_the_manifest_says() {
    let over = |text: &str| read(MANIFEST).unwrap().overridden(text, "overrides");
    let package = over("builds: default\n").unwrap();
    assert_eq!((package.builds.len(), package.constraints.len()), (1, 0));
    assert!(
        package
            .configurations
            .iter()
            .all(|c| c.builds.is_empty() && c.constraints.is_empty())
    );
    assert_eq!(package.configurations.len(), 3);
    let package =
        over(": 1\ncache-build-exclude: **\ncache-build-config: a=b\nrequires: x\n").unwrap();
    assert_eq!((package.builds.len(), package.constraints.len()), (1, 1));
    let cache = &package.configurations[1];
    assert_eq!((cache.builds.len(), cache.constraints.len()), (0, 1));
    assert_eq!(cache.arguments.as_deref(), Some("a=b"));
    assert_eq!(package.requires, ["x"]);
    assert_eq!(over("").unwrap(), read(MANIFEST).unwrap());
    for (text, expected) in [
        (
            "name: x",
            "overrides:1:1: error: `name` cannot be overridden: ",
        ),
        (
            "builds: all\nbuilds: &",
            "overrides:2:9: error: invalid package builds: ",
        ),
        (
            ": 2\n",
            "overrides:1:3: error: unsupported format version 2",
        ),
    ] {
        let error = over(text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(: 1\n)?([a-c]{0,2}-?(builds|build-exclude|build-config|build-auxiliary(-[a-c/]?)?|build-bot|requires|x): ?[a-c+:&;(]{0,6}\n){0,8}") {
        if let Ok(package) = Package::read(text.as_bytes(), "m") {
            prop_assert_eq!(package.configurations[0].name.as_str(), DEFAULT);
        }
        let _ = Package::default().overridden(&text, "o");
    }
}
