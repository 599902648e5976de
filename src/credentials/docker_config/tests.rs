use super::*;

fn parse(json: &str) -> DockerConfig {
    DockerConfig::parse("Secret shop/registry", json.as_bytes()).unwrap()
}

fn login_of(entry: &str) -> Result<Option<Login>, String> {
    login(&serde_json::from_str(entry).unwrap())
}

fn password(user: &str, password: &str) -> Result<Option<Login>, String> {
    Ok(Some(Login::Password {
        user: Secret::new(user),
        password: Secret::new(password),
    }))
}

#[test]
fn every_kind_of_entry_is_parsed() {
    let token = || Ok(Some(Login::IdentityToken(Secret::new("t0ken"))));
    assert_eq!(
        login_of(r#"{"auth":"dXNlcjpwYTpzcw=="}"#),
        password("user", "pa:ss")
    );
    assert_eq!(
        login_of(r#"{"auth":"dXNlcjpwYTpzcw"}"#),
        password("user", "pa:ss")
    );
    assert_eq!(
        login_of(r#"{"auth":"dXNlcjpwYTpzcwAA"}"#),
        password("user", "pa:ss")
    );
    assert_eq!(
        login_of(r#"{"username":"user","password":"p"}"#),
        password("user", "p")
    );
    // `auth` counts where both are there, as to the kubelet.
    let both = r#"{"auth":"dXNlcjpwYTpzcw==","username":"other","password":"p"}"#;
    assert_eq!(login_of(both), password("user", "pa:ss"));
    assert_eq!(login_of(r#"{"identitytoken":"t0ken"}"#), token());
    assert_eq!(
        login_of(r#"{"auth":"dXNlcjo=","identitytoken":"t0ken"}"#),
        token()
    );
    assert_eq!(
        login_of(r#"{"username":"<token>","password":"t0ken"}"#),
        token()
    );
    for marker in [
        "{}",
        r#"{"email":"a@b.example"}"#,
        r#"{"auth":""}"#,
        r#"{"auth":null}"#,
    ] {
        assert_eq!(login_of(marker), Ok(None), "{marker}");
    }
    for broken in [
        "7",
        "null",
        r#""x""#,
        r#"{"auth":7}"#,
        r#"{"auth":"!"}"#,
        r#"{"auth":"dXNlcg=="}"#,
        r#"{"password":"p"}"#,
    ] {
        assert!(login_of(broken).is_err(), "{broken}");
    }
}

#[test]
fn broken_entry_keeps_other_entries() {
    let config = parse(
        r#"{"auths":{"a.example":{"auth":"dTpw"},"b.example":{"auth":"hunter2!"},"c example":{"auth":"dTpw"},
        "https://u:hunter2@d.example":{"auth":{}},"e.example":{}}}"#,
    );
    let keys: Vec<&str> = config
        .entries()
        .iter()
        .map(|e| e.pattern.as_key())
        .collect();
    assert_eq!(keys, ["a.example"]);
    let problems: Vec<&str> = config.problems().collect();
    assert_eq!(
        problems,
        [
            r#"Secret shop/registry, entry b.example: in "auth", it is not base64"#,
            "Secret shop/registry, entry c example: the registry is malformed, expected HOST or HOST:PORT, optionally followed by a path",
            r#"Secret shop/registry, entry d.example: "auth" must be a string"#,
        ]
    );
}

#[test]
fn legacy_form_is_bare_map() {
    let json = br#"{"a.example":{"auth":"dTpw"}}"#;
    assert_eq!(
        DockerConfig::parse_legacy("x", json)
            .unwrap()
            .entries()
            .len(),
        1
    );
    assert!(DockerConfig::parse("x", json).unwrap().entries().is_empty());
}

#[test]
fn malformed_config_is_refused_unquoted() {
    for json in [
        "",
        "hunter2",
        r#"{"auths": hunter2}"#,
        "[]",
        r#""hunter2""#,
        r#"{"auths":"hunter2"}"#,
        r#"{"auths":["hunter2"]}"#,
    ] {
        let error = DockerConfig::parse("Secret a/b", json.as_bytes()).unwrap_err();
        let said = format!("{error} {error:?}");
        assert!(
            said.contains("Secret a/b") && !said.contains("hunter2"),
            "{said}"
        );
    }
    assert!(DockerConfig::parse("x", b"\xff").is_err());
}

#[test]
fn config_files_are_read_within_bound() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    assert!(DockerConfig::read(&path).unwrap().is_none());
    std::fs::write(&path, r#"{"auths":{"a.example":{"auth":"dTpw"}}}"#).unwrap();
    let config = DockerConfig::read(&path).unwrap().unwrap();
    assert_eq!(config.name(), format!("file {}", path.display()));
    assert_eq!(&*config.entries()[0].credential.source, config.name());
    let legacy = dir.path().join(".dockercfg");
    std::fs::write(&legacy, r#"{"a.example":{"auth":"dTpw"}}"#).unwrap();
    assert_eq!(
        DockerConfig::read(&legacy)
            .unwrap()
            .unwrap()
            .entries()
            .len(),
        1
    );
    std::fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
    let error = DockerConfig::read(&path).unwrap_err();
    assert!(matches!(error, ConfigFileError::TooLong { .. }), "{error}");
    let error = DockerConfig::read(dir.path()).unwrap_err();
    assert!(matches!(error, ConfigFileError::Read { .. }), "{error}");
}

#[tokio::test]
async fn pull_secret_never_names_a_program() {
    let config = parse(r#"{"credHelpers":{"a.example":"evil"},"credsStore":"evil"}"#);
    let image = Reference::parse("a.example/x").unwrap();
    assert_eq!(config.ask_helper(&image).await, Ok(None));
    let problems: Vec<&str> = config.problems().collect();
    assert!(problems[0].contains("supported in files only"));
}
