//! Parts of the cluster that go away and come back: the runtime, the API server, the definitions, the agent itself.

use super::*;

#[test]
fn restarted_runtime_is_filled_again() {
    let containerd = Containerd::start();
    let machine = Machine::new(cluster(), &containerd);
    let agent = machine.start();
    let first = push("agent");
    machine.plan(&first, &json!({}));
    machine.wait_for(&agent, "the image comes", || containerd.has(&first));
    machine.wait_ready(&agent);
    containerd.kill();
    machine.wait_for(&agent, "the outage is reported", || {
        machine.ready() == ("False".to_owned(), "RuntimeUnavailable".to_owned())
    });
    let (code, text) = served(&agent, "/readyz");
    assert_eq!(code, 503, "{text}");
    assert!(text.contains("[-]runtime failed"), "{text}");
    assert_eq!(served(&agent, "/healthz").0, 200);
    let second = push("agent");
    machine.plan(&second, &json!({}));
    containerd.restart();
    machine.wait_for(&agent, "the new image comes", || containerd.has(&second));
    machine.wait_for(&agent, "both are reported", || {
        machine.ready().0 == "True" && machine.status()["present"] == 2
    });
    assert_eq!(served(&agent, "/readyz").0, 200);
}

#[test]
fn late_runtime_is_waited_for() {
    let containerd = Containerd::start();
    containerd.kill();
    let machine = Machine::new(cluster(), &containerd);
    let image = push("agent");
    machine.plan(&image, &json!({}));
    let agent = machine.start();
    agent.wait_for("waiting for it", PATIENCE);
    assert_eq!(served(&agent, "/readyz").0, 503);
    containerd.restart();
    machine.wait_for(&agent, "the image comes", || containerd.has(&image));
    machine.wait_ready(&agent);
}

#[test]
fn refused_watch_is_logged_once() {
    let machine = Machine::new(cluster(), containerd());
    let namespace = cluster().namespace();
    let account = (namespace.as_str(), "agent");
    let token = cluster().service_account(account.0, account.1);
    let rules = json!([
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["harpoon.dev"], "resources": ["nodeprefetches", "nodeprefetches/status"], "verbs": ["create", "patch"]},
    ]);
    cluster().grant(account, None, &rules);
    cluster().wait_until_allowed("/api/v1/nodes", &token);
    let harpoon = machine.harpoon().env("LOG_LEVEL", "debug");
    let file = harpoon.home().join("kubeconfig");
    cluster().write_kubeconfig(&file, cluster().server(), &token, "default");
    let agent = harpoon.env("KUBECONFIG", file).start();
    let lines = |level: &str, message: &str| {
        let log = agent.stderr();
        let said = |line: &&str| line.contains(level) && line.contains(message);
        log.lines().filter(said).count()
    };
    let refused = "\"list\" and \"watch\" on \"plannedimages\"";
    machine.wait_for(&agent, "it is refused three times", || {
        lines("DEBUG", refused) >= 2
    });
    assert_eq!(lines("WARN", refused), 1, "{}", agent.stderr());
    assert_eq!(lines("INFO", "watching again"), 0, "{}", agent.stderr());
    let rules = json!([
        {"apiGroups": ["harpoon.dev"], "resources": ["plannedimages"], "verbs": ["get", "list", "watch"]},
    ]);
    cluster().grant(account, None, &rules);
    let image = push("agent");
    machine.plan(&image, &json!({}));
    machine.wait_for(&agent, "the image comes", || containerd().has(&image));
    assert_eq!(lines("INFO", "watching again"), 1, "{}", agent.stderr());
}

#[test]
fn failures_of_killed_agent_are_over() {
    let machine = Machine::new(cluster(), containerd());
    let missing = bed::registry().reference(&format!("{}:1", unique("agent-missing")));
    let object = machine.plan(&missing, &json!({}));
    let agent = machine.start();
    machine.wait_for(&agent, "the failure is reported", || {
        machine.status()["failures"][0]["image"] == missing.as_str()
    });
    agent.signal(Signal::KILL);
    drop(agent);
    unplan(cluster(), &object);
    let agent = machine.start();
    machine.wait_ready(&agent);
    assert_eq!(machine.status()["failures"], json!([]));
}

#[test]
fn killed_agent_keeps_first_fill() {
    let machine = Machine::new(cluster(), containerd());
    let image = push("agent");
    machine.plan(&image, &json!({}));
    let agent = machine.start();
    machine.wait_ready(&agent);
    let first = machine.status();
    assert!(
        first["firstFillSeconds"].as_f64().unwrap() > 0.0,
        "{first:#}"
    );
    agent.signal(Signal::KILL);
    drop(agent);
    let agent = machine.start();
    let other = push("agent");
    machine.plan(&other, &json!({}));
    machine.wait_for(&agent, "the second agent reports", || {
        machine.status()["present"] == 2
    });
    assert_eq!(
        machine.status()["firstFillSeconds"],
        first["firstFillSeconds"]
    );
    machine.wait_for(&agent, "it is ready at once", || {
        served(&agent, "/readyz").0 == 200
    });
}

#[test]
fn api_server_outage_loses_nothing() {
    // A runtime of its own: this agent releases all seals of agents that are in no plan of its API server.
    let (cluster, containerd) = (with_definitions(), Containerd::start());
    let machine = Machine::new(&cluster, &containerd);
    let agent = machine.start();
    let first = push("agent");
    machine.plan(&first, &json!({}));
    machine.wait_ready(&agent);
    cluster.kill();
    // The agent works on with what it knows.
    containerd.remove(&first);
    eventually("the image comes back", PATIENCE, || containerd.has(&first));
    assert_eq!(served(&agent, "/readyz").0, 200);
    assert_eq!(served(&agent, "/healthz").0, 200);
    cluster.restart();
    let second = push("agent");
    machine.plan(&second, &json!({}));
    machine.wait_for(&agent, "the new image comes", || containerd.has(&second));
    machine.wait_for(&agent, "it is reported", || {
        machine.status()["present"] == 2
    });
    assert!(!agent.has_ended());
}

#[test]
fn missing_definitions_are_waited_for() {
    let (cluster, containerd) = (Kubernetes::start(), Containerd::start());
    let machine = Machine::new(&cluster, &containerd);
    let agent = machine.start();
    agent.wait_for("deploy/crds.yaml", PATIENCE);
    assert_eq!(agent.stderr().matches("deploy/crds.yaml").count(), 1);
    cluster.install_definitions();
    let image = push("agent");
    machine.plan(&image, &json!({}));
    // The watch is tried again after at most half a minute.
    machine.wait_for(&agent, "the image comes", || containerd.has(&image));
    machine.wait_ready(&agent);
}
