//! Which of an index's manifests is for a platform, and the walk there from a reference.

use std::collections::HashSet;

use super::manifest::{Content, Descriptor, ImageManifest, Index, Manifest};
use super::{Access, Client, Error};
use crate::image::{Digest, Platform};
use crate::printable::excerpt;

const SHOWN_MAX: usize = 20;
/// Behind every platform that is named and suits.
const UNNAMED: u32 = 1000;
/// Indexes within indexes are rare, two deep unheard of.
const INDEX_DEPTH_MAX: usize = 3;

/// What a reference leads to on one platform.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The digest that the reference stands for: of the index, where the image is for several platforms.
    pub source: Digest,
    /// The platform's manifest.
    pub manifest: Manifest,
    /// What that says.
    pub image: ImageManifest,
    /// What the image is made for, where an index said so.
    pub platform: Option<Platform>,
}

impl Client {
    /// Finds the manifest for this platform that the reference leads to.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Platform`] where an index has none.
    pub async fn choose(&self, access: Access<'_>, wanted: &Platform) -> Result<Chosen, Error> {
        let top = self.manifest(access, None).await?;
        let source = top.digest.clone();
        let mut manifest = top;
        let mut platform = None;
        for _ in 0..=INDEX_DEPTH_MAX {
            let index = match manifest.content()? {
                Content::Image(image) => {
                    return Ok(Chosen {
                        source,
                        manifest,
                        image,
                        platform,
                    });
                }
                Content::Index(index) => index,
            };
            let entry = entry(&index, wanted).ok_or_else(|| Error::Platform {
                image: access.image.to_string(),
                wanted: wanted.to_string(),
                available: available(&index),
            })?;
            platform = entry.platform.clone().or(platform);
            manifest = self.manifest(access, Some(&entry.digest)).await?;
        }
        Err(Error::Manifest {
            reason: format!("more than {INDEX_DEPTH_MAX} indexes within one another"),
        })
    }
}

impl ImageManifest {
    /// The configuration and the layers, each digest once.
    pub fn blobs(&self) -> Vec<Descriptor> {
        let mut seen = HashSet::new();
        std::iter::once(&self.config)
            .chain(&self.layers)
            .filter(|blob| seen.insert(&blob.digest))
            .cloned()
            .collect()
    }
}

/// The entry that suits best; among equals the first.
fn entry<'a>(index: &'a Index, wanted: &Platform) -> Option<&'a Descriptor> {
    let ranked = index.manifests.iter().filter_map(|entry| {
        let rank = match &entry.platform {
            Some(platform) => rank(platform, wanted)?,
            None => UNNAMED,
        };
        Some((rank, entry))
    });
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, entry)| entry)
}

/// How far from `wanted` an image made for `made_for` is; `None` where it does not run there. A machine runs the images of
/// its architecture's lower variants too, the next lower is the best of them.
pub(crate) fn rank(made_for: &Platform, wanted: &Platform) -> Option<u32> {
    let have = level(made_for);
    let want = level(wanted);
    if made_for.suits(wanted) {
        return Some(match (have, want) {
            (have, want) if have == want => 0,
            (_, Some(_)) => 100,
            // Nothing is known of the machine. 32-bit ARM without a variant is v7 everywhere but on the
            // oldest boards, as in containerd; elsewhere the lowest runs on all.
            (Some(have), None) if wanted.architecture == "arm" => 1 + have.abs_diff(7),
            (Some(have), None) => 1 + have,
            (None, None) => 50,
        });
    }
    let same = made_for.os == wanted.os && made_for.architecture == wanted.architecture;
    match (have, want) {
        (Some(have), Some(want)) if same && have < want => Some(want - have),
        _ => None,
    }
}

/// The number of a variant such as `v7`. What an architecture begins with goes without saying.
fn level(platform: &Platform) -> Option<u32> {
    let variant = platform.variant.as_deref()?;
    let level: u32 = variant.strip_prefix('v')?.parse().ok()?;
    match (platform.architecture.as_str(), level) {
        ("arm64", 8) | ("amd64", 1) => None,
        _ => Some(level.min(99)),
    }
}

/// The platforms that there are, for a message. Attestations, which are `unknown/unknown`, are none.
fn available(index: &Index) -> String {
    let mut names: Vec<String> = Vec::new();
    for platform in index.manifests.iter().filter_map(|m| m.platform.as_ref()) {
        let name = shown(platform);
        if platform.os != "unknown" && !names.contains(&name) {
            names.push(name);
        }
        if names.len() == SHOWN_MAX {
            names.push("…".to_owned());
            break;
        }
    }
    if names.is_empty() {
        return "no platform".to_owned();
    }
    names.join(", ")
}

/// A platform of a registry's, safe to show.
pub(crate) fn shown(platform: &Platform) -> String {
    let name = platform.to_string();
    excerpt(&name.chars().take(64).collect::<String>())
}
