use super::*;
use crate::credentials::program::tests::script;

const HEAD: &str =
    "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n";
const GOOD: &str = r#"- name: ecr
  matchImages: ["*.dkr.ecr.*.amazonaws.com", "public.ecr.aws"]
  defaultCacheDuration: "12h"
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  args: [get-credentials]
  env:
  - name: AWS_PROFILE
    value: hunter2
"#;

fn parse(yaml: &str) -> Result<Vec<Provider>, ProviderConfigError> {
    let dir = tempfile::tempdir().unwrap();
    script(dir.path(), "ecr", "exit 1");
    let config = dir.path().join("config.yaml");
    fs::write(&config, yaml).unwrap();
    read_all(&config, dir.path())
}

/// The providers, of which none is dropped.
fn read_all(config: &Path, bin_dir: &Path) -> Result<Vec<Provider>, ProviderConfigError> {
    let read = read(config, bin_dir, Path::new("/nonexistent"))?;
    assert_eq!(read.dropped, [] as [&str; 0]);
    Ok(read.providers)
}

#[test]
fn every_config_version_is_parsed() {
    for version in ["v1", "v1beta1", "v1alpha1"] {
        let text = format!("{HEAD}{GOOD}")
            .replace("config.k8s.io/v1", &format!("config.k8s.io/{version}"))
            .replace(
                "kubelet.k8s.io/v1\n",
                &format!("kubelet.k8s.io/{version}\n"),
            );
        let providers = parse(&text).unwrap();
        let [ecr] = &providers[..] else {
            panic!("{} providers", providers.len());
        };
        assert_eq!(ecr.name, "ecr");
        assert_eq!(
            ecr.api_version,
            format!("credentialprovider.kubelet.k8s.io/{version}")
        );
        assert_eq!(ecr.match_images.len(), 2);
        assert_eq!(ecr.default_cache, Duration::from_secs(43200));
        assert_eq!(ecr.args, ["get-credentials"]);
        assert_eq!(
            ecr.env,
            [("AWS_PROFILE".to_owned(), Secret::new("hunter2"))]
        );
        assert_eq!(ecr.limit, Duration::from_secs(60));
        assert!(!format!("{providers:?}").contains("hunter2"));
    }
    let json = "{\n\t\"apiVersion\": \"kubelet.config.k8s.io/v1\", \"kind\": \"CredentialProviderConfig\",\n\t\"providers\": [{\"name\": \"ecr\",
        \"matchImages\": [\"public.ecr.aws\"], \"defaultCacheDuration\": \"0s\", \"apiVersion\": \"credentialprovider.kubelet.k8s.io/v1\"}]}";
    assert_eq!(parse(json).unwrap().len(), 1);
}

#[test]
fn invalid_provider_is_refused_by_name() {
    let cases = [
        ("name: ecr", "name: ../ecr", "name must be a file name"),
        ("name: ecr", "name: '..'", "name must be a file name"),
        ("name: ecr", "name: 'e cr'", "name must be a file name"),
        ("name: ecr", "name: ''", "name must be a file name"),
        ("name: ecr", "name: 7", "name must be a string"),
        ("name: ecr", "name: other", "failed to find its program"),
        ("\"12h\"", "\"-1h\"", "defaultCacheDuration must be"),
        ("\"12h\"", "soon", "defaultCacheDuration must be"),
        ("\"12h\"", "5", "defaultCacheDuration must be a string"),
        (
            "  defaultCacheDuration: \"12h\"\n",
            "",
            "defaultCacheDuration is missing",
        ),
        (
            "credentialprovider.kubelet.k8s.io/v1\n",
            "example.com/v1\n",
            "apiVersion must be one of",
        ),
        (
            "[\"*.dkr.ecr.*.amazonaws.com\", \"public.ecr.aws\"]",
            "[]",
            "matchImages must have",
        ),
        (
            "public.ecr.aws",
            "public.ecr.aws:x",
            "matchImages public.ecr.aws:x: the registry is malformed",
        ),
        ("[get-credentials]", "[1]", "args must be a list of strings"),
        (
            "- name: AWS_PROFILE",
            "- nam: AWS_PROFILE",
            "env must be a list",
        ),
        ("name: AWS_PROFILE", "name: A=B", "env must be a list"),
    ];
    for (from, to, wanted) in cases {
        let good = format!("{HEAD}{GOOD}");
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from}");
        let error = parse(&text).unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains("provider ") && said.contains(wanted),
            "{to}: {said}"
        );
        assert!(!format!("{said}{error:?}").contains("hunter2"), "{said}");
    }
    let twice = parse(&format!("{HEAD}{GOOD}{GOOD}"))
        .unwrap_err()
        .to_string();
    assert!(twice.ends_with("provider ecr: duplicate name"), "{twice}");
}

#[test]
fn malformed_config_is_refused_unquoted() {
    for text in [
        "",
        "hunter2",
        "kind: Pod\napiVersion: v1\n",
        "providers: [hunter2",
        "a: hunter2\n b: : hunter2\n",
        "kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v2\n",
        HEAD,
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders: hunter2\n",
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders: [hunter2]\n",
    ] {
        let error = parse(text).unwrap_err();
        assert!(!format!("{error}{error:?}").contains("hunter2"), "{error}");
    }
}

#[test]
fn paths_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.yaml");
    assert!(read_all(&config, dir.path()).is_err());
    fs::write(&config, format!("{HEAD}{GOOD}")).unwrap();
    assert!(read_all(&config, &dir.path().join("none")).is_err());
    assert!(read_all(&config, &config).is_err());
    fs::write(dir.path().join("ecr"), "").unwrap();
    let error = read_all(&config, dir.path()).unwrap_err().to_string();
    assert!(error.ends_with("/ecr is not a program"), "{error}");
}

#[test]
fn directory_files_are_read_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["ecr", "gcr"] {
        script(dir.path(), name, "exit 1");
    }
    let configs = dir.path().join("conf.d");
    fs::create_dir(&configs).unwrap();
    assert!(read_all(&configs, dir.path()).is_err());
    fs::write(configs.join("2.yaml"), format!("{HEAD}{GOOD}")).unwrap();
    fs::write(
        configs.join("1.yml"),
        format!("{HEAD}{GOOD}").replace("name: ecr", "name: gcr"),
    )
    .unwrap();
    fs::write(configs.join("0.txt"), "hunter2").unwrap();
    let names: Vec<String> = read_all(&configs, dir.path())
        .unwrap()
        .into_iter()
        .map(|p| p.name)
        .collect();
    assert_eq!(names, ["gcr", "ecr"]);
}

#[test]
fn unknown_fields_drop_their_provider() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["ecr", "gcr"] {
        script(dir.path(), name, "exit 1");
    }
    let config = dir.path().join("config.yaml");
    let good = GOOD.replace("name: ecr", "name: gcr");
    for (from, to, wanted) in [
        (
            "  args:",
            "  argz: [hunter2]\n  args:",
            "unsupported field argz",
        ),
        (
            "kubelet.k8s.io/v1\n",
            "kubelet.k8s.io/v2\n",
            "apiVersion must be one of",
        ),
        (
            "  args:",
            "  tokenAttributes: {serviceAccountTokenAudience: x, requireServiceAccount: true}\n  args:",
            "needs a service account token for the audience x",
        ),
    ] {
        let bad = GOOD.replacen(from, to, 1);
        assert_ne!(bad, GOOD);
        fs::write(&config, format!("{HEAD}{bad}{good}")).unwrap();
        let read = read(&config, dir.path(), Path::new("/nonexistent")).unwrap();
        let names: Vec<&str> = read.providers.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["gcr"]);
        let [dropped] = &read.dropped[..] else {
            panic!("{:?}", read.dropped);
        };
        assert!(
            dropped.contains("provider ecr: ") && dropped.contains(wanted),
            "{dropped}"
        );
        assert!(!dropped.contains("hunter2"), "{dropped}");
    }
}
