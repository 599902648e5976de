//! Applies the entries of an archive to a directory, in their order, as containerd's `archive.Apply`.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Timestamps};
use rustix::io::{self, Errno};

use super::archive::{Archive, Entry, Kind};
use super::attributes::{complete, complete_file, make_opaque, owner, times};
use super::dir::{Dir, LOOKUP, READ};
use super::implied::ImpliedDirectories;
use super::parents::{BLOCK_BYTES, Parent, Parents};
use super::resolve::{clean, join, parent, resolve, split, within_root};
use super::{Limits, Position, UnpackError};

/// A name with this prefix deletes the rest of the name.
const WHITEOUT: &[u8] = b".wh.";
/// The name that hides what the layers below have in the directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Memory of one directory's times, beside its path.
const TIMES: usize = 48;

/// The figures of an applied archive, and what is left to mend.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) entries: u64,
    pub(super) file_bytes: u64,
    pub(super) implied: ImpliedDirectories,
}

/// A layer being applied.
struct Apply<'a> {
    root: &'a Dir,
    limits: Limits<'a>,
    position: Position,
    parents: Parents<'a>,
    directories: DirectoryTimes,
    /// In the bottom layer: directories that have been opaque, by path.
    opaque: HashSet<Vec<u8>>,
    opaque_memory: usize,
    /// Something may exist at a path that the layer named before.
    is_path_reused: bool,
    file_bytes: u64,
}

/// Applies an archive to an empty directory. The archive is not read beyond its end.
///
/// # Errors
/// [`UnpackError`].
pub(super) fn apply(
    archive: &mut Archive<'_>,
    root: &Dir,
    position: Position,
    limits: &Limits<'_>,
) -> Result<Applied, UnpackError> {
    let mut layer = Apply {
        root,
        limits: *limits,
        position,
        parents: Parents::new(root, limits),
        directories: DirectoryTimes::default(),
        opaque: HashSet::new(),
        opaque_memory: 0,
        is_path_reused: false,
        file_bytes: 0,
    };
    let mut entries = 0;
    while let Some(entry) = archive.next()? {
        entries += 1;
        layer.entry(&entry, archive)?;
    }
    layer.directories.set(root)?;
    Ok(Applied {
        entries,
        file_bytes: layer.file_bytes,
        implied: layer.parents.implied,
    })
}

impl Apply<'_> {
    fn entry(&mut self, entry: &Entry, archive: &mut Archive<'_>) -> Result<(), UnpackError> {
        let name = clean(&entry.name);
        let (dir, base) = split(&name);
        // The root itself is the snapshotter's.
        if matches!(base, b"" | b"." | b"..") {
            return Ok(());
        }
        let dir = self.parents.get(&within_root(dir))?;
        if base == OPAQUE {
            return match self.position {
                Position::Bottom => self.clear(&dir),
                Position::Above => self.make_opaque(&dir),
            };
        }
        if let Some(deleted) = base.strip_prefix(WHITEOUT) {
            if matches!(deleted, b"" | b"." | b"..") {
                return Err(UnpackError::malformed("invalid name of a whiteout"));
            }
            return self.whiteout(entry, &dir, deleted);
        }
        if entry.kind == Kind::Global {
            // containerd removes what has this name, and creates nothing.
            return self.remove(&dir, base);
        }
        self.parents.mark_changed(&dir);
        self.create(entry, &dir, base, archive)?;
        if entry.kind == Kind::Directory {
            self.directories.push(&name, &times(entry));
            self.check_memory()?;
        }
        Ok(())
    }

    fn create(
        &mut self,
        entry: &Entry,
        dir: &Parent,
        base: &[u8],
        archive: &mut Archive<'_>,
    ) -> Result<(), UnpackError> {
        let mut made = self.make(entry, dir, base);
        if let Err(UnpackError::Filesystem { errno, .. }) = made
            && errno == Errno::EXIST
        {
            if entry.kind == Kind::Directory && Parents::is_directory(dir, base) {
                let path = join(&dir.path, base);
                if let Some(record) = self.parents.implied.get_mut(&path) {
                    record.is_named = true;
                }
                return complete(dir.as_fd(), base, entry);
            }
            self.remove(dir, base)?;
            made = self.make(entry, dir, base);
        }
        let Some(file) = made? else {
            return complete(dir.as_fd(), base, entry);
        };
        archive.content(|piece| {
            write_all(&file, piece)
                .map_err(|errno| UnpackError::filesystem("write", &entry.name, errno))
        })?;
        self.file_bytes += entry.size;
        complete_file(file.as_fd(), entry)
    }

    /// Creates an entry, which must not exist; returns the file if it is one.
    fn make(
        &self,
        entry: &Entry,
        dir: &Parent,
        base: &[u8],
    ) -> Result<Option<OwnedFd>, UnpackError> {
        let mode = Mode::from_raw_mode(entry.mode);
        let node = |kind, device| fs::mknodat(dir, base, kind, mode, device);
        let made = match entry.kind {
            Kind::File => {
                let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                self.limits
                    .budget
                    .take(entry.size.wrapping_neg() % BLOCK_BYTES)?;
                let file = fs::openat(dir, base, new | OFlags::CLOEXEC, mode);
                return file
                    .map(Some)
                    .map_err(|errno| UnpackError::filesystem("create", &entry.name, errno));
            }
            Kind::Directory => {
                self.limits.budget.take(BLOCK_BYTES)?;
                fs::mkdirat(dir, base, mode)
            }
            Kind::Symlink => fs::symlinkat(entry.link.as_slice(), dir, base),
            Kind::HardLink => self.link(entry, dir, base)?,
            Kind::CharDevice => node(FileType::CharacterDevice, device(entry)?),
            Kind::BlockDevice => node(FileType::BlockDevice, device(entry)?),
            Kind::Fifo => node(FileType::Fifo, 0),
            Kind::Global => Ok(()),
        };
        made.map(|()| None)
            .map_err(|errno| UnpackError::filesystem("create", &entry.name, errno))
    }

    /// Creates a hard link to another entry of this layer. A target in a layer below is not found: containerd does not find it either.
    fn link(
        &self,
        entry: &Entry,
        dir: &Parent,
        base: &[u8],
    ) -> Result<io::Result<()>, UnpackError> {
        let (above, target) = split(&entry.link);
        if matches!(target, b"" | b"." | b"..") {
            return Err(UnpackError::unsupported(
                "hard link to a directory",
                &entry.name,
            ));
        }
        let above = within_root(above);
        let above = match self.root.sub(&above, LOOKUP) {
            Err(Errno::LOOP) => self.root.sub(&resolve(self.root, &above)?, LOOKUP),
            opened => opened,
        };
        Ok(above.and_then(|above| fs::linkat(above, target, dir, base, AtFlags::empty())))
    }

    /// Removes an entry because another one, or nothing, takes its place.
    fn remove(&mut self, dir: &Parent, base: &[u8]) -> Result<(), UnpackError> {
        self.is_path_reused = true;
        self.parents.remove(dir, base)
    }

    fn whiteout(&mut self, entry: &Entry, dir: &Parent, deleted: &[u8]) -> Result<(), UnpackError> {
        self.parents.mark_changed(dir);
        if self.position == Position::Bottom {
            return self.remove(dir, deleted);
        }
        let (uid, gid) = owner(entry)?;
        let kind = FileType::CharacterDevice;
        fs::mknodat(dir, deleted, kind, Mode::empty(), 0)
            .and_then(|()| {
                let link = AtFlags::SYMLINK_NOFOLLOW;
                fs::chownat(dir, deleted, Some(uid), Some(gid), link)
            })
            .map_err(|errno| UnpackError::filesystem("delete", &entry.name, errno))
    }

    fn make_opaque(&self, dir: &Parent) -> Result<(), UnpackError> {
        let opened = self.root.sub(&dir.path, READ);
        opened
            .and_then(make_opaque)
            .map_err(|errno| UnpackError::filesystem("make opaque", &dir.path, errno))
    }

    /// Does in the bottom layer what containerd does there for an opaque directory: removes what the layer has not named, which
    /// can only be implied directories.
    fn clear(&mut self, dir: &Parent) -> Result<(), UnpackError> {
        let is_first = self.opaque.insert(dir.path.clone());
        self.opaque_memory += TIMES + dir.path.len();
        self.check_memory()?;
        let unnamed = self.parents.implied.topmost_unnamed(&dir.path);
        if !unnamed.is_empty() && (self.is_path_reused || !is_first) {
            return Err(UnpackError::unsupported("opaque directory", &dir.path));
        }
        for path in unnamed {
            let (above, base) = parent(&path);
            let above = self.parents.get(above)?;
            self.parents.mark_changed(&above);
            self.remove(&above, base)?;
        }
        Ok(())
    }

    fn check_memory(&self) -> Result<(), UnpackError> {
        let others = self.directories.memory() + self.opaque_memory;
        self.parents.check_memory(others)
    }
}

/// The device number of an entry.
fn device(entry: &Entry) -> Result<u64, UnpackError> {
    let (major, minor) = entry.device;
    match (u32::try_from(major), u32::try_from(minor)) {
        // What the kernel has room for. containerd's versions differ in what they make of others.
        (Ok(major), Ok(minor)) if major < 1 << 12 && minor < 1 << 20 => {
            Ok(fs::makedev(major, minor))
        }
        _ => Err(UnpackError::unsupported("device number", &entry.name)),
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = io::retry_on_intr(|| io::write(file, bytes))?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// The times of the directories that a layer names. They are set at the end, because each new entry changes them.
#[derive(Default)]
struct DirectoryTimes {
    /// All names, one after the other.
    names: Vec<u8>,
    /// The end of each name, and its times.
    times: Vec<(usize, Timestamps)>,
}

impl DirectoryTimes {
    fn push(&mut self, name: &[u8], times: &Timestamps) {
        self.names.extend_from_slice(name);
        self.times.push((self.names.len(), times.clone()));
    }

    fn memory(&self) -> usize {
        self.names.len() + TIMES * self.times.len()
    }

    fn set(&self, root: &Dir) -> Result<(), UnpackError> {
        let mut start = 0;
        for (end, times) in &self.times {
            let name = within_root(&self.names[start..*end]);
            start = *end;
            match root.sub(&name, READ) {
                Ok(dir) => fs::futimens(dir, times),
                Err(Errno::LOOP | Errno::NOTDIR) => set_replaced(root, &name, times)?,
                Err(errno) => Err(errno),
            }
            .map_err(|errno| UnpackError::filesystem("set the times of", &name, errno))?;
        }
        Ok(())
    }
}

/// Sets a directory's times on what has replaced it, as containerd does.
fn set_replaced(
    root: &Dir,
    name: &[u8],
    times: &Timestamps,
) -> Result<io::Result<()>, UnpackError> {
    let path = resolve(root, name)?;
    if path.is_empty() {
        return Ok(fs::futimens(root, times));
    }
    let (dir, base) = parent(&path);
    Ok(root
        .sub(dir, LOOKUP)
        .and_then(|dir| fs::utimensat(dir, base, times, AtFlags::SYMLINK_NOFOLLOW)))
}
