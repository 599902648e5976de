//! The file system of an image store: its capacity, which no runtime reports. It only asks the system.

use std::io;
use std::path::{Path, PathBuf};

use crate::model::image_size::ImageFs;
use crate::runtime::image_service::RuntimeError;

/// The reason why the capacity is unknown.
#[derive(Debug, thiserror::Error)]
pub enum ImageFsError {
    /// The runtime does not answer.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The runtime does not report where its store is.
    #[error("{0} does not report the directory of its image store")]
    NotReported(String),
    /// The directory that the runtime reports is not there.
    #[error(
        "the image file system is not visible: mount {path} read-only at the same path",
        path = .0.display()
    )]
    NotMounted(PathBuf),
    /// The system does not report the size of the file system.
    #[error("failed to read the size of the file system of {path}", path = .0.display())]
    Io(PathBuf, #[source] io::Error),
}

/// The file system of the directory.
///
/// # Errors
/// If the directory is not visible, or the system does not answer.
pub(super) async fn of_directory(directory: &Path) -> Result<ImageFs, ImageFsError> {
    let path = directory.to_owned();
    // A file system of the network can hang.
    let asked = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&path)).await;
    let failed = |error| ImageFsError::Io(directory.to_owned(), error);
    let stat = match asked {
        Ok(Ok(stat)) => stat,
        Ok(Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR)) => {
            return Err(ImageFsError::NotMounted(directory.to_owned()));
        }
        Ok(Err(errno)) => return Err(failed(errno.into())),
        Err(error) => return Err(failed(io::Error::other(error))),
    };
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    let capacity = bytes(stat.f_blocks);
    if capacity == 0 {
        return Err(failed(io::Error::other("its size is 0")));
    }
    Ok(ImageFs {
        capacity,
        used: capacity.saturating_sub(bytes(stat.f_bavail)),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn directory_tells_its_file_system() {
        let directory = tempfile::tempdir().unwrap();
        let fs = of_directory(directory.path()).await.unwrap();
        assert!(fs.capacity > 0 && fs.used <= fs.capacity, "{fs:?}");
        assert_eq!(fs.percent(100), fs.capacity);
    }

    #[tokio::test]
    async fn missing_directory_is_named() {
        let error = of_directory("/no/such/store".as_ref()).await.unwrap_err();
        let expected =
            "the image file system is not visible: mount /no/such/store read-only at the same path";
        assert_eq!(error.to_string(), expected);
    }
}
