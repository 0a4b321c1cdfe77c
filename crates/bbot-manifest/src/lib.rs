//! The manifest text format, versions, and every typed manifest of the build bot.
mod chars;
mod error;
mod manifest;
mod parser;
mod serializer;

pub use error::{ManifestError, ParseError, Position};
pub use manifest::{Manifest, Pair};
pub use parser::parse;
pub use serializer::{Introducer, SerializeError, Serializer, Style, serialize};
