//! The second card leads out of the host and not into it.

use bbot_machine::machine::Network;

use super::internet_support::{check, is_in_a_namespace, run_in_a_namespace, world};
use super::support::{Guest, must_skip, prepare};

/// The test proper, in a network namespace of its own: another namespace plays the world.
#[tokio::test]
async fn in_a_namespace() {
    if !is_in_a_namespace() {
        return;
    }
    let world = world();
    let (folder, mut spec) = prepare(&world.script, None);
    spec.network = Network::User;
    let mut guest = Guest::start(folder, spec).await;
    let route = String::from_utf8(guest.uploaded("route").await).unwrap();
    let heard = String::from_utf8(guest.uploaded("heard").await).unwrap();
    guest.machine.force_down().await.unwrap();
    check(&route, &heard, &guest.console());
}

#[test]
fn a_guest_reaches_the_world_but_no_port_of_the_host() {
    // Root: for a namespace of the test's own.
    if must_skip() || !testkit::root() || !testkit::program("passt", "passt") {
        return;
    }
    run_in_a_namespace();
}
