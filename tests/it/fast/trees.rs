//! Whole images, of everything that layers can contain, pulled by harpoon and by containerd: the mounted trees are equal.
//!
//! The layers are those of `fill::unpack`, which compares each layer's directory.

use super::*;
use crate::fill::unpack::tree::{Tree, differences};
use crate::fill::unpack::{images, push, random, start, tree};

/// Number of random images; `FILL_IMAGES=N` overrides it.
const IMAGES: u64 = 12;
/// Beyond those of `fill::unpack::random`; `FILL_SEED=N` overrides it.
const SEED: u64 = 5_000;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| n.parse().expect("a number"))
}

fn tree_of(containerd: &Containerd, image: &str, start: i64) -> Tree {
    mounted(containerd, image, |path| tree::tree(path, start))
}

/// The images as both pull them. Returns how many containerd refuses.
fn compare(named: &[String]) -> usize {
    let start = start();
    let (ours, theirs) = (Containerd::start(), Containerd::start());
    let all: Vec<_> = named.iter().map(String::as_str).collect();
    let pull = |containerd: &Containerd, fill: &str| {
        let harpoon = fast(containerd, &all).env("FILL", fill);
        harpoon
            .env("RETRIES", "0")
            .limit(Duration::from_secs(300))
            .run()
    };
    let (by_us, by_them) = (pull(&ours, "fast"), pull(&theirs, "runtime"));
    let (told, expected) = (by_us.json(), by_them.json());
    let mut refused = 0;
    for image in all {
        let outcome = |report| entry(report, image)["outcome"].clone();
        assert_eq!(outcome(&told), outcome(&expected), "{image}: {by_us}");
        if outcome(&expected) != "pulled" {
            refused += 1;
            continue;
        }
        let [our, their] = [&ours, &theirs].map(|c| tree_of(c, image, start));
        let different = differences(&our, &their);
        assert!(different.is_empty(), "{image}: {}", different.join("\n"));
    }
    // Which of the images that share a layer is its source depends on who came first.
    let blobs = |containerd: &Containerd| {
        let mut blobs = content(containerd);
        for labels in blobs.values_mut() {
            labels.retain(|label| !label.contains("distribution.source"));
        }
        blobs
    };
    let (our, their) = (blobs(&ours), blobs(&theirs));
    let different: Vec<_> = our
        .iter()
        .filter(|(k, v)| their.get(*k) != Some(v))
        .collect();
    assert!(different.is_empty(), "{different:?}");
    assert_eq!(our.len(), their.len());
    assert!(snapshots(&ours) == snapshots(&theirs));
    refused
}

#[test]
fn images_made_by_hand_are_equal() {
    let push = |(name, blobs): (&str, Vec<_>)| push(&blobs, &unique(name));
    let named: Vec<_> = images::all().into_iter().map(push).collect();
    assert!(named.len() >= 12);
    assert_eq!(compare(&named), 0);
}

#[test]
fn random_images_are_equal() {
    let (seed, images) = (setting("FILL_SEED", SEED), setting("FILL_IMAGES", IMAGES));
    let push = |seed| push(&random::image(seed), &unique(&format!("random-{seed}")));
    let named: Vec<_> = (seed..seed + images).map(push).collect();
    let refused = compare(&named);
    assert!(refused * 2 < named.len(), "{refused} refused");
}
