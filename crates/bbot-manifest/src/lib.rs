//! The manifest text format, versions, and every typed manifest of the build bot.
//!
//! Three layers: the text format ([`parse`], [`serialize`]), which knows names
//! and values and their places; the words that stand in values ([`quoting`],
//! [`StandardVersion`], [`PackageVersion`], [`Status`]); and the typed
//! manifests that controller, agent and worker exchange. Nothing here does I/O.
//!
//! ```
//! use bbot_manifest::{BuildResult, Era, Status};
//!
//! let text = b": 1\nname: hello\nversion: 1.0.0\nstatus: success\n";
//! let result = BuildResult::parse(text, "result.manifest")?;
//! assert_eq!(result.status, Status::Success);
//! assert_eq!(result.serialize(Era::Y2017)?.as_bytes(), text);
//!
//! let error = BuildResult::parse(b": 1\nname: hello\n", "result.manifest").unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "result.manifest:3:1: error: result has no required field `version`"
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod chars;
mod comment;
mod error;
pub mod json;
mod manifest;
mod package_version;
mod parser;
pub mod quoting;
mod serializer;
mod standard_version;
mod text;
mod typed;

pub use comment::{merge_comment, split_comment};
pub use error::{ManifestError, ParseError, Position};
pub use manifest::{Manifest, Pair};
pub use package_version::{PackageVersion, PackageVersionError, PackageVersionOptions};
pub use parser::parse;
pub use serializer::{Introducer, SerializeError, Serializer, Style, serialize};
pub use standard_version::{Allow, StandardVersion, VersionError};
pub use text::{cut_middle, log_text, sanitize, validate_value};
pub use typed::*;
