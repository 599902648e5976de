//! Completes implied directories from the layers below, as containerd's `mkparent` does while it unpacks over them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::{self, Errno};

use super::UnpackError;
use super::dir::{Dir, LOOKUP, READ, kind};
use super::implied::{Implied, ImpliedDirectories};
use super::resolve::{parent, resolve};

/// Linux' limits of a list of attributes, and of a value.
const ATTRIBUTES_MAX: usize = 64 << 10;
const SET_GID: u32 = 0o2000;
/// Mode of a directory that no layer contains.
const MODE: Mode = Mode::from_raw_mode(0o755);

/// Completes the implied directories of a layer.
///
/// # Errors
/// [`UnpackError`].
pub(super) fn mend(
    implied: &ImpliedDirectories,
    into: &Dir,
    below: &[Dir],
) -> Result<(), UnpackError> {
    // The groups that directories hand down, by path.
    let mut groups: BTreeMap<&[u8], Gid> = BTreeMap::new();
    let mut attributes = Attributes::new();
    for (path, record) in implied.iter() {
        let failed = |errno| UnpackError::filesystem("complete", path, errno);
        let dir = into.sub(path, READ).map_err(failed)?;
        let group = groups.get(parent(path).0);
        if let Some(group) = group.filter(|_| record.is_in_implied && !record.is_named) {
            fs::fchown(&dir, None, Some(*group)).map_err(failed)?;
            fs::fchmod(&dir, MODE).map_err(failed)?;
        }
        let Some(source) = nearest(below, path)? else {
            continue;
        };
        let stat = fs::fstat(&source).map_err(failed)?;
        if stat.st_mode & SET_GID != 0 {
            groups.insert(path, Gid::from_raw(stat.st_gid));
        }
        if !record.is_named {
            copy_stat(&stat, &dir, record).map_err(failed)?;
        }
        attributes.copy(&source, &dir, path, record)?;
    }
    Ok(())
}

/// The directory at `path` in the nearest layer that has something there; `None` if that is no directory. Each layer is searched
/// on its own, as containerd does, so that a link does not lead into another one.
fn nearest(below: &[Dir], path: &[u8]) -> Result<Option<OwnedFd>, UnpackError> {
    for layer in below {
        let resolved;
        let mut path = path;
        let mut opened = layer.sub(path, READ);
        if let Err(Errno::LOOP) = opened {
            resolved = resolve(layer, path)?;
            path = &resolved;
            opened = layer.sub(path, READ);
        }
        match opened {
            Ok(dir) => return Ok(Some(dir)),
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR) if is_something_else(layer, path) => return Ok(None),
            Err(errno) => return Err(UnpackError::filesystem("open", path, errno)),
        }
    }
    Ok(None)
}

/// Returns whether `path` is in a directory, and is none.
fn is_something_else(layer: &Dir, path: &[u8]) -> bool {
    let (above, name) = parent(path);
    let above = layer.sub(above, LOOKUP);
    let kind = above.and_then(|above| kind(above.as_fd(), name));
    kind.is_ok_and(|kind| kind != FileType::Directory)
}

fn copy_stat(stat: &Stat, dir: &OwnedFd, record: &Implied) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fs::fchown(dir, Some(uid), Some(gid))?;
    fs::fchmod(dir, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    if record.is_changed {
        return Ok(());
    }
    let time = |seconds, nanos: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.cast_signed(),
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    fs::futimens(dir, &times)
}

/// Buffers for extended attributes.
struct Attributes {
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Attributes {
    fn new() -> Self {
        Self {
            names: vec![0; ATTRIBUTES_MAX],
            value: vec![0; ATTRIBUTES_MAX],
        }
    }

    /// Copies the attributes that the layer itself did not set.
    fn copy(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        path: &[u8],
        record: &Implied,
    ) -> Result<(), UnpackError> {
        let failed = |errno| UnpackError::filesystem("copy the attributes of", path, errno);
        let length = match fs::flistxattr(from, self.names.as_mut_slice()) {
            Ok(length) => length,
            Err(Errno::OPNOTSUPP | Errno::NODATA) => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        };
        for name in self.names[..length].split(|b| *b == 0) {
            if name.is_empty() || name.starts_with(b"trusted.") {
                continue;
            }
            // What was created in the directory meanwhile would have inherited the one, and a later mode have changed the other.
            let is_default = name == b"system.posix_acl_default";
            if is_default || (record.is_named && name == b"system.posix_acl_access") {
                return Err(UnpackError::unsupported("access control list", path));
            }
            let length = match fs::fgetxattr(from, name, self.value.as_mut_slice()) {
                Ok(length) => length,
                Err(Errno::OPNOTSUPP | Errno::NODATA) => continue,
                Err(errno) => return Err(failed(errno)),
            };
            match fs::fsetxattr(to, name, &self.value[..length], XattrFlags::CREATE) {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NODATA | Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(())
    }
}
