//! Leases: what keeps content that has no name. Each has an expiry.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, Lease, ListRequest, Resource,
};
use sha2::{Digest as _, Sha256};

use super::seal::Keep;
use super::{Client, answer, request};
use crate::model::reference::Reference;
use crate::runtime::image_service::RuntimeError;

/// The image's normalised reference.
pub(super) const IMAGE: &str = "harpoon.dev/image";
/// The digest of the manifest or index.
pub(super) const DIGEST: &str = "harpoon.dev/digest";
/// Bytes of the image, compressed.
pub(super) const BYTES: &str = "harpoon.dev/bytes";
/// The number of layers whose compressed form was there when the image was sealed.
pub(super) const LAYERS: &str = "harpoon.dev/layers";
/// The mark of a lease that an agent keeps: only those go when their image leaves the plan.
pub(super) const AGENT: &str = "harpoon.dev/agent";
/// The image that is being pulled under the lease.
const PULL: &str = "harpoon.dev/pull";
/// containerd frees what a lease holds after this time.
const EXPIRE: &str = "containerd.io/gc.expire";
const PREFIX: &str = "harpoon/";
/// Lifetime of a lease for a trial.
const TRIAL: Duration = Duration::from_secs(600);

/// The beginning of the IDs of an image's leases, `harpoon/HASH`.
pub(super) fn id(image: &str) -> String {
    let hash = Sha256::digest(image.as_bytes());
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}{hex}")
}

/// The time at which a lease expires; `None` for one that does not.
pub(super) fn expires(lease: &Lease) -> Option<SystemTime> {
    humantime::parse_rfc3339(lease.labels.get(EXPIRE)?).ok()
}

/// Creation time of the lease, to order those of one image.
pub(super) fn made(lease: &Lease) -> (i64, i32, &str) {
    let at = lease.created_at.as_ref();
    at.map_or((0, 0, &lease.id), |at| (at.seconds, at.nanos, &lease.id))
}

/// The labels with that of the expiry, `lifetime` from now.
fn with_expiry(mut labels: HashMap<String, String>, lifetime: Duration) -> HashMap<String, String> {
    let now = SystemTime::now();
    let at = now.checked_add(lifetime).unwrap_or(now);
    // containerd ignores an expiry that it cannot parse, and the lease would then be for ever.
    let at = humantime::format_rfc3339_seconds(at).to_string();
    labels.insert(EXPIRE.to_owned(), at);
    labels
}

impl Client {
    /// Makes a lease for a pull of the image; returns its ID.
    pub(super) async fn lease_pull(
        &self,
        image: &Reference,
        keep: Keep,
    ) -> Result<String, RuntimeError> {
        let id = format!("{PREFIX}pull/{:016x}", fastrand::u64(..));
        let mut labels = keep.labels();
        labels.insert(PULL.to_owned(), image.normalized().to_owned());
        self.create_lease(id, with_expiry(labels, keep.pull)).await
    }

    /// The leases of an agent's pulls, each with the image's normalised reference: those in progress, and those of pulls that
    /// were interrupted.
    pub(super) async fn pull_leases_of_agent(&self) -> Result<Vec<(String, String)>, RuntimeError> {
        let mut leases = self.leases();
        let asked = leases.list(request(ListRequest {
            filters: vec![format!("labels.\"{PULL}\",labels.\"{AGENT}\"")],
        }));
        let found = answer(asked, "lease list").await?.leases.into_iter();
        let ours = found.filter(|lease| lease.id.starts_with(PREFIX));
        let with_image = ours.filter_map(|mut lease| Some((lease.id, lease.labels.remove(PULL)?)));
        Ok(with_image.collect())
    }

    /// Makes a lease for a trial that ends soon; returns its ID.
    pub(super) async fn lease_trial(&self) -> Result<String, RuntimeError> {
        let id = format!("{PREFIX}trial/{:016x}", fastrand::u64(..));
        let labels = with_expiry(HashMap::new(), TRIAL);
        self.create_lease(id, labels).await
    }

    /// Makes a lease that seals the image under the digest, with labels of its own.
    ///
    /// containerd cannot change a lease, so that each renewal is a new one: their IDs differ in the last part.
    pub(super) async fn lease_seal(
        &self,
        image: &str,
        digest: &str,
        labels: HashMap<String, String>,
        lifetime: Duration,
    ) -> Result<String, RuntimeError> {
        let mut labels = with_expiry(labels, lifetime);
        labels.insert(IMAGE.to_owned(), image.to_owned());
        labels.insert(DIGEST.to_owned(), digest.to_owned());
        let id = format!("{}/{:016x}", id(image), fastrand::u64(..));
        let id = self.create_lease(id, labels).await?;
        match self.hold(&id, "content", digest).await {
            Ok(()) => Ok(id),
            Err(error) => {
                // An empty lease holds nothing, but would be listed.
                let _ = self.delete_lease(&id, false).await;
                Err(error)
            }
        }
    }

    /// Adds a resource to a lease; one of its resources already is no error.
    pub(super) async fn hold(&self, lease: &str, kind: &str, id: &str) -> Result<(), RuntimeError> {
        let resource = Resource {
            id: id.to_owned(),
            r#type: kind.to_owned(),
        };
        let mut leases = self.leases();
        let added = leases.add_resource(request(AddResourceRequest {
            id: lease.to_owned(),
            resource: Some(resource),
        }));
        answer(added, "lease resource").await
    }

    async fn create_lease(
        &self,
        id: String,
        labels: HashMap<String, String>,
    ) -> Result<String, RuntimeError> {
        let mut leases = self.leases();
        let created = leases.create(request(CreateRequest {
            id: id.clone(),
            labels,
        }));
        answer(created, "lease create").await?;
        Ok(id)
    }

    /// Deletes a lease; `sync` waits until containerd has freed what nothing else holds. One that is gone already is no error.
    pub(super) async fn delete_lease(&self, id: &str, sync: bool) -> Result<(), RuntimeError> {
        let mut leases = self.leases();
        let asked = leases.delete(request(DeleteRequest {
            id: id.to_owned(),
            sync,
        }));
        let asked = async {
            match asked.await {
                Err(status) if status.code() == tonic::Code::NotFound => {
                    Ok(tonic::Response::new(()))
                }
                other => other,
            }
        };
        answer(asked, "lease delete").await
    }

    /// The leases that seal images and have not expired, oldest first.
    pub(super) async fn seal_leases(&self) -> Result<Vec<Lease>, RuntimeError> {
        let mut leases = self.leases();
        let asked = leases.list(request(ListRequest {
            filters: vec![format!("labels.\"{IMAGE}\"")],
        }));
        let now = SystemTime::now();
        let mut found = answer(asked, "lease list").await?.leases;
        found.retain(|lease| {
            lease.id.starts_with(PREFIX) && expires(lease).is_some_and(|expires| expires > now)
        });
        found.sort_by(|one, other| made(one).cmp(&made(other)));
        Ok(found)
    }
}
