use super::*;
use FailureKind::*;

fn image(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

fn check(name: &str, table: &[(FailureKind, &str)]) {
    let image = image(name);
    for (kind, message) in table {
        assert_eq!(
            kind_for(message, &image),
            *kind,
            "{message}\nwithout the image: {}",
            without_image(message, &image)
        );
    }
}

/// What containerd 1.6.20 answered to CRI `PullImage` when each fault was provoked. Hosts and names are replaced.
#[test]
fn containerd_1_6_messages_are_classified() {
    check(
        "127.0.0.1:5000/team/app:1",
        &[
            // A registry without that repository, without that tag, without that digest.
            (
                NotFound,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve reference "127.0.0.1:5000/team/app:1": 127.0.0.1:5000/team/app:1: not found"#,
            ),
            // The configuration blob is missing in the registry.
            (
                NotFound,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: could not fetch content descriptor sha256:5c7a990db40517a60e1cd446903598a231264d480609c26998cabf312a987027 (application/vnd.oci.image.config.v1+json) from remote: not found"#,
            ),
            // htpasswd.
            (
                Unauthorized,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve reference "127.0.0.1:5000/team/app:1": pulling from host 127.0.0.1:5000 failed with status code [manifests 1]: 401 Unauthorized"#,
            ),
            (
                Unauthorized,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve reference "127.0.0.1:5000/team/app:1": pulling from host 127.0.0.1:5000 failed with status code [manifests 1]: 403 Forbidden"#,
            ),
            // The token server refuses; then, only the blobs are refused.
            (
                Unauthorized,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve reference "127.0.0.1:5000/team/app:1": failed to authorize: failed to fetch anonymous token: unexpected status: 403 Forbidden"#,
            ),
            (
                Unauthorized,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: unexpected status code http://127.0.0.1:5000/v2/team/app/blobs/sha256:5c7a990db40517a60e1cd446903598a231264d480609c26998cabf312a987027: 403 Forbidden - Server message: unknown: blob fault"#,
            ),
            (
                RateLimited,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve reference "127.0.0.1:5000/team/app:1": pulling from host 127.0.0.1:5000 failed with status code [manifests 1]: 429 Too Many Requests"#,
            ),
            (
                RateLimited,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: unexpected status code http://127.0.0.1:5000/v2/team/app/blobs/sha256:5c7a990db40517a60e1cd446903598a231264d480609c26998cabf312a987027: 429 Too Many Requests - Server message: unknown: blob fault"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve reference "127.0.0.1:5000/team/app:1": pulling from host 127.0.0.1:5000 failed with status code [manifests 1]: 500 Internal Server Error"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve reference "127.0.0.1:5000/team/app:1": pulling from host 127.0.0.1:5000 failed with status code [manifests 1]: 503 Service Unavailable"#,
            ),
            // The token server is gone: not a matter of credentials.
            (
                Unavailable,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve reference "127.0.0.1:5000/team/app:1": failed to authorize: failed to fetch anonymous token: Get "http://127.0.0.1:5000/token?scope=repository%3Ateam%2Fapp%3Apull&service=s": EOF"#,
            ),
            // No listener; a name that does not resolve; plain HTTP instead of TLS; an untrusted certificate.
            (
                Unavailable,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve reference "127.0.0.1:5000/team/app:1": failed to do request: Head "http://127.0.0.1:5000/v2/team/app/manifests/1": dial tcp 127.0.0.1:5000: connect: connection refused"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "registry.invalid/x/y:1": failed to resolve reference "registry.invalid/x/y:1": failed to do request: Head "https://registry.invalid/v2/x/y/manifests/1": dial tcp: lookup registry.invalid on 10.0.0.53:53: no such host"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "vm:5000/team/app:1": failed to resolve reference "vm:5000/team/app:1": failed to do request: Head "https://vm:5000/v2/team/app/manifests/1": tls: first record does not look like a TLS handshake"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "10.255.255.1:5000/x/y:latest": failed to resolve reference "10.255.255.1:5000/x/y:latest": failed to do request: Head "https://10.255.255.1:5000/v2/x/y/manifests/latest": x509: cannot validate certificate for 10.255.255.1 because it doesn't contain any IP SANs"#,
            ),
            // The body is cut, and reset.
            (
                Unavailable,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to read expected number of bytes: unexpected EOF"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: read tcp 127.0.0.1:59244->127.0.0.1:5000: read: connection reset by peer"#,
            ),
            // Corrupt content: the next attempt may get the right one.
            (
                Other,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed commit on ref "config-sha256:5c7a990db40517a60e1cd446903598a231264d480609c26998cabf312a987027": unexpected commit digest sha256:6e3e95d8d60a9df440e42b624facb3c1de5d9c2db0ce777dd15c8ea733dd2e7b, expected sha256:5c7a990db40517a60e1cd446903598a231264d480609c26998cabf312a987027: failed precondition"#,
            ),
            (
                Other,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to unpack image on snapshotter overlayfs: unexpected media type text/html for sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824: not found"#,
            ),
            (
                PlatformMismatch,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": no match for platform in manifest: not found"#,
            ),
            (
                NoSpace,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: write /var/lib/containerd/io.containerd.content.v1.content/ingest/cd0a5861a5de39760a2e8a3ab295806045e9946eda39f7e14fa32df9097b99cf/data: no space left on device"#,
            ),
            (
                InvalidReference,
                r#"failed to parse image reference "UPPER/case": invalid reference format: repository name must be lowercase"#,
            ),
            (
                InvalidReference,
                r#"failed to parse image reference "127.0.0.1:5000/x:": invalid reference format"#,
            ),
            (
                InvalidReference,
                r#"failed to parse image reference "xxxxxxxx": repository name must not be more than 255 characters"#,
            ),
        ],
    );
}

/// What containerd 1.4 to 2.2 answered to others, as their issues tell: moby 52411 and kubernetes 131521 among them.
#[test]
fn other_containerd_messages_are_classified() {
    check(
        "quay.io/org/app:v2",
        &[
            (
                RateLimited,
                r#"failed to pull and unpack image "quay.io/org/app:v2": failed to copy: httpReadSeeker: failed open: unexpected status code https://registry-1.docker.io/v2/org/app/manifests/sha256:8d0bff43db3ce5c528cb6f957520511d263d7cceee012696e4afdc9087919bb9: 429 Too Many Requests - Server message: toomanyrequests: You have reached your pull rate limit. You may increase the limit by authenticating and upgrading: https://www.docker.com/increase-rate-limit"#,
            ),
            (
                Unauthorized,
                r#"failed to pull and unpack image "quay.io/org/app:v2": failed to resolve reference "quay.io/org/app:v2": unexpected status from HEAD request to https://quay.io/v2/org/app/manifests/v2: 403 Forbidden"#,
            ),
            // Docker Hub, for what is private as for what does not exist.
            (
                Unauthorized,
                r#"failed to pull and unpack image "docker.io/org/app:v2": failed to resolve reference "docker.io/org/app:v2": pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed"#,
            ),
            (
                NotFound,
                r#"failed to copy: httpReadSeeker: failed open: content at https://quay.io/v2/org/app/manifests/sha256:34ae38286287fb088ca5c783fbab8b99961bd77218f125907c8fc056d42e3d78 not found: not found"#,
            ),
            // containerd gives up by itself after five minutes without progress.
            (
                Timeout,
                r#"failed to pull and unpack image "quay.io/org/app:v2": failed to copy: httpReadSeeker: failed open: failed to do request: Get "https://quay.io/v2/org/app/blobs/sha256:d0157ca575c725b6dbdc6c7b843b8614963fda6ca619af9932bfbbb39c450c5a": context canceled"#,
            ),
            // A blob that went away under the pull, in containerd's own store.
            (
                Other,
                r#"failed to pull and unpack image "quay.io/org/app:v2": failed to extract layer sha256:4dcab49015d47e8f300ec33400a02cebc7b54cadd09c37e49eccbc655279da90: failed to get reader from content store: content digest sha256:51f5c6a04d83efd2d45c5fd59537218924bc46705e3de6ffc8bc07b51481610b: not found"#,
            ),
            (
                Other,
                r#"failed to pull and unpack image "quay.io/org/app:v2": failed to extract layer sha256:7da916cc58ded8ad75b7b05bcda176201c6b8d401643db3ad712dc27641bd152: failed to get reader from content store: blob sha256:9e2fb2be2cd24f2ab1653409017f0bde5bf633fbf8e63abd0995128aad1e8315 expected at /var/lib/containerd/io.containerd.content.v1.content/blobs/sha256/9e2f: blob not found: not found"#,
            ),
            (
                Other,
                r#"failed to pull and unpack image "quay.io/org/app:v2": failed to extract layer sha256:140b571c235813a8eb5ba7f5f474f8852eef0218d4e5efe99801351d4c76aa6b: operation not permitted: unknown"#,
            ),
            // Made up, from Go's wording: a program that is missing is no image that is missing.
            (
                Other,
                r#"failed to extract layer: failed to start stream processor: exec: "unpigz": executable file not found in $PATH"#,
            ),
        ],
    );
}

/// containerd 2.1.9, whose CRI server pulls by its transfer service. Provoked as those of 1.6 were.
#[test]
fn containerd_2_1_messages_are_classified() {
    check(
        "127.0.0.1:5000/team/app:1",
        &[
            (
                NotFound,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve image: 127.0.0.1:5000/team/app:1: not found"#,
            ),
            (
                NotFound,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app@sha256:0000000000000000000000000000000000000000000000000000000000000000": failed to resolve image: 127.0.0.1:5000/team/app@sha256:0000000000000000000000000000000000000000000000000000000000000000: not found"#,
            ),
            (
                PlatformMismatch,
                r#"get image config descriptor: no match for platform in manifest sha256:ed4ae5cc33ec795f0b387e3cccd18f20cbf8120015c3eb4f17bd93b9430a6cab: not found"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "tls.example/team/app:1": failed to resolve image: failed to do request: Head "https://127.0.0.1:5000/v2/team/app/manifests/1?ns=%5BREDACTED%5D": tls: failed to verify certificate: x509: certificate signed by unknown authority"#,
            ),
            (
                Unauthorized,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve image: pull access denied, repository does not exist or may require authorization: authorization failed: no basic auth credentials"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve image: failed to do request: Head "https://127.0.0.1:5000/v2/team/app/manifests/1": dial tcp 127.0.0.1:5000: connect: connection refused"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "registry.invalid/team/app:1": failed to resolve image: failed to do request: Head "https://registry.invalid/v2/team/app/manifests/1": dial tcp: lookup registry.invalid on 10.0.0.53:53: no such host"#,
            ),
            (
                Unauthorized,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve image: unexpected status from HEAD request to http://127.0.0.1:5000/v2/team/app/manifests/1: 401 Unauthorized"#,
            ),
            (
                Unauthorized,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve image: unexpected status from HEAD request to http://127.0.0.1:5000/v2/team/app/manifests/1: 403 Forbidden"#,
            ),
            (
                RateLimited,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve image: unexpected status from HEAD request to http://127.0.0.1:5000/v2/team/app/manifests/1: 429 Too Many Requests"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve image: unexpected status from HEAD request to http://127.0.0.1:5000/v2/team/app/manifests/1: 500 Internal Server Error"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve image: unexpected status from HEAD request to http://127.0.0.1:5000/v2/team/app/manifests/1: 503 Service Unavailable"#,
            ),
            (
                Unauthorized,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: unexpected status from GET request to http://127.0.0.1:5000/v2/team/app/blobs/sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1: 401 Unauthorized unauthorized: registry prose"#,
            ),
            (
                Unauthorized,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: unexpected status from GET request to http://127.0.0.1:5000/v2/team/app/blobs/sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1: 403 Forbidden denied: registry prose"#,
            ),
            (
                NotFound,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: could not fetch content descriptor sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1 (application/vnd.oci.image.config.v1+json) from remote: not found"#,
            ),
            (
                RateLimited,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: unexpected status from GET request to http://127.0.0.1:5000/v2/team/app/blobs/sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1: 429 Too Many Requests toomanyrequests: registry prose"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: unexpected status from GET request to http://127.0.0.1:5000/v2/team/app/blobs/sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1: 500 Internal Server Error unknown: registry prose"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: unexpected status from GET request to http://127.0.0.1:5000/v2/team/app/blobs/sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1: 503 Service Unavailable unknown: registry prose"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: unexpected status from GET request to http://127.0.0.1:5000/v2/team/app/blobs/sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1: 500 Internal Server Error"#,
            ),
            (
                Unauthorized,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: unexpected status from GET request to http://127.0.0.1:5000/v2/team/app/blobs/sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1: 403 Forbidden"#,
            ),
            (
                RateLimited,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: unexpected status from GET request to http://127.0.0.1:5000/v2/team/app/blobs/sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1: 429 Too Many Requests"#,
            ),
            (
                Unauthorized,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve image: failed to authorize: failed to fetch anonymous token: unexpected status from GET request to http://127.0.0.1:5000/token403?scope=repository%3Ateam%2Fapp%3Apull&service=s: 403 Forbidden"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to resolve image: failed to do request: Head "https://127.0.0.1:5000/v2/team/app/manifests/1": EOF"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: failed to do request: Get "https://127.0.0.1:5000/v2/team/app/blobs/sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1": EOF"#,
            ),
            (
                NotFound,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: could not fetch content descriptor sha256:7e537e903df5bfa9c9de2dc590d2646f8b4aa71dd14877bd3e2eceda829a4618 (text/html) from remote: not found"#,
            ),
            (
                Other,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed commit on ref "config-sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1": unexpected commit digest sha256:e7cfd4d425aea97b121ab5e8ff33dff0a7eababce5135e551fb246b1473d9b5d, expected sha256:41e7e8a92d9bc7f8085caa053b3009d383df118c7a68a9f2a044c0cb529760e1: failed precondition"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": short read: expected 191 bytes but got 95: unexpected EOF"#,
            ),
            (
                Unavailable,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": short read: expected 96 bytes but got 0: unexpected EOF"#,
            ),
            (
                Other,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: unable to discard to offset"#,
            ),
            // A full disk: while downloading, before a download begins, while unpacking.
            (
                NoSpace,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: write /var/lib/containerd/io.containerd.content.v1.content/ingest/6fcddba370836391818a19b852a160f6beb8d6a54fc03d9b1c74dcecc4f3172b/data: no space left on device"#,
            ),
            (
                NoSpace,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": write /var/lib/containerd/io.containerd.content.v1.content/ingest/c3a34a6a306088f7791506ca0827365ba68b04e25cb31a2b4ee19700c58f7cbc/ref: no space left on device"#,
            ),
            (
                NoSpace,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to extract layer (application/vnd.oci.image.layer.v1.tar+gzip sha256:76ca2d7512d8a772173e37eb461671983a8f2a7d7dd8ac789a149932999cd342) to overlayfs as "extract-228850803-SXeK sha256:2af5642e22635c6b916e7ec4ff36a094910c12f1af196eda102196c276355233": mount callback failed on /var/lib/containerd/tmpmounts/containerd-mount514169941: write /var/lib/containerd/tmpmounts/containerd-mount514169941/zeros: no space left on device"#,
            ),
            // Layers that are no gzip, or whose content is not what the configuration says.
            (
                Other,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to extract layer (application/vnd.oci.image.layer.v1.tar+gzip sha256:90b58d4f5a5bc44608c41072ad6ad962ef373ad23189f529c56d4d3c44e1f24c) to overlayfs as "extract-198314161-jz-- sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881": mount callback failed on /var/lib/containerd/tmpmounts/containerd-mount296254568: archive/tar: invalid tar header"#,
            ),
            (
                Other,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": wrong diff id calculated on extraction "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881""#,
            ),
        ],
    );
    check(
        "registry.invalid/team/app:1",
        &[(
            InvalidReference,
            r#"failed to parse image reference "registry.invalid/team/app:1": invalid reference format"#,
        )],
    );
}

/// A registry's text never leads to a kind that can only occur on the node. The first rows were provoked.
#[test]
fn registry_message_is_not_local_failure() {
    check(
        "127.0.0.1:5000/team/app:1",
        &[
            (
                Unavailable,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: unexpected status code http://127.0.0.1:5000/v2/team/app/blobs/sha256:e647: 500 Internal Server Error - Server message: denied: open /data/upload: disk quota exceeded"#,
            ),
            (
                Unauthorized,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: unexpected status code http://127.0.0.1:5000/v2/team/app/blobs/sha256:e647: 403 Forbidden - Server message: unknown: no space left on device"#,
            ),
            (
                Unauthorized,
                r#"failed to pull and unpack image "127.0.0.1:5000/team/app:1": failed to copy: httpReadSeeker: failed open: unexpected status from GET request to http://127.0.0.1:5000/v2/team/app/blobs/sha256:e647: 403 Forbidden denied: write /x: no space left on device"#,
            ),
            (
                Unauthorized,
                "Error response from daemon: pull access denied for 127.0.0.1:5000/team/app, repository does not exist or may require 'docker login': denied: write /x: no space left on device",
            ),
            // Go prints the reason phrase of a status line.
            (
                Other,
                r#"failed to resolve reference "127.0.0.1:5000/team/app:1": pulling from host 127.0.0.1:5000 failed with status code [manifests 1]: 500 write /x: no space left on device"#,
            ),
            (
                Other,
                "initializing source docker://127.0.0.1:5000/team/app:1: reading manifest 1 in 127.0.0.1:5000/team/app: unknown: write /x: no space left on device",
            ),
            (
                Unauthorized,
                "reading manifest 1 in 127.0.0.1:5000/team/app: denied: Source image rejected: no match for platform: invalid reference format",
            ),
            // The name of a file in a layer.
            (
                Other,
                "failed to extract layer sha256:2d71: mount callback failed on /tmp/m: write /tmp/m/a: no space left on device: input/output error: unknown",
            ),
            (Other, "there is no space left on device"),
        ],
    );
}

/// CRI-O. Texts of its image library were provoked with skopeo 1.9, which has the same; the rest is from issues (cri-o
/// 2331, 3626, 5282, 7007 and 8760, FusionAuth/charts 118, minikube 19395, containers/image 1953).
#[test]
fn crio_messages_are_classified() {
    check(
        "127.0.0.1:5000/team/app:latest",
        &[
            (
                NotFound,
                "initializing source docker://127.0.0.1:5000/team/app:latest: reading manifest latest in 127.0.0.1:5000/team/app: name unknown",
            ),
            (
                NotFound,
                "initializing source docker://127.0.0.1:5000/team/app:latest: reading manifest latest in 127.0.0.1:5000/team/app: manifest unknown: manifest unknown",
            ),
            (
                NotFound,
                "reading blob sha256:05e189acc9cbdeac7182baf2d43c7b1c0e648390eb169c8a017ecca836d7a065: Error fetching blob: invalid status code from registry 404 (Not Found)",
            ),
            (
                Unauthorized,
                "initializing source docker://127.0.0.1:5000/team/app:latest: reading manifest latest in 127.0.0.1:5000/team/app: unauthorized: authentication required",
            ),
            (
                Unauthorized,
                "initializing source docker://127.0.0.1:5000/team/app:latest: reading manifest latest in 127.0.0.1:5000/team/app: denied",
            ),
            (
                Unauthorized,
                "Requesting bearer token: invalid status code from registry 403 (Forbidden)",
            ),
            (
                Unauthorized,
                "Error reading manifest latest in docker.io/crio/busybox: errors:\ndenied: requested access to the resource is denied\nunauthorized: authentication required",
            ),
            (
                RateLimited,
                "Error reading manifest v3.20.0 in docker.io/calico/kube-controllers: toomanyrequests: You have reached your pull rate limit. You may increase the limit by authenticating and upgrading: https://www.docker.com/increase-rate-limit",
            ),
            (
                Unavailable,
                "initializing source docker://127.0.0.1:5000/team/app:latest: reading manifest latest in 127.0.0.1:5000/team/app: received unexpected HTTP status: 503 Service Unavailable",
            ),
            (
                Unavailable,
                r#"initializing source docker://127.0.0.1:5000/team/app:latest: pinging container registry 127.0.0.1:5000: Get "http://127.0.0.1:5000/v2/": dial tcp 127.0.0.1:5000: connect: connection refused"#,
            ),
            (
                Unavailable,
                r#"initializing source docker://registry.invalid/x/y:latest: pinging container registry registry.invalid: Get "https://registry.invalid/v2/": dial tcp: lookup registry.invalid on 10.0.0.53:53: no such host"#,
            ),
            (
                Unavailable,
                "writing blob: happened during read: unexpected EOF",
            ),
            (
                Timeout,
                "pinging docker registry returned: Get http://registry-1.docker.io/v2/: dial tcp 34.199.40.84:80: i/o timeout",
            ),
            (
                Timeout,
                "copying system image from manifest list: copying config: context canceled",
            ),
            (
                PlatformMismatch,
                r#"choosing an image from manifest list docker://127.0.0.1:5000/team/app:latest: no image found in image index for architecture amd64, variant "", OS linux"#,
            ),
            (
                PlatformMismatch,
                "Error choosing image instance: no image found in manifest list for architecture arm, variant v8, OS linux",
            ),
            (
                SignatureRejected,
                "Source image rejected: Running image docker://127.0.0.1:5000/team/app:latest is rejected by policy.",
            ),
            (
                SignatureRejected,
                "copying system image from manifest list: Source image rejected: A signature was required, but no signature exists",
            ),
            // The CRI's own name of the error, before the library's text.
            (
                SignatureRejected,
                "SignatureValidationFailed: A signature was required, but no signature exists",
            ),
            (
                NoSpace,
                "copying system image from manifest list: writing blob: write /var/tmp/dir-put-blob1749370385: no space left on device",
            ),
            (
                InvalidReference,
                "short name mode is enforcing, but image name fusionauth/fusionauth-app:1.60.2 returns ambiguous list",
            ),
            (
                InvalidReference,
                r#"short-name "kicbase/echo-server:1.0" did not resolve to an alias and no unqualified-search registries are defined in "/etc/containers/registries.conf""#,
            ),
            (
                Other,
                "writing blob: happened during read: Digest did not match, expected sha256:05e189acc9cbdeac7182baf2d43c7b1c0e648390eb169c8a017ecca836d7a065, got sha256:699f6f091a429528716c569bfc648f5dc9d83a4dfbff4bc2ac187d6dbb164b62",
            ),
            (
                Other,
                "invalid character 'h' looking for beginning of value",
            ),
        ],
    );
}

/// cri-dockerd hands on what Docker says (k8s-kubectl 157, kubernetes/website 14257, minikube 20613 and 21452).
#[test]
fn cri_dockerd_messages_are_classified() {
    check(
        "lachlanevenson/k8s-kubectl:v1.18.20",
        &[
            (
                NotFound,
                "Error response from daemon: manifest for lachlanevenson/k8s-kubectl:v1.18.20 not found: manifest unknown: manifest unknown",
            ),
            (
                Unauthorized,
                "Error response from daemon: pull access denied for lachlanevenson/k8s-kubectl, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
            ),
            (
                Timeout,
                r#"Error response from daemon: Get "https://registry-1.docker.io/v2/": net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)"#,
            ),
            (
                Timeout,
                r#"Error response from daemon: Get "https://gcr.io/v2/": context deadline exceeded"#,
            ),
            (
                PlatformMismatch,
                "Error response from daemon: no matching manifest for linux/amd64 in the manifest list entries",
            ),
            (
                NoSpace,
                "failed to register layer: Error processing tar file(exit status 1): write /opt/conda/lib/libtorch.so: no space left on device",
            ),
        ],
    );
}

/// The image's name must not decide, wherever it stands in the text.
#[test]
fn hostile_names_never_decide_kind() {
    let name = "example.invalid/429-toomanyrequests:no-space-left";
    check(
        name,
        &[
            (
                Unavailable,
                r#"failed to pull and unpack image "example.invalid/429-toomanyrequests:no-space-left": failed to resolve reference "example.invalid/429-toomanyrequests:no-space-left": failed to do request: Head "https://example.invalid/v2/429-toomanyrequests/manifests/no-space-left": dial tcp: lookup example.invalid on 10.0.0.53:53: no such host"#,
            ),
            (
                NotFound,
                r#"failed to resolve reference "example.invalid/429-toomanyrequests:no-space-left": example.invalid/429-toomanyrequests:no-space-left: not found"#,
            ),
            (
                Other,
                "something broke for example.invalid/429-toomanyrequests:no-space-left",
            ),
        ],
    );
    check(
        "toomanyrequests:unauthorized",
        &[
            (
                NotFound,
                "manifest for toomanyrequests:unauthorized not found: manifest unknown",
            ),
            (
                NotFound,
                "initializing source docker://toomanyrequests:unauthorized: reading manifest unauthorized in docker.io/library/toomanyrequests: manifest unknown",
            ),
            (
                Unauthorized,
                "pull access denied for toomanyrequests, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
            ),
            (
                Unauthorized,
                r#"failed to resolve reference "docker.io/library/toomanyrequests:unauthorized": pulling from host registry-1.docker.io failed with status code [manifests unauthorized]: 401 Unauthorized"#,
            ),
            (
                NotFound,
                r#"[mirror.example.com/library/toomanyrequests:unauthorized: manifest unknown]"#,
            ),
        ],
    );
    check(
        "registry.example/x509:certificate@sha256:0000000000000000000000000000000000000000000000000000000000000000",
        &[(
            NotFound,
            r#"failed to resolve reference "registry.example/x509@sha256:0000000000000000000000000000000000000000000000000000000000000000": registry.example/x509:certificate: not found"#,
        )],
    );
    check(
        "eof/denied:timeout",
        &[
            (
                Unauthorized,
                "reading manifest timeout in docker.io/eof/denied: unauthorized: authentication required",
            ),
            (
                Unavailable,
                r#"Get "https://registry-1.docker.io/v2/eof/denied/manifests/timeout": unexpected EOF"#,
            ),
        ],
    );
}

#[test]
fn removing_image_keeps_other_text() {
    let image = image("nginx:1.27");
    for text in [
        "",
        "context deadline exceeded",
        "a\n\"b\" \\ 'c'  ünïcode\t",
    ] {
        assert_eq!(without_image(text, &image), text);
    }
    assert_eq!(
        without_image(
            "pull nginx:1.27: failed: docker.io/library/nginx: x",
            &image
        ),
        "pull : failed: : x"
    );
}

#[test]
fn shown_texts_are_single_line_redacted() {
    for (text, expected) in [
        (
            " errors:\n  denied: no\r\n\r\nunauthorized: no\n",
            "errors: denied: no unauthorized: no",
        ),
        ("a \u{1b}[31mred\u{7} b", "a  [31mred  b"),
        (
            r#"Get "https://bucket.example/blob?X-Amz-Credential=AKIA&X-Amz-Signature=abc&ns=docker.io": EOF"#,
            r#"Get "https://bucket.example/blob?X-Amz-Credential=…&X-Amz-Signature=…&ns=docker.io": EOF"#,
        ),
        (
            "GET https://host/b?sig=abc%3D: 403 Forbidden",
            "GET https://host/b?sig=…: 403 Forbidden",
        ),
        (
            "Get http://user:secret@host:5000/v2/: EOF",
            "Get http://…@host:5000/v2/: EOF",
        ),
        (
            r#"Get "https://auth.example/token?scope=repository%3Aa%2Fb%3Apull&service=s": EOF"#,
            r#"Get "https://auth.example/token?scope=repository%3Aa%2Fb%3Apull&service=s": EOF"#,
        ),
        ("at https://host/path@1?", "at https://host/path@1?"),
    ] {
        assert_eq!(tidy(text), expected);
    }
}

proptest::proptest! {
    #[test]
    fn classifier_never_panics(text in ".{0,200}") {
        let image = image("example/app:1");
        let _ = kind_for(&text, &image);
        let _ = tidy(&text);
    }

    /// Whatever the name, an error that says nothing else stays `other`.
    #[test]
    fn names_alone_decide_no_kind(
        repository in "(denied|eof|unauthorized|x509|timeout|certificate|toomanyrequests)(/(forbidden|goaway|eof))?",
        tag in "(unauthorized|denied|eof|forbidden|goaway|timeout|toomanyrequests)",
    ) {
        let name = format!("{repository}:{tag}");
        let image = image(&name);
        let normalized = image.normalized();
        let path = image.repository();
        for text in [
            format!("it broke for {name}"),
            format!("failed: \"{normalized}\": it broke"),
            format!("Head \"https://registry-1.docker.io/v2/{path}/manifests/{tag}\": it broke"),
            format!("reading manifest {tag} in docker.io/{path}: it broke"),
        ] {
            proptest::prop_assert_eq!(kind_for(&text, &image), FailureKind::Other, "{}", text);
        }
    }
}
