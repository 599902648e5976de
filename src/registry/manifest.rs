//! Parses and validates manifests and indexes. Pure, no I/O.
//!
//! A registry is not trusted: sizes, digests, media types and structures are checked when a text is parsed, so that other modules
//! receive only valid descriptors.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, de};

use super::Error;
use crate::model::digest::Digest;
use crate::model::platform::Platform;
use crate::model::text::excerpt;

/// An OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker's manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Media types of a configuration that registries and old tools wrote instead of the right one. Docker accepts them for an image.
const CONFIG_UNTYPED: [&str; 4] = [
    "application/octet-stream",
    "application/json",
    "text/html",
    "",
];
const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1";
/// More layers than any overlay filesystem can stack.
const LAYERS_MAX: usize = 1024;
const ENTRIES_MAX: usize = 4096;

/// A pointer to content.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Its media type.
    #[serde(default, deserialize_with = "nullable")]
    pub media_type: String,
    /// Its digest, well formed.
    #[serde(deserialize_with = "digest")]
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Other locations of the content (layers that may not be distributed). Never followed.
    #[serde(default, deserialize_with = "nullable")]
    pub urls: Vec<String>,
    /// In an index: the platform of the manifest.
    #[serde(default, deserialize_with = "platform")]
    pub platform: Option<Platform>,
}

/// A manifest or an index in a registry.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The exact bytes that the digest is computed from.
    pub bytes: Bytes,
    /// Their digest, computed here.
    pub digest: Digest,
    /// One of the four media types of this module.
    pub media_type: &'static str,
}

/// The content of a manifest, by its type.
#[derive(Debug, Clone)]
pub enum Content {
    /// An index or manifest list: manifests for several platforms.
    Index(Index),
    /// One image.
    Image(ImageManifest),
}

/// An index or manifest list.
#[derive(Debug, Clone, Deserialize)]
pub struct Index {
    /// The manifests that it refers to.
    pub manifests: Vec<Descriptor>,
}

/// An image manifest.
#[derive(Debug, Clone, Deserialize)]
pub struct ImageManifest {
    /// The image's configuration.
    pub config: Descriptor,
    /// Its layers, the lowest first. As in Go, null means none.
    #[serde(default, deserialize_with = "nullable")]
    pub layers: Vec<Descriptor>,
}

impl Manifest {
    /// Parses the registry's response; `digest` must be that of `bytes`.
    ///
    /// # Errors
    /// [`Error::Schema1`], or [`Error::Manifest`] if this is not a manifest, or could be read as more than one kind of manifest.
    pub(super) fn new(bytes: Bytes, digest: Digest, header: &str) -> Result<Self, Error> {
        let media_type = classify(&bytes, header)?;
        Ok(Self {
            bytes,
            digest,
            media_type,
        })
    }

    /// Parses the content.
    ///
    /// # Errors
    /// [`Error::Manifest`] if it is malformed.
    pub fn content(&self) -> Result<Content, Error> {
        match self.media_type {
            OCI_INDEX | DOCKER_LIST => {
                let index: Index = parse(&self.bytes)?;
                if index.manifests.len() > ENTRIES_MAX {
                    return Err(malformed(format!("more than {ENTRIES_MAX} entries")));
                }
                Ok(Content::Index(index))
            }
            _ => Ok(Content::Image(ImageManifest::parse(&self.bytes)?)),
        }
    }

    /// This image manifest in OCI's format: the same configuration, layers and other fields, with OCI's media types.
    ///
    /// # Errors
    /// [`Error::Manifest`] if it is malformed.
    pub fn to_oci(&self) -> Result<Vec<u8>, Error> {
        let mut manifest: serde_json::Value = parse(&self.bytes)?;
        rename(&mut manifest);
        // A sequence can be deserialized into a struct, too.
        let Some(object) = manifest.as_object_mut() else {
            return Err(malformed("not an object".to_owned()));
        };
        if let Some(config) = object.get_mut("config") {
            rename(config);
            name_config(config);
        }
        let layers = object.entry("layers").or_insert_with(no_layers);
        match layers.as_array_mut() {
            Some(layers) => layers.iter_mut().for_each(rename),
            None => *layers = no_layers(),
        }
        serde_json::to_vec(&manifest).map_err(|error| malformed(error.to_string()))
    }
}

impl ImageManifest {
    /// Parses an image manifest, OCI's or Docker's.
    ///
    /// # Errors
    /// [`Error::Manifest`] if it is malformed, has too many layers or is of another kind of artifact.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let manifest = Self::parse_artifact(bytes)?;
        let config = manifest.config.media_type.as_str();
        if ![OCI_CONFIG, DOCKER_CONFIG].contains(&config) && !CONFIG_UNTYPED.contains(&config) {
            return Err(malformed(format!(
                "not a container image: the configuration is {}",
                excerpt(config)
            )));
        }
        Ok(manifest)
    }

    /// Parses the manifest of an image or of any other kind of artifact.
    ///
    /// # Errors
    /// [`Error::Manifest`] if it is malformed or has too many layers.
    pub(crate) fn parse_artifact(bytes: &[u8]) -> Result<Self, Error> {
        let manifest: Self = parse(bytes)?;
        if manifest.layers.len() > LAYERS_MAX {
            return Err(malformed(format!("more than {LAYERS_MAX} layers")));
        }
        Ok(manifest)
    }
}

/// Exercises the parsing of manifests, indexes and image configurations, for fuzzing.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let _ = config_platform(data);
    let digest = super::digest::sha256(data);
    let Ok(manifest) = Manifest::new(Bytes::copy_from_slice(data), digest, "") else {
        return;
    };
    match manifest.content() {
        Ok(Content::Index(index)) => assert!(index.manifests.len() <= ENTRIES_MAX),
        Ok(Content::Image(image)) => {
            assert!(image.layers.len() <= LAYERS_MAX && image.blobs().len() <= LAYERS_MAX + 1);
            // The same image in OCI's format must have the same content. Skipping a field is laxer than reading it, so there may
            // be none.
            if let Ok(oci) = manifest.to_oci() {
                let again = ImageManifest::parse(&oci).expect("what is written is read");
                let digests = |image: &ImageManifest| {
                    let blobs = image.blobs().into_iter();
                    blobs.map(|b| (b.digest, b.size)).collect::<Vec<_>>()
                };
                assert_eq!(digests(&again), digests(&image));
            }
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.chars().any(crate::model::text::is_unsafe), "{text:?}");
        }
    }
}

/// The fields that determine the type. The type in the text is covered by the digest, so it takes precedence over the header's. A
/// text must not be readable as two types (CVE-2021-41190).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    schema_version: u64,
    media_type: Option<String>,
    manifests: Option<de::IgnoredAny>,
    config: Option<de::IgnoredAny>,
    layers: Option<de::IgnoredAny>,
    fs_layers: Option<de::IgnoredAny>,
}

fn classify(bytes: &[u8], header: &str) -> Result<&'static str, Error> {
    if header.starts_with(SCHEMA1) {
        return Err(Error::Schema1);
    }
    let shape: Shape = parse(bytes)?;
    if shape.schema_version == 1 || shape.fs_layers.is_some() {
        return Err(Error::Schema1);
    }
    let is_index = shape.manifests.is_some();
    let is_image = shape.config.is_some() || shape.layers.is_some();
    let said = shape.media_type.as_deref().unwrap_or(header);
    match (is_index, is_image) {
        (true, false) if known(said) == Some(DOCKER_LIST) => Ok(DOCKER_LIST),
        (false, true) if known(said) == Some(DOCKER_MANIFEST) => Ok(DOCKER_MANIFEST),
        (true, false) if known(said).is_none_or(|t| t == OCI_INDEX) => Ok(OCI_INDEX),
        (false, true) if known(said).is_none_or(|t| t == OCI_MANIFEST) => Ok(OCI_MANIFEST),
        (true, true) => Err(malformed("both an index and an image".to_owned())),
        (false, false) => Err(malformed(format!(
            "neither an image nor an index ({})",
            excerpt(said)
        ))),
        _ => Err(malformed(format!(
            "the content does not match its media type {said}"
        ))),
    }
}

fn known(media_type: &str) -> Option<&'static str> {
    [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST]
        .into_iter()
        .find(|known| *known == media_type)
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| malformed(excerpt(&error.to_string())))
}

fn malformed(reason: String) -> Error {
    Error::Manifest { reason }
}

/// Deserializes null as the default value, as Go does.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn digest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
    let text = String::deserialize(deserializer)?;
    Digest::parse(&text).map_err(de::Error::custom)
}

fn rename(value: &mut serde_json::Value) {
    let name = match value.get("mediaType").and_then(serde_json::Value::as_str) {
        Some(DOCKER_MANIFEST) => OCI_MANIFEST,
        Some(DOCKER_CONFIG) => OCI_CONFIG,
        Some("application/vnd.docker.image.rootfs.diff.tar") => {
            "application/vnd.oci.image.layer.v1.tar"
        }
        Some("application/vnd.docker.image.rootfs.diff.tar.gzip") => {
            "application/vnd.oci.image.layer.v1.tar+gzip"
        }
        Some("application/vnd.docker.image.rootfs.diff.tar.zstd") => {
            "application/vnd.oci.image.layer.v1.tar+zstd"
        }
        Some("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip") => {
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        }
        _ => return,
    };
    value["mediaType"] = name.into();
}

/// Sets the type of a configuration that has none of its own.
fn name_config(config: &mut serde_json::Value) {
    let Some(config) = config.as_object_mut() else {
        return;
    };
    let said = config.get("mediaType").and_then(serde_json::Value::as_str);
    if CONFIG_UNTYPED.contains(&said.unwrap_or_default()) {
        config.insert("mediaType".to_owned(), OCI_CONFIG.into());
    }
}

fn no_layers() -> serde_json::Value {
    serde_json::Value::Array(Vec::new())
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default, deserialize_with = "nullable")]
    os: String,
    #[serde(default, deserialize_with = "nullable")]
    architecture: String,
    #[serde(default, deserialize_with = "nullable")]
    variant: String,
}

fn platform<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Platform>, D::Error> {
    let raw = Option::<RawPlatform>::deserialize(deserializer)?;
    Ok(raw.and_then(RawPlatform::into_platform))
}

impl RawPlatform {
    /// The platform; `None` if it is empty, as some tools write it.
    fn into_platform(self) -> Option<Platform> {
        (!self.os.is_empty() && !self.architecture.is_empty()).then(|| Platform {
            os: self.os,
            architecture: self.architecture,
            variant: Some(self.variant).filter(|v| !v.is_empty()),
        })
    }
}

/// The platform in an image configuration; `None` if it has none.
///
/// # Errors
/// [`Error::Manifest`] if the configuration is malformed.
pub fn config_platform(config: &[u8]) -> Result<Option<Platform>, Error> {
    Ok(parse::<RawPlatform>(config)?.into_platform())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn image(config: &str, layers: &Value) -> Value {
        let digest = super::super::digest::sha256(b"");
        let config = json!({ "mediaType": config, "digest": digest.as_str(), "size": 1 });
        json!({ "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config, "layers": layers })
    }

    #[test]
    fn null_layers_are_accepted() {
        let mut missing = image(DOCKER_CONFIG, &Value::Null);
        missing.as_object_mut().unwrap().remove("layers");
        for text in [image(DOCKER_CONFIG, &Value::Null), missing] {
            let bytes = Bytes::from(text.to_string());
            let digest = super::super::digest::sha256(&bytes);
            let manifest = Manifest::new(bytes, digest, "").unwrap();
            assert!(matches!(manifest.content(), Ok(Content::Image(i)) if i.layers.is_empty()));
            let oci: Value = serde_json::from_slice(&manifest.to_oci().unwrap()).unwrap();
            assert_eq!(oci["layers"], json!([]));
        }
    }

    #[test]
    fn untyped_config_is_accepted() {
        for config in CONFIG_UNTYPED {
            let text = image(config, &json!([])).to_string();
            ImageManifest::parse(text.as_bytes()).unwrap();
            let bytes = Bytes::from(text);
            let digest = super::super::digest::sha256(&bytes);
            let oci = Manifest::new(bytes, digest, "").unwrap().to_oci().unwrap();
            let oci: Value = serde_json::from_slice(&oci).unwrap();
            assert_eq!(oci["config"]["mediaType"], OCI_CONFIG);
        }
        let chart = image("application/vnd.cncf.helm.config.v1+json", &json!([]));
        ImageManifest::parse(chart.to_string().as_bytes()).unwrap_err();
    }
}
