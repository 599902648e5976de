//! Errors of unpacking.

use std::io;

use rustix::io::Errno;

use crate::model::text;

/// A layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream of the layer's bytes failed.
    #[error("failed to read the layer: {0}")]
    Stream(#[source] io::Error),
    /// The bytes as transferred are not the requested ones.
    #[error("digest mismatch: expected {expected}, got {actual}")]
    Digest {
        /// The digest in the manifest.
        expected: String,
        /// The digest of the bytes.
        actual: String,
    },
    /// The uncompressed bytes are not those of the image's config.
    #[error("diff ID mismatch: expected {expected}, got {actual}")]
    DiffId {
        /// The diff ID in the config.
        expected: String,
        /// The digest of the uncompressed bytes.
        actual: String,
    },
    /// The layer uses a feature whose result depends on containerd, or that is not implemented.
    #[error("cannot unpack the layer: {what}")]
    Unsupported {
        /// The feature, with the entry's name, sanitized.
        what: String,
    },
    /// The layer is not a valid archive.
    #[error("malformed layer: {what}")]
    Malformed {
        /// The fault, sanitized.
        what: String,
    },
    /// The layer exceeds its byte budget.
    #[error("the layer exceeds the limit of {limit} bytes")]
    OverBudget {
        /// The initial budget.
        limit: u64,
    },
    /// A call to the file system failed.
    #[error("failed to {action} {path}: {errno}")]
    Filesystem {
        /// The call, as a verb.
        action: &'static str,
        /// The path within the layer, sanitized.
        path: String,
        /// The error.
        errno: Errno,
    },
    /// The caller cancelled the unpacking.
    #[error("cancelled")]
    Cancelled,
}

impl UnpackError {
    /// Returns whether containerd's Diff service has to decide about this layer: it may well be able to apply it.
    pub fn needs_diff_service(&self) -> bool {
        match self {
            Self::Unsupported { .. } | Self::Malformed { .. } => true,
            // The layer's own fault, or a right that this process lacks, unless the disk is.
            Self::Filesystem { errno, .. } => !matches!(
                *errno,
                Errno::NOSPC
                    | Errno::DQUOT
                    | Errno::IO
                    | Errno::ROFS
                    | Errno::NOMEM
                    | Errno::MFILE
                    | Errno::NFILE
            ),
            _ => false,
        }
    }

    /// Returns whether the file system is full, or the user's quota exhausted.
    pub fn is_no_space(&self) -> bool {
        matches!(
            self,
            Self::Filesystem {
                errno: Errno::NOSPC | Errno::DQUOT,
                ..
            }
        )
    }

    pub(super) fn malformed(what: impl Into<String>) -> Self {
        Self::Malformed { what: what.into() }
    }

    /// A feature that containerd has to decide about, and the entry that uses it.
    pub(super) fn unsupported(what: &str, name: &[u8]) -> Self {
        let name = shown(name);
        Self::Unsupported {
            what: format!("{what}: {name}"),
        }
    }

    pub(super) fn filesystem(action: &'static str, path: &[u8], errno: Errno) -> Self {
        Self::Filesystem {
            action,
            path: shown(path),
            errno,
        }
    }
}

/// A name from a layer, fit for a message.
fn shown(name: &[u8]) -> String {
    text::excerpt(&String::from_utf8_lossy(name))
}
