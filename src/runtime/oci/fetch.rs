//! Downloads one blob into the layout: from the registry, through a thread that hashes and writes.
//!
//! The async side reads the network, the thread writes the file. At most a few batches are between them, so memory does not grow
//! with the size of a layer. Dropping the future ends the thread; the received bytes are kept for a resumption.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::OciLayout;
use super::error::Error;
use super::layout::blocking;
use super::partial::Partial;
use crate::model::digest::Digest;
use crate::model::failure::FailureKind;
use crate::registry::manifest::Descriptor;
use crate::registry::{self, Access, Blob, Client};
use crate::retry::keyed::Keyed;
use crate::retry::limiter::RegistryLimiter;
use crate::runtime::image_service::Progress;

/// Size of a batch for the writing thread. TLS records are 16 KiB; waking a thread for each would cost more than the write.
const BATCH: u64 = 128 << 10;
/// Maximum number of batches between the two.
const BATCHES: usize = 2;
/// Registries and object stores limit the rate of each connection. If one is slow, the rest of a blob is requested in parts. This
/// is the maximum number of concurrent parts for all blobs of a registry.
const PARTS_AT_ONCE: usize = 12;
/// Minimum size of a part. Smaller parts are not worth a request; much larger ones would finish late, one at a time.
const PART_LEAST: u64 = 1 << 20;
const PART_MOST: u64 = 32 << 20;
/// For fewer parts than this, one response is as good.
const PARTS_LEAST: u64 = 3;
/// A connection is slow if its first [`PART_LEAST`] take longer. A single faster connection is cheaper than many.
const SLOW: Duration = Duration::from_millis(50);
/// Maximum number of resumptions of one attempt after a lost connection. Each must have received some bytes.
const RESUMES: usize = 3;
/// Interval of checks whether another download has finished the same blob.
const OTHER_POLL: Duration = Duration::from_millis(200);
/// Maximum wait for a blob that is downloaded from another registry, before the image's own is used.
const OTHER_REGISTRY_WAIT: Duration = Duration::from_secs(5);

/// Progress of one image, summed over its blobs.
pub(super) struct Gauge<'a> {
    progress: &'a Progress,
    done: AtomicU64,
    total: u64,
}

impl<'a> Gauge<'a> {
    pub(super) fn new(progress: &'a Progress, total: u64) -> Self {
        progress.set(0, total);
        Self {
            progress,
            done: AtomicU64::new(0),
            total,
        }
    }

    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.progress.set(done, self.total);
        self.progress.set_came();
    }

    fn rollback(&self, bytes: u64) {
        let done = self.done.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        self.progress.set(done, self.total);
    }
}

/// State shared by the downloads of one process.
pub(super) struct Downloads {
    any: Keyed<Digest, Mutex<()>>,
    own: Keyed<(String, Digest), Mutex<()>>,
    /// Permits for the parts that are requested from a registry. A slow part holds only its own.
    parts: RegistryLimiter,
}

impl Default for Downloads {
    fn default() -> Self {
        Self {
            any: Keyed::default(),
            own: Keyed::default(),
            parts: RegistryLimiter::new(PARTS_AT_ONCE),
        }
    }
}

/// The permission to download a blob from one registry.
struct Guard {
    _any: Option<OwnedMutexGuard<()>>,
    _own: OwnedMutexGuard<()>,
}

impl Downloads {
    /// Waits for the permission to download a blob, so that images that share it fetch it once: without limit for its own
    /// registry, but only for a limited time for another one, which may be slow.
    async fn turn(&self, registry: &str, digest: &Digest) -> Guard {
        let any = self.any.lock(digest.clone());
        let any = tokio::time::timeout(OTHER_REGISTRY_WAIT, any).await.ok();
        let own = self.own.lock((registry.to_owned(), digest.clone()));
        Guard {
            _any: any,
            _own: own.await,
        }
    }
}

impl OciLayout {
    /// Downloads the blob into the layout unless it is present.
    pub(super) async fn fetch_blob(
        &self,
        access: Access<'_>,
        descriptor: &Descriptor,
        gauge: &Gauge<'_>,
    ) -> Result<(), Error> {
        // Same result whether or not the layer is present; and an unknown algorithm never becomes a name on disk.
        registry::digest::Hasher::like(&descriptor.digest)?;
        let registry = access.image.registry();
        loop {
            let guard = self.downloads.turn(registry, &descriptor.digest).await;
            let Some(partial) = self.wanted(registry, descriptor).await? else {
                gauge.add(descriptor.size);
                return Ok(());
            };
            let mut writer = Writer::start(partial, guard);
            let there = writer.there().await;
            gauge.add(there);
            let counted = AtomicU64::new(there);
            let download = Download {
                client: &self.client,
                parts: self.downloads.parts.at(registry),
                access,
                descriptor,
                gauge,
                counted: &counted,
                writer,
            };
            let fetched = tokio::select! {
                fetched = download.run(there) => fetched,
                // Downloaded from another registry, or by another process: the next iteration finds it.
                () = self.appears(descriptor) => {
                    gauge.rollback(counted.into_inner());
                    continue;
                }
            };
            match fetched {
                // Data of an earlier run may have been damaged by a crash: restart from the beginning.
                Err(Error::Registry(registry::Error::Content { .. })) if there > 0 => {
                    gauge.rollback(descriptor.size);
                }
                fetched => return fetched.map_err(|error| explain(descriptor, error)),
            }
        }
    }

    /// Waits until the blob is present.
    async fn appears(&self, descriptor: &Descriptor) {
        loop {
            tokio::time::sleep(OTHER_POLL).await;
            let layout = self.layout.clone();
            let blob = descriptor.clone();
            let here = blocking(move || layout.has_blob(&blob.digest, blob.size)).await;
            if here.unwrap_or(false) {
                return;
            }
        }
    }

    /// The file to download into; `None` if the blob is present, maybe because another process has just finished it.
    async fn wanted(
        &self,
        registry: &str,
        descriptor: &Descriptor,
    ) -> Result<Option<Partial>, Error> {
        loop {
            let layout = self.layout.clone();
            let registry = registry.to_owned();
            let blob = descriptor.clone();
            let found = blocking(move || {
                if layout.has_blob(&blob.digest, blob.size)? {
                    return Ok(Found::Blob);
                }
                let Some(partial) = Partial::open(&layout, &registry, &blob)? else {
                    return Ok(Found::Busy);
                };
                // Checked again with the file locked: no other process can finish the blob any more.
                if layout.has_blob(&blob.digest, blob.size)? {
                    partial.discard();
                    return Ok(Found::Blob);
                }
                Ok::<_, Error>(Found::Partial(Box::new(partial)))
            });
            match found.await? {
                Found::Blob => return Ok(None),
                Found::Partial(partial) => return Ok(Some(*partial)),
                Found::Busy => tokio::time::sleep(OTHER_POLL).await,
            }
        }
    }
}

fn explain(descriptor: &Descriptor, error: Error) -> Error {
    match error {
        Error::Registry(source)
            if !descriptor.urls.is_empty() && source.kind() == FailureKind::NotFound =>
        {
            Error::Foreign {
                digest: descriptor.digest.to_string(),
                source,
            }
        }
        error => error,
    }
}

/// The state of a blob in the layout.
enum Found {
    /// Complete.
    Blob,
    /// A file to resume, maybe empty.
    Partial(Box<Partial>),
    /// A file that another process is writing.
    Busy,
}

/// The end of reading one response.
enum End {
    /// The response ended.
    Answer,
    /// Stopped before its end, because the connection is slow.
    Slow(Box<Blob>),
}

/// The reason why a download stops.
enum Stop {
    Registry(registry::Error),
    /// The writing thread has ended; its result contains the reason.
    Writer,
}

impl From<registry::Error> for Stop {
    fn from(error: registry::Error) -> Self {
        Self::Registry(error)
    }
}

/// A blob that is being downloaded.
struct Download<'a> {
    client: &'a Client,
    /// A permit for each part that is requested.
    parts: Arc<Semaphore>,
    access: Access<'a>,
    descriptor: &'a Descriptor,
    gauge: &'a Gauge<'a>,
    /// The bytes of this blob that the gauge has counted.
    counted: &'a AtomicU64,
    writer: Writer,
}

impl Download<'_> {
    /// Downloads the bytes after the first `there` bytes.
    async fn run(self, there: u64) -> Result<(), Error> {
        let size = self.descriptor.size;
        let mut got = there;
        let mut resumes = 0;
        let mut may_part = true;
        while got < size {
            let before = got;
            let outcome = match self.read(&mut got, may_part).await {
                Ok(End::Slow(answer)) => {
                    may_part = false;
                    let parts = self.read_parts(got, *answer).await;
                    got = match &parts {
                        Ok(()) => size,
                        Err(_) => self.rewind().await,
                    };
                    match parts {
                        // One response may succeed where several do not; if not, it returns the reason.
                        Err(Stop::Registry(error)) => {
                            tracing::debug!(image = %self.access.image, digest = %self.descriptor.digest, got, %error, "continuing without parts");
                            Ok(())
                        }
                        parts => parts,
                    }
                }
                outcome => outcome.map(drop),
            };
            match outcome {
                Ok(()) => {}
                Err(Stop::Registry(error))
                    if error.is_cut() && got > before && resumes < RESUMES =>
                {
                    resumes += 1;
                    tracing::debug!(image = %self.access.image, digest = %self.descriptor.digest, got, "download interrupted, resuming");
                }
                Err(Stop::Registry(error)) => {
                    // So that the next attempt finds all received bytes.
                    self.writer.end().await?;
                    return Err(error.into());
                }
                Err(Stop::Writer) => return self.writer.end().await,
            }
        }
        self.writer.finish().await
    }

    /// Reads one response from byte `got` on as far as possible or, if parts are useful and allowed, until it turns out to be
    /// slow.
    async fn read(&self, got: &mut u64, may_part: bool) -> Result<End, Stop> {
        let began = Instant::now();
        let Self { descriptor, .. } = self;
        let mut answer = self.client.blob(self.access, descriptor, *got).await?;
        if answer.offset() < *got {
            self.writer.send(Piece::Restart).await?;
            self.recount(0);
            *got = 0;
        }
        if may_part {
            let first = got.saturating_add(PART_LEAST);
            self.pour(&mut answer, got, first).await?;
            let left = descriptor.size.saturating_sub(*got);
            if left >= PARTS_LEAST * PART_LEAST && began.elapsed() > SLOW {
                return Ok(End::Slow(Box::new(answer)));
            }
        }
        self.pour(&mut answer, got, descriptor.size).await?;
        Ok(End::Answer)
    }

    /// Reads the rest in parts, the first of them from the current response.
    async fn read_parts(&self, got: u64, answer: Blob) -> Result<(), Stop> {
        let mut answer = Some(answer);
        let parts = parts(got, self.descriptor.size).map(|part| Ok((part, answer.take())));
        stream::iter(parts)
            .try_for_each_concurrent(PARTS_AT_ONCE, |(part, answer)| async move {
                let _permit = match answer {
                    Some(_) => self.parts.try_acquire().ok(),
                    None => self.parts.acquire().await.ok(),
                };
                self.read_part(part, answer).await
            })
            .await
    }

    /// Reads one part, and resumes after a lost connection.
    async fn read_part(&self, part: Range<u64>, answer: Option<Blob>) -> Result<(), Stop> {
        let mut at = part.start;
        let mut answer = answer;
        let mut resumes = 0;
        while at < part.end {
            let before = at;
            let mut answer = match answer.take() {
                Some(answer) => answer,
                None => {
                    let part = at..part.end;
                    self.client
                        .blob_part(self.access, self.descriptor, part)
                        .await?
                }
            };
            answer.end_at(part.end);
            match self.pour(&mut answer, &mut at, part.end).await {
                Err(Stop::Registry(error))
                    if error.is_cut() && at > before && resumes < RESUMES =>
                {
                    resumes += 1;
                }
                poured => poured?,
            }
        }
        Ok(())
    }

    /// Passes the bytes of a response from byte `at` on to the writer, until its end or until `enough`.
    async fn pour(&self, answer: &mut Blob, at: &mut u64, enough: u64) -> Result<(), Stop> {
        let mut begin = *at;
        let mut batch = Vec::new();
        loop {
            let chunk = match *at < enough {
                true => answer.chunk().await,
                false => Ok(None),
            };
            let ended = !matches!(chunk, Ok(Some(_)));
            if let Ok(Some(chunk)) = &chunk {
                let bytes = chunk.len() as u64;
                *at += bytes;
                self.counted.fetch_add(bytes, Ordering::Relaxed);
                self.gauge.add(bytes);
                batch.push(chunk.clone());
            }
            if *at - begin >= BATCH || ended && *at > begin {
                let data = Piece::Data(begin, std::mem::take(&mut batch));
                self.writer.send(data).await?;
                begin = *at;
            }
            if ended {
                chunk?;
                return Ok(());
            }
        }
    }

    /// Drops the bytes received after a gap; returns the offset of the gap.
    async fn rewind(&self) -> u64 {
        let (tell, told) = oneshot::channel();
        // If the writer has ended, the next send returns an error.
        let _ = self.writer.send(Piece::Rewind(tell)).await;
        let got = told.await.unwrap_or(0);
        self.recount(got);
        got
    }

    fn recount(&self, got: u64) {
        let counted = self.counted.swap(got, Ordering::Relaxed);
        self.gauge.rollback(counted.saturating_sub(got));
    }
}

/// The rest of a blob from byte `at` on, in parts. Each is a share of the remaining bytes, so that parts are larger for a larger
/// blob, and the last ones end together.
fn parts(at: u64, size: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = at;
    std::iter::from_fn(move || {
        let left = size.checked_sub(at).filter(|left| *left > 0)?;
        let share = left / (2 * PARTS_AT_ONCE as u64);
        let end = at.saturating_add(share.clamp(PART_LEAST, PART_MOST) + PART_LEAST / 2);
        // At block boundaries of any filesystem, so that a gap between two parts is detected as a hole.
        let end = end / PART_LEAST * PART_LEAST;
        let part = at..if end > at { end.min(size) } else { size };
        at = part.end;
        Some(part)
    })
}

enum Piece {
    /// Bytes and their offset.
    Data(u64, Vec<Bytes>),
    /// The bytes before are invalid.
    Restart,
    /// The bytes after a gap are dropped; returns the offset of the gap.
    Rewind(oneshot::Sender<u64>),
    /// All bytes were sent.
    Finish,
}

/// The thread that hashes and writes.
struct Writer {
    there: Option<oneshot::Receiver<u64>>,
    pieces: mpsc::Sender<Piece>,
    thread: JoinHandle<Result<(), Error>>,
}

impl Writer {
    /// Starts the thread, which holds `guard` until it has closed the file.
    fn start(partial: Partial, guard: Guard) -> Self {
        let (tell, there) = oneshot::channel();
        let (pieces, receiver) = mpsc::channel(BATCHES);
        let thread = tokio::task::spawn_blocking(move || {
            let _guard = guard;
            write(partial, tell, receiver)
        });
        Self {
            there: Some(there),
            pieces,
            thread,
        }
    }

    /// Number of bytes of an earlier download. If the thread has failed, the next send returns the error.
    async fn there(&mut self) -> u64 {
        match self.there.take() {
            Some(there) => there.await.unwrap_or_default(),
            None => 0,
        }
    }

    async fn send(&self, piece: Piece) -> Result<(), Stop> {
        self.pieces.send(piece).await.map_err(|_| Stop::Writer)
    }

    async fn finish(self) -> Result<(), Error> {
        // If the thread has ended already, its result contains the reason.
        let _ = self.pieces.send(Piece::Finish).await;
        self.end().await
    }

    /// Waits for the thread and returns its result.
    async fn end(self) -> Result<(), Error> {
        drop(self.pieces);
        match self.thread.await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => std::future::pending().await,
            },
        }
    }
}

fn write(
    mut partial: Partial,
    tell: oneshot::Sender<u64>,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<(), Error> {
    let there = partial.take_in(|| tell.is_closed())?;
    let _ = tell.send(there);
    while let Some(piece) = pieces.blocking_recv() {
        match piece {
            Piece::Data(at, chunks) => {
                let mut at = at;
                for chunk in chunks {
                    partial.put(at, &chunk)?;
                    at += chunk.len() as u64;
                }
            }
            Piece::Restart => partial.restart()?,
            Piece::Rewind(tell) => {
                let _ = tell.send(partial.rewind()?);
            }
            Piece::Finish => return partial.finish(),
        }
    }
    partial.leave();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_rest_exactly_once() {
        for (at, size) in [
            (0, 1),
            (0, PART_LEAST),
            (PART_LEAST + 123, 20_000_000),
            (0, 1 << 30),
            (1 << 33, 1 << 34),
            (u64::MAX - 5, u64::MAX),
        ] {
            let mut next = at;
            let mut count = 0;
            for part in parts(at, size) {
                assert_eq!(part.start, next);
                assert!(part.end > part.start && part.end <= size);
                assert!(part.end - part.start < PART_MOST + PART_LEAST);
                next = part.end;
                count += 1;
            }
            assert_eq!(next, size);
            let most = (size - at) / PART_MOST + 10 * PARTS_AT_ONCE as u64;
            assert!(count <= most, "{count} parts of {at}..{size}");
        }
    }
}
