//! Brings one blob into the layout: from the registry, through a thread that hashes and writes.
//!
//! The async side reads the network, the thread writes the file; between them are a few batches at most, so memory does not grow
//! with the size of a layer. Dropping the future ends the thread, and what has come is kept to be resumed.

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

/// Bytes handed to the writing thread at once. TLS records are 16 KiB; waking a thread for each would cost more than the write.
const BATCH: u64 = 128 << 10;
/// Batches under way between the two.
const BATCHES: usize = 2;
/// Registries and object stores give each connection a rate of its own. Where one is slow, what is left of a blob is asked
/// for in parts, of all blobs of a registry so many at once.
const PARTS_AT_ONCE: usize = 12;
/// Bytes of a part. Fewer would not be worth the wait for an answer; with more, the last parts would be waited for alone.
const PART_LEAST: u64 = 1 << 20;
const PART_MOST: u64 = 32 << 20;
/// For fewer parts than this one answer is as good.
const PARTS_LEAST: u64 = 3;
/// A connection is slow that takes longer for its first [`PART_LEAST`]. A faster one is cheaper than many.
const SLOW: Duration = Duration::from_millis(50);
/// How often one attempt goes on where the connection was cut. Each time must have brought something.
const RESUMES: usize = 3;
/// Interval at which a download checks that another has not finished the same blob.
const OTHER_POLL: Duration = Duration::from_millis(200);
/// Longest wait of an image for a blob that comes from another registry, before it asks its own.
const OTHER_REGISTRY_WAIT: Duration = Duration::from_secs(5);

/// Progress of one image, over its blobs.
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
    /// A permit for each part that is asked of a registry. One that trickles keeps its own alone.
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

/// The right to download a blob from one registry.
struct Guard {
    _any: Option<OwnedMutexGuard<()>>,
    _own: OwnedMutexGuard<()>,
}

impl Downloads {
    /// Waits for the turn at a blob, so that images that share it fetch it once: without end for its own registry, but not for
    /// long for another, which may trickle.
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
    /// Has the blob in the layout when this returns.
    pub(super) async fn fetch_blob(
        &self,
        access: Access<'_>,
        descriptor: &Descriptor,
        gauge: &Gauge<'_>,
    ) -> Result<(), Error> {
        // The same answer whether or not the layer is here; and no name on disk comes from an unknown algorithm.
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
                // From another registry, or by another process: the turn after this one finds it.
                () = self.appears(descriptor) => {
                    gauge.rollback(counted.into_inner());
                    continue;
                }
            };
            match fetched {
                // What an earlier run left may have suffered with the machine: once more from the beginning.
                Err(Error::Registry(registry::Error::Content { .. })) if there > 0 => {
                    gauge.rollback(descriptor.size);
                }
                fetched => return fetched.map_err(|error| explain(descriptor, error)),
            }
        }
    }

    /// Waits until the blob is here.
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

    /// The file to download into; none where the blob is here, maybe because another process has just finished it.
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
                // Asked again with the file locked: nobody can finish the blob behind our back any more.
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

/// What is there of a blob.
enum Found {
    /// All of it.
    Blob,
    /// A file to go on with, maybe empty.
    Partial(Box<Partial>),
    /// A file that another process is writing.
    Busy,
}

/// How reading one answer ended.
enum End {
    /// With the answer.
    Answer,
    /// Before it, because the connection is slow.
    Slow(Box<Blob>),
}

/// Why a download does not go on.
enum Stop {
    Registry(registry::Error),
    /// The writing thread has ended; it knows why.
    Writer,
}

impl From<registry::Error> for Stop {
    fn from(error: registry::Error) -> Self {
        Self::Registry(error)
    }
}

/// A blob on its way.
struct Download<'a> {
    client: &'a Client,
    /// A permit for each part that is asked for.
    parts: Arc<Semaphore>,
    access: Access<'a>,
    descriptor: &'a Descriptor,
    gauge: &'a Gauge<'a>,
    /// What the gauge has counted of this blob.
    counted: &'a AtomicU64,
    writer: Writer,
}

impl Download<'_> {
    /// Brings what is missing behind the first `there` bytes.
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
                        // One answer may go where many do not; if not, it knows why.
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
                    // So that the next attempt finds all that came.
                    self.writer.end().await?;
                    return Err(error.into());
                }
                Err(Stop::Writer) => return self.writer.end().await,
            }
        }
        self.writer.finish().await
    }

    /// Reads one answer from byte `got` on as far as it goes, or, where parts would be of use and are allowed, as long as it
    /// is not slow.
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

    /// Reads the rest in parts, the first of them from the answer that has brought what is before it.
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

    /// Reads one part, going on where the connection is cut.
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

    /// Hands what an answer brings from byte `at` on to the writer, to its end or until there is enough.
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

    /// Forgets what came behind a gap; returns where that is.
    async fn rewind(&self) -> u64 {
        let (tell, told) = oneshot::channel();
        // If the writer has ended, what is sent to it next tells so.
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

/// What is left of a blob from byte `at` on, in parts: a fair share of what is left each time, so that they grow with the blob
/// and the last ones end together.
fn parts(at: u64, size: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = at;
    std::iter::from_fn(move || {
        let left = size.checked_sub(at).filter(|left| *left > 0)?;
        let share = left / (2 * PARTS_AT_ONCE as u64);
        let end = at.saturating_add(share.clamp(PART_LEAST, PART_MOST) + PART_LEAST / 2);
        // At whole blocks of any filesystem, so that what is missing between two parts is seen as a hole.
        let end = end / PART_LEAST * PART_LEAST;
        let part = at..if end > at { end.min(size) } else { size };
        at = part.end;
        Some(part)
    })
}

enum Piece {
    /// Bytes, and where they belong.
    Data(u64, Vec<Bytes>),
    /// What came before was in vain.
    Restart,
    /// What came behind a gap was in vain; tells where that is.
    Rewind(oneshot::Sender<u64>),
    /// All has come.
    Finish,
}

/// The thread that hashes and writes.
struct Writer {
    there: Option<oneshot::Receiver<u64>>,
    pieces: mpsc::Sender<Piece>,
    thread: JoinHandle<Result<(), Error>>,
}

impl Writer {
    /// Starts the thread, which keeps `guard` until it is done with the file.
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

    /// How much an earlier download left. Where the thread has failed, whatever is sent to it next says so.
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
        // If the thread has ended already, its result says why.
        let _ = self.pieces.send(Piece::Finish).await;
        self.end().await
    }

    /// Waits for the thread, and gives what it ended with.
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
