//! Content digests, as the OCI image specification writes them. No I/O.

use std::fmt;

use crate::model::reference::{ReferenceError, is_lower_hex};

/// A content digest, `sha256:…` (also sha384 and sha512, as the OCI image specification registers).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// Parses `algorithm:hex`.
    ///
    /// # Errors
    /// [`ReferenceError::Digest`] if the algorithm is unknown or the digits do not fit it.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let valid = text.split_once(':').is_some_and(|(algorithm, hex)| {
            let digits = match algorithm {
                "sha256" => 64,
                "sha384" => 96,
                "sha512" => 128,
                _ => return false,
            };
            hex.len() == digits && hex.bytes().all(is_lower_hex)
        });
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(ReferenceError::Digest)
        }
    }

    /// The whole digest, `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The algorithm's name, such as `sha256`.
    pub fn algorithm(&self) -> &str {
        self.0.split_once(':').map_or("", |(a, _)| a)
    }

    /// The hexadecimal digits.
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, h)| h)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
