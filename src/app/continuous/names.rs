//! Names and hashes on which the agent and the controller have to agree. Pure.

use std::collections::BTreeSet;

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

/// The revision of a set of PlannedImages: a hash of their names, whatever their order.
pub(crate) fn revision<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names = BTreeSet::from_iter(names);
    let text: Vec<&str> = names.into_iter().collect();
    hash(&text.join("\n"))
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
}
