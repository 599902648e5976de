//! A blob that is being downloaded from a registry: a file beside the blobs, named after both, and renamed when it is complete.
//!
//! Each registry has a file of its own, so that a slow one does not delay the others; the first complete file becomes the blob,
//! and the same content may replace it later. If a download is interrupted by an error, a signal or a loss of power, the file is
//! kept, and the next download resumes it. A lock prevents other processes and other tasks from writing the same file.
//!
//! Bytes may arrive in any order. Those that follow the beginning without a gap are hashed immediately; those after a gap are
//! read again when it is closed. A killed process leaves its gaps as holes of the file, and the next one resumes before the first
//! of them. If a filesystem does not report holes, the digest detects the damage.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;

use super::dir::Dir;
use super::error::{Error, is_full};
use super::layout::{Layout, failed};
use crate::model::digest::Digest;
use crate::registry;
use crate::registry::digest::{Hasher, sha256};
use crate::registry::manifest::Descriptor;

/// Age after which an abandoned download is removed.
pub(super) const STALE_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);
const REHASH_BUFFER: usize = 256 << 10;
/// Maximum block size: before a hole, the block that was being written when the process died is padded with zeros.
const BLOCK_MOST: u64 = 64 << 10;

/// The file, locked.
pub(super) struct Partial {
    file: File,
    /// The file's directory, and its name there.
    dir: Dir,
    name: String,
    layout: Layout,
    descriptor: Descriptor,
    hasher: Hasher,
    /// Length without a gap; these bytes are hashed.
    length: u64,
    /// The ranges after a gap: their start and end.
    ahead: BTreeMap<u64, u64>,
}

impl Partial {
    /// Opens and locks the partial download of a blob from a registry; `None` if another process or task holds it.
    pub(super) fn open(
        layout: &Layout,
        registry: &str,
        descriptor: &Descriptor,
    ) -> Result<Option<Self>, Error> {
        let digest = &descriptor.digest;
        let hasher = Hasher::like(digest)?;
        let name = file_name(registry, digest);
        let dir = layout.made_partials()?;
        Ok(lock(&dir, &name, true)?.map(|file| Self {
            file,
            dir,
            name,
            layout: layout.clone(),
            descriptor: descriptor.clone(),
            hasher,
            length: 0,
            ahead: BTreeMap::new(),
        }))
    }

    /// Reads the data of an earlier download, and returns its length. Stops when `cancelled` returns true.
    pub(super) fn take_in(&mut self, cancelled: impl Fn() -> bool) -> Result<u64, Error> {
        let there = self.file.metadata().map_err(|e| self.failed("read", e))?;
        // The last blocks of a file may be zeros after a loss of power; the digest detects that.
        if there.len() > self.descriptor.size {
            self.restart()?;
            return Ok(0);
        }
        let whole = match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Hole(0)) {
            Ok(hole) if hole < there.len() => hole.saturating_sub(BLOCK_MOST),
            _ => there.len(),
        };
        self.hash(whole, cancelled)?;
        self.rewind()
    }

    /// Hashes the file up to byte `end`. Stops when `cancelled` returns true.
    fn hash(&mut self, end: u64, cancelled: impl Fn() -> bool) -> Result<(), Error> {
        let mut buffer = vec![0; REHASH_BUFFER];
        while self.length < end && !cancelled() {
            let most = usize::try_from(end - self.length).unwrap_or(REHASH_BUFFER);
            let some = &mut buffer[..most.min(REHASH_BUFFER)];
            let read = self.file.read_at(some, self.length);
            let read = read.map_err(|e| self.failed("read", e))?;
            if read == 0 {
                break;
            }
            self.hasher.update(&some[..read]);
            self.length += read as u64;
        }
        Ok(())
    }

    /// Writes bytes at their offset. If the filesystem is full, removes the download to free its space.
    pub(super) fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        if let Err(error) = self.file.write_all_at(bytes, at) {
            if is_full(&error) {
                let _ = self.dir.remove(&self.name);
            }
            return Err(self.failed("write", error));
        }
        let end = at + bytes.len() as u64;
        if at > self.length {
            match self.ahead.range_mut(..=at).next_back() {
                Some((_, known)) if *known == at => *known = end,
                _ => drop(self.ahead.insert(at, end)),
            }
            return Ok(());
        }
        self.hasher.update(bytes);
        self.length = end;
        while let Some(next) = self.ahead.first_entry()
            && *next.key() == self.length
        {
            let end = next.remove();
            self.hash(end, || false)?;
        }
        Ok(())
    }

    /// Drops all received bytes.
    pub(super) fn restart(&mut self) -> Result<(), Error> {
        self.hasher = Hasher::like(&self.descriptor.digest)?;
        self.length = 0;
        self.rewind().map(drop)
    }

    /// Drops the bytes received after a gap, and returns the offset of the gap.
    pub(super) fn rewind(&mut self) -> Result<u64, Error> {
        self.ahead.clear();
        let cut = self.file.set_len(self.length);
        cut.map_err(|e| self.failed("write", e))?;
        Ok(self.length)
    }

    /// Renames it to the blob if it has the requested digest; otherwise removes it.
    pub(super) fn finish(self) -> Result<(), Error> {
        let asked = &self.descriptor.digest;
        let actual = self.hasher.clone().finish();
        if actual != *asked || self.length != self.descriptor.size {
            let _ = self.dir.remove(&self.name);
            return Err(Error::Registry(registry::Error::Content {
                expected: asked.to_string(),
                actual: actual.to_string(),
            }));
        }
        let blobs = self.layout.made_blobs(asked.algorithm())?;
        self.file
            .sync_all()
            .and_then(|()| self.dir.rename(&self.name, &blobs, asked.hex()))
            .map_err(|e| {
                if is_full(&e) {
                    let _ = self.dir.remove(&self.name);
                }
                failed("write", &blobs.path(asked.hex()), e)
            })
    }

    /// Leaves the received bytes to the next attempt, unless the blob is present by now.
    pub(super) fn leave(mut self) {
        let Descriptor { digest, size, .. } = &self.descriptor;
        if self.length == 0 || self.layout.has_blob(digest, *size).unwrap_or(false) {
            self.discard();
        } else if !self.ahead.is_empty() {
            // If that fails, the holes show the gaps.
            let _ = self.rewind();
        }
    }

    /// Removes it.
    pub(super) fn discard(self) {
        let _ = self.dir.remove(&self.name);
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> Error {
        failed(doing, &self.dir.path(&self.name), source)
    }
}

/// A registry's name may contain characters that are invalid in a file name.
pub(super) fn file_name(registry: &str, digest: &Digest) -> String {
    let registry = sha256(registry.as_bytes());
    let (registry, _) = registry.hex().split_at(16);
    format!("{}-{}-{registry}", digest.algorithm(), digest.hex())
}

/// Opens the file and locks it; `None` if another holds the lock. The previous holder may have renamed or removed the file
/// between opening and locking: then the locked file is not the one with this name.
fn lock(dir: &Dir, name: impl AsRef<OsStr>, make: bool) -> Result<Option<File>, Error> {
    let name = name.as_ref();
    let io = |e| failed("open", &dir.path(name), e);
    loop {
        let file = match make {
            true => dir.made_file(name)?,
            false => match dir.file(name, OFlags::RDWR)? {
                Some(file) => file,
                None => return Ok(None),
            },
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        let held = file.metadata().map_err(io)?;
        let there = dir.stat(name)?;
        if there.is_some_and(|there| (there.st_dev, there.st_ino) == (held.dev(), held.ino())) {
            // A file with a second name belongs to a copy of the layout and must not be written to.
            if held.nlink() == 1 {
                return Ok(Some(file));
            }
            dir.remove(name).map_err(io)?;
        }
    }
}

/// Removes files with this prefix that were not written to for this long, unless they are locked. A failure does no harm, and
/// neither does a wrong clock: a removed file is downloaded again.
pub(super) fn remove_stale(dir: &Dir, prefix: &str, after: Duration) {
    let now = SystemTime::now();
    let names = dir.names().unwrap_or_default();
    let named = |name: &&OsString| name.as_encoded_bytes().starts_with(prefix.as_bytes());
    for name in names.iter().filter(named) {
        let opened = dir.file(name, OFlags::RDONLY);
        let modified = opened.ok().flatten().map(|file| file.metadata());
        let modified = modified.and_then(|metadata| metadata.ok()?.modified().ok());
        let age = modified.map(|m| now.duration_since(m).unwrap_or_default());
        let is_stale = age.is_some_and(|age| age > after);
        if is_stale && let Ok(Some(_held)) = lock(dir, name, false) {
            let _ = dir.remove(name);
        }
    }
}
