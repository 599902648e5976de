//! A watch of this program's own, which takes the time of what it is told.

use std::pin::pin;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use futures_util::future::ready;
use futures_util::stream::{Stream, StreamExt, iter};
use serde_json::Value;

use super::super::bed::{Kubernetes, client};

/// The objects of a watch's events, each with the time when it came.
pub fn objects(answer: reqwest::Response) -> impl Stream<Item = (Instant, Value)> {
    let mut text = Vec::new();
    let chunks = answer.bytes_stream();
    let chunks = chunks.take_while(|chunk| ready(chunk.is_ok()));
    chunks.flat_map(move |chunk| {
        let now = Instant::now();
        text.extend_from_slice(&chunk.unwrap());
        let mut found = Vec::new();
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let mut event: Value = serde_json::from_slice(&text[..end]).unwrap();
            text.drain(..=end);
            found.push((now, event["object"].take()));
        }
        iter(found)
    })
}

/// Events of one resource, from now on and with the objects that exist.
pub struct Watch {
    events: Receiver<(Instant, Value)>,
    tokio: Option<tokio::runtime::Runtime>,
}

impl Watch {
    /// Starts to watch a collection. The API server closes a watch that does not keep up; then it begins again.
    pub fn start(cluster: &Kubernetes, collection: &str) -> Self {
        let (send, events) = channel();
        let separator = if collection.contains('?') { '&' } else { '?' };
        let url = format!(
            "{}{collection}{separator}watch=true&timeoutSeconds=3600",
            cluster.server()
        );
        let request = client(Some(cluster.ca())).get(url);
        let request = request.bearer_auth(cluster.token());
        let again = move || request.try_clone().expect("a request without a body");
        let tokio = super::tokio(1);
        tokio.spawn(async move {
            loop {
                if let Ok(answer) = again().send().await {
                    assert!(answer.status().is_success(), "{answer:?}");
                    let mut objects = pin!(objects(answer));
                    while let Some(told) = objects.next().await {
                        if send.send(told).is_err() {
                            return;
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
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
