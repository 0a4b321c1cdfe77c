//! Scenarios of the loop, with time that stands still until everybody waits.

mod controllers;
mod giving_way;
mod machines;
mod results;
mod slots;
mod steering;
mod sweeping;
mod tasks;
mod warm;
mod world;

use std::fs;

use bbot_machine::machine::MachineEvent;
use bbot_machine::machine::fake::{Button, Call, Script, Step};
use bbot_manifest::{BootstrappedMachine, BuildResult, Era, ResultRequest, Status, TaskRequest};

use super::work::AGENT_CHECKSUM;
use super::*;
use crate::auth::Signer;
use crate::controller::{Kin, LinkError, Posted, TaskAnswer};
use crate::options::{IDLE_PAUSE_HELD, IDLE_PAUSE_OURS};
use crate::result::{AGENT_OPERATION, MACHINE_OPERATION};
use crate::run::Silent;
use world::*;

/// Every call but drops, which come with the rest.
fn calls(world: &World) -> Vec<Call> {
    let calls = world.fake.calls().into_iter();
    calls.filter(|c| !matches!(c, Call::Drop(_))).collect()
}

async fn build(world: &mut World) -> Turn {
    world.answer(&task_for("linux"));
    world.turn().await
}

fn bootstrapped(world: &World) -> BootstrappedMachine {
    let path = world.machine("linux").join("linux-default/manifest");
    BootstrappedMachine::parse(&fs::read(path).unwrap(), "bootstrapped").unwrap()
}
