//! A directory in which every path is resolved beneath it and without following symbolic links.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, Mode, OFlags};

use super::UnpackError;

/// An open directory. It stays the same one when it is renamed.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
}

impl Dir {
    /// Opens a directory that the caller chose; only its path may contain symbolic links.
    ///
    /// # Errors
    /// [`UnpackError::Filesystem`].
    pub fn open(path: &Path) -> Result<Self, UnpackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match fs::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd }),
            Err(errno) => {
                let path = path.as_os_str().as_encoded_bytes();
                Err(UnpackError::filesystem("open", path, errno))
            }
        }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
