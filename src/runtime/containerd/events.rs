//! containerd's event stream: images that somebody deleted, such as the kubelet's garbage collection, as soon as they are gone.

use std::convert::Infallible;
use std::time::Duration;

use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::{ImageDelete, SubscribeRequest};
use containerd_client::types::Envelope;
use prost::Message;
use tokio::time::sleep;
use tonic::Status;

use super::pins::Pins;
use super::{NAMESPACE, answer, request};
use crate::model::failure::FailureKind;
use crate::model::text::sanitize;
use crate::retry::backoff;

const DELETED: &str = "/images/delete";
/// A new subscription is answered with its first event, so that a connection is assumed after this.
const SETTLED: Duration = Duration::from_secs(1);

/// An event of containerd that can mean that a wanted image is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// The image has no longer this name.
    Name(String),
    /// The stream was interrupted, so that events may be lost.
    Unknown,
}

impl Pins {
    /// Reports each deleted name of an image to `tell`, for ever. Reconnects with back-off; dropping the future ends it.
    pub async fn removals(&self, mut tell: impl FnMut(Removal)) -> Infallible {
        let mut attempt = 0;
        loop {
            let mut is_connected = false;
            let error = self.follow(attempt > 0, &mut is_connected, &mut tell).await;
            attempt = if is_connected { 1 } else { attempt + 1 };
            tracing::debug!(
                "lost the event stream of containerd: {}",
                sanitize(error.message())
            );
            sleep(backoff::wait(FailureKind::Other, attempt, None)).await;
        }
    }

    /// Reports deletions until the stream ends. `is_again` if events may have been lost before it.
    async fn follow(
        &self,
        is_again: bool,
        is_connected: &mut bool,
        tell: &mut impl FnMut(Removal),
    ) -> Status {
        let mut events = EventsClient::new(self.client.channel.clone());
        let filters = vec![format!("topic==\"{DELETED}\",namespace=={NAMESPACE}")];
        let subscribed = events.subscribe(request(SubscribeRequest { filters }));
        tokio::pin!(subscribed);
        let mut stream = tokio::select! {
            subscribed = &mut subscribed => match subscribed {
                Ok(stream) => stream.into_inner(),
                Err(status) => return status,
            },
            () = self.settled() => {
                *is_connected = true;
                if is_again {
                    tell(Removal::Unknown);
                }
                match subscribed.await {
                    Ok(stream) => stream.into_inner(),
                    Err(status) => return status,
                }
            }
        };
        if !std::mem::replace(is_connected, true) && is_again {
            tell(Removal::Unknown);
        }
        loop {
            match stream.message().await {
                Ok(Some(event)) => {
                    if let Some(name) = deleted(&event) {
                        tell(Removal::Name(name));
                    }
                }
                Ok(None) => return Status::unavailable("the stream was closed"),
                Err(status) => return status,
            }
        }
    }

    /// Resolves once containerd answers, a little later, when it has subscribed too; never if it does not answer.
    async fn settled(&self) {
        let mut introspection = self.client.introspection();
        match answer(introspection.server(request(())), "server").await {
            Ok(_) => sleep(SETTLED).await,
            Err(_) => std::future::pending().await,
        }
    }
}

fn deleted(event: &Envelope) -> Option<String> {
    if event.topic != DELETED || event.namespace != NAMESPACE {
        return None;
    }
    let event = ImageDelete::decode(&*event.event.as_ref()?.value).ok()?;
    Some(event.name)
}
