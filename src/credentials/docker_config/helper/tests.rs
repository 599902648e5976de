use std::fs;

use super::*;
use crate::credentials::program::tests::script;
use crate::credentials::secret::Secret;

fn helpers(json: &str) -> (Helpers, Vec<String>) {
    let mut refused = Vec::new();
    let Value::Object(root) = serde_json::from_str(json).unwrap() else {
        panic!("no object");
    };
    let helpers = Helpers::new(Path::new("/c.json"), &root, |problem| refused.push(problem));
    (helpers, refused)
}

#[test]
fn registry_helper_precedes_credentials_store() {
    let (helpers, refused) = helpers(
        r#"{"credsStore":"store","credHelpers":{"a.example":"own","b.example:5000":"own","off.example":""}}"#,
    );
    assert!(refused.is_empty());
    let cases = [
        ("a.example", Some(("own", "a.example"))),
        ("b.example:5000", Some(("own", "b.example:5000"))),
        ("b.example", Some(("store", "b.example"))),
        ("off.example", None),
        ("docker.io", Some(("store", "https://index.docker.io/v1/"))),
    ];
    for (registry, wanted) in cases {
        assert_eq!(helpers.helper_for(registry), wanted, "{registry}");
    }
}

#[test]
fn docker_hub_has_three_names() {
    for key in [
        "https://index.docker.io/v1/",
        "index.docker.io",
        "docker.io",
    ] {
        let (helpers, _) = helpers(&format!(r#"{{"credHelpers":{{"{key}":"own"}}}}"#));
        assert_eq!(helpers.helper_for("docker.io"), Some(("own", key)));
        assert_eq!(helpers.helper_for("quay.io"), None);
    }
}

#[test]
fn unsafe_helper_name_is_refused() {
    for name in ["../evil", "a/b", "a b", "a;b", "$(x)", "é"] {
        let (helpers, refused) = helpers(&format!(
            r#"{{"credsStore":"{name}","credHelpers":{{"a.example":"{name}"}}}}"#
        ));
        assert_eq!(helpers.helper_for("a.example"), None, "{name}");
        assert_eq!(refused.len(), 2, "{name}");
    }
    let (_, refused) = helpers(r#"{"credsStore":7,"credHelpers":[]}"#);
    assert_eq!(refused.len(), 2);
}

/// Helpers whose one program is at a path, which a name cannot be.
fn with_program(dir: &Path, body: &str) -> (Helpers, String) {
    let program = script(dir, "docker-credential-x", body);
    let store = program.display().to_string();
    (
        Helpers {
            file: "/c.json".to_owned(),
            ..Helpers::default()
        },
        store,
    )
}

async fn ask(body: &str, server: &str) -> Result<Option<Arc<Login>>, String> {
    let dir = tempfile::tempdir().unwrap();
    let (_, program) = with_program(dir.path(), body);
    get(Program::new(program), server).await
}

#[tokio::test]
async fn helper_responses_follow_the_protocol() {
    let body = r#"test "$1" = get || exit 9
read -r server
printf '{"ServerURL":"%s","Username":"u %s","Secret":"hunter2"}' "$server" "$server""#;
    let login = ask(body, "a.example:5000").await.unwrap().unwrap();
    let wanted = Login::Password {
        user: Secret::new("u a.example:5000"),
        password: Secret::new("hunter2"),
    };
    assert_eq!(*login, wanted);
    let body = r#"echo '{"ServerURL":"x","Username":"<token>","Secret":"hunter2"}'"#;
    let login = ask(body, "x").await.unwrap().unwrap();
    assert_eq!(*login, Login::IdentityToken(Secret::new("hunter2")));
    let body = r#"echo '{"ServerURL":"x","Username":"","Secret":""}'"#;
    assert_eq!(ask(body, "x").await, Ok(None));
    let body = "echo 'credentials not found in native keychain'; exit 1";
    assert_eq!(ask(body, "x").await, Ok(None));
}

#[tokio::test]
async fn failure_shows_only_stderr() {
    let error = ask("echo hunter2; echo no session >&2; exit 1", "x")
        .await
        .unwrap_err();
    assert_eq!(error, "exit status: 1, stderr: no session");
    let error = ask("echo hunter2; echo odd >&2", "x").await.unwrap_err();
    assert_eq!(error, "unexpected response, stderr: odd");
}

#[tokio::test]
async fn missing_helper_names_itself_and_file() {
    let (helpers, _) = helpers(r#"{"credsStore":"no-such-helper-here"}"#);
    let error = helpers.ask("a.example").await.unwrap_err();
    assert!(
        error.starts_with("helper no-such-helper-here (/c.json) failed: failed to start"),
        "{error}"
    );
}

#[tokio::test]
async fn concurrent_lookups_run_helper_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let body = format!(
        r#"echo run >> {}; sleep 0.2; echo '{{"Username":"u","Secret":"p"}}'"#,
        log.display()
    );
    let (helpers, program) = with_program(dir.path(), &body);
    let run = || helpers.share("a.example", get(Program::new(&program), "a.example"));
    let (a, b, c) = tokio::join!(run(), run(), run());
    assert!(a.is_ok() && a == b && b == c);
    assert_eq!(fs::read_to_string(log).unwrap(), "run\n");
    assert!(!format!("{helpers:?}").contains("\"p\""));
}
