//! TLS by the controller itself: a certificate and its key, read again when they are renewed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Files of a certificate, in PEM form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and those between it and one that clients know.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// The certificate or its key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file could not be read, or does not hold what it should.
    #[error("{option} {path}: {what}")]
    File {
        /// The option that names it.
        option: &'static str,
        /// The file.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// The two do not fit together.
    #[error("--tls-cert {certificate} and --tls-key {key} do not fit together: {what}")]
    Pair {
        /// The certificate's file.
        certificate: String,
        /// The key's file.
        key: String,
        /// What is wrong.
        what: String,
    },
}

impl TlsFiles {
    /// What a connection is accepted with.
    ///
    /// # Errors
    /// A file cannot be read or holds something else, or the key is not the certificate's.
    pub(crate) fn load(&self) -> Result<ServerConfig, TlsError> {
        let file = |option, path: &Path| {
            let path = path.display().to_string();
            move |what: String| TlsError::File { option, path, what }
        };
        let wrong = file("--tls-cert", &self.certificate);
        let chain: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_file_iter(&self.certificate).and_then(Iterator::collect);
        let chain = match chain {
            Ok(chain) if chain.is_empty() => {
                return Err(wrong(
                    "there is no certificate in it (-----BEGIN CERTIFICATE-----)".to_owned(),
                ));
            }
            Ok(chain) => chain,
            Err(error) => return Err(wrong(error.to_string())),
        };
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| error.to_string())
            .map_err(file("--tls-key", &self.key))?;
        let pair = |error: rustls::Error| TlsError::Pair {
            certificate: self.certificate.display().to_string(),
            key: self.key.display().to_string(),
            what: error.to_string(),
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(pair)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(pair)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// Both files, to be watched.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        vec![self.certificate.clone(), self.key.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    #[test]
    fn what_is_wrong_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles {
            certificate: dir.path().join("c"),
            key: dir.path().join("k"),
        };
        let wrong = |certificate: Option<&str>, key: Option<&str>| {
            for (path, text) in [(&files.certificate, certificate), (&files.key, key)] {
                match text {
                    Some(text) => std::fs::write(path, text).unwrap(),
                    None => {
                        let _ = std::fs::remove_file(path);
                    }
                }
            }
            files.load().map(drop).map_err(|error| {
                let text = error.to_string();
                text.replace(&dir.path().display().to_string(), "DIR")
            })
        };
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["x".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap()
            .pem();
        let (key, other) = (
            key.serialize_pem(),
            KeyPair::generate().unwrap().serialize_pem(),
        );
        assert_eq!(wrong(Some(&certificate), Some(&key)), Ok(()));
        for (certificate, key, expected) in [
            (None, Some(&key), "--tls-cert DIR/c: "),
            (
                Some(&key),
                Some(&key),
                "--tls-cert DIR/c: there is no certificate in it",
            ),
            (Some(&certificate), None, "--tls-key DIR/k: "),
            (Some(&certificate), Some(&certificate), "--tls-key DIR/k: "),
            (
                Some(&certificate),
                Some(&other),
                "--tls-cert DIR/c and --tls-key DIR/k do not fit together: ",
            ),
        ] {
            let error = wrong(certificate.map(String::as_str), key.map(String::as_str));
            let error = error.unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
