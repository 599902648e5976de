//! The kinds of failure of a pull: the JSON `reason`, and which of them are retryable.
//!
//! A small fixed set, suitable as a label in reports and metrics. No I/O.

use std::fmt;

/// The reason why an image could not be pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    /// The reference does not follow the grammar of image references.
    InvalidReference,
    /// The registry requires authentication, or refuses the credentials.
    Unauthorized,
    /// The registry has no such repository, tag or digest.
    NotFound,
    /// The registry limits the rate of requests (HTTP 429).
    RateLimited,
    /// One attempt, or the whole run, exceeded its time limit.
    Timeout,
    /// The runtime or the registry could not be reached, or the connection was lost.
    Unavailable,
    /// The image store's filesystem is full.
    NoSpace,
    /// A signature policy of the runtime refuses the image.
    SignatureRejected,
    /// The image does not exist for this node's platform.
    PlatformMismatch,
    /// Any other failure; the message quotes the runtime.
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

    /// The name as the reason of a Kubernetes condition, in CamelCase.
    pub fn condition_reason(self) -> &'static str {
        match self {
            Self::InvalidReference => "InvalidReference",
            Self::Unauthorized => "Unauthorized",
            Self::NotFound => "NotFound",
            Self::RateLimited => "RateLimited",
            Self::Timeout => "Timeout",
            Self::Unavailable => "Unavailable",
            Self::NoSpace => "NoSpace",
            Self::SignatureRejected => "SignatureRejected",
            Self::PlatformMismatch => "PlatformMismatch",
            Self::Other => "Other",
        }
    }

    /// Returns whether another attempt can succeed without any change by a user.
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
