//! Sealed images and a real kubelet: who gets them, and what that costs.
//!
//! The kubelet is 1.20, which has no credential verification (KEP-2535, on by default from Kubernetes 1.35 on): an image that has a
//! name on the node runs in any pod whose pull policy is not `Always`. So what is refused here is refused by the registry, because
//! a sealed image has no name, and not by the kubelet. From the moment when a pod with the secret has pulled it until its name is
//! collected, only `Always` keeps others out; a newer kubelet refuses them itself then.

use std::process::Stdio;
use std::time::Duration;

use super::*;
use crate::bed::{Logged, Pushed, directory, has_newer_runtimes};

/// Images that are pulled at the same moment in [`pulls_at_once`].
const AT_ONCE: usize = 8;
/// Images of [`pulls_at_once`] in all, where `SEALED` says no other number.
const ROUNDS: usize = 16;

/// A private image and a Deployment of it without pods.
struct Private<'a> {
    turn: &'a Turn<'a>,
    name: String,
    image: Pushed,
}

impl<'a> Private<'a> {
    fn new(turn: &'a Turn<'a>, name: &str) -> Self {
        let image = turn.cluster.private_image(&format!("{}:1", unique(name)));
        let image = image.size(3_000_000).layers(3).push();
        turn.private_deployment(name, &image.reference);
        Self {
            turn,
            name: name.to_owned(),
            image,
        }
    }

    /// Neither the kubelet nor containerd's own client finds the image.
    #[track_caller]
    fn has_no_name(&self) {
        let cluster = self.turn.cluster;
        assert_eq!(cluster.names(&self.image.digest), [""; 0]);
        assert!(!cluster.lists(&self.image), "{:?}", cluster.listed());
    }

    /// A pod without the secret does not start, for this reason.
    #[track_caller]
    fn refused(&self, policy: &str, reason: &str) {
        let name = unique("stranger");
        let containers =
            json!([{"name": "main", "image": self.image.reference, "imagePullPolicy": policy}]);
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": containers}});
        let (cluster, namespace) = (self.turn.cluster, &*self.turn.namespace);
        let pods = format!("/api/v1/namespaces/{namespace}/pods");
        cluster.api.create(&pods, pod);
        let path = format!("{pods}/{name}");
        let state = cluster.wait_for(namespace, "the pod is refused", || {
            let pod = cluster.api.get(&path);
            let state = pod["status"]["containerStatuses"][0]["state"].clone();
            let waits = state["waiting"]["reason"] == reason;
            (waits || state["running"].is_object()).then_some(state)
        });
        assert_eq!(state["waiting"]["reason"], reason, "{state:#}");
        // It is the registry that refuses it.
        let message = text(&state["waiting"]["message"]);
        let refusals = ["401 Unauthorized", "no basic auth credentials"];
        let by_registry = refusals.iter().any(|refusal| message.contains(refusal));
        assert_eq!(by_registry, reason == "ErrImagePull", "{message}");
        cluster.end_pods(namespace, &[&name]);
    }

    /// A pod with the secret starts, its image pulled without a layer.
    #[track_caller]
    fn starts_at_once(&self) {
        let cluster = self.turn.cluster;
        let asked = cluster.requests().len();
        let pod = self.turn.scale_up(&self.name);
        let events = self.turn.pulled(&pod);
        let pulled = format!(
            "Pulled: Successfully pulled image \"{}\" in ",
            self.image.reference
        );
        let time = events.iter().find_map(|event| event.strip_prefix(&pulled));
        let time = time.unwrap_or_else(|| panic!("{events:?}"));
        let requests: Vec<_> = cluster.requests().into_iter().skip(asked).collect();
        self.only_asked(&requests);
        eprintln!("e2e: a pod's sealed image is pulled in {time}");
        let running = &pod["status"]["containerStatuses"][0];
        assert_eq!(running["restartCount"], 0, "{running:#}");
    }

    /// One request without the password and one with it, and no layer.
    #[track_caller]
    fn only_asked(&self, requests: &[Logged]) {
        let (path, tag) = self.image.reference.rsplit_once(':').unwrap();
        let (_, repository) = path.split_once('/').unwrap();
        let head = |status| Logged {
            method: "HEAD".into(),
            path: format!("/v2/{repository}/manifests/{tag}"),
            status,
        };
        assert_eq!(requests, [head(401), head(200)]);
    }

    /// Ends the Deployment's pods.
    fn scale_down(&self) {
        let (cluster, namespace) = (self.turn.cluster, &*self.turn.namespace);
        let path = format!(
            "/apis/apps/v1/namespaces/{namespace}/deployments/{}",
            self.name
        );
        cluster.api.patch(&path, json!({"spec": {"replicas": 0}}));
        self.turn.no_pods(&self.name);
    }
}

/// A sealed image is for pods that may pull it: they start at once, and others do not start.
pub(super) fn for_its_pullers(turn: &Turn<'_>) {
    let private = Private::new(turn, "private");
    let settings = json!({"PULL_SECRETS": true});
    let harpoon = turn.install(&chart(&json!({"settings": settings})));
    let pod = harpoon.ready();
    let summary = summary(&pod);
    assert!(summary.starts_with("harpoon: pulled 1 ("), "{summary}");
    let log = harpoon.log(&pod);
    assert!(log.contains("sealed"), "{log}");
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    private.has_no_name();

    private.refused("IfNotPresent", "ErrImagePull");
    private.refused("Never", "ErrImageNeverPull");
    private.has_no_name();
    private.starts_at_once();
    assert!(turn.cluster.lists(&private.image));
    private.refused("Always", "ErrImagePull");

    // What the kubelet's garbage collection removes comes back without a layer.
    private.scale_down();
    turn.cluster.collect(&private.image);
    private.has_no_name();
    private.refused("IfNotPresent", "ErrImagePull");
    private.refused("Never", "ErrImageNeverPull");
    private.starts_at_once();
    private.scale_down();
    turn.cluster.collect(&private.image);

    // A further run finds the seal and asks nothing of the registry.
    let asked = turn.cluster.requests().len();
    harpoon.run_again();
    let summary = self::summary(&harpoon.ready()).to_owned();
    assert!(summary.contains("present 1"), "{summary}");
    assert_eq!(turn.cluster.requests()[asked..], []);
    private.has_no_name();
    turn.cluster.harpoon_runs(&["release"]);
}

/// The kubelet and harpoon pull the same images at the same moment, in many rounds: every pod starts, and its image keeps its name.
pub(super) fn pulls_at_once(turn: &Turn<'_>) {
    let rounds = std::env::var("SEALED").map_or(ROUNDS, |text| {
        text.parse().expect("SEALED is a number of rounds")
    });
    let cluster = turn.cluster;
    let secret = cluster.pull_secret(&turn.namespace);
    let images: Vec<_> = (0..AT_ONCE)
        .map(|_| cluster.private_image(&format!("{}:1", unique("meeting"))))
        .map(|image| image.size(2_000_000).layers(3).push())
        .collect();
    let seed = fastrand::u64(..);
    eprintln!("e2e: {rounds} rounds, {AT_ONCE} at once, seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut by_kubelet, mut by_both) = (0, 0);
    for _ in 0..rounds.div_ceil(AT_ONCE) {
        for who in meet(turn, &images, &secret, &mut random) {
            by_kubelet += usize::from(who.kubelet);
            by_both += usize::from(who.kubelet && who.harpoon);
        }
    }
    eprintln!("e2e: the kubelet pulled {by_kubelet}, of which harpoon pulled {by_both} too");
}

/// The side that pulled an image; the other one found it present.
struct Pullers {
    kubelet: bool,
    harpoon: bool,
}

/// One meeting of the kubelet's pulls and harpoon's, and its end: nothing of the images is left.
fn meet(
    turn: &Turn<'_>,
    images: &[Pushed],
    secret: &str,
    random: &mut fastrand::Rng,
) -> Vec<Pullers> {
    let (cluster, namespace) = (turn.cluster, &*turn.namespace);
    let home = directory();
    let mut order: Vec<_> = images.iter().map(|image| &*image.reference).collect();
    random.shuffle(&mut order);
    let pull = ["pull", "--seal", "always", "--output", "json"];
    let mut harpoon = cluster.program(home.path(), &[&pull[..], &order].concat());
    harpoon.stdout(Stdio::piped()).stderr(Stdio::piped());
    let pods = images.iter().map(|image| {
        let pod = json!({"metadata": {"name": unique("meeting"), "labels": {"app": "meeting"}},
            "spec": {"containers": [{"name": "main", "image": image.reference}], "imagePullSecrets": [{"name": secret}]}});
        (format!("/api/v1/namespaces/{namespace}/pods"), pod)
    });
    let started = match random.u8(0..3) {
        0 => {
            cluster.api.create_each(pods);
            std::thread::sleep(Duration::from_millis(random.u64(0..1000)));
            harpoon.spawn().unwrap()
        }
        turn => {
            let started = harpoon.spawn().unwrap();
            // Either while harpoon pulls, or while it removes the names that its pulls through the CRI have made.
            let late = turn == 1 && !has_newer_runtimes();
            let delay = if late { 9500..12_000 } else { 0..500 };
            std::thread::sleep(Duration::from_millis(random.u64(delay)));
            cluster.api.create_each(pods);
            started
        }
    };
    let running = cluster.wait_for(namespace, "all pods run", || {
        let mut pods = cluster.pods(namespace, "app=meeting");
        pods.retain(is_ready);
        (pods.len() == images.len()).then_some(pods)
    });
    // When harpoon has ended, it has done all that it does to names.
    let output = started.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    for image in images {
        let names = cluster.names(&image.digest);
        assert!(names.contains(&image.reference), "{names:?}\n{told}");
        assert!(cluster.lists(image), "{names:?}\n{told}");
    }
    let report = serde_json::from_slice(&output.stdout).unwrap();
    let pullers = running.iter().map(|pod| pullers(turn, pod, &report));
    let pullers = pullers.collect();
    cluster.end_pods(namespace, &["-l", "app=meeting"]);
    turn.no_pods("meeting");
    for image in images {
        cluster.collect(image);
    }
    cluster.harpoon_runs(&["release"]);
    pullers
}

/// The pod started without any failure; who pulled its image.
#[track_caller]
fn pullers(turn: &Turn<'_>, pod: &Value, report: &Value) -> Pullers {
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 0, "{status:#}");
    let events = turn.pulled(pod);
    let has = |reason: &str| events.iter().any(|event| event.starts_with(reason));
    assert!(!has("Failed: "), "{events:?}\n{report:#}");
    let image = &pod["spec"]["containers"][0]["image"];
    let mut images = report["images"].as_array().unwrap().iter();
    Pullers {
        kubelet: has("Pulling: "),
        harpoon: images.any(|i| i["image"] == *image && i["outcome"] == "pulled"),
    }
}
