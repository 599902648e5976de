//! Notices that files have changed, such as a mounted Secret that was rotated. It reads metadata only, never content.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

/// Shortest time between two checks.
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The state of files when they were last checked.
#[derive(Debug)]
pub(crate) struct FileWatch {
    stamps: Vec<Option<Stamp>>,
    checked: Instant,
}

/// Metadata of what a path resolves to. A mounted Secret is a link that is replaced; an editor writes in place or renames.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileWatch {
    /// Watches from now on. Create it before the files are read, so that a change in between is detected.
    pub(crate) fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            stamps: paths.into_iter().map(|path| stamp(&path)).collect(),
            checked: Instant::now(),
        }
    }

    /// Returns whether the files have changed since the last check. `false` within [`CHECK_INTERVAL`] of that.
    pub(crate) fn has_changed<P: IntoIterator<Item = PathBuf>>(
        &mut self,
        paths: impl FnOnce() -> P,
    ) -> bool {
        if self.checked.elapsed() < CHECK_INTERVAL {
            return false;
        }
        let now = Self::new(paths());
        let changed = now.stamps != self.stamps;
        *self = now;
        changed
    }
}

/// `None` if the path is neither a file nor a directory: a pipe can be read only once.
fn stamp(path: &Path) -> Option<Stamp> {
    let data = std::fs::metadata(path).ok()?;
    (data.is_file() || data.is_dir()).then(|| Stamp {
        file: (data.dev(), data.ino()),
        bytes: data.len(),
        modified: (data.mtime(), data.mtime_nsec()),
        changed: (data.ctime(), data.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn change_is_reported_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("one"), "1").unwrap();
        fs::write(path("two"), "2").unwrap();
        symlink("one", path("link")).unwrap();
        let mut watch = FileWatch::new([path("link")]);
        let mut changed = async || {
            tokio::time::advance(CHECK_INTERVAL).await;
            watch.has_changed(|| [path("link")])
        };
        assert!(!changed().await);
        // The kubelet swaps the content of a volume like this: same name, length and perhaps time, another file.
        symlink("two", path("next")).unwrap();
        fs::rename(path("next"), path("link")).unwrap();
        assert!(changed().await);
        assert!(!changed().await);
        fs::write(path("two"), "longer").unwrap();
        assert!(changed().await);
        fs::remove_file(path("two")).unwrap();
        assert!(changed().await);
        assert!(!changed().await);
        fs::write(path("two"), "back").unwrap();
        assert!(changed().await);
    }

    #[tokio::test(start_paused = true)]
    async fn checks_are_rate_limited() {
        let dir = tempfile::tempdir().unwrap();
        let path = || [dir.path().join("file")];
        let mut watch = FileWatch::new(path());
        fs::write(&path()[0], "1").unwrap();
        assert!(!watch.has_changed(|| -> [PathBuf; 1] { panic!("checked within the interval") }));
        tokio::time::advance(CHECK_INTERVAL).await;
        assert!(watch.has_changed(path));
    }
}
