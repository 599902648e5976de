use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::v1alpha1::{NodePrefetchEntry, PlannedImageSpec};
use crate::app::controller::observe::Planned;
use crate::model::failure::FailureKind;

const MINUTE: Duration = Duration::from_secs(60);
const IMAGE: &str = "registry.example/web:1";

/// A tainted node that was created and seen this long ago.
fn machine(created: Duration, seen: Duration, clock: Clock) -> Machine {
    let created = humantime::format_rfc3339(clock.wall - created).to_string();
    let node = json!({"metadata": {"name": "n", "uid": "u", "creationTimestamp": created}, "spec": {"taints": [
        {"key": "other", "effect": "NoSchedule"},
        {"key": GATE_TAINT, "effect": "NoExecute"},
        {"key": GATE_TAINT, "effect": "NoSchedule", "value": "x"},
        {"key": TAINTS[1], "effect": "NoSchedule", "timeAdded": null},
    ]}});
    read(node, clock.now.checked_sub(seen).unwrap())
}

fn read(node: Value, now: Instant) -> Machine {
    let node: GateNode = serde_json::from_value(node).unwrap();
    Machine::of(&node, None, now)
}

fn clock() -> Clock {
    // Later than any start of the machine's clock.
    Clock {
        now: Instant::now() + MINUTE * 60 * 24 * 30,
        wall: SystemTime::now(),
    }
}

/// One PlannedImage of these ImagePrefetches.
fn planned(prefetches: &[&str]) -> BTreeMap<String, Planned> {
    let spec = PlannedImageSpec {
        image: IMAGE.to_owned(),
        prefetches: prefetches.iter().map(|name| (*name).to_owned()).collect(),
        ..PlannedImageSpec::default()
    };
    let planned = Planned {
        spec,
        revised: "web".to_owned(),
        ..Planned::default()
    };
    BTreeMap::from([("web".to_owned(), planned)])
}

fn gate(name: &str) -> Gate {
    Gate::new(name, "10m", names::revision(["web"]), true)
}

fn report(name: &str, revision: &str, desired: i64, present: i64) -> Node {
    let entry = NodePrefetchEntry {
        name: name.to_owned(),
        revision: revision.to_owned(),
        desired,
        present,
        ..NodePrefetchEntry::default()
    };
    Node::new(&[entry], Vec::new(), Instant::now())
}

/// The decision: true if the node is held, and the reason and the message.
fn decided(machine: &Machine, gates: &[Gate], report: Option<&Node>, at: Clock) -> (bool, String) {
    let planned = planned(&["shop", "free"]);
    let decision = decide(machine, gates, report, &Index::new(&planned), at);
    assert_eq!(decision.is_held, !decision.waits_for.is_empty());
    (
        decision.is_held,
        format!("{}: {}", decision.reason, decision.message),
    )
}

#[test]
fn gate_opens_when_images_are_there() {
    let at = clock();
    let node = machine(MINUTE, MINUTE, at);
    let current = names::revision(["web"]);
    let gates = [gate("shop")];
    for (report, is_held) in [
        (None, true),
        (Some(report("shop", "old", 1, 1)), true),
        (Some(report("shop", &current, 1, 0)), true),
        (Some(report("other", &current, 1, 1)), true),
        (Some(report("shop", &current, 1, 1)), false),
        // The node needs none of the images.
        (Some(report("shop", &current, 0, 0)), false),
    ] {
        let (held, said) = decided(&node, &gates, report.as_ref(), at);
        assert_eq!(held, is_held, "{report:?}: {said}");
        assert!(
            said.starts_with(if is_held { "Pulling: " } else { "Complete: " }),
            "{said}"
        );
    }
    // What has not been written yet, and what an earlier Node of this name had.
    let done = report("shop", &current, 1, 1);
    let unsettled = Gate {
        is_settled: false,
        ..gate("shop")
    };
    assert!(decided(&node, &[unsettled], Some(&done), at).0);
    let mut foreign = done.clone();
    foreign.owner = Some("another".to_owned());
    assert!(decided(&node, &gates, Some(&foreign), at).0);
    // One of two is not enough; one without images needs no agent.
    assert!(decided(&node, &[gate("shop"), gate("more")], Some(&done), at).0);
    let empty = Gate::new("empty", "10m", names::revision([]), true);
    assert!(!decided(&node, &[empty], None, at).0);
    assert_eq!(
        decided(&node, &[], None, at).1,
        "NoGate: no ImagePrefetch has a nodeGate"
    );
}

#[test]
fn failed_images_are_named() {
    let at = clock();
    let mut node = report("shop", &names::revision(["web"]), 1, 0);
    node.fail(IMAGE, FailureKind::NotFound, "no");
    node.fail("registry.example/foreign:1", FailureKind::NotFound, "no");
    let gates = [gate("shop")];
    let held = decided(&machine(MINUTE, MINUTE, at), &gates, Some(&node), at);
    let image = format!("ImagePrefetch shop: image {IMAGE} failed (NotFound)");
    assert_eq!(
        held,
        (true, format!("ImageFailed: waits for images: {image}"))
    );
    let old = machine(MINUTE * 10, MINUTE, at);
    let open = decided(&old, &gates, Some(&node), at);
    assert_eq!(
        open,
        (false, format!("TimedOut: opened at the timeout: {image}"))
    );
    let silent = decided(&old, &gates, None, at).1;
    assert!(silent.contains("the agent has not reported"), "{silent}");
}

#[test]
fn only_own_taints_are_removed() {
    let at = clock();
    let node = machine(MINUTE * 11, MINUTE, at);
    let positions: Vec<_> = node.taints.iter().map(|(at, _)| *at).collect();
    assert_eq!(positions, [2, 3]);
    let planned = planned(&["shop"]);
    let gates = [gate("shop")];
    let decide = |node: &Machine| {
        let decision = decide(node, &gates, None, &Index::new(&planned), at);
        action("n", node, &decision)
    };
    let action = decide(&node).unwrap();
    assert_eq!(action.taints, node.taints);
    let told = action.condition.clone().unwrap();
    assert!(told.is_open && action.opens() && action.complaint.is_some());
    // Once written, there is nothing more to do, and the node may still become complete.
    let mut written = node.clone();
    written.written(&action, true, true);
    assert_eq!(written.condition, Some(told));
    assert_eq!(decide(&written), None);
    assert!(written.is_concerned());
    // Another writer put the taint back, and the watch told so before the answer came.
    let mut again = Machine {
        version: Some("2".to_owned()),
        ..node
    };
    again.written(&action, true, true);
    assert!(decide(&again).unwrap().opens());
    // A node that is held is told so once, and gives up nothing.
    let young = machine(MINUTE, MINUTE, at);
    let action = decide(&young).unwrap();
    assert!(action.taints.is_empty() && !action.opens());
    let told = Machine {
        condition: action.condition,
        ..young
    };
    assert_eq!(decide(&told), None);
}

#[test]
fn opened_node_stays_open() {
    let at = clock();
    let mut node = machine(MINUTE * 11, MINUTE * 11, at);
    let planned = planned(&["shop"]);
    let gates = [gate("shop")];
    let decision = decide(&node, &gates, None, &Index::new(&planned), at);
    let opened = action("n", &node, &decision).unwrap();
    let taints = node.taints.clone();
    node.written(&opened, true, true);
    let longer = Gate::new("shop", "1h", names::revision(["web"]), true);
    let gates = [
        longer,
        Gate::new("new", "1h", names::revision(["db"]), true),
    ];
    let (is_held, said) = decided(&node, &gates, None, at);
    assert!(!is_held && said.starts_with("TimedOut: "), "{said}");
    // Somebody has put the taint back.
    node.taints = taints;
    assert!(decided(&node, &gates, None, at).0);
}

#[test]
fn unconcerned_nodes_are_left_alone() {
    let node = |taint: &str, condition: Value| {
        read(
            json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": null}, condition]}}),
            Instant::now(),
        )
    };
    let told = |status: &str, reason: &str| json!({"type": CONDITION, "status": status, "reason": reason, "lastTransitionTime": null});
    assert!(!node("other", json!({})).is_concerned());
    assert!(node("readiness.k8s.io/images", json!({})).is_concerned());
    assert!(!node("readiness.k8s.io/images", told("True", COMPLETE)).is_concerned());
    assert!(node("readiness.k8s.io/images", told("True", TIMED_OUT)).is_concerned());
    assert!(node("other", told("False", "Pulling")).is_concerned());
    assert!(node(GATE_TAINT, told("True", COMPLETE)).is_concerned());
    // Nodes without taints and conditions, as the API server writes them.
    let bare = read(
        json!({"metadata": {"name": "n"}, "spec": {}}),
        Instant::now(),
    );
    assert!(!bare.is_concerned());
}

proptest! {
    /// Whatever is reported and whatever the clocks say, no node is held once it was known for the longest timeout, or is that old.
    #[test]
    fn gate_opens_by_its_timeout(
        timeouts in prop::collection::vec(prop_oneof![(10u64..90_000).prop_map(|s| format!("{s}s")), Just("soon".to_owned())], 0..4),
        settled in any::<bool>(),
        counts in prop::option::of((any::<bool>(), -1i64..3, -1i64..3)),
        age in -1_000_000i64..1_000_000,
        seen in 0u64..100_000,
        has_created in any::<bool>(),
    ) {
        let at = clock();
        let second = Duration::from_secs(1);
        let seen = Duration::from_secs(seen);
        let mut node = machine(Duration::ZERO, seen, at);
        let shift = second * u32::try_from(age.unsigned_abs()).unwrap();
        node.created = has_created.then(|| if age < 0 { at.wall + shift } else { at.wall - shift });
        let current = names::revision(["web"]);
        let gates: Vec<Gate> = timeouts.iter().enumerate()
            .map(|(n, timeout)| Gate::new(&format!("gate-{n}"), timeout, current.clone(), settled)).collect();
        let report = counts.map(|(is_current, desired, present)|
            report("gate-0", if is_current { &current } else { "old" }, desired, present));
        let planned = planned(&["gate-0"]);
        let decision = decide(&node, &gates, report.as_ref(), &Index::new(&planned), at);
        let longest = gates.iter().map(|gate| gate.timeout.min(LONGEST)).max().unwrap_or_default();
        let age = if has_created { u64::try_from(age).unwrap_or(0) } else { 0 };
        if seen >= longest || Duration::from_secs(age) >= longest {
            prop_assert!(!decision.is_held, "{:?}", decision);
        }
        if decision.is_held {
            // The next look is in time.
            prop_assert!(decision.left.is_some_and(|left| left <= longest));
        }
        prop_assert!(decision.message.len() <= MESSAGE_MAX);
        let removed = action("n", &node, &decision).map_or(0, |action| action.taints.len());
        prop_assert_eq!(removed > 0, !decision.is_held);
    }
}
