use super::*;

fn image(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

#[test]
fn dockerd_20_10_messages_are_classified() {
    // Provoked on dockerd 20.10.24 with a registry and a server that misbehaves on demand, word for word.
    let table = [
        (
            Some(404),
            "manifest for 127.0.0.1:25731/team/small:nope not found: manifest unknown: manifest unknown",
            NotFound,
        ),
        (Some(500), "name unknown", NotFound),
        (None, "unknown blob", NotFound),
        (
            None,
            "error pulling image configuration: download failed after attempts=1: unknown blob",
            NotFound,
        ),
        (
            Some(500),
            "error parsing HTTP 404 response body: invalid character '<' looking for beginning of value: \"<html>nothing</html>\"",
            NotFound,
        ),
        (
            Some(500),
            "Head \"http://127.0.0.1:25732/v2/team/small/manifests/1\": no basic auth credentials",
            Unauthorized,
        ),
        (Some(500), "denied", Unauthorized),
        (Some(500), "unauthorized", Unauthorized),
        (
            Some(500),
            "unauthorized: authentication required",
            Unauthorized,
        ),
        (
            Some(500),
            "error parsing HTTP 403 response body: invalid character 'F' looking for beginning of value: \"Forbidden\"",
            Unauthorized,
        ),
        (
            None,
            "pull access denied for 127.0.0.1:25733/b403/fresh, repository does not exist or may require 'docker login': denied: denied",
            Unauthorized,
        ),
        (
            Some(500),
            "toomanyrequests: You have reached your pull rate limit. You may increase the limit by authenticating and upgrading: https://www.docker.com/increase-rate-limit",
            RateLimited,
        ),
        (None, "toomanyrequests: slow down", RateLimited),
        (
            Some(500),
            "error parsing HTTP 429 response body: invalid character 's' looking for beginning of value: \"slow down\"",
            RateLimited,
        ),
        (
            Some(500),
            "received unexpected HTTP status: 500 Internal Server Error",
            Unavailable,
        ),
        (
            Some(500),
            "received unexpected HTTP status: 502 Bad Gateway",
            Unavailable,
        ),
        (
            None,
            "received unexpected HTTP status: 503 Service Unavailable",
            Unavailable,
        ),
        (
            Some(500),
            "received unexpected HTTP status: 504 Gateway Timeout",
            Unavailable,
        ),
        (
            Some(500),
            "Get \"http://127.0.0.1:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
            Unavailable,
        ),
        (
            Some(500),
            "Get \"https://registry.invalid/v2/\": dial tcp: lookup registry.invalid on 10.255.255.53:53: no such host",
            Unavailable,
        ),
        (
            Some(500),
            "Get \"http://127.0.0.1:25742/v2/\": read tcp 127.0.0.1:38894->127.0.0.1:25742: read: connection reset by peer",
            Unavailable,
        ),
        (
            Some(500),
            "Get \"http://127.0.0.1:25734/v2/\": net/http: HTTP/1.x transport connection broken: malformed HTTP response \"\\x00\\x01garbage\"",
            Unavailable,
        ),
        (
            Some(500),
            "Get \"https://10.255.255.1:5000/v2/\": x509: cannot validate certificate for 10.255.255.1 because it doesn't contain any IP SANs",
            Unavailable,
        ),
        (
            Some(500),
            "Head \"http://127.0.0.1:25733/v2/rst/small/manifests/1\": EOF",
            Unavailable,
        ),
        (Some(500), "unexpected EOF", Unavailable),
        (None, "unexpected EOF", Unavailable),
        (
            None,
            "expected HTTP 206 from byte range request",
            Unavailable,
        ),
        (
            Some(500),
            "Get \"http://127.0.0.1:25741/v2/\": net/http: request canceled (Client.Timeout exceeded while awaiting headers)",
            Timeout,
        ),
        (
            None,
            "write /tmp/docker-h/tmpfs/tmp/GetImageBlob1352388164: no space left on device",
            NoSpace,
        ),
        (
            None,
            "failed to register layer: ApplyLayer exit status 1 stdout:  stderr: write /f0: no space left on device",
            NoSpace,
        ),
        (
            None,
            "no matching manifest for linux/amd64 in the manifest list entries",
            PlatformMismatch,
        ),
        (
            Some(400),
            "invalid reference format: repository name must be lowercase",
            InvalidReference,
        ),
        (
            Some(400),
            "no such image: [::1]:5000/a/b:1: invalid reference format",
            InvalidReference,
        ),
        (Some(400), "invalid tag format", InvalidReference),
        (
            None,
            "manifest verification failed for digest sha256:7c96b74bd5f90b7ad0191f11a7a30afd9cc804dc9d61b36cf7cedc38c8f84845",
            Other,
        ),
        (
            None,
            "filesystem layer verification failed for digest sha256:aab677954904a48b306c73d65e755187f84e81d8c83aca595358ca6b67ec598f",
            Other,
        ),
        (
            None,
            "error pulling image configuration: image config verification failed for digest sha256:d038692e514ba79c1fc712443f8587c74ffcea3e6d9e29153d01c7cb9e459997",
            Other,
        ),
        (Some(500), "manifest invalid: manifest invalid", Other),
        (Some(500), "missing signature key", Other),
        (Some(500), "unexpected end of JSON input", Other),
        (
            Some(500),
            "error unmarshalling content: invalid character '<' looking for beginning of value",
            Other,
        ),
        (
            Some(500),
            "error parsing HTTP 418 response body: invalid character 'e' in literal true (expecting 'r'): \"teapot\"",
            Other,
        ),
    ];
    for (status, text, kind) in table {
        assert_eq!(kind_of(status, text), kind, "{text}");
        let wrapped = without_image(text, &image("127.0.0.1:25731/team/small:nope"));
        assert_eq!(kind_of(status, &wrapped), kind, "{wrapped}");
    }
}

#[test]
fn dockerd_28_messages_are_classified() {
    // Provoked on dockerd 28.5.2, as above.
    check_28(&[
        (
            None,
            r#"manifest for 127.0.0.1:5000/team/app:1 not found: manifest unknown: manifest unknown"#,
            NotFound,
        ),
        (
            None,
            r#"manifest for 127.0.0.1:5000/team/app@sha256:0000000000000000000000000000000000000000000000000000000000000000 not found: manifest unknown: manifest unknown"#,
            NotFound,
        ),
        (
            None,
            r#"no matching manifest for linux/amd64 in the manifest list entries"#,
            PlatformMismatch,
        ),
        (
            None,
            r#"Get "https://tls.example/v2/": dial tcp: lookup tls.example on 10.255.255.53:53: no such host"#,
            Unavailable,
        ),
        (
            None,
            r#"Head "http://127.0.0.1:5000/v2/team/app/manifests/1": no basic auth credentials"#,
            Unauthorized,
        ),
        (
            None,
            r#"Get "http://127.0.0.1:5000/v2/": dial tcp 127.0.0.1:5000: connect: connection refused"#,
            Unavailable,
        ),
        (
            None,
            r#"Get "https://registry.invalid/v2/": dial tcp: lookup registry.invalid on 10.0.0.53:53: no such host"#,
            Unavailable,
        ),
        (None, r#"unauthorized: registry prose"#, Unauthorized),
        (
            None,
            r#"pull access denied for 127.0.0.1:5000/team/app, repository does not exist or may require 'docker login': denied: registry prose"#,
            Unauthorized,
        ),
        (None, r#"blob unknown: registry prose"#, NotFound),
        (None, r#"toomanyrequests: registry prose"#, RateLimited),
        (
            None,
            r#"received unexpected HTTP status: 500 Internal Server Error"#,
            Unavailable,
        ),
        (
            None,
            r#"received unexpected HTTP status: 503 Service Unavailable"#,
            Unavailable,
        ),
        (
            None,
            r#"pull access denied for 127.0.0.1:5000/team/app, repository does not exist or may require 'docker login': denied: write /x: no space left on device"#,
            Unauthorized,
        ),
        (
            None,
            r#"error pulling image configuration: download failed after attempts=1: unauthorized: registry prose"#,
            Unauthorized,
        ),
        (
            None,
            r#"error pulling image configuration: download failed after attempts=1: denied: registry prose"#,
            Unauthorized,
        ),
        (
            None,
            r#"error pulling image configuration: download failed after attempts=1: unknown blob"#,
            NotFound,
        ),
        (
            None,
            r#"error pulling image configuration: download failed after attempts=1: toomanyrequests: registry prose"#,
            RateLimited,
        ),
        (
            None,
            r#"error pulling image configuration: download failed after attempts=6: received unexpected HTTP status: 500 Internal Server Error"#,
            Unavailable,
        ),
        (
            None,
            r#"error pulling image configuration: download failed after attempts=6: received unexpected HTTP status: 503 Service Unavailable"#,
            Unavailable,
        ),
        (
            None,
            r#"error pulling image configuration: download failed after attempts=1: denied: write /x: no space left on device"#,
            Unauthorized,
        ),
        (
            None,
            r#"error pulling image configuration: download failed after attempts=1: toomanyrequests: write /x: no space left on device"#,
            RateLimited,
        ),
        (None, r#"unauthorized: x"#, Unauthorized),
        (
            None,
            r#"Head "http://127.0.0.1:5000/v2/team/app/manifests/1": EOF"#,
            Unavailable,
        ),
        (
            None,
            r#"error pulling image configuration: download failed after attempts=6: EOF"#,
            Unavailable,
        ),
        (
            None,
            r#"error unmarshalling content: invalid character '<' looking for beginning of value"#,
            Other,
        ),
        (
            None,
            r#"error pulling image configuration: image config verification failed for digest sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1"#,
            Other,
        ),
        (
            None,
            r#"error pulling image configuration: download failed after attempts=6: unexpected EOF"#,
            Unavailable,
        ),
        (
            None,
            "write /var/lib/docker/tmp/GetImageBlob351879714: no space left on device",
            NoSpace,
        ),
        (
            None,
            "failed to register layer: write /zeros: no space left on device",
            NoSpace,
        ),
        (
            None,
            "failed to register layer: archive/tar: invalid tar header",
            Other,
        ),
        (
            None,
            "layers from manifest don't match image configuration",
            Other,
        ),
    ]);
}

#[test]
fn dockerd_28_containerd_store_is_classified() {
    check_28(&[
        (
            None,
            r#"failed to resolve reference "127.0.0.1:5000/team/app:1": 127.0.0.1:5000/team/app:1: not found"#,
            NotFound,
        ),
        (
            None,
            r#"failed to resolve reference "127.0.0.1:5000/team/app@sha256:0000000000000000000000000000000000000000000000000000000000000000": 127.0.0.1:5000/team/app@sha256:0000000000000000000000000000000000000000000000000000000000000000: not found"#,
            NotFound,
        ),
        (
            None,
            r#"no matching manifest for linux/amd64 in the manifest list entries: no match for platform in manifest: not found"#,
            PlatformMismatch,
        ),
        (
            None,
            r#"failed to resolve reference "tls.example/team/app:1": failed to do request: Head "https://tls.example/v2/team/app/manifests/1": dial tcp: lookup tls.example on 10.255.255.53:53: no such host"#,
            Unavailable,
        ),
        (
            None,
            r#"failed to resolve reference "127.0.0.1:5000/team/app:1": pull access denied, repository does not exist or may require authorization: authorization failed: no basic auth credentials"#,
            Unauthorized,
        ),
        (
            None,
            r#"failed to resolve reference "127.0.0.1:5000/team/app:1": failed to do request: Head "https://127.0.0.1:5000/v2/team/app/manifests/1": dial tcp 127.0.0.1:5000: connect: connection refused"#,
            Unavailable,
        ),
        (
            None,
            r#"failed to resolve reference "registry.invalid/team/app:1": failed to do request: Head "https://registry.invalid/v2/team/app/manifests/1": dial tcp: lookup registry.invalid on 10.0.0.53:53: no such host"#,
            Unavailable,
        ),
        (
            None,
            r#"unknown: failed to resolve reference "127.0.0.1:5000/team/app:1": unexpected status from HEAD request to http://127.0.0.1:5000/v2/team/app/manifests/1: 401 Unauthorized"#,
            Unauthorized,
        ),
        (
            None,
            r#"unknown: failed to resolve reference "127.0.0.1:5000/team/app:1": unexpected status from HEAD request to http://127.0.0.1:5000/v2/team/app/manifests/1: 403 Forbidden"#,
            Unauthorized,
        ),
        (
            None,
            r#"unknown: failed to resolve reference "127.0.0.1:5000/team/app:1": unexpected status from HEAD request to http://127.0.0.1:5000/v2/team/app/manifests/1: 429 Too Many Requests"#,
            RateLimited,
        ),
        (
            None,
            r#"unknown: failed to resolve reference "127.0.0.1:5000/team/app:1": unexpected status from HEAD request to http://127.0.0.1:5000/v2/team/app/manifests/1: 500 Internal Server Error"#,
            Unavailable,
        ),
        (
            None,
            r#"unknown: failed to resolve reference "127.0.0.1:5000/team/app:1": unexpected status from HEAD request to http://127.0.0.1:5000/v2/team/app/manifests/1: 503 Service Unavailable"#,
            Unavailable,
        ),
        (None, r#"error from registry: registry prose"#, Other),
        (
            None,
            r#"failed to copy: httpReadSeeker: failed open: could not fetch content descriptor sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1 (application/vnd.oci.image.config.v1+json) from remote: not found"#,
            NotFound,
        ),
        (
            None,
            r#"unknown: failed to copy: httpReadSeeker: failed open: unexpected status from GET request to http://127.0.0.1:5000/v2/team/app/blobs/sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1: 500 Internal Server Error"#,
            Unavailable,
        ),
        (
            None,
            r#"unknown: failed to copy: httpReadSeeker: failed open: unexpected status from GET request to http://127.0.0.1:5000/v2/team/app/blobs/sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1: 403 Forbidden"#,
            Unauthorized,
        ),
        (
            None,
            r#"unknown: failed to copy: httpReadSeeker: failed open: unexpected status from GET request to http://127.0.0.1:5000/v2/team/app/blobs/sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1: 429 Too Many Requests"#,
            RateLimited,
        ),
        (
            None,
            r#"requested access to the resource is denied - no way: no space left on device"#,
            Unauthorized,
        ),
        (
            None,
            r#"failed to resolve reference "127.0.0.1:5000/team/app:1": failed to do request: Head "https://127.0.0.1:5000/v2/team/app/manifests/1": EOF"#,
            Unavailable,
        ),
        (
            None,
            r#"failed to copy: httpReadSeeker: failed open: failed to do request: Get "https://127.0.0.1:5000/v2/team/app/blobs/sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1": EOF"#,
            Unavailable,
        ),
        (
            None,
            r#"failed to copy: httpReadSeeker: failed open: could not fetch content descriptor sha256:7e537e903df5bfa9c9de2dc590d2646f8b4aa71dd14877bd3e2eceda829a4618 (text/html) from remote: not found"#,
            NotFound,
        ),
        (
            None,
            r#"failed commit on ref "config-sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1": commit failed: unexpected commit digest sha256:e7cfd4d425aea97b121ab5e8ff33dff0a7eababce5135e551fb246b1473d9b5d, expected sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1: failed precondition"#,
            Other,
        ),
        (
            None,
            r#"short read: expected 191 bytes but got 95: unexpected EOF"#,
            Unavailable,
        ),
        (
            None,
            r#"failed to copy: httpReadSeeker: failed open: unable to discard to offset"#,
            Other,
        ),
        (
            None,
            "error from registry: You have reached your pull rate limit.",
            RateLimited,
        ),
        (
            None,
            "error from registry: requested access to the resource is denied",
            Unauthorized,
        ),
        (
            None,
            "error from registry: no match for platform in manifest",
            Other,
        ),
        (
            None,
            "error from registry: write /x: no space left on device",
            Other,
        ),
        (
            None,
            "failed to copy: failed to send write: write /var/lib/docker/containerd/daemon/io.containerd.content.v1.content/ingest/b6fa80ac9471a0e33fce6c9ea7aa334be7f803a2a243c7e7a955f6d025aa135f/data: no space left on device",
            NoSpace,
        ),
        (
            None,
            r#"failed to extract layer (application/vnd.oci.image.layer.v1.tar+gzip sha256:76ca2d7512d8a772173e37eb461671983a8f2a7d7dd8ac789a149932999cd342) to overlayfs as "extract-449233934-lbPu sha256:2af5642e22635c6b916e7ec4ff36a094910c12f1af196eda102196c276355233": mount callback failed on /var/lib/docker/containerd/daemon/tmpmounts/containerd-mount590376964: write /var/lib/docker/containerd/daemon/tmpmounts/containerd-mount590376964/zeros: no space left on device"#,
            NoSpace,
        ),
        (
            None,
            r#"wrong diff id calculated on extraction "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881""#,
            Other,
        ),
    ]);
}

#[track_caller]
fn check_28(table: &[(Option<u16>, &str, FailureKind)]) {
    for (status, text, kind) in table {
        let told = without_image(text, &image("127.0.0.1:5000/team/app:1"));
        assert_eq!(kind_of(*status, &told), *kind, "{text}");
    }
}

#[test]
fn image_names_never_decide_kind() {
    let table = [
        (
            "127.0.0.1:25731/example/429-toomanyrequests:no-space-left",
            Some(404),
            "manifest for 127.0.0.1:25731/example/429-toomanyrequests:no-space-left not found: manifest unknown: manifest unknown",
            NotFound,
        ),
        (
            "toomanyrequests",
            Some(404),
            "manifest for toomanyrequests:latest not found: manifest unknown: manifest unknown",
            NotFound,
        ),
        (
            "denied",
            Some(500),
            "Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io on 10.0.0.1:53: no such host",
            Unavailable,
        ),
        (
            "denied",
            Some(404),
            "pull access denied for denied, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
            Unauthorized,
        ),
        (
            "toomanyrequests",
            Some(404),
            "pull access denied for toomanyrequests, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
            Unauthorized,
        ),
        (
            "r.example/unauthorized/x:eof",
            Some(500),
            "Head \"https://r.example/v2/unauthorized/x/manifests/eof\": EOF",
            Unavailable,
        ),
        (
            "toomanyrequests.example/a",
            Some(500),
            "Get \"https://toomanyrequests.example/v2/\": dial tcp: lookup toomanyrequests.example: no such host",
            Unavailable,
        ),
        (
            "r.example/a",
            Some(500),
            "unknown: write /x: no space left on device",
            Other,
        ),
        (
            "r.example/a",
            Some(500),
            "denied: write /x: no space left on device",
            Unauthorized,
        ),
        (
            "r.example/a",
            Some(500),
            "pull access denied for r.example/a, repository does not exist or may require 'docker login': denied: write /x: no space left on device",
            Unauthorized,
        ),
        (
            "r.example/a",
            Some(500),
            "digest invalid: write /x: no space left on device",
            Other,
        ),
        (
            "r.example/a",
            Some(500),
            "error parsing HTTP 404 response body: invalid character '<' looking for beginning of value: \"<p>/x: no space left on device",
            NotFound,
        ),
    ];
    for (name, status, text, kind) in table {
        let text = without_image(text, &image(name));
        assert_eq!(kind_of(status, &text), kind, "{name}: {text}");
    }
}

#[test]
fn status_decides_when_words_do_not() {
    let table = [
        (404, NotFound),
        (403, Unauthorized),
        (429, RateLimited),
        (503, Unavailable),
        (400, Other),
        (500, Other),
    ];
    for (status, kind) in table {
        assert_eq!(kind_of(Some(status), ""), kind, "{status}");
    }
    assert_eq!(kind_of(None, ""), Other);
}
