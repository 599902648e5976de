//! A directory of the layout, opened so that no path below it follows a symbolic link.
//!
//! Another user may have created the directory first, with links to our files in it. So each name is opened below an open
//! directory, never through a link, and only if it belongs to us or to root. Only the top may be reached through links: the
//! operator chose that path.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::error::OpenError;

/// Only we can create files there, regardless of the umask.
const DIRECTORY: Mode = Mode::from_raw_mode(0o755);
const FILE: Mode = Mode::from_raw_mode(0o644);

/// An open directory.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
    /// The owner that this filesystem assigns to our files, if it had to be determined. Some support only one owner.
    given: Arc<OnceLock<Option<u32>>>,
}

impl Dir {
    /// Opens the layout's own directory; `None` if it does not exist.
    pub(super) fn top(path: &Path) -> Result<Option<Self>, OpenError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match fs::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self {
                fd,
                path: path.to_owned(),
                given: Arc::default(),
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed("open", path.to_owned(), error)),
        }
    }

    pub(super) fn path(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.path.join(name.as_ref())
    }

    /// Opens a subdirectory; `None` if it does not exist.
    pub(super) fn sub(&self, name: &str) -> Result<Option<Self>, OpenError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(self.why_not(name, error)),
        };
        let stat = fs::fstat(&fd).map_err(|e| failed("read", self.path(name), e))?;
        self.check_owner(name.as_ref(), &stat)?;
        Ok(Some(Self {
            fd,
            path: self.path(name),
            given: Arc::clone(&self.given),
        }))
    }

    /// Opens a subdirectory, and creates it if it does not exist.
    pub(super) fn made(&self, name: &str) -> Result<Self, OpenError> {
        if let Some(sub) = self.sub(name)? {
            return Ok(sub);
        }
        match fs::mkdirat(&self.fd, name, DIRECTORY) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed("make", self.path(name), error)),
        }
        match self.sub(name)? {
            Some(sub) => Ok(sub),
            None => Err(failed("open", self.path(name), Errno::NOENT)),
        }
    }

    /// Opens a file; `None` if it does not exist.
    pub(super) fn file(
        &self,
        name: impl AsRef<OsStr>,
        flags: OFlags,
    ) -> Result<Option<File>, OpenError> {
        let name = name.as_ref();
        // Without NONBLOCK, opening a pipe waits for its other end.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match fs::openat(&self.fd, name, flags, FILE) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(self.why_not(name, error)),
        };
        let stat = fs::fstat(&fd).map_err(|e| failed("read", self.path(name), e))?;
        self.check_file(name, &stat)?;
        Ok(Some(File::from(fd)))
    }

    /// Opens a file for reading and writing, and creates it if it does not exist.
    pub(super) fn made_file(&self, name: impl AsRef<OsStr>) -> Result<File, OpenError> {
        let name = name.as_ref();
        match self.file(name, OFlags::RDWR | OFlags::CREATE)? {
            Some(file) => Ok(file),
            None => Err(failed("open", self.path(name), Errno::NOENT)),
        }
    }

    /// Status of the entry with a name, which may be a link; `None` if it does not exist.
    pub(super) fn stat(&self, name: impl AsRef<OsStr>) -> Result<Option<Stat>, OpenError> {
        let name = name.as_ref();
        match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed("read", self.path(name), error)),
        }
    }

    /// Returns an error if one of these names is a link, of another type or of another user.
    pub(super) fn check(&self, directories: &[&str], files: &[&str]) -> Result<(), OpenError> {
        for name in directories {
            if let Some(stat) = self.stat(name)? {
                if kind(&stat) != FileType::Directory {
                    return Err(self.odd(name.as_ref(), &stat));
                }
                self.check_owner(name.as_ref(), &stat)?;
            }
        }
        for name in files {
            if let Some(stat) = self.stat(name)? {
                self.check_file(name.as_ref(), &stat)?;
            }
        }
        Ok(())
    }

    /// Returns whether a file is regular and belongs to a user who may write here.
    pub(super) fn is_sound(&self, name: &str, stat: &Stat) -> bool {
        self.check_file(name.as_ref(), stat).is_ok()
    }

    /// Renames a file of this directory into another, replacing any file of that name.
    pub(super) fn rename(&self, name: &str, to: &Self, new: &str) -> io::Result<()> {
        Ok(fs::renameat(&self.fd, name, &to.fd, new)?)
    }

    /// Removes a file or a link.
    pub(super) fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(fs::unlinkat(&self.fd, name.as_ref(), AtFlags::empty())?)
    }

    /// The names in it. Files may appear and disappear meanwhile.
    pub(super) fn names(&self) -> Result<Vec<OsString>, OpenError> {
        let unread = |e| failed("read", self.path.clone(), e);
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&self.fd).map_err(unread)? {
            let entry = entry.map_err(unread)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(fs::fsync(&self.fd)?)
    }

    fn check_file(&self, name: &OsStr, stat: &Stat) -> Result<(), OpenError> {
        match kind(stat) {
            FileType::RegularFile => self.check_owner(name, stat),
            _ => Err(self.odd(name, stat)),
        }
    }

    fn check_owner(&self, name: &OsStr, stat: &Stat) -> Result<(), OpenError> {
        let ours = rustix::process::geteuid().as_raw();
        let owner = stat.st_uid;
        if owner == ours || owner == 0 || self.given() == Some(owner) {
            return Ok(());
        }
        Err(OpenError::Owner {
            path: self.path(name),
            owner,
            ours,
        })
    }

    /// The owner of files that we create here: a different one on NFS, which maps root to nobody, and on FAT.
    fn given(&self) -> Option<u32> {
        let find_out = || {
            let name = format!(".harpoon-owner.{:016x}", fastrand::u64(..));
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
            let probe = fs::openat(&self.fd, &name, flags | OFlags::CLOEXEC, FILE).ok()?;
            let stat = fs::fstat(&probe);
            let _ = self.remove(&name);
            Some(stat.ok()?.st_uid)
        };
        *self.given.get_or_init(find_out)
    }

    /// A refused link causes a different error for each kind of opening.
    fn why_not(&self, name: impl AsRef<OsStr>, error: Errno) -> OpenError {
        let name = name.as_ref();
        match self.stat(name) {
            Ok(Some(stat)) if matches!(error, Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => {
                self.odd(name, &stat)
            }
            _ => failed("open", self.path(name), error),
        }
    }

    fn odd(&self, name: &OsStr, stat: &Stat) -> OpenError {
        OpenError::Kind {
            path: self.path(name),
            found: match kind(stat) {
                FileType::Symlink => "a symbolic link",
                FileType::RegularFile => "not a directory",
                _ => "not a regular file",
            },
        }
    }
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn failed(doing: &'static str, path: PathBuf, error: Errno) -> OpenError {
    OpenError::Io {
        doing,
        path,
        source: error.into(),
    }
}
