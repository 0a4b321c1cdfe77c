//! The manifests that controller, agent and worker exchange, as plain structs.
//!
//! Reading takes both eras' spellings, ignores fields it does not know, and
//! reports what is missing, doubled or ill-formed with its line and column.
//! Writing takes the [`Era`] of whoever will read it, because the original
//! refuses fields that it does not know.

mod fields;
mod machine;
mod request;
mod response;
mod result;
mod run;
mod status;
mod task;
mod toolchain;
mod warm;

pub use machine::{
    Mac, MachineHeader, MachineKind, MachineManifest, MachineRole, NAME_LIMIT, ParseMacError,
    SUMMARY_LIMIT,
};
pub use request::{InteractiveMode, TaskRequest};
pub use response::{TaskResponse, is_challenge};
pub use result::{BuildResult, OPERATION_LIMIT, OPERATIONS, OperationResult, ResultRequest};
pub use run::{Fresh, RunManifest, Source};
pub use status::{ParseStatusError, Status};
pub use task::{Auxiliary, RepositoryType, Task};
pub use toolchain::{BootstrapManifest, BootstrappedMachine, ToolchainManifest};
pub use warm::WarmManifest;

/// Whose manifests: the wire of 2017 or that of today.
///
/// "2017" is what the seed speaks. A reader of that time refuses every field
/// that came later; readers of today take both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Era {
    /// The wire of the original's first releases.
    Y2017,
    /// Everything since.
    Later,
}
