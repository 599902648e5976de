//! The probe of a unix socket: reasons why no runtime can be reached on it, and how to fix them.
//!
//! It connects and disconnects; it never sends a byte.

use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use tokio::net::UnixStream;

/// The reason why a socket cannot be connected to.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// No such file.
    #[error("does not exist")]
    Missing,
    /// The path is a file, a directory or something else.
    #[error("is not a unix socket")]
    NotASocket,
    /// Access to the file, or to a directory in its path, is denied.
    #[error("permission denied: run as root, or as a user or group that owns the socket")]
    Denied,
    /// A socket that no process listens on.
    #[error("connection refused: no process listens on the socket (is the runtime running?)")]
    Refused,
    /// The queue of the listener is full, because it does not take connections.
    #[error("no connections accepted: the runtime hangs or is overloaded")]
    Busy,
    /// Any other error of the system.
    #[error("failed to connect")]
    Io(#[source] io::Error),
}

impl From<io::Error> for SocketError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Self::Missing,
            ErrorKind::PermissionDenied => Self::Denied,
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::WouldBlock => Self::Busy,
            _ => Self::Io(error),
        }
    }
}

/// Checks that a process listens on the socket at the path.
///
/// # Errors
/// The reason why no connection is possible.
pub(super) async fn check(path: &Path) -> Result<(), SocketError> {
    let metadata = tokio::fs::metadata(path).await?;
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket);
    }
    UnixStream::connect(path).await?;
    Ok(())
}
