//! The hook of the chart that removes pins and seals from all nodes after an uninstall.

use serde_json::{Value, json};

use super::continuous::apply;
use super::{assert_holds, assert_refused, rendered};
use crate::bed;

const HOOK: &str = "helm.sh/hook";

fn values(mode: &str) -> Value {
    json!({"mode": mode, "cleanup": {"enabled": true}})
}

/// The objects of the hook.
fn hooks(values: &Value) -> Vec<Value> {
    let mut objects = rendered(values);
    objects.retain(|object| object["metadata"]["annotations"][HOOK].is_string());
    objects
}

#[track_caller]
fn one<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    match (found.next(), found.next()) {
        (Some(object), None) => object,
        _ => panic!("not one {kind}"),
    }
}

#[test]
fn cleanup_is_off_by_default() {
    for mode in ["once", "continuous"] {
        assert!(hooks(&json!({"mode": mode})).is_empty(), "{mode}");
    }
}

#[test]
fn cleanup_ends_with_its_job() {
    for mode in ["once", "continuous"] {
        let objects = hooks(&values(mode));
        let weight = |kind: &str| {
            let annotations = &one(&objects, kind)["metadata"]["annotations"];
            assert_eq!(annotations[HOOK], "post-delete");
            // Helm deletes them only after the last hook has succeeded.
            let policy = &annotations["helm.sh/hook-delete-policy"];
            assert_eq!(policy, "before-hook-creation,hook-succeeded");
            let weight = annotations["helm.sh/hook-weight"].as_str().unwrap();
            weight.parse::<i32>().unwrap()
        };
        let order = ["ServiceAccount", "RoleBinding", "DaemonSet", "Job"];
        let weights = order.map(weight);
        assert!(weights.is_sorted_by(|a, b| a < b), "{weights:?}");
        assert!(weight("Role") < weight("RoleBinding"));
        assert_eq!(objects.len(), order.len() + 1);
        let set = one(&objects, "DaemonSet")["metadata"]["name"].clone();
        let wait = &one(&objects, "Job")["spec"]["template"]["spec"]["containers"][0];
        let arguments = json!(["wait-for-daemonset", set, "--seconds=240"]);
        assert_eq!(wait["args"], arguments);
        assert_eq!(one(&objects, "Job")["spec"]["activeDeadlineSeconds"], 270);
    }
}

#[test]
fn cleanup_has_least_rights() {
    for mode in ["once", "continuous"] {
        let objects = hooks(&values(mode));
        let pod = &one(&objects, "DaemonSet")["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        for absent in [
            "serviceAccountName",
            "hostNetwork",
            "hostPID",
            // The release's class is deleted by then.
            "priorityClassName",
        ] {
            assert_eq!(pod[absent], Value::Null, "{absent}");
        }
        let release = &pod["initContainers"][0];
        assert_eq!(release["args"], json!(["release"]));
        let mount = json!([{"name": "runtime", "mountPath": "/run/containerd", "readOnly": true}]);
        assert_eq!(release["volumeMounts"], mount);
        assert_eq!(pod["volumes"].as_array().unwrap().len(), 1);
        let pause = &pod["containers"][0];
        assert_eq!(pause["args"], json!(["pause"]));
        assert_eq!(pause["volumeMounts"], Value::Null);
        let wait = &one(&objects, "Job")["spec"]["template"]["spec"];
        assert_eq!(wait["automountServiceAccountToken"], false);
        let volumes = wait["volumes"].as_array().unwrap();
        assert!(volumes.len() == 1 && volumes[0]["projected"].is_object());
        for (pod, containers) in [
            (pod, "initContainers"),
            (pod, "containers"),
            (wait, "containers"),
        ] {
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
            let security = &pod[containers][0]["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["readOnlyRootFilesystem"], true);
            assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
        }
        let rules = json!([{"apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": ["harpoon-cleanup"],
            "verbs": ["get"]}]);
        assert_eq!(one(&objects, "Role")["rules"], rules);
        let subject = &one(&objects, "RoleBinding")["subjects"][0]["name"];
        assert_eq!(*subject, wait["serviceAccountName"]);
    }
}

#[test]
fn cleanup_waits_for_earlier_pods() {
    for mode in ["once", "continuous"] {
        let objects = rendered(&values(mode));
        let (hooks, release): (Vec<Value>, Vec<Value>) = objects
            .into_iter()
            .partition(|object| object["metadata"]["annotations"][HOOK].is_string());
        let pod = &one(&hooks, "DaemonSet")["spec"]["template"];
        let affinity = &pod["spec"]["affinity"];
        let terms = &affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(terms[0]["topologyKey"], "kubernetes.io/hostname");
        let node = one(&release, "DaemonSet")["spec"]["template"].clone();
        let chosen = terms[0]["labelSelector"]["matchLabels"]
            .as_object()
            .unwrap();
        let has_all = |labels: &Value| chosen.iter().all(|(key, value)| labels[key] == *value);
        assert!(has_all(&node["metadata"]["labels"]), "{mode}");
        assert!(!has_all(&pod["metadata"]["labels"]), "{mode}");
        // It runs on the same nodes.
        assert_eq!(pod["spec"]["tolerations"], node["spec"]["tolerations"]);
        assert_eq!(
            affinity["nodeAffinity"],
            node["spec"]["affinity"]["nodeAffinity"]
        );
        let selector = &one(&hooks, "DaemonSet")["spec"]["selector"]["matchLabels"];
        assert_eq!(selector["app.kubernetes.io/component"], "cleanup");
    }
}

#[test]
fn impossible_cleanup_is_refused() {
    let with = |name: &str, value: Value| {
        let mut values = values("continuous");
        values[name] = value;
        values
    };
    for (values, expected) in [
        (
            json!({"mode": "imageVolumes", "images": ["a"], "imageVolumes": {"skipVersionCheck": true}, "cleanup": {"enabled": true}}),
            "nothing is pinned or sealed",
        ),
        (
            with("runtime", json!("crio")),
            "cleanup has no meaning with runtime: crio",
        ),
        (
            with("createNamespace", json!(true)),
            "cleanup requires createNamespace: false",
        ),
        (
            with("openshift", json!({"enabled": true})),
            "cleanup has no meaning with openshift.enabled",
        ),
        (
            json!({"cleanup": {"enabled": true}, "serviceAccount": {"create": false}}),
            "cleanup requires serviceAccount.name",
        ),
        (
            with("cleanup", json!({"enabled": true, "timeoutSeconds": 0})),
            "timeoutSeconds",
        ),
    ] {
        assert_refused(&values, expected);
    }
}

#[test]
fn current_api_server_accepts_cleanup() {
    let cluster = bed::apiserver();
    cluster.ensure_namespace("harpoon");
    for mode in ["once", "continuous"] {
        let objects = hooks(&values(mode));
        let options = ["--dry-run=server", "--validate=strict"];
        let answer = apply(cluster, &objects, &options);
        let answers = answer["items"].as_array().unwrap();
        assert_eq!(answers.len(), objects.len());
        for (answer, object) in answers.iter().zip(&objects) {
            assert_holds(answer, object, &format!("{mode}: {}", object["kind"]));
        }
    }
}
