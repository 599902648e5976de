use bollard::models::{OciDescriptor, ProgressDetail};

use std::path::PathBuf;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::credentials::secret::Secret;
use crate::fake_http::{Asked, on_unix};
use crate::registry::capture::Capture;

const DIGEST: &str = "sha256:922ce9b11fafc8144f591a6ffa5a842eca0189094a19a5c1489296bb2fe96a85";
const OTHER_DIGEST: &str =
    "sha256:7904f1a63279e43684afbced63e5036942d154c3398e6c8c6a59003fe239cf5e";

fn image(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

#[test]
fn messages_are_one_line_without_signatures() {
    let signed =
        "Get \"https://blobs.example/x?X-Amz-Signature=secret&y=1\": dial tcp:\n\tbroken\u{1b}[31m";
    assert_eq!(
        tidy(signed),
        "Get \"https://blobs.example/x?X-Amz-Signature=…&y=…\": dial tcp: broken [31m"
    );
    assert_eq!(tidy(&"é".repeat(5000)).chars().count(), MESSAGE_MAX + 1);
    let empty = failure(&image("a"), Some(503), " \n");
    assert_eq!(empty.kind, FailureKind::Unavailable);
    assert!(empty.message.contains("503"));
}

#[test]
fn names_stay_written_with_explicit_tag() {
    let table = [
        ("nginx", "nginx", "nginx:latest"),
        ("nginx:1", "nginx", "nginx:1"),
        (
            "localhost:5000/a/b",
            "localhost:5000/a/b",
            "localhost:5000/a/b:latest",
        ),
        (
            "localhost:5000/a/b:1",
            "localhost:5000/a/b",
            "localhost:5000/a/b:1",
        ),
        // 53a94b2662b2 alone could be the prefix of an image's ID.
        ("53a94b2662b2", "53a94b2662b2", "53a94b2662b2:latest"),
    ];
    for (written, bare, full) in table {
        assert_eq!(name(&image(written)), bare);
        assert_eq!(explicit(&image(written)), full);
    }
    for written in ["a/b", "a/b:1"] {
        let image = image(&format!("{written}@{DIGEST}"));
        assert_eq!(name(&image), "a/b");
        assert_eq!(explicit(&image), format!("a/b@{DIGEST}"));
    }
}

#[test]
fn digest_is_of_same_repository() {
    let inspect = |digests: &[String]| ImageInspect {
        repo_digests: Some(digests.to_vec()),
        ..Default::default()
    };
    let both = [
        format!("evil/library/nginx@{OTHER_DIGEST}"),
        format!("nginx@{DIGEST}"),
    ];
    for written in [
        "nginx",
        "docker.io/nginx:1",
        "index.docker.io/library/nginx",
    ] {
        let digest = digest_of(&image(written), &inspect(&both));
        assert_eq!(digest.as_deref(), Some(DIGEST), "{written}");
    }
    assert_eq!(digest_of(&image("quay.io/nginx"), &inspect(&both)), None);
    let two = [format!("nginx@{DIGEST}"), format!("nginx@{OTHER_DIGEST}")];
    assert_eq!(digest_of(&image("nginx"), &inspect(&two)), None);
    let written = image(&format!("nginx@{OTHER_DIGEST}"));
    assert_eq!(
        digest_of(&written, &inspect(&two)).as_deref(),
        Some(OTHER_DIGEST)
    );
    let mut with_target = inspect(&two);
    with_target.descriptor = Some(OciDescriptor {
        digest: Some(OTHER_DIGEST.to_owned()),
        ..Default::default()
    });
    let digest = digest_of(&image("nginx"), &with_target);
    assert_eq!(digest.as_deref(), Some(OTHER_DIGEST));
}

fn event(id: &str, status: &str, current: i64, total: i64) -> CreateImageInfo {
    CreateImageInfo {
        id: Some(id.to_owned()),
        status: Some(status.to_owned()),
        progress_detail: Some(ProgressDetail {
            current: (current != 0).then_some(current),
            total: (total != 0).then_some(total),
        }),
        ..Default::default()
    }
}

#[test]
fn layer_progress_never_decreases() {
    let mut layers = Layers::default();
    let steps = [
        (event("1", "Pulling from team/small", 0, 0), (0, 0)),
        (event("z", "Already exists", 0, 0), (0, 0)),
        (event("a", "Pulling fs layer", 0, 0), (0, 0)),
        (event("a", "Downloading", 10, 100), (10, 100)),
        (event("b", "Downloading", 50, 50), (60, 150)),
        (event("b", "Verifying Checksum", 0, 0), (60, 150)),
        (event("b", "Download complete", 0, 0), (60, 150)),
        (event("b", "Extracting", 1, 50), (60, 150)),
        (event("a", "Retrying in 5 seconds", 0, 0), (60, 150)),
        (event("a", "Downloading", 1, 100), (60, 150)),
        (event("a", "Downloading", 1000, 100), (150, 150)),
        (event("b", "Extracting", 50, 50), (150, 150)),
        (event("b", "Pull complete", 0, 0), (150, 150)),
        // A layer that another pull fetched appears only when it is unpacked; newer Engines report seconds there.
        (event("c", "Extracting", 3, 7), (157, 157)),
        (event("d", "Extracting", 3, 0), (157, 157)),
        (event("e", "Downloading", -5, -1), (157, 157)),
    ];
    for (event, sum) in steps {
        layers.record(&event);
        assert_eq!(layers.sum(), sum, "{event:?}");
    }
    for i in 0..10_000 {
        layers.record(&event(&i.to_string(), "Downloading", i64::MAX, i64::MAX));
    }
    assert_eq!(layers.sum(), (u64::MAX, u64::MAX));
}

/// A mock Engine with this response to pulls and without images. It reports each request's first line and login, and `closed`
/// when, in a pull that `stalls`, a client disconnects before the response.
fn engine(dir: &TempDir, pull: &'static str) -> (PathBuf, UnboundedReceiver<String>) {
    let path = dir.path().join("docker.sock");
    let (seen, requests) = unbounded_channel();
    on_unix(&path, move |mut stream| {
        let seen = seen.clone();
        async move {
            let Ok(asked) = Asked::read(&mut stream).await else {
                return;
            };
            let version = r#"{"Version":"20.10.24","ApiVersion":"1.41"}"#;
            let (status, body) = match asked.path.as_str() {
                path if path.contains("/version") => ("200 OK", version),
                path if path.contains("/images/create") => ("200 OK", pull),
                _ => ("404 Not Found", r#"{"message":"No such image"}"#),
            };
            let _ = seen.send(asked.line().to_owned());
            if let Some(login) = asked.header("x-registry-auth") {
                let _ = seen.send(format!("login {login}"));
            }
            let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(body.as_bytes()).await;
            if body.contains("stalls") {
                let _ = stream.read(&mut [0; 8]).await;
                let _ = seen.send("closed".to_owned());
            }
        }
    });
    (path, requests)
}

const LIMIT: Duration = Duration::from_secs(5);

async fn pull_from(events: &'static str) -> RuntimeError {
    let dir = TempDir::new().unwrap();
    let (path, _requests) = engine(&dir, events);
    let docker = Docker::connect(&path, LIMIT).await.unwrap();
    let (image, progress) = (image("a/b:1"), Progress::default());
    docker.pull(&image, None, &progress).await.unwrap_err()
}

#[tokio::test]
async fn pull_requests_one_tag_by_version() {
    let dir = TempDir::new().unwrap();
    let (path, mut requests) = engine(&dir, "");
    let docker = Docker::connect(&path, LIMIT).await.unwrap();
    assert_eq!(requests.recv().await.unwrap(), "GET /version HTTP/1.1");
    let digested = format!("localhost:5000/a:1@{DIGEST}");
    let escaped = DIGEST.replace(':', "%3A");
    for (written, name, tag) in [
        ("nginx", "nginx", "latest"),
        ("a/b:1", "a%2Fb", "1"),
        (&digested, "localhost%3A5000%2Fa", &escaped),
    ] {
        let image = image(written);
        assert!(
            docker
                .pull(&image, None, &Progress::default())
                .await
                .is_err()
        );
        let pull = requests.recv().await.unwrap();
        assert!(pull.starts_with("POST /v1.41/images/create?"), "{pull}");
        let has = |pair: String| pull.contains(&pair);
        assert!(
            has(format!("fromImage={name}&")) && has(format!("tag={tag}&")),
            "{pull}"
        );
        let inspect = requests.recv().await.unwrap();
        assert_eq!(
            inspect,
            format!("GET /v1.41/images/{}/json HTTP/1.1", explicit(&image))
        );
    }
}

#[tokio::test]
async fn truncated_stream_is_a_failure() {
    let error = pull_from("{\"status\":\"Pulling from a/b\",\"id\":\"1\"}\r\n").await;
    assert_eq!(error.kind, FailureKind::Unavailable);
    assert!(error.message.contains("does not have the image"), "{error}");
    let error = pull_from("{\"status\":\"Pulling fro").await;
    assert_eq!(error.kind, FailureKind::Unavailable, "{error}");
}

#[tokio::test]
async fn stream_error_fails_the_pull() {
    let error = pull_from(
        "{\"errorDetail\":{\"message\":\"toomanyrequests: slow down\"},\"error\":\"x\"}\r\n",
    )
    .await;
    assert_eq!(error.kind, FailureKind::RateLimited);
    assert_eq!(error.message, "toomanyrequests: slow down");
    let error = pull_from("{\"errorDetail\":{\"code\":1}}\r\n").await;
    assert_eq!(error.kind, FailureKind::Other);
    let error = pull_from("<html>\r\n").await;
    assert_eq!(error.kind, FailureKind::Other, "{error}");
}

#[tokio::test]
async fn dropped_pull_closes_connection() {
    let dir = TempDir::new().unwrap();
    let (path, mut requests) = engine(&dir, "{\"status\":\"stalls\"}\r\n");
    let docker = Docker::connect(&path, LIMIT).await.unwrap();
    let (image, progress) = (image("a/b:1"), Progress::default());
    let pull = docker.pull(&image, None, &progress);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), pull)
            .await
            .is_err()
    );
    let closed = async { while requests.recv().await.is_some_and(|r| r != "closed") {} };
    tokio::time::timeout(LIMIT, closed).await.unwrap();
}

fn credential(login: Login) -> Credential {
    Credential {
        login: login.into(),
        source: "test".into(),
        is_pull_secret: false,
    }
}

/// The login that reaches the Engine, decoded as the Engine decodes it: Go's `base64.URLEncoding`.
async fn login_sent(name: &str, credential: Option<&Credential>) -> Option<serde_json::Value> {
    use base64::Engine as _;
    let dir = TempDir::new().unwrap();
    let (path, mut requests) = engine(&dir, "");
    let docker = Docker::connect(&path, LIMIT).await.unwrap();
    let (image, progress) = (image(name), Progress::default());
    let pull = docker.pull(&image, credential, &progress);
    assert!(pull.await.is_err());
    drop(docker);
    let mut sent = None;
    while let Ok(request) = requests.try_recv() {
        let Some(login) = request.strip_prefix("login ") else {
            continue;
        };
        let json = base64::engine::general_purpose::URL_SAFE.decode(login);
        assert!(sent.is_none(), "to the pull alone");
        sent = Some(serde_json::from_slice(&json.unwrap()).unwrap());
    }
    sent
}

#[tokio::test]
async fn login_is_encoded_for_the_engine() {
    // `?`, `>` and characters beyond ASCII are encoded differently in the two alphabets of base64.
    for password in ["simple", "a>b?c~d", "?>?>??>>", "pässwörter", "日本語"] {
        let login = credential(Login::Password {
            user: Secret::new("me"),
            password: Secret::new(password),
        });
        let sent = login_sent("registry.example:5000/a/b:1", Some(&login)).await;
        let sent = sent.unwrap();
        assert_eq!(sent["username"], "me");
        assert_eq!(sent["password"], password);
        assert_eq!(sent["serveraddress"], "https://registry.example:5000");
        assert!(sent["identitytoken"].is_null());
    }
    let token = credential(Login::IdentityToken(Secret::new("refresh")));
    let sent = login_sent("nginx", Some(&token)).await.unwrap();
    assert_eq!(sent["identitytoken"], "refresh");
    assert_eq!(sent["serveraddress"], "https://index.docker.io/v1/");
    assert!(sent["username"].is_null() && sent["password"].is_null());
    assert_eq!(login_sent("nginx", None).await, None);
}

#[tokio::test]
async fn login_is_not_logged() {
    let login = credential(Login::Password {
        user: Secret::new("docker-user"),
        password: Secret::new("docker-password"),
    });
    let logs = Capture::start();
    login_sent("registry.example/a", Some(&login)).await;
    let encoded = {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode("docker-user")
    };
    logs.lacks(&["docker-password", &encoded]);
}
