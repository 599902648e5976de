use serde_json::{Value, json};

use super::*;
use crate::app::continuous::names;
use crate::report::status::{NodeState, Overview, PrefetchView};

/// The time of all tests: 2026-11-27T12:00:00Z.
const NOW: Duration = Duration::from_secs(1_795_780_800);

fn object<K: serde::de::DeserializeOwned>(kind: &str, name: &str, rest: &Value) -> K {
    let mut object = json!({
        "apiVersion": "harpoon.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "generation": 2, "creationTimestamp": "2026-11-27T11:00:00Z"}
    });
    for (key, value) in rest.as_object().unwrap() {
        object[key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn prefetch(state: &mut State, name: &str, ready: &str) {
    let spec = json!({"source": {"images": ["a"]}});
    let conditions = json!([{"type": "Ready", "status": ready, "reason": "Updating"}]);
    let status = json!({"observedGeneration": 2, "conditions": conditions});
    let rest = json!({"spec": spec, "status": status});
    state.prefetch(object("ImagePrefetch", name, &rest));
}

fn planned(state: &mut State, name: &str, prefetch: &str, is_everywhere: bool) {
    let placements = match is_everywhere {
        true => json!([]),
        false => json!([{"nodeSelector": {"pool": "gpu"}}]),
    };
    let image = format!("registry.example/{name}:1");
    let spec = json!({
        "image": image, "pods": 2, "prefetches": [prefetch], "placements": placements
    });
    state.planned(object("PlannedImage", name, &json!({"spec": spec})));
}

/// A node with numbers of `shop`, whose revision covers these PlannedImages.
fn node(state: &mut State, name: &str, seen: &[&str], numbers: [u64; 2], failed: &[&str]) {
    let [desired, present] = numbers;
    let revised = |name: &&str| match state.planned.get(*name) {
        Some(planned) => planned.revised.clone(),
        None => (*name).to_owned(),
    };
    let seen: Vec<String> = seen.iter().map(revised).collect();
    let entry = json!({
        "name": "shop", "revision": names::revision(seen.iter().map(String::as_str)), "desired": desired, "present": present,
        "failed": failed.len(), "pulling": desired - present - failed.len() as u64
    });
    let failures = failed.iter().map(|image| {
        json!({"image": format!("registry.example/{image}:1"), "reason": "not_found", "message": "no\u{1b}[31m"})
    });
    let failures: Vec<Value> = failures.collect();
    let status = json!({
        "desired": desired, "present": present, "prefetches": [entry], "failures": failures,
        "heartbeatTime": "2026-11-27T11:59:50Z", "firstFillSeconds": 12.5, "runtime": "containerd 2.1.9"
    });
    state.node(object("NodePrefetch", name, &json!({"status": status})));
}

fn state(subject: Subject) -> State {
    let mut state = State::new(subject);
    state.set_now(NOW);
    prefetch(&mut state, "shop", "False");
    planned(&mut state, "a", "shop", true);
    planned(&mut state, "b", "shop", true);
    state
}

fn shop() -> State {
    state(Subject::Prefetch("shop".to_owned()))
}

fn overview(state: &State) -> Overview {
    match view::of(state).unwrap() {
        View::Overview(view) => view,
        view => panic!("{view:?}"),
    }
}

fn prefetch_view(state: &State) -> PrefetchView {
    match view::of(state).unwrap() {
        View::Prefetch(view) => *view,
        view => panic!("{view:?}"),
    }
}

#[test]
fn nodes_are_counted_by_state() {
    let mut state = state(Subject::All);
    node(&mut state, "complete", &["a", "b"], [2, 2], &[]);
    node(&mut state, "pulling", &["a", "b"], [2, 1], &[]);
    node(&mut state, "outdated", &["a"], [1, 1], &[]);
    node(&mut state, "failing", &["a", "b"], [2, 1], &["b"]);
    node(&mut state, "unneeded", &["a", "b"], [0, 0], &[]);
    let created = json!({"metadata": {"name": "new", "creationTimestamp": "2026-11-27T11:59:50Z"}});
    state.node(object("NodePrefetch", "new", &created));
    let view = overview(&state);
    let row = &view.prefetches[0];
    assert_eq!((row.images, row.age_seconds), (2, Some(3600)));
    let counts = |sums: &crate::report::status::NodeSums| {
        [sums.desired, sums.complete, sums.updating, sums.failing]
    };
    assert_eq!(counts(&row.nodes), [5, 1, 3, 1]);
    assert_eq!(counts(&view.nodes), [6, 2, 3, 1]);
    let names: Vec<_> = view
        .incomplete
        .iter()
        .map(|row| row.name.as_str())
        .collect();
    assert_eq!(names, ["failing", "pulling", "new", "outdated"]);
    // Five minutes later no agent has reported again, and the new one never did.
    state.set_now(NOW + Duration::from_secs(300));
    let view = overview(&state);
    assert_eq!((view.nodes.unknown, view.nodes.updating), (6, 0));
    assert_eq!(view.incomplete[0].state, NodeState::Unknown);
}

#[test]
fn wrong_clock_makes_no_node_unknown() {
    let mut state = state(Subject::All);
    let written = |manager: &str, time: &str| {
        json!({"metadata": {"name": "node-1", "managedFields": [
                {"manager": "harpoon-agent", "operation": "Apply", "time": "2026-11-27T11:50:00Z"},
                {"manager": manager, "operation": "Apply", "time": time, "subresource": "status"}]},
            "status": {"heartbeatTime": "2026-11-27T09:00:00Z", "desired": 0}})
    };
    for (manager, time, age) in [
        ("harpoon-agent", "2026-11-27T11:59:50Z", 10),
        ("kubectl-edit", "2026-11-27T11:59:50Z", 600),
    ] {
        state.node(object("NodePrefetch", "node-1", &written(manager, time)));
        let view = overview(&state);
        assert_eq!(view.nodes.unknown, u64::from(age >= 300), "{manager}");
        let mut silent = view.incomplete.iter().map(|row| row.heartbeat_seconds);
        assert_eq!(silent.next_back(), Some(Some(age)), "{manager}");
    }
    // The agent has made the object, and has not reported.
    let mut silent = written("kubectl-edit", "2026-11-27T11:59:50Z");
    silent["status"] = json!({});
    state.node(object("NodePrefetch", "node-1", &silent));
    let row = overview(&state).incomplete.pop().unwrap();
    assert_eq!(row.heartbeat_seconds, None);
}

#[test]
fn suspended_prefetch_is_not_awaited() {
    let mut state = state(Subject::All);
    node(&mut state, "failing", &["a", "b"], [2, 1], &["b"]);
    assert!(!view::of(&state).unwrap().is_complete());
    let rest = json!({"spec": {"source": {"images": ["a"]}, "suspend": true}});
    state.prefetch(object("ImagePrefetch", "shop", &rest));
    assert!(view::of(&state).unwrap().is_complete());
}

#[test]
fn degraded_has_its_own_reason() {
    let mut state = shop();
    let conditions = json!([{"type": "Ready", "status": "True", "reason": "Complete"},
        {"type": "Degraded", "status": "True", "reason": "Forbidden", "message": "nodeGate"}]);
    let status = json!({"observedGeneration": 2, "conditions": conditions});
    let rest = json!({"spec": {"source": {"images": ["a"]}}, "status": status});
    state.prefetch(object("ImagePrefetch", "shop", &rest));
    let row = prefetch_view(&state).prefetch;
    assert_eq!((row.ready.as_str(), row.degraded), ("True", true));
    let degraded = (&*row.degraded_reason, &*row.degraded_message);
    assert_eq!(degraded, ("Forbidden", "nodeGate"));
}

#[test]
fn images_are_counted_as_reports_allow() {
    let mut state = shop();
    planned(&mut state, "gpu", "shop", false);
    let all = ["a", "b", "gpu"];
    node(&mut state, "gpu-1", &all, [3, 3], &[]);
    node(&mut state, "gpu-2", &all, [3, 2], &["gpu"]);
    node(&mut state, "cpu-1", &all, [2, 2], &[]);
    node(&mut state, "cpu-2", &all, [2, 1], &["a"]);
    node(&mut state, "pulling", &all, [2, 1], &[]);
    let view = prefetch_view(&state);
    let row = |name: &str| {
        let image = format!("registry.example/{name}:1");
        let row = view.images.iter().find(|row| row.image == image).unwrap();
        [row.nodes, row.present_min, row.present_max, row.failed]
    };
    assert_eq!(row("a"), [5, 3, 4, 1]);
    assert_eq!(row("b"), [5, 4, 5, 0]);
    assert_eq!(row("gpu"), [2, 1, 1, 1]);
    // A node that has not seen the latest set may have anything.
    node(&mut state, "pulling", &["a"], [1, 1], &[]);
    let view = prefetch_view(&state);
    let gpu = view
        .images
        .iter()
        .find(|row| row.image.contains("gpu"))
        .unwrap();
    assert_eq!([gpu.nodes, gpu.present_min, gpu.present_max], [3, 1, 2]);
}

#[test]
fn failures_are_grouped_and_sanitized() {
    let mut state = shop();
    for name in ["n1", "n2", "n3"] {
        node(&mut state, name, &["a", "b"], [2, 1], &["b"]);
    }
    node(&mut state, "n4", &["a", "b"], [2, 1], &["elsewhere"]);
    let view = prefetch_view(&state);
    assert_eq!(view.failures.len(), 1, "{:?}", view.failures);
    let failure = &view.failures[0];
    assert_eq!((failure.nodes, failure.example_node.as_str()), (3, "n1"));
    assert_eq!(failure.message, "no\\u{1b}[31m");
    // What no node has any more is forgotten.
    state.retain_nodes(&|_| false);
    assert!(prefetch_view(&state).failures.is_empty());
}

#[test]
fn slowest_nodes_come_first() {
    let mut state = shop();
    for n in 0..20 {
        let name = format!("node-{n}");
        node(&mut state, &name, &["a", "b"], [2, 2], &[]);
        state.nodes.get_mut(&name).unwrap().first_fill = Some(f64::from(n));
    }
    let view = prefetch_view(&state);
    assert!(view.incomplete.is_empty());
    assert_eq!(
        (view.slowest.len(), view.slowest[0].name.as_str()),
        (10, "node-19")
    );
}

#[test]
fn node_shows_its_entries() {
    let mut state = state(Subject::Node("node-7".to_owned()));
    node(&mut state, "node-7", &["a", "b"], [2, 1], &["b"]);
    node(&mut state, "other", &["a", "b"], [2, 2], &[]);
    let View::Node(view) = view::of(&state).unwrap() else {
        panic!("another view");
    };
    assert_eq!(view.node.state, NodeState::Failing);
    assert_eq!(view.node.heartbeat_seconds, Some(10));
    assert_eq!(view.runtime, "containerd 2.1.9");
    assert!(view.prefetches[0].current);
    assert_eq!(view.failures[0].reason, "not_found");
}

#[test]
fn missing_subject_is_an_error() {
    for (subject, expected) in [
        (
            Subject::Prefetch("x".to_owned()),
            "ImagePrefetch \"x\" not found",
        ),
        (
            Subject::Node("x".to_owned()),
            "no agent has reported from it",
        ),
    ] {
        let error = view::of(&state(subject)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn status_of_earlier_spec_is_ignored() {
    let mut state = shop();
    let status =
        json!({"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]});
    let rest = json!({"spec": {"source": {"images": ["a"]}}, "status": status});
    state.prefetch(object("ImagePrefetch", "shop", &rest));
    assert_eq!(prefetch_view(&state).prefetch.ready, "");
}

#[test]
fn relist_drops_what_is_gone() {
    let mut state = state(Subject::All);
    node(&mut state, "old", &["a", "b"], [2, 2], &[]);
    let mut relists = Relists::default();
    let new: NodePrefetch = object("NodePrefetch", "new", &json!({}));
    relists.apply(&mut state, Change::Node(Box::new(Event::Init)));
    relists.apply(
        &mut state,
        Change::Node(Box::new(Event::InitApply(new.clone()))),
    );
    assert!(relists.is_pending());
    relists.apply(&mut state, Change::Node(Box::new(Event::InitDone)));
    assert!(!relists.is_pending());
    assert_eq!(state.nodes.keys().collect::<Vec<_>>(), ["new"]);
    relists.apply(&mut state, Change::Node(Box::new(Event::Delete(new))));
    assert!(state.nodes.is_empty());
}
