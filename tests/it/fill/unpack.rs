//! Trees that the unpacker makes of layers, compared with those that containerd makes.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use harpoon::fill::unpack::{Budget, Dir, Layer, Limits, Position, UnpackError, mend, unpack};
use harpoon::registry::digest::sha256;

use crate::bed::{self, containerd, unique};

mod hostile;
pub(crate) mod images;
pub(crate) mod random;
pub(crate) mod tar;
pub(crate) mod tree;

use tar::gzip;
use tree::{differences, tree};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
const BUDGET: u64 = 1 << 30;

/// A layer's bytes.
#[derive(Debug, Clone)]
pub struct Blob {
    media_type: &'static str,
    bytes: Vec<u8>,
    archive: Vec<u8>,
}

impl Blob {
    pub(crate) fn gzip(archive: Vec<u8>) -> Self {
        Self {
            media_type: GZIP,
            bytes: gzip(&archive),
            archive,
        }
    }

    /// `sha256:...` of what is transferred.
    pub(crate) fn digest(&self) -> String {
        sha256(&self.bytes).to_string()
    }

    /// Cuts what is transferred.
    pub(crate) fn truncate(&mut self, bytes: usize) {
        self.bytes.truncate(bytes);
    }

    /// The same with a diff ID that is not its own.
    pub(crate) fn with_wrong_diff_id(mut self) -> Self {
        self.archive.push(0);
        self
    }
}

/// Pushes an image of these layers to the shared registry; returns its reference.
pub(crate) fn push(blobs: &[Blob], repository: &str) -> String {
    let reference = bed::registry().reference(&format!("{repository}:1"));
    let directory = bed::directory();
    let path = directory.path().join("image.tar");
    layout(blobs, &reference, &path);
    let copy = "--insecure-policy copy --quiet --preserve-digests --dest-tls-verify=false";
    let mut skopeo = Command::new("skopeo");
    skopeo.args(copy.split(' '));
    skopeo.arg(format!("oci-archive:{}", path.display()));
    bed::run(skopeo.arg(format!("docker://{reference}")));
    reference
}

/// Unpacks layers as a fill does: each on its own, then mended from the bottom up.
struct Ours {
    top: tempfile::TempDir,
    layers: Vec<Result<(), UnpackError>>,
}

impl Ours {
    fn path(&self, layer: usize) -> PathBuf {
        self.top.path().join(layer.to_string())
    }

    /// `others` has directories of layers that cannot be unpacked, by number.
    fn new(blobs: &[Blob], others: &[PathBuf]) -> Self {
        let top = bed::directory();
        let mut ours = Self {
            top,
            layers: Vec::new(),
        };
        let unpacked: Vec<_> = blobs
            .iter()
            .enumerate()
            .map(|(n, blob)| unpack_blob(blob, &ours.path(n), n == 0))
            .collect();
        let mut below: Vec<PathBuf> = Vec::new();
        for (n, unpacked) in unpacked.into_iter().enumerate() {
            let mended = unpacked.and_then(|unpacked| {
                let below: Vec<_> = below.iter().rev().map(|b| open(b)).collect();
                mend(&unpacked, &open(&ours.path(n)), &below)
            });
            below.push(match &mended {
                Err(error) if error.needs_diff_service() && n < others.len() => others[n].clone(),
                _ => ours.path(n),
            });
            ours.layers.push(mended);
        }
        ours
    }
}

fn open(path: &Path) -> Dir {
    Dir::open(path).unwrap()
}

fn unpack_blob(
    blob: &Blob,
    path: &Path,
    is_bottom: bool,
) -> Result<harpoon::fill::unpack::Unpacked, UnpackError> {
    fs::DirBuilder::new().mode(0o755).create(path).unwrap();
    let (budget, cancelled) = (Budget::new(BUDGET), AtomicBool::new(false));
    let layer = Layer {
        media_type: blob.media_type,
        digest: Some(&sha256(&blob.bytes)),
        diff_id: &sha256(&blob.archive),
        position: if is_bottom {
            Position::Bottom
        } else {
            Position::Above
        },
    };
    let limits = Limits::new(&budget, &cancelled);
    unpack(blob.bytes.as_slice(), &layer, &open(path), &limits)
}

/// An image's layers as containerd unpacks them.
struct Theirs {
    /// The directories of the layers, from the bottom; or containerd's error.
    layers: Result<Vec<PathBuf>, String>,
}

fn layout(blobs: &[Blob], name: &str, path: &Path) -> String {
    let mut archive = ::tar::Builder::new(fs::File::create(path).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).unwrap();
    };
    let mut blob = |media_type: &str, bytes: &[u8]| {
        let digest = sha256(bytes);
        add(&format!("blobs/sha256/{}", digest.hex()), bytes);
        json!({"mediaType": media_type, "digest": digest.as_str(), "size": bytes.len()})
    };
    let diff_ids: Vec<_> = blobs.iter().map(|b| sha256(&b.archive)).collect();
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    let ids: Vec<_> = diff_ids.iter().map(|id| id.as_str()).collect();
    let config = json!({"architecture": architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": ids}});
    let config = blob(
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    let layers: Vec<Value> = blobs.iter().map(|b| blob(b.media_type, &b.bytes)).collect();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
    let mut manifest = blob(media_type, manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"io.containerd.image.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    add("index.json", index.to_string().as_bytes());
    add("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#);
    archive.finish().unwrap();
    let mut chain = String::new();
    for id in diff_ids {
        chain = if chain.is_empty() {
            id.to_string()
        } else {
            sha256(format!("{chain} {id}").as_bytes()).to_string()
        };
    }
    chain
}

/// The result of containerd's client, whether it succeeds or not.
fn ctr(arguments: &[&str]) -> Result<String, String> {
    let arguments: Vec<_> = arguments.iter().map(|a| (*a).to_owned()).collect();
    std::panic::catch_unwind(move || {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        containerd().ctr(&arguments)
    })
    .map_err(|panic| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(_) => "?".to_owned(),
    })
}

impl Theirs {
    fn new(blobs: &[Blob]) -> Self {
        let name = format!("registry.example/{}:1", unique("unpack"));
        let directory = bed::directory();
        let path = directory.path().join("image.tar");
        let chain = layout(blobs, &name, &path);
        let imported = ctr(&["images", "import", path.to_str().unwrap()]);
        // The image stays: to remove one collects what another test's import is about to use.
        let layers = imported.map(|_| {
            // Not a view, which a collection that another test causes may remove.
            let key = unique("mounted");
            containerd().ctr(&["snapshots", "prepare", &key, &chain]);
            let mounts = containerd().ctr(&["snapshots", "mounts", "/nowhere", &key]);
            containerd().ctr(&["snapshots", "remove", &key]);
            directories(&mounts)
        });
        Self { layers }
    }
}

/// The directories of a mount command, from the bottom.
fn directories(mounts: &str) -> Vec<PathBuf> {
    let after = |text: &str| mounts.split_once(text).map(|(_, rest)| rest.to_owned());
    match after("lowerdir=") {
        Some(rest) => {
            let end = rest
                .find(|c: char| c == ',' || c.is_whitespace())
                .unwrap_or(rest.len());
            rest[..end].split(':').rev().map(PathBuf::from).collect()
        }
        None => {
            let rest = after("bind ").unwrap();
            vec![PathBuf::from(rest.split_whitespace().next().unwrap())]
        }
    }
}

/// The merged tree of layers, as a container sees it.
fn merged(layers: &[PathBuf], start: i64) -> tree::Tree {
    if let [layer] = layers {
        return tree(layer, start);
    }
    let point = bed::directory();
    fs::set_permissions(point.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let lower: Vec<_> = layers.iter().rev().map(|l| l.to_str().unwrap()).collect();
    let options = format!("lowerdir={}", lower.join(":"));
    let mount = Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(point.path())
        .output()
        .unwrap();
    assert!(mount.status.success(), "{mount:?}");
    let tree = std::panic::catch_unwind(|| tree(point.path(), start));
    // Lazily: another test may just start a program, which has the mount until it runs.
    bed::run(Command::new("umount").arg("--lazy").arg(point.path()));
    tree.unwrap()
}

/// The time at which the first image was unpacked, in seconds. Images share layers.
pub(crate) fn start() -> i64 {
    static START: OnceLock<i64> = OnceLock::new();
    *START.get_or_init(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        i64::try_from(since.as_secs()).unwrap()
    })
}

/// The results of an image on both sides.
#[derive(Debug, PartialEq, Clone, Copy)]
enum Outcome {
    /// Both trees are the same.
    Same,
    /// Some layer is left to containerd's Diff service; the others are the same.
    LeftToDiff,
    /// containerd refuses the image, and so do we.
    Refused,
}

/// Unpacks an image on both sides and compares. A difference is an error.
fn compare(blobs: &[Blob]) -> Result<Outcome, String> {
    let start = start();
    let theirs = Theirs::new(blobs);
    let directories = match &theirs.layers {
        Ok(directories) => directories.clone(),
        Err(error) => {
            let ours = Ours::new(blobs, &[]);
            let is_refused = ours.layers.iter().any(Result::is_err);
            let error = format!("containerd refuses it, we do not: {error}");
            return is_refused.then_some(Outcome::Refused).ok_or(error);
        }
    };
    let ours = Ours::new(blobs, &directories);
    let mut paths = Vec::new();
    let mut is_left = false;
    for (n, (layer, theirs)) in ours.layers.iter().zip(&directories).enumerate() {
        match layer {
            Ok(()) => {
                let different = differences(&tree(&ours.path(n), start), &tree(theirs, start));
                if !different.is_empty() {
                    return Err(format!("layer {n}: {}", different.join("\n")));
                }
                paths.push(ours.path(n));
            }
            Err(error) if error.needs_diff_service() => {
                is_left = true;
                paths.push(theirs.clone());
            }
            Err(error) => return Err(format!("layer {n}: {error}")),
        }
    }
    let different = differences(&merged(&paths, start), &merged(&directories, start));
    if !different.is_empty() {
        return Err(format!("merged: {}", different.join("\n")));
    }
    Ok(if is_left {
        Outcome::LeftToDiff
    } else {
        Outcome::Same
    })
}
