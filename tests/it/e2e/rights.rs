//! The manifests' RBAC rules are exactly those that harpoon needs: without any one of them, a run warns or fails.

use super::*;

impl Installed<'_> {
    /// harpoon's user name in the API server.
    fn user(&self) -> String {
        let account = &self.object("ServiceAccount")["metadata"];
        format!(
            "system:serviceaccount:{}:{}",
            text(&account["namespace"]),
            text(&account["name"])
        )
    }

    /// Waits until the log of a run reports this missing right.
    #[track_caller]
    fn wait_until_missed(&self, [group, resource, verb]: &[String; 3]) {
        let missing =
            format!(r#"needs the RBAC verb "{verb}" on "{resource}" in apiGroup "{group}""#);
        let (cluster, namespace) = (self.turn.cluster, self.turn.namespace.as_str());
        cluster.wait_for(namespace, &missing, || {
            let pod = self.pods().pop()?;
            let status = &pod["status"]["initContainerStatuses"][0];
            let ended = status["state"]["terminated"].is_object()
                || status["lastState"]["terminated"].is_object();
            (ended && self.log(&pod).contains(&missing)).then_some(())
        });
    }
}

/// Without any one right of the manifests, a run says that it is missing.
pub(super) fn each_rule(turn: &Turn<'_>) {
    let (api, namespace) = (&turn.cluster.api, turn.namespace.as_str());
    // A workload with a RuntimeClass, which is read where the node matters.
    let class = unique("class");
    let classes = "/apis/node.k8s.io/v1/runtimeclasses";
    api.create(
        classes,
        json!({"metadata": {"name": class}, "handler": "runc"}),
    );
    let image = turn.idle("classy");
    let patch = json!({"spec": {"template": {"spec": {"runtimeClassName": class}}}});
    let deployment = format!("/apis/apps/v1/namespaces/{namespace}/deployments/classy");
    api.patch(&deployment, patch);

    let harpoon = turn.install(&manifests("daemonset-auto.yaml"));
    let log = harpoon.log(&harpoon.ready());
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    assert!(turn.cluster.has(&image));

    let user = harpoon.user();
    let roles = harpoon.objects.iter().filter(|object| {
        let kind = text(&object["kind"]);
        kind == "Role" || kind == "ClusterRole"
    });
    let mut tried = 0;
    for role in roles {
        let name = text(&role["metadata"]["name"]);
        let path = match text(&role["kind"]) {
            "Role" => {
                format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles/{name}")
            }
            _ => format!("/apis/rbac.authorization.k8s.io/v1/clusterroles/{name}"),
        };
        let rules = role["rules"].as_array().unwrap();
        for right in rules.iter().flat_map(single_rights) {
            let others: Vec<_> = rules
                .iter()
                .flat_map(single_rights)
                .filter(|other| *other != right)
                .map(|[group, resource, verb]| {
                    json!({"apiGroups": [group], "resources": [resource], "verbs": [verb]})
                })
                .collect();
            api.patch(&path, json!({"rules": others}));
            wait_until(turn, &user, &right, false);
            harpoon.run_again();
            harpoon.wait_until_missed(&right);
            api.patch(&path, json!({"rules": rules}));
            wait_until(turn, &user, &right, true);
            tried += 1;
        }
    }
    assert!(tried > 0, "{:?}", harpoon.objects);
    harpoon.run_again();
    let log = harpoon.log(&harpoon.ready());
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    api.delete(&format!("{classes}/{class}"));
}

/// The same for the right to list each kind of workload.
pub(super) fn each_kind(turn: &Turn<'_>) {
    let settings = json!({"NAMESPACES": "*", "WORKLOADS": "all"});
    let harpoon = turn.install(&chart(&json!({"settings": settings})));
    let listing: Vec<_> = harpoon
        .objects
        .iter()
        .filter(|object| object["kind"] == "ClusterRole")
        .flat_map(|role| role["rules"].as_array().unwrap())
        .flat_map(single_rights)
        .filter(|[_, _, verb]| verb == "list")
        .collect();
    assert_eq!(listing.len(), 7, "{listing:?}");
    harpoon.ready();
    for role in harpoon
        .objects
        .iter()
        .filter(|o| o["kind"] == "ClusterRole")
    {
        let name = text(&role["metadata"]["name"]);
        let path = format!("/apis/rbac.authorization.k8s.io/v1/clusterroles/{name}");
        turn.cluster.api.patch(&path, json!({"rules": []}));
    }
    let user = harpoon.user();
    for right in &listing {
        wait_until(turn, &user, right, false);
    }
    harpoon.run_again();
    for right in &listing {
        harpoon.wait_until_missed(right);
    }
}

/// The group, the resource and the verb of everything that a rule allows.
fn single_rights(rule: &Value) -> Vec<[String; 3]> {
    let list = |key: &str| -> Vec<String> {
        let values = rule[key].as_array().unwrap().iter();
        values.map(|value| text(value).to_owned()).collect()
    };
    let mut rights = Vec::new();
    for group in list("apiGroups") {
        for resource in list("resources") {
            for verb in list("verbs") {
                rights.push([group.clone(), resource.clone(), verb]);
            }
        }
    }
    rights
}

/// Waits until the API server's authoriser knows.
fn wait_until(turn: &Turn<'_>, user: &str, right: &[String; 3], allowed: bool) {
    let [group, resource, verb] = right;
    let attributes =
        json!({"group": group, "resource": resource, "verb": verb, "namespace": turn.namespace});
    let review = json!({"spec": {"user": user, "resourceAttributes": attributes}});
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    turn.cluster
        .wait_for(&turn.namespace, "the change of rights is known", || {
            let answer = turn.cluster.api.create(reviews, review.clone());
            (answer["status"]["allowed"].as_bool() == Some(allowed)).then_some(())
        });
}
