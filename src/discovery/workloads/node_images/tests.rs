use super::super::wire_tests::{Reply, Server};
use super::super::{Settings, read_and_discover};
use super::*;
use crate::model::workload_kind::WorkloadKind;

/// A Node with these images, as `(names, bytes)`.
fn node(arch: &str, runtime: &str, images: &[(&[&str], &str)]) -> String {
    let images = images.iter().map(|(names, bytes)| {
        let names = serde_json::to_string(names).unwrap();
        format!(r#"{{"names":{names},"sizeBytes":{bytes}}}"#)
    });
    let images = images.collect::<Vec<_>>().join(",");
    format!(
        r#"{{"metadata":{{"name":"n"}},"status":{{"nodeInfo":{{"operatingSystem":"linux","architecture":"{arch}",
            "containerRuntimeVersion":"{runtime}"}},"images":[{images}]}}}}"#
    )
}

/// The sizes that are found of `web`, `docker.io/api:2` and `pinned@sha256:aa…`, sorted.
async fn found(nodes: Vec<String>, settings: Settings) -> (Vec<String>, Vec<String>) {
    let server = Server::start(move |_, path| {
        if path.starts_with("/api/v1/nodes") {
            return Reply::Whole(200, "", format!(r#"{{"items":[{}]}}"#, nodes.join(",")));
        }
        let pinned = format!("pinned@sha256:{}", "a".repeat(64));
        let items = ["web", "docker.io/api:2", &pinned].map(|image| {
            format!(
                r#"{{"metadata":{{"name":"x","namespace":"a"}},"spec":{{"template":{{"spec":{{"containers":[{{"image":"{image}"}}]}}}}}}}}"#
            ).replace("\"x\"", &format!("\"{}\"", image.len()))
        });
        Reply::Whole(200, "", format!(r#"{{"items":[{}]}}"#, items.join(",")))
    })
    .await;
    let found = read_and_discover(&server.cluster, &settings).await.unwrap();
    let mut lines: Vec<_> = found
        .sizes
        .iter()
        .map(|(name, size)| {
            let short = name.replace(&"a".repeat(64), "aa");
            format!("{short} {size:?}")
        })
        .collect();
    lines.sort();
    (lines, server.paths())
}

fn settings(architecture: &str) -> Settings {
    Settings {
        sizes: true,
        platform: Platform::parse(&format!("linux/{architecture}")),
        ..Settings::all(&[WorkloadKind::Deployments])
    }
}

#[tokio::test]
async fn node_page_gives_image_sizes() {
    let digest = format!("docker.io/library/pinned@sha256:{}", "a".repeat(64));
    let nodes = || {
        vec![
            node(
                "amd64",
                "containerd://1.7.2",
                &[
                    (
                        &[
                            "docker.io/library/web:latest",
                            "docker.io/library/web@sha256:x",
                        ],
                        "70",
                    ),
                    (&[&digest], "5"),
                    (&["docker.io/library/other:1"], "9"),
                ],
            ),
            node(
                "amd64",
                "cri-o://1.30",
                &[(&["docker.io/library/api:2"], "300"), (&["web"], "900")],
            ),
            node(
                "amd64",
                "containerd://2.0.0",
                &[(&["docker.io/library/web:latest"], "80")],
            ),
            node(
                "arm64",
                "containerd://2.0.0",
                &[(&["docker.io/library/web:latest"], "1000")],
            ),
        ]
    };
    let (sizes, paths) = found(nodes(), settings("amd64")).await;
    assert_eq!(
        sizes,
        [
            "docker.io/library/api:2 Unpacked(300)",
            "docker.io/library/pinned@sha256:aa Packed(5)",
            "docker.io/library/web:latest Packed(80)",
        ]
    );
    assert_eq!(paths[1..], ["/api/v1/nodes?limit=100"]);
    let (sizes, _) = found(nodes(), settings("arm64")).await;
    assert_eq!(sizes, ["docker.io/library/web:latest Packed(1000)"]);
    // Who does not want to know does not ask.
    let quiet = Settings {
        sizes: false,
        ..settings("amd64")
    };
    let (sizes, paths) = found(nodes(), quiet).await;
    assert_eq!((sizes.len(), paths.len()), (0, 1));
}

#[tokio::test]
async fn invalid_sizes_and_names_are_dropped() {
    let nodes = vec![
        node(
            "amd64",
            "containerd://1",
            &[
                (&["web"], "-1"),
                (&["web"], "0"),
                (&["UPPER", "\u{1b}[0m", ""], "5"),
            ],
        ),
        node("", "", &[(&["web"], "7")]),
        "{}".to_owned(),
        r#"{"status":{"nodeInfo":null,"images":null}}"#.to_owned(),
    ];
    let (sizes, _) = found(nodes, settings("amd64")).await;
    assert_eq!(sizes, [] as [&str; 0]);
}

#[tokio::test]
async fn unlistable_nodes_are_not_an_error() {
    for code in [403, 404, 500] {
        let server = Server::start(move |_, path| {
            if path.starts_with("/api/v1/nodes") {
                return Reply::Whole(code, "", r#"{"message":"no"}"#.to_owned());
            }
            let item = r#"{"metadata":{"name":"x","namespace":"a"},"spec":{"template":{"spec":{"containers":[{"image":"web"}]}}}}"#;
            Reply::Whole(200, "", format!(r#"{{"items":[{item}]}}"#))
        })
        .await;
        let found = read_and_discover(&server.cluster, &settings("amd64"))
            .await
            .unwrap();
        assert_eq!((found.candidates.len(), found.sizes.len()), (1, 0));
        assert_eq!(found.warnings.len(), 0);
    }
}
