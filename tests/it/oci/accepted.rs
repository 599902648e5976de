//! Images that containerd and Docker take, so that planning and an image layout have to.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::{Bundle, copy, pulled, raw, told};
use crate::bed::{self, Harpoon, registry, unique};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// These runtimes pull it, `--sizes` and `--disk-budget` weigh it, and it comes into a layout.
#[track_caller]
fn is_taken(image: &str, endpoints: &[&str]) {
    for endpoint in endpoints {
        let of = |command: &str, options: &[&str]| {
            let common = [command, "--output=json", "--runtime-endpoint", endpoint];
            Harpoon::new(common).args(options)
        };
        let list = bed::directory();
        let list = list.path().join("list");
        fs::create_dir_all(list.parent().unwrap()).unwrap();
        fs::write(&list, image).unwrap();
        let plan = of("plan", &["--sizes"]).env("IMAGES_FILE", &list);
        let plan = plan.run().expect(0).json();
        assert!(plan["images"][0]["bytes"].is_u64(), "{endpoint}: {plan}");
        let pull = of("pull", &["--disk-budget=10G", image]);
        let output = pull.run().expect(0);
        assert_eq!(told(&output, image), pulled(1), "{endpoint}: {output}");
    }
    let bundle = Bundle::new();
    let output = bundle.pull(&[image]).run().expect(0);
    assert_eq!(told(&output, image), pulled(1), "{output}");
    assert_eq!(bundle.plan(&[image]), ["present"]);
}

/// Puts another manifest beside the one of an image, and gives its reference.
fn alter(image: &str, alter: impl FnOnce(&mut Value)) -> String {
    let (repository, _) = image.rsplit_once(':').unwrap();
    let mut manifest: Value = serde_json::from_str(&raw(image)).unwrap();
    alter(&mut manifest);
    let media_type = manifest["mediaType"].as_str().unwrap_or(MANIFEST);
    let media_type = format!("content-type: {media_type}");
    let path = repository.split_once('/').unwrap().1;
    let url = format!("{}/v2/{path}/manifests/altered", registry().url());
    let put = ["-sSf", "-X", "PUT", "-H", &media_type, "--data-binary"];
    bed::run(
        Command::new("curl")
            .args(put)
            .args([&manifest.to_string(), &url]),
    );
    format!("{repository}:altered")
}

/// The same image as a Docker manifest.
fn docker(name: &str) -> String {
    let image = registry().push(&format!("{}:1", unique(name))).reference;
    let docker = registry().reference(&format!("{}:1", unique(name)));
    let [from, to] = [&image, &docker].map(|image| format!("docker://{image}"));
    copy(&["--format=v2s2"], &from, &to);
    docker
}

// Docker 20.10 wants its own platform in an index.
#[cfg(target_arch = "x86_64")]
#[test]
fn i386_only_image_runs_on_amd64() {
    let image = registry().image(&format!("{}:1", unique("i386")));
    let image = image.platforms(&["linux/386"]).push().reference;
    is_taken(&image, &[bed::containerd().endpoint()]);
}

#[cfg(target_arch = "aarch64")]
#[test]
fn armv7_only_image_runs_on_arm64() {
    let image = registry().image(&format!("{}:1", unique("armv7")));
    let image = image.platforms(&["linux/arm/v7"]).push().reference;
    is_taken(&image, &[bed::containerd().endpoint()]);
}

#[test]
fn null_layers_are_accepted() {
    let image = docker("null");
    let platform = super::this_machine();
    let (os, architecture) = platform.split_once('/').unwrap();
    let config = json!({"os": os, "architecture": architecture, "config": {}, "rootfs": {"type": "layers", "diff_ids": []}});
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), config.to_string()).unwrap();
    let digest = format!("sha256:{}", super::sha256(file.path()));
    let (repository, _) = image.rsplit_once(':').unwrap();
    let name = repository.split_once('/').unwrap().1;
    super::places::upload(name, file.path(), &digest);
    let image = alter(&image, |manifest| {
        manifest["config"]["digest"] = json!(digest);
        manifest["config"]["size"] = json!(config.to_string().len());
        manifest["layers"] = Value::Null;
    });
    is_taken(&image, &[bed::containerd().endpoint()]);
}

// Of the runtimes Docker alone: containerd 1.6 fetches no layers of such an image and cannot unpack it.
#[test]
fn untyped_config_is_accepted() {
    for media_type in ["application/octet-stream", "application/json", "text/html"] {
        let image = alter(&docker("octets"), |manifest| {
            manifest["config"]["mediaType"] = json!(media_type);
        });
        is_taken(&image, &[bed::docker().endpoint()]);
    }
}
