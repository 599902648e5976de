//! The names that a pull through the CRI makes, and which of them may be removed again: only those that were not there
//! before, that nobody has touched since, and whose image no container uses.

use std::collections::{HashMap, HashSet};

use containerd_client::services::v1::{
    DeleteImageRequest, GetImageRequest, Image, ListContainersRequest, ListImagesRequest,
};
use tokio::time::{Duration, Instant};

use super::{Client, answer, request};
use crate::model::reference::Reference;
use crate::runtime::image_service::RuntimeError;

/// A pod that was pulling the image at the same moment has a container by then.
pub(super) const PAUSE: Duration = Duration::from_secs(10);

/// The time of a name's last change, as containerd writes it: each pull changes the names that it makes.
type Changed = Option<(i64, i32)>;

/// The names that a pull has made or changed.
#[derive(Debug)]
pub(super) struct Made {
    /// Those that were not there before.
    pub(super) pending: Option<Pending>,
    /// All of them.
    changed: HashMap<String, Changed>,
}

impl Made {
    /// Adds the names to those that wait. A name of those, which tags of one repository share, was changed by harpoon itself.
    pub(super) fn wait(self, all: &mut Vec<Pending>) {
        for (name, at) in all.iter_mut().flat_map(|pending| &mut pending.names) {
            if let Some(now) = self.changed.get(name) {
                *at = *now;
            }
        }
        all.extend(self.pending);
    }
}

/// Names that wait to be removed.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    /// The image's normalised reference.
    pub(super) image: String,
    /// The manifest or index that they name.
    digest: String,
    names: Vec<(String, Changed)>,
    /// The earliest time.
    due: Instant,
    /// They are in use, and stay.
    pub(super) is_kept: bool,
}

impl Pending {
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Has the names looked at again after a pause.
    pub(super) fn postpone(&mut self) {
        self.due = Instant::now() + PAUSE;
    }

    /// Returns whether nobody else has changed the names.
    fn is_untouched(&self, now: &HashMap<String, Image>) -> bool {
        self.names.iter().all(|(name, at)| {
            let image = now.get(name);
            image.is_none_or(|i| changed(i) == *at && target(i) == self.digest)
        })
    }
}

fn changed(image: &Image) -> Changed {
    image.updated_at.as_ref().map(|at| (at.seconds, at.nanos))
}

/// The digest of the manifest or index that a name stands for.
pub(super) fn target(image: &Image) -> &str {
    image.target.as_ref().map_or("", |target| &target.digest)
}

impl Client {
    /// The names of all images.
    pub(super) async fn names(&self) -> Result<HashMap<String, Image>, RuntimeError> {
        let mut images = self.images();
        let asked = images.list(request(ListImagesRequest::default()));
        let images = answer(asked, "image list").await?.images;
        Ok(images.into_iter().map(|i| (i.name.clone(), i)).collect())
    }

    /// The digest of the manifest or index under the image's name.
    pub(super) async fn target(&self, image: &Reference) -> Result<Option<String>, RuntimeError> {
        let mut images = self.images();
        let asked = images.get(request(GetImageRequest {
            name: image.normalized().to_owned(),
        }));
        let found = answer(asked, "image get").await?.image;
        Ok(found.map(|image| target(&image).to_owned()))
    }

    /// The names that a pull of the image has made, since `before` was there.
    pub(super) async fn made_since(
        &self,
        before: &HashSet<String>,
        image: &Reference,
        digest: &str,
    ) -> Result<Made, RuntimeError> {
        let configs = self.graph_of(digest).await?.configs(digest);
        let repository = format!("{}/{}", image.registry(), image.repository());
        let own = [
            image.normalized().to_owned(),
            format!("{repository}@{digest}"),
        ];
        let now = self.names().await?;
        let there = own.into_iter().chain(configs).filter_map(|name| {
            let at = changed(now.get(&name).filter(|i| target(i) == digest)?);
            Some((name, at))
        });
        let changed: HashMap<_, _> = there.collect();
        let new = changed.iter().filter(|(name, _)| !before.contains(*name));
        let names: Vec<_> = new.map(|(name, at)| (name.clone(), *at)).collect();
        let pending = (!names.is_empty()).then(|| Pending {
            image: image.normalized().to_owned(),
            digest: digest.to_owned(),
            names,
            due: Instant::now() + PAUSE,
            is_kept: false,
        });
        Ok(Made { pending, changed })
    }

    /// Removes the names, unless somebody has come to need them; returns whether they are gone.
    ///
    /// `all` are all that wait. What other names need too is left: the digest of the repository, and the record by which the
    /// CRI plugin knows the image's ID.
    pub(super) async fn remove(
        &self,
        pending: &Pending,
        all: &[Pending],
    ) -> Result<bool, RuntimeError> {
        let now = self.names().await?;
        if !pending.is_untouched(&now) || self.is_used(&pending.digest, &now).await? {
            return Ok(false);
        }
        let untouched = all.iter().filter(|pending| pending.is_untouched(&now));
        let ours = untouched.flat_map(|pending| &pending.names);
        let ours: HashSet<&str> = ours.map(|(name, _)| &**name).collect();
        let mut same = now.iter().filter(|(_, i)| target(i) == pending.digest);
        let has_others = same.any(|(name, _)| !ours.contains(&**name));
        for (name, _) in &pending.names {
            let is_shared = name.starts_with("sha256:") || name.contains('@');
            if let Some(image) = now.get(name).filter(|_| !(has_others && is_shared)) {
                self.delete_name(image).await?;
            }
        }
        Ok(!has_others)
    }

    /// Removes a name. containerd 2 does so only if it still is the same image's.
    async fn delete_name(&self, image: &Image) -> Result<(), RuntimeError> {
        let mut images = self.images();
        let asked = images.delete(request(DeleteImageRequest {
            name: image.name.clone(),
            target: image.target.clone(),
            ..DeleteImageRequest::default()
        }));
        let asked = async {
            match asked.await {
                Err(status) if status.code() == tonic::Code::NotFound => {
                    Ok(tonic::Response::new(()))
                }
                other => other,
            }
        };
        answer(asked, "image delete").await
    }

    /// Returns whether a container was made of the image, under any of its names.
    async fn is_used(
        &self,
        digest: &str,
        names: &HashMap<String, Image>,
    ) -> Result<bool, RuntimeError> {
        Ok(self.used(names).await?.contains(digest))
    }

    /// The digests of the images of which containers were made.
    pub(super) async fn used(
        &self,
        names: &HashMap<String, Image>,
    ) -> Result<HashSet<String>, RuntimeError> {
        let mut containers = self.containers();
        let asked = containers.list(request(ListContainersRequest::default()));
        let containers = answer(asked, "container list").await?.containers;
        let images = containers.iter().filter_map(|c| names.get(&c.image));
        Ok(images.map(|image| target(image).to_owned()).collect())
    }
}
