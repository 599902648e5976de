//! Plugins that are shell scripts, run as the real ones are.

use std::fs;
use std::path::Path;

use super::*;
use crate::credentials::file_watch::CHECK_INTERVAL;
use crate::credentials::program::tests::script;
use crate::credentials::secret::Login;

fn image(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

/// Plugins by name and body; each is for all images of `r.example` and `s.example`.
fn providers(dir: &Path, plugins: &[(&str, &str)]) -> Providers {
    let mut yaml =
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n"
            .to_owned();
    for (name, body) in plugins {
        script(dir, name, body);
        yaml += &format!(
            "- name: {name}\n  matchImages: [r.example, s.example]\n  defaultCacheDuration: 1h\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  args: [one, two]\n  env: [{{name: DIR, value: {}}}]\n",
            dir.display()
        );
    }
    let config = dir.join("config.yaml");
    fs::write(&config, yaml).unwrap();
    Providers::read(&config, dir, Path::new("/nonexistent")).unwrap()
}

/// A plugin's answer in JSON, for a shell's single quotes.
fn answer(rest: &str) -> String {
    format!(
        r#"{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1",{rest}}}"#
    )
}

/// A script that notes each run, and answers.
fn noting(rest: &str) -> String {
    format!(
        "echo run >> $DIR/log; cat > $DIR/request; echo '{}'",
        answer(rest)
    )
}

fn runs(dir: &Path) -> usize {
    fs::read_to_string(dir.join("log")).map_or(0, |log| log.lines().count())
}

fn passwords(found: &Found) -> Vec<&str> {
    found
        .credentials
        .iter()
        .map(|c| match &*c.login {
            Login::Password { password, .. } => password.expose(),
            Login::IdentityToken(_) => "token",
            Login::Bytes(_) => "bytes",
        })
        .collect()
}

const TWO: &str = r#""cacheKeyType":"Image","cacheDuration":"1h","auth":{"r.example":{"username":"u","password":"host"},"r.example/team":{"username":"u","password":"team"},"other.example":{"username":"u","password":"no"},"*.example":{"username":"","password":""}}"#;

#[tokio::test]
async fn provider_request_matches_the_kubelets() {
    let dir = tempfile::tempdir().unwrap();
    let body = format!("echo \"$@\" > $DIR/args; {}", noting(TWO));
    let providers = providers(dir.path(), &[("ecr", &body)]);
    let found = providers.lookup(&image("r.example/team/x:1.2")).await;
    assert_eq!(passwords(&found), ["team", "host"]);
    assert_eq!(&*found.credentials[0].source, "credential provider ecr");
    assert!(found.problems.is_empty());
    assert_eq!(
        fs::read_to_string(dir.path().join("request")).unwrap(),
        "{\"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1\",\"image\":\"r.example/team/x\",\"kind\":\"CredentialProviderRequest\"}\n"
    );
    assert_eq!(
        fs::read_to_string(dir.path().join("args")).unwrap(),
        "one two\n"
    );
    let found = providers.lookup(&image("evil.example/r.example/x")).await;
    assert!(found.credentials.is_empty() && found.problems.is_empty());
    assert_eq!(runs(dir.path()), 1);
    let shown = format!("{providers:?}{found:?}");
    assert!(
        !shown.contains("team") && !shown.contains("\"host\""),
        "{shown}"
    );
}

#[tokio::test]
async fn answers_are_cached_as_they_declare() {
    // What is looked up in turn, and how many runs that takes.
    let lookups = [
        "r.example/a:1",
        "r.example/a:2",
        "r.example/b",
        "s.example/a",
    ];
    let cases = [
        (r#""cacheKeyType":"Image","cacheDuration":"1h""#, 3),
        (r#""cacheKeyType":"Registry","cacheDuration":"1h""#, 2),
        (r#""cacheKeyType":"Global","cacheDuration":"1h""#, 1),
        (r#""cacheKeyType":"Global""#, 1),
        (r#""cacheKeyType":"Global","cacheDuration":null"#, 1),
        (r#""cacheKeyType":"Global","cacheDuration":"0s""#, 4),
        (r#""cacheKeyType":"Global","cacheDuration":"-1h""#, 4),
    ];
    for (rest, wanted) in cases {
        let dir = tempfile::tempdir().unwrap();
        let providers = providers(dir.path(), &[("p", &noting(rest))]);
        for name in lookups {
            let found = providers.lookup(&image(name)).await;
            assert!(found.problems.is_empty(), "{:?}", found.problems);
        }
        assert_eq!(runs(dir.path()), wanted, "{rest}");
    }
}

#[tokio::test]
async fn concurrent_lookups_run_plugin_once() {
    let dir = tempfile::tempdir().unwrap();
    let body = format!(
        "sleep 0.2; {}",
        noting(r#""cacheKeyType":"Registry","auth":{"r.example":{"username":"u","password":"p"}}"#)
    );
    let providers = providers(dir.path(), &[("p", &body)]);
    let images: Vec<Reference> = (0..20).map(|i| image(&format!("r.example/x{i}"))).collect();
    let found = join_all(images.iter().map(|i| providers.lookup(i))).await;
    assert!(found.iter().all(|f| passwords(f) == ["p"]));
    assert_eq!(runs(dir.path()), 1);
}

#[tokio::test]
async fn broken_plugin_keeps_other_plugins() {
    let dir = tempfile::tempdir().unwrap();
    let good =
        noting(r#""cacheKeyType":"Image","auth":{"r.example":{"username":"u","password":"p"}}"#);
    let other_version = answer(r#""cacheKeyType":"Image""#).replace("k8s.io/v1", "k8s.io/v1beta1");
    let scripts = [
        (
            "fails",
            "echo hunter2; echo no role >&2; exit 7".to_owned(),
            "exit status: 7, stderr: no role",
        ),
        ("hangs", "sleep 1000".to_owned(), "no response within 300ms"),
        (
            "garbage",
            "echo hunter2; echo odd >&2".to_owned(),
            "the response is not JSON, stderr: odd",
        ),
        ("nothing", "exit 0".to_owned(), "the response is not JSON"),
        (
            "other",
            format!("echo '{other_version}'"),
            "the apiVersion of the response differs from that of the request",
        ),
        (
            "kind",
            r#"echo '{"kind":"Pod"}'"#.to_owned(),
            "the response is not a CredentialProviderResponse",
        ),
        (
            "key",
            format!("echo '{}'", answer(r#""cacheKeyType":"hunter2""#)),
            "the cacheKeyType of the response is not Image, Registry or Global",
        ),
        (
            "duration",
            format!(
                "echo '{}'",
                answer(r#""cacheKeyType":"Image","cacheDuration":"hunter2""#)
            ),
            "the cacheDuration of the response is not a duration such as 12h",
        ),
        (
            "auth",
            format!(
                "echo '{}'",
                answer(r#""cacheKeyType":"Image","auth":"hunter2""#)
            ),
            "the response has a malformed field",
        ),
        ("good", good, ""),
    ];
    let plugins: Vec<(&str, &str)> = scripts.iter().map(|(n, b, _)| (*n, b.as_str())).collect();
    let mut providers = providers(dir.path(), &plugins);
    let state = providers.state.get_mut().unwrap();
    Arc::get_mut(&mut state.providers).unwrap()[1].limit = Duration::from_millis(300);
    let found = providers.lookup(&image("r.example/x")).await;
    assert_eq!(passwords(&found), ["p"]);
    let wanted: Vec<String> = scripts[..9]
        .iter()
        .map(|(name, _, problem)| format!("credential provider {name} failed: {problem}"))
        .collect();
    assert_eq!(found.problems, wanted);
}

#[tokio::test]
async fn malformed_answer_key_keeps_other_keys() {
    let dir = tempfile::tempdir().unwrap();
    let body = noting(
        r#""cacheKeyType":"Image","auth":{"a b":{"username":"u","password":"hunter2"},"https://r.example/v2/":{"username":"u","password":"p"}}"#,
    );
    let providers = providers(dir.path(), &[("p", &body)]);
    let found = providers.lookup(&image("r.example/x")).await;
    assert_eq!(passwords(&found), ["p"]);
    assert_eq!(found.problems.len(), 1);
    assert!(
        found.problems[0].starts_with("credential provider p, response: the registry is malformed")
    );
}

/// The sources of the credentials for an image of `r.example`, after the interval of checks.
async fn sources(providers: &Providers) -> Vec<String> {
    tokio::time::sleep(CHECK_INTERVAL).await;
    let found = providers.lookup(&image("r.example/x")).await;
    assert!(found.problems.is_empty(), "{:?}", found.problems);
    let credentials = found.credentials.iter();
    credentials.map(|c| c.source.to_string()).collect()
}

const ONE: &str = r#""cacheKeyType":"Image","auth":{"r.example":{"username":"u","password":"p"}}"#;

#[tokio::test]
async fn changed_configuration_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let providers = providers(dir.path(), &[("old", &noting(ONE))]);
    assert_eq!(sources(&providers).await, ["credential provider old"]);
    let config = dir.path().join("config.yaml");
    let yaml = fs::read_to_string(&config).unwrap();
    fs::write(&config, yaml.replace("name: old", "name: new")).unwrap();
    // Its program comes later: until then the previous configuration holds.
    assert_eq!(sources(&providers).await, ["credential provider old"]);
    script(dir.path(), "new", &noting(ONE));
    assert_eq!(sources(&providers).await, ["credential provider new"]);
}

#[tokio::test]
async fn broken_configuration_keeps_previous_providers() {
    let dir = tempfile::tempdir().unwrap();
    let providers = providers(dir.path(), &[("p", &noting(ONE))]);
    let config = dir.path().join("config.yaml");
    for broken in ["", "hunter2: [", "kind: Pod"] {
        fs::write(&config, broken).unwrap();
        assert_eq!(sources(&providers).await, ["credential provider p"]);
    }
    fs::remove_file(&config).unwrap();
    assert_eq!(sources(&providers).await, ["credential provider p"]);
    let made = std::process::Command::new("mkfifo").arg(&config).status();
    assert!(made.unwrap().success());
    assert_eq!(sources(&providers).await, ["credential provider p"]);
}

#[tokio::test]
async fn unchanged_configuration_keeps_its_cache() {
    let dir = tempfile::tempdir().unwrap();
    let providers = providers(dir.path(), &[("p", &noting(ONE))]);
    for _ in 0..2 {
        // The plugin's own notes change the directory of programs once.
        assert_eq!(sources(&providers).await, ["credential provider p"]);
    }
    let before = runs(dir.path());
    assert_eq!(sources(&providers).await, ["credential provider p"]);
    assert_eq!(runs(dir.path()), before);
}
