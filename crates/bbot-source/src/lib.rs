//! Source archives: the rules for what is in them, and the one writer of them.
//!
//! Sources travel as a gzip-compressed tar that is named by its SHA-256 (`docs/decisions/0004-sources.md`). Whoever
//! packs one does it with [`Writer`], which leaves out what [`rules`] forbid. The worker unpacks as root what someone
//! packed whom it does not know: its unpacker is its own and refuses what the same rules forbid.
//!
//! ```
//! use bbot_source::{Added, Content, Writer};
//! use std::path::Path;
//!
//! let mut writer = Writer::new(Vec::new(), Some("hello-1"))?;
//! let added = writer.add(Path::new("passwords"), None, Content::Symlink(Path::new("/etc/passwd")))?;
//! assert!(matches!(added, Added::LeftOut(_)));
//! let archive = writer.finish()?;
//! assert_eq!(archive.size, archive.output.len() as u64);
//! # Ok::<(), bbot_source::WriteError>(())
//! ```

pub mod rules;
mod writer;

pub use writer::{Added, Archive, Content, LeftOut, Mode, WriteError, Writer};
