//! Finds and creates the directories in which entries are created, as containerd's `mkparent`.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::dir::{Dir, LOOKUP, kind};
use super::implied::{Implied, ImpliedDirectories};
use super::resolve::{PATH_MAX, join, parent, resolve};
use super::{Limits, UnpackError};

/// Open directories that are kept.
const OPEN_MAX: usize = 64;
/// Mode of a directory that no layer contains.
const MODE: Mode = Mode::from_raw_mode(0o755);
/// Disk space of a directory, for the budget.
pub(super) const BLOCK_BYTES: u64 = 4096;

/// An open directory of the layer.
pub(super) struct Parent {
    fd: OwnedFd,
    /// Its path without symbolic links.
    pub(super) path: Vec<u8>,
    /// It is implied, and not yet marked as changed.
    must_mark: Cell<bool>,
}

impl AsFd for Parent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The directories of a layer that is being unpacked.
pub(super) struct Parents<'a> {
    root: &'a Dir,
    limits: Limits<'a>,
    last: Option<(Vec<u8>, Rc<Parent>)>,
    open: HashMap<Vec<u8>, Rc<Parent>>,
    pub(super) implied: ImpliedDirectories,
}

impl<'a> Parents<'a> {
    pub(super) fn new(root: &'a Dir, limits: &Limits<'a>) -> Self {
        Self {
            root,
            limits: *limits,
            last: None,
            open: HashMap::new(),
            implied: ImpliedDirectories::default(),
        }
    }

    /// The directory at a cleaned path within the root; it is created if it does not exist.
    pub(super) fn get(&mut self, path: &[u8]) -> Result<Rc<Parent>, UnpackError> {
        if let Some((last, parent)) = &self.last
            && last == path
        {
            return Ok(Rc::clone(parent));
        }
        let parent = match self.open.get(path) {
            Some(parent) => Rc::clone(parent),
            None => {
                let parent = Rc::new(self.find(path)?);
                if self.open.len() == OPEN_MAX {
                    self.open.clear();
                }
                self.open.insert(path.to_vec(), Rc::clone(&parent));
                parent
            }
        };
        self.last = Some((path.to_vec(), Rc::clone(&parent)));
        Ok(parent)
    }

    /// Notes that an entry is created or removed in a directory.
    pub(super) fn mark_changed(&mut self, parent: &Parent) {
        if parent.must_mark.replace(false)
            && let Some(record) = self.implied.get_mut(&parent.path)
        {
            record.is_changed = true;
        }
    }

    /// Closes all directories: one of them may no longer be what its path leads to.
    pub(super) fn forget(&mut self) {
        self.open.clear();
        self.last = None;
    }

    fn find(&mut self, path: &[u8]) -> Result<Parent, UnpackError> {
        let resolved;
        let mut path = path;
        let mut opened = self.root.sub(path, LOOKUP);
        if let Err(Errno::LOOP) = opened {
            resolved = resolve(self.root, path)?;
            path = &resolved;
            opened = self.root.sub(path, LOOKUP);
        }
        if let Err(Errno::NOENT) = opened {
            if path.len() > PATH_MAX {
                return Err(UnpackError::unsupported("long path", path));
            }
            self.create(path)?;
            opened = self.root.sub(path, LOOKUP);
        }
        match opened {
            Ok(fd) => Ok(Parent {
                fd,
                path: path.to_vec(),
                must_mark: Cell::new(self.implied.get(path).is_some_and(|i| !i.is_changed)),
            }),
            Err(errno) => Err(UnpackError::filesystem("open", path, errno)),
        }
    }

    /// Creates a directory without symbolic links in its path, and those above it that do not exist.
    fn create(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        let failed = |errno| UnpackError::filesystem("create directory", path, errno);
        let mut missing = vec![path];
        let mut above = loop {
            let (above, _) = parent(missing.last().copied().unwrap_or_default());
            match self.root.sub(above, LOOKUP) {
                Ok(dir) => break dir,
                Err(Errno::NOENT) if !above.is_empty() => missing.push(above),
                Err(errno) => return Err(failed(errno)),
            }
        };
        while let Some(path) = missing.pop() {
            let (_, name) = parent(path);
            self.limits.budget.take(BLOCK_BYTES)?;
            fs::mkdirat(&above, name, MODE).map_err(failed)?;
            // Not for the umask alone: a directory inherits the set-gid bit of the one above it.
            fs::chmodat(&above, name, MODE, AtFlags::empty()).map_err(failed)?;
            self.record(path)?;
            above = self.root.sub(path, LOOKUP).map_err(failed)?;
        }
        Ok(())
    }

    fn record(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        let (above, _) = parent(path);
        let above = self.implied.get_mut(above);
        let is_in_implied = above.is_some_and(|above| {
            above.is_changed = true;
            !above.is_named
        });
        let record = Implied {
            is_in_implied,
            ..Implied::default()
        };
        self.implied.insert(path, record);
        self.check_memory(0)
    }

    /// Checks the memory of paths, with so many bytes of the caller's.
    pub(super) fn check_memory(&self, others: usize) -> Result<(), UnpackError> {
        if self.implied.memory() + others > self.limits.memory {
            return Err(UnpackError::unsupported("too many directories", b""));
        }
        Ok(())
    }

    /// Removes an entry of a directory with everything beneath it.
    pub(super) fn remove(&mut self, dir: &Parent, name: &[u8]) -> Result<(), UnpackError> {
        let path = join(&dir.path, name);
        self.forget();
        self.implied.remove(&path);
        super::remove::remove(self.root, &path)
            .map_err(|errno| UnpackError::filesystem("remove", &path, errno))
    }

    /// Returns whether an entry exists and is a directory.
    pub(super) fn is_directory(dir: &Parent, name: &[u8]) -> bool {
        kind(dir.as_fd(), name) == Ok(FileType::Directory)
    }
}
