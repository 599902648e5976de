use super::super::wire_tests::{Reply, Server};
use super::super::{Namespaces, Settings, read_and_discover};
use super::*;

const NODE: &str = r#"{"metadata":{"name":"n1","labels":{"disk":"ssd","sandbox":"gvisor"}},
    "spec":{"taints":[{"key":"box","value":"g","effect":"NoSchedule"}]}}"#;

fn whole(code: u16, text: &str) -> Reply {
    Reply::Whole(code, "", text.to_owned())
}

/// A Deployment of the image `name`, whose template says this besides.
fn deployment(name: &str, template: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"a"}},
            "spec":{{"template":{{"spec":{{"containers":[{{"image":"{name}"}}]{template}}}}}}}}}"#
    )
}

fn list(items: &[String]) -> Reply {
    whole(200, &format!(r#"{{"items":[{}]}}"#, items.join(",")))
}

/// What is found, as `image: why not`, and the warnings.
async fn found(server: &Server, node: Option<&str>) -> (Vec<String>, Vec<String>) {
    let settings = Settings {
        namespaces: Namespaces::All,
        workloads: vec![WorkloadKind::Deployments],
        selector: None,
        pull_secrets: false,
        node: node.map(str::to_owned),
        ..Settings::all(&[])
    };
    let found = read_and_discover(&server.cluster, &settings).await.unwrap();
    let why = |c: &crate::model::candidate::Candidate| {
        let uses = c.uses.as_ref().unwrap();
        format!(
            "{}: {}",
            c.image,
            uses[0].mismatch.as_deref().unwrap_or("fits")
        )
    };
    let warnings = found.warnings.iter().map(ToString::to_string);
    (
        found.candidates.iter().map(why).collect(),
        warnings.collect(),
    )
}

#[tokio::test]
async fn missing_node_name_disables_node_filtering() {
    let server = Server::start(|_, _| {
        list(&[deployment(
            "x",
            r#","nodeName":"other","runtimeClassName":"gvisor""#,
        )])
    })
    .await;
    let (images, warnings) = found(&server, None).await;
    assert_eq!(images, ["x: fits"]);
    assert_eq!(warnings, [] as [&str; 0]);
    assert_eq!(server.paths(), ["/apis/apps/v1/deployments?limit=500"]);
}

#[tokio::test]
async fn node_and_runtime_classes_read_once() {
    let server = Server::start(|_, path| match path {
        "/api/v1/nodes/n1" => whole(200, NODE),
        "/apis/node.k8s.io/v1beta1/runtimeclasses/gvisor" => whole(
            200,
            r#"{"handler":"runsc","scheduling":{"nodeSelector":{"sandbox":"gvisor"},"tolerations":[{"key":"box","operator":"Exists"}]}}"#,
        ),
        "/apis/node.k8s.io/v1/runtimeclasses/kata" => whole(
            200,
            r#"{"scheduling":{"nodeSelector":{"sandbox":"kata"},"tolerations":null}}"#,
        ),
        "/apis/node.k8s.io/v1/runtimeclasses/secret" => whole(403, "{}"),
        "/apis/node.k8s.io/v1/runtimeclasses/odd" => whole(200, "7"),
        path if path.contains("runtimeclasses") => whole(404, "{}"),
        _ => list(&[
            deployment("plain", ""),
            deployment("gvisor", r#","runtimeClassName":"gvisor""#),
            deployment("again", r#","runtimeClassName":"gvisor","nodeSelector":{"disk":"hdd"}"#),
            deployment("kata", r#","runtimeClassName":"kata""#),
            deployment("missing", r#","runtimeClassName":"missing","tolerations":[{"operator":"Exists"}]"#),
            deployment("missing2", r#","runtimeClassName":"missing""#),
            deployment("secret", r#","runtimeClassName":"secret""#),
            deployment("odd", r#","runtimeClassName":"odd""#),
            deployment("none", r#","runtimeClassName":"../../x","tolerations":[{"operator":"Exists"}]"#),
            deployment("nulls", r#","runtimeClassName":null,"nodeSelector":null,"affinity":null,"tolerations":null,"nodeName":null"#),
            deployment("affine", r#","affinity":{"podAffinity":{},"nodeAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[{"weight":1}],"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchFields":[{"key":"metadata.name","operator":"In","values":["n2"]}]}]}}}"#),
        ]),
    })
    .await;
    let (images, warnings) = found(&server, Some("n1")).await;
    let taint = "node has the taint box=g:NoSchedule, which is not tolerated";
    assert_eq!(
        images,
        [
            &format!("plain: {taint}"),
            "gvisor: fits",
            "again: node's label disk is ssd, not hdd",
            "kata: node's label sandbox is gvisor, not kata",
            "missing: fits",
            &format!("missing2: {taint}"),
            &format!("secret: {taint}"),
            &format!("odd: {taint}"),
            "none: fits",
            &format!("nulls: {taint}"),
            "affine: pods require node n2",
        ]
    );
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for (warning, parts) in warnings.iter().zip([
        ["RuntimeClass missing", "does not exist"],
        [
            "RuntimeClass secret",
            "\"get\" on \"runtimeclasses\" in apiGroup \"node.k8s.io\"",
        ],
        ["RuntimeClass odd", "unexpected response"],
    ]) {
        assert!(parts.iter().all(|part| warning.contains(part)), "{warning}");
    }
    let mut asked = server.paths();
    asked.sort();
    let class = |version, name| format!("/apis/node.k8s.io/{version}/runtimeclasses/{name}");
    assert_eq!(
        asked,
        [
            "/api/v1/nodes/n1".to_owned(),
            "/apis/apps/v1/deployments?limit=500".to_owned(),
            class("v1", "gvisor"),
            class("v1", "kata"),
            class("v1", "missing"),
            class("v1", "odd"),
            class("v1", "secret"),
            class("v1beta1", "gvisor"),
            class("v1beta1", "missing"),
        ]
    );
}

#[tokio::test]
async fn unreadable_node_filters_nothing() {
    for (code, text, said) in [
        (403, "{}", "\"get\" on \"nodes\" in apiGroup \"\""),
        (404, "{}", "does not exist"),
        (200, r#"{"metadata":{"name":"n2"}}"#, "unexpected response"),
        (200, "null", "unexpected response"),
        (500, "{}", "500"),
    ] {
        let server = Server::start(move |_, path| match path {
            "/api/v1/nodes/n1" => whole(code, text),
            _ => list(&[deployment(
                "x",
                r#","nodeName":"other","runtimeClassName":"c""#,
            )]),
        })
        .await;
        let (images, warnings) = found(&server, Some("n1")).await;
        assert_eq!(images, ["x: fits"]);
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].contains("node n1") && warnings[0].contains(said),
            "{warnings:?}"
        );
        assert!(
            !server
                .paths()
                .iter()
                .any(|path| path.contains("runtimeclasses"))
        );
    }
}

#[tokio::test]
async fn excess_runtime_classes_are_not_read() {
    let server = Server::start(|_, path| match path {
        "/api/v1/nodes/n1" => whole(200, NODE),
        path if path.contains("runtimeclasses") => whole(200, "{}"),
        _ => list(&Vec::from_iter((0..MAX_CLASSES + 9).map(|n| {
            deployment(&format!("d{n}"), &format!(r#","runtimeClassName":"c{n}""#))
        }))),
    })
    .await;
    let (images, warnings) = found(&server, Some("n1")).await;
    assert_eq!(images.len(), MAX_CLASSES + 9);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(server.paths().len(), MAX_CLASSES + 2);
}

#[tokio::test]
async fn other_operating_systems_do_not_fit() {
    const LINUX: &str = r#"{"metadata":{"name":"n1"},"status":{"nodeInfo":{"operatingSystem":"linux","architecture":"amd64"}}}"#;
    const WINDOWS: &str = r#"{"metadata":{"name":"n1","labels":{"kubernetes.io/os":"windows"}}}"#;
    const SILENT: &str = r#"{"metadata":{"name":"n1"}}"#;
    for (node, expected) in [
        (
            LINUX,
            [
                "a: fits",
                "l: fits",
                "w: node OS is linux, pods require windows",
            ],
        ),
        (
            SILENT,
            [
                "a: fits",
                "l: fits",
                "w: node OS is linux, pods require windows",
            ],
        ),
        (
            WINDOWS,
            [
                "a: fits",
                "l: node OS is windows, pods require linux",
                "w: fits",
            ],
        ),
    ] {
        let server = Server::start(move |_, path| match path {
            "/api/v1/nodes/n1" => whole(200, node),
            _ => list(&[
                deployment("a", r#","os":null"#),
                deployment("l", r#","os":{"name":"linux"}"#),
                deployment("w", r#","os":{"name":"windows"}"#),
            ]),
        })
        .await;
        let (images, _) = found(&server, Some("n1")).await;
        assert_eq!(images, expected, "{node}");
    }
}

#[tokio::test]
async fn numeric_tolerations_fit() {
    let server = Server::start(|_, path| match path {
        "/api/v1/nodes/n1" => whole(200, NODE),
        _ => list(&["Gt", "Lt", "Future"].map(|operator| {
            let tolerations =
                format!(r#","tolerations":[{{"key":"box","operator":"{operator}","value":"5"}}]"#);
            deployment(operator, &tolerations)
        })),
    })
    .await;
    let (images, _) = found(&server, Some("n1")).await;
    assert_eq!(images, ["Gt: fits", "Lt: fits", "Future: fits"]);
}

#[tokio::test]
async fn templates_tolerate_taints_of_their_resources() {
    // Tainted for a GPU as well as for something else, and long there.
    const GPU: &str = r#"{"metadata":{"name":"n1","creationTimestamp":"2024-01-01T00:00:00Z"},
        "spec":{"taints":[{"key":"nvidia.com/gpu","value":"present","effect":"NoSchedule"}]},
        "status":{"allocatable":{"cpu":"4","nvidia.com/gpu":"8"}}}"#;
    let resources = |name: &str, list: &str, quantities: &str| {
        format!(
            r#"{{"metadata":{{"name":"{name}","namespace":"a"}},"spec":{{"template":{{"spec":{{
                "{list}":[{{"image":"{name}","resources":{quantities}}}]}}}}}}}}"#
        )
    };
    let server = Server::start(move |_, path| match path {
        "/api/v1/nodes/n1" => whole(200, GPU),
        _ => list(&[
            resources("limit", "containers", r#"{"limits":{"nvidia.com/gpu":"1"}}"#),
            resources("request", "containers", r#"{"requests":{"nvidia.com/gpu":1},"limits":null}"#),
            resources("init", "initContainers", r#"{"limits":{"nvidia.com/gpu":"1"}}"#),
            resources("zero", "containers", r#"{"limits":{"nvidia.com/gpu":"0"}}"#),
            resources("none", "containers", "null"),
            resources("cpu", "containers", r#"{"limits":{"cpu":"1","hugepages-2Mi":"1Gi"},"claims":[{"name":"c"}]}"#),
            resources("other", "containers", r#"{"limits":{"nvidia.com/gpu":"1","amd.com/gpu":"1"}}"#),
            resources("unneeded", "containers", r#"{"limits":{"nvidia.com/gpu":"1","amd.com/gpu":"0"}}"#),
            resources("quota", "containers", r#"{"limits":{"nvidia.com/gpu":"1","requests.x/y":"1","x.kubernetes.io/y":"1","pods":"1"}}"#),
        ]),
    })
    .await;
    let (images, _) = found(&server, Some("n1")).await;
    let taint = "node has the taint nvidia.com/gpu=present:NoSchedule, which is not tolerated";
    assert_eq!(
        images,
        [
            "limit: fits",
            "request: fits",
            "init: fits",
            "zero: fits",
            &format!("none: {taint}"),
            &format!("cpu: {taint}"),
            "other: node has no resource amd.com/gpu",
            "unneeded: fits",
            "quota: fits",
        ]
    );
}
