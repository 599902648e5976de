use super::*;

#[test]
fn docker_hub_maps_to_its_endpoint() {
    assert_eq!(served_at("docker.io"), "registry-1.docker.io");
    assert_eq!(served_at("quay.io"), "quay.io");
}

#[test]
fn lookalike_hosts_are_not_loopback() {
    for host in [
        "localhost",
        "localhost:5000",
        "127.0.0.1",
        "127.9.9.9:1",
        "[::1]",
        "[::1]:5000",
    ] {
        assert!(is_loopback(host), "{host}");
    }
    for host in [
        "localhost.example",
        "128.0.0.1",
        "127.0.0.1.example",
        "[::2]:5000",
        "registry:5000",
    ] {
        assert!(!is_loopback(host), "{host}");
    }
}

#[test]
fn redirect_never_leaves_tls_or_http() {
    let hop = |from: &str, to: &str| {
        let location = HeaderValue::try_from(to).unwrap();
        next_hop(&Url::parse(from).unwrap(), &location).map(String::from)
    };
    let from = "https://r.example/v2/a/blobs/x";
    for (to, expected) in [
        (
            "https://s3.example/x?sig=1",
            Some("https://s3.example/x?sig=1"),
        ),
        ("/other", Some("https://r.example/other")),
        ("//cdn.example/x", Some("https://cdn.example/x")),
        (
            "https://user:word@s3.example/x",
            Some("https://s3.example/x"),
        ),
        ("http://s3.example/x", None),
        ("file:///etc/passwd", None),
        ("data:text/plain,x", None),
        ("https://", None),
    ] {
        assert_eq!(hop(from, to).ok().as_deref(), expected, "{to}");
    }
    assert!(hop("http://127.0.0.1:1/", "http://127.0.0.1:2/").is_ok());
    assert!(hop("http://127.0.0.1:1/", "ftp://127.0.0.1:2/").is_err());
}
