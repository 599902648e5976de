//! Looks many references up in one list of all that a runtime has. No I/O.
//!
//! A reference is there only if a name in the list has the same normalised form: a tag among the tags, a digest among the
//! digests. What the list does not settle is left to be asked of the runtime by itself.

use std::collections::HashMap;

use crate::image::Reference;

/// For fewer references than this a question each is cheaper than the list of a node that has many images.
pub(super) const FEW: usize = 4;

/// The images of a list, by the normalised form of each of their names.
#[derive(Debug)]
pub(super) struct Listed<T> {
    images: Vec<T>,
    names: HashMap<String, usize>,
}

impl<T> Listed<T> {
    /// `names` gives the tags and digests of one image as the runtime writes them; what is no reference, such as
    /// `<none>:<none>`, names nothing.
    pub(super) fn new<'a>(images: Vec<T>, names: impl Fn(&T) -> Vec<String>) -> Self {
        let mut by_name = HashMap::new();
        for (index, image) in images.iter().enumerate() {
            let names = names(image);
            let references = names.iter().filter_map(|name| Reference::parse(name).ok());
            for reference in references {
                by_name.entry(reference.normalized()).or_insert(index);
            }
        }
        Self {
            images,
            names: by_name,
        }
    }

    /// The image of this reference.
    pub(super) fn get(&self, image: &Reference) -> Option<&T> {
        let index = self.names.get(&image.normalized())?;
        self.images.get(*index)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_whole_and_normalised() {
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
