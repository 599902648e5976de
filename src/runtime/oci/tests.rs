use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::model::failure::FailureKind;
use crate::registry::Options;
use crate::registry::manifest::{DOCKER_CONFIG, DOCKER_MANIFEST, OCI_CONFIG};
use crate::registry::standin::{Asked, Reply, Shelf, StandIn};

mod credentials;

const REPOSITORY: &str = "a/b";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What tells one layer from another is its seed.
fn layer(seed: u8, size: usize) -> Vec<u8> {
    (0..size).map(|n| (n * 31 + n / 251) as u8 ^ seed).collect()
}

fn blob(shelf: &mut Shelf, media_type: &str, content: &[u8]) -> Value {
    let digest = shelf.blob(REPOSITORY, content);
    json!({ "mediaType": media_type, "digest": digest.as_str(), "size": content.len() })
}

fn config(architecture: &str) -> Vec<u8> {
    json!({ "os": "linux", "architecture": architecture, "rootfs": { "type": "layers", "diff_ids": [] } })
        .to_string()
        .into_bytes()
}

/// Puts an OCI image on the shelf, and gives its descriptor.
fn put(shelf: &mut Shelf, tag: &str, architecture: &str, layers: &[Vec<u8>]) -> Value {
    let config = blob(shelf, OCI_CONFIG, &config(architecture));
    let layers: Vec<Value> = layers.iter().map(|l| blob(shelf, OCI_LAYER, l)).collect();
    let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers });
    shelf.manifest(REPOSITORY, tag, OCI_MANIFEST, &manifest)
}

fn amd64() -> Platform {
    Platform::parse("linux/amd64").unwrap()
}

fn client() -> Client {
    Client::with_options(&Options {
        stall_timeout: Duration::from_secs(1),
        ..Options::default()
    })
    .unwrap()
}

struct Bed {
    server: StandIn,
    dir: tempfile::TempDir,
    layout: Arc<OciLayout>,
}

impl Bed {
    async fn new(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let server = StandIn::start(answer).await;
        let dir = tempfile::tempdir().unwrap();
        let layout = OciLayout::with_client(dir.path(), amd64(), client());
        let layout = Arc::new(layout.await.unwrap());
        // Some tests put something in it before the first pull.
        layout.layout.make().await.unwrap();
        Self {
            server,
            dir,
            layout,
        }
    }

    async fn of(shelf: Shelf) -> Self {
        Self::new(move |asked| shelf.answer(asked)).await
    }

    fn image(&self, tag: &str) -> Reference {
        Reference::parse(&format!("{}/{REPOSITORY}:{tag}", self.server.host)).unwrap()
    }

    async fn pull(&self, tag: &str) -> Result<StoredImage, RuntimeError> {
        let progress = Progress::default();
        let stored = self.layout.pull(&self.image(tag), None, &progress).await?;
        let (done, total) = progress.get();
        assert_eq!(done, total);
        Ok(stored)
    }

    fn index(&self) -> Value {
        serde_json::from_slice(&fs::read(self.dir.path().join("index.json")).unwrap()).unwrap()
    }

    /// The blobs on disk, each checked against its name.
    fn blobs(&self) -> HashMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.dir.path().join("blobs/sha256")).unwrap();
        let entries = entries.map(|e| e.unwrap());
        entries
            .map(|e| {
                let content = fs::read(e.path()).unwrap();
                let name = e.file_name().into_string().unwrap();
                assert_eq!(digest::sha256(&content).hex(), name);
                (name, content)
            })
            .collect()
    }

    fn partials(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.path().join(".harpoon/partial")).unwrap();
        entries.map(|e| e.unwrap().path()).collect()
    }
}

#[tokio::test]
async fn pulled_image_is_not_fetched_again() {
    let mut shelf = Shelf::default();
    let layers = [layer(1, 300_000), layer(2, 10), layer(1, 300_000), vec![]];
    let manifest = put(&mut shelf, "1", "amd64", &layers);
    let bed = Bed::of(shelf).await;
    assert_eq!(bed.layout.status(&bed.image("1")).await.unwrap(), None);
    let stored = bed.pull("1").await.unwrap();
    assert_eq!(stored.digest.as_deref(), manifest["digest"].as_str());
    let blobs = bed.blobs();
    assert_eq!(blobs.len(), 5);
    let bytes: usize = blobs.values().map(Vec::len).sum();
    assert_eq!(stored.bytes, Some(bytes as u64));
    assert_eq!(
        bed.layout.status(&bed.image("1")).await.unwrap(),
        Some(stored.clone())
    );
    let asked = bed.server.count("/blobs/");
    assert_eq!(bed.pull("1").await.unwrap(), stored);
    assert_eq!(bed.server.count("/blobs/"), asked);
    assert_eq!(bed.partials(), Vec::<PathBuf>::new());
    let index = bed.index();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
    let annotations = &index["manifests"][0]["annotations"];
    let name = bed.image("1").normalized().to_owned();
    assert_eq!(annotations["org.opencontainers.image.ref.name"], name);
    assert_eq!(annotations["io.containerd.image.name"], name);
}

#[tokio::test]
async fn incomplete_image_is_absent_then_completed() {
    let mut shelf = Shelf::default();
    put(&mut shelf, "1", "amd64", &[layer(1, 1000), layer(2, 1000)]);
    let bed = Bed::of(shelf).await;
    bed.pull("1").await.unwrap();
    let whole = bed.blobs();
    let blobs = bed.dir.path().join("blobs/sha256");
    for name in whole.keys() {
        for damage in [&b""[..], b"short"] {
            fs::write(blobs.join(name), damage).unwrap();
            assert_eq!(bed.layout.status(&bed.image("1")).await.unwrap(), None);
        }
        fs::remove_file(blobs.join(name)).unwrap();
        assert_eq!(bed.layout.status(&bed.image("1")).await.unwrap(), None);
        bed.pull("1").await.unwrap();
        assert_eq!(bed.blobs(), whole);
    }
}

#[tokio::test]
async fn index_pull_keeps_platform_manifest() {
    let mut shelf = Shelf::default();
    let mut entries = Vec::new();
    for (n, architecture) in ["arm64", "amd64", "s390x"].iter().enumerate() {
        let tag = format!("{architecture}-only");
        let mut entry = put(&mut shelf, &tag, architecture, &[layer(n as u8, 100)]);
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entries.push(entry);
    }
    let mut attestation = put(&mut shelf, "attestation", "unknown", &[layer(9, 100)]);
    attestation["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    let index = shelf.index(
        REPOSITORY,
        "1",
        &[attestation.clone(), entries[0].clone(), entries[1].clone()],
    );
    shelf.index(REPOSITORY, "nested", std::slice::from_ref(&index));
    shelf.index(
        REPOSITORY,
        "others",
        &[attestation, entries[0].clone(), entries[2].clone()],
    );
    let bed = Bed::of(shelf).await;
    let stored = bed.pull("1").await.unwrap();
    assert_eq!(stored.digest.as_deref(), index["digest"].as_str());
    assert_eq!(bed.index()["manifests"][0]["digest"], entries[1]["digest"]);
    assert_eq!(
        bed.index()["manifests"][0]["platform"]["architecture"],
        "amd64"
    );
    assert_eq!(
        bed.layout.status(&bed.image("1")).await.unwrap(),
        Some(stored)
    );
    bed.pull("nested").await.unwrap();

    let error = bed.pull("others").await.unwrap_err();
    assert_eq!(error.kind, FailureKind::PlatformMismatch);
    assert!(
        error.message.ends_with("only for linux/arm64, linux/s390x"),
        "{error}"
    );
    let error = bed.pull("arm64-only").await.unwrap_err();
    assert_eq!(error.kind, FailureKind::PlatformMismatch);
    assert!(error.message.ends_with("only for linux/arm64"), "{error}");

    // What is here for one platform is not here for another.
    let arm = Platform::parse("linux/arm64").unwrap();
    let arm = OciLayout::with_client(bed.dir.path(), arm, client())
        .await
        .unwrap();
    assert_eq!(arm.status(&bed.image("1")).await.unwrap(), None);
}

#[tokio::test]
async fn docker_manifest_is_converted_to_oci() {
    let mut shelf = Shelf::default();
    let config = blob(&mut shelf, DOCKER_CONFIG, &config("amd64"));
    let gzip = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let layer = blob(&mut shelf, gzip, &layer(1, 100));
    let manifest = json!({ "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config, "layers": [layer] });
    let docker = shelf.manifest(REPOSITORY, "1", DOCKER_MANIFEST, &manifest);
    let bed = Bed::of(shelf).await;
    let stored = bed.pull("1").await.unwrap();
    assert_eq!(stored.digest.as_deref(), docker["digest"].as_str());
    assert_eq!(
        bed.layout.status(&bed.image("1")).await.unwrap(),
        Some(stored)
    );
    let entry = &bed.index()["manifests"][0];
    assert_eq!(entry["mediaType"], OCI_MANIFEST);
    let kept = entry["digest"]
        .as_str()
        .unwrap()
        .strip_prefix("sha256:")
        .unwrap();
    let kept: Value = serde_json::from_slice(&bed.blobs()[kept]).unwrap();
    assert_eq!(kept["mediaType"], OCI_MANIFEST);
    assert_eq!(kept["config"]["mediaType"], OCI_CONFIG);
    assert_eq!(kept["layers"][0]["mediaType"], OCI_LAYER);
    assert_eq!(kept["layers"][0]["digest"], layer["digest"]);
}

#[tokio::test]
async fn cut_download_resumes_across_attempts() {
    let mut shelf = Shelf::default();
    let content = layer(1, 900_000);
    put(&mut shelf, "1", "amd64", std::slice::from_ref(&content));
    let path = format!("/blobs/{}", digest::sha256(&content));
    let cut = path.clone();
    // Every answer brings 100,000 bytes: an attempt four times that, so it takes three.
    let bed = Bed::new(move |asked| {
        let reply = shelf.answer(asked);
        let from: usize = asked.header("range").map_or(0, |r| {
            r.trim_matches(|c: char| !c.is_ascii_digit())
                .parse()
                .unwrap()
        });
        if asked.path.ends_with(&cut) && from < 800_000 {
            reply.cut(100_000)
        } else {
            reply
        }
    })
    .await;
    for attempt in 1..=2 {
        let error = bed.pull("1").await.unwrap_err();
        assert_eq!(error.kind, FailureKind::Unavailable);
        let kept = fs::metadata(&bed.partials()[0]).unwrap().len();
        assert_eq!(kept, attempt * 400_000);
    }
    bed.pull("1").await.unwrap();
    assert_eq!(bed.blobs().len(), 3);
    assert_eq!(bed.server.count(&path), 9);
    assert_eq!(bed.partials(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn leftover_download_is_verified_before_use() {
    let mut shelf = Shelf::default();
    let content = layer(1, 10_000);
    put(&mut shelf, "1", "amd64", std::slice::from_ref(&content));
    for (left, asked) in [
        (&content[..4000], 1),
        (&content[..], 0),
        (&[0_u8; 4000][..], 2),
        (&[0_u8; 10_000][..], 1),
        (&[0_u8; 20_000][..], 1),
    ] {
        let bed = Bed::of(shelf.clone()).await;
        let name = partial::file_name(&bed.server.host, &digest::sha256(&content));
        fs::write(bed.dir.path().join(".harpoon/partial").join(&name), left).unwrap();
        bed.pull("1").await.unwrap();
        assert_eq!(bed.blobs().len(), 3);
        let path = digest::sha256(&content);
        assert_eq!(bed.server.count(path.as_str()), asked, "{}", left.len());
        assert_eq!(bed.partials(), Vec::<PathBuf>::new());
    }
}

/// A download of this blob, begun in a layout of its own.
fn begin(dir: &std::path::Path, content: &[u8]) -> partial::Partial {
    let layout = Layout::open(dir.to_owned()).unwrap();
    let descriptor = descriptor(content);
    let mut partial = partial::Partial::open(&layout, "r", &descriptor).unwrap();
    let mut partial = partial.take().unwrap();
    partial.take_in(|| false).unwrap();
    partial
}

fn descriptor(content: &[u8]) -> Descriptor {
    let digest = digest::sha256(content);
    serde_json::from_value(
        json!({ "mediaType": OCI_LAYER, "digest": digest.as_str(), "size": content.len() }),
    )
    .unwrap()
}

#[tokio::test]
async fn bytes_may_arrive_in_any_order() {
    let content = layer(1, 3_000_000);
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..20 {
        let bed = Bed::of(Shelf::default()).await;
        let mut partial = begin(bed.dir.path(), &content);
        let mut pieces: Vec<_> = (0..content.len()).step_by(100_000).collect();
        random.shuffle(&mut pieces);
        for at in pieces {
            partial.put(at as u64, &content[at..at + 100_000]).unwrap();
        }
        partial.finish().unwrap();
        assert_eq!(bed.blobs().len(), 1);
    }
}

#[tokio::test]
async fn bytes_after_gap_are_discarded() {
    let content = layer(1, 3_000_000);
    let whole = |at: usize| at..at + 1_000_000;
    // Stopped: the bytes without a gap are kept. Killed: a little less, since the content of the last block is unknown.
    for (killed, least, most) in [(false, 1_000_000, 1_000_000), (true, 900_000, 1_000_000)] {
        let bed = Bed::of(Shelf::default()).await;
        let mut partial = begin(bed.dir.path(), &content);
        partial.put(0, &content[whole(0)]).unwrap();
        partial.put(2_000_000, &content[whole(2_000_000)]).unwrap();
        match killed {
            false => partial.leave(),
            true => drop(partial),
        }
        let mut partial = begin(bed.dir.path(), &content);
        let there = partial.rewind().unwrap();
        assert!((least..=most).contains(&there), "{there}");
        partial.put(there, &content[there as usize..]).unwrap();
        partial.finish().unwrap();
        assert_eq!(bed.blobs().len(), 1);
    }
}

#[tokio::test]
async fn wrong_content_is_never_kept() {
    let mut shelf = Shelf::default();
    let content = layer(1, 1000);
    put(&mut shelf, "1", "amd64", std::slice::from_ref(&content));
    let path = format!("/blobs/{}", digest::sha256(&content));
    for wrong in [layer(2, 1000), layer(1, 2000), vec![]] {
        let (shelf, path) = (shelf.clone(), path.clone());
        let bed = Bed::new(move |asked| match asked.path.ends_with(&path) {
            true => Reply::new(200, wrong.clone()),
            false => shelf.answer(asked),
        })
        .await;
        bed.pull("1").await.unwrap_err();
        // The configuration alone.
        assert_eq!(bed.blobs().len(), 1);
        assert_eq!(bed.partials(), Vec::<PathBuf>::new());
        assert_eq!(bed.index()["manifests"], json!([]));
        assert_eq!(bed.layout.status(&bed.image("1")).await.unwrap(), None);
    }
}

#[tokio::test]
async fn shared_layer_is_fetched_once() {
    let mut shelf = Shelf::default();
    let shared = layer(1, 500_000);
    put(&mut shelf, "1", "amd64", &[shared.clone(), layer(2, 1000)]);
    put(&mut shelf, "2", "amd64", &[shared.clone(), layer(3, 1000)]);
    let bed = Bed::of(shelf).await;
    // A separately opened layout replaces another process: it shares only the files.
    let other = OciLayout::with_client(bed.dir.path(), amd64(), client());
    let other = other.await.unwrap();
    let progress = Progress::default();
    let third = bed.image("2");
    let (one, two, three) = tokio::join!(
        bed.pull("1"),
        bed.pull("2"),
        other.pull(&third, None, &progress)
    );
    one.unwrap();
    assert_eq!(two.unwrap(), three.unwrap());
    assert_eq!(bed.server.count(digest::sha256(&shared).as_str()), 1);
    assert_eq!(bed.index()["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(bed.blobs().len(), 6);
}

#[tokio::test]
async fn dropped_pull_leaves_no_partial_blob() {
    let mut shelf = Shelf::default();
    let content = layer(1, 500_000);
    put(&mut shelf, "1", "amd64", std::slice::from_ref(&content));
    let stalls = AtomicUsize::new(1);
    let path = format!("/blobs/{}", digest::sha256(&content));
    let bed = Bed::new(move |asked| {
        let reply = shelf.answer(asked);
        let first = asked.path.ends_with(&path) && stalls.swap(0, Ordering::SeqCst) == 1;
        if first { reply.stall(400_000) } else { reply }
    })
    .await;
    let dropped = tokio::time::timeout(Duration::from_millis(500), bed.pull("1")).await;
    assert!(dropped.is_err());
    assert_eq!(bed.blobs().len(), 1);
    bed.pull("1").await.unwrap();
    assert_eq!(bed.blobs().len(), 3);
    let asked = bed.server.asked();
    let range = asked.iter().find_map(|a| a.header("range")).unwrap();
    let from: u64 = range
        .trim_matches(|c: char| !c.is_ascii_digit())
        .parse()
        .unwrap();
    // All but what was on its way to the disk.
    assert!((200_000..=400_000).contains(&from), "{range}");
}

#[tokio::test]
async fn stall_and_rate_limit_are_distinguished() {
    let bed = Bed::new(|_| Reply::new(429, "").with("retry-after", "17")).await;
    let error = bed.pull("1").await.unwrap_err();
    assert_eq!(error.kind, FailureKind::RateLimited);
    assert_eq!(error.retry_after, Some(Duration::from_secs(17)));
    let bed = Bed::new(|_| Reply::new(200, "{}").stall(1)).await;
    assert_eq!(bed.pull("1").await.unwrap_err().kind, FailureKind::Timeout);
    let bed = Bed::of(Shelf::default()).await;
    let error = bed.pull("1").await.unwrap_err();
    assert_eq!(error.kind, FailureKind::NotFound);
    assert!(error.message.contains("manifest unknown"), "{error}");
}

#[tokio::test]
async fn hostile_manifests_end_in_errors() {
    let mut shelf = Shelf::default();
    let digest = "a".repeat(64);
    // An index whose every entry is said to be itself: nothing has such a digest, so the content betrays it.
    let itself = json!({ "mediaType": "application/vnd.oci.image.index.v1+json", "digest": format!("sha256:{digest}"), "size": 1 });
    let itself = json!({ "schemaVersion": 2, "manifests": [itself] }).to_string();
    let looping = itself.clone();
    let bed = Bed::new(move |_| Reply::new(200, looping.clone())).await;
    let error = bed.pull("1").await.unwrap_err();
    assert!(
        error.message.contains("digest mismatch: expected"),
        "{error}"
    );
    // A chain of honest indexes that is too long.
    let mut entry = put(&mut shelf, "image", "amd64", &[layer(1, 10)]);
    for _ in 0..5 {
        entry = shelf.index(REPOSITORY, "deep", &[entry]);
    }
    shelf.index(REPOSITORY, "empty", &[]);
    let chart = json!({ "mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": format!("sha256:{digest}"), "size": 1 });
    let chart = json!({ "schemaVersion": 2, "config": chart, "layers": [] });
    shelf.manifest(REPOSITORY, "chart", OCI_MANIFEST, &chart);
    let huge =
        json!({ "mediaType": OCI_CONFIG, "digest": format!("sha256:{digest}"), "size": 5 << 20 });
    let huge = json!({ "schemaVersion": 2, "config": huge, "layers": [] });
    shelf.manifest(REPOSITORY, "huge", OCI_MANIFEST, &huge);
    let path = "sha256:../../../../../../../../tmp/x";
    let path = json!({ "mediaType": OCI_CONFIG, "digest": path, "size": 1 });
    let path = json!({ "schemaVersion": 2, "config": path, "layers": [] });
    shelf.manifest(REPOSITORY, "path", OCI_MANIFEST, &path);
    let bed = Bed::of(shelf).await;
    for (tag, text) in [
        ("deep", "nested more than 3 deep"),
        ("empty", "only for no platform"),
        ("chart", "not a container image"),
        ("huge", "4194304 bytes"),
        ("path", "digest is malformed"),
    ] {
        let error = bed.pull(tag).await.unwrap_err();
        assert!(error.message.contains(text), "{tag}: {error}");
    }
    assert_eq!(bed.blobs().len(), 0);
}

#[tokio::test]
async fn nondistributable_layer_comes_from_registry_only() {
    let mut shelf = Shelf::default();
    let elsewhere = StandIn::start(|_| Reply::new(200, "")).await;
    let config = blob(&mut shelf, OCI_CONFIG, &config("amd64"));
    let url = format!("http://{}/layer", elsewhere.host);
    let layer = json!({ "mediaType": OCI_LAYER, "digest": format!("sha256:{}", "b".repeat(64)), "size": 7, "urls": [url] });
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
    shelf.manifest(REPOSITORY, "1", OCI_MANIFEST, &manifest);
    let bed = Bed::of(shelf).await;
    let error = bed.pull("1").await.unwrap_err();
    assert_eq!(error.kind, FailureKind::NotFound);
    assert!(error.message.contains("non-distributable"), "{error}");
    assert_eq!(elsewhere.asked().len(), 0);
    assert_eq!(bed.partials(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn moved_tag_replaces_only_its_entry() {
    let mut shelf = Shelf::default();
    put(&mut shelf, "1", "amd64", &[layer(1, 10)]);
    let before = shelf.clone();
    let second = put(&mut shelf, "1", "amd64", &[layer(2, 10)]);
    let moved = Arc::new(AtomicUsize::new(0));
    let switch = moved.clone();
    let bed = Bed::new(move |asked| match switch.load(Ordering::SeqCst) {
        0 => before.answer(asked),
        _ => shelf.answer(asked),
    })
    .await;
    let path = bed.dir.path().join("index.json");
    let theirs = json!({ "digest": "sha256:theirs", "annotations": { "x": "y" } });
    let index = json!({ "schemaVersion": 2, "theirs": 1, "manifests": [theirs] });
    fs::write(&path, index.to_string()).unwrap();
    bed.pull("1").await.unwrap();
    moved.store(1, Ordering::SeqCst);
    bed.pull("1").await.unwrap();
    let index = bed.index();
    assert_eq!(index["theirs"], 1);
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(index["manifests"][0], theirs);
    assert_eq!(index["manifests"][1]["digest"], second["digest"]);
}

#[tokio::test]
async fn only_layout_or_empty_directory_opens() {
    let open = |dir: PathBuf| async move { OciLayout::with_client(&dir, amd64(), client()).await };
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let made = open(at("new/deep")).await.unwrap();
    assert_eq!(
        made.info().endpoint,
        format!("oci:{}", at("new/deep").display())
    );
    assert!(!at("new").exists());
    made.layout.make().await.unwrap();
    let marker = fs::read_to_string(at("new/deep/oci-layout")).unwrap();
    assert_eq!(marker, r#"{"imageLayoutVersion":"1.0.0"}"#);
    // Killed before it was whole.
    fs::remove_file(at("new/deep/oci-layout")).unwrap();
    open(at("new/deep"))
        .await
        .unwrap()
        .layout
        .make()
        .await
        .unwrap();
    assert!(at("new/deep/oci-layout").exists());

    fs::create_dir_all(at("disk/lost+found")).unwrap();
    open(at("disk")).await.unwrap().layout.make().await.unwrap();
    assert!(at("disk/oci-layout").exists());
    fs::create_dir(at("other")).unwrap();
    fs::write(at("other/file"), "").unwrap();
    let error = open(at("other")).await.err().unwrap();
    assert!(matches!(error, OpenError::NotALayout { .. }), "{error}");
    assert_eq!(fs::read_dir(at("other")).unwrap().count(), 1);
    fs::write(at("other/oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    let error = open(at("other")).await.err().unwrap();
    assert!(matches!(error, OpenError::Version { .. }), "{error}");
    let error = open(at("other/file")).await.err().unwrap();
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
}

#[tokio::test]
async fn old_unused_downloads_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let make = || async {
        let opened = OciLayout::with_client(dir.path(), amd64(), client());
        opened.await.unwrap().layout.make().await.unwrap();
    };
    make().await;
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(8 * 24 * 3600);
    let mut files = Vec::new();
    for name in ["old", "busy", "new"] {
        let path = dir.path().join(".harpoon/partial").join(name);
        let file = fs::File::create(&path).unwrap();
        if name != "new" {
            file.set_modified(long_ago).unwrap();
        }
        files.push((path, file));
    }
    files[1].1.lock().unwrap();
    make().await;
    let there: Vec<bool> = files.iter().map(|(path, _)| path.exists()).collect();
    assert_eq!(there, [false, true, true]);

    // What a writer that was killed left of a small file, and what is being written.
    let private = dir.path().join(".harpoon");
    for (name, age) in [("new.1.0", 2), ("new.2.0", 0), ("lock", 2)] {
        let file = fs::File::create(private.join(name)).unwrap();
        let hours = Duration::from_secs(age * 3600);
        file.set_modified(std::time::SystemTime::now() - hours)
            .unwrap();
    }
    make().await;
    let there = ["new.1.0", "new.2.0", "lock"].map(|name| private.join(name).exists());
    assert_eq!(there, [false, true, true]);
}

#[test]
fn best_runnable_variant_is_chosen() {
    let platform = |text: &str| Platform::parse(text).unwrap();
    for (wanted, made_for, best) in [
        (
            "linux/arm/v7",
            &["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"][..],
            Some(2),
        ),
        (
            "linux/arm/v7",
            &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"],
            Some(1),
        ),
        (
            "linux/arm",
            &["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"],
            Some(2),
        ),
        ("linux/arm/v6", &["linux/arm/v7"], None),
        ("linux/arm64", &["linux/arm", "linux/arm64/v8"], Some(1)),
        ("linux/amd64", &["linux/amd64/v3", "linux/amd64"], Some(1)),
        (
            "linux/amd64/v3",
            &["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"],
            Some(1),
        ),
        // As containerd.
        ("linux/amd64", &["windows/amd64", "linux/386"], Some(1)),
        ("linux/amd64", &["windows/amd64", "linux/arm64"], None),
    ] {
        let ranked = made_for.iter().enumerate();
        let ranked =
            ranked.filter_map(|(n, p)| Some((select::rank(&platform(p), &platform(wanted))?, n)));
        let found = ranked.min().map(|(_, n)| n);
        assert_eq!(found, best, "{wanted} of {made_for:?}");
    }
}
