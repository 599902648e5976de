//! Pull secrets that planned images name.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::bed::{PASSWORD, USER};

pub(super) fn secret(name: &str, registry: &str, password: &str) -> Value {
    let auth = STANDARD.encode(format!("{USER}:{password}"));
    let config = json!({"auths": {registry: {"auth": auth}}}).to_string();
    json!({"metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": STANDARD.encode(config)}})
}

#[test]
fn only_named_secrets_are_read() {
    let containerd = Containerd::start();
    let machine = Machine::new(cluster(), &containerd);
    let namespace = cluster().namespace();
    let secrets = format!("/api/v1/namespaces/{namespace}/secrets");
    let registry = bed::registry_with_password();
    for name in ["named", "unnamed"] {
        cluster().create(&secrets, secret(name, registry.address(), PASSWORD));
    }
    let (sealed, open) = (unique("agent-sealed"), unique("agent-open"));
    let image = registry.push(&format!("{sealed}:1")).reference;
    let never = registry.push(&format!("{open}:1")).reference;
    let proxy = Proxy::start_tls(cluster().server(), cluster().ca(), |_| Fault::Pass);
    let harpoon = machine.harpoon();
    let file = harpoon.home().join("kubeconfig");
    cluster().write_kubeconfig(&file, &proxy.url(), cluster().token(), "default");
    let agent = harpoon.env("KUBECONFIG", file).start();
    let named = json!([{"namespace": namespace, "name": "named"}]);
    machine.plan(&image, &json!({"pullSecrets": named}));
    machine.plan(&never, &json!({"pullSecrets": named, "seal": "Never"}));
    machine.wait_ready(&agent);
    machine.wait_for(&agent, "both are reported", || {
        machine.status()["present"] == 2
    });
    // That of a pull secret is sealed: it has no name. On containerd 1.6 it has one for 10 s.
    machine.wait_for(&agent, "it has no name", || {
        let images = containerd.images();
        images.iter().all(|name| !name.contains(&sealed))
    });
    assert!(containerd.has(&never));
    let seen = proxy.seen();
    let paths: Vec<_> = seen.iter().map(|seen| seen.path.clone()).collect();
    let of_secrets: Vec<_> = paths
        .iter()
        .filter(|path| path.contains("/secrets"))
        .collect();
    assert!(!of_secrets.is_empty());
    assert!(
        of_secrets
            .iter()
            .all(|path| path.ends_with("/secrets/named")),
        "{of_secrets:?}"
    );
    assert!(!agent.stderr().contains(PASSWORD));
}

#[test]
fn corrected_secret_is_used() {
    let machine = Machine::new(cluster(), containerd());
    let namespace = cluster().namespace();
    let registry = bed::registry_with_password();
    let secrets = format!("/api/v1/namespaces/{namespace}/secrets");
    cluster().create(&secrets, secret("regcred", registry.address(), "wrong"));
    let image = registry.push(&format!("{}:1", unique("agent"))).reference;
    let agent = machine.start();
    let named = json!([{"namespace": namespace, "name": "regcred"}]);
    machine.plan(&image, &json!({"pullSecrets": named, "seal": "Never"}));
    machine.wait_for(&agent, "the refusal is reported", || {
        machine.status()["failures"][0]["reason"] == "unauthorized"
    });
    let right = secret("regcred", registry.address(), PASSWORD);
    cluster().patch(
        &format!("{secrets}/regcred"),
        json!({"data": right["data"]}),
    );
    // It is read again half a minute after a refusal.
    machine.wait_for(&agent, "the image comes", || containerd().has(&image));
    machine.wait_ready(&agent);
}

#[test]
fn rotated_file_ends_the_pause() {
    let machine = Machine::new(cluster(), containerd());
    let registry = bed::registry_with_password();
    let image = registry.push(&format!("{}:1", unique("agent"))).reference;
    let directory = bed::directory();
    let file = directory.path().join("config.json");
    let write = |password: &str| {
        let auth = STANDARD.encode(format!("{USER}:{password}"));
        let config = json!({"auths": {registry.address(): {"auth": auth}}});
        std::fs::write(&file, config.to_string()).unwrap();
    };
    write("wrong");
    let agent = machine.harpoon().env("REGISTRY_CONFIG", &file).start();
    machine.plan(&image, &json!({}));
    machine.wait_for(&agent, "the refusal is reported", || {
        machine.status()["failures"][0]["reason"] == "unauthorized"
    });
    write(PASSWORD);
    let began = Instant::now();
    machine.wait_for(&agent, "the image comes", || containerd().has(&image));
    // The next comparison with the runtime, not the end of the pause.
    assert!(
        began.elapsed() < Duration::from_secs(45),
        "{:?}",
        began.elapsed()
    );
    machine.wait_ready(&agent);
}

#[test]
fn forbidden_secret_explains_the_failure() {
    let machine = Machine::new(cluster(), containerd());
    let namespace = cluster().namespace();
    let registry = bed::registry_with_password();
    let image = registry.push(&format!("{}:1", unique("agent"))).reference;
    let rules = json!([
        {"apiGroups": ["harpoon.dev"], "resources": ["plannedimages"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["harpoon.dev"], "resources": ["nodeprefetches", "nodeprefetches/status"], "verbs": ["create", "patch"]},
    ]);
    let token = cluster().account_with(&namespace, None, &rules, &format!("{API}/plannedimages"));
    let harpoon = machine.harpoon();
    let file = harpoon.home().join("kubeconfig");
    cluster().write_kubeconfig(&file, cluster().server(), &token, "default");
    let agent = harpoon.env("KUBECONFIG", file).start();
    let named = json!([{"namespace": namespace, "name": "regcred"}]);
    machine.plan(&image, &json!({"pullSecrets": named}));
    let message = || {
        machine.status()["failures"][0]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let expected = format!("Secret {namespace}/regcred: not allowed to read it");
    machine.wait_for(&agent, "the secret is named", || {
        message().contains(&expected)
    });
    let warnings = agent.stderr();
    let warnings = warnings
        .lines()
        .filter(|l| l.contains("WARN") && l.contains("RBAC verb"));
    assert!(warnings.count() >= 1);
}
