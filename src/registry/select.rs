//! Selects the manifest of an index for a platform, and resolves a reference to it.

use std::collections::HashSet;

use super::manifest::{Content, Descriptor, ImageManifest, Index, Manifest};
use super::{Access, Client, Error};
use crate::model::digest::Digest;
use crate::model::platform::Platform;
use crate::model::text::excerpt;

const SHOWN_MAX: usize = 20;
/// Rank after every platform that is named and matches.
const UNNAMED: u32 = 1000;
/// Maximum depth of nested indexes; they are rare, and deeper ones are unknown.
pub(crate) const INDEX_DEPTH_MAX: usize = 3;

/// The manifest that a reference resolves to on one platform.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The digest of the reference: that of the index, if the image is for several platforms.
    pub source: Digest,
    /// The platform's manifest.
    pub manifest: Manifest,
    /// Its parsed content.
    pub image: ImageManifest,
    /// The platform of the image, if an index names it.
    pub platform: Option<Platform>,
}

impl Client {
    /// Finds the manifest of the reference for this platform.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Platform`] if an index has none.
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
            let entry = entry(&index, wanted, &access.image.to_string())?;
            platform = entry.platform.clone().or(platform);
            manifest = self.manifest(access, Some(&entry.digest)).await?;
        }
        Err(Error::Manifest {
            reason: format!("indexes nested more than {INDEX_DEPTH_MAX} deep"),
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

/// The best matching entry of an image's index; of equal ones the first. Entries without a platform come last.
///
/// # Errors
/// [`Error::Platform`] if there is none.
pub(crate) fn entry<'a>(
    index: &'a Index,
    wanted: &Platform,
    image: &str,
) -> Result<&'a Descriptor, Error> {
    let ranked = index.manifests.iter().filter_map(|entry| {
        let rank = match &entry.platform {
            Some(platform) => rank(platform, wanted)?,
            None => UNNAMED,
        };
        Some((rank, entry))
    });
    let best = ranked.min_by_key(|(rank, _)| *rank);
    best.map(|(_, entry)| entry).ok_or_else(|| Error::Platform {
        image: image.to_owned(),
        wanted: wanted.to_string(),
        available: available(index),
    })
}

/// Rank of an image made for `made_for` on `wanted`, 0 being the best; `None` if it does not run there. The rules and their order
/// are containerd's (`platforms.Only`): the machine's own variant, then the lower ones, then others that its processors run.
pub(crate) fn rank(made_for: &Platform, wanted: &Platform) -> Option<u32> {
    let made_for = Normal::of(made_for);
    let compatible = Normal::of(wanted).compatible();
    let at = compatible
        .iter()
        .position(|platform| *platform == made_for)?;
    u32::try_from(at).ok()
}

/// Returns whether an image without an index runs on a machine of platform `wanted`. Its configuration may lack a variant.
pub(crate) fn runs(made_for: &Platform, wanted: &Platform) -> bool {
    rank(made_for, wanted).is_some() || made_for.suits(wanted)
}

/// A platform in containerd's normalised form.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Normal {
    os: String,
    architecture: String,
    variant: String,
}

impl Normal {
    fn of(platform: &Platform) -> Self {
        let variant = platform.variant.as_deref().unwrap_or_default();
        let variant = variant.to_ascii_lowercase();
        let architecture = platform.architecture.to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("386" | "i386", _) => ("386", ""),
            ("amd64" | "x86_64" | "x86-64", "v1") => ("amd64", ""),
            ("amd64" | "x86_64" | "x86-64", other) => ("amd64", other),
            ("arm64" | "aarch64", "8" | "v8") => ("arm64", ""),
            ("arm64" | "aarch64", other) => ("arm64", other),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            (architecture, variant) => (architecture, variant),
        };
        Self {
            os: platform.os.to_ascii_lowercase(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// Platforms that a machine of this platform runs, the best first.
    fn compatible(self) -> Vec<Self> {
        let mut found = vec![self.clone()];
        let mut add = |architecture: &str, variant: String| {
            found.push(Self {
                os: self.os.clone(),
                architecture: architecture.to_owned(),
                variant,
            });
        };
        match self.architecture.as_str() {
            "amd64" => {
                for level in (2..numbers(&self.variant).0).rev() {
                    add("amd64", format!("v{level}"));
                }
                if numbers(&self.variant).0 > 1 {
                    add("amd64", String::new());
                }
                add("386", String::new());
            }
            "arm64" => {
                for variant in below_arm64(&self.variant) {
                    add("arm64", variant);
                }
                for level in (5..=8).rev() {
                    add("arm", format!("v{level}"));
                }
            }
            "arm" => {
                for level in (5..numbers(&self.variant).0).rev() {
                    add("arm", format!("v{level}"));
                }
            }
            _ => {}
        }
        found
    }
}

/// The variants of arm64 below this one. v9.n includes v8.(n + 5).
fn below_arm64(variant: &str) -> Vec<String> {
    let spelt = |major: u8, minor: u8| match (major, minor) {
        (8, 0) => String::new(),
        (major, 0) => format!("v{major}"),
        (major, minor) => format!("v{major}.{minor}"),
    };
    let below = |major: u8, minor: u8| (0..minor).rev().map(move |m| spelt(major, m));
    match numbers(variant) {
        (9, minor) => {
            let v8 = minor.min(9) + 5;
            let v9 = below(9, minor);
            v9.chain([spelt(8, v8)]).chain(below(8, v8)).collect()
        }
        (8, minor) => below(8, minor).collect(),
        _ => Vec::new(),
    }
}

/// The numbers of a variant such as `v7` or `v8.2`; zero without one.
fn numbers(variant: &str) -> (u8, u8) {
    let text = variant.strip_prefix('v').unwrap_or(variant);
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    let number = |text: &str| text.parse().ok().filter(|n| *n < 100);
    number(major).zip(number(minor)).unwrap_or((0, 0))
}

/// The available platforms, for a message, without attestations, which are `unknown/unknown`.
pub(crate) fn available(index: &Index) -> String {
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

/// A platform from a registry, safe to show.
pub(crate) fn shown(platform: &Platform) -> String {
    let name = platform.to_string();
    excerpt(&name.chars().take(64).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut words = text.split('/').map(str::to_owned);
        Platform {
            os: words.next().unwrap(),
            architecture: words.next().unwrap(),
            variant: words.next(),
        }
    }

    #[test]
    fn platforms_rank_like_containerd() {
        for (wanted, best_first, never) in [
            (
                "linux/amd64",
                &["linux/amd64", "linux/386"][..],
                &["linux/amd64/v2", "linux/arm64", "windows/386", "linux/arm"][..],
            ),
            (
                "linux/amd64/v3",
                &[
                    "linux/amd64/v3",
                    "linux/amd64/v2",
                    "linux/x86_64/v1",
                    "linux/i386",
                ],
                &["linux/amd64/v4"],
            ),
            (
                "linux/arm64",
                &[
                    "linux/arm64/v8",
                    "linux/arm/v8",
                    "linux/armhf",
                    "linux/armel",
                    "linux/arm/5",
                ],
                &[
                    "linux/arm64/v9",
                    "linux/arm64/v8.1",
                    "linux/arm/v9",
                    "linux/amd64",
                ],
            ),
            (
                "linux/arm64/v8.2",
                &[
                    "linux/arm64/v8.2",
                    "linux/arm64/v8.1",
                    "linux/aarch64",
                    "linux/arm",
                ],
                &["linux/arm64/v8.3", "linux/arm64/v9"],
            ),
            (
                "linux/arm64/v9.1",
                &[
                    "linux/arm64/v9.1",
                    "linux/arm64/v9",
                    "linux/arm64/v8.6",
                    "linux/arm64/v8.1",
                    "linux/arm64",
                    "linux/arm/v6",
                ],
                &["linux/arm64/v8.7", "linux/arm64/v9.2"],
            ),
            (
                "linux/arm/v7",
                &["linux/arm", "linux/arm/v6", "linux/arm/v5"],
                &["linux/arm/v8", "linux/arm64"],
            ),
            (
                "linux/arm/v6",
                &["linux/arm/v6", "linux/arm/v5"],
                &["linux/arm"],
            ),
            ("linux/386", &["linux/386"], &["linux/amd64"]),
            ("linux/s390x", &["linux/s390x"], &["linux/ppc64le"]),
        ] {
            let rank_of = |text: &&str| rank(&platform(text), &platform(wanted));
            let ranks: Vec<_> = best_first.iter().map(rank_of).collect();
            assert!(ranks.iter().all(Option::is_some), "{wanted}: {ranks:?}");
            assert!(ranks.is_sorted_by(|a, b| a < b), "{wanted}: {ranks:?}");
            assert_eq!(ranks[0], Some(0), "{wanted}");
            let ranks: Vec<_> = never.iter().map(rank_of).collect();
            assert!(ranks.iter().all(Option::is_none), "{wanted}: {ranks:?}");
        }
    }
}
