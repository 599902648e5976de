//! Owner, extended attributes, mode and times of one entry, in containerd's order: changing the owner clears set-uid bits and
//! capabilities, and changing the mode changes an access control list.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::{self, Errno};

use super::UnpackError;
use super::archive::{Entry, Kind};
use super::dir::kind;
use super::header::Time;

/// Attributes that containerd never sets from a layer. overlayfs' own are among them.
const TRUSTED: &[u8] = b"trusted.";

/// The owner of an entry.
///
/// # Errors
/// [`UnpackError::Unsupported`] for numbers that are no owner: what is made of them depends on containerd.
pub(super) fn owner(entry: &Entry) -> Result<(Uid, Gid), UnpackError> {
    let id = |id: i64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    match (id(entry.uid), id(entry.gid)) {
        (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
        _ => Err(UnpackError::unsupported("owner", &entry.name)),
    }
}

/// The times of an entry: that of access is never before that of modification, and both are 1970 if out of range.
pub(super) fn times(entry: &Entry) -> Timestamps {
    let accessed = entry.accessed.unwrap_or(entry.modified);
    Timestamps {
        last_access: bounded(accessed.max(entry.modified)),
        last_modification: bounded(entry.modified),
    }
}

fn bounded(time: Time) -> Timespec {
    let nanos = i64::try_from(time).unwrap_or_default().max(0);
    Timespec {
        tv_sec: nanos / 1_000_000_000,
        tv_nsec: nanos % 1_000_000_000,
    }
}

/// Completes a regular file.
///
/// # Errors
/// [`UnpackError`].
pub(super) fn complete_file(file: BorrowedFd<'_>, entry: &Entry) -> Result<(), UnpackError> {
    let (uid, gid) = owner(entry)?;
    let failed = |action| move |e: Errno| UnpackError::filesystem(action, &entry.name, e);
    fs::fchown(file, Some(uid), Some(gid)).map_err(failed("change the owner of"))?;
    set_all(
        entry,
        || Ok(FileType::RegularFile),
        |name, value| fs::fsetxattr(file, name, value, XattrFlags::empty()),
    )?;
    fs::fchmod(file, Mode::from_raw_mode(entry.mode)).map_err(failed("change the mode of"))?;
    fs::futimens(file, &times(entry)).map_err(failed("set the times of"))
}

/// Completes any other entry: `name` in the directory `dir`.
///
/// # Errors
/// [`UnpackError`].
pub(super) fn complete(dir: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
    let (uid, gid) = owner(entry)?;
    let failed = |action| move |e: Errno| UnpackError::filesystem(action, &entry.name, e);
    fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("change the owner of"))?;
    if !entry.attributes.is_empty() {
        // No older call takes a directory and a name.
        let proc = format!("/proc/self/fd/{}/", dir.as_raw_fd());
        let path = [proc.as_bytes(), name].concat();
        set_all(
            entry,
            || kind(dir, name),
            |attribute, value| {
                fs::lsetxattr(path.as_slice(), attribute, value, XattrFlags::empty())
            },
        )?;
    }
    if !is_link(dir, name, entry).map_err(failed("read the type of"))? {
        let mode = Mode::from_raw_mode(entry.mode);
        fs::chmodat(dir, name, mode, AtFlags::empty()).map_err(failed("change the mode of"))?;
    }
    fs::utimensat(dir, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("set the times of"))
}

/// Returns whether the entry is a symbolic link, which has no mode. A hard link may be one.
fn is_link(dir: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> io::Result<bool> {
    match entry.kind {
        Kind::Symlink => Ok(true),
        Kind::HardLink => Ok(kind(dir, name)? == FileType::Symlink),
        _ => Ok(false),
    }
}

/// Sets the attributes of an entry, except those that containerd does not set either.
fn set_all(
    entry: &Entry,
    kind: impl Fn() -> io::Result<FileType>,
    set: impl Fn(&[u8], &[u8]) -> io::Result<()>,
) -> Result<(), UnpackError> {
    for (name, value) in &entry.attributes {
        if name.starts_with(TRUSTED) {
            continue;
        }
        match set(name, value) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            // Only files and directories have attributes of users.
            Err(Errno::PERM)
                if name.starts_with(b"user.")
                    && !matches!(kind(), Ok(FileType::RegularFile | FileType::Directory)) => {}
            Err(_) => return Err(UnpackError::unsupported("extended attribute", name)),
        }
    }
    Ok(())
}

/// Marks a directory as opaque, as overlayfs does.
pub(super) fn make_opaque(dir: impl AsFd) -> io::Result<()> {
    fs::fsetxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())
}
