//! Computes content digests of streamed bytes. No I/O.

use sha2::{Digest as _, Sha256, Sha512};

use super::Error;
use crate::model::digest::Digest;

/// A digest being computed.
#[derive(Clone)]
pub enum Hasher {
    /// SHA-256, the usual algorithm.
    Sha256(Sha256),
    /// SHA-512, which the image specification also registers.
    Sha512(Sha512),
}

impl Hasher {
    /// A hasher of the algorithm of `digest`.
    ///
    /// # Errors
    /// [`Error::Algorithm`] if it is neither sha256 nor sha512.
    pub fn like(digest: &Digest) -> Result<Self, Error> {
        match digest.algorithm() {
            "sha256" => Ok(Self::Sha256(Sha256::new())),
            "sha512" => Ok(Self::Sha512(Sha512::new())),
            _ => Err(Error::Algorithm {
                digest: digest.to_string(),
            }),
        }
    }

    /// Adds more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        let text = match self {
            Self::Sha256(hasher) => format!("sha256:{}", hex(&hasher.finalize())),
            Self::Sha512(hasher) => format!("sha512:{}", hex(&hasher.finalize())),
        };
        Digest::parse(&text).expect("a hash has as many digits as its algorithm says")
    }
}

/// Checks that `bytes` have the requested digest.
///
/// # Errors
/// [`Error::Content`] if they do not, [`Error::Algorithm`] if that cannot be verified.
pub fn verify(bytes: &[u8], expected: &Digest) -> Result<(), Error> {
    let mut hasher = Hasher::like(expected)?;
    hasher.update(bytes);
    let actual = hasher.finish();
    if actual == *expected {
        Ok(())
    } else {
        Err(Error::Content {
            expected: expected.to_string(),
            actual: actual.to_string(),
        })
    }
}

/// The sha256 digest of `bytes`.
pub fn sha256(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::Sha256(Sha256::new());
    hasher.update(bytes);
    hasher.finish()
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|nibble| char::from(DIGITS[usize::from(nibble)]))
        .collect()
}
