//! Continuous mode as users install it: the chart, an ImagePrefetch, a change of the mode and back, and what an uninstall leaves.

use std::process::Command;

use super::*;

/// The kinds of objects that a release can have, for `kubectl get`.
const KINDS: &str = "deployments,daemonsets,replicasets,pods,serviceaccounts,configmaps,clusterroles,clusterrolebindings,\
    roles,rolebindings,leases,poddisruptionbudgets,priorityclasses,jobs";
const DEFINITIONS: [&str; 3] = [
    "imageprefetches.harpoon.dev",
    "plannedimages.harpoon.dev",
    "nodeprefetches.harpoon.dev",
];

/// A release of the chart, which is uninstalled with its definitions when the value is dropped.
pub(super) struct Release<'a> {
    pub(super) turn: &'a Turn<'a>,
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        let quietly = |mut command: Command| _ = command.output();
        quietly(self.helm(&["uninstall", "harpoon", "--ignore-not-found"]));
        let kubectl = tool("kubectl");
        let mut delete = self.turn.cluster.inside(path(&kubectl));
        delete
            .arg("--kubeconfig")
            .arg(self.turn.cluster.api.kubeconfig());
        delete.args(["delete", "crd", "--ignore-not-found", "--timeout=30s"]);
        delete.args(DEFINITIONS);
        quietly(delete);
    }
}

fn path(command: &Command) -> &str {
    command.get_program().to_str().unwrap()
}

impl Release<'_> {
    /// helm on the node, for the release's namespace.
    fn helm(&self, arguments: &[&str]) -> Command {
        let home = self.turn.cluster.api.kubeconfig().with_file_name("helm");
        let mut command = self.turn.cluster.inside(path(&tool("helm")));
        command
            .arg("--kubeconfig")
            .arg(self.turn.cluster.api.kubeconfig());
        for (variable, below) in [
            ("HELM_CACHE_HOME", "cache"),
            ("HELM_CONFIG_HOME", "config"),
            ("HELM_DATA_HOME", "data"),
        ] {
            command.env(variable, home.join(below));
        }
        command.args(["--namespace", NAMESPACE]).args(arguments);
        command
    }

    /// `helm install` or `helm upgrade` with these values.
    #[track_caller]
    pub(super) fn apply(&self, verb: &str, values: &Value) {
        let (repository, tag) = self.turn.cluster.harpoon().rsplit_once(':').unwrap();
        let mut values = values.clone();
        values["image"] = json!({"repository": repository, "tag": tag});
        let directory = crate::bed::directory();
        let file = directory.path().join("values.yaml");
        std::fs::write(&file, values.to_string()).unwrap();
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/chart");
        let mut helm = self.helm(&[verb, "harpoon"]);
        // An API server of Kubernetes 1.20 refuses to apply the rules of the definitions, and drops them from what is created.
        helm.arg("--server-side=false");
        run(helm.arg(chart).arg("--values").arg(&file));
    }

    /// The objects of the release, as `Kind/name`.
    fn objects(&self) -> Vec<String> {
        let selector = "app.kubernetes.io/instance=harpoon";
        let arguments = ["get", KINDS, "-A", "-l", selector, "-o", "json"];
        let list = self.turn.cluster.kubectl(&arguments);
        let list: Value = serde_json::from_str(&list).unwrap();
        let items = list["items"].as_array().unwrap().iter();
        let name = |object: &Value| {
            let metadata = &object["metadata"];
            format!("{}/{}", text(&object["kind"]), text(&metadata["name"]))
        };
        items.map(name).collect()
    }

    /// Waits until no object of the release is left whose kind and name this returns true for.
    fn wait_until_gone(&self, what: &str, is_meant: impl Fn(&str) -> bool) {
        let cluster = self.turn.cluster;
        cluster.wait_for(NAMESPACE, &format!("{what}: gone"), || {
            let mut objects = self.objects();
            objects.retain(|object| is_meant(object));
            objects.is_empty().then_some(())
        });
    }

    #[track_caller]
    pub(super) fn wait_for_rollout(&self, workload: &str) {
        let status = [
            "rollout",
            "status",
            workload,
            "-n",
            NAMESPACE,
            "--timeout=180s",
        ];
        self.turn.cluster.kubectl(&status);
    }

    /// As a script does before a release: `kubectl wait`.
    #[track_caller]
    pub(super) fn wait_for_prefetch(&self, name: &str) {
        let wait = [
            "wait",
            "--for=condition=Ready",
            &format!("ipf/{name}"),
            "--timeout=180s",
        ];
        self.turn.cluster.kubectl(&wait);
    }

    /// The same with harpoon's own command; returns what it shows at the end.
    #[track_caller]
    fn watch_status(&self, name: &str) -> String {
        let cluster = self.turn.cluster;
        let mut status = cluster.inside(crate::bed::program());
        status.arg("status").arg(name);
        status.args(["--watch", "--timeout=180s", "--kubeconfig"]);
        run(status.arg(cluster.api.kubeconfig()))
    }

    /// A pod of the Deployment starts, and its image was there before.
    #[track_caller]
    pub(super) fn starts_warm(&self, name: &str, image: &str) {
        let started = self.turn.scale_up(name);
        let events = self.turn.pulled(&started);
        let present = format!("Pulled: Container image \"{image}\" already present on machine");
        assert!(events.contains(&present), "{events:?}");
        let is_pull = |event: &String| event.starts_with("Pulling: ");
        assert!(!events.iter().any(is_pull), "{events:?}");
    }

    /// No container of the pods was restarted.
    fn never_restarted(&self) {
        let selector = "app.kubernetes.io/name=harpoon";
        for pod in self.turn.cluster.pods(NAMESPACE, selector) {
            for container in pod["status"]["containerStatuses"]
                .as_array()
                .into_iter()
                .flatten()
            {
                assert_eq!(container["restartCount"], 0, "{container:#}");
            }
        }
    }
}

/// Install, prefetch, pod, mode `once` and back, uninstall.
pub(super) fn whole_life(turn: &Turn<'_>) {
    let (cluster, release) = (turn.cluster, Release { turn });
    let listed = turn.idle("listed");
    release.apply("install", &json!({"mode": "continuous"}));
    release.wait_for_rollout("deployment/harpoon-controller");
    release.wait_for_rollout("daemonset/harpoon-agent");
    assert!(!cluster.has(&listed));

    // What the docs show for a release.
    let prefetch = json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "ImagePrefetch", "metadata": {"name": "release-42"},
        "spec": {"source": {"images": [listed]}, "rollout": {"window": "10s"}, "retention": {"keepAfterUnused": "0s"}}});
    cluster.apply(&prefetch.to_string());
    release.wait_for_prefetch("release-42");
    assert!(cluster.has(&listed));
    let row = cluster.kubectl(&["get", "ipf", "release-42", "--no-headers"]);
    let row: Vec<_> = row.split_whitespace().collect();
    assert_eq!(row[..6], ["release-42", "True", "1", "1", "1", "0"]);
    let node = cluster.kubectl(&["get", "npf", "node-1", "--no-headers"]);
    let node: Vec<_> = node.split_whitespace().collect();
    assert_eq!(node[..6], ["node-1", "True", "1", "1", "0", "0"]);
    release.starts_warm("listed", &listed);
    monitored::by_prometheus(cluster);

    // A value that changes rolls out, while an image is there before its pods as before.
    let used = turn.idle("used");
    let mut values = json!({"mode": "continuous", "prefetch": {"workloads": {"namespaces": [NAMESPACE]}},
        "settings": {"LOG_LEVEL": "debug"}});
    release.apply("upgrade", &values);
    release.wait_for_rollout("deployment/harpoon-controller");
    release.wait_for_rollout("daemonset/harpoon-agent");
    release.wait_for_prefetch("harpoon");
    assert!(cluster.has(&used));
    release.starts_warm("used", &used);
    release.never_restarted();

    // To the other mode: nothing of this one stays.
    let later = turn.idle("later");
    release.apply("upgrade", &json!({"mode": "once"}));
    release.wait_for_rollout("daemonset/harpoon");
    assert!(cluster.has(&later));
    release.wait_until_gone("continuous mode", |object| {
        ["agent", "controller"]
            .iter()
            .any(|part| object.contains(part))
    });
    let left = cluster.kubectl(&["get", "ipf", "-o", "name"]);
    assert_eq!(left.trim(), "imageprefetch.harpoon.dev/release-42");

    // And back: what was planned meanwhile is pulled.
    let last = turn.idle("last");
    values["cleanup"] = json!({"enabled": true});
    release.apply("upgrade", &values);
    release.wait_for_rollout("daemonset/harpoon-agent");
    let shown = release.watch_status("harpoon");
    assert!(
        shown.contains(&last) && shown.contains("1 of 1 nodes complete"),
        "{shown}"
    );
    assert!(cluster.has(&last));
    release.wait_until_gone("mode once", |object| object == "DaemonSet/harpoon");

    protect_images(&release);
    let began = Instant::now();
    run(&mut release.helm(&["uninstall", "harpoon"]));
    eprintln!(
        "e2e: uninstalled, with the clean-up of the node, in {:.1?}",
        began.elapsed()
    );
    assert_eq!(protected(cluster), (0, 0));
    release.wait_until_gone("the release", |_| true);
    let delete = [&["delete", "crd", "--timeout=60s"][..], &DEFINITIONS].concat();
    cluster.kubectl(&delete);
    let left = cluster.kubectl(&["get", "crd,leases", "-A", "-o", "name"]);
    assert!(!left.contains("harpoon"), "{left}");
}

/// The numbers of pinned names and of seals on the node.
fn protected(cluster: &Cluster) -> (usize, usize) {
    let names = cluster.ctr(&["images", "list"]);
    let leases = cluster.ctr(&["leases", "list", "--quiet"]);
    let of_harpoon = |lease: &&str| lease.starts_with("harpoon/");
    (
        names.matches("harpoon.dev/pinned").count(),
        leases.lines().filter(of_harpoon).count(),
    )
}

/// Has one image pinned and one sealed.
fn protect_images(release: &Release<'_>) {
    let cluster = release.turn.cluster;
    for (name, spec) in [
        ("pinned", json!({"retention": {"policy": "Pin"}})),
        ("sealed", json!({"seal": "Always"})),
    ] {
        let mut spec = spec;
        let image = cluster.push(&format!("{}:1", unique(name))).reference;
        spec["source"] = json!({"images": [image]});
        spec["rollout"] = json!({"type": "Immediate"});
        let prefetch = json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "ImagePrefetch", "metadata": {"name": name},
            "spec": spec});
        cluster.apply(&prefetch.to_string());
    }
    for name in ["pinned", "sealed"] {
        release.wait_for_prefetch(name);
    }
    cluster.wait_for(NAMESPACE, "one is pinned, one is sealed", || {
        let (pins, seals) = protected(cluster);
        (pins > 0 && seals == 1).then_some(())
    });
}
