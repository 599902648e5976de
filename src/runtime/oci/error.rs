//! Errors of an image layout directory.

use std::io;
use std::path::PathBuf;

use crate::model::failure::FailureKind;
use crate::registry;
use crate::runtime::image_service::RuntimeError;

/// The reason why a directory is not opened as an image layout.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be created, read or written.
    #[error("failed to {doing} {path}", path = .path.display())]
    Io {
        /// The operation.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It contains something else.
    #[error("failed to open {path}: it is neither empty nor an OCI image layout", path = .path.display())]
    NotALayout {
        /// The directory.
        path: PathBuf,
    },
    /// A layout of an unknown version.
    #[error("failed to open {path}: it is not an OCI image layout of version 1", path = .path.display())]
    Version {
        /// The directory.
        path: PathBuf,
    },
    /// An entry is not of the expected type.
    #[error("failed to open {path}: it is {found}", path = .path.display())]
    Kind {
        /// The file or directory.
        path: PathBuf,
        /// Its kind.
        found: &'static str,
    },
    /// An entry belongs to another user.
    #[error(
        "failed to open {path}: it is owned by user {owner}, but harpoon runs as user {ours}. \
         If you trust its content, run harpoon as its owner, or change the owner with chown -R",
        path = .path.display()
    )]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// The user ID of its owner.
        owner: u32,
        /// Our user ID.
        ours: u32,
    },
    /// The registry client could not be created.
    #[error("failed to create a registry client")]
    Client(#[source] registry::ClientError),
}

/// The reason why an image is not in the layout after a pull.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The directory was replaced since it was opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("failed to {doing} {path}", path = .path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("invalid {path}: {reason}", path = .path.display())]
    Index { path: PathBuf, reason: String },
    #[error("failed to lock {path}: held by another process for {seconds} s", path = .path.display())]
    Locked { path: PathBuf, seconds: u64 },
    /// The registry lacks a layer that may not be distributed.
    #[error("layer {digest} is non-distributable and not in the registry")]
    Foreign {
        digest: String,
        source: registry::Error,
    },
}

impl Error {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Registry(error) => error.kind(),
            Self::Io { source, .. } | Self::Open(OpenError::Io { source, .. })
                if is_full(source) =>
            {
                FailureKind::NoSpace
            }
            Self::Locked { .. } => FailureKind::Unavailable,
            Self::Foreign { source, .. } => source.kind(),
            Self::Open(_) | Self::Io { .. } | Self::Index { .. } => FailureKind::Other,
        }
    }
}

/// Returns whether there is no space left, on the filesystem or within a quota.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl From<Error> for RuntimeError {
    fn from(error: Error) -> Self {
        let message = match &error {
            Error::Registry(error) => error.chain(),
            Error::Io { source, .. } | Error::Open(OpenError::Io { source, .. }) => {
                format!("{error}: {source}")
            }
            Error::Foreign { source, .. } => format!("{error}: {}", source.chain()),
            Error::Open(_) | Error::Index { .. } | Error::Locked { .. } => error.to_string(),
        };
        let retry_after = match &error {
            Error::Registry(error) => error.retry_after(),
            _ => None,
        };
        Self {
            retry_after,
            ..Self::new(error.kind(), message)
        }
    }
}
