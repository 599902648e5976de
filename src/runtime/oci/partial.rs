//! A blob that is being downloaded: a file of its digest's name beside the blobs, renamed among them when it is whole.
//!
//! The file is kept when a download breaks off, whether by an error, a signal or a loss of power, and the next one goes on from
//! there. A lock on it keeps other processes, and other tasks that have not noticed each other, from writing the same file.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::error::{Error, is_full};
use super::layout::{Layout, failed};
use crate::registry;
use crate::registry::digest::Hasher;
use crate::registry::manifest::Descriptor;

/// A download that nobody took up for so long is not wanted any more.
pub(super) const STALE_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);
const REHASH_BUFFER: usize = 256 << 10;

/// The file, locked.
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    blob: PathBuf,
    descriptor: Descriptor,
    hasher: Hasher,
    length: u64,
}

impl Partial {
    /// Opens and locks the partial download; `None` where another holds it.
    pub(super) fn open(layout: &Layout, descriptor: &Descriptor) -> Result<Option<Self>, Error> {
        let digest = &descriptor.digest;
        let hasher = Hasher::like(digest)?;
        let name = format!("{}-{}", digest.algorithm(), digest.hex());
        let path = layout.partials().join(name);
        match lock(&path).map_err(|e| failed("open", &path, e))? {
            Some(file) => Ok(Some(Self {
                file,
                path,
                blob: layout.blob_path(digest),
                descriptor: descriptor.clone(),
                hasher,
                length: 0,
            })),
            None => Ok(None),
        }
    }

    /// Takes in what an earlier download left, and returns how much that is. Stops when `cancelled` says so.
    pub(super) fn take_in(&mut self, cancelled: impl Fn() -> bool) -> Result<u64, Error> {
        let there = self.file.metadata().map_err(|e| self.failed("read", e))?;
        // The last blocks of a file whose writer lost power may be zeros: if so, the digest tells in the end.
        if there.len() > self.descriptor.size {
            self.restart()?;
            return Ok(0);
        }
        let mut buffer = vec![0; REHASH_BUFFER];
        loop {
            let read = self.file.read(&mut buffer);
            let read = read.map_err(|e| self.failed("read", e))?;
            if read == 0 || cancelled() {
                return Ok(self.length);
            }
            self.hasher.update(&buffer[..read]);
            self.length += read as u64;
        }
    }

    /// Appends bytes. Where the filesystem is full, gives back what the download has taken.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if let Err(error) = self.file.write_all(bytes) {
            if is_full(&error) {
                let _ = fs::remove_file(&self.path);
            }
            return Err(self.failed("write", error));
        }
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Forgets all that has come.
    pub(super) fn restart(&mut self) -> Result<(), Error> {
        self.hasher = Hasher::like(&self.descriptor.digest)?;
        self.length = 0;
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map(drop)
            .map_err(|e| self.failed("write", e))
    }

    /// Makes it a blob, if it is the one that was asked for; if not, drops it for good.
    pub(super) fn finish(self) -> Result<(), Error> {
        let asked = &self.descriptor.digest;
        let actual = self.hasher.clone().finish();
        if actual != *asked || self.length != self.descriptor.size {
            let _ = fs::remove_file(&self.path);
            return Err(Error::Registry(registry::Error::Content {
                expected: asked.to_string(),
                actual: actual.to_string(),
            }));
        }
        let dir = self.blob.parent().unwrap_or(&self.blob);
        fs::create_dir_all(dir)
            .and_then(|()| self.file.sync_all())
            .and_then(|()| fs::rename(&self.path, &self.blob))
            .map_err(|e| {
                if is_full(&e) {
                    let _ = fs::remove_file(&self.path);
                }
                failed("write", &self.blob, e)
            })
    }

    /// Leaves what has come to the next attempt.
    pub(super) fn leave(self) {
        if self.file.metadata().is_ok_and(|m| m.len() == 0) {
            self.discard();
        }
    }

    /// Removes it.
    pub(super) fn discard(self) {
        let _ = fs::remove_file(&self.path);
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> Error {
        failed(doing, &self.path, source)
    }
}

/// Opens the file and locks it; `None` where another has it. The one that had it may have renamed or removed the
/// file between our opening and our locking it: then what we hold is not what is there.
fn lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let held = file.metadata()?;
        match fs::metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => {
                return Ok(Some(file));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Removes files of this prefix that have not been written to for so long, unless somebody holds them. A failure to do so
/// harms nothing, and neither does a clock that is wrong: what is missed then is fetched again.
pub(super) fn remove_stale(dir: &Path, prefix: &str, after: Duration) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    let now = SystemTime::now();
    let named = |entry: &fs::DirEntry| {
        entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(prefix.as_bytes())
    };
    for entry in entries.flatten().filter(named) {
        let modified = entry.metadata().and_then(|m| m.modified());
        let age = modified.map(|m| now.duration_since(m).unwrap_or_default());
        let is_stale = age.is_ok_and(|age| age > after);
        if is_stale && let Ok(Some(_held)) = lock(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
