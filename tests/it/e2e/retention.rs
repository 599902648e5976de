//! A node whose image file system is full: what a real kubelet removes, what harpoon keeps and gives up, and that no pod is evicted.
//!
//! The kubelet is 1.20, which removes images and evicts pods at the marks of today's, but does not know pinned images: kubelets respect
//! them from 1.29 on. Here only [`Cluster::collect_unpinned`], through the CRI, does what such a kubelet would do.

use std::thread::sleep;
use std::time::Duration;

use super::continuous::Release;
use super::*;
use crate::bed::{Listed, Pushed, has_newer_runtimes};

const DISK: u64 = 2_000_000_000;
/// Compressed bytes of an image, which takes about 4% of the disk.
const IMAGE: u64 = 40_000_000;
/// The kubelet looks at the disk every 10 seconds.
const LOOK: Duration = Duration::from_secs(12);
const IMAGE_FS: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs";

/// A cluster with a small disk, and what is installed on it.
struct Node<'a> {
    cluster: &'a Cluster,
    release: Release<'a>,
}

/// A disk fills up: the kubelet removes images, and harpoon yields before it evicts pods.
pub(super) fn full_disk() {
    let cluster = Cluster::with_disk(DISK);
    let turn = Turn::new(&cluster);
    let node = Node {
        cluster: &cluster,
        release: Release { turn: &turn },
    };
    node.install("install", 100);
    let web = node.push("web");
    turn.deployment("web", &web.reference);
    let pod = turn.scale_up("web");

    let images = Images {
        none: node.prefetch("none", "Auto", "None", IMAGE),
        keep: node.prefetch("keep", "Auto", "Keep", IMAGE),
        pin: node.prefetch("pin", "Auto", "Pin", IMAGE + IMAGE / 10),
        sealed: node.prefetch("sealed", "Always", "Keep", IMAGE),
    };
    node.wait_for("they are there", || {
        images.all().iter().all(|image| node.is_here(image))
            && node.is_pinned(&images.pin)
            && node.is_sealed(&images.sealed)
    });
    node.kubelet_collects(&images);
    node.pull_drops_label(&images.pin);
    node.newer_kubelet_collects(&images);
    node.yields_to_neighbour(&images);
    node.never_crosses_mark();
    assert_eq!(cluster.evicted(), [""; 0]);
    let now = turn.scale_up("web");
    assert_eq!(now["metadata"]["uid"], pod["metadata"]["uid"]);
    let container = &now["status"]["containerStatuses"][0];
    assert_eq!(container["restartCount"], 0, "{container:#}");
    node.pods_are_evicted_without_mark(&images);
    drop(node);
    drop(turn);
    cluster.end();
}

/// An image of each policy.
struct Images {
    none: Pushed,
    keep: Pushed,
    pin: Pushed,
    sealed: Pushed,
}

impl Images {
    fn all(&self) -> [&Pushed; 4] {
        [&self.none, &self.keep, &self.pin, &self.sealed]
    }
}

impl Node<'_> {
    /// Installs harpoon with this high mark.
    fn install(&self, verb: &str, mark: u8) {
        let settings = json!({"RESYNC": "2s", "DISK_HIGH_PERCENT": mark.to_string()});
        let values = json!({"mode": "continuous", "settings": settings, "continuous": {"imageFilesystem": IMAGE_FS}});
        self.release.apply(verb, &values);
        self.release
            .wait_for_rollout("deployment/harpoon-controller");
        self.release.wait_for_rollout("daemonset/harpoon-agent");
    }

    fn push(&self, name: &str) -> Pushed {
        let image = self.cluster.image(&format!("{}:1", unique(name)));
        image.size(IMAGE).push()
    }

    /// Makes an image and an ImagePrefetch of it.
    fn prefetch(&self, name: &str, seal: &str, policy: &str, bytes: u64) -> Pushed {
        let image = self.cluster.image(&format!("{}:1", unique(name)));
        let image = image.size(bytes).push();
        self.plan(name, seal, policy, &[&image.reference]);
        image
    }

    fn plan(&self, name: &str, seal: &str, policy: &str, images: &[&str]) {
        let prefetch = json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "ImagePrefetch", "metadata": {"name": name},
            "spec": {"source": {"images": images}, "rollout": {"window": "0s"}, "seal": seal,
                "retention": {"policy": policy, "keepAfterUnused": "0s"}}});
        self.cluster.apply(&prefetch.to_string());
    }

    /// Removes an ImagePrefetch, and its image as somebody would do by hand.
    fn drop_image(&self, name: &str, image: &Pushed) {
        self.cluster.kubectl(&["delete", "ipf", name]);
        self.wait_for("it has left the plan", || {
            let plan = self
                .cluster
                .kubectl(&["get", "plannedimages", "-o", "json"]);
            !plan.contains(&image.reference)
        });
        if self.cluster.lists(image) {
            self.cluster.collect(image);
        }
    }

    #[track_caller]
    fn wait_for(&self, what: &str, is_so: impl Fn() -> bool) {
        self.cluster
            .wait_for(NAMESPACE, what, || is_so().then_some(()));
    }

    /// It is there, with a name or sealed.
    fn is_here(&self, image: &Pushed) -> bool {
        self.cluster.has(&image.reference) || self.is_sealed(image)
    }

    /// All names of the image have the label, as harpoon's.
    fn is_pinned(&self, image: &Pushed) -> bool {
        let names = self.cluster.ctr(&["images", "list"]);
        let mut names = names.lines().filter(|line| line.contains(&image.digest));
        let labels = [
            "io.cri-containerd.pinned=pinned",
            &format!("harpoon.dev/pinned={}", image.reference),
        ];
        let is_first = names.clone().next().is_some();
        is_first && names.all(|line| labels.iter().all(|label| line.contains(label)))
    }

    /// It is sealed with all that belongs to it, and has no name.
    fn is_sealed(&self, image: &Pushed) -> bool {
        let seals = self.cluster.harpoon_runs(&["seals", "--output", "json"]);
        let seals: Value = serde_json::from_str(&seals).unwrap();
        let mut seals = seals["seals"].as_array().unwrap().iter();
        let is_whole =
            seals.any(|seal| seal["image"] == image.reference.as_str() && seal["complete"] == true);
        is_whole && self.cluster.names(&image.digest).is_empty()
    }

    fn status(&self) -> Value {
        let path = "/apis/harpoon.dev/v1alpha1/nodeprefetches/node-1";
        self.cluster.api.get(path)["status"].clone()
    }

    fn has_condition(&self, kind: &str) -> bool {
        let status = self.status();
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        conditions.any(|condition| condition["type"] == kind && condition["status"] == "True")
    }

    /// The reason why the image is not there.
    fn failure(&self, image: &Pushed) -> Option<String> {
        let status = self.status();
        let mut failures = status["failures"].as_array().into_iter().flatten();
        let failure = failures.find(|failure| failure["image"] == image.reference.as_str())?;
        Some(text(&failure["reason"]).to_owned())
    }

    fn agent_log(&self) -> String {
        let logs = ["logs", "daemonset/harpoon-agent", "-n", NAMESPACE];
        self.cluster.kubectl(&logs)
    }

    /// The kubelet's own collection: `Keep` and `Pin` are back, `None` is gone, the sealed image was never touched.
    fn kubelet_collects(&self, images: &Images) {
        let Images {
            none, keep, pin, ..
        } = images;
        let listed = self.cluster.listed();
        let id = |image: &Pushed| {
            let mut all = listed.iter();
            let own = all.find(|listed| listed.repo_tags.contains(&image.reference));
            own.unwrap_or_else(|| panic!("{listed:?}")).id.clone()
        };
        let removed = [none, keep].map(|image| format!("Removing image \"{}\"", id(image)));
        self.cluster.fill(87);
        self.wait_for("the kubelet removes images", || {
            let log = self.cluster.kubelet_log();
            removed.iter().all(|line| log.contains(line)) && !self.cluster.has(&none.reference)
        });
        self.wait_for("they are back", || {
            self.cluster.has(&keep.reference) && self.is_pinned(pin)
        });
        assert!(self.is_sealed(&images.sealed));
        assert!(!self.cluster.has(&none.reference));
        assert_eq!(self.cluster.evicted(), [""; 0]);
        self.cluster.fill(0);
    }

    /// A pull by the kubelet takes the label off the tag; it is there again soon.
    fn pull_drops_label(&self, image: &Pushed) {
        let changes = || {
            self.agent_log()
                .matches("changed pins of image names")
                .count()
        };
        let before = changes();
        let name = unique("always");
        let containers =
            json!([{"name": "main", "image": image.reference, "imagePullPolicy": "Always"}]);
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": containers}});
        let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
        let pod = self.cluster.api.create(&pods, pod);
        let events = self.release.turn.pulled(&pod);
        let is_pull = |event: &String| event.starts_with("Pulled: Successfully pulled");
        assert!(events.iter().any(is_pull), "{events:?}");
        self.wait_for("the label is there again", || {
            changes() > before && self.is_pinned(image)
        });
        self.cluster.end_pods(NAMESPACE, &[&name]);
    }

    /// A collector that respects the label leaves the image, if containerd tells of it.
    fn newer_kubelet_collects(&self, images: &Images) {
        let has_pin =
            |listed: &Listed| listed.pinned && listed.repo_tags.contains(&images.pin.reference);
        let is_honoured = has_newer_runtimes();
        self.wait_for("containerd tells of the pin, if it can", || {
            self.cluster.listed().iter().any(has_pin) == is_honoured
                && self.has_condition("PinsIgnored") != is_honoured
        });
        // The pod's container is gone a moment after the pod.
        self.wait_for("no container uses the image", || {
            let containers = self.cluster.ctr(&["containers", "list"]);
            !containers.contains(&images.pin.reference)
        });
        assert!(!self.cluster.collect_unpinned().is_empty());
        assert_eq!(self.cluster.has(&images.pin.reference), is_honoured);
        assert!(!self.cluster.has(&images.keep.reference));
        assert!(self.is_sealed(&images.sealed));
        // It was removed twice.
        self.wait_for("the lost image is named", || {
            self.failure(&images.keep).as_deref() == Some("evicted")
        });
    }

    /// At 82% harpoon gives up what only it protects, until the kubelet could come below the mark; at 88% it gives up all, and the kubelet
    /// finds enough to remove.
    fn yields_to_neighbour(&self, images: &Images) {
        let (pin, sealed) = (&images.pin, &images.sealed);
        for (name, image) in [("none", &images.none), ("keep", &images.keep)] {
            self.drop_image(name, image);
        }
        self.install("upgrade", 80);
        let are_there = || self.is_sealed(sealed) && self.is_pinned(pin);
        self.wait_for("the others are there", are_there);

        self.cluster.fill(82);
        self.wait_for("harpoon yields", || self.has_condition("DiskPressure"));
        // The larger one of equals, unless the kubelet does not see its pin anyway.
        self.wait_for("the pin is given up, or kept", || {
            self.is_pinned(pin) != has_newer_runtimes()
        });
        assert!(self.cluster.has(&pin.reference) && self.is_sealed(sealed));

        self.cluster.fill(88);
        self.wait_for("the seal is given up", || !self.is_sealed(sealed));
        let is_content = || self.cluster.used_percent() < 85;
        self.wait_for("the kubelet is content", is_content);
        sleep(LOOK);
        assert!(is_content());
        assert_eq!(self.cluster.evicted(), [""; 0]);

        self.cluster.fill(0);
        self.wait_for("all are back", are_there);
    }

    /// More images than fit: harpoon stops below the mark.
    fn never_crosses_mark(&self) {
        self.cluster.fill(65);
        let many: Vec<_> = (0..6).map(|_| self.push("many").reference).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        let before = self.cluster.used_percent();
        self.plan("many", "Auto", "Keep", &many);
        let mut highest = before;
        let end = Instant::now() + Duration::from_secs(240);
        let is_done = |status: &Value| {
            let failures = status["failures"].as_array();
            let full = |failure: &Value| failure["reason"] == "disk_pressure";
            status["pulling"] == 0 && failures.is_some_and(|all| all.iter().any(full))
        };
        while !is_done(&self.status()) {
            assert!(Instant::now() < end, "{:#}", self.status());
            highest = highest.max(self.cluster.used_percent());
            sleep(Duration::from_millis(50));
        }
        highest = highest.max(self.cluster.used_percent());
        let present = many.iter().filter(|image| self.cluster.has(image)).count();
        eprintln!(
            "e2e: {present} of {} images fit, {before}% to at most {highest}%",
            many.len()
        );
        assert!((1..many.len()).contains(&present), "{present}");
        assert!(highest <= 80, "{highest}%");
        self.cluster.fill(0);
    }

    /// The same with the mark off: the kubelet cannot remove the sealed image, and evicts pods.
    fn pods_are_evicted_without_mark(&self, images: &Images) {
        self.install("upgrade", 100);
        self.wait_for("it is sealed", || self.is_sealed(&images.sealed));
        self.cluster.kubectl(&["delete", "ipf", "many"]);
        self.wait_for("a pod is evicted", || {
            // The neighbour takes what the kubelet frees.
            if self.cluster.used_percent() < 88 {
                self.cluster.fill(90);
            }
            !self.cluster.evicted().is_empty()
        });
        assert!(self.is_sealed(&images.sealed));
    }
}
