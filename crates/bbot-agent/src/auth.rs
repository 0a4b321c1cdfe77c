//! The agent's RSA key: its fingerprint, the answer to a controller's challenge, and the
//! signature of a request.
//!
//! The answer is what `openssl rsautl -sign` gives: the signature of the
//! challenge's 64 characters themselves, PKCS#1 v1.5 block type 1, without a
//! digest and without digest info. `--openssl` lets a program do both, as the
//! seed does, so that the key may be in hardware.

mod keys;

use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bbot_machine::machine::BoxFuture;
use rsa::pkcs1::DecodeRsaPrivateKey as _;
use rsa::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, EncodePublicKey as _, LineEnding};
use rsa::traits::PublicKeyParts as _;
use rsa::{Pkcs1v15Sign, RsaPrivateKey};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

pub use keys::{KeyOption, Keys};

use crate::controller::RequestKey;

/// How long the program of `--openssl` may take. A card that asks for a PIN on a
/// terminal nobody sits at must not stop the agent for ever.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(60);

/// A key file is a few KiB; this is far above any.
const KEY_FILE_LIMIT: u64 = 64 * 1024;

/// What can go wrong with a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The file cannot be read.
    #[error("unable to read the key {}, which must be a readable PEM file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not a key we can use.
    #[error("{} is not a private RSA key in PEM form ({why}): make one with `bbot keygen`", path.display())]
    NotRsa {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Our own signing failed.
    #[error("unable to sign with the key {}: {why}", path.display())]
    Sign {
        /// The key's file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The program of `--openssl` failed.
    #[error("{} {command} failed with the key {}: {why}", program.display(), key.display())]
    Program {
        /// The key's file.
        key: PathBuf,
        /// The program.
        program: PathBuf,
        /// Its sub-command.
        command: &'static str,
        /// What it said, or why it did not run.
        why: String,
    },
    /// A key could not be made.
    #[error("unable to make a key of {bits} bits: {why}")]
    Generate {
        /// Its size.
        bits: usize,
        /// Why.
        why: String,
    },
    /// A key could not be saved.
    #[error("unable to save the key as {}", path.display())]
    Save {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A controller's challenge: 64 lower-case hexadecimal digits. Nothing else that a
/// controller sends is ever signed, so that it cannot have other things signed; what is
/// signed of a request has 51 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge(String);

impl Challenge {
    /// The challenge in `text`, if it is one.
    pub fn new(text: &str) -> Option<Self> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 64 && text.bytes().all(digit)).then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Signs challenges with the agent's key.
pub struct Signer {
    key_file: PathBuf,
    fingerprint: String,
    /// The public key, DER in base64.
    public: String,
    means: Means,
}

enum Means {
    Key(Box<RsaPrivateKey>),
    Program {
        program: PathBuf,
        options: Vec<String>,
    },
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("key_file", &self.key_file)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads the key and works out its fingerprint; with a program, lets that
    /// program do it.
    ///
    /// # Errors
    ///
    /// [`AuthError`]: the file, the key, the program.
    pub async fn open(
        key_file: &Path,
        program: Option<&Path>,
        options: &[String],
    ) -> Result<Self, AuthError> {
        let (means, public) = match program {
            None => {
                let key = read_key(key_file)?;
                let public = public_der(&key, key_file)?;
                (Means::Key(Box::new(key)), public)
            }
            Some(program) => {
                // As the seed: the key is the program's standard input.
                let key = read_file(key_file)?;
                let mut args = vec!["rsa".to_owned()];
                args.extend_from_slice(options);
                args.extend(["-pubout", "-outform", "DER"].map(str::to_owned));
                let der = run(program, "rsa", &args, key_file, &key).await?;
                if der.is_empty() {
                    return Err(AuthError::Program {
                        key: key_file.to_owned(),
                        program: program.to_owned(),
                        command: "rsa",
                        why: "it printed no public key".to_owned(),
                    });
                }
                let means = Means::Program {
                    program: program.to_owned(),
                    options: options.to_vec(),
                };
                (means, der)
            }
        };
        Ok(Self {
            key_file: key_file.to_owned(),
            fingerprint: hex::encode(Sha256::digest(&public)),
            public: BASE64_STANDARD.encode(&public),
            means,
        })
    }

    /// SHA-256 of the public key's DER SubjectPublicKeyInfo, in lower-case
    /// hexadecimal.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The public key's DER SubjectPublicKeyInfo in base64, for a controller that does not know it.
    pub fn public(&self) -> &str {
        &self.public
    }

    /// The answer to a challenge.
    ///
    /// # Errors
    ///
    /// When the key or the program cannot sign.
    pub async fn sign(&self, challenge: &Challenge) -> Result<Vec<u8>, AuthError> {
        self.sign_bytes(challenge.0.as_bytes()).await
    }

    /// The signature of these bytes themselves.
    async fn sign_bytes(&self, bytes: &[u8]) -> Result<Vec<u8>, AuthError> {
        match &self.means {
            // Blinded: the time that an unblinded operation takes tells about
            // the key (RUSTSEC-2023-0071).
            Means::Key(key) => key
                .sign_with_rng(
                    &mut rand::rngs::OsRng,
                    Pkcs1v15Sign::new_unprefixed(),
                    bytes,
                )
                .map_err(|e| AuthError::Sign {
                    path: self.key_file.clone(),
                    why: e.to_string(),
                }),
            Means::Program { program, options } => {
                let key = self.key_file.to_string_lossy().into_owned();
                let args = |command: &str| {
                    let mut args = vec![command.to_owned()];
                    args.extend_from_slice(options);
                    args.extend(["-sign".to_owned(), "-inkey".to_owned(), key.clone()]);
                    args
                };
                // The seed's command; where it is gone (it is deprecated since
                // OpenSSL 3.0), the one that took its place.
                let sign = async |command| {
                    run(program, command, &args(command), &self.key_file, bytes).await
                };
                match sign("rsautl").await {
                    Ok(signature) if !signature.is_empty() => Ok(signature),
                    _ => sign("pkeyutl").await,
                }
            }
        }
    }
}

impl RequestKey for Signer {
    fn fingerprint(&self) -> &str {
        Self::fingerprint(self)
    }

    fn public(&self) -> &str {
        Self::public(self)
    }

    fn sign_request<'a>(
        &'a self,
        digest_info: &'a [u8; 51],
    ) -> BoxFuture<'a, Result<Vec<u8>, String>> {
        // With what it names the hash by it is `rsa-v1_5-sha256`.
        Box::pin(async {
            self.sign_bytes(digest_info)
                .await
                .map_err(|e| e.to_string())
        })
    }
}

/// Makes a private RSA key, PKCS#8 in PEM form.
///
/// # Errors
///
/// When `bits` is not between 2048 and 4096, or no key can be made.
pub fn keygen(bits: usize) -> Result<String, AuthError> {
    let error = |why: String| AuthError::Generate { bits, why };
    if !(2048..=4096).contains(&bits) {
        return Err(error("the size must be 2048 to 4096".to_owned()));
    }
    let key = RsaPrivateKey::new(&mut rand::rngs::OsRng, bits).map_err(|e| error(e.to_string()))?;
    let pem = key
        .to_pkcs8_pem(LineEnding::LF)
        .map_err(|e| error(e.to_string()))?;
    Ok(pem.as_str().to_owned())
}

/// Makes a key and saves it, readable for its owner alone. A file that is there
/// already is left alone. Returns the fingerprint.
///
/// # Errors
///
/// As [`keygen`], and when the file cannot be made.
pub fn keygen_file(path: &Path, bits: usize) -> Result<String, AuthError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let save = |source| AuthError::Save {
        path: path.to_owned(),
        source,
    };
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(save)?;
    let written = keygen(bits).and_then(|pem| {
        file.write_all(pem.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(save)
    });
    match written {
        Ok(()) => fingerprint(path),
        Err(e) => {
            // An empty key file would only confuse the next try.
            let _ = std::fs::remove_file(path);
            Err(e)
        }
    }
}

/// The fingerprint of a private key's file.
///
/// # Errors
///
/// When the file cannot be read or is not a private RSA key.
pub fn fingerprint(key_file: &Path) -> Result<String, AuthError> {
    fingerprint_of(&read_key(key_file)?, key_file)
}

/// The public half of a private key's file, in PEM form (`BEGIN PUBLIC KEY`): what a
/// controller keeps of an agent. The same bytes as `openssl rsa -pubout` prints.
///
/// # Errors
///
/// When the file cannot be read or is not a private RSA key.
pub fn public_key(key_file: &Path) -> Result<String, AuthError> {
    read_key(key_file)?
        .to_public_key()
        .to_public_key_pem(LineEnding::LF)
        .map_err(|e| AuthError::NotRsa {
            path: key_file.to_owned(),
            why: e.to_string(),
        })
}

fn fingerprint_of(key: &RsaPrivateKey, path: &Path) -> Result<String, AuthError> {
    Ok(hex::encode(Sha256::digest(public_der(key, path)?)))
}

fn public_der(key: &RsaPrivateKey, path: &Path) -> Result<Vec<u8>, AuthError> {
    let der = key
        .to_public_key()
        .to_public_key_der()
        .map_err(|e| AuthError::NotRsa {
            path: path.to_owned(),
            why: e.to_string(),
        })?;
    Ok(der.as_bytes().to_vec())
}

fn read_file(path: &Path) -> Result<Vec<u8>, AuthError> {
    use std::io::Read as _;
    let read = |source| AuthError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .inspect(|file| warn_if_public(file, path))
        .and_then(|file| file.take(KEY_FILE_LIMIT).read_to_end(&mut bytes))
        .map_err(read)?;
    Ok(bytes)
}

/// Whoever reads the key can be this agent. The group may be meant to.
fn warn_if_public(file: &std::fs::File, path: &Path) {
    if is_public(file) {
        tracing::warn!(
            "everybody on this host can read the private key {0}: `chmod o= {0}`",
            path.display()
        );
    }
}

fn is_public(file: &std::fs::File) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|meta| meta.permissions().mode() & 0o007 != 0)
}

/// PKCS#8 (`BEGIN PRIVATE KEY`) or PKCS#1 (`BEGIN RSA PRIVATE KEY`).
fn read_key(path: &Path) -> Result<RsaPrivateKey, AuthError> {
    let not_rsa = |why: String| AuthError::NotRsa {
        path: path.to_owned(),
        why,
    };
    let bytes = read_file(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| not_rsa("it is not text".to_owned()))?;
    let text = text.trim_start();
    let key = if text.contains("BEGIN RSA PRIVATE KEY") {
        RsaPrivateKey::from_pkcs1_pem(text).map_err(|e| not_rsa(e.to_string()))?
    } else if text.contains("BEGIN ENCRYPTED PRIVATE KEY") {
        return Err(not_rsa(
            "it is encrypted, and nobody is there to give the password".to_owned(),
        ));
    } else {
        RsaPrivateKey::from_pkcs8_pem(text).map_err(|e| not_rsa(e.to_string()))?
    };
    key.validate().map_err(|e| not_rsa(e.to_string()))?;
    // 64 bytes and the padding do not fit in less, and less than this is no key
    // to rely on.
    if key.size() < 128 {
        return Err(not_rsa(format!("{} bits are too few", key.size() * 8)));
    }
    Ok(key)
}

async fn run(
    program: &Path,
    command: &'static str,
    args: &[String],
    key: &Path,
    input: &[u8],
) -> Result<Vec<u8>, AuthError> {
    let error = |why: String| AuthError::Program {
        key: key.to_owned(),
        program: program.to_owned(),
        command,
        why,
    };
    let mut child = tokio::process::Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| error(format!("it does not run: {e}")))?;
    let stdin = child.stdin.take();
    let talk = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read its input says by its exit status
            // whether that matters.
            let _ = stdin.write_all(input).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(PROGRAM_TIMEOUT, talk)
        .await
        .map_err(|_| error(format!("no answer within {} s", PROGRAM_TIMEOUT.as_secs())))?
        .map_err(|e| error(e.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(error(format!("{}: {}", output.status, said.trim())));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests;
