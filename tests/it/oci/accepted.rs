//! Images that containerd and Docker take, so that planning and an image layout have to.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::{Bundle, pulled, raw, told};
use crate::bed::{self, Harpoon, Runtime, registry, unique};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Containerd and Docker pull it, `--sizes` and `--disk-budget` weigh it, and it comes into a layout.
#[track_caller]
fn is_taken(image: &str) {
    let endpoints = [
        bed::containerd().endpoint().to_owned(),
        Runtime::endpoint(bed::docker()).to_owned(),
    ];
    for endpoint in &endpoints {
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

#[cfg(target_arch = "x86_64")]
#[test]
fn i386_alone_is_taken_on_amd64() {
    let image = registry().image(&format!("{}:1", unique("i386")));
    is_taken(&image.platforms(&["linux/386"]).push().reference);
}

#[cfg(target_arch = "aarch64")]
#[test]
fn arm_v7_alone_is_taken_on_arm64() {
    let image = registry().image(&format!("{}:1", unique("armv7")));
    is_taken(&image.platforms(&["linux/arm/v7"]).push().reference);
}

#[test]
fn null_layers_are_no_layers() {
    let image = registry().push(&format!("{}:1", unique("null"))).reference;
    is_taken(&alter(&image, |manifest| manifest["layers"] = Value::Null));
}

#[test]
fn config_of_no_type_is_taken() {
    for media_type in ["application/octet-stream", "application/json", "text/html"] {
        let image = registry()
            .push(&format!("{}:1", unique("octets")))
            .reference;
        let config = json!(media_type);
        is_taken(&alter(&image, |manifest| {
            manifest["config"]["mediaType"] = config;
        }));
    }
}
