//! Fast fill in continuous mode.

use super::*;

#[test]
fn agent_fills_containerd_itself() {
    let containerd = Containerd::start();
    let machine = Machine::new(cluster(), &containerd);
    let agent = machine
        .harpoon()
        .env("FILL", "fast")
        .env("LOG_LEVEL", "debug")
        .start();
    machine.wait_ready(&agent);
    let name = format!("{}:1", unique("agent-fast"));
    let image = bed::registry().image(&name).layers(3);
    image.size(2_000_000).push();
    let proxy = Proxy::start(bed::registry().url(), |_| Fault::Pass);
    let image = proxy.reference(&name);
    machine.plan(&image, &json!({}));
    machine.wait_for(&agent, "the image comes", || containerd.has(&image));
    let by_containerd = |seen: &bed::faulty::Seen| {
        let agent = seen.headers["user-agent"].to_str().unwrap();
        seen.is_blob() && agent.starts_with("containerd/")
    };
    assert_eq!(proxy.count(by_containerd), 0);
    assert_eq!(proxy.count(bed::faulty::Seen::is_blob), 4);
    machine.wait_for(&agent, "it is reported", || {
        machine.status()["prefetches"][0]["present"] == 1
    });
    agent.signal(Signal::TERM);
    agent.wait().expect(0);
    assert_eq!(containerd.leases(), [""; 0]);
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
}
