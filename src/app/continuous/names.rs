//! Names and hashes on which the agent and the controller have to agree. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::v1alpha1::Placement;
use crate::registry::digest::sha256;

/// The owner of the fields that an agent writes.
pub(crate) const AGENT: &str = "harpoon-agent";
/// Number of hexadecimal digits of the hash in a name: 64 bits.
const HASH_DIGITS: usize = 16;
/// Number of characters of the readable part of a name.
const READABLE: usize = 40;

/// The name of the PlannedImage of an image, such as `web-3f6c0a1d2b4e5f60`: the last part of its repository and a hash of the
/// normalised reference.
pub(crate) fn planned_image(normalized: &str) -> String {
    let repository = normalized.split('@').next().unwrap_or_default();
    let last = repository.rsplit('/').next().unwrap_or_default();
    let last = last.split(':').next().unwrap_or_default();
    let is_plain = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut name: String = last.chars().filter(is_plain).take(READABLE).collect();
    if name.is_empty() {
        name.push_str("image");
    }
    name.push('-');
    name.push_str(&hash(normalized));
    name
}

/// A PlannedImage as a revision counts it: its name, and a hash of its placements if it has any. Otherwise a node that comes to
/// need an image would count as complete until it reports that it pulls. Versions with different fields of [`Placement`] do not
/// agree about objects that have placements.
pub(crate) fn revised(name: &str, placements: &[Placement]) -> String {
    match placements {
        [] => name.to_owned(),
        _ => {
            let json = serde_json::to_string(placements).unwrap_or_default();
            format!("{name} {}", hash(&json))
        }
    }
}

/// The revision of a set of PlannedImages, each from [`revised`]: a hash of them, whatever their order.
pub(crate) fn revision<'a>(planned: impl IntoIterator<Item = &'a str>) -> String {
    let planned = BTreeSet::from_iter(planned);
    let text: Vec<&str> = planned.into_iter().collect();
    hash(&text.join("\n"))
}

/// The revision of each ImagePrefetch: of the PlannedImages that name it, each with the ImagePrefetches that it names.
pub(crate) fn revisions<'a>(
    planned: impl IntoIterator<Item = (&'a [String], &'a str)>,
) -> BTreeMap<&'a str, String> {
    let mut sets: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (prefetches, revised) in planned {
        for prefetch in prefetches {
            sets.entry(prefetch).or_default().push(revised);
        }
    }
    let revisions = sets.into_iter();
    revisions.map(|(name, set)| (name, revision(set))).collect()
}

/// A hash of a text for a name.
pub(crate) fn hash(text: &str) -> String {
    let digest = sha256(text.as_bytes());
    let hex = digest.as_str().split(':').nth(1).unwrap_or_default();
    hex.chars().take(HASH_DIGITS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dns_name::is_subdomain;

    #[test]
    fn names_are_valid_and_distinct() {
        let mut names = BTreeSet::new();
        for image in [
            "registry.example/shop/web:7",
            "registry.example/shop/web:8",
            "registry.example/shop/web@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "registry.example:5000/a__b--c.d:latest",
            &format!("registry.example/{}:1", "x".repeat(255)),
            "registry.example/-:1",
        ] {
            let name = planned_image(image);
            assert!(is_subdomain(&name) && name.len() <= 63, "{name}");
            assert!(names.insert(name));
        }
        assert!(planned_image("registry.example/shop/web:7").starts_with("web-"));
    }

    #[test]
    fn revision_ignores_order() {
        assert_eq!(revision(["a", "b"]), revision(["b", "a", "a"]));
        assert_ne!(revision(["a", "b"]), revision(["ab"]));
        assert_ne!(revision(["a"]), revision([]));
    }

    #[test]
    fn revision_changes_with_placements() {
        let os = |os: &str| Placement {
            os: os.to_owned(),
            ..Placement::default()
        };
        let all = [
            revised("a", &[]),
            revised("a", &[os("linux")]),
            revised("a", &[os("windows")]),
        ];
        assert_eq!(all[0], "a");
        assert_eq!(
            BTreeSet::from_iter(all.iter().map(|one| revision([&**one]))).len(),
            3
        );
    }
}
