//! Errors of the registry client.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use crate::credentials::secret::{Secret, redact};
use crate::model::failure::FailureKind;
use crate::model::text::{causes, excerpt, join_causes};
use crate::retry::retry_after::retry_after;

/// The reason why no client could be created.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// TLS could not be set up.
    #[error("failed to set up TLS")]
    Tls(#[source] rustls::Error),
    /// The TLS settings of a server cannot be used.
    #[error("failed to set up TLS for a server")]
    Endpoint(#[from] super::endpoint::TlsError),
    /// The HTTP client could not be set up.
    #[error("failed to set up the HTTP client")]
    Http(#[source] reqwest::Error),
}

/// The reason why a request to a registry failed.
///
/// No message contains a URL except for its host: the query of a redirect's URL is a credential.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection: name, address, port, proxy or TLS.
    #[error("failed to reach {host}")]
    Unreachable {
        /// The host that was asked.
        host: String,
        /// The reason.
        source: reqwest::Error,
    },
    /// The connection ended before the response did.
    #[error("failed to read the response from {host}")]
    Broken {
        /// The host that was asked.
        host: String,
        /// The reason.
        source: reqwest::Error,
    },
    /// The response ended, well-formed, before all bytes were received.
    #[error("incomplete response from {host}: {missing} bytes of {digest} are missing")]
    Short {
        /// The host that was asked.
        host: String,
        /// The digest of the blob.
        digest: String,
        /// The number of bytes.
        missing: u64,
    },
    /// The server sent something else than the requested part of a blob.
    #[error("unexpected response from {host}: not the requested range of {digest}")]
    Range {
        /// The host that was asked.
        host: String,
        /// The digest of the blob.
        digest: String,
    },
    /// No byte was received within the time limit.
    #[error("{host} sent nothing for {seconds} s")]
    Stalled {
        /// The host that was asked.
        host: String,
        /// The time limit.
        seconds: u64,
    },
    /// An HTTP status that is not a success.
    #[error("{host} returned {status}{}", said(detail))]
    Refused {
        /// The host that was asked.
        host: String,
        /// The status.
        status: StatusCode,
        /// The kind, from the status and from the error codes of the body.
        kind: FailureKind,
        /// The registry's own message, escaped and shortened.
        detail: Option<String>,
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The registry requires authentication, and there are no credentials for it.
    #[error("{host} requires authentication")]
    NoCredentials {
        /// The host that was asked.
        host: String,
    },
    /// The registry requires a user and password, and the credential is an identity token.
    #[error("{host} requires a user and password, but the credential is an identity token")]
    NotAPassword {
        /// The host that was asked.
        host: String,
    },
    /// The registry offers only authentication schemes that this client does not support.
    #[error("{host} requires an authentication scheme that is not supported")]
    Scheme {
        /// The host that was asked.
        host: String,
    },
    /// The registry's challenge or the token service's response is malformed, or not safe to follow.
    #[error("failed to get a token for {host}: {reason}")]
    Token {
        /// The registry that the token is for.
        host: String,
        /// The reason.
        reason: &'static str,
    },
    /// A redirect that is not followed.
    #[error("failed to follow a redirect from {host}: {reason}")]
    Redirect {
        /// The host that was asked.
        host: String,
        /// The reason.
        reason: &'static str,
    },
    /// A response that exceeds its limit.
    #[error("{what} exceeds {limit} bytes")]
    TooLarge {
        /// The kind of content.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The content does not have the requested digest.
    #[error("digest mismatch: expected {expected}, got {actual}")]
    Content {
        /// The requested content.
        expected: String,
        /// The digest of the received content.
        actual: String,
    },
    /// The content does not have the size in its descriptor.
    #[error("size mismatch: expected {expected} bytes of {digest}")]
    Size {
        /// The requested content.
        digest: String,
        /// The size in its descriptor.
        expected: u64,
    },
    /// A digest algorithm that cannot be verified here.
    #[error("failed to verify {digest}: only sha256 and sha512 digests are supported")]
    Algorithm {
        /// The digest.
        digest: String,
    },
    /// The registry has the image only in the format of 2014, whose content cannot be verified.
    #[error("unsupported manifest: the registry has this image only as Docker schema 1")]
    Schema1,
    /// The image exists only for other platforms.
    #[error("no image for {wanted} in {image}, only for {available}")]
    Platform {
        /// The image.
        image: String,
        /// The wanted platform.
        wanted: String,
        /// The available platforms, safe to show.
        available: String,
    },
    /// A manifest or index that cannot be used.
    #[error("invalid manifest: {reason}")]
    Manifest {
        /// The reason.
        reason: String,
    },
}

impl Error {
    /// The kind, for reports and for the decision about a retry.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Short { .. } => {
                FailureKind::Unavailable
            }
            Self::Stalled { .. } => FailureKind::Timeout,
            Self::Refused { kind, .. } => *kind,
            Self::NoCredentials { .. } | Self::NotAPassword { .. } | Self::Scheme { .. } => {
                FailureKind::Unauthorized
            }
            Self::Platform { .. } => FailureKind::PlatformMismatch,
            Self::Token { .. }
            | Self::Redirect { .. }
            | Self::TooLarge { .. }
            | Self::Content { .. }
            | Self::Size { .. }
            | Self::Range { .. }
            | Self::Algorithm { .. }
            | Self::Schema1
            | Self::Manifest { .. } => FailureKind::Other,
        }
    }

    /// The wait that the registry requested, at most ten minutes.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Returns whether no connection was established, which is not specific to an image.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { source, .. } if source.is_connect())
    }

    /// Returns whether the bytes received before are valid, so that the rest can be requested.
    pub fn is_cut(&self) -> bool {
        matches!(self, Self::Broken { .. } | Self::Short { .. })
    }

    /// The error and its causes in one line, without the prefixes that HTTP libraries add.
    pub fn chain(&self) -> String {
        let is_noise =
            |text: &str| text == "error sending request" || text.starts_with("client error (");
        let causes = causes(self).map(ToString::to_string);
        let causes = causes.filter(|text| !is_noise(text));
        join_causes(self.to_string(), causes.map(|text| excerpt(&text)))
    }

    /// The error for an unsuccessful response. Its message is quoted without the `secrets`.
    pub(super) fn refused(
        host: String,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        secrets: &[Secret],
    ) -> Self {
        let body = serde_json::from_slice::<ErrorBody>(body).unwrap_or_default();
        Self::Refused {
            host,
            status,
            kind: kind_of(status, &body),
            detail: body.text(secrets),
            retry_after: retry_after(headers),
        }
    }
}

fn said(detail: &Option<String>) -> String {
    detail
        .as_ref()
        .map(|text| format!(": {text}"))
        .unwrap_or_default()
}

fn kind_of(status: StatusCode, body: &ErrorBody) -> FailureKind {
    let says = |code: &str| {
        body.errors.iter().any(|e| {
            e.code
                .as_str()
                .is_some_and(|c| c.eq_ignore_ascii_case(code))
        })
    };
    match status.as_u16() {
        429 => FailureKind::RateLimited,
        _ if says("TOOMANYREQUESTS") => FailureKind::RateLimited,
        401 | 403 => FailureKind::Unauthorized,
        _ if says("DENIED") || says("UNAUTHORIZED") => FailureKind::Unauthorized,
        // RFC 6749 has 400 for a refresh token that is invalid or has expired.
        400 if matches!(
            body.error.as_str(),
            Some("invalid_grant" | "invalid_client" | "unauthorized_client" | "access_denied")
        ) =>
        {
            FailureKind::Unauthorized
        }
        404 => FailureKind::NotFound,
        408 => FailureKind::Timeout,
        500..=599 => FailureKind::Unavailable,
        _ => FailureKind::Other,
    }
}

/// The body of a registry's error (OCI distribution specification, "Error Codes"); token services use a field `details`, or
/// OAuth2 errors (RFC 6749, section 5.2).
#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorBody {
    errors: Vec<ErrorEntry>,
    details: Option<String>,
    error: serde_json::Value,
    error_description: serde_json::Value,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorEntry {
    code: serde_json::Value,
    message: serde_json::Value,
    detail: serde_json::Value,
}

impl ErrorBody {
    fn text(&self, secrets: &[Secret]) -> Option<String> {
        let plain = |value: &serde_json::Value| match value {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(text.clone()).filter(|t| !t.is_empty()),
            other => Some(other.to_string()).filter(|t| t != "{}" && t != "[]"),
        };
        let entries = self.errors.iter().take(5).map(|entry| {
            let parts = [&entry.code, &entry.message, &entry.detail];
            let parts: Vec<String> = parts.into_iter().filter_map(plain).collect();
            parts.join(": ")
        });
        let all: Vec<String> = entries
            .chain(self.details.clone())
            .chain(self.oauth())
            .filter(|text| !text.is_empty())
            .collect();
        (!all.is_empty()).then(|| excerpt(&redact(&all.join("; "), secrets)))
    }

    fn oauth(&self) -> Option<String> {
        let error = self.error.as_str()?;
        Some(match self.error_description.as_str() {
            Some(words) => format!("{error}: {words}"),
            None => error.to_owned(),
        })
    }
}
