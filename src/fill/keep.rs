//! Writes a layer's compressed bytes into containerd's directory, computes their digest and passes them on to the unpacker.

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::direct::DirectFile;
use super::stream::LayerSender;
use crate::model::digest::Digest;
use crate::registry;
use crate::registry::digest::Hasher;

/// The reason why a layer could not be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    #[error("failed to write a blob: {0}")]
    Write(#[from] io::Error),
    #[error(transparent)]
    Digest(#[from] registry::Error),
}

/// Takes the bytes until their sender is dropped. It blocks.
///
/// # Errors
/// [`KeepError::Digest`] also if the bytes are incomplete. The unpacker's reads then fail.
pub(super) fn keep(
    mut received: mpsc::Receiver<Bytes>,
    file: Arc<File>,
    expected: &Digest,
    sender: LayerSender,
) -> Result<(), KeepError> {
    let mut hasher = Hasher::like(expected)?;
    let mut file = DirectFile::new(file);
    let mut is_read = true;
    while let Some(piece) = received.blocking_recv() {
        hasher.update(&piece);
        file.write(&piece)?;
        // A layer that containerd is to unpack is stored too.
        is_read = is_read && sender.blocking_send(piece);
    }
    let actual = hasher.finish();
    if actual != *expected {
        let (expected, actual) = (expected.to_string(), actual.to_string());
        return Err(registry::Error::Content { expected, actual }.into());
    }
    sender.finish();
    Ok(file.finish()?)
}
