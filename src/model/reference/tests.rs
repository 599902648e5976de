use super::*;
use crate::model::platform::Platform;

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn normal(text: &str) -> String {
    Reference::parse(text).expect(text).normalized().to_owned()
}

#[test]
fn spellings_share_one_normalized_form() {
    let digest = format!("sha256:{HEX}");
    for (written, expected) in [
        ("nginx", "docker.io/library/nginx:latest".to_owned()),
        ("nginx:latest", "docker.io/library/nginx:latest".to_owned()),
        ("library/nginx", "docker.io/library/nginx:latest".to_owned()),
        (
            "docker.io/nginx",
            "docker.io/library/nginx:latest".to_owned(),
        ),
        (
            "index.docker.io/nginx",
            "docker.io/library/nginx:latest".to_owned(),
        ),
        ("bitnami/redis:7", "docker.io/bitnami/redis:7".to_owned()),
        ("localhost/a", "localhost/a:latest".to_owned()),
        ("localhost:5000/a/b:c", "localhost:5000/a/b:c".to_owned()),
        ("[::1]:5000/a", "[::1]:5000/a:latest".to_owned()),
        ("a__b/c-d.e--f", "docker.io/a__b/c-d.e--f:latest".to_owned()),
        (
            &format!("nginx@{digest}"),
            format!("docker.io/library/nginx@{digest}"),
        ),
        (
            &format!("nginx:1@{digest}"),
            format!("docker.io/library/nginx@{digest}"),
        ),
        (&HEX[1..], format!("docker.io/library/{}:latest", &HEX[1..])),
    ] {
        assert_eq!(normal(written), expected, "{written}");
    }
}

#[test]
fn malformed_reference_names_the_wrong_part() {
    use ReferenceError as E;
    let long = "a".repeat(300);
    for (text, expected) in [
        ("", E::Empty),
        (" nginx", E::Blank),
        ("nginx latest", E::Blank),
        ("nginx\u{1b}[31m", E::Blank),
        ("ngïnx", E::NotAscii),
        ("UPPER/case", E::UpperCase),
        ("docker.io/UPPER", E::UpperCase),
        ("Nginx", E::UpperCase),
        ("nginx:", E::Tag),
        ("nginx:-a", E::Tag),
        (&format!("nginx:{}", "t".repeat(129)), E::Tag),
        ("nginx:a:b", E::Tag),
        ("-nginx", E::Repository),
        ("nginx-", E::Repository),
        ("a..b", E::Repository),
        ("a___b", E::Repository),
        ("a//b", E::Repository),
        ("/nginx", E::Repository),
        ("quay.io/", E::Repository),
        ("-x.io/a", E::Host),
        ("x.io:/a", E::Host),
        ("x.io:99999/a", E::Host),
        ("[::1/a", E::Host),
        ("nginx@sha256:abc", E::Digest),
        (&format!("nginx@md5:{HEX}"), E::Digest),
        (&format!("nginx@sha256:{}", HEX.to_uppercase()), E::Digest),
        (HEX, E::ImageId),
        (&format!("sha256:{HEX}"), E::ImageId),
        (&long, E::TooLong),
    ] {
        assert_eq!(Reference::parse(text), Err(expected), "{text:?}");
    }
}

#[test]
fn prefixes_match_hosts_and_repository_starts() {
    for (prefix, image, expected) in [
        ("nginx", "nginx:1.27", true),
        ("nginx", "docker.io/library/nginx", true),
        ("nginx:1", "nginx:1.27", true),
        ("nginx:2", "nginx:1.27", false),
        ("nginx", "quay.io/nginx", false),
        ("docker.io", "nginx", true),
        ("docker.io/nginx", "nginx", true),
        ("library/", "nginx", true),
        ("bitnami/", "bitnami/redis", true),
        ("bitnami/", "nginx", false),
        ("quay.io", "quay.io/a/b", true),
        ("quay.io/", "quay.io/a/b", true),
        ("quay.io", "quay.io.evil.example/a", false),
        ("quay.io/a", "quay.io.evil.example/a", false),
        ("quay.io/team-", "quay.io/team-red/app", true),
        ("quay.io/team-", "evil.example/quay.io/team-red", false),
        ("localhost:5000", "localhost:5000/a", true),
        ("localhost:5000", "localhost:50001/a", false),
    ] {
        let reference = Reference::parse(image).expect(image);
        let prefix = Prefix::parse(prefix).expect(prefix);
        assert_eq!(prefix.matches(&reference), expected, "{prefix} {image}");
    }
    for bad in ["", "/a", ":tag", "a b", "-x", "ä"] {
        assert_eq!(Prefix::parse(bad), None, "{bad:?}");
    }
}

#[test]
fn platforms_follow_the_image_specification() {
    let p = |s: &str| Platform::parse(s).expect(s);
    assert!(p("linux/arm64/v8").suits(&p("linux/arm64")));
    assert!(p("linux/arm64").suits(&p("linux/aarch64/v8")));
    assert!(p("linux/amd64").suits(&p("linux/amd64")));
    assert!(!p("linux/arm/v6").suits(&p("linux/arm/v7")));
    assert!(!p("windows/amd64").suits(&p("linux/amd64")));
    for bad in [
        "",
        "linux",
        "linux/",
        "a/b/c/d",
        "Linux/amd64",
        "linux /amd64",
    ] {
        assert_eq!(Platform::parse(bad), None, "{bad:?}");
    }
}

#[test]
fn prefixes_that_match_nothing_are_refused() {
    for bad in [
        "https://quay.io",
        "http://quay.io/team",
        "docker://nginx",
        "Nginx",
        "quay.io/Team",
        "Team/app",
        "quay.io:port/team",
        "quay..io/team",
        "quay.io//team",
        "quay.io/a..b",
        "nginx:-1",
        "a:b:c",
        "nginx@SHA256:ab",
    ] {
        assert_eq!(Prefix::parse(bad), None, "{bad:?}");
    }
}

#[test]
fn prefix_hosts_ignore_case() {
    for (prefix, image, expected) in [
        ("Quay.io", "quay.io/a/b", true),
        ("quay.io", "Quay.io/a/b", true),
        ("QUAY.IO/a", "quay.io/a/b", true),
        ("Docker.io", "nginx", true),
        ("Index.Docker.io/library/", "nginx", true),
        ("docker.io", "Index.Docker.io/a", true),
        ("Registry:5000", "registry:5000/a", true),
        ("Quay.io", "quay.io.evil.example/a", false),
        ("nginx:RC", "nginx:RC1", true),
        ("nginx:rc", "nginx:RC1", false),
    ] {
        let reference = Reference::parse(image).expect(image);
        let prefix = Prefix::parse(prefix).expect(prefix);
        assert_eq!(prefix.matches(&reference), expected, "{prefix} {image}");
    }
}

#[test]
fn registry_is_named_by_hosts_alone() {
    for (text, expected) in [
        ("nginx", false),
        ("team/nginx:1", false),
        ("docker.io/nginx", true),
        ("index.docker.io/library/nginx", true),
        ("localhost/a", true),
        ("quay.io/a/b:1", true),
        ("localhost:5000", false),
    ] {
        let reference = Reference::parse(text).expect(text);
        assert_eq!(reference.names_registry(), expected, "{text}");
    }
}
