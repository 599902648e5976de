//! What installs harpoon on a cluster: `harpoon manifests`, and what is in `deploy/`, which must be the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};

use crate::bed::{self, Harpoon};

mod rights;
mod same;

/// Files that are what `harpoon manifests` prints, and with which flags. `make generate` writes them.
const GENERATED: &[(&str, &[&str])] = &[
    ("daemonset-auto.yaml", &[]),
    (
        "daemonset-manual.yaml",
        &["--images=nginx:1.27,registry.example/team/api:2.1"],
    ),
    ("kustomize/base/harpoon.yaml", &["--node-relevance=false"]),
];

/// One of each kind of installation.
const VARIANTS: &[&[&str]] = &[
    &[],
    &["--node-relevance=false"],
    &["--images=nginx:1.27"],
    &["--images=nginx:1.27", "--runtime=docker"],
    &["--runtime=crio", "--namespaces=*", "--workloads=all"],
    &["--runtime=docker"],
    &["--runtime=docker", "--socket-group=998"],
    &["--runtime=k3s", "--namespaces=shop,web", "--pull-secrets"],
    &["--cloud=eks"],
    &["--cloud=gke", "--images=nginx:1.27"],
    &["--cloud=aks"],
    &[
        "--private-registry=registry.example",
        "--registry-secret=pull",
        "--image-pull-secret=own",
    ],
    &["--runtime-endpoint=/run/cri.sock", "--priority-class="],
];

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(path)
}

fn printed(flags: &[&str]) -> String {
    let harpoon = Harpoon::new(["manifests"]).args(flags.iter().copied());
    harpoon.run().expect(0).stdout
}

fn parse(yaml: &str) -> Vec<Value> {
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(yaml).unwrap_or_else(|e| panic!("{e}: {yaml}"));
    objects
        .into_iter()
        .filter(|object| !object.is_null())
        .collect()
}

fn manifests(flags: &[&str]) -> Vec<Value> {
    parse(&printed(flags))
}

/// What `helm template` says of the chart with these values.
fn chart(name: &str, arguments: &[&str], values: &Value) -> Output {
    let directory = bed::directory();
    let file = directory.path().join("values.yaml");
    fs::write(&file, values.to_string()).unwrap();
    let mut command = bed::tool("helm");
    command.args(["template", name]).arg(deploy("chart"));
    command.arg("--values").arg(file).args(arguments);
    command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}: run testbed/install"))
}

fn daemon_set(objects: &[Value]) -> &Value {
    objects
        .iter()
        .find(|o| o["kind"] == "DaemonSet")
        .expect("a DaemonSet")
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let mut items = list.as_array().into_iter().flatten();
    items
        .find(|item| item["name"] == name)
        .unwrap_or(&Value::Null)
}

#[test]
fn generated_files_are_what_the_program_prints() {
    for (file, flags) in GENERATED {
        let (path, expected) = (deploy(file), printed(flags));
        if std::env::var_os("HARPOON_GENERATE").is_some() {
            fs::write(&path, expected).unwrap();
            continue;
        }
        let committed = fs::read_to_string(&path).unwrap();
        assert!(
            committed == expected,
            "deploy/{file} is not what `harpoon manifests {}` prints: run `make generate`",
            flags.join(" ")
        );
    }
}

#[test]
fn only_the_init_container_sees_the_node_and_the_cluster() {
    for flags in VARIANTS {
        let objects = manifests(flags);
        let pod = &daemon_set(&objects)["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false, "{flags:?}");
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
            assert_eq!(pause[absent], Value::Null, "{flags:?}");
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
        let cloud = flags.iter().any(|f| f.starts_with("--cloud"));
        assert_eq!(pod["hostNetwork"] == true, cloud, "{flags:?}");
        for mount in run["volumeMounts"].as_array().unwrap() {
            assert_eq!(mount["readOnly"], true, "{flags:?}");
            assert!(
                !named(&pod["volumes"], mount["name"].as_str().unwrap()).is_null(),
                "{flags:?}"
            );
        }
        for volume in pod["volumes"].as_array().unwrap() {
            let path = volume["hostPath"]["path"].as_str().unwrap_or("/some/path");
            assert!(
                !["/", "/run", "/var/run", "/var/run/", "/etc"].contains(&path),
                "{flags:?}"
            );
        }
        let token = named(&pod["volumes"], "token");
        assert_eq!(
            token.is_null(),
            flags.iter().any(|f| f.starts_with("--images")),
            "{flags:?}"
        );
        assert_eq!(token.is_null(), pod["serviceAccountName"].is_null());
        let root = run["securityContext"]["runAsUser"] == 0;
        let of_root = [
            &["--images=nginx:1.27", "--runtime=docker"][..],
            &["--runtime=docker"],
            &["--cloud=aks"],
        ];
        assert_eq!(root, of_root.contains(flags), "{flags:?}");
        assert_eq!(
            daemon_set(&objects)["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"],
            "10%"
        );
        assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    }
}

#[test]
fn every_variant_is_taken_by_the_api_server_with_all_its_fields() {
    let cluster = bed::kubernetes();
    let namespace = cluster.namespace();
    for flags in VARIANTS {
        let own = format!("--namespace={namespace}");
        let mut flags: Vec<_> = flags
            .iter()
            .filter(|f| !f.starts_with("--namespaces=s"))
            .copied()
            .collect();
        flags.push(&own);
        for object in manifests(&flags) {
            let collection = format!("{}?dryRun=All", collection(&object));
            let answer = cluster.create(&collection, object.clone());
            assert_holds(&answer, &object, object["kind"].as_str().unwrap());
        }
    }
}

/// The path of the collection that an object belongs into.
fn collection(object: &Value) -> String {
    let (version, kind) = (
        object["apiVersion"].as_str().unwrap(),
        object["kind"].as_str().unwrap(),
    );
    let base = if version == "v1" {
        "/api/v1".to_owned()
    } else {
        format!("/apis/{version}")
    };
    let plural = match kind {
        "PriorityClass" => "priorityclasses".to_owned(),
        kind => format!("{}s", kind.to_lowercase()),
    };
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{base}/namespaces/{namespace}/{plural}"),
        None => format!("{base}/{plural}"),
    }
}

/// Whether all of `posted` is in the answer: an API server drops what it does not know without a word. It leaves out what is
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
fn settings_become_variables() {
    let objects = manifests(&[
        "--limit=20",
        "--refresh",
        "--disk-budget=20Gi",
        "--ignore=quay.io, nginx",
        "--stagger=5m",
        "--log-level=debug",
        "--selector=app=web,tier!=test",
        "--fail-on=never",
        "--private-registry=registry.example/team",
        "--name=fleet",
    ]);
    let run = &daemon_set(&objects)["spec"]["template"]["spec"]["initContainers"][0];
    let variables: BTreeMap<_, _> = run["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| {
            (
                v["name"].as_str().unwrap(),
                v["value"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    let expected = BTreeMap::from([
        ("NODE_NAME", ""),
        ("LIMIT", "20"),
        ("REFRESH", "true"),
        ("DISK_BUDGET", "20Gi"),
        ("IGNORE", "quay.io, nginx"),
        ("STAGGER", "5m"),
        ("LOG_LEVEL", "debug"),
        ("SELECTOR", "app=web,tier!=test"),
        ("FAIL_ON", "never"),
        ("PRIVATE_REGISTRY", "registry.example/team"),
        ("PRIVATE_REGISTRY_AUTH", ""),
    ]);
    assert_eq!(variables, expected);
    let auth = &named(&run["env"], "PRIVATE_REGISTRY_AUTH")["valueFrom"]["secretKeyRef"];
    assert_eq!(
        auth,
        &json!({"name": "fleet-private-registry", "key": "auth"})
    );
    // Nothing of the caller's environment gets in.
    let output = Harpoon::new(["manifests"])
        .env("LIMIT", "x")
        .env("NAMESPACES", "*")
        .run()
        .expect(0);
    assert_eq!(output.stdout, printed(&[]));
}

#[test]
fn a_list_can_come_from_a_file() {
    let harpoon = Harpoon::new(["manifests", "--images-from=list"]);
    fs::write(
        harpoon.home().join("list"),
        "# ours\nnginx:1.27\n\nregistry.example/team/api:2.1 # the API\n",
    )
    .unwrap();
    let expected = fs::read_to_string(deploy("daemonset-manual.yaml")).unwrap();
    assert_eq!(harpoon.run().expect(0).stdout, expected);
}

#[test]
fn what_is_wrong_is_named_before_anything_is_installed() {
    for (flags, named) in [
        (
            &["--runtime=podman"][..],
            "\"podman\" for --runtime: expected containerd, crio",
        ),
        (
            &["--namespace=Shop"],
            "\"Shop\" for --namespace: expected a namespace",
        ),
        (&["--name=a b"], "--name"),
        (&["--image=Harpoon"], "\"Harpoon\" for --image"),
        (&["--images=nginx,UPPER/x"], "\"UPPER/x\" for --images"),
        (&["--images="], "for --images: expected image references"),
        (
            &["--images=a", "--namespaces=*"],
            "\"*\" for --namespaces (NAMESPACES): expected nothing",
        ),
        (&["--images=a", "--stagger=5m"], "--stagger"),
        (&["--node-relevance=maybe"], "--node-relevance"),
        (&["--node-relevance=false", "--stagger=5m"], "--stagger"),
        (&["--limit=0"], "\"0\" for --limit (LIMIT)"),
        (&["--workloads=pod"], "\"pod\" for --workloads (WORKLOADS)"),
        (&["--disk-budget=20GB"], "--disk-budget"),
        (&["--fail-on=some"], "--fail-on"),
        (&["--log-level=loud"], "--log-level"),
        (
            &["--cloud=ibm"],
            "\"ibm\" for --cloud: expected eks, gke or aks",
        ),
        (&["--socket-group=docker"], "\"docker\" for --socket-group"),
        (&["--runtime-endpoint=oci:x"], "--runtime-endpoint"),
        (
            &["--pull-secrets", "--namespaces=*"],
            "--pull-secrets (PULL_SECRETS): expected false with --namespaces *",
        ),
        (
            &["--secret-names=pull"],
            "--secret-names: expected --pull-secrets",
        ),
        (&["--private-registry=a b"], "--private-registry"),
        (&["--registry-secret=Pull"], "--registry-secret"),
    ] {
        let output = Harpoon::new(["manifests"])
            .args(flags.iter().copied())
            .run()
            .expect(2);
        assert!(output.stderr.contains(named), "{named}: {output}");
        assert_eq!(output.stdout, "");
    }
}

#[test]
fn a_group_of_its_socket_is_all_of_root_that_containerd_takes() {
    let containerd = bed::containerd();
    let socket = containerd.socket();
    let image = bed::registry().push(&bed::unique("deploy")).reference;
    let run = &daemon_set(&manifests(&[]))["spec"]["template"]["spec"].clone();
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
fn the_old_tools_daemon_set_works_with_another_image() {
    // As its YAML has it: no arguments, Docker's socket and the list at their places, and the five variables.
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
