//! The images file as a source: its path, its content, and its precedence over the cluster.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::bed::faulty::{Fault, Proxy};
use super::bed::{Harpoon, directory, kubernetes, run};

fn plan() -> Harpoon {
    Harpoon::new(["plan", "--output", "json"])
}

/// The images of a plan, in its order.
fn images(plan: &Value) -> Vec<&str> {
    let images = plan["images"].as_array().unwrap().iter();
    images
        .map(|image| image["image"].as_str().unwrap())
        .collect()
}

/// Writes an images file into the program's home.
fn file(harpoon: &Harpoon, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = harpoon.home().join("list");
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn mounted_config_map_is_found() {
    // As a kubelet mounts it: a link to a file in a directory that is a link too.
    let config = directory();
    let version = config.path().join("..2026_11_23");
    std::fs::create_dir(&version).unwrap();
    std::fs::write(version.join("images"), "nginx:1.27\n").unwrap();
    std::os::unix::fs::symlink("..2026_11_23", config.path().join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/images", config.path().join("images")).unwrap();
    let output = plan().bind(config.path(), "/config").run().expect(0);
    assert_eq!(
        output.json()["images"],
        json!([{"image": "nginx:1.27", "action": "pull", "reason": null, "message": null, "pods": null, "workloads": []}])
    );
}

#[test]
fn flag_precedes_variable_and_default() {
    let config = directory();
    std::fs::write(config.path().join("images"), "default:1\n").unwrap();
    let files = directory();
    for name in ["variable", "flag"] {
        std::fs::write(files.path().join(name), format!("{name}:1\n")).unwrap();
    }
    let variable = plan()
        .bind(config.path(), "/config")
        .env("IMAGES_FILE", files.path().join("variable"));
    assert_eq!(images(&variable.run().expect(0).json()), ["variable:1"]);
    let flag = variable.arg("--images-file").arg(files.path().join("flag"));
    assert_eq!(images(&flag.run().expect(0).json()), ["flag:1"]);
}

#[test]
fn only_comments_and_blanks_are_dropped() {
    let plan = plan();
    let text = "\u{feff}# what we need\r\n\r\nredis:7\r\n  \t nginx:1.27 \t\r\n   # indented\r\nquay.io/a/b:1 # why\r\n\
        UPPER/case:1\nredis:7\ndocker.io/library/redis:7\nlast:1";
    let list = file(&plan, text);
    let output = plan.arg("--images-file").arg(list).run().expect(0);
    let json = output.json();
    // The number of pods is unknown, so names determine the order; three spellings are one image.
    assert_eq!(
        images(&json),
        [
            "UPPER/case:1",
            "last:1",
            "nginx:1.27",
            "redis:7",
            "quay.io/a/b:1"
        ]
    );
    let malformed = &json["images"][0];
    assert_eq!(
        (&malformed["action"], &malformed["reason"]),
        (&json!("skip"), &json!("invalid_reference")),
    );
    assert_eq!(json["summary"], json!({"pull": 4, "present": 0, "skip": 1}));
}

#[test]
fn images_file_prevents_cluster_discovery() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    cluster.deployment(&namespace, "web", 1, "cluster:1");
    let proxy = Proxy::start_tls(cluster.server(), cluster.ca(), |_| Fault::Pass);
    let plan = plan();
    let kubeconfig = plan.home().join("kubeconfig");
    cluster.write_kubeconfig(&kubeconfig, &proxy.url(), cluster.token(), &namespace);
    let config = directory();
    let list = config.path().join("images");
    let plan = plan
        .env("KUBECONFIG", kubeconfig)
        .bind(config.path(), "/config")
        .args(["--namespaces", &namespace]);

    std::fs::write(&list, "listed:1\n").unwrap();
    assert_eq!(images(&plan.run().expect(0).json()), ["listed:1"]);
    // Even an empty one is an explicit choice.
    std::fs::write(&list, "").unwrap();
    assert_eq!(images(&plan.run().expect(0).json()), [] as [&str; 0]);
    assert_eq!(proxy.count(|_| true), 0);

    std::fs::remove_file(&list).unwrap();
    assert_eq!(images(&plan.run().expect(0).json()), ["cluster:1"]);
    assert_eq!(proxy.count(|_| true), 1);
}

#[test]
fn missing_file_and_cluster_are_named() {
    for command in ["plan", "run"] {
        let harpoon = Harpoon::new([command]).pod();
        let store = harpoon.home().join("store");
        let harpoon = harpoon
            .arg("--runtime-endpoint")
            .arg(format!("oci:{}", store.display()));
        let output = harpoon.run().expect(1);
        assert_eq!(output.stdout, "");
        let error = last_line(&output.stderr);
        let kubeconfig = output.home().join(".kube/config");
        for part in [
            "error: ",
            "/config/images",
            "KUBERNETES_SERVICE_HOST",
            "KUBECONFIG",
            kubeconfig.to_str().unwrap(),
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}

#[test]
fn invalid_file_is_refused_by_name() {
    let refused = |path: &Path, why: &str| {
        let output = plan().arg("--images-file").arg(path).run().expect(1);
        assert_eq!(output.stdout, "");
        let error = last_line(&output.stderr);
        assert!(error.starts_with("error: "), "{error}");
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        assert!(error.contains(why), "{error}");
    };
    let home = directory();
    let path = |name: &str| home.path().join(name);
    refused(home.path(), "not a regular file");

    run(Command::new("mkfifo").arg(path("pipe")));
    refused(&path("pipe"), "not a regular file");

    std::fs::write(path("nul"), b"nginx:1\nbu\0sy\n").unwrap();
    refused(&path("nul"), "line 2");
    // The program itself is used as a binary file.
    refused(Path::new(env!("CARGO_BIN_EXE_harpoon")), "not text");
    std::fs::write(path("latin"), b"# caf\xe9\n").unwrap();
    refused(&path("latin"), "not UTF-8");

    std::fs::write(path("file"), "nginx:1\n").unwrap();
    refused(&path("file/images"), "Not a directory");
    std::os::unix::fs::symlink("loop", path("loop")).unwrap();
    refused(&path("loop"), "symbolic link");
}

#[test]
fn empty_file_succeeds_with_warning() {
    for text in ["", "\n\n", "# nothing yet\n"] {
        for command in ["plan", "run"] {
            let harpoon = Harpoon::new([command, "--output", "json"]);
            let list = file(&harpoon, text);
            let store = harpoon.home().join("store");
            let output = harpoon
                .env("IMAGES_FILE", &list)
                .env("RUNTIME_ENDPOINT", format!("oci:{}", store.display()))
                .run()
                .expect(0);
            assert_eq!(output.json()["images"], json!([]));
            let warning = output
                .stderr
                .lines()
                .find(|line| line.contains("WARN"))
                .unwrap_or_else(|| panic!("no warning: {output}"));
            assert!(warning.contains(list.to_str().unwrap()), "{warning}");
        }
    }
}

#[test]
fn million_images_are_refused_comments_allowed() {
    let plan = plan();
    let lines: String = (0..1_000_000)
        .map(|n| format!("app/image-{n}:1\n"))
        .collect();
    let list = file(&plan, lines);
    let output = plan.clone().env("IMAGES_FILE", &list).run().expect(1);
    let error = last_line(&output.stderr);
    assert!(
        error.contains("more than 100000 images") && error.contains(list.to_str().unwrap()),
        "{error}"
    );
    // A usual memory limit of an init container.
    assert!(
        output.peak_anonymous < 100 << 20,
        "{}",
        output.peak_anonymous
    );
    file(&plan, "# nothing\n".repeat(1_000_000) + "app:1\n");
    let output = plan.env("IMAGES_FILE", &list).run().expect(0);
    assert_eq!(images(&output.json()), ["app:1"]);
}

/// When a kubelet updates a ConfigMap, it replaces the directory with another one at any moment; and the file may be removed.
#[test]
fn changing_file_is_never_read_partially() {
    let config = directory();
    for (version, count) in [("one", 2000), ("two", 3000)] {
        std::fs::create_dir(config.path().join(version)).unwrap();
        let lines: String = (0..count)
            .map(|n| format!("{version}/{n:04}:1\n"))
            .collect();
        std::fs::write(config.path().join(version).join("images"), lines).unwrap();
    }
    let link = config.path().join("data");
    let swap = |to: &str| {
        let fresh = config.path().join("fresh");
        std::os::unix::fs::symlink(to, &fresh).unwrap();
        std::fs::rename(&fresh, &link).unwrap();
    };
    swap("one");
    let stop = AtomicBool::new(false);
    let ends: Vec<String> = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for to in ["two", "gone", "one"] {
                    swap(to);
                    std::thread::sleep(Duration::from_micros(300));
                }
            }
        });
        let run = |_| {
            let output = plan().pod().env("IMAGES_FILE", link.join("images")).run();
            if output.code == Some(2) {
                // A named file must exist: the cluster does not replace it.
                assert!(
                    last_line(&output.stderr).contains("does not exist"),
                    "{}",
                    output.stderr
                );
                return "gone".to_owned();
            }
            let json = output.expect_quietly(0).json();
            let images = images(&json);
            let version = images[0].split('/').next().unwrap();
            let count = if version == "one" { 2000 } else { 3000 };
            assert_eq!(images.len(), count);
            assert!(images.iter().all(|image| image.starts_with(version)));
            version.to_owned()
        };
        let ends = (0..12).map(run).collect();
        stop.store(true, Ordering::Relaxed);
        ends
    });
    swap("two");
    let output = plan()
        .env("IMAGES_FILE", link.join("images"))
        .run()
        .expect_quietly(0);
    assert_eq!(images(&output.json()).len(), 3000, "after {ends:?}");
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}
