use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::standin::{Asked, Reply, Shelf, StandIn};
use super::*;
use crate::model::failure::FailureKind;

mod credentials;

fn client() -> Client {
    Client::with_options(&Options {
        stall_timeout: Duration::from_secs(1),
        ..Options::default()
    })
    .unwrap()
}

fn image(server: &StandIn) -> Reference {
    Reference::parse(&format!("{}/a/b:1", server.host)).unwrap()
}

fn shelf() -> Shelf {
    let mut shelf = Shelf::default();
    shelf.index("a/b", "1", &[]);
    shelf
}

async fn manifest_error(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Error {
    let server = StandIn::start(answer).await;
    client()
        .manifest(Access::anonymous(&image(&server)), None)
        .await
        .unwrap_err()
}

async fn read_all(mut blob: Blob) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    while let Some(chunk) = blob.chunk().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

fn descriptor(content: &[u8]) -> Descriptor {
    Descriptor {
        media_type: String::new(),
        digest: digest::sha256(content),
        size: content.len() as u64,
        urls: Vec::new(),
        platform: None,
    }
}

#[tokio::test]
async fn plain_http_loopback_is_detected_once() {
    let shelf = shelf();
    let server = StandIn::start(move |asked| shelf.answer(asked)).await;
    let client = client();
    let manifest = client
        .manifest(Access::anonymous(&image(&server)), None)
        .await
        .unwrap();
    assert_eq!(manifest.media_type, OCI_INDEX);
    assert_eq!(manifest.digest, digest::sha256(&manifest.bytes));
    assert_eq!(
        client
            .resolve(Access::anonymous(&image(&server)))
            .await
            .unwrap(),
        manifest.digest
    );
    let asked = server.asked();
    assert_eq!(asked[1].method, "HEAD");
    let agent = format!("harpoon/{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(asked[0].header("user-agent"), Some(agent.as_str()));
    assert!(asked[0].header("accept").unwrap().contains(OCI_INDEX));
}

#[tokio::test]
async fn statuses_map_to_kinds_with_messages() {
    use FailureKind::*;
    for (status, code, kind) in [
        (401, "UNAUTHORIZED", Unauthorized),
        (403, "DENIED", Unauthorized),
        (400, "DENIED", Unauthorized),
        (404, "NAME_UNKNOWN", NotFound),
        (429, "TOOMANYREQUESTS", RateLimited),
        (403, "TOOMANYREQUESTS", RateLimited),
        (500, "UNKNOWN", Unavailable),
        (503, "UNAVAILABLE", Unavailable),
        (400, "MANIFEST_INVALID", Other),
    ] {
        let error = manifest_error(move |_| {
            let body =
                format!(r#"{{"errors":[{{"code":"{code}","message":"so \u001b[31m it is"}}]}}"#);
            // Only what the registry itself says with a 401 starts the token flow.
            Reply::new(status, body).with("www-authenticate", "Basic realm=\"x\"")
        })
        .await;
        assert_eq!(error.kind(), kind, "{status} {code}");
        if status != 401 {
            let text = error.chain();
            assert!(
                text.contains(&format!("{code}: so \\u{{1b}}[31m it is")),
                "{text}"
            );
        }
    }
}

#[tokio::test]
async fn retry_after_is_parsed_and_bounded() {
    let in_a_minute = std::time::SystemTime::now() + Duration::from_secs(60);
    for (header, low, high) in [
        ("7".to_owned(), 7, 7),
        ("99999999".to_owned(), 600, 600),
        (httpdate::fmt_http_date(in_a_minute), 55, 60),
        ("Sun, 06 Nov 1994 08:49:37 GMT".to_owned(), 0, 0),
    ] {
        let error = manifest_error(move |_| Reply::new(429, "").with("retry-after", &header)).await;
        let wait = error.retry_after().unwrap().as_secs();
        assert!((low..=high).contains(&wait), "{wait}");
    }
    let error = manifest_error(|_| Reply::new(429, "").with("retry-after", "-1")).await;
    assert_eq!(error.retry_after(), None);
}

#[tokio::test]
async fn long_error_is_truncated() {
    let error = manifest_error(|_| {
        let message = "é".repeat(30_000);
        Reply::new(500, format!(r#"{{"errors":[{{"message":"{message}"}}]}}"#))
    })
    .await;
    assert!(error.chain().chars().count() < 600);
    let error = manifest_error(|_| Reply::new(500, "<html>").endless()).await;
    assert_eq!(error.kind(), FailureKind::Unavailable);
}

/// A registry that requires the token `secret{good}`, and its token service, which issues `secret0`, `secret1`, ….
async fn with_tokens(lifetime: &'static str, good: Arc<AtomicUsize>) -> (StandIn, StandIn) {
    let count = AtomicUsize::new(0);
    let service = StandIn::start(move |_| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        Reply::new(200, format!(r#"{{"token":"secret{n}"{lifetime}}}"#))
    })
    .await;
    let challenge = format!(
        r#"Bearer realm="http://{}/token",service="here",scope="repository:a/b:pull""#,
        service.host
    );
    let shelf = shelf();
    let registry = StandIn::start(move |asked| {
        let wanted = format!("Bearer secret{}", good.load(Ordering::SeqCst));
        if asked.header("authorization") == Some(&wanted) {
            shelf.answer(asked)
        } else {
            Reply::new(401, "{}").with("www-authenticate", &challenge)
        }
    })
    .await;
    (registry, service)
}

#[tokio::test]
async fn anonymous_token_is_fetched_once() {
    let (registry, service) = with_tokens("", Arc::default()).await;
    let client = client();
    for _ in 0..3 {
        client
            .manifest(Access::anonymous(&image(&registry)), None)
            .await
            .unwrap();
    }
    let asked = service.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(
        asked[0].path,
        "/token?service=here&scope=repository%3Aa%2Fb%3Apull"
    );
    assert_eq!(asked[0].header("authorization"), None);
    assert_eq!(registry.asked().len(), 4);
}

#[tokio::test]
async fn refused_token_is_renewed_once() {
    let good = Arc::new(AtomicUsize::new(0));
    let (registry, service) = with_tokens("", good.clone()).await;
    let client = client();
    let reference = image(&registry);
    client
        .manifest(Access::anonymous(&reference), None)
        .await
        .unwrap();
    good.store(1, Ordering::SeqCst);
    let (manifest, digest) = tokio::join!(
        client.manifest(Access::anonymous(&reference), None),
        client.resolve(Access::anonymous(&reference))
    );
    assert_eq!(manifest.unwrap().digest, digest.unwrap());
    // The second waited for the first one's token.
    assert_eq!(service.asked().len(), 2);
    good.store(99, Ordering::SeqCst);
    let error = client
        .manifest(Access::anonymous(&reference), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), FailureKind::Unauthorized);
    assert_eq!(service.asked().len(), 3);
}

#[tokio::test]
async fn expired_token_is_not_sent() {
    let good = Arc::new(AtomicUsize::new(0));
    let (registry, service) = with_tokens(r#","expires_in":1"#, good.clone()).await;
    let client = client();
    client
        .manifest(Access::anonymous(&image(&registry)), None)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    good.store(1, Ordering::SeqCst);
    client
        .resolve(Access::anonymous(&image(&registry)))
        .await
        .unwrap();
    let shown = registry.asked();
    let stale = |asked: &&Asked| asked.header("authorization") == Some("Bearer secret0");
    assert_eq!(shown.iter().filter(stale).count(), 1);
    assert_eq!(service.asked().len(), 2);
}

#[tokio::test]
async fn invalid_token_response_is_an_error() {
    for body in ["", "{}", "[]", r#"{"token":""}"#, r#"{"token":"a\nb"}"#] {
        let service = StandIn::start(move |_| Reply::new(200, body)).await;
        let challenge = format!(r#"Bearer realm="http://{}/""#, service.host);
        let error =
            manifest_error(move |_| Reply::new(401, "").with("www-authenticate", &challenge)).await;
        assert!(matches!(error, Error::Token { .. }), "{error}");
    }
    let error = manifest_error(|_| Reply::new(401, "")).await;
    assert_eq!(error.kind(), FailureKind::Unauthorized);
    let basic = |_: &Asked| Reply::new(401, "").with("www-authenticate", "Basic realm=x");
    let error = manifest_error(basic).await;
    assert_eq!(error.kind(), FailureKind::Unauthorized);
}

#[tokio::test]
async fn cross_host_redirect_drops_authorization() {
    let content = b"layer".repeat(1000);
    let wanted = descriptor(&content);
    let store = StandIn::start(move |_| Reply::new(200, content.clone())).await;
    let service = StandIn::start(|_| Reply::new(200, r#"{"access_token":"secret"}"#)).await;
    let signed = format!("http://{}/bucket/x?X-Amz-Signature=secret", store.host);
    let realm = format!("http://{}/", service.host);
    let registry = StandIn::start(move |asked| match asked.header("authorization") {
        None => Reply::new(401, "").with("www-authenticate", &format!("Bearer realm=\"{realm}\"")),
        Some(_) if asked.path == "/here" => Reply::redirect(&signed),
        Some(_) => Reply::redirect("/here"),
    })
    .await;
    let blob = client()
        .blob(Access::anonymous(&image(&registry)), &wanted, 0)
        .await
        .unwrap();
    assert_eq!(read_all(blob).await.unwrap().len() as u64, wanted.size);
    assert_eq!(
        registry.asked()[2].header("authorization"),
        Some("Bearer secret")
    );
    assert_eq!(store.asked()[0].header("authorization"), None);
}

#[tokio::test]
async fn redirects_are_bounded_and_urls_hidden() {
    let server = StandIn::start(|_| Reply::redirect("/again?signature=secret")).await;
    let error = client()
        .manifest(Access::anonymous(&image(&server)), None)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "{error}");
    assert_eq!(server.asked().len(), 6);
    let error = manifest_error(|_| Reply::redirect("http://127.0.0.1:1/x?signature=secret")).await;
    assert_eq!(error.kind(), FailureKind::Unavailable);
    let shown = format!("{} {error:?}", error.chain());
    assert!(!shown.contains("secret"), "{shown}");
    assert!(shown.contains("127.0.0.1:1"), "{shown}");
}

#[tokio::test]
async fn silent_registry_times_out() {
    let begin = Instant::now();
    let error = manifest_error(|_| Reply::new(200, "{\"schemaVersion\":2}").stall(3)).await;
    assert_eq!(error.kind(), FailureKind::Timeout);
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn manifest_size_is_bounded() {
    let error = manifest_error(|_| Reply::new(200, vec![b' '; 100 << 20])).await;
    assert!(error.chain().contains("4194304"), "{error}");
    let error = manifest_error(|_| Reply::new(200, vec![b' '; 1 << 16]).endless()).await;
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn manifest_with_other_digest_is_refused() {
    let shelf = shelf();
    let server = StandIn::start(move |asked| {
        let mut asked = asked.clone();
        asked.path = "/v2/a/b/manifests/1".to_owned();
        shelf.answer(&asked)
    })
    .await;
    let other = format!("{}/a/b@sha256:{}", server.host, "0".repeat(64));
    let other = Reference::parse(&other).unwrap();
    let error = client()
        .manifest(Access::anonymous(&other), None)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Content { .. }), "{error}");
    let lie = format!("sha256:{}", "0".repeat(64));
    let error = manifest_error(move |_| {
        Reply::new(200, r#"{"manifests":[]}"#).with("docker-content-digest", &lie)
    })
    .await;
    assert!(matches!(error, Error::Content { .. }), "{error}");
}

#[tokio::test]
async fn invalid_manifest_is_refused() {
    let old = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    for (media_type, body) in [(old, "{}"), ("application/json", r#"{"schemaVersion":1}"#)] {
        let error = manifest_error(move |_| Reply::new(200, body).with("content-type", media_type));
        assert!(matches!(error.await, Error::Schema1));
    }
    for body in [
        "",
        "null",
        "<html>",
        "{}",
        r#"{"manifests":[],"layers":[]}"#,
        r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}"#,
    ] {
        let error = manifest_error(move |_| Reply::new(200, body)).await;
        assert!(matches!(error, Error::Manifest { .. }), "{body}: {error}");
    }
    for descriptor in [
        r#"{"digest":"sha256:../../etc/passwd","size":1}"#,
        r#"{"digest":"sha256:DIGEST","size":-1}"#,
        r#"{"digest":"sha256:DIGEST","size":99999999999999999999999}"#,
        r#"{"digest":"md5:DIGEST","size":1}"#,
        r#"{"size":1}"#,
    ] {
        let descriptor = descriptor.replace("DIGEST", &"a".repeat(64));
        let body = format!(r#"{{"manifests":[{descriptor}]}}"#);
        let bytes = Bytes::from(body);
        let digest = digest::sha256(&bytes);
        let manifest = Manifest::new(bytes, digest, "").unwrap();
        assert!(manifest.content().is_err(), "{descriptor}");
    }
}

#[tokio::test]
async fn cut_blob_resumes_or_restarts() {
    let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut shelf = Shelf::default();
    shelf.blob("a/b", &content);
    let wanted = descriptor(&content);
    let whole = shelf.clone();
    let server = StandIn::start(move |asked| match asked.header("range") {
        None => whole.answer(asked).cut(70_000),
        Some(_) => whole.answer(asked),
    })
    .await;
    let client = client();
    let mut blob = client
        .blob(Access::anonymous(&image(&server)), &wanted, 0)
        .await
        .unwrap();
    let mut all = Vec::new();
    let error = loop {
        match blob.chunk().await {
            Ok(chunk) => all.extend_from_slice(&chunk.unwrap()),
            Err(error) => break error,
        }
    };
    assert!(error.is_cut(), "{error}");
    assert_eq!(all.len(), 70_000);
    let rest = client
        .blob(Access::anonymous(&image(&server)), &wanted, 70_000)
        .await
        .unwrap();
    assert_eq!(rest.offset(), 70_000);
    all.extend(read_all(rest).await.unwrap());
    assert_eq!(all, content);

    let server = StandIn::start(move |_| Reply::new(200, content.clone())).await;
    let blob = client
        .blob(Access::anonymous(&image(&server)), &wanted, 70_000)
        .await
        .unwrap();
    assert_eq!(blob.offset(), 0);
    assert_eq!(read_all(blob).await.unwrap(), all);
}

#[tokio::test]
async fn blob_range_must_match_request() {
    let wanted = descriptor(b"0123456789");
    let part = |body: &'static str| Reply::new(206, body);
    let table = [
        (
            part("345").with("content-range", "bytes 3-5/10"),
            Some("345"),
        ),
        (Reply::new(200, "0123456789"), None),
        (part("3456789").with("content-range", "bytes 3-9/10"), None),
    ];
    for (reply, expected) in table {
        let server = StandIn::start(move |asked| {
            assert_eq!(asked.header("range"), Some("bytes=3-5"));
            reply.clone()
        })
        .await;
        let image = image(&server);
        let client = client();
        let found = client.blob_part(Access::anonymous(&image), &wanted, 3..6);
        match (found.await, expected) {
            (Ok(part), Some(expected)) => {
                assert_eq!(part.offset(), 3);
                assert_eq!(read_all(part).await.unwrap(), expected.as_bytes());
            }
            (Err(Error::Range { .. }), None) => {}
            (found, _) => panic!("{:?}", found.err()),
        }
    }
    for reply in [
        part("012").with("content-range", "bytes 0-2/10"),
        part("345").with("content-range", "bytes 3-5/10").cut(2),
    ] {
        let server = StandIn::start(move |_| reply.clone()).await;
        let image = image(&server);
        let client = client();
        let found = client.blob_part(Access::anonymous(&image), &wanted, 3..6);
        let read = async { read_all(found.await?).await };
        read.await.unwrap_err();
    }
}

#[tokio::test]
async fn blob_ends_at_readers_limit() {
    let content = vec![7; 100_000];
    let wanted = descriptor(&content);
    let server = StandIn::start(move |_| Reply::new(200, content.clone())).await;
    let image = image(&server);
    for end in [0, 1, 70_000, 100_000, 200_000] {
        let client = client();
        let blob = client.blob(Access::anonymous(&image), &wanted, 0);
        let mut blob = blob.await.unwrap();
        blob.end_at(end);
        let read = read_all(blob).await.unwrap();
        assert_eq!(read.len() as u64, end.min(100_000));
    }
}

#[tokio::test]
async fn blob_never_exceeds_its_size() {
    let wanted = descriptor(b"small");
    for reply in [
        Reply::new(200, vec![0; 1 << 20]),
        Reply::new(200, vec![0; 1 << 16]).endless(),
        Reply::new(206, "all").with("content-range", "bytes 1-3/5"),
    ] {
        let server = StandIn::start(move |_| reply.clone()).await;
        let error = match client()
            .blob(Access::anonymous(&image(&server)), &wanted, 2)
            .await
        {
            Ok(blob) => read_all(blob).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error, Error::Size { .. }), "{error}");
    }
}

#[tokio::test]
async fn unreachable_registry_is_unavailable() {
    let reference = Reference::parse("127.0.0.1:1/a").unwrap();
    let error = client()
        .manifest(Access::anonymous(&reference), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), FailureKind::Unavailable);
    assert!(error.chain().contains("refused"), "{}", error.chain());
    let reference = Reference::parse("registry.invalid/a").unwrap();
    let error = client()
        .manifest(Access::anonymous(&reference), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), FailureKind::Unavailable);
    println_free(&error.chain());
}

fn println_free(text: &str) {
    assert!(
        text.starts_with("failed to reach registry.invalid"),
        "{text}"
    );
}

#[tokio::test]
async fn failed_loopback_tls_never_becomes_http() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let mut first_bytes = Vec::new();
        while let Ok(Ok((mut stream, _))) =
            tokio::time::timeout(Duration::from_millis(500), listener.accept()).await
        {
            first_bytes.push(stream.read_u8().await.unwrap());
            // A TLS alert: handshake failure.
            stream.write_all(&[21, 3, 3, 0, 2, 2, 40]).await.unwrap();
        }
        first_bytes
    });
    let reference = Reference::parse(&format!("{host}/a")).unwrap();
    let error = client()
        .manifest(Access::anonymous(&reference), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), FailureKind::Unavailable);
    assert!(
        error.chain().contains("HandshakeFailure"),
        "{}",
        error.chain()
    );
    assert_eq!(server.await.unwrap(), [0x16]);
}

/// A registry that accepts no credential and sends this challenge.
async fn registry_with_challenge(challenge: &'static str) -> StandIn {
    StandIn::start(move |_| Reply::new(401, "").with("www-authenticate", challenge)).await
}
