//! Reads one object by its name, whole but with limited size, with the same retries as for a list.

use std::time::Duration;

use http_body_util::BodyExt;
use kube::client::Body;
use tokio::time::timeout;

use super::error::{ListError, TransportError};
use crate::kube_api::connect::Cluster;
use crate::kube_api::request::{self, ListFault, PageFault};

/// Maximum size of an object in bytes: etcd's own limit.
const MAX_OBJECT_BYTES: usize = 3 << 19;

/// The reason why an object was not read.
pub(crate) enum GetFault {
    Unauthorized,
    Forbidden,
    NotFound,
    TooLarge,
    Failed(ListError),
}

/// The bytes of the object at `path`.
pub(crate) async fn object(cluster: &Cluster, path: &str) -> Result<Vec<u8>, GetFault> {
    let read = request::retrying(cluster, path, async || {
        let response = request::send(cluster, path).await?;
        let read = read(cluster.patience.idle, response.into_body()).await;
        read.map_err(|error| PageFault::Passing(error, None))
    });
    match read.await {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(GetFault::TooLarge),
        Err(PageFault::Passing(error, _)) => Err(GetFault::Failed(error)),
        // An object that has gone is treated like one that never existed.
        Err(PageFault::Gone(_) | PageFault::Final(ListFault::NotFound)) => Err(GetFault::NotFound),
        Err(PageFault::Final(ListFault::Unauthorized(_))) => Err(GetFault::Unauthorized),
        Err(PageFault::Final(ListFault::Forbidden)) => Err(GetFault::Forbidden),
        Err(PageFault::Final(ListFault::Failed(error))) => Err(GetFault::Failed(error)),
    }
}

/// The whole body; `None` if it is too large.
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
