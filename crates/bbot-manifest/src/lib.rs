//! The manifest text format, versions, and every typed manifest of the build bot.
//!
//! Three layers: the text format ([`parse`], [`serialize`]), which knows names
//! and values and their places; the words that stand in values ([`quoting`],
//! [`StandardVersion`], [`PackageVersion`], [`Status`]); and the typed
//! manifests that controller, agent and worker exchange. Nothing here does I/O.

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
