//! The chart's mode `imageVolumes`: the kubelet pulls and keeps the images, and the pods have no rights at all.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::continuous::apply;
use super::{all_variants, assert_holds, assert_refused, daemon_set, named, rendered};
use crate::bed;

/// The values file of this mode, and the file that is rendered with it.
pub(super) const VARIANT: &str = "image-volumes";
pub(super) const FILE: &str = "image-volumes.yaml";

fn values(images: &[&str]) -> Value {
    json!({"mode": "imageVolumes", "images": images, "imageVolumes": {"skipVersionCheck": true}})
}

fn pod(objects: &[Value]) -> &Value {
    &daemon_set(objects)["spec"]["template"]["spec"]
}

#[test]
fn each_image_has_its_container() {
    let images = [
        "nginx:1.27",
        "registry.example/api:2",
        "nginx:1.27",
        "registry.example/web:1",
    ];
    let mut values = values(&images);
    values["imagePullSecrets"] = json!([{"name": "regcred"}]);
    let objects = rendered(&values);
    let pod = pod(&objects);
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "regcred"}]));
    let containers = pod["containers"].as_array().unwrap();
    let mut mounted = Vec::new();
    for container in containers {
        assert_eq!(container["args"], json!(["pause"]));
        let mounts = container["volumeMounts"].as_array().unwrap();
        assert_eq!(mounts.len(), 1, "{container}");
        assert_eq!(mounts[0]["readOnly"], true);
        let volume = named(&pod["volumes"], mounts[0]["name"].as_str().unwrap());
        assert_eq!(volume["image"]["pullPolicy"], "IfNotPresent");
        mounted.push(volume["image"]["reference"].as_str().unwrap());
    }
    // One that is listed twice is mounted once.
    assert_eq!(mounted, [images[0], images[1], images[3]]);
    assert_eq!(pod["volumes"].as_array().unwrap().len(), mounted.len());
}

/// Asserts the requirements of the Pod Security level `restricted`, and stricter ones.
#[test]
fn image_pods_have_no_rights() {
    let objects = all_variants(&[]).remove(VARIANT).unwrap();
    let kinds: Vec<_> = objects
        .iter()
        .map(|o| o["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["PriorityClass", "Namespace", "DaemonSet"]);
    let labels = &objects[1]["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "restricted");
    let pod = pod(&objects);
    assert_eq!(pod["automountServiceAccountToken"], false);
    for absent in [
        "serviceAccountName",
        "initContainers",
        "hostNetwork",
        "hostPID",
        "hostIPC",
    ] {
        assert_eq!(pod[absent], Value::Null, "{absent}");
    }
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["runAsUser"], 65532);
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    for container in pod["containers"].as_array().unwrap() {
        let security = &container["securityContext"];
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
        assert_eq!(security["runAsUser"], Value::Null);
        assert_eq!(container["env"], Value::Null);
        assert_eq!(container["resources"]["limits"]["memory"], "16Mi");
    }
    for volume in pod["volumes"].as_array().unwrap() {
        let kinds = volume.as_object().unwrap().keys();
        assert!(kinds.eq(["image", "name"]), "{volume}");
    }
}

#[test]
fn changed_images_roll_out() {
    let template = |images: &[&str]| {
        let objects = rendered(&values(images));
        daemon_set(&objects)["spec"]["template"].clone()
    };
    let checksum =
        |template: &Value| template["metadata"]["annotations"]["checksum/images"].clone();
    let (first, second) = (template(&["nginx:1.27"]), template(&["nginx:1.28"]));
    assert_eq!(first, template(&["nginx:1.27"]));
    assert!(checksum(&first).is_string());
    assert_ne!(checksum(&first), checksum(&second));
}

#[test]
fn wrong_image_volume_values_are_refused() {
    let with = |path: &str, value: Value| {
        let mut values = values(&["nginx:1.27"]);
        values[path] = value;
        values
    };
    let old = json!({"mode": "imageVolumes", "images": ["nginx:1.27"]});
    for (values, expected) in [
        (
            old,
            "mode: imageVolumes requires Kubernetes 1.36 or later, not v1.",
        ),
        (
            with("images", json!([])),
            "mode: imageVolumes requires images",
        ),
        (with("images", json!(["a b"])), "images"),
        (
            with("settings", json!({"LIMIT": 1})),
            "settings have no meaning",
        ),
        (with("cloud", json!("eks")), "cloud has no meaning"),
        (
            with("registrySecret", json!("a")),
            "registrySecret has no meaning",
        ),
        (
            with("prefetch", json!({"images": ["a"]})),
            "prefetch has no meaning",
        ),
        (
            with("extraVolumes", json!([{"name": "a"}])),
            "extraVolumes has no meaning",
        ),
        (
            with("openshift", json!({"enabled": true})),
            "openshift.enabled has no meaning",
        ),
        (
            with("imageVolumes", json!({"pullPolicy": "Sometimes"})),
            "pullPolicy",
        ),
    ] {
        assert_refused(&values, expected);
    }
}

#[test]
fn current_kubernetes_needs_no_override() {
    let values = super::deploy("chart/ci/image-volumes-values.yaml");
    let check = "--set=imageVolumes.skipVersionCheck=false";
    for (version, is_enough) in [
        ("1.36.0", true),
        ("1.36.1-gke.100", true),
        ("1.35.9", false),
    ] {
        let version = format!("--kube-version={version}");
        let output = super::template_with(&values, &[check, &version]);
        assert_eq!(output.status.success(), is_enough, "{version}");
    }
}

#[test]
fn current_api_server_accepts_image_volumes() {
    let cluster = bed::apiserver();
    cluster.ensure_namespace("harpoon");
    let objects = all_variants(&[]).remove(VARIANT).unwrap();
    let answer = apply(
        cluster,
        &objects,
        &["--dry-run=server", "--validate=strict"],
    );
    let answers = answer["items"].as_array().unwrap();
    assert_eq!(answers.len(), objects.len());
    for (answer, object) in answers.iter().zip(&objects) {
        assert_holds(answer, object, &format!("{}", object["kind"]));
    }
}

/// The Pod Security level `restricted` as of Kubernetes 1.36 for the pods of DaemonSets, as rules of an admission policy. Image volumes are
/// allowed since 1.33 (kubernetes/kubernetes#130394).
const RESTRICTED: [&str; 7] = [
    "!pod.?hostNetwork.orValue(false) && !pod.?hostPID.orValue(false) && !pod.?hostIPC.orValue(false)",
    "pod.?volumes.orValue([]).all(v, has(v.configMap) || has(v.csi) || has(v.downwardAPI) || has(v.emptyDir) || has(v.ephemeral) \
     || has(v.image) || has(v.persistentVolumeClaim) || has(v.projected) || has(v.secret))",
    "all.all(c, c.?securityContext.?allowPrivilegeEscalation.orValue(true) == false)",
    "all.all(c, c.?securityContext.?capabilities.?drop.orValue([]).exists(d, d == 'ALL') \
     && c.?securityContext.?capabilities.?add.orValue([]).all(a, a == 'NET_BIND_SERVICE'))",
    "all.all(c, c.?securityContext.?runAsNonRoot.orValue(pod.?securityContext.?runAsNonRoot.orValue(false)) \
     && c.?securityContext.?runAsUser.orValue(pod.?securityContext.?runAsUser.orValue(1)) != 0)",
    "all.all(c, c.?securityContext.?seccompProfile.?type.orValue(pod.?securityContext.?seccompProfile.?type.orValue('')) \
     in ['RuntimeDefault', 'Localhost'])",
    "all.all(c, !c.?securityContext.?privileged.orValue(false) && c.?ports.orValue([]).all(p, p.?hostPort.orValue(0) == 0))",
];

#[test]
fn restricted_level_admits_image_volumes() {
    let cluster = bed::apiserver();
    let (name, namespace) = (bed::unique("restricted"), cluster.namespace());
    let validations = RESTRICTED.map(|rule| {
        let rule = rule.replace("all.all", "variables.all.all");
        json!({"expression": rule.replace("pod.?", "variables.pod.?")})
    });
    let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    let policy = json!({"metadata": {"name": name}, "spec": {"failurePolicy": "Fail",
        "matchConstraints": {
            "objectSelector": {}, "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["daemonsets"]}]},
        "variables": [
            {"name": "pod", "expression": "object.spec.template.spec"},
            {"name": "all", "expression": "variables.pod.containers + variables.pod.?initContainers.orValue([])"}],
        "validations": validations}});
    cluster.create(policies, policy);
    cluster.patch(
        &format!("/api/v1/namespaces/{namespace}"),
        json!({"metadata": {"labels": {"kubernetes.io/metadata.name": namespace}}}),
    );
    let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}});
    let bindings = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
    cluster.create(bindings, binding);

    let create = |mut object: Value| {
        object["metadata"]["namespace"] = json!(namespace);
        let path = format!(
            "/apis/apps/v1/namespaces/{namespace}/daemonsets/a?fieldManager=test&force=true&dryRun=All"
        );
        object["metadata"]["name"] = json!("a");
        cluster.request_as(&[], &Method::PATCH, &path, Some(object))
    };
    // The agent's mounts a directory of the host, and nothing else that is not allowed.
    let agent = daemon_set(&rendered(&json!({"mode": "continuous"}))).clone();
    bed::eventually("the policy is known", Duration::from_secs(30), || {
        create(agent.clone()).0 == 422
    });
    let mut values = values(&["nginx:1.27", "registry.example/api:2"]);
    values["imagePullSecrets"] = json!([{"name": "regcred"}]);
    let images = daemon_set(&rendered(&values)).clone();
    let (status, answer) = create(images.clone());
    assert_eq!(status, 201, "{answer}");
    let mut rooted = images;
    rooted["spec"]["template"]["spec"]["containers"][1]["securityContext"]["runAsUser"] = json!(0);
    assert_eq!(create(rooted).0, 422);
}
