//! Reads containerd's content store: the blobs as in the registries, and the downloads in progress.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_client::services::v1::{ListContentRequest, ListStatusesRequest};
use tonic::Status;

use super::progress::{Downloads, in_namespace};
use crate::model::digest::Digest;
use crate::model::image_size::{Usage, unpacked};

/// Maximum delay of the first count of snapshots: containerd counts every ten seconds.
const COUNT_LATE: Duration = Duration::from_secs(15);

impl Downloads {
    /// The usage of the CRI plugin's whole content store. Read as a stream, so that a node with thousands of blobs needs little
    /// memory.
    ///
    /// Includes the unpacked size of blobs that were downloaded since `counted`, the time when containerd last counted its
    /// snapshots, in nanoseconds since 1970; `None` if it has not counted any.
    pub(super) async fn content(&self, counted: Option<i64>) -> Result<Usage, Status> {
        let mut content = self.client();
        let mut usage = Usage::default();
        let late = i64::try_from(COUNT_LATE.as_nanos()).unwrap_or(0);
        let since = match counted {
            Some(counted) => counted - 1_000_000_000,
            None => now() - late,
        };
        let mut uncounted: u64 = 0;
        let mut blobs = content
            .list(in_namespace(ListContentRequest::default()))
            .await?
            .into_inner();
        while let Some(page) = blobs.message().await? {
            for info in page.info {
                usage.bytes = usage.bytes.saturating_add(bytes(info.size));
                let came = info.created_at.map_or(0, |at| {
                    at.seconds.saturating_mul(1_000_000_000) + i64::from(at.nanos)
                });
                if came >= since {
                    uncounted = uncounted.saturating_add(bytes(info.size));
                }
                usage.blobs.extend(Digest::parse(&info.digest));
            }
        }
        let ingests = content.list_statuses(in_namespace(ListStatusesRequest::default()));
        for ingest in ingests.await?.into_inner().statuses {
            usage.bytes = usage.bytes.saturating_add(bytes(ingest.offset));
        }
        usage.bytes = usage.bytes.saturating_add(unpacked(uncounted));
        Ok(usage)
    }
}

/// Nanoseconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(i64::MAX)
}

fn bytes(told: i64) -> u64 {
    u64::try_from(told).unwrap_or(0)
}
