//! The kinds of failure that a pull can end in: the JSON `reason`, and what may be tried again.
//!
//! A small fixed set, so that it can label reports and metrics. No I/O.

use std::fmt;

/// Why an image could not be pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The reference does not follow the grammar of image references.
    InvalidReference,
    /// The registry wants credentials, or refuses the ones it was given.
    Unauthorized,
    /// The registry has no such repository, tag or digest.
    NotFound,
    /// The registry asks for fewer requests (HTTP 429).
    RateLimited,
    /// One attempt, or the whole run, took longer than allowed.
    Timeout,
    /// The runtime or the registry could not be reached, or broke off.
    Unavailable,
    /// The image store's filesystem is full.
    NoSpace,
    /// A signature policy of the runtime refuses the image.
    SignatureRejected,
    /// The image exists, but not for this node's platform.
    PlatformMismatch,
    /// Anything else; the message says what the runtime said.
    Other,
}

impl FailureKind {
    /// Every kind, in the order of reports.
    pub const ALL: [Self; 10] = [
        Self::InvalidReference,
        Self::Unauthorized,
        Self::NotFound,
        Self::RateLimited,
        Self::Timeout,
        Self::Unavailable,
        Self::NoSpace,
        Self::SignatureRejected,
        Self::PlatformMismatch,
        Self::Other,
    ];

    /// The name used in JSON and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidReference => "invalid_reference",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not_found",
            Self::RateLimited => "rate_limited",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::NoSpace => "no_space",
            Self::SignatureRejected => "signature_rejected",
            Self::PlatformMismatch => "platform_mismatch",
            Self::Other => "other",
        }
    }

    /// Whether another attempt can end differently without anybody changing anything.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::RateLimited | Self::Timeout | Self::Unavailable | Self::Other
        )
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
