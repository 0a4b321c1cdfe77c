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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::keygen_file;
    use crate::controller::task_url;

    #[test]
    fn a_key_is_a_file_or_one_for_a_controller() {
        let parse = |text: &str| text.parse::<KeyOption>();
        let plain = parse("/etc/bbot/key.pem").unwrap();
        assert_eq!(
            (plain.controller, plain.file),
            (None, "/etc/bbot/key.pem".into())
        );
        // A file may be called as it likes, as long as that is no URL.
        assert_eq!(parse("a=b.pem").unwrap().file, PathBuf::from("a=b.pem"));
        let own = parse("https://c.example/x=key=1.pem").unwrap();
        let url = own.controller.unwrap();
        assert_eq!(
            (url.as_str(), own.file),
            ("https://c.example/x", "key=1.pem".into())
        );
        for wrong in [
            "",
            "https://c.example=",
            "ftp://c.example=key.pem",
            "://=key.pem",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn each_controller_gets_its_own_key() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Vec::new();
        let mut fingerprints = Vec::new();
        for (name, prefix) in [
            ("all", ""),
            ("host", "https://c.example="),
            ("path", "https://c.example/deep/="),
        ] {
            let file = dir.path().join(name);
            fingerprints.push(keygen_file(&file, 2048).unwrap());
            let option = format!("{prefix}{}", file.display());
            options.push(option.parse::<KeyOption>().unwrap());
        }
        let keys = Keys::open(&options, None, &[]).await.unwrap();
        let of = |keys: &Keys, url: &str| {
            let signer = keys.of(&task_url(url).unwrap());
            signer.map(|s| s.fingerprint().to_owned())
        };
        for (url, expected) in [
            ("https://c.example/", 1),
            ("https://c.example/deep", 1),
            ("https://c.example/deep/er?build-task", 2),
            ("http://c.example/", 0),
            ("https://c.example:444/", 0),
            ("https://c.example.evil.example/", 0),
            ("https://other.example/", 0),
        ] {
            assert_eq!(
                of(&keys, url).as_ref(),
                Some(&fingerprints[expected]),
                "{url}"
            );
        }
        let keys = Keys::open(&options[1..], None, &[]).await.unwrap();
        assert_eq!(of(&keys, "https://other.example/"), None);
        // Read again, the file has another key.
        let file = dir.path().join("host");
        std::fs::remove_file(&file).unwrap();
        let new = keygen_file(&file, 2048).unwrap();
        let again = Keys::open(&options, None, &[]).await.unwrap();
        assert_eq!(of(&again, "https://c.example/"), Some(new));
        assert_eq!(
            of(&keys, "https://c.example/").as_ref(),
            Some(&fingerprints[1])
        );
        std::fs::remove_file(&file).unwrap();
        let error = Keys::open(&options, None, &[]).await.unwrap_err();
        assert!(error.to_string().contains("host"), "{error}");
    }

    #[test]
    fn a_key_that_everybody_can_read_is_told() {
        use std::os::unix::fs::PermissionsExt as _;
        let file = tempfile::NamedTempFile::new().unwrap();
        for (mode, expected) in [(0o600, false), (0o640, false), (0o644, true), (0o604, true)] {
            let permissions = std::fs::Permissions::from_mode(mode);
            file.as_file().set_permissions(permissions).unwrap();
            assert_eq!(crate::auth::is_public(file.as_file()), expected, "{mode:o}");
        }
    }
}
