//! The real client against a server with faults on demand.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use super::*;
use crate::fake_http::{Asked, on_tcp};

/// The server's response to one request.
pub(super) enum Reply {
    /// A whole response: status, further header lines, body.
    Whole(u16, &'static str, String),
    /// A response whose body is shorter than announced.
    Cut(String),
    /// The start of a response, followed by a long silence.
    Stall(String),
    /// Not even a status line.
    Silence,
    /// The connection is closed without a response.
    Hangup,
}

pub(super) struct Server {
    pub(super) cluster: Cluster,
    requests: Arc<Mutex<Vec<String>>>,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Starts a server whose responses `script` determines from the number of the request, from 0, and its path with query.
    pub(super) async fn start(
        script: impl Fn(usize, &str) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let script = Arc::new(script);
        let (address, task) = on_tcp(move |stream| {
            let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
            async move { answer(stream, &*script, &seen).await }
        })
        .await;
        let url = format!("http://{address}");
        let mut config = kube::Config::new(url.parse().unwrap());
        config.default_namespace = "own".to_owned();
        let mut cluster = Cluster::from_config(config).unwrap();
        cluster.patience.idle = Duration::from_secs(1);
        cluster.patience.pace = 0.01;
        cluster.patience.longest_pause = Duration::from_secs(2);
        Self {
            cluster,
            requests,
            task: task.abort_handle(),
        }
    }

    async fn discover(&self, namespaces: &[&str], kinds: &[WorkloadKind]) -> Outcome {
        let names = namespaces.iter().map(|name| (*name).to_owned()).collect();
        let settings = Settings {
            namespaces: if namespaces == ["*"] {
                Namespaces::All
            } else {
                Namespaces::These(names)
            },
            workloads: kinds.to_vec(),
            selector: None,
            pull_secrets: false,
            node: None,
            ..Settings::all(&[])
        };
        match read_and_discover(&self.cluster, &settings).await {
            Ok(found) => Outcome {
                images: found
                    .candidates
                    .into_iter()
                    .map(|c| c.image.to_string())
                    .collect(),
                warnings: found.warnings.iter().map(ToString::to_string).collect(),
                error: String::new(),
            },
            Err(error) => Outcome {
                images: Vec::new(),
                warnings: Vec::new(),
                error: chain(&error),
            },
        }
    }

    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// The paths with query, without header lines.
    pub(super) fn paths(&self) -> Vec<String> {
        let path = |head: String| head.split(' ').nth(1).unwrap().to_owned();
        self.requests().into_iter().map(path).collect()
    }
}

#[derive(Debug)]
struct Outcome {
    images: Vec<String>,
    warnings: Vec<String>,
    error: String,
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

async fn answer(
    mut stream: TcpStream,
    script: &(dyn Fn(usize, &str) -> Reply + Send + Sync),
    seen: &Mutex<Vec<String>>,
) {
    let Ok(Asked { head, path, .. }) = Asked::read(&mut stream).await else {
        return;
    };
    let number = {
        let mut seen = seen.lock().unwrap();
        seen.push(head);
        seen.len() - 1
    };
    let reply = script(number, &path);
    let text = match &reply {
        Reply::Whole(code, headers, body) => format!(
            "HTTP/1.1 {code} X\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        ),
        Reply::Cut(body) | Reply::Stall(body) => {
            format!("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{body}")
        }
        Reply::Silence | Reply::Hangup => String::new(),
    };
    let _ = stream.write_all(text.as_bytes()).await;
    if matches!(reply, Reply::Stall(_) | Reply::Silence) {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
}

/// A page of Deployments that use the images `names` and are named so, and the token of the next page.
fn page(names: &[&str], next: &str) -> String {
    let items: Vec<String> = names
        .iter()
        .map(|name| {
            format!(
                r#"{{"metadata":{{"name":"{name}","namespace":"a"}},"spec":{{"containers":[{{"image":"{name}"}}],"template":{{"spec":{{"containers":[{{"image":"{name}"}}]}}}}}}}}"#
            )
        })
        .collect();
    format!(
        r#"{{"metadata":{{"continue":"{next}"}},"items":[{}]}}"#,
        items.join(",")
    )
}

fn ok(names: &[&str], next: &str) -> Reply {
    Reply::Whole(200, "", page(names, next))
}

pub(super) fn refuse(code: u16, body: &str) -> Reply {
    Reply::Whole(code, "content-type: application/json\r\n", body.to_owned())
}

const ONE: &[WorkloadKind] = &[WorkloadKind::Deployments];

#[tokio::test]
async fn pages_are_followed_and_requested_compressed() {
    let server = Server::start(|number, _| match number {
        0 => ok(&["x"], "a+/=&b"),
        _ => ok(&["y"], ""),
    })
    .await;
    let found = server.discover(&["team a"], ONE).await;
    assert_eq!(found.images, ["x", "y"]);
    assert!(found.warnings.is_empty());
    let list = "/apis/apps/v1/namespaces/team%20a/deployments?limit=500";
    assert_eq!(
        server.paths(),
        [list.to_owned(), format!("{list}&continue=a%2B%2F%3D%26b")]
    );
    for head in server.requests() {
        let head = head.to_lowercase();
        assert!(head.contains("accept-encoding: gzip\r\n"), "{head}");
        assert!(head.contains("accept: application/json\r\n"), "{head}");
        assert!(head.contains("user-agent: harpoon/"), "{head}");
    }
}

#[tokio::test]
async fn selector_reaches_server_for_all_namespaces() {
    let server = Server::start(|_, _| ok(&["x"], "")).await;
    let settings = Settings {
        namespaces: Namespaces::All,
        workloads: vec![WorkloadKind::Pods, WorkloadKind::Pods],
        selector: Some("app in (a,b),!c".to_owned()),
        pull_secrets: false,
        node: None,
        ..Settings::all(&[])
    };
    read_and_discover(&server.cluster, &settings).await.unwrap();
    assert_eq!(
        server.paths(),
        ["/api/v1/pods?limit=500&labelSelector=app%20in%20%28a%2Cb%29%2C%21c"]
    );
}

/// Only a 400 to the first list is about the selector.
#[tokio::test]
async fn refused_selector_ends_discovery() {
    let outcome = async |selector: Option<&str>, script: fn(usize, &str) -> Reply| {
        let server = Server::start(script).await;
        let settings = Settings {
            selector: selector.map(str::to_owned),
            ..Settings::all(&[WorkloadKind::Deployments, WorkloadKind::Pods])
        };
        match read_and_discover(&server.cluster, &settings).await {
            Ok(found) => format!("{} warnings", found.warnings.len()),
            Err(error) => chain(&error),
        }
    };
    let refused =
        "the API server rejects the label selector \"app in\": unable to parse requirement";
    assert_eq!(outcome(Some("app in"), |_, _| bad()).await, refused);
    // A list that is forbidden says nothing of the selector.
    let forbidden: fn(usize, &str) -> Reply = |number, _| match number {
        0 => refuse(403, ""),
        _ => bad(),
    };
    assert_eq!(outcome(Some("app in"), forbidden).await, refused);
    let later: fn(usize, &str) -> Reply = |number, _| match number {
        0 => ok(&["x"], ""),
        _ => bad(),
    };
    assert_eq!(outcome(Some("app"), later).await, "1 warnings");
    let next_page: fn(usize, &str) -> Reply = |number, _| match number {
        0 => ok(&["x"], "next"),
        1 => bad(),
        _ => ok(&["y"], ""),
    };
    assert_eq!(outcome(Some("app"), next_page).await, "1 warnings");
    let without = outcome(None, |_, _| bad()).await;
    assert!(
        without.starts_with("failed to list any workload: "),
        "{without}"
    );
}

fn bad() -> Reply {
    refuse(400, r#"{"message":"unable to parse requirement"}"#)
}

#[tokio::test]
async fn repeated_namespaces_are_scanned_once() {
    let server = Server::start(|_, _| ok(&["x"], "")).await;
    server.discover(&["b", "a", "b"], ONE).await;
    let settings = Settings {
        namespaces: Namespaces::Default,
        workloads: ONE.to_vec(),
        selector: None,
        pull_secrets: false,
        node: None,
        ..Settings::all(&[])
    };
    read_and_discover(&server.cluster, &settings).await.unwrap();
    let of = |namespace| format!("/apis/apps/v1/namespaces/{namespace}/deployments?limit=500");
    assert_eq!(server.paths(), [of("b"), of("a"), of("own")]);
}

#[tokio::test]
async fn forbidden_list_names_missing_rbac_rule() {
    let server = Server::start(|_, path| {
        if path.contains("/secret/") || path.contains("pods") {
            refuse(403, r#"{"message":"deployments.apps is forbidden"}"#)
        } else {
            ok(&["x"], "")
        }
    })
    .await;
    let found = server.discover(&["secret", "open"], ONE).await;
    assert_eq!(found.images, ["x"]);
    assert_eq!(
        found.warnings,
        [
            r#"namespace secret: not allowed to list deployments.apps: needs the RBAC verb "list" on "deployments" in apiGroup "apps""#
        ]
    );
    let found = server.discover(&["*"], &[WorkloadKind::Pods]).await;
    assert!(
        found
            .error
            .starts_with("failed to list any workload: all namespaces: not allowed to list pods")
    );
    assert!(found.error.contains("ClusterRole"), "{}", found.error);
}

#[tokio::test]
async fn refused_credentials_end_the_scan() {
    let server = Server::start(|_, _| refuse(401, r#"{"message":"Unauthorized"}"#)).await;
    let found = server.discover(&["a", "b"], &WorkloadKind::ALL).await;
    assert!(
        found
            .error
            .contains("does not accept the credentials (401 Unauthorized)"),
        "{}",
        found.error
    );
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn cronjobs_fall_back_to_v1beta1_once() {
    let server = Server::start(|_, path| {
        if path.contains("/batch/v1/cronjobs") || path.contains("/batch/v1/namespaces") {
            refuse(404, "404 page not found")
        } else {
            ok(&["x"], "")
        }
    })
    .await;
    let found = server
        .discover(&["a", "b"], &[WorkloadKind::CronJobs])
        .await;
    assert!(found.warnings.is_empty(), "{found:?}");
    assert_eq!(
        server.paths(),
        [
            "/apis/batch/v1/namespaces/a/cronjobs?limit=500",
            "/apis/batch/v1beta1/namespaces/a/cronjobs?limit=500",
            "/apis/batch/v1beta1/namespaces/b/cronjobs?limit=500",
        ]
    );
}

#[tokio::test]
async fn unsupported_kind_is_a_warning() {
    let server = Server::start(|_, path| match path.contains("cronjobs") {
        true => refuse(404, ""),
        false => ok(&["x"], ""),
    })
    .await;
    let kinds = [WorkloadKind::Pods, WorkloadKind::CronJobs];
    let found = server.discover(&["a"], &kinds).await;
    assert_eq!(
        found.warnings,
        ["namespace a: the API server has no cronjobs.batch"]
    );
    assert_eq!(found.images, ["x"]);
}

#[tokio::test]
async fn empty_namespace_differs_from_missing_one() {
    let server = Server::start(|_, path| match path {
        "/api/v1/namespaces/missing" => refuse(404, ""),
        "/api/v1/namespaces/hidden" => refuse(403, ""),
        "/api/v1/namespaces/empty" => refuse(200, "{}"),
        _ if path.contains("/full/") => ok(&["x"], ""),
        _ => ok(&[], ""),
    })
    .await;
    let kinds = [WorkloadKind::Deployments, WorkloadKind::Pods];
    let found = server
        .discover(&["missing", "full", "hidden", "empty"], &kinds)
        .await;
    assert_eq!(found.images, ["x"]);
    assert_eq!(found.warnings, ["namespace missing does not exist"]);
    let found = server.discover(&["hidden", "empty"], &kinds).await;
    assert!(
        found.error.is_empty() && found.warnings.is_empty(),
        "{found:?}"
    );
    let found = server.discover(&["missing"], &kinds).await;
    assert_eq!(
        found.error,
        "failed to list any workload: namespace missing does not exist"
    );
}

#[tokio::test]
async fn expired_list_continues_with_new_token() {
    let server = Server::start(|number, _| match number {
        0 => ok(&["x"], "t1"),
        1 => refuse(
            410,
            r#"{"kind":"Status","code":410,"metadata":{"continue":"t2"}}"#,
        ),
        _ => ok(&["y"], ""),
    })
    .await;
    let found = server.discover(&["a"], ONE).await;
    assert_eq!(found.images, ["x", "y"]);
    assert!(server.paths()[2].ends_with("&continue=t2"));
}

#[tokio::test]
async fn expired_list_without_token_restarts() {
    let server = Server::start(|number, _| match number {
        0 => ok(&["old"], "t1"),
        1 => refuse(410, r#"{"metadata":{}}"#),
        2 => ok(&["x"], "t1"),
        _ => ok(&["y"], ""),
    })
    .await;
    let found = server.discover(&["a"], ONE).await;
    assert_eq!(found.images, ["x", "y"]);
    assert!(found.warnings.is_empty());
}

#[tokio::test]
async fn list_fails_after_expiring_four_times() {
    let server = Server::start(|_, path| match path.contains("continue") {
        true => refuse(410, ""),
        false => ok(&["x"], "t"),
    })
    .await;
    let found = server.discover(&["a"], ONE).await;
    assert!(found.error.contains("expired 4 times"), "{found:?}");
    assert_eq!(server.requests().len(), 8);
}

#[tokio::test]
async fn throttled_list_waits_for_retry_after() {
    let server = Server::start(|number, _| match number {
        0 => Reply::Whole(429, "retry-after: 1\r\n", "slow down".to_owned()),
        1 => refuse(503, ""),
        2 => Reply::Hangup,
        _ => ok(&["x"], ""),
    })
    .await;
    let start = Instant::now();
    let found = server.discover(&["a"], ONE).await;
    assert_eq!(found.images, ["x"]);
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn retry_after_and_attempts_are_bounded() {
    let server = Server::start(|_, _| {
        let said = r#"{"message":"too many\u001b[31m requests"}"#.to_owned();
        Reply::Whole(429, "retry-after: 86400\r\n", said)
    })
    .await;
    let start = Instant::now();
    let found = server.discover(&["a"], ONE).await;
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(server.requests().len(), 4);
    let expected = "namespace a: failed to list deployments.apps: the API server returned 429: too many [31m requests";
    assert!(found.error.ends_with(expected), "{}", found.error);
}

#[tokio::test]
async fn truncated_page_is_retried_counted_once() {
    let server = Server::start(|number, _| {
        let second = page(&["y", "z"], "");
        match number {
            0 => ok(&["x"], "t"),
            1 => Reply::Cut(second[..second.len() - 5].to_owned()),
            2 => Reply::Stall(second[..second.len() - 5].to_owned()),
            _ => ok(&["z", "y"], ""),
        }
    })
    .await;
    let found = server.discover(&["a"], &[WorkloadKind::Pods]).await;
    assert_eq!(found.images, ["x", "z", "y"]);
    assert!(found.warnings.is_empty(), "{found:?}");
}

#[tokio::test]
async fn partial_list_is_kept_beside_whole() {
    let server = Server::start(|number, path| match (path.contains("/a/"), number) {
        (true, _) => ok(&["whole"], ""),
        (false, 1) => ok(&["part"], "t"),
        (false, _) => Reply::Cut("{\"items\":[".to_owned()),
    })
    .await;
    let found = server.discover(&["a", "b"], ONE).await;
    assert_eq!(found.images, ["whole", "part"], "{found:?}");
    assert!(found.warnings[0].contains("ended early"), "{found:?}");
}

#[tokio::test]
async fn partial_list_alone_is_an_error() {
    let server = Server::start(|number, _| match number {
        0 => ok(&["x"], "t"),
        _ => Reply::Cut("{\"items\":[".to_owned()),
    })
    .await;
    let found = server.discover(&["a"], ONE).await;
    assert!(found.error.contains("ended early"), "{found:?}");
    assert_eq!(server.requests().len(), 5);
}

#[tokio::test]
async fn server_lost_during_first_list_fails() {
    let server = Server::start(|number, _| match number {
        0 => ok(&["x"], "t"),
        _ => Reply::Hangup,
    })
    .await;
    let found = server.discover(&["a", "b"], ONE).await;
    assert!(
        found.error.contains("failed to reach the API server"),
        "{found:?}"
    );
}

#[tokio::test]
async fn lost_server_gets_no_further_requests() {
    let server = Server::start(|number, _| match number {
        0 => ok(&["x"], ""),
        _ => Reply::Silence,
    })
    .await;
    let found = server.discover(&["a", "b", "c"], ONE).await;
    assert_eq!(found.images, ["x"]);
    assert_eq!(server.requests().len(), 5);
    assert!(
        found.warnings[0].contains("namespace b")
            && found.warnings[0].contains("no response from the API server within 1s")
    );
    assert!(
        found.warnings[1].ends_with("skipped: the API server is unreachable"),
        "{found:?}"
    );
}

#[tokio::test]
async fn refused_connection_names_the_server() {
    let server = Server::start(|_, _| Reply::Hangup).await;
    server.task.abort();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let found = server.discover(&["a", "b"], &WorkloadKind::ALL).await;
    let expected = format!(
        "failed to reach the API server {}: ",
        server.cluster.server()
    );
    assert!(found.error.starts_with(&expected), "{}", found.error);
    assert!(found.error.contains("refused"), "{}", found.error);
}

#[tokio::test]
async fn garbage_is_not_retried() {
    for garbage in [
        "<html>login</html>",
        "{}",
        r#"{"items":[{"spec":{"template":7}}]}"#,
    ] {
        let server = Server::start(move |_, _| refuse(200, garbage)).await;
        let found = server.discover(&["a"], ONE).await;
        assert!(
            found
                .error
                .contains("unexpected response from the API server"),
            "{}",
            found.error
        );
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn endless_page_chain_is_an_error() {
    let server = Server::start(|number, _| match number % 2 {
        0 => ok(&["x"], "even"),
        _ => ok(&["x"], "odd"),
    })
    .await;
    let found = server.discover(&["a"], ONE).await;
    assert!(found.error.contains("never ends"), "{found:?}");
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn dropped_future_ends_request_and_decoder() {
    let server = Server::start(|_, _| Reply::Stall("{\"items\":[".to_owned())).await;
    let asked = server.discover(&["a"], ONE);
    let ended = tokio::time::timeout(Duration::from_millis(100), asked).await;
    assert!(ended.is_err());
    // A decoder that continued would delay the runtime's end; then this test hangs.
}

#[tokio::test]
async fn client_serves_other_requests() {
    let server = Server::start(|_, _| refuse(200, r#"{"major":"1"}"#)).await;
    let client = server.cluster.client().clone();
    let request = http::Request::get("/version").body(Vec::new()).unwrap();
    assert_eq!(
        client.request_text(request).await.unwrap(),
        r#"{"major":"1"}"#
    );
    assert_eq!(server.paths(), ["/version"]);
}
