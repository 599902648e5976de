//! Looks up many references in one list of a runtime's images.
//!
//! A reference is present only if a name in the list has the same normalised form: a tag among the tags, a digest among the
//! digests. References that the list does not decide are looked up one by one.

use std::collections::HashMap;

use crate::model::digest::Digest;
use crate::model::reference::Reference;
use crate::model::stored_image::StoredImage;
use crate::runtime::image_service::{ImageService, Status, ask_each};

/// Number of references up to which separate requests are cheaper than the list of a node with many images.
const FEW: usize = 4;

/// A runtime that can list all its images.
pub(super) trait Lists: ImageService {
    /// An image of the list.
    type Item: Send + Sync;

    /// All images; `None` if the runtime does not return them.
    fn list(&self) -> impl Future<Output = Option<Vec<Self::Item>>> + Send;

    /// The tags and digests of one image as the runtime writes them. A text that is not a reference, such as `<none>:<none>`, is
    /// ignored.
    fn names(item: &Self::Item) -> Vec<String>;

    /// Returns whether the list decides the presence of this reference.
    fn is_told(&self, image: &Reference) -> bool;

    /// The facts in the list about an image that was looked up by this reference.
    fn stored(image: &Reference, item: &Self::Item) -> StoredImage;
}

/// Looks up each of these references in a runtime.
pub(super) async fn statuses<L: Lists>(runtime: &L, images: &[&Reference]) -> Vec<Status> {
    let list = match images.len() {
        0..=FEW => None,
        _ => runtime.list().await,
    };
    let Some(list) = list else {
        return ask_each(runtime, images).await;
    };
    let listed = Listed::new(list, L::names);
    let told = images.iter().map(|image| {
        let stored = || listed.get(image).map(|item| L::stored(image, item));
        runtime.is_told(image).then(stored)
    });
    let told: Vec<_> = told.collect();
    let untold = images.iter().zip(&told).filter(|(_, told)| told.is_none());
    let untold: Vec<_> = untold.map(|(image, _)| *image).collect();
    let mut asked = ask_each(runtime, &untold).await.into_iter();
    told.into_iter()
        .map(|told| match told {
            Some(stored) => Ok(stored),
            None => asked.next().unwrap_or(Ok(None)),
        })
        .collect()
}

/// The digests of an image in the reference's own repository, from all its `repository@digest`.
pub(super) fn known(repo_digests: &[String], image: &Reference) -> Vec<String> {
    let known = repo_digests.iter().filter_map(|text| {
        let known = Reference::parse(text).ok()?;
        known
            .is_same_repository(image)
            .then(|| known.digest().map(Digest::to_string))?
    });
    known.collect()
}

/// The images of a list, by the normalised form of each of their names.
#[derive(Debug)]
struct Listed<T> {
    images: Vec<T>,
    names: HashMap<String, usize>,
}

impl<T> Listed<T> {
    fn new(images: Vec<T>, names: impl Fn(&T) -> Vec<String>) -> Self {
        let mut by_name = HashMap::new();
        for (index, image) in images.iter().enumerate() {
            let names = names(image);
            let references = names.iter().filter_map(|name| Reference::parse(name).ok());
            for reference in references {
                by_name
                    .entry(reference.normalized().to_owned())
                    .or_insert(index);
            }
        }
        Self {
            images,
            names: by_name,
        }
    }

    /// The image for this reference.
    fn get(&self, image: &Reference) -> Option<&T> {
        let index = self.names.get(image.normalized())?;
        self.images.get(*index)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_whole_and_normalized() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let names = |image: &&[String]| image.to_vec();
        let nginx = [
            "docker.io/library/nginx:1.27".to_owned(),
            format!("docker.io/library/nginx@{digest}"),
        ];
        let other = [
            "quay.io/org/nginx:1.2".to_owned(),
            "<none>:<none>".to_owned(),
        ];
        let listed = Listed::new(vec![&nginx[..], &other[..]], names);
        let digested = format!("nginx@{digest}");
        let both = format!("nginx:1.26@{digest}");
        let elsewhere = format!("quay.io/org/nginx@{digest}");
        for (name, expected) in [
            ("nginx:1.27", Some(&nginx[..])),
            ("index.docker.io/library/nginx:1.27", Some(&nginx[..])),
            ("docker.io/nginx:1.27", Some(&nginx[..])),
            (&digested, Some(&nginx[..])),
            (&both, Some(&nginx[..])),
            ("quay.io/org/nginx:1.2", Some(&other[..])),
            ("quay.io/org/nginx", None),
            ("nginx", None),
            ("nginx:1.2", None),
            ("nginx:1", None),
            ("org/nginx:1.2", None),
            (&elsewhere, None),
        ] {
            let found = listed.get(&Reference::parse(name).unwrap());
            assert_eq!(found.copied(), expected, "{name}");
        }
    }
}
