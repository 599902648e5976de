//! Writes a file past the page cache where the file system can: nobody reads a layer's compressed bytes again, and they need not
//! displace what is read.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fdatasync};
use rustix::io::Errno;

/// Bytes of one write.
const SIZE: usize = 1 << 20;
/// Alignment of memory and offsets, which is enough for the file systems and disks of nodes. Where it is not, the page cache is used.
const ALIGN: usize = 4096;

/// An empty file that is written from its beginning to its end.
#[derive(Debug)]
pub(super) struct DirectFile {
    file: Arc<File>,
    is_direct: bool,
    buffer: Vec<u8>,
    /// The aligned part of the buffer begins here.
    start: usize,
    filled: usize,
}

impl DirectFile {
    pub(super) fn new(file: Arc<File>) -> Self {
        let is_direct = set_direct(&file, true).is_ok();
        let buffer = vec![0; if is_direct { SIZE + ALIGN } else { 0 }];
        let start = match buffer.as_ptr().align_offset(ALIGN) {
            start if start <= ALIGN => start,
            _ => 0,
        };
        Self {
            file,
            is_direct,
            buffer,
            start,
            filled: 0,
        }
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while self.is_direct && !bytes.is_empty() {
            let some = bytes.len().min(SIZE - self.filled);
            let at = self.start + self.filled;
            self.buffer[at..at + some].copy_from_slice(&bytes[..some]);
            self.filled += some;
            bytes = &bytes[some..];
            if self.filled == SIZE {
                self.flush()?;
            }
        }
        (&*self.file).write_all(bytes)
    }

    /// Writes what is left and waits until the disk has the file.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.is_direct {
            // The last bytes are not aligned.
            set_direct(&self.file, false)?;
            self.flush()?;
        }
        Ok(fdatasync(&*self.file)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut bytes = &self.buffer[self.start..self.start + self.filled];
        while !bytes.is_empty() {
            match (&*self.file).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Another alignment, or a short write before.
                Err(error)
                    if self.is_direct
                        && error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) =>
                {
                    set_direct(&self.file, false)?;
                    self.is_direct = false;
                }
                Err(error) => return Err(error),
            }
        }
        self.filled = 0;
        Ok(())
    }
}

fn set_direct(file: &File, is_direct: bool) -> io::Result<()> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, is_direct);
    Ok(fcntl_setfl(file, flags)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_are_written() {
        for directory in [tempfile::tempdir().unwrap(), in_memory()] {
            for (total, piece) in [(0, 1), (1, 1), (SIZE, 4096), (3 * SIZE + 5, 70_001)] {
                let path = directory.path().join("file");
                let bytes: Vec<u8> = (0..total).map(|n| (n % 251) as u8).collect();
                let file = File::create(&path).unwrap();
                let mut direct = DirectFile::new(Arc::new(file));
                for piece in bytes.chunks(piece) {
                    direct.write(piece).unwrap();
                }
                direct.finish().unwrap();
                assert!(std::fs::read(&path).unwrap() == bytes, "{total} {piece}");
            }
        }
    }

    /// A file system that may not do this.
    fn in_memory() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
    }
}
