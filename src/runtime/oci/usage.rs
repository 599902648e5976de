//! What a layout directory takes on disk.

use std::fs;
use std::io;
use std::path::Path;

use super::error::Error;
use super::layout::{Layout, failed};
use crate::disk::Usage;
use crate::image::Digest;

impl Layout {
    /// The blobs, and downloads that are under way or were cut off.
    pub(super) fn usage(&self) -> Result<Usage, Error> {
        let mut usage = Usage::default();
        let blobs = self.blobs();
        for (algorithm, _) in entries(&blobs)? {
            for (name, bytes) in entries(&blobs.join(&algorithm))? {
                usage.bytes = usage.bytes.saturating_add(bytes);
                usage
                    .blobs
                    .extend(Digest::parse(&format!("{algorithm}:{name}")));
            }
        }
        for (_, bytes) in entries(&self.partials())? {
            usage.bytes = usage.bytes.saturating_add(bytes);
        }
        Ok(usage)
    }
}

/// The names in a directory with their sizes; nothing where there is none. Files may come and go meanwhile.
fn entries(directory: &Path) -> Result<Vec<(String, u64)>, Error> {
    let listed = match fs::read_dir(directory) {
        Ok(listed) => listed,
        Err(error) if is_none(&error) => return Ok(Vec::new()),
        Err(error) => return Err(failed("read", directory, error)),
    };
    let mut entries = Vec::new();
    for entry in listed {
        let entry = entry.map_err(|e| failed("read", directory, e))?;
        match entry.metadata() {
            Ok(metadata) => {
                let name = entry.file_name().to_string_lossy().into_owned();
                entries.push((name, metadata.len()));
            }
            Err(error) if is_none(&error) => {}
            Err(error) => return Err(failed("read", &entry.path(), error)),
        }
    }
    Ok(entries)
}

fn is_none(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
