//! A blob that is being downloaded from a registry: a file named for both beside the blobs, renamed among them when it is whole.
//!
//! Each registry has a file of its own, so that one that trickles holds up no other; whichever is whole first is the blob, and
//! the same content may come to take its place. The file is kept when a download breaks off, whether by an error, a signal or a loss of power, and the next one goes on from
//! there. A lock on it keeps other processes, and other tasks that have not noticed each other, from writing the same file.
//!
//! Bytes may come in any order. Those that follow the beginning without a gap are hashed as they come; those behind a gap are
//! read again when it is closed. A process that is killed leaves its gaps as holes of the file, and the next one goes on before
//! the first of them. Where a filesystem tells no holes, the digest tells in the end.

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

/// A download that nobody took up for so long is not wanted any more.
pub(super) const STALE_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);
const REHASH_BUFFER: usize = 256 << 10;
/// Before a hole, the block that was being written when the process died is filled up with zeros; none is larger than this.
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
    /// How much is there without a gap; so much is hashed.
    length: u64,
    /// What is there behind a gap: where it begins and ends.
    ahead: BTreeMap<u64, u64>,
}

impl Partial {
    /// Opens and locks the partial download of a blob from a registry; `None` where another holds it.
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

    /// Takes in what an earlier download left, and returns how much that is. Stops when `cancelled` says so.
    pub(super) fn take_in(&mut self, cancelled: impl Fn() -> bool) -> Result<u64, Error> {
        let there = self.file.metadata().map_err(|e| self.failed("read", e))?;
        // The last blocks of a file whose writer lost power may be zeros: if so, the digest tells in the end.
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

    /// Hashes what is there up to byte `end`. Stops when `cancelled` says so.
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

    /// Writes bytes where they belong. Where the filesystem is full, gives back what the download has taken.
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

    /// Forgets all that has come.
    pub(super) fn restart(&mut self) -> Result<(), Error> {
        self.hasher = Hasher::like(&self.descriptor.digest)?;
        self.length = 0;
        self.rewind().map(drop)
    }

    /// Forgets what has come behind a gap, and returns where that is.
    pub(super) fn rewind(&mut self) -> Result<u64, Error> {
        self.ahead.clear();
        let cut = self.file.set_len(self.length);
        cut.map_err(|e| self.failed("write", e))?;
        Ok(self.length)
    }

    /// Makes it a blob, if it is the one that was asked for; if not, drops it for good.
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

    /// Leaves what has come to the next attempt, if the blob has not come from elsewhere.
    pub(super) fn leave(mut self) {
        let Descriptor { digest, size, .. } = &self.descriptor;
        if self.length == 0 || self.layout.has_blob(digest, *size).unwrap_or(false) {
            self.discard();
        } else if !self.ahead.is_empty() {
            // If not, the holes tell.
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

/// A registry's name is not fit to be a file's.
pub(super) fn file_name(registry: &str, digest: &Digest) -> String {
    let registry = sha256(registry.as_bytes());
    let (registry, _) = registry.hex().split_at(16);
    format!("{}-{}-{registry}", digest.algorithm(), digest.hex())
}

/// Opens the file and locks it; `None` where another has it. The one that had it may have renamed or removed the
/// file between our opening and our locking it: then what we hold is not what is there.
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
            // What has a second name is somebody's copy of the layout: it is not ours to be written to.
            if held.nlink() == 1 {
                return Ok(Some(file));
            }
            dir.remove(name).map_err(io)?;
        }
    }
}

/// Removes files of this prefix that have not been written to for so long, unless somebody holds them. A failure to do so
/// harms nothing, and neither does a clock that is wrong: what is missed then is fetched again.
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
