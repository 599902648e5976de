//! Reads one object by its name, whole but bounded, trying again where a list would be tried again.

use std::time::Duration;

use http_body_util::BodyExt;
use kube::client::Body;
use tokio::time::timeout;

use super::error::{ListError, TransportError};
use crate::kube_api::connect::Cluster;
use crate::kube_api::request::{self, ListFault, MAX_TRIES, PageFault};

/// The most bytes that an object may take; etcd's own limit.
const MAX_OBJECT_BYTES: usize = 3 << 19;

/// Why an object has not been read.
pub(crate) enum GetFault {
    Unauthorized,
    Forbidden,
    NotFound,
    TooLarge,
    Failed(ListError),
}

/// The bytes of the object at `path`.
pub(crate) async fn object(cluster: &Cluster, path: &str) -> Result<Vec<u8>, GetFault> {
    let mut tried = 0;
    loop {
        let fault = match request::send(cluster, path).await {
            Ok(response) => match read(cluster.patience.idle, response.into_body()).await {
                Ok(Some(bytes)) => return Ok(bytes),
                Ok(None) => return Err(GetFault::TooLarge),
                Err(error) => PageFault::Passing(error, None),
            },
            Err(fault) => fault,
        };
        tried += 1;
        match fault {
            PageFault::Passing(error, after) if tried < MAX_TRIES => {
                tracing::debug!(path, tried, %error, "trying an object again");
                request::pause(&cluster.patience, tried - 1, after).await;
            }
            PageFault::Passing(error, _) => return Err(GetFault::Failed(error)),
            // What has gone is no more there than what never was.
            PageFault::Gone(_) | PageFault::Final(ListFault::NotFound) => {
                return Err(GetFault::NotFound);
            }
            PageFault::Final(ListFault::Unauthorized(_)) => return Err(GetFault::Unauthorized),
            PageFault::Final(ListFault::Forbidden) => return Err(GetFault::Forbidden),
            PageFault::Final(ListFault::Failed(error)) => return Err(GetFault::Failed(error)),
        }
    }
}

/// The whole body; `None` when it is too large.
async fn read(idle: Duration, mut body: Body) -> Result<Option<Vec<u8>>, ListError> {
    let mut bytes = Vec::new();
    loop {
        match timeout(idle, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                let data = frame.data_ref().map_or(&[][..], |data| data);
                if bytes.len() + data.len() > MAX_OBJECT_BYTES {
                    return Ok(None);
                }
                bytes.extend_from_slice(data);
            }
            Ok(Some(Err(error))) => return Err(ListError::Cut(Some(TransportError(error)))),
            Ok(None) => return Ok(Some(bytes)),
            Err(_) => return Err(ListError::Stalled(idle)),
        }
    }
}
