//! `user:password` in base64, as docker config files and `PRIVATE_REGISTRY_AUTH` have it. Pure; its errors name no value.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Why a text is no user and password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BasicError {
    /// It cannot be decoded.
    #[error("it is not base64")]
    Base64,
    /// Its bytes are no text.
    #[error("it is not base64 of a text in UTF-8")]
    Utf8,
    /// It has no colon.
    #[error("it is not base64 of USER:PASSWORD")]
    Colon,
    /// Nothing comes before the colon.
    #[error("the user is empty")]
    User,
}

/// The user and the password, which may have colons in it. Padding may be left out, and lines be wrapped, as `base64` does.
pub(crate) fn decode(text: &str) -> Result<(String, String), BasicError> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let packed: String = text.split_ascii_whitespace().collect();
    let bytes = GeneralPurpose::new(&alphabet::STANDARD, config)
        .decode(packed)
        .map_err(|_| BasicError::Base64)?;
    let text = String::from_utf8(bytes).map_err(|_| BasicError::Utf8)?;
    let (user, password) = text.split_once(':').ok_or(BasicError::Colon)?;
    if user.is_empty() {
        return Err(BasicError::User);
    }
    // Docker wrote the field into a buffer that was too long, and trims it since.
    Ok((user.to_owned(), password.trim_matches('\0').to_owned()))
}
