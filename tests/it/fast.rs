//! Fast fill on a real containerd: the same image as by containerd's own pull, sooner, and the runtime wherever that is not sure.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::bed::faulty::{Fault, Proxy};
use crate::bed::{self, Containerd, Harpoon, Output, Runtime as _, registry, unique};
use crate::pulling::entry;

mod faults;
mod hosts;
mod interrupted;
mod places;
mod sealed;

/// The user agent of containerd's own requests.
const CONTAINERD: &str = "containerd/";

/// `harpoon pull --fill fast`.
fn fast(containerd: &Containerd, images: &[&str]) -> Harpoon {
    Harpoon::new(["pull", "--log-level=debug", "--runtime-endpoint"])
        .args([containerd.endpoint(), "--"])
        .args(images)
        .env("OUTPUT", "json")
        .env("FILL", "fast")
}

/// Fails the test unless harpoon itself filled containerd.
#[track_caller]
fn filled(output: &Output) {
    assert!(!output.stderr.contains("the runtime pulls"), "{output}");
}

/// Digests, sizes and labels of all blobs.
fn content(containerd: &Containerd) -> BTreeMap<String, Vec<String>> {
    let list = containerd.ctr(&["content", "list"]);
    let line = |line: &str| {
        let mut fields = line.split('\t').filter(|field| !field.is_empty());
        let digest = fields.next()?.to_owned();
        let mut rest: Vec<String> = vec![fields.next()?.to_owned()];
        let labels = fields.nth(1).unwrap_or_default();
        rest.extend(labels.split(',').map(str::to_owned));
        rest.sort();
        Some((digest, rest))
    };
    list.lines().skip(1).filter_map(line).collect()
}

/// All snapshots, as containerd describes them, without the times.
fn snapshots(containerd: &Containerd) -> BTreeMap<String, Value> {
    let list = containerd.ctr(&["snapshots", "list"]);
    let keys = list
        .lines()
        .skip(1)
        .filter_map(|line| line.split("  ").next());
    let keys = keys.map(|key| key.split(" sha256:").next().unwrap().trim().to_owned());
    let info = |key: String| {
        let text = containerd.ctr(&["snapshots", "info", &key]);
        let mut info: Value = serde_json::from_str(&text).unwrap();
        for time in ["Created", "Updated"] {
            info.as_object_mut().unwrap().remove(time);
        }
        (key, info)
    };
    keys.map(info).collect()
}

/// Names, types and digests of all images, and whether containerd takes them for complete and unpacked.
fn images(containerd: &Containerd) -> Vec<String> {
    let checked = containerd.ctr(&["images", "check"]);
    let mut lines: Vec<_> = checked.lines().skip(1).map(str::to_owned).collect();
    lines.sort();
    lines
}

/// The tree of an image, as a container sees it.
fn tree(containerd: &Containerd, image: &str) -> String {
    let target = bed::directory();
    let path = target.path().to_str().unwrap();
    containerd.ctr(&["images", "mount", image, path]);
    let listed = bed::run(Command::new("sh").args([
        "-c",
        "cd \"$1\" && find . -mindepth 1 -printf '%P %y %m %U %G %T@ %n %s\\n' | sort && find . -type f -exec sha256sum {} + | sort",
        "sh",
        path,
    ]));
    containerd.ctr(&["images", "unmount", "--rm", path]);
    listed
}

fn export(containerd: &Containerd, image: &str) -> Vec<u8> {
    let directory = bed::directory();
    let file = directory.path().join("image.tar");
    containerd.ctr(&["images", "export", file.to_str().unwrap(), image]);
    std::fs::read(file).unwrap()
}

#[test]
fn filled_image_equals_the_runtimes() {
    let (ours, theirs) = (Containerd::start(), Containerd::start());
    for (name, platforms) in [("one", &[][..]), ("index", &["linux/amd64", "linux/arm64"])] {
        let image = registry().image(&format!("{}:1", unique(name)));
        let image = image.layers(4).size(400_000).platforms_if(platforms);
        let pushed = image.push();
        let reference = &*pushed.reference;
        let output = fast(&ours, &[reference]).run().expect(0);
        filled(&output);
        let report = output.json();
        assert_eq!(entry(&report, reference)["outcome"], "pulled");
        assert_eq!(entry(&report, reference)["digest"], pushed.digest);
        fast(&theirs, &[reference])
            .env("FILL", "runtime")
            .run()
            .expect(0);
        assert_eq!(images(&ours), images(&theirs));
        assert_eq!(content(&ours), content(&theirs));
        assert_eq!(snapshots(&ours), snapshots(&theirs));
        assert_eq!(tree(&ours, reference), tree(&theirs, reference));
        assert!(export(&ours, reference) == export(&theirs, reference));
    }
    assert_eq!(ours.leases(), [""; 0]);
}

#[test]
fn container_of_filled_image_runs() {
    let containerd = Containerd::start();
    let image = registry().image(&format!("{}:1", unique("run")));
    let pushed = image.layers(3).push();
    filled(&fast(&containerd, &[&pushed.reference]).run().expect(0));
    let name = unique("container");
    containerd.ctr(&["run", "--detach", &pushed.reference, &name]);
    let tasks = containerd.ctr(&["tasks", "list"]);
    containerd.ctr(&["tasks", "kill", "--signal", "SIGKILL", &name]);
    bed::eventually("the task ends", Duration::from_secs(20), || {
        containerd.ctr(&["tasks", "list"]).contains("STOPPED")
    });
    containerd.ctr(&["tasks", "delete", &name]);
    containerd.ctr(&["containers", "delete", &name]);
    let running = tasks.lines().find(|line| line.starts_with(&name));
    assert!(running.unwrap().contains("RUNNING"), "{tasks}");
}

#[test]
fn removing_the_image_frees_all() {
    let containerd = Containerd::start();
    let image = registry().image(&format!("{}:1", unique("freed")));
    let pushed = image.layers(3).push();
    filled(&fast(&containerd, &[&pushed.reference]).run().expect(0));
    assert!(!snapshots(&containerd).is_empty());
    for name in containerd.images() {
        containerd.remove(&name);
    }
    assert_eq!(content(&containerd), BTreeMap::new());
    assert_eq!(snapshots(&containerd), BTreeMap::new());
}

#[test]
fn shared_layers_are_reused_both_ways() {
    let seed = unique("seed");
    let proxy = Proxy::start(registry().url(), |_| Fault::Pass);
    let push = |layers: usize| {
        let name = format!("{}:1", unique("shared"));
        let image = registry().image(&name).seed(&seed).layers(layers);
        image.size(100_000 * layers as u64).push();
        proxy.reference(&name)
    };
    let images = [push(2), push(3), push(4)];
    let containerd = Containerd::start();
    let fills = ["runtime", "fast", "runtime"];
    // The first image has two layers, each further one has one more; besides them, a configuration.
    for ((image, fill), blobs) in images.iter().zip(fills).zip([3, 2, 2]) {
        let before = proxy.count(|seen| seen.is_blob());
        let output = fast(&containerd, &[image])
            .env("FILL", fill)
            .run()
            .expect(0);
        if fill == "fast" {
            filled(&output);
        }
        let asked = proxy.count(|seen| seen.is_blob()) - before;
        assert_eq!(asked, blobs, "{image} by {fill}: {output}");
    }
}

#[test]
fn present_content_is_not_fetched() {
    let containerd = Containerd::start();
    let (name, seed) = (unique("content"), unique("seed"));
    let proxy = Proxy::start(registry().url(), |_| Fault::Pass);
    let [image, other] = ["1", "2"].map(|tag| {
        let image = registry().image(&format!("{name}:{tag}")).seed(&seed);
        image.layers(2).size(200_000).push();
        proxy.reference(&format!("{name}:{tag}"))
    });
    // Fetched but not unpacked.
    containerd.ctr(&["content", "fetch", "--plain-http", &other]);
    let before = proxy.count(|seen| seen.is_blob());
    filled(&fast(&containerd, &[&image]).run().expect(0));
    // The configuration alone is read from the registry.
    assert_eq!(proxy.count(|seen| seen.is_blob()) - before, 1);
    let checked = images(&containerd);
    let is_whole = |line: &&String| line.starts_with(&image);
    assert!(checked.iter().find(is_whole).unwrap().contains("true"));
}

#[test]
fn two_fillers_and_containerd_agree() {
    let containerd = Containerd::start();
    let name = format!("{}:1", unique("races"));
    registry().image(&name).layers(4).size(8_000_000).push();
    let proxy = Proxy::start(registry().url(), |seen| match seen.is_blob() {
        true => Fault::Throttle(4_000_000),
        false => Fault::Pass,
    });
    let image = proxy.reference(&name);
    let started: Vec<_> = ["fast", "fast", "runtime"]
        .into_iter()
        .map(|fill| fast(&containerd, &[&image]).env("FILL", fill).start())
        .collect();
    for harpoon in started {
        harpoon.wait().expect(0);
    }
    assert!(
        images(&containerd)
            .iter()
            .all(|line| line.contains("complete (5/5)"))
    );
    for name in containerd.images() {
        containerd.remove(&name);
    }
    assert_eq!(snapshots(&containerd), BTreeMap::new());
}

#[test]
fn large_image_needs_little_memory() {
    let containerd = Containerd::start();
    let image = registry().image(&format!("{}:1", unique("large")));
    let pushed = image.layers(3).size(300_000_000).uncompressed().push();
    // A slow link, so that layers come in parts.
    let proxy = Proxy::start(registry().url(), |seen| match seen.is_blob() {
        true => Fault::Throttle(60_000_000),
        false => Fault::Pass,
    });
    let image = proxy.reference(pushed.reference.split_once('/').unwrap().1);
    let output = fast(&containerd, &[&image]).run().expect(0);
    filled(&output);
    assert!(output.peak_rss < 128 << 20, "{} bytes", output.peak_rss);
    assert!(proxy.count(|seen| seen.is_blob()) > 10, "no parts");
}

#[test]
fn charts_capabilities_are_enough() {
    let containerd = bed::containerd();
    let image = registry().image(&format!("{}:1", unique("confined")));
    let pushed = image.layers(3).push();
    // The capabilities that the chart adds, and no others.
    let capabilities = "--bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+mknod,+setfcap";
    let output = fast(containerd, &[&pushed.reference])
        .under(["setpriv", "--no-new-privs", capabilities])
        .run()
        .expect(0);
    filled(&output);
}

#[test]
fn fast_without_containerd_is_refused() {
    let directory = bed::directory();
    let endpoint = format!("oci:{}", directory.path().display());
    let output = Harpoon::new(["pull", "--fill=fast", "--runtime-endpoint", &endpoint])
        .arg("registry.example/web:1")
        .run()
        .expect(3);
    assert!(output.stderr.contains("--fill fast (FILL)"), "{output}");
    let output = Harpoon::new(["pull", "--fill=slow", "registry.example/web:1"])
        .run()
        .expect(2);
    assert!(
        output.stderr.contains("expected auto, runtime or fast"),
        "{output}"
    );
}

#[test]
fn unmounted_root_leaves_it_to_the_runtime() {
    let containerd = bed::containerd();
    let pushed = registry().push(&format!("{}:1", unique("unmounted")));
    // A file tree of its own, in which containerd's directory is empty.
    let hide = "mount -t tmpfs none \"$0\" && exec \"$@\"";
    let root = containerd.store();
    let hidden = |fill: &str| {
        let harpoon = fast(containerd, &[&pushed.reference]).env("FILL", fill);
        let hide = ["unshare", "--mount", "sh", "-c", hide].map(std::ffi::OsString::from);
        harpoon.under(hide.into_iter().chain([root.clone().into_os_string()]))
    };
    let output = hidden("fast").run().expect(3);
    assert!(output.stderr.contains("is not mounted"), "{output}");
    let output = hidden("auto").run().expect(0);
    assert!(
        output.stderr.contains("the runtime pulls (--fill)"),
        "{output}"
    );
    let shown = output.json();
    assert_eq!(entry(&shown, &pushed.reference)["outcome"], "pulled");
}
