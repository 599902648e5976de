//! Rights that are missing, and definitions that are.

use serde_json::json;

use super::{SOON, Shown, controller, images, object_of, prefetch, set_image, wait_for, workloads};
use crate::bed::{Kubernetes, eventually, unique};

#[test]
fn forbidden_namespace_degrades_its_prefetch() {
    let cluster = Kubernetes::start();
    cluster.install_definitions();
    let (open, closed) = (cluster.namespace(), cluster.namespace());
    let name = unique("controller");
    let token = cluster.service_account(&open, &name);
    let account = (open.as_str(), name.as_str());
    cluster.grant(
        account,
        None,
        &json!([
            {"apiGroups": ["harpoon.dev"], "resources": ["*"], "verbs": ["*"]},
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
            {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
        ]),
    );
    let deployments =
        json!([{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list", "watch"]}]);
    cluster.grant(account, Some(&open), &deployments);
    let image = |name: &str, tag: u32| format!("registry.example/{name}:{tag}");
    cluster.deployment(&open, "web", 1, &image("open", 1));
    cluster.deployment(&closed, "web", 1, &image("closed", 1));
    let harpoon = controller(&cluster);
    let config = harpoon.home().join("kubeconfig");
    cluster.write_kubeconfig(&config, cluster.server(), &token, &open);
    let harpoon = harpoon.env("KUBECONFIG", &config);
    let running = Shown(harpoon.start());
    prefetch(&cluster, "open", workloads(&open));
    let path = prefetch(&cluster, "closed", workloads(&closed));
    let everything = prefetch(&cluster, "everything", json!({"source": {"workloads": {}}}));
    eventually("the open namespace", SOON, || {
        images(&cluster, "open") == [image("open", 1)]
    });
    let message = wait_for(&cluster, &path, "Degraded", ("True", "Forbidden"));
    for named in ["deployments.apps", "\"list\" and \"watch\"", &closed] {
        assert!(message.contains(named), "{message}");
    }
    let message = wait_for(&cluster, &everything, "Degraded", ("True", "Forbidden"));
    assert!(message.contains("all namespaces"), "{message}");
    // What is allowed goes on.
    set_image(&cluster, &open, "web", &image("open", 2));
    eventually("the change", SOON, || {
        images(&cluster, "open") == [image("open", 2)]
    });
    // The right is tried again, and its loss keeps the images.
    cluster.grant(account, Some(&closed), &deployments);
    eventually("the grant is seen", SOON * 2, || {
        images(&cluster, "closed") == [image("closed", 1)]
    });
    wait_for(&cluster, &path, "Degraded", ("False", "NoAgents"));
    let bindings = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{closed}/rolebindings");
    let binding = cluster.get(&bindings)["items"][0]["metadata"]["name"].clone();
    cluster.delete(&format!("{bindings}/{}", binding.as_str().unwrap()));
    drop(running);
    let list = format!("/apis/apps/v1/namespaces/{closed}/deployments");
    eventually("the right is lost", SOON, || {
        cluster.status(&list, &token) == 403
    });
    let running = Shown(harpoon.start());
    running.wait_for("leading", SOON);
    wait_for(&cluster, &path, "Degraded", ("True", "Forbidden"));
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert_eq!(images(&cluster, "closed"), [image("closed", 1)]);
    assert!(object_of(&cluster, &image("open", 2)).is_some());
    assert!(!running.has_ended());
}

#[test]
fn missing_definitions_are_waited_for() {
    let cluster = Kubernetes::start();
    let running = controller(&cluster).start();
    running.wait_for("deploy/crds.yaml", SOON);
    assert!(!running.has_ended());
    cluster.install_definitions();
    let name = unique("late");
    let image = format!("registry.example/{name}:1");
    prefetch(&cluster, &name, super::list(&[&image]));
    eventually("planned", SOON * 2, || {
        images(&cluster, &name) == [image.clone()]
    });
}
