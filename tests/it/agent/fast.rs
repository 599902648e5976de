//! Fast fill by the agent.

use super::*;
use crate::fast::{Events, hidden, images};

/// An image behind a proxy, which shows who requests it.
fn behind_proxy(name: &str, registry: &bed::Registry) -> (Proxy, String) {
    let name = format!("{}:1", unique(name));
    registry.image(&name).layers(3).size(300_000).push();
    let proxy = Proxy::start(registry.url(), |_| Fault::Pass);
    let image = proxy.reference(&name);
    (proxy, image)
}

/// Blobs that containerd itself has requested.
fn by_containerd(proxy: &Proxy) -> usize {
    proxy.count(|seen| seen.is_blob() && seen.is_by_containerd())
}

#[test]
fn agent_fills_containerd_itself() {
    let containerd = Containerd::start();
    let machine = Machine::new(cluster(), &containerd);
    let agent = machine.harpoon().env("FILL", "fast").start();
    let (proxy, image) = behind_proxy("agent-fast", bed::registry());
    machine.plan(&image, &json!({}));
    machine.wait_for(&agent, "the image comes", || containerd.has(&image));
    machine.wait_for(&agent, "it is reported", || {
        machine.status()["present"] == 1
    });
    assert_eq!(by_containerd(&proxy), 0);
    assert!(proxy.count(|seen| seen.is_blob()) >= 4);
    let checked = images(&containerd);
    assert!(checked.iter().all(|line| line.contains("complete (4/4)")));
    assert_eq!(containerd.leases(), [""; 0]);
    // One that is removed comes back in the same way.
    containerd.remove(&image);
    machine.wait_for(&agent, "the image comes back", || containerd.has(&image));
    assert_eq!(by_containerd(&proxy), 0);
}

#[test]
fn agent_seals_without_a_name() {
    let containerd = Containerd::start();
    let machine = Machine::new(cluster(), &containerd);
    let namespace = cluster().namespace();
    let (proxy, image) = behind_proxy("agent-sealed", bed::registry_with_password());
    let object = secrets::secret("regcred", &proxy.address(), bed::PASSWORD);
    cluster().create(&format!("/api/v1/namespaces/{namespace}/secrets"), object);
    let events = Events::of(&containerd);
    let agent = machine.harpoon().env("FILL", "fast").start();
    let named = json!([{"namespace": namespace, "name": "regcred"}]);
    machine.plan(&image, &json!({"pullSecrets": named}));
    machine.wait_for(&agent, "the image is sealed", || {
        machine.status()["present"] == 1
    });
    assert_eq!(events.of_names(), [""; 0]);
    assert_eq!(containerd.images(), [""; 0]);
    assert_eq!(containerd.leases().len(), 1);
    assert_eq!(by_containerd(&proxy), 0);
    assert!(!agent.stderr().contains(bed::PASSWORD));
}

#[test]
fn agent_without_root_directory_tells_why() {
    let containerd = Containerd::start();
    let image = push("agent-unmounted");
    let start = |machine: &Machine<'_>, fill: &str| {
        let harpoon = machine.harpoon().env("FILL", fill);
        harpoon.under(hidden(&containerd)).start()
    };
    let machine = Machine::new(cluster(), &containerd);
    machine.plan(&image, &json!({}));
    let agent = start(&machine, "fast");
    agent.wait_for("agent started", PATIENCE);
    // The runtime counts as lost, and is tried again in a minute.
    std::thread::sleep(Duration::from_secs(5));
    assert!(!containerd.has(&image));
    assert_eq!(served(&agent, "/readyz").0, 503);
    assert_eq!(served(&agent, "/healthz").0, 200);
    drop(agent);
    let agent = start(&machine, "auto");
    machine.wait_for(&agent, "the runtime pulls", || containerd.has(&image));
    machine.wait_ready(&agent);
}

/// A pull that waits for its layers, and the gate that lets them come.
fn held_pull(machine: &Machine<'_>, extra: &Value) -> (Proxy, Gate) {
    let (gate, config) = (Gate::new(), OnceLock::new());
    let held = gate.clone();
    let proxy = Proxy::start(bed::registry().url(), move |seen| {
        // The first blob is the configuration.
        match seen.is_blob() && config.get_or_init(|| seen.path.clone()) != &seen.path {
            true => Fault::Hold(held.clone()),
            false => Fault::Pass,
        }
    });
    let name = format!("{}:1", unique("agent-held"));
    bed::registry().push(&name);
    machine.plan(&proxy.reference(&name), extra);
    (proxy, gate)
}

#[test]
fn killed_pull_is_freed_after_success() {
    for extra in [json!({}), json!({"seal": "Always"})] {
        let containerd = Containerd::start();
        let machine = Machine::new(cluster(), &containerd);
        let agent = machine.harpoon().env("FILL", "fast").start();
        let (proxy, gate) = held_pull(&machine, &extra);
        let pulls = || {
            let leases = containerd.leases().into_iter();
            leases
                .filter(|lease| lease.starts_with("harpoon/pull/"))
                .count()
        };
        machine.wait_for(&agent, "the pull waits", || proxy.now() > 0 && pulls() == 1);
        agent.signal(Signal::KILL);
        drop(agent);
        let agent = machine.harpoon().env("FILL", "fast").start();
        machine.wait_for(&agent, "it waits again", || pulls() == 2);
        // What came is kept for the attempt.
        std::thread::sleep(Duration::from_secs(4));
        assert_eq!(pulls(), 2);
        gate.open();
        machine.wait_ready(&agent);
        machine.wait_for(&agent, "nothing holds what was left", || pulls() == 0);
    }
}

#[test]
fn image_that_leaves_leaves_nothing() {
    let containerd = Containerd::start();
    let machine = Machine::new(cluster(), &containerd);
    let agent = machine.harpoon().env("FILL", "fast").start();
    let (proxy, object) = waiting_pull(&machine, &agent);
    unplan(cluster(), &object);
    machine.wait_for(&agent, "the pull ends", || proxy.now() == 0);
    machine.wait_ready(&agent);
    machine.wait_for(&agent, "its snapshots are removed", || {
        containerd.ctr(&["snapshots", "list"]).lines().count() <= 1
    });
    machine.wait_for(&agent, "its lease is released", || {
        containerd.leases().is_empty()
    });
}
