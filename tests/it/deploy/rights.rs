//! The RBAC rights for each value, and no others.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::rendered;

/// All rights, as `ROLE in PLACE: VERB RESOURCE.GROUP [NAME]`, each bound to the one service account there is.
fn rights(values: &Value) -> BTreeSet<String> {
    let objects = rendered(values);
    let mut rights = BTreeSet::new();
    let place = |object: &Value| {
        object["metadata"]["namespace"]
            .as_str()
            .unwrap_or("*")
            .to_owned()
    };
    let strings = |list: &Value| -> Vec<String> {
        let items = list.as_array().into_iter().flatten();
        items
            .map(|item| item.as_str().unwrap().to_owned())
            .collect()
    };
    let account = objects.iter().find(|o| o["kind"] == "ServiceAccount");
    for role in &objects {
        let kind = role["kind"].as_str().unwrap();
        if !["Role", "ClusterRole"].contains(&kind) {
            continue;
        }
        let binding = objects
            .iter()
            .find(|o| o["kind"] == format!("{kind}Binding") && o["metadata"] == role["metadata"]);
        let binding = binding.unwrap_or_else(|| panic!("{role} is not bound"));
        let account = account.expect("a service account");
        assert_eq!(binding["roleRef"]["kind"], kind);
        assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
        let subjects = binding["subjects"].as_array().unwrap();
        assert_eq!(subjects.len(), 1);
        assert_eq!(subjects[0]["name"], account["metadata"]["name"]);
        assert_eq!(subjects[0]["namespace"], account["metadata"]["namespace"]);
        for rule in role["rules"].as_array().unwrap() {
            let mut names = strings(&rule["resourceNames"]);
            if names.is_empty() {
                names.push(String::new());
            }
            for (group, resource) in strings(&rule["apiGroups"]).iter().flat_map(|g| {
                strings(&rule["resources"])
                    .into_iter()
                    .map(move |r| (g.clone(), r))
            }) {
                for (verb, name) in strings(&rule["verbs"])
                    .iter()
                    .flat_map(|v| names.iter().map(move |n| (v, n)))
                {
                    rights.insert(format!("{}: {verb} {resource}.{group} {name}", place(role)));
                }
            }
        }
    }
    let bindings = objects
        .iter()
        .filter(|o| o["kind"].as_str().unwrap().ends_with("Binding"))
        .count();
    let roles = objects
        .iter()
        .filter(|o| o["kind"].as_str().unwrap().ends_with("Role"))
        .count();
    assert_eq!(bindings, roles);
    rights
}

#[track_caller]
fn check(values: &Value, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|r| (*r).to_owned()).collect();
    assert_eq!(rights(values), expected, "{values}");
}

const NODE: [&str; 2] = ["*: get nodes. ", "*: get runtimeclasses.node.k8s.io "];

#[test]
fn rights_follow_from_the_values() {
    check(
        &json!({}),
        &[NODE[0], NODE[1], "harpoon: list deployments.apps "],
    );
    check(
        &json!({"nodeRelevance": false}),
        &["harpoon: list deployments.apps "],
    );
    check(
        &json!({"namespaceOverride": "shop", "nodeRelevance": false}),
        &["shop: list deployments.apps "],
    );
    check(&json!({"images": ["nginx"]}), &[]);
    check(
        &json!({"settings": {"NAMESPACES": "*"}, "nodeRelevance": false}),
        &["*: list deployments.apps "],
    );
    check(
        &json!({"settings": {"NAMESPACES": "shop,web,shop", "WORKLOADS": "jobs,pods"}, "nodeRelevance": false}),
        &[
            "shop: list jobs.batch ",
            "shop: list pods. ",
            "web: list jobs.batch ",
            "web: list pods. ",
        ],
    );
    check(
        &json!({"settings": {"NAMESPACES": "*", "WORKLOADS": "all"}}),
        &[
            NODE[0],
            NODE[1],
            "*: list cronjobs.batch ",
            "*: list daemonsets.apps ",
            "*: list deployments.apps ",
            "*: list jobs.batch ",
            "*: list pods. ",
            "*: list replicasets.apps ",
            "*: list statefulsets.apps ",
        ],
    );
    check(
        &json!({"settings": {"PULL_SECRETS": true}, "nodeRelevance": false}),
        &[
            "harpoon: get secrets. ",
            "harpoon: get serviceaccounts. ",
            "harpoon: list deployments.apps ",
        ],
    );
    check(
        &json!({"settings": {"PULL_SECRETS": true, "NAMESPACES": "shop"}, "secretNames": ["a", "b"], "nodeRelevance": false}),
        &[
            "shop: get secrets. a",
            "shop: get secrets. b",
            "shop: get serviceaccounts. ",
            "shop: list deployments.apps ",
        ],
    );
    // The images in other Nodes' status provide sizes without a request to a registry.
    check(
        &json!({"settings": {"DISK_BUDGET": "1Gi", "REFRESH": true}, "cloud": "eks", "nodeRelevance": false}),
        &["*: list nodes. ", "harpoon: list deployments.apps "],
    );
}
