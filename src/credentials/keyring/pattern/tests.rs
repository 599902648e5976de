//! The kubelet's documented rules, case by case.

use proptest::prelude::*;

use super::*;

fn image(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

/// A key, an image, and whether the key's credential is given to it.
const KEYS: &[(&str, &str, bool)] = &[
    // Hosts are equal as a whole.
    ("registry.company.com", "registry.company.com/x", true),
    ("registry.company.com", "registry.company.com/a/b/c:1", true),
    (
        "registry.company.com",
        "evil.example/registry.company.com/x",
        false,
    ),
    (
        "registry.company.com",
        "registry.company.com.evil.example/x",
        false,
    ),
    ("registry.company.com", "evil-registry.company.com/x", false),
    ("registry.company.com", "my.registry.company.com/x", false),
    ("company.com", "registry.company.com/x", false),
    ("registry.company.com", "quay.io/x", false),
    ("registry.company.com", "nginx", false),
    (
        "registry.company.com/x",
        "evil.example/registry.company.com/x",
        false,
    ),
    // A scheme, /v1/ and /v2/ count for nothing.
    (
        "https://hello.kubernetes.io",
        "hello.kubernetes.io/foo/bar",
        true,
    ),
    (
        "http://hello.kubernetes.io",
        "hello.kubernetes.io/foo/bar",
        true,
    ),
    (
        "https://hello.kubernetes.io/",
        "hello.kubernetes.io/foo/bar",
        true,
    ),
    (
        "https://hello.kubernetes.io/v1/",
        "hello.kubernetes.io/foo/bar",
        true,
    ),
    (
        "https://hello.kubernetes.io/v2/",
        "hello.kubernetes.io/foo/bar",
        true,
    ),
    (
        "hello.kubernetes.io/v2/",
        "hello.kubernetes.io/foo/bar",
        true,
    ),
    (
        "https://hello.kubernetes.io/v2/foo",
        "hello.kubernetes.io/foo/bar",
        true,
    ),
    (
        "https://hello.kubernetes.io/v2/foo",
        "hello.kubernetes.io/bar",
        false,
    ),
    (
        "https://hello.kubernetes.io/v1",
        "hello.kubernetes.io/foo/bar",
        false,
    ),
    (
        "https://hello.kubernetes.io/v3/",
        "hello.kubernetes.io/foo/bar",
        false,
    ),
    (
        "ftp://hello.kubernetes.io",
        "hello.kubernetes.io/foo/bar",
        false,
    ),
    // Globs, part by part.
    ("https://*.docker.io", "prefix.docker.io/foo/bar", true),
    ("https://prefix.*.io", "prefix.docker.io/foo/bar", true),
    ("https://prefix.docker.*", "prefix.docker.io/foo/bar", true),
    ("https://*.docker.io/v1/", "prefix.docker.io/path", true),
    ("*.kubernetes.io", "prefix.kubernetes.io/x", true),
    ("*-good.kubernetes.io", "prefix-good.kubernetes.io/x", true),
    ("*-good.kubernetes.io", "prefix-bad.kubernetes.io/x", false),
    ("*.kubernetes.io", "kubernetes.io/x", false),
    ("*.kubernetes.io", "a.b.kubernetes.io/x", false),
    ("*.*.kubernetes.io", "prefix.kubernetes.io/x", false),
    ("*.*.kubernetes.io", "a.b.kubernetes.io/x", true),
    ("*", "localhost/x", true),
    ("*", "quay.io/x", false),
    ("*.*", "quay.io/x", true),
    ("k*.io", "quay.io/x", false),
    ("q*y.io", "quay.io/x", true),
    ("q**y.io", "quay.io/x", true),
    ("q*a*.io", "quay.io/x", true),
    (
        "*.dkr.ecr.*.amazonaws.com",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com/app",
        true,
    ),
    (
        "*.dkr.ecr.*.amazonaws.com",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com.cn/app",
        false,
    ),
    ("https://suffix.*.io", "prefix.docker.io/foo/bar", false),
    (
        "https://prefix.docker.c*",
        "prefix.docker.io/foo/bar",
        false,
    ),
    ("https://*.docker.com", "prefix.docker.io/foo/bar", false),
    ("quay.i?", "quay.io/x", true),
    ("quay.?", "quay.io/x", false),
    ("qua[a-z].io", "quay.io/x", true),
    ("qua[a-x].io", "quay.io/x", false),
    ("qua[^a-x].io", "quay.io/x", true),
    ("qua[^y].io", "quay.io/x", false),
    ("qua[xy].io", "quay.io/x", true),
    ("q[u-]ay.io", "quay.io/x", false),
    ("qua[y.io", "quay.io/x", false),
    ("qua[].io", "quay.io/x", false),
    ("qu\\ay.io", "quay.io/x", true),
    ("quay\\", "quay.io/x", false),
    ("qu\\*y.io", "quay.io/x", false),
    // Ports are equal, and no globs.
    ("localhost:5000", "localhost:5000/x", true),
    ("localhost:5000", "localhost:5001/x", false),
    ("localhost:5000", "localhost/x", false),
    ("localhost", "localhost:5000/x", false),
    ("*.docker.io:8888", "prefix.docker.io:8888/foo/bar", true),
    (
        "*.kubernetes.io:1234/blah",
        "prefix.kubernetes.io:1111/blah",
        false,
    ),
    (
        "*.docker.io:1111",
        "prefix.docker.io:1111/path/foo/bar",
        true,
    ),
    ("registry.io:443", "registry.io/x", false),
    ("[::1]:5000", "[::1]:5000/x", true),
    ("[::1]", "[::1]/x", true),
    ("[::1]:5000", "[::2]:5000/x", false),
    // The path is the beginning of the image's, as a text.
    ("*.kubernetes.io/blah", "prefix.kubernetes.io/blah", true),
    ("prefix.*.io/foo", "prefix.kubernetes.io/foo/bar", true),
    ("quay.io/coreos", "quay.io/coreos/etcd:v3", true),
    ("quay.io/coreos", "quay.io/coreos2/etcd", true),
    ("quay.io/coreos/", "quay.io/coreos2/etcd", false),
    ("quay.io/coreos/", "quay.io/coreos/etcd", true),
    ("quay.io/coreos", "quay.io/other/coreos", false),
    ("quay.io/core*", "quay.io/coreos/etcd", false),
    ("quay.io/coreos/etcd:v3", "quay.io/coreos/etcd:v3", false),
    ("quay.io/coreos?x=y#z", "quay.io/coreos/etcd", true),
    ("https://user:pass@quay.io", "quay.io/x", true),
    ("https://quay.io@evil.example", "quay.io/x", false),
    // Docker Hub.
    ("docker.io", "nginx", true),
    ("docker.io/library", "nginx:1.27", true),
    ("docker.io/library/nginx", "nginx", true),
    ("docker.io/nginx", "nginx", false),
    ("https://index.docker.io/v1/", "nginx", true),
    ("index.docker.io", "nginx", true),
    ("https://index.docker.io/v1/", "docker.io/org/app", true),
    (
        "https://index.docker.io/v1/",
        "index.docker.io/org/app",
        true,
    ),
    (
        "https://index.docker.io/v1/",
        "org/app@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        true,
    ),
    (
        "https://index.docker.io/v1/",
        "world.mesos.org/foo/bar",
        false,
    ),
    (
        "https://index.docker.io/v1/",
        "myhostdocker.io/foo/bar",
        false,
    ),
    (
        "https://index.docker.io/v1/",
        "registry:5000/foo/bar",
        false,
    ),
    (
        "https://index.docker.io/v1/",
        "evil.example/index.docker.io/x",
        false,
    ),
    // The kubelet would give this one Docker Hub's credential, for want of a dot. It is not Docker Hub's.
    ("https://index.docker.io/v1/", "localhost/foo", false),
    ("https://index.docker.io/v1/org", "docker.io/org/app", false),
    ("registry-1.docker.io", "nginx", false),
];

#[test]
fn keys_match_images_like_the_kubelet() {
    for (key, name, wanted) in KEYS {
        let keys: Vec<Pattern> = Pattern::key(key).into_iter().collect();
        let found = !select(keys.iter(), |p| p, &image(name)).is_empty();
        assert_eq!(found, *wanted, "{key} for {name}");
    }
}

#[test]
fn match_images_keep_their_spelling() {
    let cases = [
        (
            "*.dkr.ecr.*.amazonaws.com",
            "1.dkr.ecr.us-east-1.amazonaws.com/a",
            true,
        ),
        ("public.ecr.aws", "public.ecr.aws/nginx/nginx", true),
        ("*.azurecr.io", "company.azurecr.io/a", true),
        ("gcr.io", "gcr.io/a", true),
        ("*.gcr.io", "gcr.io/a", false),
        ("*.pkg.dev", "europe-docker.pkg.dev/p/r/a", true),
        ("*.*.registry.io", "a.b.registry.io/x", true),
        ("registry.io:8080/path", "registry.io:8080/path/x", true),
        ("registry.io:8080/path", "registry.io/path/x", false),
        ("registry.io/", "registry.io/x", true),
        ("registry.io/v2/", "registry.io/x", false),
        ("docker.io", "nginx", true),
        // For a plugin's images there is no fallback.
        ("index.docker.io", "nginx", false),
    ];
    for (glob, name, wanted) in cases {
        let matches = Pattern::glob(glob).unwrap().matches(&image(name));
        assert_eq!(matches, wanted, "{glob} for {name}");
    }
    // A scheme is no part of a host: the kubelet takes it, and finds no image for it.
    let glob = Pattern::glob("https://registry.io").unwrap();
    assert!(!glob.matches(&image("registry.io/x")));
}

#[test]
fn unmatchable_key_is_malformed() {
    for key in [
        "",
        "/",
        "https://",
        "https:///x",
        ":5000",
        "a:b",
        "a:1:2",
        "a b",
        "a\n",
        "a#b",
        "%61.io",
    ] {
        assert_eq!(Pattern::key(key), Err(PatternError), "{key:?}");
    }
}

#[test]
fn longest_match_precedes_docker_hub_key() {
    let keys = |texts: &[&str]| -> Vec<Pattern> {
        texts.iter().map(|t| Pattern::key(t).unwrap()).collect()
    };
    let order = |texts: &[&str], name: &str| -> Vec<String> {
        let keys = keys(texts);
        let found = select(keys.iter(), |p| p, &image(name));
        found.iter().map(|p| p.as_key().to_owned()).collect()
    };
    assert_eq!(
        order(
            &[
                "quay.io",
                "*.io",
                "https://quay.io/coreos/etcd",
                "gcr.io",
                "quay.io/coreos"
            ],
            "quay.io/coreos/etcd"
        ),
        ["quay.io/coreos/etcd", "quay.io/coreos", "quay.io", "*.io"]
    );
    let hub = &["https://index.docker.io/v1/", "docker.io"];
    assert_eq!(order(hub, "nginx"), ["docker.io"]);
    assert_eq!(order(&hub[..1], "nginx"), ["index.docker.io"]);
    assert!(order(hub, "quay.io/nginx").is_empty());
}

proptest! {
    #[test]
    fn key_matching_never_panics_or_hangs(key in "\\PC{0,60}", glob in "[*?\\[\\]^a\\\\-]{0,40}") {
        let image = image("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.io/x");
        for text in [key, format!("{glob}.io")] {
            for pattern in [Pattern::key(&text), Pattern::glob(&text)].into_iter().flatten() {
                let _ = pattern.concerns(&image);
            }
        }
    }

    #[test]
    fn plain_host_matches_only_itself(a in "[a-z]{1,6}\\.[a-z]{2,3}", b in "[a-z]{1,6}\\.[a-z]{2,3}") {
        let pattern = Pattern::key(&a).unwrap();
        let named = format!("{b}/{a}/x");
        prop_assert_eq!(pattern.matches(&image(&named)), a == b);
    }
}
