use tempfile::TempDir;

use super::*;

struct Certs(TempDir);

impl Certs {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn dir(&self) -> HostDir {
        HostDir {
            path: self.0.path().to_str().unwrap().to_owned(),
            is_certain: true,
            has_more: false,
        }
    }

    fn hosts(&self, registry: &str) -> Result<Vec<Host>, Unsupported> {
        hosts(&self.dir(), registry)
    }
}

fn bases(hosts: &[Host]) -> Vec<&str> {
    let bases = hosts.iter().map(|host| &host.endpoint);
    let text = |e: &'_ Option<Endpoint>| e.is_some();
    assert!(bases.clone().all(text));
    hosts
        .iter()
        .map(|host| host.endpoint.as_ref().unwrap().base.as_str())
        .collect()
}

fn parsed(text: &str, registry: &str) -> Result<Vec<Host>, Unsupported> {
    parse(text, Path::new("/nowhere"), registry)
}

#[test]
fn unconfigured_registry_is_asked_itself() {
    let certs = Certs::new();
    certs.put("other.example/hosts.toml", "server = \"https://x.example\"");
    assert_eq!(certs.hosts("registry.example").unwrap(), [Host::own()]);
    let none = HostDir {
        path: String::new(),
        is_certain: true,
        has_more: false,
    };
    assert_eq!(hosts(&none, "registry.example").unwrap(), [Host::own()]);
}

#[test]
fn directory_that_is_not_mounted_is_unsupported() {
    let certs = Certs::new();
    let at = |path: &str| HostDir {
        path: format!("{}{path}", certs.dir().path),
        ..certs.dir()
    };
    assert_eq!(
        hosts(&at("/absent"), "registry.example").unwrap(),
        [Host::own()]
    );
    hosts(&at("/absent/certs.d"), "registry.example").unwrap_err();
    std::os::unix::fs::symlink("/gone/certs.d", certs.0.path().join("link")).unwrap();
    hosts(&at("/link"), "registry.example").unwrap_err();
    let several = HostDir {
        has_more: true,
        ..certs.dir()
    };
    hosts(&several, "registry.example").unwrap_err();
}

#[test]
fn directory_with_port_comes_first() {
    let certs = Certs::new();
    let server = |name: &str| format!("server = \"https://{name}.example\"");
    certs.put("_default/hosts.toml", &server("default"));
    let found = |certs: &Certs| {
        let hosts = certs.hosts("registry.example:5000").unwrap();
        bases(&hosts).join(" ")
    };
    assert_eq!(found(&certs), "https://default.example/v2");
    certs.put("registry.example:5000/hosts.toml", &server("colon"));
    assert_eq!(found(&certs), "https://colon.example/v2");
    certs.put("registry.example_5000_/hosts.toml", &server("underscore"));
    assert_eq!(found(&certs), "https://underscore.example/v2");
}

#[test]
fn hosts_are_tried_in_order() {
    let text = r#"
        server = "https://registry-1.docker.io"
        [host."https://zz.example"]
        capabilities = ["pull"]
        [host."http://aa.example:5000"]
        capabilities = ["Pull", "resolve", "push"]
        dial_timeout = "200ms"
        [host."mm.example/prefix"]
    "#;
    let hosts = parsed(text, "docker.io").unwrap();
    assert_eq!(
        bases(&hosts),
        [
            "https://zz.example/v2",
            "http://aa.example:5000/v2",
            "https://mm.example/prefix/v2",
            "https://registry-1.docker.io/v2",
        ]
    );
    let told: Vec<_> = hosts
        .iter()
        .map(|h| (h.resolves, h.pulls, h.is_own))
        .collect();
    assert_eq!(
        told,
        [
            (false, true, false),
            (true, true, false),
            (true, true, false),
            (true, true, true)
        ]
    );
    assert_eq!(hosts[1].dial_timeout, Duration::from_millis(200));
    let namespaces: Vec<_> = hosts
        .iter()
        .map(|h| h.endpoint.as_ref().unwrap().namespace.as_deref())
        .collect();
    let hub = Some("docker.io");
    assert_eq!(namespaces, [hub, hub, hub, None]);
}

#[test]
fn registry_follows_without_server() {
    let text = "capabilities = [\"push\"]\n[host.\"https://mirror.example\"]\n";
    let hosts = parsed(text, "registry.example:5000").unwrap();
    assert_eq!(
        bases(&hosts),
        [
            "https://mirror.example/v2",
            "https://registry.example:5000/v2"
        ]
    );
    let own = &hosts[1];
    assert!(own.is_own && own.resolves && own.pulls);
    let local = parsed("[host.\"https://mirror.example\"]", "127.0.0.1:5000").unwrap();
    assert_eq!(local[1], Host::own());
}

#[test]
fn server_replaces_the_registry() {
    let hosts = parsed("server = \"http://mirror.example\"", "registry.example").unwrap();
    assert_eq!(bases(&hosts), ["http://mirror.example/v2"]);
    assert!(!hosts[0].is_own && hosts[0].is_plain());
}

#[test]
fn override_path_keeps_the_path() {
    let text = "[host.\"https://mirror.example/api\"]\noverride_path = true\n";
    let hosts = parsed(text, "registry.example").unwrap();
    assert_eq!(bases(&hosts)[0], "https://mirror.example/api");
}

#[test]
fn headers_and_certificates_are_read() {
    let certs = Certs::new();
    certs.put("registry.example/ca.pem", "root");
    certs.put("registry.example/client.pem", "both");
    let text = r#"
        [host."https://mirror.example"]
        ca = ["ca.pem"]
        client = "client.pem"
        skip_verify = true
        [host."https://mirror.example".header]
        x-one = "1"
        x-two = ["2", "3"]
    "#;
    certs.put("registry.example/hosts.toml", text);
    let hosts = certs.hosts("registry.example").unwrap();
    let endpoint = hosts[0].endpoint.as_ref().unwrap();
    assert_eq!(endpoint.tls.roots, [b"root"]);
    assert_eq!(
        endpoint.tls.client,
        Some((b"both".to_vec(), b"both".to_vec()))
    );
    assert!(endpoint.tls.skip_verify);
    assert_eq!(endpoint.headers.get_all("x-two").iter().count(), 2);
    assert_eq!(hosts[1].endpoint.as_ref().unwrap().tls, Tls::default());
}

#[test]
fn unknown_settings_are_unsupported() {
    for text in [
        "proxy = \"http://proxy.example\"",
        "[host.\"https://mirror.example\"]\nproxy = \"http://proxy.example\"",
        "[host.\"https://mirror.example\"]\ncapabilities = [\"fly\"]",
        "[host.\"https://mirror.example\"]\nca = \"absent.pem\"",
        "[host.\"https://mirror.example\"]\nca = 1",
        "[host.\"https://mirror.example\"]\nclient = [\"a.pem\", \"b.pem\"]",
        "[host.\"https://mirror.example\"]\ndial_timeout = \"soon\"",
        "[host.\"https://mirror.example\"]\nskip_verify = \"yes\"",
        "[host.\"http://mirror.example\"]\nskip_verify = true",
        "[host.\"https://user@mirror.example\"]",
        "[host.\"https://mirror.example/a/../b\"]",
        "[host.\"https://mirror.example?a=b\"]",
        "[host.\"httpx://mirror.example\"]",
        "[host.\"https://mirror.example\".header]\n\"a b\" = \"1\"",
        "server = 1",
        "host = 1",
        "not toml",
    ] {
        parsed(text, "registry.example").expect_err(text);
    }
}

#[test]
fn certificate_files_are_unsupported() {
    let certs = Certs::new();
    certs.put("registry.example/ca.crt", "");
    certs.hosts("registry.example").unwrap_err();
    certs.put("registry.example/hosts.toml", "");
    certs.hosts("registry.example").unwrap_err();
}
