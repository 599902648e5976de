//! Compares the kustomizations with the objects that the chart renders.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{deploy, parse, rendered};
use crate::bed;

/// Objects by kind, namespace and name, with lists sorted if Kubernetes treats them as sets.
fn canonical(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let mut canonical = BTreeMap::new();
    for mut object in objects {
        if let Some(pod) = object.pointer_mut("/spec/template/spec") {
            sort(&mut pod["volumes"], "name");
            sort(&mut pod["initContainers"][0]["volumeMounts"], "mountPath");
            if let Some(variables) = pod["initContainers"][0].get_mut("env") {
                sort(variables, "name");
            }
        }
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or("-").to_owned();
        let key = format!(
            "{} {} {}",
            object["kind"].as_str().unwrap(),
            text("namespace"),
            text("name")
        );
        assert!(
            canonical.insert(key.clone(), object).is_none(),
            "{key} twice"
        );
    }
    canonical
}

fn sort(list: &mut Value, key: &str) {
    let list = list.as_array_mut().expect("a list");
    list.sort_by_key(|item| item[key].as_str().unwrap().to_owned());
}

#[track_caller]
fn assert_same(what: &str, objects: Vec<Value>, values: &Value) {
    let mut values = values.clone();
    values["createNamespace"] = json!(true);
    let (found, expected) = (canonical(objects), canonical(rendered(&values)));
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>(),
        "{what}"
    );
    for (key, object) in &expected {
        assert_eq!(&found[key], object, "{what}: {key}");
    }
}

fn kustomized(directory: &Path) -> Vec<Value> {
    // Our own kustomizations are below the file; users' kustomizations refer to it by relative paths only.
    parse(&bed::run(
        bed::tool("kubectl")
            .arg("kustomize")
            .arg("--load-restrictor=LoadRestrictionsNone")
            .arg(directory),
    ))
}

#[test]
fn overlays_match_the_chart() {
    let base = kustomized(&deploy("kustomize/base"));
    assert_same("base", base, &json!({"nodeRelevance": false}));
    for runtime in ["containerd", "crio", "docker", "k3s", "rke2"] {
        let overlay = deploy(&format!("kustomize/overlays/{runtime}"));
        let values = json!({"runtime": runtime, "settings": {"NAMESPACES": "*"}});
        assert_same(runtime, kustomized(&overlay), &values);
    }
}

#[test]
fn components_match_the_chart() {
    for (components, values) in [
        (
            &["pull-secrets"][..],
            json!({"settings": {"PULL_SECRETS": true}, "nodeRelevance": false}),
        ),
        (&["node-relevance", "eks"], json!({"cloud": "eks"})),
        (
            &["all-namespaces", "gke"],
            json!({"settings": {"NAMESPACES": "*"}, "cloud": "gke", "nodeRelevance": false}),
        ),
        (
            &["pull-secrets", "aks"],
            json!({"cloud": "aks", "settings": {"PULL_SECRETS": true}, "nodeRelevance": false}),
        ),
    ] {
        let found = with_components(components);
        assert_same(&components.join(", "), found, &values);
    }
}

/// The base with components, as a user's own kustomization adds them.
fn with_components(components: &[&str]) -> Vec<Value> {
    let directory = bed::directory();
    let own = directory.path().canonicalize().unwrap();
    let up = "../".repeat(own.components().count() - 1);
    let path = |below: &str| {
        let file = deploy(&format!("kustomize/{below}"));
        format!("{up}{}", file.to_string_lossy().trim_start_matches('/'))
    };
    let components = components.iter().map(|c| path(&format!("components/{c}")));
    let components: Vec<_> = components.collect();
    let kustomization = json!({"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [path("base")], "components": components});
    fs::write(own.join("kustomization.yaml"), kustomization.to_string()).unwrap();
    kustomized(&own)
}
