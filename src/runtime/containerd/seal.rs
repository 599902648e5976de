//! Seals: images that are on the node without a name, so that whoever may pull them has them at once, and nobody else.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_client::services::v1::{Image, Lease};
use tokio::sync::OnceCell;
use tokio::time::sleep_until;
use tonic::transport::Channel;

use super::config::Config;
use super::graph::{Graph, Whole};
use super::names::Pending;
use super::store::Store;
use super::{Client, leases, names, transfer};
use crate::credentials::secret::Credential;
use crate::model::failure::FailureKind;
use crate::model::reference::Reference;
use crate::model::stored_image::StoredImage;
use crate::model::text::sanitize;
use crate::runtime::grpc::failure;
use crate::runtime::image_service::{Progress, RuntimeError};

/// The age from which a seal is renewed, unless half of its lifetime is less. An agent renews every hour.
const RENEWED: Duration = Duration::from_secs(1800);

/// The longest time in seconds from the moment when a pull makes the image's name until the image is sealed: it is unpacked meanwhile.
const PULL: i64 = 600;

/// Lifetimes of content without a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// The lifetime of a seal.
    pub seal: Duration,
    /// The lifetime of what a pull that was killed leaves.
    pub pull: Duration,
    /// An agent keeps the leases, and releases them when the images leave its plan.
    pub by_agent: bool,
}

impl Keep {
    /// The labels of a lease, besides those of the image.
    pub(super) fn labels(self) -> HashMap<String, String> {
        let mark = self.by_agent.then_some((leases::AGENT, "true"));
        let mark = mark.into_iter();
        mark.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }
}

/// A sealed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// The image's normalised reference.
    pub image: String,
    /// The digest of the manifest or index.
    pub digest: String,
    /// Its size in bytes, compressed.
    pub bytes: Option<u64>,
    /// Time after which containerd may free it.
    pub expires: SystemTime,
    /// All is there that a pod needs.
    pub is_whole: bool,
    /// An agent keeps it.
    pub is_of_agent: bool,
}

/// The seals of one containerd.
#[derive(Debug)]
pub struct Seals {
    client: Client,
    config: OnceCell<Config>,
    /// Names that pulls through the CRI have made. Those that are not removed stay here.
    pending: Mutex<Vec<Pending>>,
}

/// Names of sealed images that are still to be removed.
#[derive(Debug, Default)]
pub struct Unsettled(Vec<Pending>);

/// The names before a pull through the CRI, which makes names. Times are in seconds of the Unix epoch.
#[derive(Debug)]
pub struct Before {
    /// With the time at which each was made.
    names: HashMap<String, i64>,
    at: i64,
}

impl Before {
    /// The names that are not of a pull by harpoon. Another harpoon that has sealed the image a moment ago made its names before that,
    /// and leaves them now, because this pull has changed them.
    fn names(self, seals: &[Lease]) -> HashSet<String> {
        let recent = self.at - names::PAUSE.as_secs().cast_signed();
        let sealed = seals.iter().map(|lease| leases::made(lease).0);
        let sealed = sealed.filter(|at| *at >= recent).min();
        let pulled = sealed.map_or(i64::MAX, |at| at - PULL);
        let names = self.names.into_iter();
        let names = names.filter(|(_, made)| *made < pulled);
        names.map(|(name, _)| name).collect()
    }
}

impl Seals {
    /// Those of the containerd at the other end.
    pub fn new(channel: Channel) -> Self {
        Self {
            client: Client { channel },
            config: OnceCell::new(),
            pending: Mutex::default(),
        }
    }

    /// The store of the same containerd.
    pub fn store(&self) -> Store {
        Store::new(self.client.clone())
    }

    /// Seals an image whose content and snapshots a lease of harpoon's holds.
    ///
    /// # Errors
    /// When something of the image is missing, or containerd fails.
    pub async fn seal_held(
        &self,
        image: &Reference,
        digest: &str,
        keep: Keep,
    ) -> Result<StoredImage, RuntimeError> {
        let whole = self.client.graph_of(digest).await?.whole(digest);
        let gone = || {
            RuntimeError::new(
                FailureKind::Other,
                "the image was removed while it was sealed",
            )
        };
        let whole = whole.ok_or_else(gone)?;
        let (stored, _) = self.seal(image, digest, &whole, keep).await?;
        Ok(stored)
    }

    /// Pulls the image without a name and seals it; `None` where that takes a pull through the CRI, to be made between
    /// [`Seals::before`] and [`Seals::adopt`].
    ///
    /// # Errors
    /// When the pull fails.
    pub async fn pull(
        &self,
        image: &Reference,
        credential: Option<&Credential>,
        keep: Keep,
        progress: &Progress,
    ) -> Result<Option<StoredImage>, RuntimeError> {
        let config = self.config.get_or_try_init(|| self.client.config()).await?;
        if !config.has_transfer || !transfer::can_send(credential) {
            return Ok(None);
        }
        let lease = self.client.lease_pull(image, keep).await?;
        let pulled = self
            .under(&lease, config, image, credential, keep, progress)
            .await;
        match &pulled {
            // What came so far need not come again with the next attempt; the lease's expiry ends that.
            Err(error) if error.is_retryable() && error.kind != FailureKind::NoSpace => {}
            Err(_) => self.give_up(&lease, true).await,
            Ok(_) => self.give_up(&lease, false).await,
        }
        match pulled {
            // A registry that only the CRI plugin's configuration leads to, which containerd 2 does not tell; or a snapshotter that
            // the Transfer service is not configured for.
            Err(error) if needs_cri(&error, config) => {
                tracing::debug!(
                    image = image.as_written(),
                    "failed to pull by the Transfer service, pulling through the CRI: {}",
                    sanitize(&error.message)
                );
                Ok(None)
            }
            other => other,
        }
    }

    async fn under(
        &self,
        lease: &str,
        config: &Config,
        image: &Reference,
        credential: Option<&Credential>,
        keep: Keep,
        progress: &Progress,
    ) -> Result<Option<StoredImage>, RuntimeError> {
        let pulled = transfer::pull(&self.client, config, image, credential, lease, progress);
        let pulled = pulled.await.map_err(|status| failure(&status, image))?;
        let digest = match pulled.digest.as_ref().or(image.digest()) {
            Some(digest) => Some(digest.to_string()),
            None => self.client.root_of(lease).await?,
        };
        let Some(digest) = digest else {
            return Ok(None);
        };
        let whole = self.client.graph_of(&digest).await?.whole(&digest);
        let is_unpacked = |whole: &Whole| {
            let by = &whole.snapshotters;
            by.is_empty() || by.contains(&config.snapshotter)
        };
        // The Transfer service unpacks only for the snapshotters of its own configuration.
        let Some(whole) = whole.filter(is_unpacked) else {
            return Ok(None);
        };
        let (stored, _) = self.seal(image, &digest, &whole, keep).await?;
        let (_, total) = progress.get();
        progress.set(total, total);
        Ok(Some(stored))
    }

    /// Puts the seal on, and takes older ones of the image off; returns the others that were there.
    async fn seal(
        &self,
        image: &Reference,
        digest: &str,
        whole: &Whole,
        keep: Keep,
    ) -> Result<(StoredImage, Vec<Lease>), RuntimeError> {
        let name = image.normalized();
        let mut labels = keep.labels();
        labels.insert(leases::BYTES.to_owned(), whole.bytes.to_string());
        labels.insert(leases::LAYERS.to_owned(), whole.layers.to_string());
        let ours = self.client.lease_seal(name, digest, labels, keep.seal);
        let ours = ours.await?;
        let others = self.take_off_older(name, &ours).await?;
        let stored = StoredImage {
            digest: Some(digest.to_owned()),
            known: vec![digest.to_owned()],
            bytes: Some(whole.bytes),
            is_sealed: true,
        };
        Ok((stored, others))
    }

    /// Deletes the image's seals that are older than this one, and returns all others. Two that seal at once so keep the newer one's.
    async fn take_off_older(&self, image: &str, ours: &str) -> Result<Vec<Lease>, RuntimeError> {
        let mut of_image = self.client.seal_leases().await?;
        of_image.retain(|lease| image_of(lease) == image);
        let newer = of_image.iter().position(|lease| lease.id == ours);
        for older in &of_image[..newer.unwrap_or(0)] {
            self.client.delete_lease(&older.id, false).await?;
        }
        of_image.retain(|lease| lease.id != ours);
        Ok(of_image)
    }

    async fn give_up(&self, lease: &str, sync: bool) {
        if let Err(error) = self.client.delete_lease(lease, sync).await {
            tracing::debug!(
                "failed to delete the lease {lease}: {}",
                sanitize(&error.message)
            );
        }
    }

    /// To be called before a pull through the CRI whose image is then sealed.
    ///
    /// # Errors
    /// When containerd does not list its images.
    pub async fn before(&self) -> Result<Before, RuntimeError> {
        let names = self.client.names().await?.into_iter();
        let made = |image: &Image| image.created_at.as_ref().map_or(0, |at| at.seconds);
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Before {
            names: names.map(|(name, image)| (name, made(&image))).collect(),
            at: since.map_or(0, |since| since.as_secs().cast_signed()),
        })
    }

    /// Seals an image that was pulled through the CRI. The names that the pull made go in [`Seals::settle`].
    ///
    /// # Errors
    /// When the image is not there any more, or containerd fails.
    pub async fn adopt(
        &self,
        before: Before,
        image: &Reference,
        keep: Keep,
    ) -> Result<StoredImage, RuntimeError> {
        let gone = || RuntimeError::new(FailureKind::Other, "the image was removed after its pull");
        let digest = self.client.target(image).await?.ok_or_else(gone)?;
        let whole = self.client.graph_of(&digest).await?.whole(&digest);
        let whole = whole.ok_or_else(gone)?;
        // One that seals it after this looks at the names after this pull has changed them, and removes them.
        let (stored, others) = self.seal(image, &digest, &whole, keep).await?;
        let before = before.names(&others);
        let made = self.client.made_since(&before, image, &digest).await?;
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        made.wait(&mut pending);
        Ok(stored)
    }

    /// Removes the names that pulls through the CRI have made, when it is safe: ten seconds after the pull, if nobody else has
    /// come to need them. Dropping the future leaves the rest of the names.
    pub async fn settle(&self) {
        let mut next = 0;
        while let Some((image, due)) = {
            let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.get(next).map(|p| (p.image.clone(), p.due()))
        } {
            sleep_until(due).await;
            let all = {
                let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
                pending.clone()
            };
            let Some(names) = all.get(next) else { return };
            let removed = self.client.remove(names, &all).await;
            if let Ok(true) = removed {
                let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
                pending.remove(next);
                continue;
            }
            match &removed {
                Err(error) => tracing::warn!(
                    image,
                    "failed to remove the name of a sealed image: {}",
                    sanitize(&error.message)
                ),
                Ok(_) => tracing::info!(image, "kept the name of a sealed image, which is in use"),
            }
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            match pending.get_mut(next) {
                Some(names) if removed.is_err() => names.postpone(),
                Some(names) => names.is_kept = true,
                None => return,
            }
            next += 1;
        }
    }

    /// The names that [`Seals::settle`] has not removed, for the seals of a later connection.
    pub fn unsettled(&self) -> Unsettled {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        Unsettled(std::mem::take(&mut *pending))
    }

    /// Takes over the names that an earlier connection to the same containerd has left.
    pub fn resume(&self, Unsettled(mut names): Unsettled) {
        names.iter_mut().for_each(Pending::postpone);
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.append(&mut names);
    }

    /// Forgets the names that [`Seals::settle`] has kept, so that a process that runs for long does not collect them. Returns
    /// whether others are left, because containerd did not answer, for example.
    pub fn forget_kept(&self) -> bool {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.retain(|names| !names.is_kept);
        !pending.is_empty()
    }

    /// The normalised references of images whose names [`Seals::settle`] has not removed.
    pub fn still_named(&self) -> HashSet<String> {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.iter().map(|names| names.image.clone()).collect()
    }

    /// All seals that have not expired, each image's newest, by the image's normalised reference.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn list(&self) -> Result<HashMap<String, Seal>, RuntimeError> {
        let leases = self.client.seal_leases().await?;
        if leases.is_empty() {
            return Ok(HashMap::new());
        }
        let graph = self.client.graph().await?;
        // The oldest come first, so that the newest stays.
        let seals = leases.iter().filter_map(|lease| seal_of(lease, &graph));
        Ok(seals.map(|seal| (seal.image.clone(), seal)).collect())
    }

    /// Renews those of the images' seals that are older than half of the lifetime, or than half an hour.
    ///
    /// # Errors
    /// With the first failure; the other seals are not renewed then.
    pub async fn renew(&self, images: &[&Reference], keep: Keep) -> Result<(), RuntimeError> {
        let wanted: HashSet<&str> = images.iter().map(|image| image.normalized()).collect();
        let mut newest = HashMap::new();
        for lease in self.client.seal_leases().await? {
            newest.insert(image_of(&lease).to_owned(), lease);
        }
        let soon = SystemTime::now() + keep.seal - RENEWED.min(keep.seal / 2);
        newest.retain(|image, lease| {
            wanted.contains(&**image) && leases::expires(lease).is_some_and(|at| at < soon)
        });
        for (image, mut lease) in newest {
            let digest = lease
                .labels
                .get(leases::DIGEST)
                .cloned()
                .unwrap_or_default();
            lease.labels.extend(keep.labels());
            let new = self
                .client
                .lease_seal(&image, &digest, lease.labels, keep.seal);
            let new = new.await?;
            self.take_off_older(&image, &new).await?;
        }
        Ok(())
    }

    /// Seals the image that its name stands for now, and leaves the name; returns whether all of it is there. A seal of what the
    /// name stood for before goes.
    ///
    /// # Errors
    /// If containerd does not answer.
    pub async fn hold(&self, image: &Reference, keep: Keep) -> Result<bool, RuntimeError> {
        let Some(digest) = self.client.target(image).await? else {
            return Ok(false);
        };
        let whole = self.client.graph_of(&digest).await?.whole(&digest);
        let Some(whole) = whole else {
            return Ok(false);
        };
        self.seal(image, &digest, &whole, keep).await?;
        Ok(true)
    }

    /// Deletes the seals that a newer one of the same image has replaced. A process that was killed in between leaves them.
    ///
    /// # Errors
    /// With the first failure; the other seals stay.
    pub async fn take_off_replaced(&self) -> Result<(), RuntimeError> {
        let leases = self.client.seal_leases().await?;
        let mut seen = HashSet::new();
        // The newest come last.
        for lease in leases.iter().rev() {
            if !seen.insert(image_of(lease)) {
                self.client.delete_lease(&lease.id, false).await?;
            }
        }
        Ok(())
    }

    /// Frees what interrupted pulls of an agent have left, of the images of which `is_over` returns true; the argument is the
    /// normalised reference. Returns the number of these pulls.
    ///
    /// # Errors
    /// With the first failure; the rest stays until it expires.
    pub async fn release_pulls(
        &self,
        is_over: impl Fn(&str) -> bool,
    ) -> Result<usize, RuntimeError> {
        let mut leases = self.client.pull_leases_of_agent().await?;
        leases.retain(|(_, image)| is_over(image));
        for (lease, _) in &leases {
            self.client.delete_lease(lease, false).await?;
        }
        Ok(leases.len())
    }

    /// Takes the seals of these images off, of all where there are none, and has containerd free what nothing else holds.
    /// Returns the normalised references.
    ///
    /// # Errors
    /// With the first failure; the other seals stay.
    pub async fn release(&self, images: Option<&[Reference]>) -> Result<Vec<String>, RuntimeError> {
        let wanted = |lease: &Lease| {
            images.is_none_or(|images| images.iter().any(|i| i.normalized() == image_of(lease)))
        };
        let mut leases = self.client.seal_leases().await?;
        leases.retain(wanted);
        let mut released: Vec<String> = Vec::new();
        for (index, lease) in leases.iter().enumerate() {
            let is_last = index + 1 == leases.len();
            self.client.delete_lease(&lease.id, is_last).await?;
            released.push(image_of(lease).to_owned());
        }
        released.sort();
        released.dedup();
        Ok(released)
    }
}

/// Returns whether the CRI plugin, with its own configuration, may succeed after this failure of the Transfer service.
fn needs_cri(error: &RuntimeError, config: &Config) -> bool {
    match error.kind {
        FailureKind::Other => true,
        FailureKind::Unavailable => !config.hosts.is_certain,
        _ => false,
    }
}

fn image_of(lease: &Lease) -> &str {
    lease.labels.get(leases::IMAGE).map_or("", String::as_str)
}

fn seal_of(lease: &Lease, graph: &Graph) -> Option<Seal> {
    let digest = lease.labels.get(leases::DIGEST)?;
    let number = |label: &str| lease.labels.get(label)?.parse::<u64>().ok();
    let whole = graph.whole(digest);
    let layers = |whole: &Whole| u64::try_from(whole.layers).unwrap_or(u64::MAX);
    let sealed = number(leases::LAYERS).unwrap_or(0);
    Some(Seal {
        image: image_of(lease).to_owned(),
        digest: digest.clone(),
        bytes: number(leases::BYTES),
        expires: leases::expires(lease)?,
        is_whole: whole.is_some_and(|whole| layers(&whole) >= sealed),
        is_of_agent: lease.labels.contains_key(leases::AGENT),
    })
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;

    #[test]
    fn names_of_simultaneous_pulls_are_harpoons() {
        let now = 1_800_000_000;
        let before = || Before {
            names: [("old", now - 3600), ("new", now - 20)]
                .map(|(name, made)| (name.to_owned(), made))
                .into(),
            at: now,
        };
        let seal = |seconds| Lease {
            created_at: Some(Timestamp { seconds, nanos: 0 }),
            ..Lease::default()
        };
        let all = HashSet::from(["old".to_owned(), "new".to_owned()]);
        assert_eq!(before().names(&[]), all);
        assert_eq!(
            before().names(&[seal(now - 60)]),
            all,
            "its name is gone or in use"
        );
        for at in [now - 5, now + 30] {
            let names = before().names(&[seal(now - 60), seal(at)]);
            assert_eq!(names, HashSet::from(["old".to_owned()]), "sealed at {at}");
        }
    }
}
