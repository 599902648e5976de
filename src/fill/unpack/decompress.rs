//! Decompresses a layer's bytes on a thread of their own, hashes them, and passes the archive on in chunks.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use flate2::bufread::MultiGzDecoder;

use super::UnpackError;
use super::media_type::Compression;
use crate::registry::digest::Hasher;

/// Size of a chunk of the archive.
const CHUNK: usize = 256 << 10;
/// Chunks between the two threads.
const QUEUE: usize = 4;
/// Size of the buffer for compressed bytes.
const BUFFER: usize = 128 << 10;
/// zstd's window in powers of two: 8 MiB, which every level up to 19 keeps to. Frames with a larger one are containerd's.
const WINDOW_LOG_MAX: u32 = 23;

/// The ends of the two queues that the consumer of the chunks holds.
pub(super) type Consumer = (Receiver<Vec<u8>>, SyncSender<Vec<u8>>);

/// The ends that the decompressing thread holds.
pub(super) struct Producer {
    chunks: SyncSender<Vec<u8>>,
    used: Receiver<Vec<u8>>,
}

/// Two queues: chunks, and used buffers on their way back.
pub(super) fn queues() -> (Producer, Consumer) {
    let (chunks, received) = sync_channel(QUEUE);
    let (returned, used) = sync_channel(QUEUE + 2);
    (Producer { chunks, used }, (received, returned))
}

/// The compressed bytes: counted, hashed, and its error kept apart from those of the decoder.
pub(super) struct Source<R> {
    stream: R,
    hasher: Option<Hasher>,
    bytes: u64,
    error: Option<io::Error>,
}

impl<R: Read> Source<R> {
    pub(super) fn new(stream: R, hasher: Option<Hasher>) -> Self {
        Self {
            stream,
            hasher,
            bytes: 0,
            error: None,
        }
    }

    /// Reads what no decoder has asked for.
    fn drain(&mut self) -> Result<(), UnpackError> {
        io::copy(self, &mut io::sink()).map_err(UnpackError::Stream)?;
        Ok(())
    }

    /// The number of bytes read, and the hasher of them.
    pub(super) fn into_sums(self) -> (u64, Option<Hasher>) {
        (self.bytes, self.hasher)
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stream.read(buffer) {
            Ok(read) => {
                self.bytes += read as u64;
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&buffer[..read]);
                }
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.error = Some(error);
                Err(kind.into())
            }
        }
    }
}

/// Compression of the archive.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Codec {
    Plain,
    Gzip,
    Zstd,
}

/// Decompresses `source` to its end and passes the chunks on.
///
/// If the consumer ends first, `must_drain` says whether the rest of the compressed bytes is read for their digest.
///
/// # Errors
/// [`UnpackError::Stream`]; [`UnpackError::Malformed`] if the bytes cannot be decompressed.
pub(super) fn run<R: Read>(
    source: &mut Source<R>,
    compression: Compression,
    producer: &Producer,
    must_drain: &AtomicBool,
) -> Result<(), UnpackError> {
    let mut buffered = BufReader::with_capacity(BUFFER, &mut *source);
    let result = codec(&mut buffered, compression).and_then(|codec| match codec {
        Codec::Plain => pass_on(&mut buffered, producer),
        Codec::Gzip => pass_on(&mut MultiGzDecoder::new(&mut buffered), producer),
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(&mut buffered)?;
            decoder.window_log_max(WINDOW_LOG_MAX)?;
            pass_on(&mut decoder, producer)
        }
    });
    if let Some(error) = source.error.take() {
        return Err(UnpackError::Stream(error));
    }
    match result {
        Ok(true) => source.drain(),
        Ok(false) if must_drain.load(Ordering::Acquire) => source.drain(),
        Ok(false) => Ok(()),
        Err(error) => {
            source.drain()?;
            Err(UnpackError::malformed(format!(
                "failed to decompress: {error}"
            )))
        }
    }
}

/// Detects the compression by the first bytes, as containerd does.
fn codec(input: &mut impl BufRead, compression: Compression) -> io::Result<Codec> {
    if compression == Compression::None {
        return Ok(Codec::Plain);
    }
    let start = input.fill_buf()?;
    Ok(match start {
        [0x1f, 0x8b, 0x08, ..] => Codec::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] if compression == Compression::Zstd => Codec::Zstd,
        // Its window would be memory that nobody has accounted for.
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            return Err(io::Error::other("zstd in a layer of another type"));
        }
        // Which of these containerd detects depends on its version.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            return Err(io::Error::other("a skippable frame at the beginning"));
        }
        [0x1f] | [0x1f, 0x8b] | [0x28] | [0x28, 0xb5] | [0x28, 0xb5, 0x2f] => {
            return Err(io::Error::other("too few bytes"));
        }
        _ => Codec::Plain,
    })
}

/// Returns whether everything was passed on; false if the consumer has ended.
fn pass_on(decoder: &mut impl Read, producer: &Producer) -> io::Result<bool> {
    loop {
        let mut chunk = producer.used.try_recv().unwrap_or_default();
        chunk.resize(CHUNK, 0);
        let mut length = 0;
        // What was decoded before an error is passed on: the consumer may find the better reason.
        let result = loop {
            match decoder.read(&mut chunk[length..]) {
                Ok(0) => break Ok(true),
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
            if length == CHUNK {
                break Ok(false);
            }
        };
        chunk.truncate(length);
        if length > 0 && producer.chunks.send(chunk).is_err() {
            return Ok(false);
        }
        if result? {
            return Ok(true);
        }
    }
}
