//! Controllers that are killed, and an API server that is away.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::{
    Controlled, PLANNED, SOON, controller, images, list, object_of, prefetch, set_image, workloads,
};
use crate::bed::{Kubernetes, Running, eventually, unique};

/// A number from the environment, for longer runs.
fn number(variable: &str, default: u32) -> u32 {
    let text = std::env::var(variable).ok();
    text.map_or(default, |text| text.parse().unwrap())
}

fn leads(running: &Running) -> bool {
    running.stderr().contains("leading")
}

#[test]
fn killed_leaders_lose_no_change() {
    let rounds = number("HARPOON_FAILOVERS", 3);
    let changes = number("HARPOON_CHANGES", rounds * 7);
    let cluster = Kubernetes::start();
    cluster.install_definitions();
    let (namespace, name) = (cluster.namespace(), unique("kill"));
    let image = |deployment: u32, tag: u32| format!("registry.example/{name}/{deployment}:{tag}");
    let deployments = 10;
    for n in 0..deployments {
        cluster.deployment(&namespace, &format!("web-{n}"), n + 1, &image(n, 0));
    }
    prefetch(&cluster, &name, workloads(&namespace));
    let harpoon = controller(&cluster);
    let mut pair = vec![harpoon.start(), harpoon.start()];
    let mut tags = vec![0; deployments as usize];
    let (mut changed, mut slowest) = (0, Duration::ZERO);
    let mut change = |tags: &mut Vec<u32>| {
        let at = changed % deployments;
        tags[at as usize] += 1;
        set_image(
            &cluster,
            &namespace,
            &format!("web-{at}"),
            &image(at, tags[at as usize]),
        );
        changed += 1;
    };
    for _ in 0..rounds {
        eventually("one leads", SOON, || pair.iter().any(leads));
        let at = pair.iter().position(leads).unwrap();
        // At a random moment of the changes.
        for _ in 0..changes.div_ceil(rounds) {
            change(&mut tags);
            std::thread::sleep(Duration::from_millis(u64::from(fastrand::u8(..))));
        }
        let leader = pair.remove(at);
        leader.signal(Signal::KILL);
        let killed = Instant::now();
        drop(leader);
        eventually("the standby takes over", SOON, || leads(&pair[0]));
        slowest = slowest.max(killed.elapsed());
        pair.push(harpoon.start());
    }
    eprintln!("{rounds} kills, {changes} changes: takeover after at most {slowest:?}");
    let expected: BTreeSet<String> = tags
        .iter()
        .enumerate()
        .map(|(n, tag)| image(u32::try_from(n).unwrap(), *tag))
        .collect();
    eventually("the end state is exact", SOON, || {
        let all = cluster.get(PLANNED)["items"].take();
        let all: Vec<Value> = serde_json::from_value(all).unwrap();
        let of_all: Vec<String> = all
            .iter()
            .map(|object| object["spec"]["image"].as_str().unwrap().to_owned())
            .collect();
        // No duplicate, and nothing that is not used any more.
        of_all.len() == expected.len() && BTreeSet::from_iter(of_all) == expected
    });
    assert_eq!(images(&cluster, &name).len(), expected.len());
}

#[test]
fn stopped_leader_hands_over_at_once() {
    let cluster = Kubernetes::start();
    cluster.install_definitions();
    let harpoon = controller(&cluster);
    let first = harpoon.start();
    eventually("the first leads", SOON, || leads(&first));
    let second = harpoon.start();
    second.wait_for("waits for the Lease", SOON);
    std::thread::sleep(Duration::from_secs(3));
    assert!(!leads(&second));
    let stopped = Instant::now();
    first.signal(Signal::TERM);
    first.wait().expect(0);
    let ended = stopped.elapsed();
    eventually("the second leads", SOON, || leads(&second));
    eprintln!(
        "stopped after {ended:?}, handed over after {:?}",
        stopped.elapsed()
    );
    // Without the hand-over, the second waits until the Lease has not changed for 12 s.
    assert!(stopped.elapsed() < Duration::from_secs(12));
    second.signal(Signal::TERM);
    second.wait().expect(0);
}

#[test]
fn absent_server_ends_no_controller() {
    let away = number("HARPOON_API_AWAY", 15);
    let cluster = Controlled::start(Kubernetes::start());
    let (namespace, name) = (cluster.namespace(), unique("away"));
    let image = |tag: u32| format!("registry.example/{name}:{tag}");
    cluster.deployment(&namespace, "web", 1, &image(1));
    prefetch(&cluster, &name, workloads(&namespace));
    let listed = unique("listed");
    let of_list = format!("registry.example/{listed}:1");
    prefetch(&cluster, &listed, list(&[&of_list]));
    eventually("planned", SOON, || {
        images(&cluster, &name) == [image(1)] && images(&cluster, &listed).len() == 1
    });
    cluster.kill();
    std::thread::sleep(Duration::from_secs(away.into()));
    assert!(!cluster.running.has_ended());
    cluster.restart();
    let back = Instant::now();
    set_image(&cluster, &namespace, "web", &image(2));
    eventually("planned again", Duration::from_secs(60), || {
        images(&cluster, &name) == [image(2)]
    });
    eprintln!(
        "away for {away} s: planned {:?} after its return",
        back.elapsed()
    );
    eventually("deleted", SOON, || object_of(&cluster, &image(1)).is_none());
    assert_eq!(images(&cluster, &listed), [of_list]);
    assert!(!cluster.running.has_ended());
}
