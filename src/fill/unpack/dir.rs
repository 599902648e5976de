//! A directory in which every path is resolved beneath it and without following symbolic links.
//!
//! The kernel does this (openat2, Linux 5.6, with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`). Where openat2 is missing or a seccomp
//! profile refuses it, each component is opened on its own with `O_NOFOLLOW`: the result is the same, with more calls.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::{self, Errno};

use super::UnpackError;

/// Flags for a directory whose entries are created, read or removed.
pub(super) const LOOKUP: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Flags for a directory whose own metadata is read or changed, or which is listed.
pub(super) const READ: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// An open directory. It stays the same one when it is renamed.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    has_openat2: bool,
}

impl Dir {
    /// Opens a directory that the caller chose; only its path may contain symbolic links.
    ///
    /// # Errors
    /// [`UnpackError::Filesystem`].
    pub fn open(path: &Path) -> Result<Self, UnpackError> {
        let fd = fs::open(path, READ, Mode::empty()).map_err(|errno| {
            let path = path.as_os_str().as_encoded_bytes();
            UnpackError::filesystem("open", path, errno)
        })?;
        let has_openat2 = openat2(fd.as_fd(), b".", LOOKUP).is_ok();
        Ok(Self { fd, has_openat2 })
    }

    /// The same directory, as on a kernel without openat2.
    #[cfg(test)]
    pub(super) fn without_openat2(mut self) -> Self {
        self.has_openat2 = false;
        self
    }

    /// Opens a directory beneath this one; the empty path is the directory itself. `LOOP` if the path contains a symbolic link,
    /// also as its last component.
    pub(super) fn sub(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        if self.has_openat2 {
            openat2(self.fd.as_fd(), path, flags)
        } else {
            by_components(self.fd.as_fd(), path, flags)
        }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn openat2(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    io::retry_on_intr(|| fs::openat2(dir, path, flags, Mode::empty(), beneath))
}

fn by_components(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let mut current: Option<OwnedFd> = None;
    let mut names = path.split(|b| *b == b'/').peekable();
    while let Some(name) = names.next() {
        if name == b".." {
            return Err(Errno::XDEV);
        }
        let at = current.as_ref().map_or(dir, AsFd::as_fd);
        let flags = if names.peek().is_some() {
            LOOKUP
        } else {
            flags
        };
        let opened = fs::openat(at, name, flags | OFlags::NOFOLLOW, Mode::empty());
        if opened.as_ref().is_err_and(|e| *e == Errno::NOTDIR)
            && kind(at, name)? == FileType::Symlink
        {
            return Err(Errno::LOOP);
        }
        current = Some(opened?);
    }
    current.ok_or(Errno::NOENT)
}

/// The type of an entry of a directory.
pub(super) fn kind(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<FileType> {
    let stat = fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree() -> tempfile::TempDir {
        let top = tempfile::tempdir().unwrap();
        let inner = top.path().join("root/a/b");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::create_dir(top.path().join("outside")).unwrap();
        std::fs::write(top.path().join("root/file"), "").unwrap();
        symlink("../outside", top.path().join("root/out")).unwrap();
        symlink("a", top.path().join("root/in")).unwrap();
        symlink("/", top.path().join("root/a/slash")).unwrap();
        top
    }

    #[test]
    fn links_are_never_followed() {
        let top = tree();
        let root = top.path().join("root");
        let kernel = Dir::open(&root).unwrap();
        let steps = Dir::open(&root).unwrap().without_openat2();
        for dir in [&kernel, &steps] {
            for path in ["", "a", "a/b"] {
                dir.sub(path.as_bytes(), READ).unwrap();
            }
            for (path, errno) in [
                ("in", Errno::LOOP),
                ("in/b", Errno::LOOP),
                ("out", Errno::LOOP),
                ("a/slash", Errno::LOOP),
                ("a/slash/tmp", Errno::LOOP),
                ("a/c", Errno::NOENT),
                ("a/c/d", Errno::NOENT),
                ("file", Errno::NOTDIR),
                ("file/x", Errno::NOTDIR),
                ("..", Errno::XDEV),
            ] {
                let opened = dir.sub(path.as_bytes(), LOOKUP).map(drop);
                assert_eq!(opened, Err(errno), "{path} {}", dir.has_openat2);
            }
        }
    }
}
