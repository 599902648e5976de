//! The nodes that get an image, and the time when they do.

use super::*;

#[test]
fn matching_nodes_get_the_image() {
    let test = unique("pool");
    let taint = json!([{"key": "gpu", "effect": "NoSchedule"}]);
    let containerds = [(); 3].map(|()| Containerd::start());
    let [gpu, arm, plain] = &containerds;
    let machines = [
        Machine::with(
            cluster(),
            gpu,
            &json!({"pool": test, "kind": "gpu"}),
            &taint,
        ),
        Machine::with(
            cluster(),
            arm,
            &json!({"pool": test, "kubernetes.io/arch": "arm64"}),
            &json!([]),
        ),
        Machine::with(cluster(), plain, &json!({"pool": test}), &json!([])),
    ];
    let agents = machines.each_ref().map(Machine::start);
    let names = ["selected", "tolerating", "amd64", "any"];
    let images = names.map(push);
    let [selected, tolerating, amd64, any] = &images;
    let everything = json!([{"operator": "Exists"}]);
    for (image, placements) in [
        (
            selected,
            json!([{"nodeSelector": {"pool": test, "kind": "gpu"}, "tolerations": everything}]),
        ),
        (
            tolerating,
            json!([{"nodeSelector": {"pool": test}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}]),
        ),
        (
            amd64,
            json!([{"nodeSelector": {"pool": test, "kubernetes.io/arch": "amd64"}}]),
        ),
        (
            any,
            json!([{"nodeSelector": {"pool": "none"}}, {"nodeSelector": {"pool": test}, "tolerations": everything}]),
        ),
    ] {
        plan(
            cluster(),
            image,
            &json!({"prefetches": [test], "placements": placements}),
        );
    }
    let expected = [
        [true, true, false, true],
        [false, true, false, true],
        [false, true, true, true],
    ];
    for ((machine, agent), expected) in machines.iter().zip(&agents).zip(expected) {
        let has = || images.each_ref().map(|image| machine.containerd.has(image));
        machine.wait_for(agent, "the images come", || has() == expected);
        let count = expected.iter().filter(|is_here| **is_here).count();
        machine.wait_for(agent, "they are reported", || {
            machine.ready().0 == "True" && machine.status()["present"] == count
        });
        assert_eq!(has(), expected);
    }
    // All have seen the same images, whatever they need of them.
    let revision = |machine: &Machine<'_>| {
        let status = machine.status();
        let entries = status["prefetches"].as_array().unwrap().iter();
        let mut own = entries.filter(|e| e["name"] == test.as_str());
        own.next().unwrap()["revision"].clone()
    };
    let revisions = machines.each_ref().map(revision);
    assert!(
        revisions
            .iter()
            .all(|r| *r == revisions[0] && r.is_string()),
        "{revisions:?}"
    );
}

#[test]
fn taint_that_goes_brings_images() {
    let taint = json!([{"key": "dedicated", "effect": "NoSchedule"}]);
    let machine = Machine::with(cluster(), containerd(), &json!({}), &taint);
    let agent = machine.start();
    machine.wait_ready(&agent);
    let image = push("agent");
    let placements = json!([{"nodeSelector": {"test": machine.name}}]);
    machine.plan(&image, &json!({"placements": placements}));
    std::thread::sleep(Duration::from_secs(2));
    assert!(!containerd().has(&image));
    let path = format!("/api/v1/nodes/{}", machine.name);
    cluster().patch(&path, json!({"spec": {"taints": null}}));
    machine.wait_for(&agent, "the image comes", || containerd().has(&image));
}

#[test]
fn new_node_waits_for_no_slot() {
    let (old, new) = (Containerd::start(), Containerd::start());
    let pool = unique("pool");
    let here = Machine::with(cluster(), &old, &json!({"pool": pool}), &json!([]));
    let agent = here.start();
    here.wait_ready(&agent);
    let image = push("agent");
    let start = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
    let rollout = json!({"type": "Linear", "window": "700h", "startTime": start});
    let placements = json!([{"nodeSelector": {"pool": pool}}]);
    let spec = json!({"prefetches": [pool], "placements": placements, "rollout": rollout});
    plan(cluster(), &image, &spec);
    here.wait_for(&agent, "the image is desired", || {
        here.status()["desired"] == 1
    });
    let there = Machine::with(cluster(), &new, &json!({"pool": pool}), &json!([]));
    let newer = there.start();
    there.wait_for(&newer, "the new node is filled", || new.has(&image));
    there.wait_ready(&newer);
    assert!(!old.has(&image));
    assert_eq!(here.status()["pulling"], 1);
    // An agent that starts again on the old node does not hurry either.
    drop(agent);
    let agent = here.start();
    here.wait_for(&agent, "it is ready", || served(&agent, "/readyz").0 == 200);
    std::thread::sleep(Duration::from_secs(2));
    assert!(!old.has(&image));
}

#[test]
fn unused_image_is_left_alone() {
    let machine = Machine::new(cluster(), containerd());
    let agent = machine.start();
    let image = push("agent");
    let object = machine.plan(&image, &json!({}));
    machine.wait_for(&agent, "the image is reported", || {
        machine.status()["present"] == 1
    });
    let path = format!("{API}/plannedimages/{object}");
    cluster().patch(&path, json!({"spec": {"prefetches": []}}));
    machine.wait_for(&agent, "it is not desired", || {
        machine.status()["desired"] == 0
    });
    assert!(containerd().has(&image));
    containerd().remove(&image);
    std::thread::sleep(Duration::from_secs(4));
    assert!(!containerd().has(&image));
}

#[test]
fn node_that_rejoins_is_filled_anew() {
    let machine = Machine::new(cluster(), containerd());
    let agent = machine.start();
    machine.wait_ready(&agent);
    let node = format!("/api/v1/nodes/{}", machine.name);
    cluster().delete(&node);
    agent.wait_for("does not exist", PATIENCE);
    // There is no garbage collector.
    cluster().delete(&format!("{API}/nodeprefetches/{}", machine.name));
    let labels = json!({"test": machine.name});
    let again = json!({"metadata": {"name": machine.name, "labels": labels}});
    let uid = cluster().create("/api/v1/nodes", again)["metadata"]["uid"].clone();
    machine.wait_for(&agent, "it reports for the new node", || {
        machine.object()["metadata"]["ownerReferences"][0]["uid"] == uid
    });
    machine.wait_ready(&agent);
}
