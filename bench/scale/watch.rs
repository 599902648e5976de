//! A watch of this program's own, which takes the time of what it is told.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::Value;

use super::super::bed::{Kubernetes, client};

/// Events of one resource, from now on and with the objects that exist.
pub struct Watch {
    events: Receiver<(Instant, Value)>,
    tokio: Option<tokio::runtime::Runtime>,
}

impl Watch {
    /// Starts to watch a collection.
    pub fn start(cluster: &Kubernetes, collection: &str) -> Self {
        let (send, events) = channel();
        let separator = if collection.contains('?') { '&' } else { '?' };
        let url = format!(
            "{}{collection}{separator}watch=true&timeoutSeconds=3600",
            cluster.server()
        );
        let request = client(Some(cluster.ca())).get(url);
        let request = request.bearer_auth(cluster.token());
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        tokio.spawn(async move {
            let answer = request.send().await.unwrap();
            assert!(answer.status().is_success(), "{answer:?}");
            let mut chunks = answer.bytes_stream();
            let mut text = Vec::new();
            while let Some(Ok(chunk)) = chunks.next().await {
                let now = Instant::now();
                text.extend_from_slice(&chunk);
                while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                    let event: Value = serde_json::from_slice(&text[..end]).unwrap();
                    text.drain(..=end);
                    if send.send((now, event["object"].clone())).is_err() {
                        return;
                    }
                }
            }
        });
        Self {
            events,
            tokio: Some(tokio),
        }
    }

    /// Waits for an object; returns when it came. `None` if it does not come in time.
    pub fn until(&self, limit: Duration, mut is_it: impl FnMut(&Value) -> bool) -> Option<Instant> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok((at, object)) if is_it(&object) => return Some(at),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => panic!("the watch ended"),
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(tokio) = self.tokio.take() {
            tokio.shutdown_background();
        }
    }
}
