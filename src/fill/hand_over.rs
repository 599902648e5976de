//! Fills containerd with an image: all layers at once into scratch snapshots, then from the bottom up into those of their chain.
//!
//! Each layer is unpacked into a snapshot without a parent. When the layers below are there, a snapshot above them is prepared, the
//! two directories are exchanged, what depends on the layers below is mended, and the snapshot is committed. All is held by a lease
//! that expires, so that nothing stays of a pull that was killed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, TryStreamExt};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::task::TaskTracker;

use super::Failure;
use super::fetch::{Fetcher, Found, Servers};
use super::hosts::hosts;
use super::image::{self, Layer};
use super::keep::{KeepError, keep};
use super::stream::{Cancel, LayerSender, queue};
use super::unpack::media_type::{Compression, compression};
use super::unpack::{self, Budget, Dir, Limits, Position, UnpackError, Unpacked};
use crate::credentials::secret::Credential;
use crate::model::digest::Digest;
use crate::model::failure::FailureKind;
use crate::model::reference::Reference;
use crate::model::text::chain;
use crate::registry::manifest::Content;
use crate::retry::keyed::Keyed;
use crate::runtime::containerd::{Beside, Config, Keep, Labels, Prepared, Store};
use crate::runtime::image_service::{Progress, RuntimeError};

/// Time for the threads of a pull that failed to end, before its directories are removed.
const END_LIMIT: Duration = Duration::from_secs(10);
/// Share of the file system that unpacking leaves free, as a divisor.
const SPARE: u64 = 50;
/// Pieces of a layer between its download and the two that take it.
const PIECES: usize = 2;
/// Number of layers that are unpacked at once beside one for each core: those that wait for a slow registry use none.
const WAITING: usize = 2;
/// Maximum number of layers that are unpacked at once, however many cores there are. It bounds the memory.
const UNPACKERS_MAX: usize = 8;
/// Maximum number of those that need zstd's window.
const WINDOWS: usize = 3;
/// A registry that sends less than [`SLOW_BYTES`] of a layer in this time is left to the runtime: the layer would hold up those of
/// other registries.
const SLOW_TIME: Duration = Duration::from_secs(20);
const SLOW_BYTES: u64 = 1 << 20;

/// State shared by all pulls of a process.
#[derive(Debug)]
pub(super) struct Filler {
    store: Store,
    fetcher: Fetcher,
    /// Layers that are unpacked at once, of all images.
    unpackers: Semaphore,
    /// Those of them that are compressed by zstd.
    windows: Semaphore,
    /// Held for a snapshot that is being made, by its name: images that share a layer unpack it once.
    chains: Keyed<String, tokio::sync::Mutex<()>>,
    /// Held for a blob that is being written.
    blobs: Keyed<Digest, tokio::sync::Mutex<()>>,
    /// Shared by the pulls of one time.
    budget: Mutex<Weak<Budget>>,
}

/// An image that is there, held by a lease.
#[derive(Debug)]
pub(super) struct Filled {
    /// The digest of its manifest or index.
    pub(super) digest: Digest,
    /// The lease.
    pub(super) lease: String,
}

/// The reason why an image is not there.
#[derive(Debug)]
pub(super) struct Unfilled {
    pub(super) failure: Failure,
    /// A lease that holds what the runtime can use when it pulls the image itself. The caller releases it then.
    pub(super) lease: Option<String>,
}

impl Unfilled {
    fn of(failure: Failure) -> Self {
        let lease = None;
        Self { failure, lease }
    }
}

impl Filler {
    pub(super) fn new(store: Store) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            store,
            fetcher: Fetcher::new(),
            unpackers: Semaphore::new((cores + WAITING).min(UNPACKERS_MAX)),
            windows: Semaphore::new(WINDOWS),
            chains: Keyed::default(),
            blobs: Keyed::default(),
            budget: Mutex::default(),
        }
    }

    /// The bytes that the pulls of this time may write together: those that are free when the first of them begins.
    async fn budget(&self, config: &Config) -> Result<Arc<Budget>, Failure> {
        let free = space(config).await?;
        let mut shared = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(budget) = shared.upgrade() {
            return Ok(budget);
        }
        let budget = Arc::new(Budget::new(free));
        *shared = Arc::downgrade(&budget);
        Ok(budget)
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Fetches the image and has containerd store it, without a name.
    pub(super) async fn fill(
        &self,
        image: &Reference,
        credential: Option<&Credential>,
        keep: Keep,
        progress: &Progress,
    ) -> Result<Filled, Unfilled> {
        let begun = self.begin(image, credential, keep, progress).await;
        let (mut pull, found, text) = begun.map_err(Unfilled::of)?;
        let cancel = Cancel::default();
        let run = pull.run(&found, text, &cancel).await;
        drop(cancel);
        match run {
            Ok(()) => {
                pull.is_over = true;
                Ok(Filled {
                    digest: found.root().clone(),
                    lease: pull.lease.clone(),
                })
            }
            Err(failure) => Err(pull.clean_up(failure).await),
        }
    }

    /// Finds the image, and prepares its pull.
    async fn begin<'a>(
        &'a self,
        image: &'a Reference,
        credential: Option<&'a Credential>,
        keep: Keep,
        progress: &'a Progress,
    ) -> Result<(Pull<'a>, Found, Bytes), Failure> {
        let config = self.store.config().await?;
        let directory = config.hosts.clone();
        let registry = image.registry().to_owned();
        let hosts = blocking(move || hosts(&directory, &registry)).await??;
        let servers = self.fetcher.servers(image, credential, hosts)?;
        let found = servers.find(&config.platform()).await?;
        let text = servers.config(&found.image.config).await?;
        progress.set_came();
        let layers = image::layers(&found.image, &text)?;
        let budget = self.budget(config).await?;
        let lease = self.store.lease(image, keep).await?;
        let pull = Pull {
            filler: self,
            snapshotter: &config.snapshotter,
            keeps_layers: !config.discards_layers,
            image,
            servers,
            lease,
            layers,
            budget,
            progress,
            done: Mutex::default(),
            active: Mutex::default(),
            threads: TaskTracker::new(),
            is_over: false,
        };
        Ok((pull, found, text))
    }
}

/// One pull.
struct Pull<'a> {
    filler: &'a Filler,
    snapshotter: &'a str,
    /// containerd keeps the content of unpacked layers.
    keeps_layers: bool,
    image: &'a Reference,
    servers: Servers<'a>,
    lease: String,
    layers: Vec<Layer>,
    budget: Arc<Budget>,
    progress: &'a Progress,
    /// Bytes received, and to be received.
    done: Mutex<(u64, u64)>,
    /// Snapshots that are being filled.
    active: Mutex<Vec<Prepared>>,
    threads: TaskTracker,
    /// Nothing is left to remove.
    is_over: bool,
}

impl Drop for Pull<'_> {
    /// Removes what is incomplete of a pull that was dropped. What is complete is held by the lease, for the next attempt.
    fn drop(&mut self) {
        let active = self
            .active
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let active = std::mem::take(active);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if self.is_over {
            return;
        }
        let blobs = self.blobs();
        let lease = self.lease.clone();
        let (store, threads) = (self.filler.store.clone(), self.threads.clone());
        let snapshotter = self.snapshotter.to_owned();
        runtime.spawn(async move {
            end(&threads).await;
            for prepared in &active {
                store.remove(&snapshotter, prepared).await;
            }
            abort(&store, &lease, &blobs).await;
        });
    }
}

/// Waits for the threads of a pull that has failed.
async fn end(threads: &TaskTracker) {
    threads.close();
    let _ = tokio::time::timeout(END_LIMIT, threads.wait()).await;
}

/// Removes what came of blobs that are not complete: no later attempt writes on.
async fn abort(store: &Store, lease: &str, blobs: &[Digest]) {
    for digest in blobs {
        if let Err(error) = store.abort_write(lease, digest).await {
            tracing::debug!("failed to abort the write of {digest}: {error}");
            break;
        }
    }
}

/// A layer that was unpacked into a snapshot of its own.
struct Scratch {
    prepared: Prepared,
    directory: PathBuf,
    /// The unpacked layer; `None` for one that containerd has to unpack.
    unpacked: Option<Unpacked>,
}

impl Pull<'_> {
    async fn run(&self, found: &Found, config: Bytes, cancel: &Cancel) -> Result<(), Failure> {
        let missing = self.missing().await?;
        let bytes = missing.iter().map(|layer| layer.descriptor.size);
        let bytes = bytes.fold(0, u64::saturating_add);
        *self.done.lock().unwrap_or_else(PoisonError::into_inner) = (0, bytes);
        self.progress.set(0, bytes);
        let first_missing = missing
            .first()
            .map_or(self.layers.len(), |layer| layer.index);
        let is_there = |layer: &Layer| watch::Sender::new(layer.index < first_missing);
        let committed: Vec<_> = self.layers.iter().map(is_there).collect();
        let mut order = missing;
        // The largest first: it takes longest. A layer waits for those below only when it is unpacked.
        order.sort_by_key(|layer| std::cmp::Reverse(layer.descriptor.size));
        // Not `try_join_all`, which looks at many futures in their order only: one waits for layers that may have failed.
        let all = order
            .into_iter()
            .map(|layer| self.layer(layer, &committed, cancel));
        let mut all: FuturesUnordered<_> = all.collect();
        while all.try_next().await?.is_some() {}
        self.put_manifests(found, config).await
    }

    /// The digests of the layers.
    fn blobs(&self) -> Vec<Digest> {
        let blobs = self.layers.iter().map(|layer| &layer.descriptor.digest);
        blobs.cloned().collect()
    }

    /// The layers whose snapshots are not there, the lowest first.
    async fn missing(&self) -> Result<Vec<&Layer>, Failure> {
        for (at, layer) in self.layers.iter().enumerate().rev() {
            if self.has(&layer.chain).await? {
                return Ok(self.layers[at + 1..].iter().collect());
            }
        }
        Ok(self.layers.iter().collect())
    }

    /// Returns whether the snapshot is there; the lease then holds it.
    async fn has(&self, chain: &str) -> Result<bool, Failure> {
        let store = &self.filler.store;
        if !store.has_snapshot(self.snapshotter, chain).await? {
            return Ok(false);
        }
        let held = store.hold_snapshot(&self.lease, self.snapshotter, chain);
        held.await?;
        // It may have been freed just before.
        Ok(store.has_snapshot(self.snapshotter, chain).await?)
    }

    /// Makes the snapshot of one layer.
    async fn layer(
        &self,
        layer: &Layer,
        committed: &[watch::Sender<bool>],
        cancel: &Cancel,
    ) -> Result<(), Failure> {
        let _chain = self.filler.chains.lock(layer.chain.clone()).await;
        if self.has(&layer.chain).await? {
            self.add(layer.descriptor.size);
        } else if let Some(scratch) = Box::pin(self.unpack_in_turn(layer, cancel)).await? {
            if let Some(below) = layer.index.checked_sub(1) {
                let mut below = committed[below].subscribe();
                // All senders live as long as this future.
                let _ = below.wait_for(|is_committed| *is_committed).await;
            }
            self.commit(layer, scratch).await?;
        } else {
            self.hold_other(layer).await?;
        }
        committed[layer.index].send_replace(true);
        Ok(())
    }

    async fn unpack_in_turn(
        &self,
        layer: &Layer,
        cancel: &Cancel,
    ) -> Result<Option<Scratch>, Failure> {
        let digest = layer.descriptor.digest.clone();
        let _blob = self.filler.blobs.lock(digest).await;
        let _window = match is_windowed(layer) {
            true => self.filler.windows.acquire().await.ok(),
            false => None,
        };
        let _turn = self.filler.unpackers.acquire().await;
        self.unpack(layer, cancel).await
    }

    /// Fetches a layer, stores it and unpacks it into a snapshot of its own; `None` if someone else has just made its snapshot.
    async fn unpack(&self, layer: &Layer, cancel: &Cancel) -> Result<Option<Scratch>, Failure> {
        let (position, labels) = match layer.index {
            0 => (Position::Bottom, layer.snapshot_labels()),
            _ => (Position::Above, Labels::new()),
        };
        let prepared = self.prepare("scratch", layer, "", labels).await?;
        let Some(prepared) = prepared else {
            self.add(layer.descriptor.size);
            return Ok(None);
        };
        let (directory, _) = prepared.directories().ok_or_else(odd_mounts)?;
        let (sender, reader) = queue();
        let (budget, cancelled) = (self.budget.clone(), cancel.flag());
        let (path, owned) = (directory.clone(), layer.clone());
        let mut unpack = self.threads.spawn_blocking(move || {
            let layer = unpack::Layer {
                media_type: &owned.descriptor.media_type,
                // Verified by the other reader of the stream, which stores the bytes.
                digest: None,
                diff_id: &owned.diff_id,
                position,
            };
            let into = Dir::open(&path)?;
            unpack::unpack(reader, &layer, &into, &Limits::new(&budget, &cancelled))
        });
        let mut stream = Box::pin(self.stream(layer, sender));
        let ended = |ended: Result<_, _>| match ended {
            Ok(unpacked) => outcome(unpacked, layer),
            Err(_) => Err(gone("a thread ended")),
        };
        let is_cut = |ended: &Result<_, _>| matches!(ended, Ok(Err(UnpackError::Stream(_))));
        let unpacked = tokio::select! {
            streamed = &mut stream => {
                let unpacked = (&mut unpack).await;
                streamed?;
                ended(unpacked)?
            }
            unpacked = &mut unpack => {
                if is_cut(&unpacked) {
                    // The stream has the reason.
                    stream.as_mut().await?;
                }
                let unpacked = ended(unpacked)?;
                stream.await?;
                unpacked
            }
        };
        if unpacked.is_some() {
            self.label_verified(layer).await?;
        }
        Ok(Some(Scratch {
            prepared,
            directory,
            unpacked,
        }))
    }

    /// Tells containerd the diff ID of a layer. It trusts the label for all images with the blob, so the ID must have been verified.
    async fn label_verified(&self, layer: &Layer) -> Result<(), Failure> {
        let store = &self.filler.store;
        let labels = layer.verified_labels();
        Ok(store.label(&layer.descriptor.digest, labels).await?)
    }

    /// Passes a layer's bytes on to the unpacker and, unless it is there, into the store.
    async fn stream(&self, layer: &Layer, sender: LayerSender) -> Result<(), Failure> {
        let store = &self.filler.store;
        let digest = &layer.descriptor.digest;
        if store.blob(digest).await?.is_some() {
            store.hold_blob(&self.lease, digest).await?;
            let mut blob = store.read(digest).await?;
            while let Some(piece) = blob.next().await? {
                if !sender.send(piece).await {
                    break;
                }
            }
            self.add(layer.descriptor.size);
            sender.finish();
            let labels = self.source(digest).await?;
            return Ok(store.label(digest, labels).await?);
        }
        let size = layer.descriptor.size;
        let labels = image::source(self.image, None);
        let Some(beside) = store.beside(&self.lease, digest, size).await? else {
            return self.stream_through(layer, labels, sender).await;
        };
        match self.keep(layer, &beside, sender).await {
            Ok(()) => self.take(beside, labels).await,
            Err(failure) => {
                store.abandon(&beside).await;
                Err(failure)
            }
        }
    }

    /// Has containerd take a complete blob. It goes on if the pull ends meanwhile: a file that is moved later would stay.
    async fn take(&self, beside: Beside, labels: Labels) -> Result<(), Failure> {
        let (store, lease) = (self.filler.store.clone(), self.lease.clone());
        let take = async move { store.take(&lease, beside, labels).await };
        let taken = self.threads.spawn(take).await;
        taken.map_err(|_| gone("a task ended"))?.map_err(of_blob)
    }

    /// Fetches a layer; one that comes too slowly is for the runtime.
    async fn fetch(&self, layer: &Layer, pieces: &mpsc::Sender<Bytes>) -> Result<(), Failure> {
        let received = AtomicU64::new(0);
        let count = |bytes| {
            received.fetch_add(bytes, Ordering::Relaxed);
            self.add(bytes);
        };
        let fetch = self.servers.blob(&layer.descriptor, pieces, &count);
        unless_slow(fetch, &received, layer.descriptor.size).await
    }

    /// Fetches a layer into a file of containerd's.
    async fn keep(
        &self,
        layer: &Layer,
        beside: &Beside,
        sender: LayerSender,
    ) -> Result<(), Failure> {
        let (pieces, received) = mpsc::channel(PIECES);
        let (file, expected) = (beside.file(), layer.descriptor.digest.clone());
        let kept = self
            .threads
            .spawn_blocking(move || keep(received, file, &expected, sender));
        let fetched = self.fetch(layer, &pieces).await;
        drop(pieces);
        let kept = kept.await.map_err(|_| gone("a thread ended"))?;
        match (fetched, kept) {
            (Err(failure), _) => Err(failure),
            (Ok(()), kept) => kept.map_err(of_keep),
        }
    }

    /// Passes a layer's bytes on to the unpacker and through containerd's socket.
    async fn stream_through(
        &self,
        layer: &Layer,
        labels: Labels,
        sender: LayerSender,
    ) -> Result<(), Failure> {
        let Layer { descriptor, .. } = layer;
        let store = &self.filler.store;
        let mut writer = store.write(&self.lease, &descriptor.digest, descriptor.size);
        let (pieces, mut received) = mpsc::channel(PIECES);
        let fetch = async {
            let pieces = pieces;
            self.fetch(layer, &pieces).await
        };
        let pass_on = async {
            let mut is_read = true;
            while let Some(piece) = received.recv().await {
                writer.put(&piece).await?;
                is_read = is_read && sender.send(piece).await;
            }
            Ok(())
        };
        tokio::try_join!(fetch, pass_on)?;
        sender.finish();
        writer.commit(labels).await.map_err(of_blob)
    }

    /// Commits the snapshot of an unpacked layer above the one below it.
    async fn commit(&self, layer: &Layer, scratch: Scratch) -> Result<(), Failure> {
        let Scratch {
            prepared,
            directory,
            unpacked,
        } = scratch;
        let is_mended = match unpacked {
            Some(_) if layer.index == 0 => return self.commit_as(layer, prepared).await,
            Some(unpacked) => self.mend(layer, directory, unpacked).await?,
            None => false,
        };
        self.drop_snapshot(prepared).await;
        match is_mended {
            true => Ok(()),
            false => self.apply(layer).await,
        }
    }

    /// Exchanges a layer's directory with that of a snapshot above the layers below, and commits that. Returns `false` if containerd
    /// has to unpack the layer.
    async fn mend(
        &self,
        layer: &Layer,
        directory: PathBuf,
        unpacked: Unpacked,
    ) -> Result<bool, Failure> {
        let labels = layer.snapshot_labels();
        let Some(prepared) = self
            .prepare("extract", layer, &layer.parent, labels)
            .await?
        else {
            return self.hold_other(layer).await.map(|()| true);
        };
        let (upper, below) = prepared.directories().ok_or_else(odd_mounts)?;
        let mended = self.threads.spawn_blocking(move || {
            exchange(&directory, &upper)?;
            let into = Dir::open(&upper)?;
            let below: Result<Vec<_>, _> = below.iter().map(|path| Dir::open(path)).collect();
            unpack::mend(&unpacked, &into, &below?)
        });
        let mended = mended.await.map_err(|_| gone("a thread ended"))?;
        match outcome(mended, layer)? {
            Some(()) => self.commit_as(layer, prepared).await.map(|()| true),
            None => {
                self.drop_snapshot(prepared).await;
                Ok(false)
            }
        }
    }

    /// Has containerd unpack a layer, whose content it has.
    async fn apply(&self, layer: &Layer) -> Result<(), Failure> {
        let labels = layer.snapshot_labels();
        let Some(prepared) = self.prepare("apply", layer, &layer.parent, labels).await? else {
            return self.hold_other(layer).await;
        };
        let descriptor = &layer.descriptor;
        let content = (&*descriptor.media_type, &descriptor.digest, descriptor.size);
        let store = &self.filler.store;
        let applied = store.apply(&self.lease, content, &prepared, self.image);
        let applied = applied.await?;
        if applied != layer.diff_id.as_str() {
            let expected = &layer.diff_id;
            return Err(mismatch(format!(
                "diff ID mismatch: expected {expected}, got {applied}"
            )));
        }
        self.label_verified(layer).await?;
        self.commit_as(layer, prepared).await
    }

    async fn prepare(
        &self,
        step: &str,
        layer: &Layer,
        parent: &str,
        labels: Labels,
    ) -> Result<Option<Prepared>, Failure> {
        let key = format!("{}/{step} {}", self.lease, layer.chain);
        let store = &self.filler.store;
        let made = store.prepare(&self.lease, self.snapshotter, &key, parent, labels);
        let made = made.await?;
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.extend(made.clone());
        Ok(made)
    }

    async fn commit_as(&self, layer: &Layer, prepared: Prepared) -> Result<(), Failure> {
        let (name, labels) = (&layer.chain, layer.snapshot_labels());
        let store = &self.filler.store;
        let done = store.commit(&self.lease, self.snapshotter, &prepared, name, labels);
        match done.await? {
            true => self.forget(&prepared),
            // The kubelet, or another harpoon, was first.
            false => {
                self.drop_snapshot(prepared).await;
                self.hold_other(layer).await?;
            }
        }
        Ok(())
    }

    /// Holds the snapshot of a layer that someone else has just made.
    async fn hold_other(&self, layer: &Layer) -> Result<(), Failure> {
        match self.has(&layer.chain).await? {
            true => Ok(()),
            false => Err(gone("a snapshot appeared and went")),
        }
    }

    async fn drop_snapshot(&self, prepared: Prepared) {
        self.filler.store.remove(self.snapshotter, &prepared).await;
        self.forget(&prepared);
    }

    fn forget(&self, prepared: &Prepared) {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.retain(|other| other != prepared);
    }

    /// Stores the configuration, the manifest and the indexes, in that order: each refers only to what is there.
    async fn put_manifests(&self, found: &Found, config: Bytes) -> Result<(), Failure> {
        let top = self.layers.last().map_or("", |layer| &layer.chain);
        let digest = &found.image.config.digest;
        let source = self.source(digest).await?;
        let labels = image::config_labels(source, self.snapshotter, top);
        self.put(digest, &config, labels).await?;
        let digest = &found.manifest.digest;
        let source = self.source(digest).await?;
        let labels = image::manifest_labels(source, &found.image, self.keeps_layers);
        self.put(digest, &found.manifest.bytes, labels).await?;
        for index in found.indexes.iter().rev() {
            let Content::Index(content) = index.content()? else {
                continue;
            };
            let labels = image::index_labels(self.source(&index.digest).await?, &content);
            self.put(&index.digest, &index.bytes, labels).await?;
        }
        Ok(())
    }

    async fn put(&self, digest: &Digest, bytes: &Bytes, labels: Labels) -> Result<(), Failure> {
        let store = &self.filler.store;
        let _blob = self.filler.blobs.lock(digest.clone()).await;
        if store.blob(digest).await?.is_some() {
            store.hold_blob(&self.lease, digest).await?;
            return Ok(store.label(digest, labels).await?);
        }
        let mut writer = store.write(&self.lease, digest, bytes.len() as u64);
        writer.put(bytes).await?;
        writer.commit(labels.clone()).await.map_err(of_blob)?;
        // The labels of one that someone else stored in the meantime are not those.
        Ok(store.label(digest, labels).await?)
    }

    /// The label that names the image's repository as a source of the blob.
    async fn source(&self, digest: &Digest) -> Result<Labels, Failure> {
        let known = self.filler.store.blob(digest).await?;
        Ok(image::source(self.image, known.as_ref()))
    }

    fn add(&self, bytes: u64) {
        let mut counted = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        counted.0 = counted.0.saturating_add(bytes);
        self.progress.set(counted.0, counted.1);
    }

    /// Removes what the next attempt cannot use. What it can use is held by the lease until that expires.
    async fn clean_up(&mut self, failure: Failure) -> Unfilled {
        end(&self.threads).await;
        let active = {
            let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *active)
        };
        let store = &self.filler.store;
        for prepared in &active {
            store.remove(self.snapshotter, prepared).await;
        }
        abort(store, &self.lease, &self.blobs()).await;
        self.is_over = true;
        let mut unfilled = Unfilled::of(failure);
        match &unfilled.failure {
            Failure::Unsupported(_) => unfilled.lease = Some(self.lease.clone()),
            Failure::Failed(error) if is_useful(error) => {}
            Failure::Failed(_) => store.release(&self.lease, true).await,
        }
        unfilled
    }
}

/// Returns whether another attempt may follow, which uses what is complete.
pub(super) fn is_useful(error: &RuntimeError) -> bool {
    error.is_retryable() && error.kind != FailureKind::Other
}

/// Returns whether unpacking the layer may need zstd's window.
fn is_windowed(layer: &Layer) -> bool {
    compression(&layer.descriptor.media_type).is_ok_and(|known| known == Compression::Zstd)
}

/// The result of a step of the unpacker; `None` if containerd has to unpack the layer.
fn outcome<T>(done: Result<T, UnpackError>, layer: &Layer) -> Result<Option<T>, Failure> {
    let error = match done {
        Ok(done) => return Ok(Some(done)),
        Err(error) => error,
    };
    if error.needs_diff_service() {
        tracing::debug!(digest = %layer.descriptor.digest, "containerd unpacks the layer: {error}");
        return Ok(None);
    }
    Err(match error {
        UnpackError::Digest { .. } | UnpackError::DiffId { .. } => mismatch(error.to_string()),
        UnpackError::OverBudget { .. } => {
            Failure::Failed(RuntimeError::new(FailureKind::NoSpace, error.to_string()))
        }
        error if error.is_no_space() => {
            Failure::Failed(RuntimeError::new(FailureKind::NoSpace, error.to_string()))
        }
        error => Failure::Unsupported(error.to_string()),
    })
}

/// Content that is not what the manifest or the configuration says.
fn mismatch(message: String) -> Failure {
    Failure::Failed(RuntimeError::new(FailureKind::Other, message))
}

/// The failure of a blob that was written beside containerd.
fn of_keep(error: KeepError) -> Failure {
    match error {
        KeepError::Digest(error) => error.into(),
        KeepError::Write(error) => match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Failure::Failed(RuntimeError::new(FailureKind::NoSpace, chain(&error)))
            }
            _ => Failure::Unsupported(chain(&error)),
        },
    }
}

/// The failure of a blob's commit, at which containerd verifies it.
fn of_blob(error: RuntimeError) -> Failure {
    match error.message.starts_with("digest mismatch") {
        true => Failure::Failed(error),
        false => error.into(),
    }
}

/// The result of a fetch of `size` bytes that are counted in `received`, unless they come too slowly.
async fn unless_slow(
    fetch: impl Future<Output = Result<(), Failure>>,
    received: &AtomicU64,
    size: u64,
) -> Result<(), Failure> {
    tokio::pin!(fetch);
    let mut before = 0;
    loop {
        let fetched = tokio::time::timeout(SLOW_TIME, &mut fetch).await;
        if let Ok(fetched) = fetched {
            return fetched;
        }
        let now = received.load(Ordering::Relaxed);
        // All received: the unpacker is the one that is slow.
        if now < size && now.saturating_sub(before) < SLOW_BYTES {
            return Err(gone("the registry is slow"));
        }
        before = now;
    }
}

fn gone(what: &str) -> Failure {
    Failure::Unsupported(what.to_owned())
}

fn odd_mounts() -> Failure {
    gone("unexpected mounts of a snapshot")
}

fn exchange(one: &Path, other: &Path) -> Result<(), UnpackError> {
    let exchanged = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
    exchanged.map_err(|errno| UnpackError::Filesystem {
        action: "exchange",
        path: one.display().to_string(),
        errno,
    })
}

/// Bytes that layers may write: what is free, but for a spare part.
async fn space(config: &Config) -> Result<u64, Failure> {
    let root = config.snapshotter_root.clone().unwrap_or_default();
    let told = blocking(move || rustix::fs::statvfs(&root)).await?;
    let told = told.map_err(|errno| gone(&errno.to_string()))?;
    let spare = told.f_blocks / SPARE;
    let blocks = told.f_bavail.saturating_sub(spare);
    Ok(blocks.saturating_mul(told.f_frsize))
}

/// Runs file system calls on a thread of their own.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(call).await;
    done.map_err(|_| gone("a thread ended"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn slow_registry_is_left_to_runtime() {
        let (size, second) = (10 << 20, Duration::from_secs(1));
        for (rate, is_slow) in [(1_000, true), (60_000, false)] {
            let received = AtomicU64::new(0);
            let fetch = async {
                while received.fetch_add(rate, Ordering::Relaxed) < size {
                    tokio::time::sleep(second).await;
                }
                // Nothing is left to receive.
                tokio::time::sleep(10 * SLOW_TIME).await;
                Ok(())
            };
            let fetched = unless_slow(fetch, &received, size).await;
            assert_eq!(fetched.is_err(), is_slow, "{rate} bytes a second");
        }
    }
}
