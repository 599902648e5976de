use super::super::wire_tests::{Reply, Server, refuse};
use super::super::{Namespaces, Settings, read_and_discover};
use super::*;
use crate::model::workload_kind::WorkloadKind;

/// What no message may hold, and its base64.
const VALUE: &str = r#"{"auths":{"r.example":{"auth":"dXNlcjpzM2NyM3Q="}}}"#;

fn secret(kind: &str, key: &str, value: &str) -> Reply {
    let value = STANDARD.encode(value);
    raw_secret(kind, &format!(r#"{{"{key}":"{value}","other":"!!!"}}"#))
}

fn raw_secret(kind: &str, data: &str) -> Reply {
    let metadata = r#""metadata":{"name":"s","annotations":{"a":"b"}}"#;
    refuse(
        200,
        &format!(r#"{{"kind":"Secret",{metadata},"type":"kubernetes.io/{kind}","data":{data}}}"#),
    )
}

fn good() -> Reply {
    secret("dockerconfigjson", ".dockerconfigjson", VALUE)
}

/// A list of Deployments: namespace, image (also the name), and what is added to the template's spec.
fn deployments(them: &[(&str, &str, &str)]) -> Reply {
    let items: Vec<String> = them
        .iter()
        .map(|(namespace, image, pod)| {
            format!(
                r#"{{"metadata":{{"name":"{image}","namespace":"{namespace}"}},"spec":{{"template":{{"spec":{{"containers":[{{"image":"{image}"}}]{pod}}}}}}}}}"#
            )
        })
        .collect();
    refuse(200, &format!(r#"{{"items":[{}]}}"#, items.join(",")))
}

fn named(name: &str) -> String {
    format!(r#","imagePullSecrets":[{{"name":"{name}"}}]"#)
}

/// What is found, as `image < Secret namespace/name`, and the warnings.
async fn found(server: &Server, pull_secrets: bool) -> (Vec<String>, Vec<String>) {
    let settings = Settings {
        namespaces: Namespaces::All,
        workloads: vec![WorkloadKind::Deployments],
        selector: None,
        pull_secrets,
        node: None,
        ..Settings::all(&[])
    };
    let found = read_and_discover(&server.cluster, &settings).await.unwrap();
    let shown = format!("{found:?}");
    assert!(
        !shown.contains("s3cr3t") && !shown.contains("dXNlc"),
        "{shown}"
    );
    let pairs = found.pull_secrets.iter();
    let warnings = found.warnings.iter().map(ToString::to_string);
    (
        pairs
            .map(|pair| format!("{} < {}", pair.image, pair.config.name()))
            .collect(),
        warnings.collect(),
    )
}

const LIST: &str = "/apis/apps/v1/deployments?limit=500";

#[tokio::test]
async fn disabled_pull_secrets_read_nothing() {
    let server = Server::start(|_, _| deployments(&[("a", "x", &named("s"))])).await;
    let (pairs, warnings) = found(&server, false).await;
    assert!(pairs.is_empty() && warnings.is_empty());
    assert_eq!(server.paths(), [LIST]);
}

#[tokio::test]
async fn each_secret_is_read_once() {
    let server = Server::start(|_, path| match path {
        LIST => deployments(&[
            ("a", "x", &named("s")),
            ("a", "y", &named("s")),
            ("b", "z", &named("s")),
            ("b", "plain", r#","serviceAccountName":"other""#),
            ("b", "v", ""),
        ]),
        "/api/v1/namespaces/b/serviceaccounts/default" => refuse(
            200,
            r#"{"secrets":[{"name":"token"}],"imagePullSecrets":[{"name":"s"},{"name":"t"}]}"#,
        ),
        "/api/v1/namespaces/b/serviceaccounts/other" => refuse(200, r#"{"metadata":{}}"#),
        "/api/v1/namespaces/b/secrets/t" => secret("dockercfg", ".dockercfg", VALUE),
        _ => good(),
    })
    .await;
    let (pairs, warnings) = found(&server, true).await;
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(
        pairs,
        [
            "x < Secret a/s",
            "y < Secret a/s",
            "z < Secret b/s",
            "v < Secret b/s",
            "v < Secret b/t"
        ]
    );
    let mut paths = server.paths();
    paths.sort();
    assert_eq!(
        paths,
        [
            "/api/v1/namespaces/a/secrets/s",
            "/api/v1/namespaces/b/secrets/s",
            "/api/v1/namespaces/b/secrets/t",
            "/api/v1/namespaces/b/serviceaccounts/default",
            "/api/v1/namespaces/b/serviceaccounts/other",
            LIST,
        ]
    );
}

#[tokio::test]
async fn unusable_secrets_are_named_others_used() {
    let names = [
        "404", "403", "410", "type", "opaque", "key", "empty", "base64", "utf8", "garbage",
        "string", "400", "large", "good",
    ];
    let server = Server::start(move |_, path| {
        if path == LIST {
            let pods: Vec<String> = names.iter().map(|name| named(name)).collect();
            let them = names.iter().zip(&pods);
            let mut them: Vec<_> = them.map(|(name, pod)| ("a", *name, pod.as_str())).collect();
            them.push(("a", "by-account", ""));
            them.push(("b", "by-account", ""));
            them.push(("c", "by-account", ""));
            return deployments(&them);
        }
        let large = format!("{{\"data\":\"{}\"}}", "s3cr3t".repeat(300_000));
        match path.trim_start_matches("/api/v1/namespaces/a/secrets/") {
            "404" => refuse(404, r#"{"message":"secrets \"404\" not found"}"#),
            "410" => refuse(410, ""),
            "403" => refuse(403, r#"{"message":"forbidden s3cr3t"}"#),
            "type" => secret("basic-auth", ".dockerconfigjson", VALUE),
            "opaque" => refuse(200, r#"{"type":"Opaque","data":null}"#),
            "key" => secret("dockercfg", ".dockerconfigjson", VALUE),
            "empty" => secret("dockerconfigjson", ".dockerconfigjson", ""),
            "base64" => raw_secret("dockerconfigjson", r#"{".dockerconfigjson":"s3cr3t!"}"#),
            "utf8" => raw_secret(
                "dockerconfigjson",
                r#"{".dockerconfigjson":"czNjcjN0/w=="}"#,
            ),
            "garbage" => refuse(200, "s3cr3t"),
            "string" => raw_secret("dockerconfigjson", r#""s3cr3t""#),
            "400" => refuse(400, r#"{"message":"no\nway"}"#),
            "large" => refuse(200, &large),
            "good" => good(),
            "/api/v1/namespaces/a/serviceaccounts/default" => refuse(403, ""),
            "/api/v1/namespaces/b/serviceaccounts/default" => refuse(404, ""),
            _ => refuse(200, "[7]"),
        }
    })
    .await;
    let (pairs, warnings) = found(&server, true).await;
    assert_eq!(pairs, ["good < Secret a/good"]);
    let types =
        "unsupported type, expected kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg";
    let expected = [
        r#"ServiceAccount a/default: not allowed to read it: needs the RBAC verb "get" on "serviceaccounts" in apiGroup """#.to_owned(),
        "ServiceAccount b/default: does not exist".to_owned(),
        "ServiceAccount c/default: unexpected response from the API server".to_owned(),
        "Secret a/404: does not exist".to_owned(),
        r#"Secret a/403: not allowed to read it: needs the RBAC verb "get" on "secrets" in apiGroup """#.to_owned(),
        "Secret a/410: does not exist".to_owned(),
        format!("Secret a/type: {types}"),
        format!("Secret a/opaque: {types}"),
        "Secret a/key: the key .dockercfg has no value".to_owned(),
        "Secret a/empty: the key .dockerconfigjson has no value".to_owned(),
        "Secret a/base64: the value of the key .dockerconfigjson is malformed".to_owned(),
        "Secret a/utf8: the value of the key .dockerconfigjson is malformed".to_owned(),
        "Secret a/garbage: unexpected response from the API server".to_owned(),
        "Secret a/string: unexpected response from the API server".to_owned(),
        "Secret a/400: failed to read it: the API server returned 400: no way".to_owned(),
        "Secret a/large: it is larger than 1.5 MiB".to_owned(),
    ];
    assert_eq!(warnings, expected);
}

#[tokio::test]
async fn transient_fault_is_retried() {
    let server = Server::start(|number, _| match number {
        0 => deployments(&[("a", "x", &named("s"))]),
        1 => Reply::Hangup,
        2 => refuse(503, ""),
        3 => Reply::Cut(r#"{"data":"#.to_owned()),
        _ => good(),
    })
    .await;
    let (pairs, warnings) = found(&server, true).await;
    assert_eq!(pairs, ["x < Secret a/s"]);
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[tokio::test]
async fn lost_server_ends_the_reading() {
    let server = Server::start(|number, _| match number {
        0 => {
            let names: Vec<String> = (0..40).map(|n| format!("i{n}")).collect();
            let pods: Vec<String> = names.iter().map(|name| named(name)).collect();
            let them: Vec<_> = names
                .iter()
                .zip(&pods)
                .map(|(name, pod)| ("a", name.as_str(), pod.as_str()))
                .collect();
            deployments(&them)
        }
        _ => Reply::Hangup,
    })
    .await;
    let (pairs, warnings) = found(&server, true).await;
    assert!(pairs.is_empty());
    let (last, failed) = warnings.split_last().unwrap();
    assert!((1..=AT_ONCE + 4).contains(&failed.len()), "{warnings:?}");
    assert!(
        failed[0].starts_with("Secret a/i0: failed to read it: failed to reach the API server")
    );
    let rest = 40 - failed.len();
    assert_eq!(
        *last,
        format!("{rest} other pull secrets or service accounts were not read")
    );
}

#[tokio::test]
async fn refused_credentials_end_the_reading() {
    let server = Server::start(|number, _| match number {
        0 => deployments(&[("a", "x", ""), ("b", "y", &named("s"))]),
        _ => refuse(401, r#"{"message":"s3cr3t"}"#),
    })
    .await;
    let (_, warnings) = found(&server, true).await;
    assert_eq!(
        warnings,
        [
            "ServiceAccount a/default: the API server does not accept the credentials (401 Unauthorized)",
            "1 other pull secrets or service accounts were not read"
        ]
    );
}

#[test]
fn secret_text_is_passed_unchanged() {
    let of = |kind: &str, key: &str| {
        let value = STANDARD.encode(VALUE);
        let object = format!(r#"{{"type":"kubernetes.io/{kind}","data":{{"{key}":"{value}"}}}}"#);
        config(object.as_bytes()).unwrap()
    };
    let new = of("dockerconfigjson", ".dockerconfigjson");
    let old = of("dockercfg", ".dockercfg");
    assert!(!new.is_legacy && old.is_legacy);
    assert_eq!(new.json.expose(), VALUE);
    assert_eq!(old.json.expose(), VALUE);
}

#[tokio::test]
async fn broken_content_is_reported_unquoted() {
    let server = Server::start(|_, path| match path {
        LIST => deployments(&[
            ("a", "x", &named("json")),
            ("a", "y", &named("entry")),
            ("a", "z", &named("good")),
        ]),
        "/api/v1/namespaces/a/secrets/json" => {
            secret("dockerconfigjson", ".dockerconfigjson", "{s3cr3t")
        }
        "/api/v1/namespaces/a/secrets/entry" => secret(
            "dockerconfigjson",
            ".dockerconfigjson",
            r#"{"auths":{"r.example":{"auth":"s3cr3t!"},"s.example":{"auth":"dTpw"}}}"#,
        ),
        _ => good(),
    })
    .await;
    let (pairs, warnings) = found(&server, true).await;
    assert_eq!(pairs, ["y < Secret a/entry", "z < Secret a/good"]);
    let expected = [
        "Secret a/json is not JSON (line 1, column 2)",
        r#"Secret a/entry, entry r.example: in "auth", it is not base64"#,
    ];
    assert_eq!(warnings, expected);
}
