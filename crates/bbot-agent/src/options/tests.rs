use super::*;
use clap::CommandFactory;

fn parse(args: &[&str]) -> Result<Options, clap::Error> {
    Options::try_parse_from(std::iter::once(&"bbot-agent").chain(args))
}

#[test]
fn the_command_line_is_consistent() {
    Options::command().debug_assert();
}

#[test]
fn defaults_are_the_seeds() {
    let o = parse(&["http://c"]).unwrap();
    assert_eq!(o.toolchain_name, "default");
    assert_eq!((o.toolchain_num, o.tftp_port), (1, 23400));
    assert_eq!((o.cpu, o.ram), (1, 1_048_576));
    assert_eq!((o.bootstrap_timeout, o.bootstrap_retries), (3600, 2));
    assert_eq!((o.build_timeout, o.build_retries), (1800, 2));
    assert_eq!((o.request_timeout, o.verbose), (300, 1));
    assert_eq!(o.build_startup(Accelerator::Kvm).as_secs(), 60);
    assert_eq!(o.bootstrap_startup(Accelerator::Kvm).as_secs(), 300);
    assert_eq!(o.machines, PathBuf::from("/build/machines/"));
    assert_eq!(o.tftp, PathBuf::from("/build/tftp/"));
    assert!(o.openssl.is_none() && o.toolchain_id.is_none());
    assert_eq!(o.toolchain_version(), crate::version::own());
}

#[test]
fn service_files_of_later_releases_are_taken() {
    let later = [
        "--instance",
        "2",
        "--request-retries",
        "4",
        "--build-ram",
        "2048",
        "--connect-timeout",
        "7",
    ];
    let o = parse(
        &[
            &later[..],
            &[
                "--interactive",
                "false",
                "--intactive-timeout",
                "10800",
                "u",
            ],
        ]
        .concat(),
    );
    let o = o.unwrap();
    assert_eq!((o.ram, o.connect_timeout, o.instance), (2048, 7, Some(2)));
    let refused = parse(&["--interactive", "both", "u"]).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("interactive builds are not there")
    );
}

#[test]
fn startup_waits_are_longer_when_translated_unless_given() {
    let o = parse(&["http://c"]).unwrap();
    assert_eq!(o.build_startup(Accelerator::Tcg).as_secs(), 300);
    assert_eq!(o.bootstrap_startup(Accelerator::Tcg).as_secs(), 1500);
    let o = parse(&["--build-startup", "7", "--bootstrap-startup", "8", "u"]).unwrap();
    assert_eq!(o.build_startup(Accelerator::Tcg).as_secs(), 7);
    assert_eq!(o.bootstrap_startup(Accelerator::Tcg).as_secs(), 8);
}

#[test]
fn machines_may_have_the_hosts_memory_but_a_reserve() {
    const GIB: u64 = 1024 * 1024;
    for (physical, one, expected) in [
        (16 * GIB, GIB, 14 * GIB),
        (2 * GIB, GIB, 3 * GIB / 2),
        (GIB, GIB, GIB),
        (0, GIB, GIB),
    ] {
        assert_eq!(default_ram_budget(physical, one), expected);
    }
    let o = parse(&["http://c"]).unwrap();
    assert!(o.ram_budget() >= o.ram);
    let o = parse(&["--host-ram", "4096", "http://c"]).unwrap();
    assert_eq!(o.ram_budget(), 4096);
}

#[test]
fn options_may_follow_urls_and_be_repeated() {
    let o = parse(&[
        "http://c", "--cpu", "2", "--cpu=4", "--trust", "a", "--trust", "b",
    ])
    .unwrap();
    assert_eq!(o.cpu, 4);
    assert_eq!(o.trust, ["a", "b"]);
    assert_eq!(o.controllers, ["http://c"]);
    let o = parse(&["--openssl", "p", "--openssl-option", "-engine", "u"]).unwrap();
    assert_eq!(o.openssl_option, ["-engine"]);
}

#[test]
fn what_makes_no_sense_is_said() {
    assert!(matches!(
        parse(&[]).unwrap().check(),
        Err(Usage::NoController)
    ));
    assert!(parse(&["--dump-machines"]).unwrap().check().is_ok());
    assert!(parse(&["--fake-request", "f"]).unwrap().check().is_ok());
    assert!(matches!(
        parse(&["--openssl-option", "x", "u"]).unwrap().check(),
        Err(Usage::Needs("--openssl-option", _))
    ));
    for wrong in [
        &["--cpu", "0", "u"][..],
        &["--instance-max", "0", "u"],
        &["--host-cpu", "0", "u"],
        &["--verbose", "7", "u"],
        &["--toolchain-name", "../x", "u"],
        &["--toolchain-name", "", "u"],
        &["--toolchain-ver", "one", "u"],
        &["--accel", "fast", "u"],
        &["--network", "br1", "u"],
        &["--bridge", "", "u"],
        &["--bridge", "br/1", "u"],
        &["--bridge", "a-name-that-is-too-long", "u"],
    ] {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn the_bridge_that_is_wanted() {
    let name = |text: &str| text.parse::<InterfaceName>().unwrap();
    for (args, wanted) in [
        (&["u"][..], Wanted::IfUsable(name("br1"))),
        (&["--bridge", "lan0", "u"], Wanted::Bridge(name("lan0"))),
        (&["--network", "bridge", "u"], Wanted::Bridge(name("br1"))),
        (
            &["--network", "bridge", "--bridge", "lan0", "u"],
            Wanted::Bridge(name("lan0")),
        ),
        (&["--network", "none", "u"], Wanted::Wire),
        (&["--network", "user", "u"], Wanted::Wire),
    ] {
        assert_eq!(parse(args).unwrap().wanted_bridge(), wanted, "{args:?}");
    }
    for network in ["none", "user"] {
        let options = parse(&["--bridge", "br1", "--network", network, "u"]).unwrap();
        assert!(matches!(options.check(), Err(Usage::Needs("--bridge", _))));
    }
    // A bridge that was asked for and is not there is an error, not another network.
    let options = parse(&["--bridge", "bbot-no-such-br", "u"]).unwrap();
    let error = options.check().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("there is no bridge bbot-no-such-br"),
        "{error}"
    );
    assert_eq!(
        parse(&["--network", "none", "u"])
            .unwrap()
            .machine_network(),
        Network::None
    );
    let user = parse(&["--network", "user", "u"]).unwrap();
    assert_eq!(user.machine_network(), Network::User);
    user.check().unwrap();
}

#[test]
fn a_time_that_cannot_be_reckoned_with_is_refused() {
    let most = u64::MAX.to_string();
    for option in [
        "--build-timeout",
        "--build-startup",
        "--build-quiet",
        "--bootstrap-timeout",
        "--bootstrap-startup",
        "--suspend-timeout",
        "--drain-timeout",
        "--request-timeout",
        "--connect-timeout",
        "--idle-pause",
    ] {
        let refused = parse(&[option, &most, "u"]).unwrap_err().to_string();
        assert!(refused.contains("31536000"), "{option}: {refused}");
        assert!(parse(&[option, "31536000", "u"]).is_ok(), "{option}");
    }
}
