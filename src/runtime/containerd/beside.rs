//! Blobs that are written beside containerd: into the directory that it made for the write, instead of through its socket.
//!
//! containerd removes the directory when the write is aborted or its lease ends. A complete file is moved to its place in the
//! content store, and containerd then makes the record of a blob that is there already. Where it does not, it gets the bytes
//! through its socket.

use std::fs::File;
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use containerd_client::services::v1::{DeleteContentRequest, WriteAction, WriteContentRequest};
use tonic::{Code, Status};

use super::store::{Labels, Store, last_answer, with_space, write_key};
use super::{answer, leased, request};
use crate::model::digest::Digest;
use crate::model::failure::FailureKind;
use crate::model::text::chain;
use crate::runtime::grpc::unexplained;
use crate::runtime::image_service::RuntimeError;

/// Size of a read of a blob that containerd did not take.
const PIECE: usize = 1 << 20;
/// Longest content of a file `ref` that is read.
const REF_MAX: usize = 8192;

/// A blob that is being written beside containerd.
#[derive(Debug)]
pub struct Beside {
    key: String,
    digest: Digest,
    size: u64,
    file: Arc<File>,
    /// The path of the file.
    path: PathBuf,
    /// The path of the complete blob.
    target: PathBuf,
}

impl Beside {
    /// The empty file that takes the bytes of the blob. The caller writes all of them, verifies their digest and syncs the file.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Moves the complete file to its place.
    fn place(&self) -> io::Result<()> {
        let directory = self.target.parent().unwrap_or(Path::new("/"));
        let mut make = std::fs::DirBuilder::new();
        make.recursive(true).mode(0o755).create(directory)?;
        self.file
            .set_permissions(std::fs::Permissions::from_mode(0o444))?;
        std::fs::rename(&self.path, &self.target)
    }
}

impl Store {
    /// Starts to write a blob beside containerd; `None` if its content directory is not mounted writable.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn beside(
        &self,
        lease: &str,
        digest: &Digest,
        size: u64,
    ) -> Result<Option<Beside>, RuntimeError> {
        let Some(root) = self.config().await?.content_root.clone() else {
            return Ok(None);
        };
        let key = write_key(lease, digest);
        let open = message(WriteAction::Stat, &key, size);
        let opened = self.send_all(lease, vec![open]).await;
        opened.map_err(|status| with_space(unexplained(&status)))?;
        // containerd 2 makes its directories with the first write.
        let (ingests, wanted) = (root.join("ingest"), key.clone());
        let found = blocking(move || open_data(&ingests, &wanted)).await;
        match found {
            Ok((path, file)) => Ok(Some(Beside {
                key,
                size,
                file: Arc::new(file),
                path,
                target: root
                    .join("blobs")
                    .join(digest.algorithm())
                    .join(digest.hex()),
                digest: digest.clone(),
            })),
            Err(error) => {
                tracing::debug!("content goes through containerd's socket: {error}");
                self.abort(&key).await;
                Ok(None)
            }
        }
    }

    /// Has containerd take a complete blob, whose digest the caller has verified.
    ///
    /// # Errors
    /// When containerd does not store it.
    pub async fn take(
        &self,
        lease: &str,
        beside: Beside,
        labels: Labels,
    ) -> Result<(), RuntimeError> {
        let beside = Arc::new(beside);
        let moved = beside.clone();
        let moved = blocking(move || moved.place()).await;
        let adopted = async {
            match &moved {
                Ok(()) => self.adopt(lease, &beside, labels.clone()).await,
                Err(error) => Err(Status::internal(chain(error))),
            }
        };
        let (adopted, ()) = tokio::join!(adopted, self.abort(&beside.key));
        let refused = match adopted {
            // A collection of garbage may have come between the move and the record.
            Ok(()) if exists(beside.target.clone()).await => return Ok(()),
            Ok(()) => {
                self.delete_blob(&beside.digest).await?;
                "the blob is gone".to_owned()
            }
            Err(status) => status.message().to_owned(),
        };
        tracing::debug!("content goes through containerd's socket: {refused}");
        let mut writer = self.write(lease, &beside.digest, beside.size);
        let mut at = 0;
        while at < beside.size {
            let from = beside.clone();
            let piece = blocking(move || read_at(&from.file, at)).await;
            let piece =
                piece.map_err(|error| RuntimeError::new(FailureKind::Other, chain(&error)))?;
            if piece.is_empty() {
                break;
            }
            at += piece.len() as u64;
            writer.put(&piece).await?;
        }
        writer.commit(labels).await
    }

    /// Ends a write that has failed.
    pub async fn abandon(&self, beside: &Beside) {
        self.abort(&beside.key).await;
    }

    /// Has containerd make the record of a blob that is in its directory.
    async fn adopt(&self, lease: &str, beside: &Beside, labels: Labels) -> Result<(), Status> {
        let key = format!("{}/there", beside.key);
        let there = |action| WriteContentRequest {
            expected: beside.digest.to_string(),
            ..message(action, &key, beside.size)
        };
        let commit = WriteContentRequest {
            offset: i64::try_from(beside.size).unwrap_or(i64::MAX),
            labels: labels.clone(),
            ..there(WriteAction::Commit)
        };
        match self
            .send_all(lease, vec![there(WriteAction::Stat), commit])
            .await
        {
            Ok(true) => Ok(()),
            // Someone else has stored it in the meantime.
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Ok(false) => {
                self.abort(&key).await;
                Err(Status::internal("the commit was not confirmed"))
            }
            Err(status) => {
                self.abort(&key).await;
                Err(status)
            }
        }
    }

    /// Sends the messages of a write; returns whether containerd confirmed a commit.
    async fn send_all(
        &self,
        lease: &str,
        messages: Vec<WriteContentRequest>,
    ) -> Result<bool, Status> {
        let asked = leased(futures_util::stream::iter(messages), lease)?;
        let sent = async {
            let answers = self.client.content().write(asked).await?.into_inner();
            last_answer(answers).await
        };
        let sent = tokio::time::timeout(super::CALL_LIMIT, sent).await;
        sent.map_err(|_| Status::unavailable("no response from containerd (content write)"))?
    }

    /// Ends a write and removes its directory. A failure is logged: the lease's end removes it too.
    async fn abort(&self, key: &str) {
        if let Err(error) = self.abort_key(key.to_owned()).await {
            tracing::debug!("failed to abort the write {key}: {error}");
        }
    }

    async fn delete_blob(&self, digest: &Digest) -> Result<(), RuntimeError> {
        let mut content = self.client.content();
        let asked = content.delete(request(DeleteContentRequest {
            digest: digest.to_string(),
        }));
        answer(asked, "content delete").await
    }
}

fn message(action: WriteAction, key: &str, size: u64) -> WriteContentRequest {
    WriteContentRequest {
        action: action.into(),
        r#ref: key.to_owned(),
        total: i64::try_from(size).unwrap_or(i64::MAX),
        ..WriteContentRequest::default()
    }
}

/// Opens the file for the bytes in the directory that containerd made for the write.
fn open_data(ingests: &Path, key: &str) -> io::Result<(PathBuf, File)> {
    for entry in std::fs::read_dir(ingests)? {
        let directory = entry?.path();
        // The reference is preceded by numbers and the namespace.
        let Ok(reference) = std::fs::read(directory.join("ref")) else {
            continue;
        };
        let is_it = reference.len() < REF_MAX
            && reference
                .strip_suffix(key.as_bytes())
                .is_some_and(|before| before.ends_with(b"/"));
        if is_it {
            let path = directory.join("data");
            let mut options = File::options();
            options.read(true).write(true).truncate(true);
            options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
            let file = options.open(&path)?;
            return Ok((path, file));
        }
    }
    let shown = ingests.display();
    let missing = format!("the write is not in {shown}");
    Err(io::Error::new(io::ErrorKind::NotFound, missing))
}

fn read_at(file: &File, at: u64) -> io::Result<Bytes> {
    let mut piece = vec![0; PIECE];
    let read = file.read_at(&mut piece, at)?;
    piece.truncate(read);
    Ok(piece.into())
}

async fn exists(path: PathBuf) -> bool {
    blocking(move || path.symlink_metadata()).await.is_ok()
}

/// Runs file system calls on a thread of their own.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(call).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn directory_of_write_is_found() {
        let top = tempfile::tempdir().unwrap();
        for (name, reference) in [
            ("a", "3/k8s.io/other/lease/sha256:1"),
            ("b", "4/k8s.io/lease/sha256:12"),
            ("c", "5/k8s.io/lease/sha256:1"),
            ("d", "lease/sha256:1"),
        ] {
            let directory = top.path().join(name);
            std::fs::create_dir(&directory).unwrap();
            std::fs::write(directory.join("ref"), reference).unwrap();
            std::fs::write(directory.join("data"), "old").unwrap();
        }
        std::fs::create_dir(top.path().join("empty")).unwrap();
        let (path, file) = open_data(top.path(), "k8s.io/lease/sha256:1").unwrap();
        assert_eq!(path, top.path().join("c/data"));
        assert_eq!(file.metadata().unwrap().len(), 0);
        open_data(top.path(), "lease/sha256:3").unwrap_err();
    }
}
