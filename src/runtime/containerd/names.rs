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
const PAUSE: Duration = Duration::from_secs(10);

/// Names that wait to be removed.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    /// The image's normalised reference.
    pub(super) image: String,
    /// The manifest or index that they name.
    digest: String,
    /// Each with the time of its last change, as containerd writes it.
    names: Vec<(String, Option<(i64, i32)>)>,
    /// The earliest time.
    due: Instant,
}

impl Pending {
    pub(super) fn due(&self) -> Instant {
        self.due
    }
}

fn changed(image: &Image) -> Option<(i64, i32)> {
    image.updated_at.as_ref().map(|at| (at.seconds, at.nanos))
}

fn target(image: &Image) -> &str {
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

    /// The names that a pull of the image has made: those of its own that are there now and were not before.
    pub(super) async fn made_since(
        &self,
        before: &HashSet<String>,
        image: &Reference,
        digest: &str,
    ) -> Result<Option<Pending>, RuntimeError> {
        let configs = self.graph_of(digest).await?.configs(digest);
        let repository = format!("{}/{}", image.registry(), image.repository());
        let own = [
            image.normalized().to_owned(),
            format!("{repository}@{digest}"),
        ];
        let now = self.names().await?;
        let made = own.into_iter().chain(configs).filter_map(|name| {
            let at = changed(now.get(&name).filter(|i| target(i) == digest)?);
            (!before.contains(&name)).then_some((name, at))
        });
        let names: Vec<_> = made.collect();
        Ok((!names.is_empty()).then(|| Pending {
            image: image.normalized().to_owned(),
            digest: digest.to_owned(),
            names,
            due: Instant::now() + PAUSE,
        }))
    }

    /// Removes the names, unless somebody has come to need them; returns whether they are gone.
    ///
    /// `all` are all that wait: those of the same image do not need the record of its ID either.
    pub(super) async fn remove(
        &self,
        pending: &Pending,
        all: &[Pending],
    ) -> Result<bool, RuntimeError> {
        let now = self.names().await?;
        let same = pending.names.iter().all(|(name, at)| {
            let image = now.get(name);
            image.is_none_or(|i| changed(i) == *at && target(i) == pending.digest)
        });
        if !same || self.is_used(&pending.digest, &now).await? {
            return Ok(false);
        }
        let ours: HashSet<&String> = all.iter().flat_map(|p| &p.names).map(|(n, _)| n).collect();
        let others = now
            .iter()
            .any(|(name, image)| target(image) == pending.digest && !ours.contains(name));
        for (name, _) in &pending.names {
            // What is named by others too keeps the record by which the CRI plugin knows its ID.
            if others && name.starts_with("sha256:") {
                continue;
            }
            self.delete_name(name).await?;
        }
        Ok(!others)
    }

    async fn delete_name(&self, name: &str) -> Result<(), RuntimeError> {
        let mut images = self.images();
        let asked = images.delete(request(DeleteImageRequest {
            name: name.to_owned(),
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
        let mut containers = self.containers();
        let asked = containers.list(request(ListContainersRequest::default()));
        let containers = answer(asked, "container list").await?.containers;
        Ok(containers.iter().any(|container| {
            let image = names.get(&container.image);
            image.is_some_and(|image| target(image) == digest)
        }))
    }
}
