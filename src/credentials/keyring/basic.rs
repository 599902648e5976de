//! `user:password` in base64, as in docker config files and `PRIVATE_REGISTRY_AUTH`. Pure; its errors contain no value.
//!
//! As in Go's clients, the user may be empty and the bytes need not be text.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::credentials::secret::{Login, Secret};

/// The reason why a text is not a user and password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BasicError {
    /// The text is not base64.
    #[error("it is not base64")]
    Base64,
    /// The text has no colon.
    #[error("it is not base64 of USER:PASSWORD")]
    Colon,
}

/// The user and the password, which may contain colons. Padding is optional, and lines may be wrapped, as `base64` does.
pub(crate) fn decode(text: &str) -> Result<(Vec<u8>, Vec<u8>), BasicError> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let packed: String = text.split_ascii_whitespace().collect();
    let bytes = GeneralPurpose::new(&alphabet::STANDARD, config)
        .decode(packed)
        .map_err(|_| BasicError::Base64)?;
    let colon = bytes.iter().position(|b| *b == b':');
    let (user, password) = bytes.split_at(colon.ok_or(BasicError::Colon)?);
    // Older Docker versions padded the field with zero bytes; newer ones trim them.
    Ok((user.to_vec(), trimmed(&password[1..], b"\0").to_vec()))
}

/// The login with this user and password.
pub(crate) fn login(user: Vec<u8>, password: Vec<u8>) -> Login {
    match (String::from_utf8(user), String::from_utf8(password)) {
        (Ok(user), Ok(password)) => Login::Password {
            user: Secret::new(user),
            password: Secret::new(password),
        },
        (user, password) => {
            let bytes = |part: Result<String, std::string::FromUtf8Error>| {
                part.map_or_else(|error| error.into_bytes(), String::into_bytes)
            };
            let whole = [bytes(user), b":".to_vec(), bytes(password)].concat();
            Login::Bytes(Secret::new(STANDARD.encode(whole)))
        }
    }
}

/// The bytes without these at their beginning and end.
fn trimmed<'a>(mut bytes: &'a [u8], without: &[u8]) -> &'a [u8] {
    while let [first, rest @ ..] = bytes
        && without.contains(first)
    {
        bytes = rest;
    }
    while let [rest @ .., last] = bytes
        && without.contains(last)
    {
        bytes = rest;
    }
    bytes
}
