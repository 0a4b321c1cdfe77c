//! The keys of an agent: one for all controllers, and others for some.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use super::{AuthError, Signer};
use crate::controller::{Url, is_below, parse_url};

/// A key as the command line has it: `FILE`, or `URL=FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyOption {
    /// How the URLs of the controllers begin that it is for; none: all.
    pub controller: Option<Url>,
    /// The file.
    pub file: PathBuf,
}

impl FromStr for KeyOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (controller, file) = match text.split_once('=') {
            Some((url, file)) if url.contains("://") => {
                (Some(parse_url(url).map_err(|e| e.to_string())?), file)
            }
            _ => (None, text),
        };
        if file.is_empty() {
            return Err("the file is missing".to_owned());
        }
        Ok(Self {
            controller,
            file: file.into(),
        })
    }
}

/// The keys, read. To read them again, open others.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    keys: Vec<(Option<Url>, Arc<Signer>)>,
}

impl Keys {
    /// Reads the keys; see [`Signer::open`].
    ///
    /// # Errors
    ///
    /// That one of them cannot be used.
    pub async fn open(
        options: &[KeyOption],
        program: Option<&Path>,
        program_options: &[String],
    ) -> Result<Self, AuthError> {
        let mut keys = Vec::new();
        for option in options {
            let signer = Signer::open(&option.file, program, program_options).await?;
            keys.push((option.controller.clone(), Arc::new(signer)));
        }
        Ok(Self { keys })
    }

    /// This key, for all controllers.
    pub fn of_one(signer: Signer) -> Self {
        Self {
            keys: vec![(None, Arc::new(signer))],
        }
    }

    /// The key for a controller: of those whose URL it begins with the longest, else the
    /// one for all. Of equals the last, as with other options that are repeated.
    pub fn of(&self, controller: &Url) -> Option<&Arc<Signer>> {
        let fits = self
            .keys
            .iter()
            .filter_map(|(prefix, signer)| match prefix {
                Some(prefix) if is_below(controller, prefix) => {
                    Some((prefix.as_str().len(), signer))
                }
                Some(_) => None,
                None => Some((0, signer)),
            });
        fits.max_by_key(|(length, _)| *length).map(|(_, s)| s)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}
