//! Installation on a cluster: the chart, and the files of `deploy/` that are rendered from it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};

use crate::bed::{self, Harpoon, Kubernetes};

mod cleanup;
mod continuous;
mod generated;
mod image_volumes;
mod kustomize;
mod monitors;
mod rights;
mod values;

/// Kinds of OpenShift and of the Prometheus Operator, which a plain API server does not know.
const FOREIGN: &[&str] = &[
    "SecurityContextConstraints",
    "PodMonitor",
    "ServiceMonitor",
    "PrometheusRule",
];

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(path)
}

fn parse(yaml: &str) -> Vec<Value> {
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(yaml).unwrap_or_else(|e| panic!("{e}: {yaml}"));
    objects
        .into_iter()
        .filter(|object| !object.is_null())
        .collect()
}

/// `helm template` of the chart with a values file.
fn template(release: &str, namespace: &str, values: &Path) -> Output {
    let mut command = bed::tool("helm");
    command
        .args(["template", release, "--namespace", namespace])
        .arg(deploy("chart"));
    command.arg("--values").arg(values);
    command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}: run testbed/install"))
}

/// The same of the release `harpoon` with further options.
fn template_with(values: &Path, options: &[&str]) -> Output {
    let mut command = bed::tool("helm");
    command
        .args(["template", "harpoon", "--namespace", "harpoon"])
        .arg(deploy("chart"));
    command.arg("--values").arg(values).args(options);
    command.output().unwrap()
}

/// The same with values of this test.
fn chart(values: &Value) -> Output {
    let directory = bed::directory();
    let file = directory.path().join("values.yaml");
    fs::write(&file, values.to_string()).unwrap();
    template("harpoon", "harpoon", &file)
}

/// The chart does not render with these values, and its error has this text.
#[track_caller]
fn assert_refused(values: &Value, named: &str) {
    let output = chart(values);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let refused = !output.status.success() && stderr.contains(named);
    assert!(refused, "{values}: {stderr}");
}

#[track_caller]
fn text_of(output: Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn rendered(values: &Value) -> Vec<Value> {
    parse(&text_of(chart(values)))
}

/// The objects of every values file in `deploy/chart/ci/`, one for each kind of installation, by the file's name.
fn all_variants(options: &[&str]) -> BTreeMap<String, Vec<Value>> {
    let files = fs::read_dir(deploy("chart/ci")).unwrap();
    let variants: BTreeMap<_, _> = files
        .map(|file| {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let name = name.strip_suffix("-values.yaml").expect("a values file");
            let objects = parse(&text_of(template_with(&path, options)));
            (name.to_owned(), objects)
        })
        .collect();
    assert!(variants.len() >= 10, "{:?}", variants.keys());
    variants
}

/// Those of the mode `once`.
fn variants() -> BTreeMap<String, Vec<Value>> {
    let mut variants = all_variants(&[]);
    variants.retain(|name, _| !name.starts_with("continuous") && name != image_volumes::VARIANT);
    variants
}

/// A committed file of `deploy/`.
fn committed(file: &str) -> String {
    fs::read_to_string(deploy(file)).unwrap_or_else(|e| panic!("deploy/{file}: {e}"))
}

fn daemon_set(objects: &[Value]) -> &Value {
    objects
        .iter()
        .find(|o| o["kind"] == "DaemonSet")
        .expect("a DaemonSet")
}

fn pod(objects: &[Value]) -> &Value {
    &daemon_set(objects)["spec"]["template"]["spec"]
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let mut items = list.as_array().into_iter().flatten();
    items
        .find(|item| item["name"] == name)
        .unwrap_or(&Value::Null)
}

#[test]
fn only_init_container_sees_the_node() {
    for (variant, objects) in variants() {
        let pod = pod(&objects);
        assert_eq!(pod["automountServiceAccountToken"], false, "{variant}");
        let (run, pause) = (&pod["initContainers"][0], &pod["containers"][0]);
        assert_eq!(
            (
                pod["initContainers"].as_array().unwrap().len(),
                pod["containers"].as_array().unwrap().len()
            ),
            (1, 1)
        );
        assert_eq!(
            (&run["args"], &pause["args"]),
            (&json!(["run"]), &json!(["pause"]))
        );
        assert_eq!(run["image"], pause["image"]);
        for absent in ["volumeMounts", "env", "ports", "command"] {
            assert_eq!(pause[absent], Value::Null, "{variant}");
        }
        for container in [run, pause] {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["readOnlyRootFilesystem"], true);
            assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
            assert_eq!(security["privileged"], Value::Null);
            for resource in ["requests", "limits"] {
                assert!(container["resources"][resource]["memory"].is_string());
            }
        }
        assert_eq!(
            pod["securityContext"],
            json!({"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"}})
        );
        for forbidden in ["hostPID", "hostIPC", "shareProcessNamespace"] {
            assert_eq!(pod[forbidden], Value::Null);
        }
        let cloud = ["aks", "bottlerocket", "eks", "gke-list"].contains(&variant.as_str());
        assert_eq!(pod["hostNetwork"] == true, cloud, "{variant}");
        check_volumes(&variant, pod);
        let list = ["gke-list", "list", "list-docker"].contains(&variant.as_str());
        assert_eq!(named(&pod["volumes"], "token").is_null(), list, "{variant}");
        let account = !list || variant == "gke-list";
        assert_eq!(pod["serviceAccountName"].is_string(), account, "{variant}");
        let root = run["securityContext"]["runAsUser"] == 0;
        assert_eq!(
            root,
            ["aks", "list-docker"].contains(&variant.as_str()),
            "{variant}"
        );
        if variant != "overrides" {
            assert_eq!(
                daemon_set(&objects)["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"],
                "10%"
            );
            assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
        }
    }
}

fn check_volumes(variant: &str, pod: &Value) {
    for mount in pod["initContainers"][0]["volumeMounts"].as_array().unwrap() {
        assert_eq!(mount["readOnly"], true, "{variant}");
        assert!(
            !named(&pod["volumes"], mount["name"].as_str().unwrap()).is_null(),
            "{variant}"
        );
    }
    for volume in pod["volumes"].as_array().unwrap() {
        let path = volume["hostPath"]["path"].as_str().unwrap_or("/some/path");
        assert!(
            !["/", "/run", "/var/run", "/var/run/", "/etc"].contains(&path),
            "{variant}"
        );
    }
}

#[test]
fn api_server_accepts_every_variant() {
    let cluster = bed::kubernetes();
    for namespace in ["harpoon", "fleet-system", "shop", "web"] {
        cluster.ensure_namespace(namespace);
    }
    let known = |object: &Value| !FOREIGN.contains(&object["kind"].as_str().unwrap());
    install_definitions(cluster);
    // Its PodDisruptionBudget is of a version that Kubernetes 1.20 does not have.
    let mut sets = all_variants(&["--kube-version=1.20.0"]);
    sets.remove(image_volumes::VARIANT);
    let files = generated::FILES.iter().map(|(file, _)| *file);
    let files =
        files.filter(|file| !file.starts_with("continuous") && *file != image_volumes::FILE);
    sets.extend(files.map(|file| (file.to_owned(), parse(&committed(file)))));
    for (variant, mut objects) in sets {
        objects.retain(known);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let directory = bed::directory();
        let file = directory.path().join("objects.json");
        fs::write(&file, list.to_string()).unwrap();
        let mut kubectl = bed::tool("kubectl");
        kubectl.arg("--kubeconfig").arg(cluster.kubeconfig());
        kubectl.args(["apply", "--dry-run=server", "-o", "json", "-f"]);
        let answer: Value = serde_json::from_str(&bed::run(kubectl.arg(&file))).unwrap();
        let answers = match answer["kind"] == "List" {
            true => answer["items"].as_array().unwrap().clone(),
            false => vec![answer],
        };
        assert_eq!(answers.len(), objects.len(), "{variant}");
        for (answer, object) in answers.iter().zip(&objects) {
            let place = format!("{variant}: {}", object["kind"].as_str().unwrap());
            assert_holds(answer, object, &place);
        }
    }
}

/// Installs harpoon's definitions on a shared API server, as a user does.
fn install_definitions(cluster: &Kubernetes) {
    // API servers before Kubernetes 1.23 do not know the CEL rules, which kubectl would refuse.
    for arguments in [
        ["apply", "--validate=false"],
        ["wait", "--for=condition=Established"],
    ] {
        let mut kubectl = bed::tool("kubectl");
        kubectl.arg("--kubeconfig").arg(cluster.kubeconfig());
        kubectl.args(arguments).arg("-f").arg(deploy("crds.yaml"));
        bed::run(&mut kubectl);
    }
}

/// Returns whether the response contains all of `posted`: an API server silently drops unknown fields. It also omits fields that
/// are false by default.
/// false by default too.
fn assert_holds(answer: &Value, posted: &Value, place: &str) {
    match posted {
        Value::Object(fields) => {
            for (name, value) in fields.iter().filter(|(name, _)| *name != "globalDefault") {
                assert_holds(&answer[name], value, &format!("{place}.{name}"));
            }
        }
        Value::Array(items) => {
            assert_eq!(
                answer.as_array().map(Vec::len),
                Some(items.len()),
                "{place}"
            );
            for (n, item) in items.iter().enumerate() {
                assert_holds(&answer[n], item, &format!("{place}[{n}]"));
            }
        }
        value => assert_eq!(answer, value, "{place}"),
    }
}

#[test]
fn containerd_needs_only_socket_group() {
    let containerd = bed::containerd();
    let socket = containerd.socket();
    let image = bed::registry().push(&bed::unique("deploy")).reference;
    let run = pod(&rendered(&json!({}))).clone();
    let (user, group) = (
        &run["securityContext"]["runAsUser"],
        &run["initContainers"][0]["securityContext"]["runAsGroup"],
    );
    let pull = |group: &Value| {
        let (user, group) = (format!("--reuid={user}"), format!("--regid={group}"));
        Harpoon::new(["pull", &image])
            .bind(socket.parent().unwrap(), "/run/containerd")
            .under([
                "setpriv",
                &user,
                &group,
                "--clear-groups",
                "--bounding-set=-all",
                "--inh-caps=-all",
                "--no-new-privs",
                "--",
            ])
            .run()
    };
    let output = pull(&json!(65532)).expect(3);
    assert!(
        output
            .stderr
            .contains("/run/containerd/containerd.sock: permission denied"),
        "{output}"
    );
    pull(group).expect(0);
}

#[test]
fn old_tools_daemonset_runs_harpoon() {
    // As in its YAML: no arguments, Docker's socket and the list mounted, and the five variables.
    let (docker, registry) = (bed::docker(), bed::registry_with_password());
    let [first, second, other] = ["old/a", "old/b", "older/c"].map(|name| {
        let pushed = registry.push(&format!("{}:1", bed::unique(name)));
        pushed.reference
    });
    let directory = bed::directory();
    let list = directory.path().join("images");
    fs::write(&list, format!("{other}\n{first}\n{second}\n")).unwrap();
    let login = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        format!("{}:{}", bed::USER, bed::PASSWORD),
    );
    Harpoon::new([] as [&str; 0])
        .bind(docker.socket(), "/var/run/docker.sock")
        .bind(&list, "/config/images")
        .env("NAMESPACES", "*")
        .env("LIMIT", "1")
        .env("IGNORE", format!("{}/older", registry.address()))
        .env("PRIVATE_REGISTRY", registry.address())
        .env("PRIVATE_REGISTRY_AUTH", login)
        .run()
        .expect(0);
    assert_eq!(
        [&first, &second, &other].map(|image| docker.has(image)),
        [true, false, false]
    );
}
