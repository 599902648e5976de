//! Private registries with the whole program: matching, order and confidentiality of credentials.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bed::faulty::{Fault, Gate, Proxy, Seen};
use crate::bed::{self, Harpoon, Output, PASSWORD, Registry, USER, token, unique};

/// Base64 as `docker login` writes it.
fn base64(text: &str) -> String {
    use std::io::Write;
    let mut child = Command::new("base64")
        .arg("-w0")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("base64");
    child
        .stdin
        .take()
        .expect("stdin")
        .write_all(text.as_bytes())
        .expect("write");
    String::from_utf8(child.wait_with_output().expect("output").stdout).expect("ASCII")
}

fn auth(user: &str, password: &str) -> String {
    base64(&format!("{user}:{password}"))
}

/// A docker config file with these logins, as `registry: (user, password)`.
pub(crate) fn docker_config(logins: &[(&str, &str, &str)]) -> String {
    let auths: serde_json::Map<String, Value> = logins
        .iter()
        .map(|(registry, user, password)| {
            (
                (*registry).to_owned(),
                json!({"auth": auth(user, password)}),
            )
        })
        .collect();
    json!({ "auths": auths }).to_string()
}

/// Runs `harpoon pull` of these images on each kind of runtime; `check` receives its report.
fn on_each(images: &[&str], settings: &dyn Fn(Harpoon) -> Harpoon, check: &dyn Fn(Output)) {
    let directory = bed::directory();
    let layout = format!("oci:{}", directory.path().join("layout").display());
    for endpoint in [
        bed::containerd().endpoint(),
        bed::docker().endpoint(),
        &layout,
    ] {
        let pull = Harpoon::new(["pull", "--output=json", "--log-level=trace"])
            .args(images.iter().copied());
        check(settings(pull.env("RUNTIME_ENDPOINT", endpoint)).run());
    }
}

/// `outcome reason credential attempts` of the image in a report.
fn told(output: &Output, image: &str) -> String {
    let json = output.json();
    let images = json["images"].as_array().expect("images");
    let entry = images
        .iter()
        .find(|i| i["image"] == image)
        .unwrap_or_else(|| panic!("{output}"));
    let text = |key: &str| entry[key].as_str().unwrap_or("-").to_owned();
    format!(
        "{} {} {} {}",
        text("outcome"),
        text("reason"),
        text("credential"),
        entry["attempts"]
    )
}

/// Checks that the program's output contains no secret, in any encoding.
fn tells_no_secret(output: &Output, secrets: &[&str]) {
    for secret in secrets {
        for text in [&output.stdout, &output.stderr] {
            assert!(!text.contains(secret), "{secret:?} is in {output}");
        }
    }
}

#[test]
fn private_registry_comes_from_environment() {
    let registry = bed::registry_with_password();
    let image = registry.push(&unique("private/one")).reference;
    let right = auth(USER, PASSWORD);
    on_each(
        &[&image],
        &|pull| {
            pull.env("PRIVATE_REGISTRY", registry.address())
                .env("PRIVATE_REGISTRY_AUTH", &right)
        },
        &|output| {
            let output = output.expect(0);
            assert_eq!(
                told(&output, &image),
                "pulled - PRIVATE_REGISTRY 1",
                "{output}"
            );
            assert!(
                output
                    .stderr
                    .contains("imagePullCredentialsVerificationPolicy"),
                "{output}"
            );
            tells_no_secret(&output, &[PASSWORD, &right]);
        },
    );
}

#[test]
fn unauthorized_is_not_retried() {
    let registry = bed::registry_with_password();
    let image = registry.push(&unique("private/wrong")).reference;
    let wrong = auth(USER, "not-the-password");
    on_each(
        &[&image],
        &|pull| {
            pull.env("PRIVATE_REGISTRY", registry.address())
                .env("PRIVATE_REGISTRY_AUTH", &wrong)
        },
        &|output| {
            let output = output.expect(1);
            assert_eq!(told(&output, &image), "failed unauthorized - 1", "{output}");
            assert!(
                output.stdout.contains("tried: PRIVATE_REGISTRY"),
                "{output}"
            );
            tells_no_secret(&output, &["not-the-password", &wrong]);
        },
    );
    on_each(&[&image], &|pull| pull, &|output| {
        assert_eq!(told(&output.expect(1), &image), "failed unauthorized - 1");
    });
}

#[test]
fn each_registry_tries_its_own_credentials() {
    let (one, two) = (
        bed::registry_with_password(),
        Registry::with_password("other", "0ther pass"),
    );
    let images = [
        one.push(&unique("two/a")).reference,
        two.push(&unique("two/b")).reference,
    ];
    let images = [images[0].as_str(), images[1].as_str()];
    on_each(
        &images,
        &|pull| {
            let wrong = docker_config(&[(one.address(), "stale", "stale-pass")]);
            let right = docker_config(&[
                (one.address(), USER, PASSWORD),
                (two.address(), "other", "0ther pass"),
            ]);
            fs::write(pull.home().join("wrong.json"), wrong).expect("config");
            fs::write(pull.home().join("right.json"), right).expect("config");
            pull.env("REGISTRY_CONFIG", "wrong.json, right.json")
        },
        &|output| {
            let output = output.expect(0);
            for image in images {
                assert_eq!(
                    told(&output, image),
                    "pulled - file right.json 1",
                    "{output}"
                );
            }
            tells_no_secret(
                &output,
                &["stale-pass", PASSWORD, "0ther pass", &auth(USER, PASSWORD)],
            );
        },
    );
}

/// Pulls two images of a registry with a password, one after the other, and calls `rotate` to change the docker config during the
/// first pull. At first the config is valid for the first image only.
fn pull_while_rotating(
    config_file: &str,
    prepare: impl FnOnce(&Path, [&str; 2]),
    rotate: impl FnOnce(&Path),
) -> [String; 2] {
    let (gate, private) = (Gate::new(), bed::registry_with_password());
    let held = Proxy::holding_blobs(private.url(), &gate);
    // Images with equal use are ordered by name.
    let images = ["rotated/a", "rotated/b"].map(|name| {
        let pushed = private.push(&unique(name)).reference;
        held.reference(pushed.split_once('/').expect("a path").1)
    });
    let pull = Harpoon::new(["pull", "--output=json", "--log-level=trace"])
        .args(["--concurrency=1", &images[0], &images[1]])
        .env("RUNTIME_ENDPOINT", bed::containerd().endpoint())
        .env("REGISTRY_CONFIG", config_file);
    let password = auth(USER, PASSWORD);
    let config = |second: &str| {
        let auths = json!({&images[0]: {"auth": password}, &images[1]: {"auth": second}});
        json!({ "auths": auths }).to_string()
    };
    let stale = auth(USER, "stale-pass");
    prepare(pull.home(), [&config(&stale), &config(&password)]);
    let running = pull.start();
    bed::eventually("the first pull is held", Duration::from_secs(40), || {
        held.count(Seen::is_blob) > 0
    });
    rotate(pull.home());
    // Files are checked once a second.
    std::thread::sleep(Duration::from_millis(1100));
    gate.open();
    let output = running.wait();
    tells_no_secret(&output, &["stale-pass", &stale, PASSWORD, &password]);
    assert!(told(&output, &images[0]).starts_with("pulled - file "));
    [told(&output, &images[1]), output.stderr]
}

#[test]
fn rotated_config_serves_the_next_pull() {
    // The kubelet mounts a Secret like this: a link to a link that it replaces.
    let prepare = |home: &Path, configs: [&str; 2]| {
        let volume = home.join("secret");
        for (version, config) in ["v1", "v2"].into_iter().zip(configs) {
            fs::create_dir_all(volume.join(version)).expect("volume");
            fs::write(volume.join(version).join("config.json"), config).expect("config");
        }
        symlink("v1", volume.join("..data")).expect("link");
        symlink("..data/config.json", volume.join("config.json")).expect("link");
    };
    let rotate = |home: &Path| {
        let volume = home.join("secret");
        symlink("v2", volume.join("..data_tmp")).expect("link");
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("rotate");
    };
    let [told, stderr] = pull_while_rotating("secret/config.json", prepare, rotate);
    assert_eq!(told, "pulled - file secret/config.json 1", "{stderr}");
    assert!(
        stderr.contains("reloaded file secret/config.json after a change"),
        "{stderr}"
    );
}

#[test]
fn broken_rotation_keeps_previous_config() {
    let file = "config.json";
    let prepare = |home: &Path, [_, good]: [&str; 2]| {
        fs::write(home.join(file), good).expect("config");
    };
    let rotate = |home: &Path| {
        let good = fs::read(home.join(file)).expect("config");
        fs::write(home.join(file), &good[..good.len() - 9]).expect("config");
    };
    let [told, stderr] = pull_while_rotating(file, prepare, rotate);
    assert_eq!(told, "pulled - file config.json 1", "{stderr}");
    let warning = "failed to read changed credentials, keeping the previous ones: file config.json is not JSON";
    assert_eq!(stderr.matches(warning).count(), 1, "{stderr}");
}

#[test]
fn named_docker_config_must_exist() {
    let registry = bed::registry_with_password();
    let image = registry.push(&unique("usual/a")).reference;
    let pull = Harpoon::new(["pull", "--output=json", &image])
        .env("RUNTIME_ENDPOINT", bed::containerd().endpoint());
    fs::create_dir(pull.home().join(".docker")).expect("directory");
    let config = docker_config(&[(registry.address(), USER, PASSWORD)]);
    fs::write(pull.home().join(".docker/config.json"), &config).expect("config");
    let output = pull.run().expect(0);
    assert!(
        told(&output, &image).starts_with("pulled - file /"),
        "{output}"
    );

    for (content, word) in [
        (None, "does not exist"),
        (Some("{\"auths\": 7}"), "broken.json"),
    ] {
        let pull = Harpoon::new(["pull", &image, "--registry-config=broken.json"]);
        if let Some(content) = content {
            fs::write(pull.home().join("broken.json"), content).expect("config");
        }
        let output = pull.run().expect(2);
        assert!(
            output
                .stderr
                .starts_with("error: invalid value \"broken.json\" for --registry-config"),
            "{output}"
        );
        assert!(output.stderr.contains(word), "{output}");
    }
    let output = Harpoon::new(["pull", &image])
        .env("PRIVATE_REGISTRY", registry.address())
        .env("PRIVATE_REGISTRY_AUTH", "!secret-but-no-base64!")
        .run()
        .expect(2);
    assert!(
        output.stderr.contains("PRIVATE_REGISTRY_AUTH") && !output.stderr.contains("!secret"),
        "{output}"
    );
}

#[test]
fn credential_never_goes_to_other_registry() {
    // The name of the trusted registry is in the path of the other one, which sees all its requests.
    let other = bed::registry();
    let name = format!("registry.company.com/{}", unique("trap"));
    let pushed = other.push(&name);
    let proxy = Proxy::start(other.url(), |_| Fault::Pass);
    let image = proxy.reference(pushed.reference.split_once('/').expect("a path").1);
    on_each(
        &[&image],
        &|pull| {
            let config = docker_config(&[
                ("registry.company.com", "u", "file-pass"),
                ("company.com", "u", "file-pass"),
            ]);
            fs::write(pull.home().join("config.json"), config).expect("config");
            pull.env("PRIVATE_REGISTRY", "registry.company.com")
                .env("PRIVATE_REGISTRY_AUTH", auth("u", "private-pass"))
                .env("REGISTRY_CONFIG", "config.json")
        },
        &|output| assert_eq!(told(&output.expect(0), &image), "pulled - - 1"),
    );
    assert!(proxy.count(|seen| seen.is_manifest()) >= 3);
    assert_eq!(
        proxy.count(|seen| seen.headers.contains_key("authorization")),
        0
    );
}

#[test]
fn token_service_credentials_work() {
    let plain = bed::registry();
    let name = unique("token/app");
    let pushed = plain.push(&name);
    let guarded = token::Registry::start(plain.url(), &[("robot", "r0bot pass")], &[]);
    let image = guarded.reference(pushed.reference.split_once('/').expect("a path").1);
    on_each(
        &[&image],
        &|pull| {
            let config = docker_config(&[(&guarded.address(), "robot", "r0bot pass")]);
            fs::write(pull.home().join("config.json"), config).expect("config");
            pull.env("REGISTRY_CONFIG", "config.json")
        },
        &|output| {
            let output = output.expect(0);
            assert_eq!(
                told(&output, &image),
                "pulled - file config.json 1",
                "{output}"
            );
            tells_no_secret(&output, &["r0bot pass", &auth("robot", "r0bot pass")]);
        },
    );
}

/// The plugin, compiled once.
fn plugin() -> &'static Path {
    static PLUGIN: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        let directory = bed::directory();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/credentials/plugin.rs");
        bed::run(
            Command::new("rustc")
                .args([
                    "--edition=2024",
                    "-O",
                    "-C",
                    "target-feature=+crt-static",
                    "--crate-name=plugin",
                ])
                .arg(source)
                .arg("-o")
                .arg(directory.path().join("plugin")),
        );
        directory
    });
    PLUGIN.path()
}

/// Runs `harpoon pull` of an image with a plugin of this behaviour, for all registries on loopback.
fn with_plugin(image: &str, registry: &str, mode: &str) -> Harpoon {
    let pull = Harpoon::new(["pull", "--output=json", "--log-level=trace", image]);
    let record = pull.home().join("record");
    let config = json!({"kind": "CredentialProviderConfig", "apiVersion": "kubelet.config.k8s.io/v1", "providers": [{
        "name": "plugin", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "matchImages": [registry.replace("127.0.0.1", "127.0.0.*")],
        "defaultCacheDuration": "1m", "args": [mode],
        "env": [{"name": "RECORD", "value": record}, {"name": "PLUGIN_REGISTRY", "value": registry},
                {"name": "PLUGIN_GLOB", "value": registry.replace("127.0.0.1", "127.0.0.*")},
                {"name": "PLUGIN_USER", "value": USER}, {"name": "PLUGIN_PASSWORD", "value": PASSWORD}]}]});
    fs::write(pull.home().join("providers.yaml"), config.to_string()).expect("config");
    pull.env("CREDENTIAL_PROVIDER_CONFIG", "providers.yaml")
        .env("CREDENTIAL_PROVIDER_BIN_DIR", plugin())
        .env("RUNTIME_ENDPOINT", bed::containerd().endpoint())
}

#[test]
fn kubelet_plugin_provides_its_credential() {
    let registry = bed::registry_with_password();
    let image = registry.push(&unique("plugin/app")).reference;
    let pull = with_plugin(&image, registry.address(), "answer")
        .env("PRIVATE_REGISTRY", "registry.example")
        .env("PRIVATE_REGISTRY_AUTH", auth("someone", "private-pass"));
    let output = pull.run().expect(0);
    assert_eq!(
        told(&output, &image),
        "pulled - credential provider plugin 1",
        "{output}"
    );
    tells_no_secret(
        &output,
        &[
            PASSWORD,
            &auth(USER, PASSWORD),
            &auth("someone", "private-pass"),
        ],
    );
    let record = fs::read_to_string(pull.home().join("record")).expect("the plugin was asked");
    assert!(
        record.contains("\"kind\":\"CredentialProviderRequest\"")
            && record.contains(registry.address()),
        "{record}"
    );
    assert!(
        !record.contains("PRIVATE_REGISTRY_AUTH")
            && !record.contains(&auth("someone", "private-pass")),
        "{record}"
    );
}

#[test]
fn failing_plugin_is_reported_with_stderr() {
    let registry = bed::registry_with_password();
    let image = registry.push(&unique("plugin/fails")).reference;
    for (mode, word) in [
        ("fail", "the metadata service is away"),
        ("garbage", "plugin"),
    ] {
        let output = with_plugin(&image, registry.address(), mode)
            .arg("--retries=0")
            .run()
            .expect(1);
        assert_eq!(told(&output, &image), "failed unauthorized - 1", "{output}");
        assert!(
            output.stdout.contains("plugin") && output.stdout.contains(word),
            "{output}"
        );
        assert!(!output.stdout.contains("<html>"), "{output}");
    }
    let began = Instant::now();
    let pull =
        with_plugin(&image, registry.address(), "hang").args(["--pull-timeout=2s", "--retries=0"]);
    let output = pull.run().expect(1);
    assert_eq!(told(&output, &image), "failed timeout - 1", "{output}");
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    // What it ran does not outlive it.
    let record = pull.home().join("record").to_string_lossy().into_owned();
    let left = || {
        let processes = fs::read_dir("/proc").expect("/proc").flatten();
        let environments = processes.filter_map(|p| fs::read(p.path().join("environ")).ok());
        environments
            .filter(|e| String::from_utf8_lossy(e).contains(&format!("RECORD={record}")))
            .count()
    };
    bed::eventually("the plugin is gone", Duration::from_secs(40), || {
        left() == 0
    });
}

#[test]
fn failed_plugin_is_retried() {
    let registry = bed::registry_with_password();
    let push = || registry.push(&unique("plugin/late")).reference;
    let (image, weighed) = (push(), push());
    let late = |image: &str| with_plugin(image, registry.address(), "once");
    let output = late(&image).run().expect(0);
    let expected = "pulled - credential provider plugin 2";
    assert_eq!(told(&output, &image), expected, "{output}");
    let asked = "the metadata service is away";
    assert!(output.stderr.contains(asked), "{output}");
    // Sizes and the digests of tags are requested again too.
    let output = late(&weighed).env("DISK_BUDGET", "1Ti").run().expect(0);
    let expected = "pulled - credential provider plugin 1";
    assert_eq!(told(&output, &weighed), expected, "{output}");
    let output = late(&image).arg("--refresh").run().expect(0);
    assert_eq!(told(&output, &image), "present - - 0", "{output}");
    assert!(!output.stderr.contains("tag has moved"), "{output}");
}

#[test]
fn misplaced_credential_is_refused_unquoted() {
    let basic = auth("someone", "private-pass");
    let content = docker_config(&[("r.example", "someone", "private-pass")]);
    let with_user = "https://someone:private-pass@r.example";
    for (variables, shown) in [
        (
            [
                ("PRIVATE_REGISTRY", with_user),
                ("PRIVATE_REGISTRY_AUTH", &*basic),
            ],
            "@r.example",
        ),
        (
            [
                ("PRIVATE_REGISTRY", with_user),
                ("PRIVATE_REGISTRY_AUTH", ""),
            ],
            "@r.example",
        ),
        (
            [
                ("PRIVATE_REGISTRY", &*basic),
                ("PRIVATE_REGISTRY_AUTH", "r.example"),
            ],
            "PRIVATE_REGISTRY",
        ),
        (
            [
                ("REGISTRY_CONFIG", &*content),
                ("PRIVATE_REGISTRY_AUTH", ""),
            ],
            "REGISTRY_CONFIG",
        ),
    ] {
        let output = Harpoon::new(["pull", "r.example/x"])
            .envs(variables)
            .run()
            .expect(2);
        assert!(
            output.stderr.contains(shown) && output.stderr.contains("(not shown)"),
            "{output}"
        );
        tells_no_secret(&output, &["private-pass", &basic]);
    }
}

#[test]
fn docker_credential_helper_is_used() {
    let registry = bed::registry_with_password();
    let image = registry.push(&unique("helper/app")).reference;
    let pull = Harpoon::new(["pull", "--output=json", &image])
        .env("RUNTIME_ENDPOINT", bed::containerd().endpoint());
    let bin = pull.home().join("bin");
    fs::create_dir(&bin).expect("directory");
    bed::copy_program(plugin().join("plugin"), &bin.join("docker-credential-bed"));
    let config = json!({"credHelpers": {registry.address(): "bed"}});
    fs::write(pull.home().join("config.json"), config.to_string()).expect("config");
    let output = pull
        .env("REGISTRY_CONFIG", "config.json")
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("PLUGIN_USER", USER)
        .env("PLUGIN_PASSWORD", PASSWORD)
        .run()
        .expect(0);
    assert_eq!(
        told(&output, &image),
        "pulled - helper bed (config.json) 1",
        "{output}"
    );
}

/// A secret of type `kubernetes.io/dockerconfigjson`.
pub(crate) fn create_secret(namespace: &str, name: &str, config: &str) {
    let secret = json!({"metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": base64(config)}});
    bed::kubernetes().create(&format!("/api/v1/namespaces/{namespace}/secrets"), secret);
}

pub(crate) fn create_deployment(namespace: &str, name: &str, image: &str, secret: &str) {
    let labels = json!({"app": name});
    let spec = json!({"containers": [{"name": "main", "image": image}], "imagePullSecrets": [{"name": secret}]});
    let deployment = json!({"metadata": {"name": name}, "spec": {"replicas": 1, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": spec}}});
    bed::kubernetes().create(
        &format!("/apis/apps/v1/namespaces/{namespace}/deployments"),
        deployment,
    );
}

#[test]
fn pull_secrets_serve_their_own_images() {
    let (cluster, registry) = (bed::kubernetes(), bed::registry_with_password());
    let (shop, other) = (cluster.namespace(), cluster.namespace());
    let mine = registry.push(&unique("secrets/mine")).reference;
    let stranger = registry.push(&unique("secrets/stranger")).reference;
    let config = docker_config(&[(registry.address(), USER, PASSWORD)]);
    create_secret(&shop, "registry", &config);
    create_deployment(&shop, "web", &mine, "registry");
    // In the same registry, but no workload of its namespace may pull it.
    create_deployment(&other, "api", &stranger, "missing");

    // The rights in docs/private-registries.md, and no others.
    let list = json!([{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list"]}]);
    let secrets = json!([
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["registry"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["get"]}]);
    let account = unique("harpoon");
    let token = cluster.service_account(&shop, &account);
    for namespace in [&shop, &other] {
        cluster.grant((&shop, &account), Some(namespace), &list);
    }
    cluster.grant((&shop, &account), Some(&shop), &secrets);
    bed::eventually("the grants are known", Duration::from_secs(20), || {
        let allowed = |path: String| cluster.status(&path, &token) == 200;
        allowed(format!("/api/v1/namespaces/{shop}/secrets/registry"))
            && [&shop, &other]
                .iter()
                .all(|n| allowed(format!("/apis/apps/v1/namespaces/{n}/deployments")))
    });
    let run = |pull_secrets: &str| {
        let run = Harpoon::new(["run", "--output=json", "--log-level=trace"])
            .env("RUNTIME_ENDPOINT", bed::containerd().endpoint())
            .env("NAMESPACES", format!("{shop},{other}"))
            .env("PULL_SECRETS", pull_secrets);
        let file = run.home().join("kubeconfig");
        cluster.write_kubeconfig(&file, cluster.server(), &token, &shop);
        run.env("KUBECONFIG", file).run()
    };
    let output = run("").expect(1);
    assert_eq!(told(&output, &mine), "failed unauthorized - 1", "{output}");

    let output = run("true").expect(0);
    assert_eq!(
        told(&output, &mine),
        format!("pulled - Secret {shop}/registry 1"),
        "{output}"
    );
    assert_eq!(
        told(&output, &stranger),
        "failed unauthorized - 1",
        "{output}"
    );
    assert!(
        output.stderr.contains(&format!("{other}/missing")),
        "{output}"
    );
    tells_no_secret(
        &output,
        &[PASSWORD, &auth(USER, PASSWORD), &base64(&config), &token],
    );
}

#[test]
fn run_leaks_no_secrets() {
    let registry = bed::registry_with_password();
    let images = [
        registry.push(&unique("quiet/a")).reference,
        registry.reference("quiet/missing:1"),
    ];
    let log = bed::directory();
    let log = log.path().join("log");
    fs::write(&log, "").expect("log");
    let (right, wrong) = (auth(USER, PASSWORD), auth("x", "wrong-password"));
    let pull = Harpoon::new(["pull", "--output=json", "--log-level=trace"])
        .args(images.iter().map(String::as_str))
        .pod()
        .bind(
            bed::containerd().socket(),
            "/run/containerd/containerd.sock",
        )
        .bind(&log, "/dev/termination-log")
        .env("RUST_LOG", "trace")
        .env("PRIVATE_REGISTRY", registry.address())
        .env("PRIVATE_REGISTRY_AUTH", &wrong);
    let config = docker_config(&[(registry.address(), USER, PASSWORD)]);
    fs::write(pull.home().join("config.json"), config).expect("config");
    let output = pull.env("REGISTRY_CONFIG", "config.json").run().expect(1);
    assert_eq!(
        told(&output, &images[0]),
        "pulled - file config.json 1",
        "{output}"
    );
    assert_eq!(
        told(&output, &images[1]),
        "failed not_found - 1",
        "{output}"
    );
    let message = fs::read_to_string(&log).expect("log");
    assert!(message.contains("quiet/missing:1: not_found"), "{message}");
    let secrets = [PASSWORD, "wrong-password", &right, &wrong];
    tells_no_secret(&output, &secrets);
    assert!(
        secrets.iter().all(|secret| !message.contains(secret)),
        "{message}"
    );
}

#[test]
fn helper_child_may_hold_stdout() {
    let registry = bed::registry_with_password();
    let image = registry.push(&unique("helper/agent")).reference;
    let pull = Harpoon::new(["pull", "--output=json", &image]);
    let bin = pull.home().join("bin");
    fs::create_dir(&bin).expect("bin");
    // Like a helper that starts an agent on its first use.
    let answer = json!({"ServerURL": registry.address(), "Username": USER, "Secret": PASSWORD});
    let helper = format!("#!/bin/sh\nsleep 20 &\necho '{answer}'\n");
    let draft = pull.home().join("draft");
    fs::write(&draft, helper).expect("helper");
    bed::run(Command::new("chmod").arg("755").arg(&draft));
    bed::copy_program(draft, &bin.join("docker-credential-agent"));
    let config = json!({"credsStore": "agent"});
    fs::write(pull.home().join("config.json"), config.to_string()).expect("config");
    let output = pull
        .env("REGISTRY_CONFIG", "config.json")
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("RUNTIME_ENDPOINT", bed::containerd().endpoint())
        .run()
        .expect(0);
    assert_eq!(
        told(&output, &image),
        "pulled - helper agent (config.json) 1",
        "{output}"
    );
    assert!(output.elapsed < Duration::from_secs(9), "{output}");
}

/// A configuration with the provider `plugin`, which responds, and `other`, which has these additional fields.
fn with_two_plugins(image: &str, registry: &str, fields: &Value) -> Harpoon {
    let pull = with_plugin(image, registry, "answer");
    let bin = pull.home().join("bin");
    fs::create_dir(&bin).expect("bin");
    for name in ["plugin", "other"] {
        bed::copy_program(plugin().join("plugin"), &bin.join(name));
    }
    let file = pull.home().join("providers.yaml");
    let mut config: Value =
        serde_json::from_str(&fs::read_to_string(&file).expect("config")).expect("JSON");
    let providers = config["providers"].as_array_mut().expect("providers");
    let mut other = providers[0].clone();
    other["name"] = "other".into();
    for (name, value) in fields.as_object().expect("an object") {
        other[name] = value.clone();
    }
    providers.insert(0, other);
    fs::write(&file, config.to_string()).expect("config");
    pull.env("CREDENTIAL_PROVIDER_BIN_DIR", bin)
}

#[test]
fn unknown_provider_fields_drop_that_provider() {
    let registry = bed::registry_with_password();
    for fields in [
        json!({"fieldOfTheFuture": {"secret": "hunter2"}}),
        json!({"apiVersion": "credentialprovider.kubelet.k8s.io/v7"}),
        json!({"tokenAttributes": {"serviceAccountTokenAudience": "quay", "cacheType": "Token", "requireServiceAccount": true}}),
    ] {
        let image = registry.push(&unique("plugin/dropped")).reference;
        let pull = with_two_plugins(&image, registry.address(), &fields);
        let output = pull.run().expect(0);
        assert_eq!(
            told(&output, &image),
            "pulled - credential provider plugin 1",
            "{output}"
        );
        let warned = |line: &str| line.contains("WARN") && line.contains("provider other");
        assert!(output.stderr.lines().any(warned), "{fields}: {output}");
        tells_no_secret(&output, &["hunter2", PASSWORD]);
    }
}

#[test]
fn provider_gets_the_pods_token() {
    let registry = bed::registry_with_password();
    let image = registry.push(&unique("plugin/token")).reference;
    // Files as in a projected volume, with tokens of a real API server.
    let (cluster, volume) = (bed::kubernetes(), bed::directory());
    let namespace = cluster.namespace();
    cluster.service_account(&namespace, "harpoon");
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/harpoon/token");
    let request = json!({"spec": {"audiences": ["https://registry.example/pull"]}});
    let answer = cluster.create(&path, request);
    let token = answer["status"]["token"].as_str().expect("a token");
    fs::write(volume.path().join("registry"), token).expect("token");
    let annotations = "example.com/role=\"arn:\\\"x\\\"\"\nexample.com/other=\"y\"\n";
    fs::write(volume.path().join("annotations"), annotations).expect("annotations");

    let pull = with_plugin(&image, registry.address(), "answer");
    let file = pull.home().join("providers.yaml");
    let mut config: Value =
        serde_json::from_str(&fs::read_to_string(&file).expect("config")).expect("JSON");
    config["providers"][0]["tokenAttributes"] = json!({"cacheType": "Token", "requireServiceAccount": true,
        "serviceAccountTokenAudience": "https://registry.example/pull",
        "requiredServiceAccountAnnotationKeys": ["example.com/role"]});
    fs::write(&file, config.to_string()).expect("config");
    let socket = "/run/containerd/containerd.sock";
    let output = pull
        .env("RUNTIME_ENDPOINT", socket)
        .pod()
        .bind(bed::containerd().socket(), socket)
        .bind(volume.path(), "/var/run/secrets/harpoon.dev/tokens")
        .run()
        .expect(0);
    assert_eq!(
        told(&output, &image),
        "pulled - credential provider plugin 1",
        "{output}"
    );
    tells_no_secret(&output, &[token, PASSWORD]);
    let record = fs::read_to_string(output.home().join("record")).expect("the plugin was asked");
    let asked: Value =
        serde_json::from_str(record.lines().next().expect("a line")).expect("a request");
    assert_eq!(asked["serviceAccountToken"], token);
    assert_eq!(
        asked["serviceAccountAnnotations"],
        json!({"example.com/role": "arn:\"x\""})
    );
}
