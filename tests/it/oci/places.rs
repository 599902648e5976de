//! Unsuitable or full directories, and the memory use of a pull.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Bundle, failed, pulled, report, told};
use crate::bed::faulty::{Fault, Proxy};
use crate::bed::{self, Harpoon, registry, unique};

const MIB: u64 = 1 << 20;

#[test]
fn plan_creates_no_layout() {
    let image = registry().push(&unique("planned")).reference;
    let bundle = Bundle::new();
    assert_eq!(bundle.plan(&[&image]), ["pull"]);
    assert!(!bundle.path().exists());
    fs::create_dir(bundle.path()).unwrap();
    assert_eq!(bundle.plan(&[&image]), ["pull"]);
    assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 0);
    bundle.pull(&[&image]).run().expect(0);
    assert_eq!(bundle.plan(&[&image]), ["present"]);
}

#[test]
fn relative_directory_uses_working_directory() {
    let image = registry().push(&unique("relative")).reference;
    let harpoon = Harpoon::new(["pull", "--output=json", &image]);
    let output = harpoon
        .env("RUNTIME_ENDPOINT", "oci:images/base")
        .run()
        .expect(0);
    assert_eq!(
        output.json()["runtime"]["endpoint"],
        json!("oci:images/base")
    );
    assert!(output.home().join("images/base/index.json").exists());
}

#[test]
fn foreign_path_is_not_a_layout() {
    let image = registry().push(&unique("misplaced")).reference;
    let refused = |bundle: &Bundle, why: &str| {
        for command in ["pull", "plan"] {
            let output = match command {
                "pull" => bundle.pull(&[&image]),
                _ => Harpoon::new(["plan", "--runtime-endpoint", &bundle.endpoint()]),
            };
            let output = output.run().expect(3);
            assert_eq!(output.stdout, "");
            let names = output.stderr.contains(&bundle.endpoint());
            assert!(names && output.stderr.contains(why), "{command}: {output}");
        }
    };
    let filled = Bundle::new();
    fs::create_dir(filled.path()).unwrap();
    fs::write(filled.path().join("thesis"), "").unwrap();
    refused(&filled, "neither empty nor an OCI image layout");
    assert_eq!(fs::read_dir(filled.path()).unwrap().count(), 1);

    let file = Bundle::new();
    fs::write(file.path(), "precious").unwrap();
    refused(&file, "Not a directory");
    assert_eq!(fs::read(file.path()).unwrap(), b"precious");

    let newer = Bundle::new();
    fs::create_dir(newer.path()).unwrap();
    fs::write(
        newer.path().join("oci-layout"),
        r#"{"imageLayoutVersion":"2.0.0"}"#,
    )
    .unwrap();
    refused(&newer, "version 1");
}

/// Has the program find another filesystem where the bundle's parent is, for itself alone; what is in it afterwards is
/// copied to `kept`.
fn on_tmpfs(harpoon: &Harpoon, bundle: &Bundle, options: &str, kept: &Path) -> Harpoon {
    let script = r#"place=$1 options=$2 kept=$3; shift 3
        mount -t tmpfs -o "$options" tmpfs "$place" || exit 99
        "$@"; code=$?
        cp -a "$place/." "$kept" || exit 98
        exit $code"#;
    let words = ["unshare", "--mount", "--propagation=private", "sh", "-c"];
    let mut line: Vec<std::ffi::OsString> = words.map(Into::into).into();
    line.extend([script, "sh"].map(Into::into));
    line.extend([bundle.parent.path().into(), options.into(), kept.into()]);
    harpoon.clone().under(line)
}

#[test]
fn read_only_directory_is_refused() {
    let bundle = Bundle::new();
    let kept = Bundle::new();
    let pull = bundle.pull(&[registry().reference("any")]);
    let output = on_tmpfs(&pull, &bundle, "ro", kept.parent.path())
        .run()
        .expect(3);
    let names = output.stderr.contains(&bundle.endpoint());
    assert!(
        names && output.stderr.contains("Read-only file system"),
        "{output}"
    );
}

#[test]
fn full_filesystem_keeps_pulled_images() {
    // They are pulled in the order of their names.
    let images = [("a", 100_000), ("b", 3_000_000), ("c", 1000)];
    let images = images.map(|(name, size)| {
        let image = registry().image(&unique(name));
        image.size(size).push().reference
    });
    for (fail_on, code) in [("any", 1), ("all", 0), ("never", 0)] {
        let (bundle, kept) = (Bundle::new(), Bundle::new());
        let options = ["--concurrency=1", "--fail-on", fail_on];
        let pull = bundle.pull(&images).args(options);
        let pull = on_tmpfs(&pull, &bundle, "size=1m", kept.parent.path());
        let output = pull.run().expect(code);
        assert_eq!(told(&output, &images[0]), pulled(1));
        assert_eq!(told(&output, &images[1]), failed("no_space", 1));
        assert_eq!(told(&output, &images[2]), failed("no_space", 0));
        let message = report(&output, &images[1])["message"].to_string();
        assert!(message.contains("No space left on device"), "{message}");
        // An image layout keeps layers as they come, so this is exact but for the manifest.
        assert!(message.contains("; the image needs about 3.0"), "{message}");
        assert_eq!(kept.names(), [format!("{}:latest", images[0])]);
        assert_eq!(kept.begun(), 0, "room that is not given back");
    }
    let (bundle, kept) = (Bundle::new(), Bundle::new());
    let pull = bundle.pull(&images[1..2]).arg("--fail-on=all");
    on_tmpfs(&pull, &bundle, "size=1m", kept.parent.path())
        .run()
        .expect(1);
    assert_eq!(kept.entries().len(), 0);
}

#[test]
fn no_space_is_reported_despite_hang() {
    let name = unique("full");
    registry().image(&name).size(3_000_000).push();
    let begun = AtomicBool::new(false);
    let proxy = Proxy::start(registry().url(), move |seen| {
        begun.fetch_or(seen.is_blob(), Ordering::SeqCst);
        match seen.is_manifest() && begun.load(Ordering::SeqCst) {
            true => Fault::Stall,
            false => Fault::Pass,
        }
    });
    let image = proxy.reference(&name);
    let (bundle, kept) = (Bundle::new(), Bundle::new());
    let pull = bundle.pull(std::slice::from_ref(&image));
    let pull = on_tmpfs(&pull, &bundle, "size=1m", kept.parent.path());
    let began = Instant::now();
    let output = pull.run().expect(1);
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(told(&output, &image), failed("no_space", 1), "{output}");
    let message = report(&output, &image)["message"].to_string();
    assert!(message.contains("; image size unknown: "), "{message}");
}

/// Pushes an image of three layers of so many bytes each, made of zeros behind a line of their own, which takes no time to make.
fn push_large(layer_size: u64) -> String {
    let (name, dir) = (unique("large"), bed::directory());
    let file = dir.path().join("blob");
    let push = |content: &[u8], size: u64| {
        let mut blob = File::create(&file).unwrap();
        blob.write_all(content).unwrap();
        blob.seek(SeekFrom::Start(0)).unwrap();
        blob.set_len(size).unwrap();
        let digest = format!("sha256:{}", super::sha256(&file));
        upload(&name, &file, &digest);
        json!({"digest": digest, "size": size})
    };
    let config = br#"{"os":"linux","architecture":"any","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let config = String::from_utf8_lossy(config).replace("any", std::env::consts::ARCH);
    let config = config
        .replace("x86_64", "amd64")
        .replace("aarch64", "arm64");
    let mut config = push(config.as_bytes(), config.len() as u64);
    config["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
    let layers = ["a", "b", "c"].map(|seed| {
        let mut layer = push(format!("{name} {seed}\n").as_bytes(), layer_size);
        layer["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar");
        layer
    });
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest: Value =
        json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
    fs::write(&file, manifest.to_string()).unwrap();
    let url = format!("{}/v2/{name}/manifests/1", registry().url());
    curl(
        &["-H", &format!("content-type: {media_type}"), "-T"],
        &file,
        &url,
    );
    registry().reference(&format!("{name}:1"))
}

pub(super) fn upload(name: &str, file: &Path, digest: &str) {
    let url = format!("{}/v2/{name}/blobs/uploads/", registry().url());
    let started = bed::run(Command::new("curl").args(["-sSfi", "-X", "POST", &url]));
    let location = started
        .lines()
        .find_map(|line| line.strip_prefix("Location: "));
    let url = format!("{}&digest={digest}", location.unwrap().trim());
    curl(
        &["-H", "content-type: application/octet-stream", "-T"],
        file,
        &url,
    );
}

fn curl(options: &[&str], file: &Path, url: &str) {
    bed::run(
        Command::new("curl")
            .args(["-sSf"])
            .args(options)
            .arg(file)
            .arg(url),
    );
}

#[test]
fn memory_is_independent_of_image_size() {
    let peak = |layer_size: u64| {
        let image = push_large(layer_size);
        let bundle = Bundle::new();
        let output = bundle.pull(&[&image]).run().expect(0);
        assert_eq!(told(&output, &image), pulled(1));
        let bytes = report(&output, &image)["bytes"].as_u64().unwrap();
        assert!(bytes > 3 * layer_size, "{bytes}");
        output.peak_rss
    };
    let (small, large) = (peak(10 * MIB), peak(100 * MIB));
    assert!(small > MIB, "not measured");
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    // What connections buffer grows until it has the size that suits the network, and not beyond.
    assert!(
        large < 60 * MIB && large < small + 30 * MIB,
        "{:.1} MiB for 30 MiB, {:.1} MiB for 300 MiB",
        mib(small),
        mib(large)
    );
}
