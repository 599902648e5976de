//! Removes an entry of a directory with everything beneath it, whatever its depth and size: without recursion, with one open
//! directory at a time.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::fs::{self, AtFlags, RawDir};
use rustix::io::{self, Errno};

use super::dir::{Dir, READ};
use super::resolve::{join, parent};

/// Subdirectories that are remembered at each level.
const BATCH: usize = 64;

/// Removes the entry at `path`. Nothing is done if there is none.
///
/// # Errors
/// Those of the system calls.
pub(super) fn remove(root: &Dir, path: &[u8]) -> io::Result<()> {
    let (dir, name) = parent(path);
    let dir = root.sub(dir, READ)?;
    match fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let mut waiting = vec![path.to_vec()];
    while let Some(path) = waiting.last() {
        let (dir, name) = parent(path);
        match fs::unlinkat(root.sub(dir, READ)?, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => _ = waiting.pop(),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                let subdirectories = remove_files(root, path)?;
                waiting.extend(subdirectories);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Removes the entries of a directory that are no directories; returns the paths of some that are.
fn remove_files(root: &Dir, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let dir = root.sub(path, READ)?;
    let listed = root.sub(path, READ)?;
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(&listed, &mut buffer);
    let mut subdirectories = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        match fs::unlinkat(dir.as_fd(), name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                subdirectories.push(join(path, name));
                if subdirectories.len() == BATCH {
                    break;
                }
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(subdirectories)
}
