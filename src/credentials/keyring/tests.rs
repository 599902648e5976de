use super::*;
use crate::credentials::secret::{Login, Secret};

fn image(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

fn config(name: &str, json: &str) -> DockerConfig {
    DockerConfig::parse(name, json.as_bytes()).unwrap()
}

/// The names of the sources and the passwords, in the order in which they are tried.
async fn tried(keyring: &Keyring, name: &str) -> Vec<String> {
    let found = keyring.lookup(&image(name)).await;
    let line = |c: &Credential| match &*c.login {
        Login::Password { password, .. } => format!("{} {}", c.source, password.expose()),
        Login::IdentityToken(token) => format!("{} token {}", c.source, token.expose()),
        Login::Bytes(encoded) => format!("{} bytes {}", c.source, encoded.expose()),
    };
    found.credentials.iter().map(line).collect()
}

fn private(registry: &str) -> Private {
    // robot:hunter:2
    Private::parse(registry, &Secret::new(" cm9ib3Q6aHVudGVyOjI=\n")).unwrap()
}

#[test]
fn private_registry_matches_exactly() {
    let cases = [
        ("registry.company.com", "registry.company.com/x", true),
        (
            "registry.company.com",
            "evil.example/registry.company.com/x",
            false,
        ),
        ("registry.company.com", "registry.company.com:5000/x", false),
        (
            "registry.company.com",
            "registry.company.com.evil.example/x",
            false,
        ),
        (
            "registry.company.com/team",
            "registry.company.com/team/x",
            true,
        ),
        (
            "registry.company.com/team",
            "registry.company.com/team",
            true,
        ),
        (
            "registry.company.com/team",
            "registry.company.com/teams/x",
            false,
        ),
        (
            "registry.company.com/team",
            "registry.company.com/other/team/x",
            false,
        ),
        (
            "https://registry.company.com/team/",
            "registry.company.com/team/x",
            true,
        ),
        ("localhost:5000", "localhost:5000/x", true),
        ("localhost:5000", "localhost:5001/x", false),
        ("[::1]:5000", "[::1]:5000/x", true),
        ("docker.io", "nginx", true),
        ("index.docker.io", "nginx", true),
        ("https://index.docker.io/v1/", "org/app", true),
        ("docker.io/org", "org/app", true),
        ("docker.io/org", "nginx", false),
    ];
    for (registry, name, wanted) in cases {
        let found = private(registry).lookup(&image(name)).is_some();
        assert_eq!(found, wanted, "{registry} for {name}");
    }
}

#[test]
fn malformed_private_registry_is_refused_unquoted() {
    let auth = Secret::new("dTpw");
    for registry in [
        "",
        "registry",
        "*.company.com",
        "a b.example",
        "user@r.example",
        "r.example/Team",
        "r.example/a:1",
    ] {
        let error = Private::parse(registry, &auth).unwrap_err();
        assert_eq!(error, PrivateError::Registry, "{registry}");
    }
    let cases = [
        ("hunter2!", BasicError::Base64),
        ("aHVudGVyMg==", BasicError::Colon),
        ("", BasicError::Colon),
    ];
    for (auth, wanted) in cases {
        let error = Private::parse("r.example", &Secret::new(auth)).unwrap_err();
        assert_eq!(error, PrivateError::Auth(wanted), "{auth}");
        let said = format!("{error} {error:?}");
        assert!(auth.is_empty() || !said.contains(auth) && !said.contains("hunter2"));
    }
}

#[test]
fn base64_accepts_wrapping_and_missing_padding() {
    for text in [
        "dXNlcjpwYTpz",
        "dXNlcjpwYTpzcw==",
        "dXNlcjpwYTpzcw",
        "dXNl\ncjpwYTpz\n",
    ] {
        let (user, password) = basic::decode(text).unwrap();
        assert_eq!(user, b"user");
        assert!(password.starts_with(b"pa:s"), "{text}");
    }
    // user:pass and NULs behind.
    assert_eq!(basic::decode("dXNlcjpwYXNzAAA=").unwrap().1, b"pass");
}

#[tokio::test]
async fn trailing_newline_is_stripped_from_password() {
    for text in ["dTpwYSBzcwo=", "dTpwYSBzcw0K"] {
        let private = Private::parse("r.example", &Secret::new(text)).unwrap();
        let keyring = Keyring::new(Settings {
            private: Some(private),
            ..Settings::default()
        });
        assert_eq!(
            tried(&keyring, "r.example/x").await,
            ["PRIVATE_REGISTRY pa ss"]
        );
    }
}

#[tokio::test]
async fn sources_keep_order_without_repeated_logins() {
    let auths = |password: &str| {
        format!(r#"{{"auths":{{"r.example":{{"username":"robot","password":"{password}"}}}}}}"#)
    };
    let keyring = Keyring::new(Settings {
        private: Some(private("r.example")),
        docker_configs: vec![
            config("one", &auths("1")).into(),
            config("two", &auths("hunter:2")).into(),
            config("three", &auths("3")).into(),
        ],
        providers: None,
    });
    keyring.set_scoped([(
        "r.example/x:latest".to_owned(),
        Arc::new(config("Secret shop/a", &auths("4"))),
    )]);
    assert_eq!(
        tried(&keyring, "r.example/x").await,
        [
            "PRIVATE_REGISTRY hunter:2",
            "one 1",
            "three 3",
            "Secret shop/a 4"
        ]
    );
    assert_eq!(tried(&keyring, "r.example/y").await.len(), 3);
    assert!(tried(&keyring, "evil.example/r.example/x").await.is_empty());
}

#[tokio::test]
async fn scoped_credentials_serve_their_image_only() {
    let a = config(
        "Secret shop/a",
        r#"{"auths":{"r.example":{"auth":"dTph"},"https://index.docker.io/v1/":{"auth":"dTpodWI="}}}"#,
    );
    let b = config(
        "Secret shop/b",
        r#"{"auths":{"r.example/team":{"auth":"dTpi"},"docker.io/org":{"auth":"dTpvcmc="}}}"#,
    );
    let (a, b) = (Arc::new(a), Arc::new(b));
    let keyring = Keyring::default();
    let names = [
        "r.example/team/x:1",
        "docker.io/org/app:latest",
        "docker.io/library/nginx:latest",
        "quay.io/x:latest",
    ];
    keyring.set_scoped(names.iter().flat_map(|name| {
        let configs = [&a, &b, &b].into_iter();
        configs.map(|config| ((*name).to_owned(), Arc::clone(config)))
    }));
    // The longer path wins over the order of secrets, as in the kubelet.
    assert_eq!(
        tried(&keyring, "r.example/team/x:1").await,
        ["Secret shop/b b", "Secret shop/a a"]
    );
    assert!(tried(&keyring, "r.example/team/x:2").await.is_empty());
    // Docker Hub's key is the fallback for all secrets together.
    assert_eq!(tried(&keyring, "org/app").await, ["Secret shop/b org"]);
    assert_eq!(tried(&keyring, "nginx").await, ["Secret shop/a hub"]);
    assert!(tried(&keyring, "quay.io/x").await.is_empty());
}

#[tokio::test]
async fn unused_scoped_credentials_are_forgotten() {
    let json = r#"{"auths":{"r.example":{"auth":"dTph"}}}"#;
    let secret = Arc::new(config("Secret shop/a", json));
    let keyring = Keyring::default();
    for cycle in 0..3 {
        let name = format!("r.example/x:{cycle}");
        keyring.set_scoped([(name.clone(), Arc::clone(&secret))]);
        assert_eq!(tried(&keyring, &name).await, ["Secret shop/a a"]);
        assert_eq!(
            (
                keyring.scoped.read().unwrap().len(),
                Arc::strong_count(&secret)
            ),
            (1, 2)
        );
    }
    assert!(tried(&keyring, "r.example/x:0").await.is_empty());
    keyring.set_scoped([]);
    assert!(tried(&keyring, "r.example/x:2").await.is_empty());
}

#[tokio::test]
async fn broken_entry_is_reported_when_relevant() {
    let keyring = Keyring::new(Settings {
        docker_configs: vec![config(
            "file /c.json",
            r#"{"auths":{"r.example":{"auth":"hunter2!"},"index.docker.io":{"auth":7},"s.example":{"auth":"dTpw"}}}"#,
        )
        .into()],
        ..Settings::default()
    });
    let found = keyring.lookup(&image("r.example/x")).await;
    assert_eq!(
        found.problems,
        [r#"file /c.json, entry r.example: in "auth", it is not base64"#]
    );
    assert_eq!(keyring.lookup(&image("nginx")).await.problems.len(), 1);
    let found = keyring.lookup(&image("s.example/x")).await;
    assert!(found.problems.is_empty());
    assert_eq!(found.credentials.len(), 1);
}

#[tokio::test]
async fn secrets_are_never_printed() {
    let json = r#"{"auths":{
        "https://robot:hunter2@r.example":{"auth":"cm9ib3Q6aHVudGVyMg=="},
        "s.example":{"identitytoken":"hunter2"},
        "https://robot:hunter2@t.example":{"auth":"hunter2"},
        "u.example":{"username":"robot","password":["hunter2"]}}}"#;
    let keyring = Keyring::new(Settings {
        private: Some(Private::parse("r.example", &Secret::new("cm9ib3Q6aHVudGVyMg==")).unwrap()),
        docker_configs: vec![config("one", json).into()],
        providers: None,
    });
    keyring.set_scoped([(
        "r.example/x:latest".to_owned(),
        Arc::new(config("two", json)),
    )]);
    let mut shown = format!("{keyring:?}{keyring:#?}");
    for name in ["r.example/x", "s.example/x", "t.example/x", "u.example/x"] {
        shown += &format!("{:?}", keyring.lookup(&image(name)).await);
    }
    for secret in ["hunter2", "cm9ib3Q6", "robot"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    assert!(shown.contains("[secret]"));
}

#[test]
fn credentials_accept_any_bytes() {
    // :hunter2, \xff:hunter2, user:\xe9\n, and a colon alone.
    for (auth, wanted) in [
        ("Omh1bnRlcjI=", Some(("", "hunter2"))),
        ("/zpodW50ZXIy", None),
        ("dXNlcjrpCg==", None),
        ("Og==", Some(("", ""))),
    ] {
        let private = Private::parse("r.example", &Secret::new(auth));
        let private = private.unwrap_or_else(|error| panic!("{auth}: {error}"));
        let credential = private.lookup(&image("r.example/x")).unwrap();
        match (&*credential.login, wanted) {
            (Login::Password { user, password }, Some((name, secret))) => {
                assert_eq!((user.expose(), password.expose()), (name, secret));
            }
            (Login::Bytes(encoded), None) => {
                // The line's end that `echo` writes is gone.
                let wanted = auth.replace("rpCg==", "rp");
                assert_eq!(encoded.expose(), wanted);
            }
            (login, _) => panic!("{auth}: {login:?}"),
        }
        assert!(!format!("{private:?}").contains("hunter2"));
    }
}
