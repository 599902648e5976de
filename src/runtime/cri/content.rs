//! What containerd's content store holds: the blobs as they came from the registries, and the downloads that go on.

use containerd_client::services::v1::{ListContentRequest, ListStatusesRequest};
use tonic::Status;

use super::progress::{Downloads, in_namespace};
use crate::disk::Usage;
use crate::image::Digest;

impl Downloads {
    /// The whole content store of the CRI plugin. Read as a stream, so that a node with thousands of blobs needs little memory.
    pub(super) async fn content(&self) -> Result<Usage, Status> {
        let mut content = self.client();
        let mut usage = Usage::default();
        let mut blobs = content
            .list(in_namespace(ListContentRequest::default()))
            .await?
            .into_inner();
        while let Some(page) = blobs.message().await? {
            for info in page.info {
                usage.bytes = usage.bytes.saturating_add(bytes(info.size));
                usage.blobs.extend(Digest::parse(&info.digest));
            }
        }
        let ingests = content.list_statuses(in_namespace(ListStatusesRequest::default()));
        for ingest in ingests.await?.into_inner().statuses {
            usage.bytes = usage.bytes.saturating_add(bytes(ingest.offset));
        }
        Ok(usage)
    }
}

fn bytes(told: i64) -> u64 {
    u64::try_from(told).unwrap_or(0)
}
