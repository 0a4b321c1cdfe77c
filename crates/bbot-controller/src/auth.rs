//! Proof that an agent is who it says: keys, fingerprints, challenges.
//!
//! A task request names the fingerprint of the agent's key, the task carries a challenge, and the result
//! the signature of it: RSA, PKCS#1 v1.5 block type 1 over the challenge's 64 characters themselves,
//! without digest info, as `openssl rsautl -sign` makes it.

mod keys;

use std::io;

use rsa::pkcs8::spki::SubjectPublicKeyInfoRef;
use rsa::pkcs8::{Document, EncodePublicKey as _, LineEnding};
use rsa::traits::PublicKeyParts as _;
use rsa::{BigUint, Pkcs1v15Sign, RsaPublicKey};
use sha2::{Digest as _, Sha256};

pub use keys::{AgentKeys, KeyError, Known};

/// Modulus sizes that are taken, in bits: smaller ones can be factored, larger ones only cost time.
const MODULUS_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// What is wrong with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// It is no RSA public key.
    #[error("it is not an RSA public key in PEM form; make one with: openssl rsa -in KEY -pubout")]
    NotRsa,
    /// It is too small or too large.
    #[error(
        "the RSA key has {0} bits; from 2048 to 8192 are taken: make another with `bbot keygen`"
    )]
    Size(usize),
}

/// Reads an RSA public key in PEM form.
///
/// # Errors
/// It is not one, or its size is not taken.
pub fn public_key(pem: &str) -> Result<RsaPublicKey, PemError> {
    // By hand: what the crate reads by itself ends at 4096 bits.
    let (label, document) = Document::from_pem(pem.trim()).map_err(|_| PemError::NotRsa)?;
    let der = match label {
        "PUBLIC KEY" => {
            let info = SubjectPublicKeyInfoRef::try_from(document.as_bytes())
                .map_err(|_| PemError::NotRsa)?;
            if info.algorithm.oid != rsa::pkcs1::ALGORITHM_OID {
                return Err(PemError::NotRsa);
            }
            info.subject_public_key
                .as_bytes()
                .ok_or(PemError::NotRsa)?
                .to_vec()
        }
        "RSA PUBLIC KEY" => document.as_bytes().to_vec(),
        _ => return Err(PemError::NotRsa),
    };
    let parts = rsa::pkcs1::RsaPublicKey::try_from(der.as_slice()).map_err(|_| PemError::NotRsa)?;
    let modulus = BigUint::from_bytes_be(parts.modulus.as_bytes());
    let bits = modulus.bits();
    if !MODULUS_BITS.contains(&bits) {
        return Err(PemError::Size(bits));
    }
    let exponent = BigUint::from_bytes_be(parts.public_exponent.as_bytes());
    RsaPublicKey::new_with_max_size(modulus, exponent, *MODULUS_BITS.end())
        .map_err(|_| PemError::NotRsa)
}

/// Whether a signature by this key is quickly looked at, whoever has made the key: of at most 4096 bits, with the exponent that all use.
#[must_use]
pub fn is_quick(key: &RsaPublicKey) -> bool {
    key.size() <= 512 && *key.e() <= BigUint::from(65_537_u32)
}

/// SHA-256 of the key's DER SubjectPublicKeyInfo in lower-case hex.
#[must_use]
pub fn fingerprint(key: &RsaPublicKey) -> String {
    // An RSA key in memory always has a DER form; were it otherwise, this matches no fingerprint.
    key.to_public_key_der()
        .map(|der| hex::encode(Sha256::digest(der.as_bytes())))
        .unwrap_or_default()
}

/// The key in PEM form.
#[must_use]
pub fn pem(key: &RsaPublicKey) -> String {
    // As above.
    key.to_public_key_pem(LineEnding::LF).unwrap_or_default()
}

/// Whether `signature` is the challenge signed by this key.
#[must_use]
pub fn verify(key: &RsaPublicKey, challenge: &str, signature: &[u8]) -> bool {
    key.verify(
        Pkcs1v15Sign::new_unprefixed(),
        challenge.as_bytes(),
        signature,
    )
    .is_ok()
}

/// Whether `signature` is that of a request with this signature base, by this key: `rsa-v1_5-sha256`.
#[must_use]
pub fn verify_request(key: &RsaPublicKey, base: &str, signature: &[u8]) -> bool {
    let signed = bbot_signature::digest_info(base);
    key.verify(Pkcs1v15Sign::new_unprefixed(), &signed, signature)
        .is_ok()
}

/// A new challenge: 64 lower-case hex characters that nobody can foresee.
///
/// # Errors
/// The system has no randomness to give.
pub fn challenge() -> io::Result<String> {
    random_hex::<32>()
}

/// A new session: opaque to agents, 256 random bits.
///
/// # Errors
/// The system has no randomness to give.
pub fn session() -> io::Result<String> {
    random_hex::<32>()
}

/// So many random bytes in lower-case hex.
///
/// # Errors
/// The system has no randomness to give.
pub fn random_hex<const N: usize>() -> io::Result<String> {
    let mut bytes = [0_u8; N];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(format!("no random bytes: {e}")))?;
    Ok(hex::encode(bytes))
}

/// Whether two secrets are the same, in a time that does not tell where they differ.
#[must_use]
pub fn same_secret(a: &str, b: &str) -> bool {
    // Hashing first makes the lengths equal and unrelated to the secret's.
    let (a, b) = (Sha256::digest(a.as_bytes()), Sha256::digest(b.as_bytes()));
    a.iter()
        .zip(b.iter())
        .fold(0_u8, |difference, (x, y)| difference | (x ^ y))
        == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets() {
        assert!(same_secret("abc", "abc"));
        assert!(!same_secret("abc", "abd"));
        assert!(!same_secret("abc", "abcd"));
        assert!(!same_secret("", "a"));
    }

    #[test]
    fn challenges_are_64_hex_digits_and_new_each_time() {
        let (a, b) = (challenge().unwrap(), challenge().unwrap());
        assert!(crate::source::is_sha256(&a));
        assert_ne!(a, b);
    }
}
