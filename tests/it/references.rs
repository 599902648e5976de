//! Validation of references, compared with other programs for the same text: with containerd, by its response to a pull, and with
//! skopeo. A reference that only harpoon accepts would fail late; one that only harpoon rejects would never be pulled.

use std::path::PathBuf;
use std::process::Command;

use harpoon::model::reference::Reference;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::{ImageSpec, PullImageRequest};
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

use crate::bed::faulty::{Fault, Proxy};
use crate::bed::{Containerd, block_on, directory, registry};

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn cases() -> Vec<String> {
    let long = |n: usize| "a".repeat(n);
    let mut cases: Vec<String> = [
        "nginx",
        "nginx:1.27",
        "library/nginx",
        "docker.io/nginx",
        "index.docker.io/library/nginx:1",
        "a/b/c/d:e",
        "localhost/a",
        "localhost:5000/a:b",
        "registry.example/a",
        "registry.example:443/a_b/c__d/e-f.g:H_1.2-3",
        "Registry.Example/a:b",
        "a--b/c---d",
        "a_b",
        "a.b/c",
        "0/1:2",
        "nginx:_",
        "nginx:1.",
        "nginx:1-",
        "",
        "nginx:",
        "nginx:-a",
        "nginx:.a",
        "nginx:a:b",
        "nginx:a/b",
        "nginx:ä",
        "/nginx",
        "nginx/",
        "a//b",
        "Nginx",
        "a/B",
        "-a",
        "a-",
        "a_",
        "_a",
        "a.",
        ".a/b",
        "a..b",
        "a___b",
        "a._b",
        "a-_b",
        "a b",
        "a\tb",
        "a\nb",
        " a",
        "a ",
        "a@",
        "a@b",
        "a@sha256:",
        "a@sha256:abc",
        "a@md5:0123456789abcdef0123456789abcdef",
        "a:1@",
        "@a",
        ":a",
        "http://a/b",
        "https://registry.example/a",
        "docker://a",
        "a:80/b:c:d",
        "registry.example:/a",
        "registry.example:x/a",
        "-registry.example/a",
        "registry-.example/a",
        "registry.example./a",
        ".example/a",
        "a?b",
        "a#b",
        "a%20b",
        "a\\b",
        "$(a)",
        "a;b",
        "*",
        "a/*",
        "ａ",
        "a\u{1b}[31m",
        "a\u{202e}b",
        "a\u{200b}",
    ]
    .map(str::to_owned)
    .into();
    cases.extend([
        HEX.to_owned(),
        HEX[1..].to_owned(),
        HEX.to_uppercase(),
        format!("{HEX}:1"),
        format!("registry.example/{HEX}"),
        format!("sha256:{HEX}"),
        format!("a@sha256:{HEX}"),
        format!("a:1@sha256:{HEX}"),
        format!("a@sha256:{}", HEX.to_uppercase()),
        format!("a@sha256:{HEX}0"),
        format!("a@SHA256:{HEX}"),
        format!("a@sha512:{HEX}{HEX}"),
        format!("a@sha512:{HEX}"),
        format!("a@sha256:{HEX}@sha256:{HEX}"),
        format!("a:{}", long(128)),
        format!("a:{}", long(129)),
        format!("registry.example/{}", long(238)),
        format!("registry.example/{}", long(239)),
        format!("registry.example/{}", long(240)),
        format!("registry.example/{}", long(255)),
        format!("registry.example/{}", long(256)),
    ]);
    cases
}

/// Known differences of these versions, and the reasons why harpoon does not follow them.
const DIFFERENT: &[(&str, &str)] = &[
    // A copy's destination may not have both. containerd, Docker and the kubelet take it, and mean the digest.
    (
        "skopeo",
        "a:1@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ),
    // A tag of a repository `sha256`, by the grammar. Asked whether it is there, runtimes take it for an image ID.
    (
        "skopeo",
        "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ),
    (
        "containerd",
        "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ),
];

/// Returns whether only newer versions accept it: older ones include the registry in a name's 255 characters.
fn is_too_long_for(who: &str, text: &str) -> bool {
    let is_old = who == "skopeo" || !crate::bed::has_newer_runtimes();
    let path = text.strip_prefix("registry.example/");
    is_old && text.len() > 255 && path.is_some_and(|path| path.len() <= 255)
}

/// Returns whether skopeo accepts it as a reference. The source to copy does not exist, so no registry is contacted.
fn skopeo_takes(text: &str) -> bool {
    let nowhere = directory();
    let mut copy = Command::new("skopeo");
    copy.args(["--insecure-policy", "copy"]);
    copy.arg(format!("dir:{}/none", nowhere.path().display()));
    let output = copy
        .arg(format!("docker://{text}"))
        .output()
        .expect("skopeo: run testbed/install");
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    !stderr.contains("nvalid destination name")
}

/// Returns whether containerd's CRI server accepts it as a reference. All registries are one without content.
fn containerd_takes(socket: PathBuf, text: &str) -> bool {
    let image = text.to_owned();
    let answer = block_on(async move {
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connect).await.unwrap();
        let spec = ImageSpec {
            image,
            ..Default::default()
        };
        let request = PullImageRequest {
            image: Some(spec),
            ..Default::default()
        };
        ImageServiceClient::new(channel).pull_image(request).await
    });
    let error = answer
        .expect_err("there is no such image")
        .message()
        .to_owned();
    let refused = [
        "failed to parse image reference",
        "invalid reference format",
        "invalid image reference",
    ];
    !refused.iter().any(|words| error.contains(words))
}

#[test]
fn parser_agrees_with_containerd_and_skopeo() {
    let nothing = Proxy::start(registry().url(), |_| Fault::status(404));
    let containerd = Containerd::start();
    containerd.map_host("_default", &nothing.url());
    let mut wrong = Vec::new();
    for text in cases() {
        let ours = Reference::parse(&text).is_ok();
        let theirs = [
            ("skopeo", skopeo_takes(&text)),
            (
                "containerd",
                containerd_takes(containerd.socket().to_owned(), &text),
            ),
        ];
        for (who, takes) in theirs {
            let known = DIFFERENT.contains(&(who, text.as_str())) || is_too_long_for(who, &text);
            if (takes != ours) != known {
                wrong.push(format!(
                    "{text:?}: harpoon {ours}, {who} {takes}, known to differ {known}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
