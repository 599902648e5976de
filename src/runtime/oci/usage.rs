//! Disk usage of a layout directory.

use rustix::fs::FileType;

use super::dir::{Dir, kind};
use super::error::Error;
use super::layout::Layout;
use crate::model::digest::Digest;
use crate::model::image_size::Usage;

impl Layout {
    /// The blobs, and downloads that are in progress or were interrupted.
    pub(super) fn usage(&self) -> Result<Usage, Error> {
        let mut usage = Usage::default();
        if let Some(blobs) = self.blobs()? {
            for algorithm in blobs.names()? {
                let algorithm = algorithm.to_string_lossy();
                let Some(dir) = directory(&blobs, &algorithm)? else {
                    continue;
                };
                for (name, bytes) in files(&dir)? {
                    usage.bytes = usage.bytes.saturating_add(bytes);
                    usage
                        .blobs
                        .extend(Digest::parse(&format!("{algorithm}:{name}")));
                }
            }
        }
        if let Some(partials) = self.partials()? {
            for (_, bytes) in files(&partials)? {
                usage.bytes = usage.bytes.saturating_add(bytes);
            }
        }
        Ok(usage)
    }
}

/// A directory of blobs; `None` if the name is not a directory.
fn directory(blobs: &Dir, name: &str) -> Result<Option<Dir>, Error> {
    match blobs.stat(name)? {
        Some(stat) if kind(&stat) == FileType::Directory => Ok(blobs.sub(name)?),
        _ => Ok(None),
    }
}

/// The files of a directory with their sizes. They may appear and disappear meanwhile.
fn files(dir: &Dir) -> Result<Vec<(String, u64)>, Error> {
    let mut files = Vec::new();
    for name in dir.names()? {
        if let Some(stat) = dir.stat(&name)? {
            let bytes = u64::try_from(stat.st_size).unwrap_or(0);
            files.push((name.to_string_lossy().into_owned(), bytes));
        }
    }
    Ok(files)
}
