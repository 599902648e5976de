//! One layer's bytes on their way: from the registry, or from containerd's store, to the unpacker and into the store at once.
//!
//! The unpacker blocks on a thread of its own; a short queue is between the two, so that memory does not grow with the layer.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// Pieces that may wait for the unpacker. A piece is what one read of a connection returned, rarely more than 256 KiB.
const PIECES: usize = 4;

/// The end of a queue that the unpacker reads from.
#[derive(Debug)]
pub(super) struct LayerReader {
    pieces: mpsc::Receiver<Bytes>,
    now: Bytes,
    state: Arc<AtomicBool>,
}

/// The other end. Without [`LayerSender::finish`], the unpacker's read fails instead of ending.
#[derive(Debug)]
pub(super) struct LayerSender {
    pieces: mpsc::Sender<Bytes>,
    is_whole: Arc<AtomicBool>,
}

/// A queue for one layer.
pub(super) fn queue() -> (LayerSender, LayerReader) {
    let (sender, pieces) = mpsc::channel(PIECES);
    let is_whole = Arc::new(AtomicBool::new(false));
    let reader = LayerReader {
        pieces,
        now: Bytes::new(),
        state: is_whole.clone(),
    };
    let sender = LayerSender {
        pieces: sender,
        is_whole,
    };
    (sender, reader)
}

impl LayerSender {
    /// Sends the next bytes; `false` if the unpacker reads no more.
    pub(super) async fn send(&self, piece: Bytes) -> bool {
        self.pieces.send(piece).await.is_ok()
    }

    /// The same on a thread that may block.
    pub(super) fn blocking_send(&self, piece: Bytes) -> bool {
        self.pieces.blocking_send(piece).is_ok()
    }

    /// Ends the layer.
    pub(super) fn finish(self) {
        self.is_whole.store(true, Ordering::Release);
    }
}

impl Read for LayerReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.now = piece,
                None if self.state.load(Ordering::Acquire) => return Ok(0),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let bytes = self.now.len().min(into.len());
        self.now.copy_to_slice(&mut into[..bytes]);
        Ok(bytes)
    }
}

/// Ends the unpacking of all layers of a pull when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub(super) fn flag(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn cut_stream_is_an_error() {
        for is_whole in [true, false] {
            let (sender, mut reader) = queue();
            let read = tokio::task::spawn_blocking(move || {
                let mut all = Vec::new();
                reader.read_to_end(&mut all).map(|_| all)
            });
            assert!(sender.send(Bytes::from_static(b"layer")).await);
            match is_whole {
                true => sender.finish(),
                false => drop(sender),
            }
            let read = read.await.unwrap();
            assert_eq!(read.ok(), is_whole.then(|| b"layer".to_vec()));
        }
    }
}
