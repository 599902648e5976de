//! The real client against a mock server on a temporary socket, for behaviour that real daemons do not show on demand.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use containerd_client::services::v1 as containerd;
use k8s_cri::v1::{ImageStatusResponse, ListImagesResponse, PullImageResponse, VersionResponse};
use prost::Message;
use tokio::net::UnixListener;

use self::stand_in::{Answer, StandIn, serve};
use tonic::Code;

use super::*;
use crate::credentials::secret::Secret;
use crate::registry::capture::Capture;
use crate::runtime::error_kind;

mod crio;
mod stand_in;

const SOON: Duration = Duration::from_millis(500);
const VERSION: &str = "/runtime.v1.RuntimeService/Version";
const STATUS: &str = "/runtime.v1.ImageService/ImageStatus";
const LIST: &str = "/runtime.v1.ImageService/ListImages";
const PULL: &str = "/runtime.v1.ImageService/PullImage";

fn version(name: &str) -> Answer {
    Answer::message(&VersionResponse {
        version: "0.1.0".to_owned(),
        runtime_name: name.to_owned(),
        runtime_version: "9.8.7".to_owned(),
        runtime_api_version: "v1".to_owned(),
    })
}

fn stored(repo_digests: &[String], size: u64) -> Answer {
    Answer::message(&ImageStatusResponse {
        image: Some(Image {
            id: "sha256:1".to_owned(),
            repo_digests: repo_digests.to_vec(),
            size,
            ..Image::default()
        }),
        ..ImageStatusResponse::default()
    })
}

fn image(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

fn sha256(digit: char) -> String {
    format!("sha256:{}", digit.to_string().repeat(64))
}

#[tokio::test]
async fn connection_reports_runtime_name_and_version() {
    let server = StandIn::start(|path, _| match path {
        VERSION => version("cri-o"),
        _ => Answer::unknown_service(),
    });
    let cri = server.connect().await.unwrap();
    let endpoint = format!("unix://{}", server.path().display());
    assert_eq!(
        *cri.info(),
        RuntimeInfo {
            name: "cri-o".to_owned(),
            version: "9.8.7".to_owned(),
            endpoint
        }
    );
}

#[tokio::test]
async fn older_cri_is_too_old() {
    let server = StandIn::start(|path, _| match path {
        "/runtime.v1alpha2.RuntimeService/Version" => version("containerd"),
        _ => Answer::unknown_service(),
    });
    let error = server.connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::TooOld { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("containerd 9.8.7"), "{text}");
    assert!(
        text.contains("CRI v1 (containerd 1.6, CRI-O 1.23"),
        "{text}"
    );
}

#[tokio::test]
async fn containerd_without_cri_plugin_is_reported() {
    let server = StandIn::start(|path, _| match path {
        "/containerd.services.version.v1.Version/Version" => {
            Answer::message(&containerd::VersionResponse {
                version: "1.7.1".to_owned(),
                revision: String::new(),
            })
        }
        _ => Answer::unknown_service(),
    });
    let error = server.connect().await.unwrap_err();
    assert!(
        matches!(error, ConnectError::CriDisabled { .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("disabled_plugins"), "{error}");
}

#[tokio::test]
async fn other_servers_are_not_a_runtime() {
    let grpc = StandIn::start(|_, _| Answer::unknown_service());
    let http = StandIn::start(|_, _| Answer::Http404);
    for server in [grpc, http] {
        let error = server.connect().await.unwrap_err();
        assert!(
            matches!(error, ConnectError::NotARuntime { .. }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn garbage_response_is_not_a_runtime() {
    use tokio::io::AsyncWriteExt;
    for garbage in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"", &[0xff; 4096]] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(garbage).await;
            }
        });
        let error = Cri::connect(&path, SOON).await.unwrap_err();
        assert!(
            matches!(error, ConnectError::NotARuntime { .. }),
            "{error:?}"
        );
        server.abort();
    }
}

#[tokio::test]
async fn silent_socket_times_out() {
    let server = StandIn::start(|_, _| Answer::Never);
    let start = Instant::now();
    let error = server.connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Silent(..)), "{error:?}");
    assert!(error.to_string().contains("within 500ms"), "{error}");
    assert!(start.elapsed() < 4 * SOON);
}

#[tokio::test]
async fn starting_runtime_is_not_ready() {
    let server = StandIn::start(|_, _| {
        Answer::Fail(
            Code::Unavailable,
            "server is not initialized yet".to_owned(),
        )
    });
    let error = server.connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::NotReady { .. }), "{error:?}");
}

#[tokio::test]
async fn unusable_paths_have_distinct_errors() {
    let directory = tempfile::tempdir().unwrap();
    let stale = directory.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    for (path, expected) in [
        (directory.path().join("none"), "does not exist"),
        (directory.path().to_owned(), "is not a unix socket"),
        (stale, "no process listens"),
    ] {
        let error = Cri::connect(&path, SOON).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn status_tells_digest_and_size() {
    let server = StandIn::start(|path, request| match path {
        VERSION => version("containerd"),
        STATUS => {
            let request = ImageStatusRequest::decode(request).unwrap();
            match request.image.unwrap().image.as_str() {
                "app:latest" => stored(&[format!("docker.io/library/app@{}", sha256('a'))], 0),
                "big:latest" => stored(
                    &vec![format!("docker.io/library/big@{}", sha256('b')); 60_000],
                    7,
                ),
                _ => Answer::message(&ImageStatusResponse::default()),
            }
        }
        _ => Answer::unknown_service(),
    });
    let cri = server.connect().await.unwrap();
    let app = cri.status(&image("app")).await.unwrap().unwrap();
    assert_eq!((app.digest, app.bytes), (Some(sha256('a')), None));
    assert_eq!(app.known, [sha256('a')]);
    let big = cri.status(&image("big")).await.unwrap().unwrap();
    let digest = Some(sha256('b'));
    assert_eq!(
        (big.digest, big.bytes),
        (digest, Some(7)),
        "an answer of more than 4 MB"
    );
    assert_eq!(cri.status(&image("none")).await.unwrap(), None);
}

/// Asks a runtime that has `docker.io/library/app:1` for many references; returns which are there, and the calls.
async fn ask_for_many(name: &'static str, lists: bool) -> (Vec<bool>, Vec<String>) {
    let calls: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&calls);
    let digests = [format!("docker.io/library/app@{}", sha256('a'))];
    let server = StandIn::start(move |path, request| {
        if path == VERSION {
            return version(name);
        }
        let asked = ImageStatusRequest::decode(request).unwrap_or_default();
        let asked = asked.image.unwrap_or_default().image;
        seen.lock().unwrap().push(format!("{path} {asked}"));
        match path {
            LIST if lists => Answer::message(&ListImagesResponse {
                images: vec![Image {
                    repo_tags: vec!["docker.io/library/app:1".to_owned()],
                    repo_digests: digests.to_vec(),
                    size: 7,
                    ..Image::default()
                }],
            }),
            STATUS if asked == "app:1" => stored(&digests, 7),
            STATUS => Answer::message(&ImageStatusResponse::default()),
            _ => Answer::unknown_service(),
        }
    });
    let cri = server.connect().await.unwrap();
    let digest = format!("docker.io/library/app@{}", sha256('a'));
    let names = [
        "app:1",
        "docker.io/library/app:1",
        &digest,
        "app:2",
        "quay.io/library/app:1",
    ];
    let images = names.map(image);
    let statuses = cri.statuses(&images.each_ref()).await;
    let there = statuses
        .iter()
        .map(|status| status.as_ref().unwrap().is_some());
    let there = there.collect();
    let calls = calls.lock().unwrap().clone();
    (there, calls)
}

#[tokio::test]
async fn many_statuses_use_one_list() {
    let (there, calls) = ask_for_many("containerd", true).await;
    assert_eq!(there, [true, true, true, false, false]);
    assert_eq!(calls, [format!("{LIST} ")]);

    // CRI-O itself resolves a name without a registry.
    let (there, mut calls) = ask_for_many("cri-o", true).await;
    assert_eq!(there, [true, true, true, false, false]);
    calls.sort();
    assert_eq!(
        calls,
        [
            format!("{STATUS} app:1"),
            format!("{STATUS} app:2"),
            format!("{LIST} ")
        ]
    );

    // Without a list, each is looked up separately.
    let (there, calls) = ask_for_many("containerd", false).await;
    assert_eq!(there, [true, false, false, false, false]);
    assert_eq!(calls.len(), 6);
}

#[test]
fn digest_is_of_same_repository() {
    let of = |repository: &str, digit| format!("{repository}@{}", sha256(digit));
    let known = [
        of("quay.io/other/nginx", 'a'),
        of("docker.io/library/nginx2", 'b'),
        of("docker.io/library/nginx", 'c'),
        of("docker.io/library/nginx", 'd'),
        "not a reference".to_owned(),
    ];
    for (name, expected) in [
        ("nginx:1.27".to_owned(), 'c'),
        ("docker.io/nginx".to_owned(), 'c'),
        (of("nginx", 'd'), 'd'),
        ("quay.io/other/nginx".to_owned(), 'a'),
        ("ghcr.io/nginx".to_owned(), 'a'),
    ] {
        assert_eq!(
            digest(&image(&name), &known),
            Some(sha256(expected)),
            "{name}"
        );
    }
    assert_eq!(digest(&image("nginx"), &[]), None);
    assert_eq!(digest(&image("nginx"), &["nginx:1".to_owned()]), None);
}

#[tokio::test]
async fn pull_sends_written_name_and_sandbox() {
    let requests: Arc<Mutex<Vec<PullImageRequest>>> = Arc::default();
    let seen = Arc::clone(&requests);
    let server = StandIn::start(move |path, request| match path {
        VERSION => version("cri-o"),
        PULL => {
            let request = PullImageRequest::decode(request).unwrap();
            seen.lock().unwrap().push(request);
            Answer::message(&PullImageResponse {
                image_ref: format!("docker.io/library/nginx@{}", sha256('e')),
            })
        }
        _ => Answer::Fail(Code::Unknown, "no".to_owned()),
    });
    let cri = server.connect().await.unwrap();
    let pulled = cri
        .pull(&image("nginx"), None, &Progress::default())
        .await
        .unwrap();
    assert_eq!(
        pulled.digest,
        Some(sha256('e')),
        "from the answer to the pull"
    );
    let requests = requests.lock().unwrap();
    let request = requests.first().unwrap();
    assert_eq!(request.image.as_ref().unwrap().image, "nginx");
    assert!(request.auth.is_none());
    let sandbox = request.sandbox_config.as_ref().unwrap();
    assert_eq!(sandbox.metadata.as_ref().unwrap().name, "harpoon");
}

#[tokio::test]
async fn failed_pull_keeps_full_message() {
    let long = "mirror said no, ".repeat(6_000);
    let text = format!("{long}429 Too Many Requests");
    let (code, answer) = (Code::Unknown, text.clone());
    let server = StandIn::start(move |path, _| match path {
        VERSION => version("containerd"),
        _ => Answer::Fail(code, answer.clone()),
    });
    let cri = server.connect().await.unwrap();
    let error = cri
        .pull(&image("a/b"), None, &Progress::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.message),
        (FailureKind::RateLimited, text)
    );
}

#[test]
fn code_decides_when_text_does_not() {
    for (code, text, expected) in [
        (Code::Unavailable, "bye", FailureKind::Unavailable),
        (Code::DeadlineExceeded, "", FailureKind::Timeout),
        (Code::Unauthenticated, "who?", FailureKind::Unauthorized),
        (Code::NotFound, "lease: not found", FailureKind::Other),
        (
            Code::Unavailable,
            "no space left on device",
            FailureKind::NoSpace,
        ),
    ] {
        let error = failure(&Status::new(code, text), &image("a/b"));
        assert_eq!(error.kind, expected, "{code:?} {text}");
        assert!(!error.message.is_empty());
    }
}

#[tokio::test]
async fn dropped_pull_is_cancelled() {
    let server = StandIn::start(|path, _| match path {
        VERSION => version("cri-o"),
        _ => Answer::Never,
    });
    let cri = server.connect().await.unwrap();
    let (image, progress) = (image("a/b"), Progress::default());
    let pull = cri.pull(&image, None, &progress);
    assert!(tokio::time::timeout(SOON, pull).await.is_err());
    let start = Instant::now();
    while server
        .dropped
        .lock()
        .unwrap()
        .first()
        .is_none_or(|p| p != PULL)
    {
        assert!(
            start.elapsed() < 10 * SOON,
            "the call goes on at the server"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn channel_survives_daemon_restart() {
    let script = |path: &str, _: &[u8]| match path {
        VERSION => version("cri-o"),
        _ => stored(&[], 1),
    };
    let mut server = StandIn::start(script);
    let cri = server.connect().await.unwrap();
    let image = image("a/b");
    assert!(cri.status(&image).await.unwrap().is_some());
    server.server.abort();
    while !server.server.is_finished() {
        tokio::task::yield_now().await;
    }
    std::fs::remove_file(server.path()).unwrap();
    for _ in 0..3 {
        let error = cri.status(&image).await.unwrap_err();
        assert_eq!(error.kind, FailureKind::Unavailable, "{error}");
        assert!(
            error
                .message
                .starts_with("failed to reach the container runtime"),
            "{error}"
        );
    }
    server.server = serve(server.path(), Arc::new(script), &server.dropped);
    assert!(cri.status(&image).await.unwrap().is_some());
}

#[tokio::test]
async fn progress_comes_from_content_store() {
    let manifest = format!(
        r#"{{"config":{{"digest":"{}","size":10}},"layers":[{{"digest":"{}","size":100}},{{"digest":"{}","size":1000}}]}}"#,
        sha256('c'),
        sha256('1'),
        sha256('2')
    );
    let server = StandIn::start(move |path, request| match path {
        VERSION => version("containerd"),
        "/containerd.services.content.v1.Content/ListStatuses" => {
            Answer::message(&containerd::ListStatusesResponse {
                statuses: vec![containerd::Status {
                    r#ref: format!("layer-{}", sha256('2')),
                    offset: 250,
                    ..containerd::Status::default()
                }],
            })
        }
        "/containerd.services.content.v1.Content/List" => {
            let label = "containerd.io/distribution.source.localhost";
            let request = containerd::ListContentRequest::decode(request).unwrap();
            assert_eq!(request.filters, [format!("labels.\"{label}\"")]);
            let blob = |digit, repositories: &str, size| containerd::Info {
                digest: sha256(digit),
                size,
                labels: [(label.to_owned(), repositories.to_owned())].into(),
                ..containerd::Info::default()
            };
            Answer::message(&containerd::ListContentResponse {
                info: vec![
                    blob('e', "team/app2,my/team/app", 300),
                    blob('1', "team/app", 100),
                    blob('f', "other,team/app", 300),
                    blob('2', "team/app", i64::MAX),
                ],
            })
        }
        "/containerd.services.content.v1.Content/Read" => {
            let request = containerd::ReadContentRequest::decode(request).unwrap();
            assert_ne!(request.digest, sha256('e'), "another repository's manifest");
            let is_manifest = request.digest == sha256('f');
            let data = if is_manifest {
                manifest.clone().into_bytes()
            } else {
                vec![0x1f, 0x8b]
            };
            Answer::message(&containerd::ReadContentResponse { offset: 0, data })
        }
        "/containerd.services.content.v1.Content/Info" => {
            let request = containerd::InfoRequest::decode(request).unwrap();
            if request.digest == sha256('2') {
                Answer::Fail(Code::NotFound, "not found".to_owned())
            } else {
                Answer::message(&containerd::InfoResponse::default())
            }
        }
        _ => Answer::Never,
    });
    let cri = server.connect().await.unwrap();
    let (image, progress) = (image("localhost:5000/team/app:1"), Progress::default());
    let pull = cri.pull(&image, None, &progress);
    assert!(tokio::time::timeout(4 * SOON, pull).await.is_err());
    assert_eq!(progress.get(), (10 + 100 + 250, 1110));
}

#[tokio::test]
async fn pull_succeeds_without_content_api() {
    let server = StandIn::start(|path, _| match path {
        VERSION => version("containerd"),
        STATUS => stored(&[], 1),
        PULL => Answer::Late(PullImageResponse::default().encode_to_vec()),
        _ => Answer::unknown_service(),
    });
    let cri = server.connect().await.unwrap();
    let progress = Progress::default();
    let pulled = cri.pull(&image("a/b"), None, &progress).await.unwrap();
    assert_eq!((pulled.bytes, progress.get()), (Some(1), (0, 0)));
}

/// The `auth` of a pull of `name` with the login.
async fn auth_sent(name: &str, login: Login) -> AuthConfig {
    let requests: Arc<Mutex<Vec<PullImageRequest>>> = Arc::default();
    let seen = Arc::clone(&requests);
    let server = StandIn::start(move |path, request| match path {
        VERSION => version("containerd"),
        PULL => {
            let request = PullImageRequest::decode(request).unwrap();
            seen.lock().unwrap().push(request);
            Answer::message(&PullImageResponse::default())
        }
        _ => Answer::Fail(Code::Unknown, "no".to_owned()),
    });
    let cri = server.connect().await.unwrap();
    let credential = Credential {
        login: login.into(),
        source: "test".into(),
        is_pull_secret: false,
    };
    let (image, progress) = (image(name), Progress::default());
    let pull = cri.pull(&image, Some(&credential), &progress);
    pull.await.unwrap();
    let request = requests.lock().unwrap().pop().unwrap();
    request.auth.unwrap()
}

fn password(password: &str) -> Login {
    Login::Password {
        user: Secret::new("me"),
        password: Secret::new(password),
    }
}

#[tokio::test]
async fn credential_is_sent_only_to_host() {
    // containerd compares the URL's host, including the port, with the host that it connects to.
    for (name, address) in [
        ("nginx", "https://registry-1.docker.io"),
        ("docker.io/a/b", "https://registry-1.docker.io"),
        ("index.docker.io/a/b", "https://registry-1.docker.io"),
        ("registry.example/a", "https://registry.example"),
        ("registry.example:443/a", "https://registry.example:443"),
        ("127.0.0.1:5000/a", "https://127.0.0.1:5000"),
        ("[::1]:5000/a", "https://[::1]:5000"),
    ] {
        let expected = AuthConfig {
            username: "me".to_owned(),
            password: "pass".to_owned(),
            server_address: address.to_owned(),
            ..AuthConfig::default()
        };
        assert_eq!(auth_sent(name, password("pass")).await, expected, "{name}");
    }
}

#[tokio::test]
async fn identity_token_is_sent_without_user() {
    // containerd prefers a user to a token, if there are both.
    let expected = AuthConfig {
        identity_token: "refresh".to_owned(),
        server_address: "https://registry.example".to_owned(),
        ..AuthConfig::default()
    };
    let login = Login::IdentityToken(Secret::new("refresh"));
    assert_eq!(auth_sent("registry.example/a", login).await, expected);
}

#[tokio::test]
async fn binary_credentials_are_sent_encoded() {
    let empty = Login::Password {
        user: Secret::new(""),
        password: Secret::new("pass"),
    };
    for (login, auth) in [
        (empty, "OnBhc3M="),
        (Login::Bytes(Secret::new("dXNlcjrp")), "dXNlcjrp"),
    ] {
        let expected = AuthConfig {
            auth: auth.to_owned(),
            server_address: "https://registry.example".to_owned(),
            ..AuthConfig::default()
        };
        assert_eq!(auth_sent("registry.example/a", login).await, expected);
    }
}

#[tokio::test]
async fn credential_is_not_logged() {
    let logs = Capture::start();
    auth_sent("registry.example/a", password("cri-password")).await;
    let token = Login::IdentityToken(Secret::new("cri-identity-token"));
    auth_sent("registry.example/a", token).await;
    assert!(logs.text().contains("h2"), "nothing was captured");
    logs.lacks(&["cri-password", "cri-identity-token"]);
}

#[test]
fn only_local_failures_imply_received_bytes() {
    let pull = "failed to pull and unpack image \"r.example/a:1\": ";
    for (text, expected) in [
        // Observed with containerd 1.6.
        (
            "failed to extract layer sha256:f1a0: mount callback failed on /tmp/m: archive/tar: invalid tar header: unknown",
            true,
        ),
        (
            "failed commit on ref \"layer-sha256:f1a0\": unexpected commit digest sha256:0, expected sha256:1: failed precondition",
            true,
        ),
        (
            "failed to resolve reference \"r.example/a:1\": pull access denied, repository does not exist",
            false,
        ),
        (
            "failed to copy: httpReadSeeker: failed open: unexpected status code 403 Forbidden",
            false,
        ),
        (
            "failed to resolve reference \"r.example/a:1\": unexpected status from HEAD request: 418 I'm a teapot",
            false,
        ),
    ] {
        assert_eq!(
            error_kind::came(&format!("{pull}{text}")),
            expected,
            "{text}"
        );
    }
}
