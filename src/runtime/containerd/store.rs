//! Content and snapshots of one containerd, written and read by its own API. It never makes a name.
//!
//! Everything stored here is held by a lease of harpoon's, until the labels of an image's manifest hold it.

use std::collections::HashMap;
use std::path::PathBuf;

use bytes::Bytes;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::{
    AbortRequest, ApplyRequest, Info, InfoRequest, ReadContentRequest, ReadContentResponse,
    UpdateRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use containerd_client::types::{Descriptor as Content, Mount};
use prost_types::FieldMask;
use tokio::sync::{OnceCell, mpsc};
use tokio::task::JoinHandle;
use tonic::{Code, Response, Status, Streaming};

use super::config::Config;
use super::seal::Keep;
use super::{Client, answer, leased, request};
use crate::model::digest::Digest;
use crate::model::failure::FailureKind;
use crate::model::reference::Reference;
use crate::runtime::error_kind;
use crate::runtime::grpc::unexplained;
use crate::runtime::image_service::RuntimeError;

/// Labels of content and snapshots.
pub type Labels = HashMap<String, String>;

/// Size of a message with content. containerd accepts 16 MiB.
const PIECE: usize = 1 << 20;
/// Messages that may wait for containerd to take them.
const PIECES: usize = 2;

/// The content store and the snapshotter of one containerd.
#[derive(Debug, Clone)]
pub struct Store {
    pub(super) client: Client,
    config: OnceCell<Config>,
}

/// An active snapshot: an empty directory that is filled, above the directories of its parents.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    key: String,
    mounts: Vec<Mount>,
}

impl Prepared {
    /// The directory to fill, and those of the parents, the nearest first; `None` if the snapshot is not of that form.
    pub fn directories(&self) -> Option<(PathBuf, Vec<PathBuf>)> {
        let [mount] = &*self.mounts else {
            return None;
        };
        match &*mount.r#type {
            "bind" => Some((PathBuf::from(&mount.source), Vec::new())),
            "overlay" => {
                let option = |name: &str| {
                    let mut all = mount.options.iter();
                    all.find_map(|o| o.strip_prefix(name)?.strip_prefix('='))
                };
                // Another form of whiteouts and opaque directories.
                if mount.options.iter().any(|option| option == "userxattr") {
                    return None;
                }
                let below = option("lowerdir").unwrap_or_default().split(':');
                let below = below.filter(|path| !path.is_empty()).map(PathBuf::from);
                Some((PathBuf::from(option("upperdir")?), below.collect()))
            }
            _ => None,
        }
    }
}

impl Store {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            config: OnceCell::new(),
        }
    }

    /// The pull configuration of the CRI plugin. Requested once.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn config(&self) -> Result<&Config, RuntimeError> {
        self.config.get_or_try_init(|| self.client.config()).await
    }

    /// Makes a lease for a pull of the image; returns its ID.
    ///
    /// # Errors
    /// When containerd does not make it.
    pub async fn lease(&self, image: &Reference, keep: Keep) -> Result<String, RuntimeError> {
        self.client.lease_pull(image, keep).await
    }

    /// Makes a lease for a short trial of the store; returns its ID.
    ///
    /// # Errors
    /// When containerd does not make it.
    pub async fn lease_trial(&self) -> Result<String, RuntimeError> {
        self.client.lease_trial().await
    }

    /// Gives the lease up; `sync` waits until containerd has freed what nothing else holds.
    pub async fn release(&self, lease: &str, sync: bool) {
        if let Err(error) = self.client.delete_lease(lease, sync).await {
            tracing::debug!("failed to delete the lease {lease}: {error}");
        }
    }

    /// The labels of a blob; `None` if there is no such blob.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn blob(&self, digest: &Digest) -> Result<Option<Labels>, RuntimeError> {
        let mut content = self.client.content();
        let asked = content.info(request(InfoRequest {
            digest: digest.to_string(),
        }));
        let info = answer(unless(Code::NotFound, asked), "content info").await?;
        Ok(info.map(|answer| answer.info.map(|info| info.labels).unwrap_or_default()))
    }

    /// Adds labels to a blob.
    ///
    /// # Errors
    /// When containerd does not set them.
    pub async fn label(&self, digest: &Digest, labels: Labels) -> Result<(), RuntimeError> {
        // An empty mask would replace all labels.
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let mut content = self.client.content();
        let asked = content.update(request(UpdateRequest {
            info: Some(Info {
                digest: digest.to_string(),
                labels,
                ..Info::default()
            }),
            update_mask: Some(FieldMask { paths }),
        }));
        answer(asked, "content update").await.map(drop)
    }

    /// Has the lease hold a snapshot that is there already.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn hold_snapshot(
        &self,
        lease: &str,
        snapshotter: &str,
        name: &str,
    ) -> Result<(), RuntimeError> {
        let kind = format!("snapshots/{snapshotter}");
        self.client.hold(lease, &kind, name).await
    }

    /// Has the lease hold a blob that is there already.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn hold_blob(&self, lease: &str, digest: &Digest) -> Result<(), RuntimeError> {
        self.client.hold(lease, "content", digest.as_str()).await
    }

    /// Starts to write a blob.
    pub fn write(&self, lease: &str, digest: &Digest, size: u64) -> BlobWriter {
        let (pieces, open) = mpsc::channel(PIECES);
        let client = self.client.clone();
        let held = lease.to_owned();
        let task = tokio::spawn(async move { write(&client, open, &held).await });
        BlobWriter {
            key: write_key(lease, digest),
            digest: digest.clone(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            at: 0,
            is_stored: false,
            buffer: Vec::new(),
            pieces,
            task,
        }
    }

    /// Removes what came of a blob whose write has ended without a commit. Nothing of it is no error.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn abort_write(&self, lease: &str, digest: &Digest) -> Result<(), RuntimeError> {
        self.abort_key(write_key(lease, digest)).await
    }

    /// The same by the key of the write.
    pub(super) async fn abort_key(&self, key: String) -> Result<(), RuntimeError> {
        let mut content = self.client.content();
        let asked = content.abort(request(AbortRequest { r#ref: key }));
        let done = answer(unless(Code::NotFound, asked), "content abort").await;
        done.map(drop)
    }

    /// Starts to read a blob.
    ///
    /// # Errors
    /// When containerd does not have it.
    pub async fn read(&self, digest: &Digest) -> Result<BlobReader, RuntimeError> {
        let mut content = self.client.content();
        let asked = content.read(request(ReadContentRequest {
            digest: digest.to_string(),
            ..ReadContentRequest::default()
        }));
        answer(asked, "content read").await.map(BlobReader)
    }

    /// Returns whether the snapshot is there, committed.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn has_snapshot(&self, snapshotter: &str, name: &str) -> Result<bool, RuntimeError> {
        let mut snapshots = self.client.snapshots();
        let asked = snapshots.stat(request(StatSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: name.to_owned(),
        }));
        let found = answer(unless(Code::NotFound, asked), "snapshot stat").await?;
        Ok(found.is_some())
    }

    /// Makes an active snapshot above the parent; an empty `parent` stands for none. `None` if the snapshot that the labels announce
    /// is there already.
    ///
    /// # Errors
    /// When containerd does not make it.
    pub async fn prepare(
        &self,
        lease: &str,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Option<Prepared>, RuntimeError> {
        let asked = leased(
            PrepareSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                key: key.to_owned(),
                parent: parent.to_owned(),
                labels,
            },
            lease,
        );
        let mut snapshots = self.client.snapshots();
        let asked = snapshots.prepare(asked.map_err(|status| unexplained(&status))?);
        let made = answer(unless(Code::AlreadyExists, asked), "snapshot prepare").await;
        Ok(made.map_err(with_space)?.map(|made| Prepared {
            key: key.to_owned(),
            mounts: made.mounts,
        }))
    }

    /// Commits an active snapshot under a name; `false` if another one has that name already.
    ///
    /// # Errors
    /// When containerd does not commit it.
    pub async fn commit(
        &self,
        lease: &str,
        snapshotter: &str,
        prepared: &Prepared,
        name: &str,
        labels: Labels,
    ) -> Result<bool, RuntimeError> {
        let asked = leased(
            CommitSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                name: name.to_owned(),
                key: prepared.key.clone(),
                labels,
            },
            lease,
        );
        let mut snapshots = self.client.snapshots();
        let asked = snapshots.commit(asked.map_err(|status| unexplained(&status))?);
        let done = answer(unless(Code::AlreadyExists, asked), "snapshot commit").await;
        Ok(done.map_err(with_space)?.is_some())
    }

    /// Removes an active snapshot. A failure is logged: the lease's end removes it too.
    pub async fn remove(&self, snapshotter: &str, prepared: &Prepared) {
        let mut snapshots = self.client.snapshots();
        let asked = snapshots.remove(request(RemoveSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: prepared.key.clone(),
        }));
        if let Err(error) = answer(unless(Code::NotFound, asked), "snapshot remove").await {
            tracing::debug!("failed to remove the snapshot {}: {error}", prepared.key);
        }
    }

    /// Has containerd unpack a layer of its content store; returns its diff ID. It takes as long as it takes.
    ///
    /// # Errors
    /// When containerd cannot unpack it.
    pub async fn apply(
        &self,
        lease: &str,
        layer: (&str, &Digest, u64),
        into: &Prepared,
        image: &Reference,
    ) -> Result<String, RuntimeError> {
        let (media_type, digest, size) = layer;
        let asked = ApplyRequest {
            diff: Some(Content {
                media_type: media_type.to_owned(),
                digest: digest.to_string(),
                size: i64::try_from(size).unwrap_or(i64::MAX),
                ..Content::default()
            }),
            mounts: into.mounts.clone(),
            ..ApplyRequest::default()
        };
        let asked = leased(asked, lease).map_err(|status| unexplained(&status))?;
        let applied = self.client.diff().apply(asked).await;
        let applied = applied.map_err(|status| crate::runtime::grpc::failure(&status, image))?;
        let applied = applied.into_inner().applied;
        Ok(applied.map(|applied| applied.digest).unwrap_or_default())
    }
}

/// A blob that is being written. One that is dropped is not stored; what came so far ends with [`Store::abort_write`] or with the lease.
#[derive(Debug)]
pub struct BlobWriter {
    key: String,
    digest: Digest,
    size: i64,
    at: i64,
    /// Someone else has stored the same blob in the meantime.
    is_stored: bool,
    buffer: Vec<u8>,
    pieces: mpsc::Sender<WriteContentRequest>,
    task: JoinHandle<Result<bool, Status>>,
}

impl BlobWriter {
    /// Adds the next bytes.
    ///
    /// # Errors
    /// When containerd has ended the write.
    pub async fn put(&mut self, bytes: &Bytes) -> Result<(), RuntimeError> {
        let mut rest = &bytes[..];
        while !rest.is_empty() && !self.is_stored {
            if self.buffer.is_empty() {
                self.buffer.reserve_exact(PIECE);
            }
            let (now, later) = rest.split_at(rest.len().min(PIECE - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            rest = later;
            if self.buffer.len() == PIECE {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), RuntimeError> {
        let data = std::mem::take(&mut self.buffer);
        let length = i64::try_from(data.len()).unwrap_or(i64::MAX);
        let piece = WriteContentRequest {
            data,
            ..self.message(WriteAction::Write)
        };
        match self.pieces.send(piece).await {
            Ok(()) => self.at += length,
            Err(_) => self.end().await?,
        }
        Ok(())
    }

    /// Stores the blob, after containerd has verified its size and digest.
    ///
    /// # Errors
    /// When containerd does not store it.
    pub async fn commit(mut self, labels: Labels) -> Result<(), RuntimeError> {
        if !self.buffer.is_empty() {
            self.flush().await?;
        }
        if self.is_stored {
            return Ok(());
        }
        let last = WriteContentRequest {
            labels,
            ..self.message(WriteAction::Commit)
        };
        // If the call has ended already, its result tells why.
        let _ = self.pieces.send(last).await;
        let (closed, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.pieces, closed));
        self.end().await
    }

    fn message(&self, action: WriteAction) -> WriteContentRequest {
        WriteContentRequest {
            action: action.into(),
            r#ref: self.key.clone(),
            total: self.size,
            expected: self.digest.to_string(),
            offset: self.at,
            ..WriteContentRequest::default()
        }
    }

    /// Waits for the end of the call, after which the blob is stored.
    async fn end(&mut self) -> Result<(), RuntimeError> {
        match (&mut self.task).await {
            Ok(Ok(true)) => {
                self.is_stored = true;
                Ok(())
            }
            Ok(Err(status)) => Err(of_write(&status, &self.digest)),
            Ok(Ok(false)) | Err(_) => Err(RuntimeError::new(
                FailureKind::Unavailable,
                "containerd ended the write of a blob",
            )),
        }
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        // Ends the call, and with it containerd's lock of the write.
        self.task.abort();
    }
}

/// The name of the write of a blob.
pub(super) fn write_key(lease: &str, digest: &Digest) -> String {
    format!("{lease}/{digest}")
}

fn of_write(status: &Status, digest: &Digest) -> RuntimeError {
    let mut error = with_space(unexplained(status));
    if status.code() == Code::FailedPrecondition {
        error.message = format!("digest mismatch: expected {digest}: {}", error.message);
    }
    error
}

/// Sends the pieces; `true` once containerd has stored the blob, or had it before.
async fn write(
    client: &Client,
    open: mpsc::Receiver<WriteContentRequest>,
    lease: &str,
) -> Result<bool, Status> {
    let pieces = futures_util::stream::unfold(open, |mut open| async {
        let next = open.recv().await?;
        Some((next, open))
    });
    let asked = leased(pieces, lease)?;
    let written = async {
        let answers = client.content().write(asked).await?.into_inner();
        last_answer(answers).await
    };
    match written.await {
        Err(status) if Status::code(&status) == Code::AlreadyExists => Ok(true),
        written => written,
    }
}

/// Reads the answers to a write; `true` if the last one confirms a commit.
pub(super) async fn last_answer(
    mut answers: Streaming<WriteContentResponse>,
) -> Result<bool, Status> {
    let mut last: Option<WriteContentResponse> = None;
    while let Some(answer) = answers.message().await? {
        last = Some(answer);
    }
    Ok(last.is_some_and(|last| last.action == i32::from(WriteAction::Commit)))
}

/// A blob that is being read.
#[derive(Debug)]
pub struct BlobReader(Streaming<ReadContentResponse>);

impl BlobReader {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When containerd fails to read it.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RuntimeError> {
        let piece = self.0.message().await;
        let piece = piece.map_err(|status| unexplained(&status))?;
        Ok(piece.map(|piece| Bytes::from(piece.data)))
    }
}

/// The answer; `None` for an error with this code.
async fn unless<T>(
    code: Code,
    asked: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<Option<T>>, Status> {
    match asked.await {
        Ok(answer) => Ok(Response::new(Some(answer.into_inner()))),
        Err(status) if status.code() == code => Ok(Response::new(None)),
        Err(status) => Err(status),
    }
}

/// The error, of the kind `no_space` if the store is full.
pub(super) fn with_space(mut error: RuntimeError) -> RuntimeError {
    if error_kind::is_full(&error.message.to_ascii_lowercase()) {
        error.kind = FailureKind::NoSpace;
    }
    error
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn prepared(kind: &str, source: &str, options: &[&str]) -> Prepared {
        Prepared {
            key: "key".to_owned(),
            mounts: vec![Mount {
                r#type: kind.to_owned(),
                source: source.to_owned(),
                options: options.iter().map(|o| (*o).to_owned()).collect(),
                ..Mount::default()
            }],
        }
    }

    #[test]
    fn directories_are_those_of_mounts() {
        let bottom = prepared("bind", "/s/1/fs", &["rw", "rbind"]);
        assert_eq!(bottom.directories(), Some(("/s/1/fs".into(), vec![])));
        let above = [
            "index=off",
            "workdir=/s/3/work",
            "upperdir=/s/3/fs",
            "lowerdir=/s/2/fs:/s/1/fs",
        ];
        let above = prepared("overlay", "overlay", &above).directories();
        let below = vec!["/s/2/fs".into(), "/s/1/fs".into()];
        assert_eq!(above, Some(("/s/3/fs".into(), below)));
    }

    #[test]
    fn other_mounts_have_no_directories() {
        for other in [
            prepared("ext4", "/dev/x", &[]),
            prepared("overlay", "overlay", &["lowerdir=/s/1/fs"]),
            prepared("overlay", "overlay", &["userxattr", "upperdir=/s/1/fs"]),
        ] {
            assert_eq!(other.directories(), None, "{other:?}");
        }
    }
}
