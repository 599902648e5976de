//! Images for measurements, generated and pushed to a registry of the test bed.
//!
//! Content is derived from seeds, so that every run and every machine pulls the same bytes.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::bed::{Registry, block_on, client};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The content of a layer.
#[derive(Debug, Clone, Copy)]
pub enum Content {
    /// One incompressible file, such as a model or an archive.
    Random,
    /// A few files that compress to a third or so, as programs and text do.
    Text,
    /// The same in thousands of small files, as in a distribution or `node_modules`.
    Files,
}

/// A layer as stored in registries.
#[derive(Debug)]
pub struct Layer {
    gzip: Vec<u8>,
    digest: String,
    diff_id: String,
}

impl Layer {
    /// A layer of about this many compressed bytes.
    pub fn new(seed: &str, bytes: usize, content: Content) -> Self {
        let mut random = fastrand::Rng::with_seed(number(seed));
        let mut tar = tar::Builder::new(Vec::new());
        let (count, size) = match content {
            Content::Random => (1, bytes),
            Content::Text => (4, bytes * 2 / 4),
            Content::Files => ((bytes * 2 / 4_000).max(1), 4_000),
        };
        for n in 0..count {
            let mut header = tar::Header::new_ustar();
            header.set_size(size as u64);
            header.set_mode(0o644);
            let path = format!("{seed}/{}/{n}", n / 100);
            let data = match content {
                Content::Random => noise(&mut random, size),
                Content::Text | Content::Files => text(&mut random, size),
            };
            tar.append_data(&mut header, path, &*data).unwrap();
        }
        Self::of_tar(&tar.into_inner().unwrap(), Compression::fast())
    }

    /// A layer of so many files of similar size, a quarter of them incompressible, compressed as images usually are.
    pub fn of_files(seed: &str, count: usize, bytes: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(number(seed));
        let words: Vec<_> = (0..4_000).map(|_| word(&mut random)).collect();
        let mut tar = tar::Builder::new(Vec::new());
        for n in 0..count {
            let size = match count {
                1 => bytes,
                _ => bytes / count / 5 * random.usize(1..=9),
            };
            let mut header = tar::Header::new_ustar();
            header.set_size(size as u64);
            header.set_mode(0o644);
            let path = format!("{seed}/{}/{n}", n / 50);
            let data = mixed(&mut random, &words, size);
            tar.append_data(&mut header, path, &*data).unwrap();
        }
        Self::of_tar(&tar.into_inner().unwrap(), Compression::default())
    }

    fn of_tar(tar: &[u8], level: Compression) -> Self {
        let mut gzip = GzEncoder::new(Vec::new(), level);
        gzip.write_all(tar).unwrap();
        let gzip = gzip.finish().unwrap();
        Self {
            digest: digest(&gzip),
            diff_id: digest(tar),
            gzip,
        }
    }

    /// Compressed bytes.
    pub fn bytes(&self) -> u64 {
        self.gzip.len() as u64
    }
}

fn noise(random: &mut fastrand::Rng, size: usize) -> Vec<u8> {
    let mut data = vec![0; size];
    random.fill(&mut data);
    data
}

fn word(random: &mut fastrand::Rng) -> String {
    let length = random.usize(3..=10);
    std::iter::repeat_with(|| random.lowercase())
        .take(length)
        .collect()
}

/// Words of a small language, and noise every now and then.
fn mixed(random: &mut fastrand::Rng, words: &[String], size: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(size + 8192);
    while data.len() < size {
        match random.u8(0..4) {
            0 => data.extend(noise(random, 4096)),
            _ => (0..700).for_each(|_| {
                data.extend_from_slice(words[random.usize(..words.len())].as_bytes());
                data.push(b' ');
            }),
        }
    }
    data.truncate(size);
    data
}

/// Half of it consists of a small set of words.
fn text(random: &mut fastrand::Rng, size: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(size + 32);
    while data.len() < size {
        data.extend_from_slice(b"    let value = configuration.get(\"");
        data.extend(std::iter::repeat_with(|| random.alphanumeric() as u8).take(40));
        data.extend_from_slice(b"\");\n");
    }
    data.truncate(size);
    data
}

fn number(seed: &str) -> u64 {
    let hash = Sha256::digest(seed.as_bytes());
    u64::from_le_bytes(hash[..8].try_into().unwrap())
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// Pushes an image of these layers as `name`, such as `team/web:1`, and returns its reference.
pub fn push(registry: &Registry, name: &str, layers: &[&Layer]) -> String {
    let (repository, tag) = name.rsplit_once(':').unwrap();
    let base = format!("{}/v2/{repository}", registry.url());
    let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = json!({"architecture": architecture, "os": "linux", "config": {"Entrypoint": ["/entrypoint"], "Labels": {"name": name}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = config.to_string().into_bytes();
    for layer in layers {
        upload(&base, &layer.digest, layer.gzip.clone());
    }
    let config_digest = digest(&config);
    let describe = |kind: &str, size: usize, digest: &str| json!({"mediaType": kind, "size": size, "digest": digest});
    let described: Vec<Value> = layers
        .iter()
        .map(|layer| describe(LAYER, layer.gzip.len(), &layer.digest))
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": describe(CONFIG, config.len(), &config_digest), "layers": described});
    upload(&base, &config_digest, config);
    let request = client(None)
        .put(format!("{base}/manifests/{tag}"))
        .header("content-type", MANIFEST)
        .body(manifest.to_string());
    let status = block_on(async move { request.send().await.unwrap().status() });
    assert!(status.is_success(), "{name}: {status}");
    registry.reference(name)
}

fn upload(base: &str, digest: &str, bytes: Vec<u8>) {
    let (base, digest) = (base.to_owned(), digest.to_owned());
    block_on(async move {
        let client = client(None);
        let there = client
            .head(format!("{base}/blobs/{digest}"))
            .send()
            .await
            .unwrap();
        if there.status().is_success() {
            return;
        }
        let begun = client
            .post(format!("{base}/blobs/uploads/"))
            .send()
            .await
            .unwrap();
        let location = begun.headers()["location"].to_str().unwrap().to_owned();
        let joint = if location.contains('?') { '&' } else { '?' };
        let put = client
            .put(format!("{location}{joint}digest={digest}"))
            .header("content-type", "application/octet-stream")
            .body(bytes);
        let put = put.send().await.unwrap();
        assert!(put.status().is_success(), "{}", put.text().await.unwrap());
    });
}
