//! Pins: images that the kubelet's garbage collection leaves alone.
//!
//! containerd's CRI plugin reports an image as pinned if one of its names carries the label [`PINNED`]. harpoon marks the names
//! that it pins with a label of its own, so that a pin of anybody else, such as that of the pause image, is never removed.

use std::collections::{BTreeMap, HashMap, HashSet};

use containerd_client::services::v1::{Image, ListImagesRequest, UpdateImageRequest};
use k8s_cri::v1::{Image as CriImage, ListImagesRequest as CriListRequest};
use prost_types::FieldMask;
use tokio::time::{Duration, sleep};
use tonic::transport::Channel;
use tonic::{Code, Response};

use super::names::target;
use super::{Client, answer, request};
use crate::model::reference::Reference;
use crate::runtime::image_service::RuntimeError;

/// The label by which the CRI plugin knows a pinned image, and its value.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// harpoon's mark on the names that it pinned: the normalised reference of an image of the plan.
const MARK: &str = "harpoon.dev/pinned";
/// The CRI plugin learns of a label by an event: pauses before it is asked again, and how often it is asked.
const EVENT_PAUSE: Duration = Duration::from_millis(200);
const EVENT_CHECKS: usize = 15;

/// The pins of one containerd.
#[derive(Debug, Clone)]
pub struct Pins {
    pub(super) client: Client,
}

/// The result of [`Pins::set`].
#[derive(Debug, Clone, Default)]
pub struct PinChanges {
    /// The names that were pinned now.
    pub pinned: Vec<String>,
    /// The names that were unpinned now.
    pub unpinned: Vec<String>,
    /// The normalised references of wanted images that are not present under their names.
    pub missing: Vec<String>,
    /// The names that could not be changed.
    pub failed: Vec<(String, RuntimeError)>,
}

impl PinChanges {
    /// Returns whether the pins were as wanted.
    pub fn is_empty(&self) -> bool {
        self.pinned.is_empty() && self.unpinned.is_empty() && self.failed.is_empty()
    }
}

/// A change of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    /// Pin it, and mark it with this reference.
    Pin(String),
    /// Remove harpoon's pin and mark.
    Unpin,
    /// Remove the mark of a name whose pin somebody else removed.
    Unmark,
}

impl Change {
    /// The labels to write; an empty value removes a label.
    fn labels(&self) -> HashMap<String, String> {
        let (key, value) = PINNED;
        let labels = match self {
            Self::Pin(image) => vec![(key, value), (MARK, image)],
            Self::Unpin => vec![(key, ""), (MARK, "")],
            Self::Unmark => vec![(MARK, "")],
        };
        let labels = labels.into_iter();
        labels.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }
}

fn is_pinned(image: &Image) -> bool {
    let (key, value) = PINNED;
    image.labels.get(key).is_some_and(|found| found == value)
}

fn is_marked(image: &Image) -> bool {
    image.labels.contains_key(MARK)
}

/// The images to pin, by their manifests or indexes; and the references that have none.
fn targets<'a>(
    names: &'a HashMap<String, Image>,
    wanted: &[&'a Reference],
) -> (BTreeMap<&'a str, &'a str>, Vec<String>) {
    let (mut targets, mut missing) = (BTreeMap::new(), Vec::new());
    for image in wanted.iter().map(|image| image.normalized()) {
        match names.get(image) {
            // Of several references to one image, the first marks it.
            Some(found) => _ = targets.entry(target(found)).or_insert(image),
            None => missing.push(image.to_owned()),
        }
    }
    (targets, missing)
}

/// The change that a name needs, where the images of these targets are to be pinned.
fn change(image: &Image, targets: &BTreeMap<&str, &str>) -> Option<Change> {
    let wanted = targets.get(target(image));
    match (wanted, is_pinned(image), is_marked(image)) {
        (Some(wanted), false, _) => Some(Change::Pin((*wanted).to_owned())),
        (None, true, true) => Some(Change::Unpin),
        (None, false, true) => Some(Change::Unmark),
        (Some(_), true, _) | (None, _, false) => None,
    }
}

impl Pins {
    /// Those of the containerd at the other end.
    pub fn new(channel: Channel) -> Self {
        Self {
            client: Client { channel },
        }
    }

    /// Pins exactly these images, each under all of its names, and removes harpoon's other pins. It may be called at any time,
    /// any number of times: names that are as wanted are not changed.
    ///
    /// # Errors
    /// If containerd does not list its images, or stops answering. A single name that cannot be changed is part of the result.
    pub async fn set(&self, wanted: &[&Reference]) -> Result<PinChanges, RuntimeError> {
        let names = self.client.names().await?;
        let (targets, missing) = targets(&names, wanted);
        let mut changes = PinChanges {
            missing,
            ..PinChanges::default()
        };
        let due = names.values().filter_map(|image| {
            let change = change(image, &targets)?;
            Some((image, change))
        });
        let mut due: Vec<_> = due.collect();
        // Pins are removed first: they hold space that the node may need.
        due.sort_by_key(|(image, change)| (matches!(change, Change::Pin(_)), &image.name));
        for (image, change) in due {
            self.apply(image, &change, &mut changes).await?;
        }
        Ok(changes)
    }

    /// Removes harpoon's pins of these images, of all where there are none; returns the images' normalised references.
    ///
    /// # Errors
    /// With the first failure; the other pins stay.
    pub async fn release(&self, images: Option<&[Reference]>) -> Result<Vec<String>, RuntimeError> {
        let all = self.client.names().await?;
        let (targets, _) = match images {
            Some(images) => targets(&all, &images.iter().collect::<Vec<_>>()),
            None => Default::default(),
        };
        let named = |image: &str| {
            images
                .into_iter()
                .flatten()
                .any(|i| i.normalized() == image)
        };
        let mut released = Vec::new();
        for image in all.values().filter(|image| is_marked(image)) {
            let marked = image.labels.get(MARK).map_or("", String::as_str);
            let wanted = targets.get(target(image)).copied();
            if images.is_some() && wanted.is_none() && !named(marked) {
                continue;
            }
            let change = match is_pinned(image) {
                true => Change::Unpin,
                false => Change::Unmark,
            };
            let mut changes = PinChanges::default();
            self.apply(image, &change, &mut changes).await?;
            if let Some((_, error)) = changes.failed.pop() {
                return Err(error);
            }
            released.push(wanted.unwrap_or(marked).to_owned());
        }
        released.sort();
        released.dedup();
        Ok(released)
    }

    /// The names that harpoon has pinned, and the references of the images for which it did so.
    ///
    /// # Errors
    /// If containerd does not list its images.
    pub async fn list(&self) -> Result<BTreeMap<String, String>, RuntimeError> {
        let mut images = self.client.images();
        let asked = images.list(request(ListImagesRequest {
            filters: vec![format!("labels.\"{MARK}\"")],
        }));
        let found = answer(asked, "image list").await?.images;
        let ours = found.into_iter().filter(is_pinned).map(|mut image| {
            let reference = image.labels.remove(MARK).unwrap_or_default();
            (image.name, reference)
        });
        Ok(ours.collect())
    }

    /// The digests of the images of which containers were made.
    ///
    /// # Errors
    /// If containerd does not answer.
    pub async fn in_use(&self) -> Result<HashSet<String>, RuntimeError> {
        let names = self.client.names().await?;
        self.client.used(&names).await
    }

    /// Returns whether the CRI plugin reports harpoon's pins to the kubelet; `None` if there are none. containerd 1.6 before
    /// 1.6.25 and 1.7 before 1.7.10 ignore the label.
    ///
    /// # Errors
    /// If containerd does not answer.
    pub async fn are_honoured(&self) -> Result<Option<bool>, RuntimeError> {
        let mut honoured = None;
        for check in 0..EVENT_CHECKS {
            if check > 0 {
                sleep(EVENT_PAUSE).await;
            }
            let ours = self.list().await?;
            if ours.is_empty() {
                return Ok(None);
            }
            let mut cri = self.client.cri_images();
            let listed = cri.list_images(CriListRequest::default());
            let listed = answer(listed, "ListImages").await?.images;
            let mut listed = listed.iter().filter(|image| has_name(image, &ours));
            honoured = listed
                .next()
                .map(|first| first.pinned || listed.any(|i| i.pinned));
            if honoured == Some(true) {
                break;
            }
        }
        Ok(honoured)
    }

    /// Makes a change. A name that is gone is none.
    async fn apply(
        &self,
        image: &Image,
        change: &Change,
        changes: &mut PinChanges,
    ) -> Result<(), RuntimeError> {
        match self.client.label(image, change.labels()).await {
            Ok(true) if matches!(change, Change::Pin(_)) => changes.pinned.push(image.name.clone()),
            Ok(true) => changes.unpinned.push(image.name.clone()),
            Ok(false) => {}
            Err(error) if error.is_retryable() => return Err(error),
            Err(error) => changes.failed.push((image.name.clone(), error)),
        }
        Ok(())
    }
}

fn has_name(image: &CriImage, names: &BTreeMap<String, String>) -> bool {
    let mut own = image.repo_tags.iter().chain(&image.repo_digests);
    names.contains_key(&image.id) || own.any(|name| names.contains_key(name))
}

impl Client {
    /// Writes these labels of the image's name, and leaves its others; returns whether the name is there.
    async fn label(
        &self,
        image: &Image,
        labels: HashMap<String, String>,
    ) -> Result<bool, RuntimeError> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let mut images = self.images();
        let asked = images.update(request(UpdateImageRequest {
            image: Some(Image {
                name: image.name.clone(),
                labels,
                // The mask excludes it, but containerd 2.1 crashes if it is not set.
                target: Some(image.target.clone().unwrap_or_default()),
                ..Image::default()
            }),
            update_mask: Some(FieldMask { paths }),
            source_date_epoch: None,
        }));
        let asked = async {
            match asked.await {
                Ok(_) => Ok(Response::new(true)),
                Err(status) if status.code() == Code::NotFound => Ok(Response::new(false)),
                Err(status) => Err(status),
            }
        };
        answer(asked, "image update").await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use containerd_client::types::Descriptor;

    const PIN: &[(&str, &str)] = &[PINNED, (MARK, "registry.example/old:1")];
    const FOREIGN: &[(&str, &str)] = &[PINNED];

    fn named(name: &str, digest: &str, labels: &[(&str, &str)]) -> Image {
        let labels = labels.iter();
        Image {
            name: name.to_owned(),
            labels: labels
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            target: Some(Descriptor {
                digest: digest.to_owned(),
                ..Descriptor::default()
            }),
            ..Image::default()
        }
    }

    #[test]
    fn pins_follow_the_target() {
        let web = Reference::parse("registry.example/web:1").unwrap();
        let gone = Reference::parse("registry.example/gone:1").unwrap();
        let pin = Some(Change::Pin(web.normalized().to_owned()));
        for (name, digest, labels, expected) in [
            ("registry.example/web:1", "new", &[][..], pin.clone()),
            ("registry.example/web@new", "new", PIN, None),
            ("sha256:new", "new", FOREIGN, None),
            ("marked", "new", &PIN[1..], pin),
            // What the tag named before it moved.
            ("registry.example/web@old", "old", PIN, Some(Change::Unpin)),
            ("sha256:old", "old", &PIN[1..], Some(Change::Unmark)),
            ("registry.example/pause:3", "pause", FOREIGN, None),
            ("registry.example/other:1", "other", &[], None),
            ("odd", "other", &[(PINNED.0, "no")], None),
        ] {
            let image = named(name, digest, labels);
            let tag = named(web.normalized(), "new", &[]);
            let names = [tag, image.clone()].map(|i| (i.name.clone(), i));
            let names = HashMap::from(names);
            let (targets, missing) = targets(&names, &[&web, &gone]);
            assert_eq!(missing, [gone.normalized()]);
            assert_eq!(change(&image, &targets), expected, "{name}");
        }
    }
}
