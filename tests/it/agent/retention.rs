//! What keeps images on a node, and what gives them up. Each test has a containerd of its own, because pins and seals that its
//! plan does not have are removed.

use super::*;
use crate::bed::Runtime as _;
use crate::pins::{evict, marks::fill, names, own, pull};

pub(super) const PIN: &str = "Pin";
const MB: u64 = 1_000_000;

fn retained(policy: &str) -> Value {
    json!({"retention": {"policy": policy}})
}

/// Whether all names of the image are pinned by harpoon.
fn is_pinned(containerd: &Containerd, image: &str) -> bool {
    let names = names(containerd);
    let Some(own) = names.get(image) else {
        return false;
    };
    let mut same = names.values().filter(|name| name.is_same(own));
    same.all(|name| name.is_pinned && name.is_marked)
}

fn condition(machine: &Machine<'_>, kind: &str) -> Option<Value> {
    let conditions = machine.status()["conditions"].as_array().cloned();
    let mut all = conditions.unwrap_or_default().into_iter();
    all.find(|condition| condition["type"] == kind)
}

#[test]
fn pin_lasts_while_planned() {
    let containerd = own();
    let machine = Machine::new(cluster(), containerd);
    let agent = machine.start();
    let (image, other) = (push("agent-pin"), push("agent-keep"));
    let object = machine.plan(&image, &retained(PIN));
    machine.plan(&other, &json!({}));
    machine.wait_for(&agent, "it is pinned", || is_pinned(containerd, &image));
    machine.wait_for(&agent, "the other comes", || containerd.has(&other));
    assert!(names(containerd).values().any(|name| !name.is_pinned));

    // A pull by the kubelet takes the label off the tag.
    pull(containerd, &image);
    machine.wait_for(&agent, "it is pinned again", || {
        is_pinned(containerd, &image)
    });

    // A containerd that ignores the label is told of.
    let is_ignored = !bed::has_newer_runtimes();
    machine.wait_for(&agent, "the condition is as expected", || {
        condition(&machine, "PinsIgnored").is_some() == is_ignored && machine.ready().0 == "True"
    });

    // It stays pinned as long as it is kept.
    let path = format!("{API}/plannedimages/{object}");
    cluster().patch(&path, json!({"spec": {"prefetches": []}}));
    machine.wait_for(&agent, "it is not desired", || {
        machine.status()["desired"] == 1
    });
    std::thread::sleep(Duration::from_secs(3));
    assert!(is_pinned(containerd, &image));
    unplan(cluster(), &object);
    machine.wait_for(&agent, "it is unpinned", || {
        names(containerd)
            .values()
            .all(|name| !name.is_pinned && !name.is_marked)
    });
    assert!(containerd.has(&image));
    let (_, metrics) = served(&agent, "/metrics");
    assert!(
        metrics.contains("harpoon_released_total{cause=\"unused\"} 1"),
        "{metrics}"
    );
}

#[test]
fn pins_left_by_earlier_agent_go() {
    let containerd = own();
    let machine = Machine::new(cluster(), containerd);
    let agent = machine.start();
    let image = push("agent-left");
    let object = machine.plan(&image, &retained(PIN));
    machine.wait_for(&agent, "it is pinned", || is_pinned(containerd, &image));
    drop(agent);
    unplan(cluster(), &object);
    let agent = machine.start();
    machine.wait_for(&agent, "it is unpinned", || {
        names(containerd).values().all(|name| !name.is_pinned)
    });
}

#[test]
fn deleted_image_is_back_at_once() {
    let containerd = own();
    let machine = Machine::new(cluster(), containerd);
    // Only the event can tell.
    let agent = machine.resyncing("1h").start();
    let images = [push("agent-keep"), push("agent-pin"), push("agent-none")];
    let [keep, pin, none] = &images;
    machine.plan(keep, &json!({}));
    machine.plan(pin, &retained(PIN));
    machine.plan(none, &retained("None"));
    machine.wait_for(&agent, "the images come", || {
        images.iter().all(|image| containerd.has(image)) && is_pinned(containerd, pin)
    });
    machine.wait_ready(&agent);
    // The subscription takes a moment.
    std::thread::sleep(Duration::from_secs(2));
    let began = Instant::now();
    images.iter().for_each(|image| evict(containerd, image));
    machine.wait_for(&agent, "they are back", || {
        containerd.has(keep) && is_pinned(containerd, pin)
    });
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    std::thread::sleep(Duration::from_secs(2));
    assert!(!containerd.has(none));

    // The second time it rests, and is named.
    evict(containerd, keep);
    machine.wait_for(&agent, "it is named", || {
        let failures = machine.status()["failures"].clone();
        failures[0]["reason"] == "evicted" && failures[0]["image"] == keep.as_str()
    });
    assert!(!containerd.has(keep));
}

#[test]
fn seal_goes_with_the_plan() {
    let containerd = own();
    let machine = Machine::new(cluster(), containerd);
    let agent = machine.start();
    let object = machine.plan(&push("agent-sealed"), &json!({"seal": "Always"}));
    machine.wait_for(&agent, "it is sealed", || machine.status()["present"] == 1);
    machine.wait_for(&agent, "its lease is there", || {
        containerd.leases().len() == 1
    });
    unplan(cluster(), &object);
    machine.wait_for(&agent, "its lease goes", || containerd.leases().is_empty());
}

#[test]
fn full_disk_is_yielded() {
    let containerd: &'static Containerd = Box::leak(Box::new(Containerd::with_space(100 * MB)));
    let machine = Machine::new(cluster(), containerd);
    let harpoon = machine.harpoon().env("DISK_HIGH_PERCENT", "80");
    let agent = harpoon.start();
    let image = |name: &str, bytes: u64| {
        let image = bed::registry().image(&format!("{}:1", unique(name)));
        image.size(bytes).push().reference
    };
    let [web, api, late] = ["disk-web", "disk-api", "disk-late"].map(|name| image(name, 5 * MB));
    // An older containerd ignores pins, so that the kubelet can remove the image without harpoon.
    let can_pin = bed::has_newer_runtimes();
    let protection = match can_pin {
        true => json!({"pods": 9, "retention": {"policy": PIN}}),
        false => json!({"pods": 9, "seal": "Always"}),
    };
    let is_protected = || match can_pin {
        true => is_pinned(containerd, &web),
        false => !containerd.leases().is_empty(),
    };
    machine.plan(&web, &protection);
    machine.plan(&api, &json!({"pods": 1, "seal": "Always"}));
    machine.wait_for(&agent, "both come", || {
        machine.status()["present"] == 2 && is_protected()
    });
    let leases = containerd.leases().len();
    // By harpoon alone it never comes above the mark.
    let huge = machine.plan(&image("disk-huge", 30 * MB), &json!({}));
    machine.wait_for(&agent, "what does not fit is named", || {
        let failure = machine.status()["failures"][0].clone();
        failure["reason"] == "disk_pressure"
            && failure["message"].as_str().unwrap().contains("needs about")
    });
    unplan(cluster(), &huge);

    fill(containerd, 83);
    // Giving up frees the disk at once, perhaps before a status is written.
    agent.wait_for("pulls wait until it is below 75%", PATIENCE);
    machine.wait_for(&agent, "the less important one is given up", || {
        containerd.leases().len() == leases - 1
    });
    assert!(is_protected());
    let (_, metrics) = served(&agent, "/metrics");
    assert!(
        metrics.contains("harpoon_released_total{cause=\"disk\"} 1"),
        "{metrics}"
    );

    // A neighbour takes that too: nothing is pulled.
    fill(containerd, 78);
    machine.plan(&late, &json!({}));
    machine.wait_for(&agent, "the new one waits", || {
        machine.status()["failures"][0]["reason"] == "disk_pressure"
    });
    std::thread::sleep(Duration::from_secs(5));
    assert!(!containerd.has(&late));

    std::fs::remove_file(containerd.store().join("neighbour")).unwrap();
    machine.wait_for(&agent, "it resumes", || {
        containerd.has(&late) && condition(&machine, "DiskPressure").is_none()
    });
    machine.wait_for(&agent, "what was given up is back", || {
        machine.status()["present"] == 3
    });
}
