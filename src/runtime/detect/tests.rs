use std::os::unix::net::UnixListener as StdListener;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::fake_http::{Asked, on_unix};

const LIMIT: Duration = Duration::from_millis(400);

/// The response of a mock runtime to a connection.
#[derive(Clone, Copy)]
enum Does {
    Hang,
    Close,
    /// Sends this and closes.
    Say(&'static str),
}

fn http(status: &str, body: &str) -> &'static str {
    let length = body.len();
    let text = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
    Box::leak(text.into_boxed_str())
}

fn serve(dir: &TempDir, name: &str, does: Does) -> PathBuf {
    let path = dir.path().join(name);
    on_unix(&path, move |mut stream| async move {
        match does {
            Does::Hang => tokio::time::sleep(Duration::from_secs(60)).await,
            Does::Close => {}
            Does::Say(text) => {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(text.as_bytes()).await;
            }
        }
    });
    path
}

fn docker(dir: &TempDir, name: &str) -> PathBuf {
    let version = r#"{"Version":"20.10.24","ApiVersion":"1.41","MinAPIVersion":"1.12"}"#;
    serve(dir, name, Does::Say(http("200 OK", version)))
}

async fn explicit(path: &Path) -> Result<Runtime, FindError> {
    let endpoint = Endpoint::Unix(path.to_owned());
    find(Some(&endpoint), &Platform::current(), LIMIT).await
}

#[test]
fn endpoints_are_parsed() {
    let unix = |path: &str| Ok(Endpoint::Unix(PathBuf::from(path)));
    let oci = |dir: &str| Ok(Endpoint::Oci(PathBuf::from(dir)));
    let table = [
        (
            "unix:///run/crio/crio.sock",
            unix("/run/crio/crio.sock"),
            "unix:///run/crio/crio.sock",
        ),
        (
            "/run/crio/crio.sock",
            unix("/run/crio/crio.sock"),
            "unix:///run/crio/crio.sock",
        ),
        ("oci:images", oci("images"), "oci:images"),
        ("oci:../images", oci("../images"), "oci:../images"),
        ("oci:/var/images", oci("/var/images"), "oci:/var/images"),
    ];
    for (text, endpoint, canonical) in table {
        let parsed = Endpoint::parse(text);
        assert_eq!(parsed, endpoint);
        assert_eq!(parsed.unwrap().to_string(), canonical);
    }
    let bad = [
        "",
        " ",
        "run/crio.sock",
        "unix://",
        "unix:/run/crio.sock",
        "unix://run/crio.sock",
        "unix://localhost/run/crio.sock",
        "tcp://127.0.0.1:2375",
        "npipe:////./pipe/containerd",
        "http://localhost",
        "oci:",
        "oci://images",
        "OCI:images",
        "/run/\0",
    ];
    for text in bad {
        let error = Endpoint::parse(text).unwrap_err().to_string();
        assert!(error.contains(&format!("{text:?}")), "{error}");
        assert!(
            error.contains("unix:///") && error.contains("oci:DIR"),
            "{error}"
        );
    }
}

#[test]
fn socket_name_hints_at_protocol() {
    let docker_first = [Protocol::Docker, Protocol::Cri];
    let cri_first = [Protocol::Cri, Protocol::Docker];
    let table = [
        ("/var/run/docker.sock", docker_first),
        ("/run/user/1000/rootless-docker.sock", docker_first),
        ("/run/cri-dockerd.sock", cri_first),
        ("/run/cri-docker.sock", cri_first),
        ("/run/docker/containerd/containerd.sock", cri_first),
        ("/", cri_first),
    ];
    for (path, order) in table {
        assert_eq!(by_name(Path::new(path)), order, "{path}");
    }
}

#[tokio::test]
async fn unusable_sockets_have_distinct_errors() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let stale = dir.path().join("stale.sock");
    drop(StdListener::bind(&stale).unwrap());
    let table = [
        (dir.path().join("none"), "does not exist"),
        (file.join("below"), "does not exist"),
        (file, "is not a unix socket"),
        (dir.path().to_owned(), "is not a unix socket"),
        (stale, "connection refused: no process listens"),
        (
            serve(&dir, "hangs.sock", Does::Hang),
            "as Docker: no response within 400ms",
        ),
        (
            serve(&dir, "closes.sock", Does::Close),
            "as Docker: not a Docker Engine: ",
        ),
        (
            serve(&dir, "garbage.sock", Does::Say("\0\x01what?\r\n\r\n")),
            "as Docker: not a Docker Engine: ",
        ),
        (
            serve(&dir, "html.sock", Does::Say(http("200 OK", "<html>"))),
            "as Docker: not a Docker Engine: ",
        ),
        (
            serve(&dir, "json.sock", Does::Say(http("200 OK", "{}"))),
            "as Docker: not a Docker Engine: GET /version returned no API version",
        ),
        (
            serve(
                &dir,
                "404.sock",
                Does::Say(http("404 Not Found", "no such\npage")),
            ),
            "not a Docker Engine, or access is denied: GET /version returned HTTP status 404: no such page",
        ),
        (
            serve(
                &dir,
                "future.sock",
                Does::Say(http(
                    "200 OK",
                    r#"{"Version":"99","ApiVersion":"2.9","MinAPIVersion":"2.1"}"#,
                )),
            ),
            "requires API 2.1 or later",
        ),
    ];
    for (path, expected) in table {
        let error = explicit(&path).await.unwrap_err().to_string();
        let begin = format!("no usable container runtime at unix://{}: ", path.display());
        assert!(error.starts_with(&begin), "{error}");
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains('\n'), "{error}");
        // The problem with the file is reported once, the problem with the response once for each protocol.
        assert_eq!(
            error.contains("as CRI: "),
            error.contains("as Docker: "),
            "{error}"
        );
    }
}

#[tokio::test]
async fn docker_socket_of_any_name_works() {
    let dir = TempDir::new().unwrap();
    for name in ["docker.sock", "other.sock"] {
        let path = docker(&dir, name);
        let found = explicit(&path).await.unwrap();
        let expected = RuntimeInfo {
            name: "docker".to_owned(),
            version: "20.10.24".to_owned(),
            endpoint: format!("unix://{}", path.display()),
        };
        assert_eq!(found.info(), &expected);
    }
}

#[tokio::test]
async fn explicit_directory_is_oci_layout() {
    let dir = TempDir::new().unwrap();
    let endpoint = Endpoint::Oci(dir.path().join("layout"));
    let found = find(Some(&endpoint), &Platform::current(), LIMIT).await;
    assert!(matches!(found, Ok(Runtime::Oci(_))));
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let endpoint = Endpoint::Oci(file);
    let error = find(Some(&endpoint), &Platform::current(), LIMIT)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("no usable container runtime at {endpoint}: "))
    );
}

#[tokio::test]
async fn first_responding_socket_wins() {
    let dir = TempDir::new().unwrap();
    let table = [
        (dir.path().join("none.sock"), Protocol::Cri),
        (serve(&dir, "closes.sock", Does::Close), Protocol::Docker),
        (docker(&dir, "first.sock"), Protocol::Docker),
        (docker(&dir, "second.sock"), Protocol::Docker),
    ];
    let found = find_among(&table, LIMIT).await.unwrap();
    assert!(found.info().endpoint.ends_with("/first.sock"));
}

#[tokio::test]
async fn error_names_all_sockets_tried() {
    let dir = TempDir::new().unwrap();
    let stale = dir.path().join("stale.sock");
    drop(StdListener::bind(&stale).unwrap());
    let table = [
        (dir.path().join("none.sock"), Protocol::Cri),
        (stale, Protocol::Cri),
        (serve(&dir, "hangs.sock", Does::Hang), Protocol::Docker),
    ];
    let error = find_among(&table, LIMIT).await.unwrap_err().to_string();
    let dir = dir.path().display();
    let expected = format!(
        "no usable container runtime: {dir}/none.sock: does not exist; \
         {dir}/stale.sock: connection refused: no process listens on the socket (is the runtime running?); \
         {dir}/hangs.sock: no response within 400ms; \
         if the runtime listens elsewhere, set --runtime-endpoint (RUNTIME_ENDPOINT)"
    );
    assert_eq!(error, expected);
}

#[tokio::test]
async fn failed_unpacking_implies_received_bytes() {
    let dir = TempDir::new().unwrap();
    for (error, came) in [
        (
            "failed to extract layer sha256:f1a0: invalid tar header",
            true,
        ),
        ("pull access denied", false),
    ] {
        let path = dir.path().join(format!("{came}.sock"));
        on_unix(&path, move |mut stream| async move {
            let body = match Asked::read(&mut stream).await {
                Ok(asked) if asked.path.contains("/images/create") => {
                    format!("{{\"errorDetail\":{{\"message\":\"{error}\"}}}}\r\n")
                }
                _ => r#"{"Version":"20.10.24","ApiVersion":"1.41"}"#.to_owned(),
            };
            let _ = stream.write_all(http("200 OK", &body).as_bytes()).await;
        });
        let runtime = connect(&path, Protocol::Docker, LIMIT).await.unwrap();
        let (image, progress) = (Reference::parse("a/b:1").unwrap(), Progress::default());
        runtime.pull(&image, None, &progress).await.unwrap_err();
        assert_eq!(progress.came(), came, "{error}");
    }
}
