//! `oci:DIR`: real images from a real registry into a directory, read back by skopeo and containerd.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bed::faulty::{Fault, Proxy, Seen};
use crate::bed::{self, Harpoon, Output, PASSWORD, USER, registry, registry_with_password, unique};

mod accepted;
mod budget;
mod crash;
mod faults;
mod hostile;
mod interrupted;
mod places;
mod shared;

/// A directory to pull into. It does not exist yet.
struct Bundle {
    parent: tempfile::TempDir,
}

impl Bundle {
    fn new() -> Self {
        Self {
            parent: bed::directory(),
        }
    }

    fn path(&self) -> PathBuf {
        self.parent.path().join("images")
    }

    /// `oci:DIR`
    fn endpoint(&self) -> String {
        format!("oci:{}", self.path().display())
    }

    fn pull<S: AsRef<str>>(&self, images: &[S]) -> Harpoon {
        Harpoon::new([
            "pull",
            "--output=json",
            "--runtime-endpoint",
            &self.endpoint(),
        ])
        .args(images.iter().map(|image| image.as_ref().to_owned()))
    }

    /// The actions that a plan of these images has.
    #[track_caller]
    fn plan(&self, images: &[&str]) -> Vec<String> {
        plan(&self.endpoint(), images)
    }

    /// The names of all blobs and their sizes, if the content of each matches its name.
    #[track_caller]
    fn blobs(&self) -> BTreeMap<String, u64> {
        let dir = self.path().join("blobs/sha256");
        let mut sizes = BTreeMap::new();
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            assert_eq!(sha256(&entry.path()), name, "in {}", dir.display());
            sizes.insert(format!("sha256:{name}"), entry.metadata().unwrap().size());
        }
        sizes
    }

    /// The entries by name; checks that the layout is valid and complete.
    #[track_caller]
    fn entries(&self) -> BTreeMap<String, Value> {
        let read = |name: &str| -> Value {
            serde_json::from_slice(&fs::read(self.path().join(name)).unwrap()).unwrap()
        };
        assert_eq!(read("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}));
        let (index, blobs) = (read("index.json"), self.blobs());
        assert_eq!(index["schemaVersion"], json!(2));
        let mut entries = BTreeMap::new();
        for entry in index["manifests"].as_array().unwrap() {
            let name = &entry["annotations"]["org.opencontainers.image.ref.name"];
            let manifest = self.blob(entry["digest"].as_str().unwrap());
            let parts = manifest["layers"].as_array().unwrap().iter();
            for part in parts.chain([&manifest["config"], entry]) {
                let size = blobs.get(part["digest"].as_str().unwrap());
                assert_eq!(json!(size), part["size"], "{name}: {part}");
            }
            let before = entries.insert(name.as_str().unwrap().to_owned(), entry.clone());
            assert_eq!(before, None, "an entry twice");
        }
        entries
    }

    fn names(&self) -> Vec<String> {
        self.entries().into_keys().collect()
    }

    fn blob(&self, digest: &str) -> Value {
        let path = self.path().join("blobs").join(digest.replace(':', "/"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// The bytes of incomplete downloads.
    fn begun(&self) -> u64 {
        let files = fs::read_dir(self.path().join(".harpoon/partial"));
        let sizes = files
            .into_iter()
            .flatten()
            .map(|file| file.unwrap().metadata().map_or(0, |m| m.size()));
        sizes.sum()
    }

    /// The result of skopeo for this name.
    #[track_caller]
    fn inspect(&self, name: &str) -> Value {
        let image = format!("{}:{name}", self.endpoint());
        serde_json::from_str(&bed::run(Command::new("skopeo").args(["inspect", &image]))).unwrap()
    }
}

/// The actions that a plan of these images has.
#[track_caller]
fn plan(endpoint: &str, images: &[&str]) -> Vec<String> {
    let harpoon = Harpoon::new(["plan", "--output=json", "--runtime-endpoint", endpoint]);
    let file = harpoon.home().join("list");
    fs::write(&file, images.join("\n")).unwrap();
    let json = harpoon.env("IMAGES_FILE", file).run().expect(0).json();
    let images = json["images"].as_array().unwrap().iter();
    images
        .map(|image| image["action"].as_str().unwrap().to_owned())
        .collect()
}

fn sha256(file: &Path) -> String {
    let sum = bed::run(Command::new("sha256sum").arg(file));
    sum.split_whitespace().next().unwrap().to_owned()
}

/// The exact bytes of a reference in a local registry.
fn raw(reference: &str) -> String {
    bed::run(Command::new("skopeo").args([
        "inspect",
        "--raw",
        "--tls-verify=false",
        &format!("docker://{reference}"),
    ]))
}

/// The digests of an image's layers.
fn layers(reference: &str) -> BTreeSet<String> {
    let manifest: Value = serde_json::from_str(&raw(reference)).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter();
    layers
        .map(|layer| layer["digest"].as_str().unwrap().to_owned())
        .collect()
}

/// The download of one of these blobs.
fn is_one_of(blobs: BTreeSet<String>) -> impl Fn(&Seen) -> bool + Clone + Send + Sync + 'static {
    move |seen| seen.is_blob() && blobs.iter().any(|blob| seen.path.ends_with(blob))
}

/// Copies an image by skopeo.
#[track_caller]
fn copy(options: &[&str], from: &str, to: &str) {
    let copy = [
        "--insecure-policy",
        "copy",
        "--quiet",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
    ];
    bed::run(
        Command::new("skopeo")
            .args(copy)
            .args(options)
            .args([from, to]),
    );
}

/// The report's facts about an image.
#[track_caller]
fn report(output: &Output, image: &str) -> Value {
    let json = output.json();
    let mut images = json["images"].as_array().unwrap().iter();
    let found = images.find(|report| report["image"] == json!(image));
    found
        .unwrap_or_else(|| panic!("no {image}: {output}"))
        .clone()
}

/// The outcome of an image, without facts that vary.
#[track_caller]
fn told(output: &Output, image: &str) -> [Value; 3] {
    let image = report(output, image);
    ["outcome", "reason", "attempts"].map(|key| image[key].clone())
}

fn pulled(attempts: u32) -> [Value; 3] {
    [json!("pulled"), Value::Null, json!(attempts)]
}

fn failed(reason: &str, attempts: u32) -> [Value; 3] {
    [json!("failed"), json!(reason), json!(attempts)]
}

/// The digest of a reference in a local registry.
fn digest_of(reference: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), raw(reference)).unwrap();
    format!("sha256:{}", sha256(file.path()))
}

fn this_machine() -> String {
    harpoon::model::platform::Platform::current().to_string()
}

#[test]
fn all_image_kinds_work_with_skopeo() {
    let bundle = Bundle::new();
    let oci = registry().image(&unique("oci")).layers(3).push();
    let docker = registry().reference(&format!("{}:v2.1", unique("docker")));
    let [from, to] = [&oci.reference, &docker].map(|image| format!("docker://{image}"));
    copy(&["--format=v2s2"], &from, &to);
    let platforms = ["linux/riscv64", &this_machine()];
    let index = registry().image(&format!("{}:1", unique("deep/index")));
    let index = index.platforms(&platforms).push();
    let repository = registry().reference(&unique("pinned"));
    let pinned = registry().image(repository.split_once('/').unwrap().1);
    let pinned = format!("{repository}@{}", pinned.push().digest);

    let images = [&oci.reference, &docker, &index.reference, &pinned];
    let untagged = format!("{}:latest", oci.reference);
    let names = [&untagged, &docker, &index.reference, &pinned];
    let output = bundle.pull(&images).run().expect(0);
    let entries = bundle.entries();
    assert_eq!(BTreeSet::from(names), entries.keys().collect());
    for (image, name) in images.into_iter().zip(names) {
        assert_eq!(told(&output, image), pulled(1));
        let report = report(&output, image);
        assert_eq!(report["digest"], json!(digest_of(name)), "{name}");
        let entry = &entries[name];
        let platform = ["os", "architecture"].map(|key| entry["platform"][key].as_str().unwrap());
        assert_eq!(platform.join("/"), this_machine(), "{name}");
        let manifest = bundle.blob(entry["digest"].as_str().unwrap());
        let parts = manifest["layers"].as_array().unwrap().iter();
        let sizes = parts.chain([&manifest["config"], entry]);
        let bytes: u64 = sizes.map(|part| part["size"].as_u64().unwrap()).sum();
        assert_eq!(report["bytes"], json!(bytes), "{name}");

        assert_eq!(bundle.inspect(name)["Digest"], entry["digest"], "{name}");
        let to = registry_with_password().reference(&format!("{}:1", unique("copy")));
        let credentials = format!("--dest-creds={USER}:{PASSWORD}");
        let from = format!("{}:{name}", bundle.endpoint());
        copy(
            &["--preserve-digests", &credentials],
            &from,
            &format!("docker://{to}"),
        );
    }
    // The registry's content is unchanged, except that a Docker manifest is converted to OCI's format.
    let digest_in = |name: &String| entries[name]["digest"].clone();
    assert_eq!(digest_in(&untagged), json!(oci.digest));
    assert_ne!(digest_in(&docker), json!(digest_of(&docker)));
    assert_ne!(digest_in(&index.reference), json!(index.digest));
    assert_eq!(layers(&docker), layers(&oci.reference));

    let runtime = json!({"name": "oci", "version": "1.0.0", "endpoint": bundle.endpoint()});
    assert_eq!(output.json()["runtime"], runtime);
}

#[test]
fn present_image_requests_no_blobs() {
    let proxy = Proxy::start(registry().url(), |_| Fault::Pass);
    let [image, index] = ["image", "index"].map(|kind| format!("{}:1", unique(kind)));
    registry().push(&image);
    let platforms = ["linux/arm/v7", &this_machine()];
    registry().image(&index).platforms(&platforms).push();
    let images = [&image, &index].map(|name| proxy.reference(name));
    let images = [images[0].as_str(), images[1].as_str()];

    let bundle = Bundle::new();
    assert_eq!(bundle.plan(&images), ["pull", "pull"]);
    let first = bundle.pull(&images).run().expect(0);
    let asked = proxy.seen().len();
    let index = fs::read(bundle.path().join("index.json")).unwrap();
    let again = bundle.pull(&images).run().expect(0);
    assert_eq!(bundle.plan(&images), ["present", "present"]);
    assert_eq!(proxy.seen().len(), asked, "{:?}", proxy.seen());
    assert_eq!(
        fs::read(bundle.path().join("index.json")).unwrap(),
        index,
        "written in vain"
    );
    for image in images {
        let (first, again) = (report(&first, image), report(&again, image));
        assert_eq!(again["outcome"], json!("present"));
        assert_eq!(again["attempts"], json!(0));
        for key in ["digest", "bytes"] {
            assert_eq!(first[key], again[key], "{key}");
            assert!(!first[key].is_null(), "{key}");
        }
    }
    // A removed blob is fetched again, and no other one.
    let lost = layers(images[0]).pop_first().unwrap();
    fs::remove_file(bundle.path().join("blobs").join(lost.replace(':', "/"))).unwrap();
    let mut actions = bundle.plan(&images);
    actions.sort();
    assert_eq!(actions, ["present", "pull"]);
    let blobs = proxy.count(Seen::is_blob);
    bundle.pull(&images).run().expect(0);
    assert_eq!(proxy.count(Seen::is_blob), blobs + 1);
    assert_eq!(bundle.entries().len(), 2);
}

#[test]
fn index_pull_takes_requested_platform() {
    let platforms = ["linux/amd64", "linux/arm64", "linux/arm/v7"];
    let name = format!("{}:1", unique("many"));
    let pushed = registry().image(&name).platforms(&platforms).push();
    let index: Value = serde_json::from_str(&raw(&pushed.reference)).unwrap();
    let bundle = Bundle::new();
    let for_platform = |platform: &str| {
        bundle
            .pull(&[&pushed.reference])
            .args(["--platform", platform])
            .run()
    };
    for (at, platform) in platforms.into_iter().enumerate() {
        // Another platform's image under this name is replaced.
        let output = for_platform(platform).expect(0);
        assert_eq!(told(&output, &pushed.reference), pulled(1), "{platform}");
        assert_eq!(
            report(&output, &pushed.reference)["digest"],
            json!(pushed.digest)
        );
        let entries = bundle.entries();
        let [entry] = entries.values().collect::<Vec<_>>()[..] else {
            panic!("{entries:?}");
        };
        assert_eq!(entry["digest"], index["manifests"][at]["digest"]);
        assert_eq!(entry["platform"], index["manifests"][at]["platform"]);
        let architecture = &bundle.inspect(&pushed.reference)["Architecture"];
        assert_eq!(
            *architecture,
            index["manifests"][at]["platform"]["architecture"]
        );
    }
    let output = for_platform("linux/s390x").expect(1);
    assert_eq!(
        told(&output, &pushed.reference),
        failed("platform_mismatch", 1)
    );
    let message = output.json()["images"][0]["message"].to_string();
    assert!(
        ["linux/s390x", "linux/amd64", "linux/arm64", "linux/arm/v7"]
            .iter()
            .all(|platform| message.contains(platform)),
        "{message}"
    );
    assert_eq!(bundle.names(), [pushed.reference.as_str()]);
}

#[test]
fn spellings_of_one_image_pull_once() {
    let proxy = Proxy::start(registry().url(), |_| Fault::Pass);
    let name = unique("spelt");
    registry().push(&name);
    let image = proxy.reference(&name);
    let bundle = Bundle::new();
    let spellings = [image.clone(), format!("{image}:latest"), image.clone()];
    let output = bundle.pull(&spellings).run().expect(0);
    assert_eq!(output.json()["images"].as_array().unwrap().len(), 1);
    assert_eq!(output.json()["images"][0]["image"], json!(image));
    assert_eq!(bundle.names(), [format!("{image}:latest")]);
    assert_eq!(proxy.count(Seen::is_manifest), 1);
    assert_eq!(proxy.count(Seen::is_blob), 2);

    // Docker Hub's short names, through a proxy that refuses all requests.
    let proxy = Proxy::start(registry().url(), |_| Fault::status(403));
    let output = bundle
        .pull(&[
            "nginx",
            "docker.io/nginx:latest",
            "index.docker.io/library/nginx",
        ])
        .env("HTTPS_PROXY", proxy.url())
        .args(["--retries=0"])
        .run()
        .expect(1);
    assert_eq!(output.json()["images"].as_array().unwrap().len(), 1);
    assert_eq!(output.json()["images"][0]["image"], json!("nginx"));
    assert_eq!(told(&output, "nginx"), failed("unavailable", 1));
    assert_eq!(proxy.seen().len(), 1);
}

#[test]
fn failed_image_does_not_stop_others() {
    let good = ["a", "b"].map(|kind| registry().push(&unique(kind)).reference);
    let missing = registry().reference(&unique("missing"));
    let denied = registry_with_password().push(&unique("denied")).reference;
    let images = [&good[0], &missing, "Not/An Image", &denied, &good[1]];
    let bundle = Bundle::new();
    let output = bundle.pull(&images).run().expect(1);
    let expected = [
        pulled(1),
        failed("not_found", 1),
        failed("invalid_reference", 0),
        failed("unauthorized", 1),
        pulled(1),
    ];
    for (image, expected) in images.into_iter().zip(expected) {
        assert_eq!(told(&output, image), expected, "{image}");
    }
    let shown = output.to_string();
    assert!(
        !shown.contains(PASSWORD) && !shown.contains("realm"),
        "{shown}"
    );
    let sums = json!({"pulled": 2, "present": 0, "failed": 3, "skipped": 0});
    for (key, sum) in sums.as_object().unwrap() {
        assert_eq!(output.json()["summary"][key], *sum, "{key}");
    }
    assert_eq!(bundle.entries().len(), 2);
}

#[test]
fn containerd_imports_pulled_layout() {
    let oci = format!("{}:latest", registry().push(&unique("import")).reference);
    let docker = registry().reference(&format!("{}:1", unique("import")));
    let [from, to] = [&oci, &docker].map(|image| format!("docker://{image}"));
    copy(&["--format=v2s2"], &from, &to);
    let platforms = ["linux/s390x", &this_machine()];
    let index = registry().image(&format!("{}:1", unique("import")));
    let index = index.platforms(&platforms).push().reference;
    let names = [oci.as_str(), &docker, &index];

    let bundle = Bundle::new();
    bundle.pull(&names).run().expect(0);
    let archive = bundle.parent.path().join("images.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(bundle.path()).arg("-cf").arg(&archive);
    bed::run(tar.arg("."));
    let containerd = bed::containerd();
    assert_eq!(plan(containerd.endpoint(), &names), ["pull"; 3]);
    containerd.ctr(&["images", "import", archive.to_str().unwrap()]);
    for name in names {
        assert!(containerd.has(name), "{name}: {:?}", containerd.images());
    }
    // containerd's CRI server hears of it by an event.
    let known = || plan(containerd.endpoint(), &names) == ["present"; 3];
    bed::eventually(
        "containerd's CRI knows them",
        Duration::from_secs(40),
        known,
    );
}

#[test]
fn layout_is_shared_with_skopeo() {
    let [theirs, ours, later] =
        ["theirs", "ours", "later"].map(|kind| registry().push(&format!("{}:1", unique(kind))));
    let bundle = Bundle::new();
    let into = |image: &str| {
        let to = format!("{}:{image}", bundle.endpoint());
        copy(&[], &format!("docker://{image}"), &to);
    };
    into(&theirs.reference);
    let before = bundle.entries();
    let output = bundle
        .pull(&[&theirs.reference, &ours.reference])
        .run()
        .expect(0);
    assert_eq!(told(&output, &theirs.reference)[0], json!("present"));
    assert_eq!(told(&output, &ours.reference), pulled(1));
    assert_eq!(
        bundle.entries()[&theirs.reference],
        before[&theirs.reference]
    );
    into(&later.reference);
    let images = [&theirs, &ours, &later].map(|image| image.reference.as_str());
    assert_eq!(bundle.plan(&images), ["present"; 3]);
    assert_eq!(bundle.entries().len(), 3);
}
