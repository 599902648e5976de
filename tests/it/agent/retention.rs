//! Images that stay on a node, and those that are given up. Each test has a containerd of its own, because pins and seals that its
//! plan does not have are removed.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::changes::seals;
use super::*;
use crate::bed::faulty::Seen;
use crate::bed::{CrioStandIn, Runtime as _};
use crate::pins::marks::{fill, image_fs};
use crate::pins::{evict, names, own, pull};

pub(super) const PIN: &str = "Pin";
const MB: u64 = 1_000_000;

fn retained(policy: &str) -> Value {
    json!({"retention": {"policy": policy}})
}

/// Returns whether all names of the image are pinned by harpoon.
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
    machine.wait_for(&agent, "it is counted", || {
        let (_, metrics) = served(&agent, "/metrics");
        metrics.contains("harpoon_released_total{cause=\"unused\"} 1")
    });
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
    images.iter().for_each(|image| evict(containerd, image));
    machine.wait_for(&agent, "they are back", || {
        containerd.has(keep) && is_pinned(containerd, pin)
    });
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
fn moved_tag_moves_the_pin() {
    let containerd = own();
    let machine = Machine::new(cluster(), containerd);
    let agent = machine.start();
    let name = format!("{}:1", unique("agent-moved"));
    let image = bed::registry().image(&name).seed("old").push().reference;
    let sealed = format!("{}:1", unique("agent-resealed"));
    let sealed_image = bed::registry().image(&sealed).seed("old").push().reference;
    machine.plan(&image, &retained(PIN));
    machine.plan(&sealed_image, &json!({"seal": "Always"}));
    machine.wait_for(&agent, "it is pinned", || is_pinned(containerd, &image));
    let seal = || seals(containerd).remove(&sealed_image).unwrap_or_default();
    machine.wait_for(&agent, "the other is sealed", || seal().len() == 1);
    let (old, old_seal) = (names(containerd)[&image].clone(), seal());
    for (name, image) in [(&name, &image), (&sealed, &sealed_image)] {
        bed::registry().image(name).seed("new").push();
        pull(containerd, image);
    }
    machine.wait_for(&agent, "the new image is pinned", || {
        let names = names(containerd);
        let is_new = !names[&image].is_same(&old) && is_pinned(containerd, &image);
        let mut previous = names.values().filter(|name| name.is_same(&old));
        is_new && previous.all(|name| !name.is_pinned && !name.is_marked)
    });
    machine.wait_for(&agent, "the new content is sealed", || {
        seal() == [names(containerd)[&sealed_image].target()] && seal() != old_seal
    });
    machine.wait_ready(&agent);
}

/// Has the agent of a runtime that cannot pin follow a plan that pins an image; `has` and `remove` are about that image.
fn ignores_pins(
    endpoint: &str,
    name: &str,
    image: &str,
    has: impl Fn() -> bool,
    remove: impl Fn(),
) {
    let machine = Machine::new(cluster(), containerd());
    let agent = machine.of(endpoint, "1s").start();
    let object = machine.plan(image, &retained(PIN));
    machine.wait_for(&agent, "it is told that pins do nothing", || {
        condition(&machine, "PinsIgnored").is_some_and(|condition| {
            let expected =
                format!("{name} has no API to pin images: retention policy Pin acts as Keep");
            has() && condition["message"] == expected
        })
    });
    machine.wait_ready(&agent);
    // As with `Keep`, it is pulled again.
    remove();
    machine.wait_for(&agent, "the image is back", has);
    unplan(cluster(), &object);
    machine.wait_for(&agent, "the condition goes", || {
        condition(&machine, "PinsIgnored").is_none()
    });
}

#[test]
fn other_runtimes_ignore_pins() {
    let image = &push("agent-pin");
    let (crio, docker) = (CrioStandIn::start(&[]), bed::docker());
    crio.offer(image, 10_000);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let has = || crio.images().contains(image);
            ignores_pins(&crio.endpoint(), "cri-o", image, has, || crio.remove(image));
        });
        let has = || docker.images().contains(image);
        ignores_pins(docker.endpoint(), "docker", image, has, || {
            docker.remove(image)
        });
    });
}

#[test]
fn seal_of_a_run_stays() {
    let containerd = own();
    let image = push("agent-run");
    let seal = ["pull", "--seal=always", "--runtime-endpoint"];
    let seal = Harpoon::new(seal).args([containerd.endpoint(), &image]);
    seal.run().expect(0);
    // Of another program, whose labels look like harpoon's.
    containerd.ctr(&[
        "leases",
        "create",
        "--id",
        "backup",
        "harpoon.dev/image=other",
        "harpoon.dev/agent=true",
    ]);
    let machine = Machine::new(cluster(), containerd);
    let agent = machine.start();
    let own = push("agent-own");
    let object = machine.plan(&own, &json!({"seal": "Always"}));
    machine.wait_for(&agent, "its own is sealed", || {
        seals(containerd).contains_key(&own)
    });
    unplan(cluster(), &object);
    machine.wait_for(&agent, "its own seal goes", || {
        !seals(containerd).contains_key(&own)
    });
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(seals(containerd).len(), 1, "{:?}", seals(containerd));
    assert!(seals(containerd).contains_key(&image));
    assert!(containerd.leases().contains(&"backup".to_owned()));
}

#[test]
fn sizes_are_requested_near_the_mark() {
    let containerd: &'static Containerd = Box::leak(Box::new(Containerd::with_disk(500 * MB)));
    let machine = Machine::new(cluster(), containerd);
    let agent = machine.harpoon().env("DISK_HIGH_PERCENT", "80").start();
    let proxy = Proxy::start(bed::registry().url(), |_| Fault::Pass);
    let pull = |name: &str| {
        let name = format!("{}:1", unique(name));
        bed::registry().push(&name);
        let image = proxy.reference(&name);
        machine.plan(&image, &json!({}));
        machine.wait_for(&agent, "the image comes", || containerd.has(&image));
        let requests = |is_ours: bool| {
            let by_us =
                |seen: &Seen| format!("{:?}", seen.headers.get("user-agent")).contains("harpoon");
            proxy.count(|seen| seen.is_manifest() && by_us(seen) == is_ours)
        };
        (requests(true), requests(false) > 0)
    };
    assert_eq!(pull("far"), (0, true));
    fill(containerd, 50);
    assert_eq!(pull("near"), (1, true));
}

/// The highest usage of a file system while it exists, read all the time.
struct Peak {
    used: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl Peak {
    fn watch(directory: PathBuf) -> Self {
        let peak = Self {
            used: Arc::default(),
            is_over: Arc::default(),
        };
        let (used, is_over) = (Arc::clone(&peak.used), Arc::clone(&peak.is_over));
        std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let stat = rustix::fs::statvfs(&directory).unwrap();
                let now = (stat.f_blocks - stat.f_bavail) * stat.f_frsize;
                used.fetch_max(now, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        peak
    }

    fn end(&self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.used.load(Ordering::Relaxed)
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn full_disk_is_yielded() {
    let containerd: &'static Containerd = Box::leak(Box::new(Containerd::with_disk(2000 * MB)));
    let machine = Machine::new(cluster(), containerd);
    let peak = Peak::watch(containerd.store());
    fill(containerd, 60);
    let agent = machine.harpoon().env("DISK_HIGH_PERCENT", "80").start();
    let image = |name: &str, bytes: u64| {
        let image = bed::registry().image(&format!("{}:1", unique(name)));
        image.size(bytes).uncompressed().push().reference
    };
    // Each takes 2% of the disk, and is estimated at 4.5%: they do not all fit.
    let images: Vec<_> = (0..12).map(|_| image("disk", 20 * MB)).collect();
    // An older containerd ignores pins, so that the kubelet can remove the image without harpoon.
    let pinned = match bed::has_newer_runtimes() {
        true => retained(PIN),
        false => json!({"seal": "Always"}),
    };
    for (number, image) in images.iter().enumerate() {
        let mut extra = match number {
            0 | 1 => pinned.clone(),
            _ => json!({"seal": "Always"}),
        };
        extra["pods"] = json!(100 - number);
        machine.plan(image, &extra);
    }
    let small = image("disk-small", MB);
    machine.plan(&small, &json!({"pods": 1000}));
    let reason = |image: &str| {
        let failures = machine.status()["failures"].as_array().cloned();
        let mut failures = failures.unwrap_or_default().into_iter();
        let own = failures.find(|failure| failure["image"] == image);
        own.map_or(Value::Null, |failure| failure["reason"].clone())
    };
    let is_pressed = |image: &String| reason(image) == "disk_pressure";
    machine.wait_for(&agent, "what does not fit is named", || {
        let status = machine.status();
        let settled =
            status["present"].as_u64().unwrap_or(0) + status["failed"].as_u64().unwrap_or(0);
        settled == 13 && images.iter().any(is_pressed)
    });
    let protected = || {
        let seals = seals(containerd);
        let is_protected =
            |image: &String| seals.contains_key(image) || is_pinned(containerd, image);
        let protected = images.iter().filter(|image| is_protected(image));
        protected.cloned().collect::<Vec<_>>()
    };
    let before = protected();
    assert!((6..12).contains(&before.len()), "{before:?}");
    let fs = image_fs(containerd);
    let most = peak.end();
    assert!(most <= fs.percent(80), "{most} of {fs:?}");
    assert!(most > fs.percent(74), "{most} of {fs:?}");

    // A neighbour grows: the least important go, and no more than that takes. One image is enough by a clear margin: harpoon counts
    // on the kubelet for the image without protection, and here there is none.
    fill(containerd, 81);
    machine.wait_for(&agent, "the disk is below the mark again", || {
        condition(&machine, "DiskPressure").is_some() && image_fs(containerd).used <= fs.percent(80)
    });
    let left = protected();
    assert!(
        before.starts_with(&left) && left.len() < before.len() && left.len() >= before.len() - 2,
        "{left:?} of {before:?}"
    );
    let (_, metrics) = served(&agent, "/metrics");
    let count = format!(
        "harpoon_released_total{{cause=\"disk\"}} {}",
        before.len() - left.len()
    );
    assert!(metrics.contains(&count), "{metrics}");

    // Nothing is pulled until the usage is 5 points below, neither what is new nor what is gone.
    let late = image("disk-late", MB);
    machine.plan(&late, &json!({"pods": 1000}));
    evict(containerd, &small);
    fill(containerd, 77);
    machine.wait_for(&agent, "both wait", || {
        is_pressed(&late) && is_pressed(&small)
    });
    std::thread::sleep(Duration::from_secs(5));
    assert!(!containerd.has(&late) && !containerd.has(&small));
    assert_eq!(protected(), left);
    fill(containerd, 74);
    machine.wait_for(&agent, "it resumes", || {
        containerd.has(&late)
            && containerd.has(&small)
            && condition(&machine, "DiskPressure").is_none()
    });
    std::fs::remove_file(containerd.store().join("neighbour")).unwrap();
    machine.wait_for(&agent, "all images come", || {
        machine.status()["present"] == 14
    });
    assert!(image_fs(containerd).used <= fs.percent(80));
}
