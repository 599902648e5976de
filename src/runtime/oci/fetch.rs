//! Brings one blob into the layout: from the registry, through a thread that hashes and writes.
//!
//! The async side reads the network, the thread writes the file; between them are a few parts at most, so memory does not grow
//! with the size of a layer. Dropping the future ends the thread, and what has come is kept to be resumed.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::OciLayout;
use super::error::Error;
use super::layout::blocking;
use super::partial::Partial;
use crate::failure::FailureKind;
use crate::image::Digest;
use crate::registry::manifest::Descriptor;
use crate::registry::{self, Access};
use crate::runtime::Progress;

/// Bytes handed to the writing thread at once. TLS records are 16 KiB; waking a thread for each would cost more than the write.
const BATCH: usize = 128 << 10;
/// Batches under way between the two.
const BATCHES: usize = 2;
/// Registries and object stores give each connection a rate of its own. Where one is slow, what is left of a blob is asked
/// for in parts of so many bytes, several at once, which are written in their order.
const PART: u64 = 1 << 20;
/// A connection is slow that takes longer for the first [`PART`]. A faster one is cheaper than many.
const SLOW: Duration = Duration::from_millis(50);
/// Parts of all blobs that are under way at once or not yet written; times [`PART`] it is the memory that they take at most.
pub(super) const PARTS_AT_ONCE: usize = 8;
/// For fewer parts than this one answer is as good.
const PARTS_LEAST: u64 = 3;
/// How often one attempt goes on where the connection was cut. Each time must have brought something.
const RESUMES: usize = 3;
/// How often to look whether another process has finished the same blob.
const OTHER_POLL: Duration = Duration::from_millis(200);

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
    }

    fn take_back(&self, bytes: u64) {
        let done = self.done.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        self.progress.set(done, self.total);
    }
}

type Guard = OwnedMutexGuard<()>;

/// One lock a blob, so that images that share a layer fetch it once.
#[derive(Default)]
pub(super) struct Locks {
    held: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

impl Locks {
    async fn lock(&self, digest: &Digest) -> Guard {
        let lock = {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.retain(|_, lock| lock.strong_count() > 0);
            let kept = held.get(digest).and_then(Weak::upgrade);
            let lock = kept.unwrap_or_default();
            held.insert(digest.clone(), Arc::downgrade(&lock));
            lock
        };
        lock.lock_owned().await
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
        loop {
            let guard = self.locks.lock(&descriptor.digest).await;
            let Some(partial) = self.wanted(descriptor).await? else {
                gauge.add(descriptor.size);
                return Ok(());
            };
            let mut writer = Writer::start(partial, guard);
            let there = writer.there().await;
            gauge.add(there);
            let fetched = self
                .download(access, descriptor, gauge, writer, there)
                .await;
            match fetched {
                // What an earlier run left may have suffered with the machine: once more from the beginning.
                Err(Error::Registry(registry::Error::Content { .. })) if there > 0 => {
                    gauge.take_back(descriptor.size);
                }
                fetched => return fetched.map_err(|error| explain(descriptor, error)),
            }
        }
    }

    /// The file to download into; none where the blob is here, maybe because another process has just finished it.
    async fn wanted(&self, descriptor: &Descriptor) -> Result<Option<Partial>, Error> {
        loop {
            let layout = self.layout.clone();
            let blob = descriptor.clone();
            let found = blocking(move || {
                if layout.has_blob(&blob.digest, blob.size)? {
                    return Ok(Found::Blob);
                }
                let Some(partial) = Partial::open(&layout, &blob)? else {
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

    async fn download(
        &self,
        access: Access<'_>,
        descriptor: &Descriptor,
        gauge: &Gauge<'_>,
        mut writer: Writer,
        there: u64,
    ) -> Result<(), Error> {
        let mut got = there;
        let mut resumes = 0;
        let mut may_part = true;
        while got < descriptor.size {
            let before = got;
            let outcome = self
                .read_some(access, descriptor, gauge, &mut writer, &mut got, may_part)
                .await;
            match outcome {
                Ok(End::Answer) => {}
                Ok(End::Slow) => {
                    may_part = false;
                    match self
                        .read_parts(access, descriptor, gauge, &writer, &mut got)
                        .await
                    {
                        Ok(()) => {}
                        // One answer may go where many do not; if not, it knows why.
                        Err(Stop::Registry(error)) => {
                            tracing::debug!(image = %access.image, digest = %descriptor.digest, got, %error, "going on without parts");
                        }
                        Err(Stop::Writer) => return writer.end().await,
                    }
                }
                Err(Stop::Registry(error))
                    if error.is_cut() && got > before && resumes < RESUMES =>
                {
                    resumes += 1;
                    tracing::debug!(image = %access.image, digest = %descriptor.digest, got, "the download was cut, going on");
                }
                Err(Stop::Registry(error)) => {
                    // So that the next attempt finds all that came.
                    writer.end().await?;
                    return Err(error.into());
                }
                Err(Stop::Writer) => return writer.end().await,
            }
        }
        writer.finish().await
    }

    /// Reads the rest in parts, as far as the server gives them.
    async fn read_parts(
        &self,
        access: Access<'_>,
        descriptor: &Descriptor,
        gauge: &Gauge<'_>,
        writer: &Writer,
        got: &mut u64,
    ) -> Result<(), Stop> {
        let size = descriptor.size;
        let begins = std::iter::successors(Some(*got), |at| at.checked_add(PART));
        // Permits are taken in order, so that the part which is waited for always has one.
        let parts = stream::iter(begins.take_while(|at| *at < size)).then(|at| {
            let permit = Arc::clone(&self.parts).acquire_owned();
            permit.map(move |permit| (at, permit))
        });
        let parts = parts.map(|(at, permit)| async move {
            let part = at..at.saturating_add(PART).min(size);
            let bytes = self.client.blob_part(access, descriptor, part).await;
            (bytes, permit)
        });
        let mut parts = pin!(parts.buffered(PARTS_AT_ONCE));
        while let Some((bytes, permit)) = parts.next().await {
            let Some(bytes) = bytes? else {
                return Ok(());
            };
            *got += bytes.len() as u64;
            gauge.add(bytes.len() as u64);
            writer.send(Piece::Part(bytes, permit.ok())).await?;
        }
        Ok(())
    }

    /// Reads one answer as far as it goes, or, where parts would be of use and are allowed, as long as it is not slow.
    async fn read_some(
        &self,
        access: Access<'_>,
        descriptor: &Descriptor,
        gauge: &Gauge<'_>,
        writer: &mut Writer,
        got: &mut u64,
        may_part: bool,
    ) -> Result<End, Stop> {
        let began = Instant::now();
        let mut blob = self.client.blob(access, descriptor, *got).await?;
        if blob.offset() < *got {
            writer.send(Piece::Restart).await?;
            gauge.take_back(*got);
            *got = 0;
        }
        let first = got.saturating_add(PART);
        let mut measured = !may_part;
        let mut batch = Vec::new();
        let mut batched = 0;
        loop {
            let chunk = blob.chunk().await;
            if let Ok(Some(chunk)) = &chunk {
                batched += chunk.len();
                *got += chunk.len() as u64;
                gauge.add(chunk.len() as u64);
                batch.push(chunk.clone());
            }
            let ended = !matches!(chunk, Ok(Some(_)));
            if batched >= BATCH || ended && batched > 0 {
                batched = 0;
                writer.send(Piece::Data(std::mem::take(&mut batch))).await?;
            }
            if ended {
                chunk?;
                return Ok(End::Answer);
            }
            if !measured && batch.is_empty() && *got >= first {
                measured = true;
                let left = descriptor.size.saturating_sub(*got);
                if left >= PARTS_LEAST * PART && began.elapsed() > SLOW {
                    return Ok(End::Slow);
                }
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
    Slow,
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

enum Piece {
    Data(Vec<Bytes>),
    /// With the permit for its memory, which is free when it is written.
    Part(Bytes, Option<OwnedSemaphorePermit>),
    /// What came before was in vain.
    Restart,
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
            Piece::Data(chunks) => {
                for chunk in chunks {
                    partial.append(&chunk)?;
                }
            }
            Piece::Part(bytes, _permit) => partial.append(&bytes)?,
            Piece::Restart => partial.restart()?,
            Piece::Finish => return partial.finish(),
        }
    }
    partial.leave();
    Ok(())
}
