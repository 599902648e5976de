//! Tests of the pure steps together: prefetches and workloads in, PlannedImages and statuses out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use kube::runtime::watcher::Event;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::aggregate::{self, Index, Standing, Subject};
use super::apply::{self, Change, Pace};
use super::brake::Brakes;
use super::events;
use super::merge::{self, Demanded, Desired, Planning};
use super::observe::{Node, Planned, Refusal, State, Table, planned};
use super::resolve::{self, Resolved};
use super::watches::Needs;
use crate::api::v1alpha1::{
    Condition, ImagePrefetchSpec, ImagePrefetchStatus, NodePrefetchEntry, PlannedImage,
    PlannedImageSpec,
};
use crate::app::continuous::names;
use crate::discovery::workloads::Scope;
use crate::discovery::workloads::inventory::{Inventory, WatchKey};
use crate::model::failure::FailureKind;
use crate::model::workload_kind::WorkloadKind;

const NOW: &str = "2026-11-27T12:00:00Z";

fn spec(value: Value) -> ImagePrefetchSpec {
    serde_json::from_value(value).unwrap()
}

fn list(images: &[&str]) -> ImagePrefetchSpec {
    spec(json!({"source": {"images": images}}))
}

fn resolved(spec: &ImagePrefetchSpec) -> Resolved {
    let demand = resolve::validate(spec).unwrap();
    resolve::resolve(&demand, &Inventory::default(), &BTreeMap::new())
}

/// The PlannedImages of these ImagePrefetches; one without a spec is held.
fn merged(
    prefetches: &[(&str, Option<&ImagePrefetchSpec>)],
    existing: &BTreeMap<String, Planned>,
) -> BTreeMap<String, Desired> {
    let resolved: Vec<_> = prefetches
        .iter()
        .map(|(_, spec)| spec.map(resolved))
        .collect();
    let demanded = prefetches
        .iter()
        .zip(&resolved)
        .map(|((name, spec), resolved)| {
            let demanded = match (spec, resolved) {
                (Some(spec), Some(resolved)) => Demanded::Resolved(spec, resolved),
                _ => Demanded::Held,
            };
            (*name, demanded)
        });
    let planning = Planning { now: NOW, nodes: 7 };
    merge::merge(demanded, existing, &BTreeMap::new(), planning)
}

/// The objects of the API server after these were written.
fn stored(desired: &BTreeMap<String, Desired>) -> BTreeMap<String, Planned> {
    let stored = desired.iter().map(|(name, desired)| {
        let planned = Planned {
            spec: desired.spec.clone(),
            revised: names::revised(name, &desired.spec.placements),
            brake: desired.brake,
            ..Planned::default()
        };
        (name.clone(), planned)
    });
    stored.collect()
}

fn one(desired: &BTreeMap<String, Desired>) -> &PlannedImageSpec {
    assert_eq!(desired.len(), 1, "{desired:?}");
    &desired.values().next().unwrap().spec
}

#[test]
fn invalid_specs_name_their_field() {
    for (value, said) in [
        (json!({"source": {}}), "exactly one of"),
        (
            json!({"source": {"images": ["a"], "workloads": {}}}),
            "exactly one of",
        ),
        (json!({"source": {"images": []}}), "spec.source.images"),
        (json!({"source": {"workloads": {"kinds": []}}}), "kinds"),
        (
            json!({"source": {"workloads": {"namespaces": ["A/../b"]}}}),
            "\"A/../b\" is not",
        ),
        (
            json!({"source": {"images": ["a"]}, "limit": 0}),
            "spec.limit",
        ),
        (
            json!({"source": {"images": ["a"]}, "only": ["\u{1b}[31m"]}),
            "\\u{1b}",
        ),
        (
            json!({"source": {"images": ["a"]}, "rollout": {"doublingPeriod": "2h"}}),
            "at most 1h",
        ),
        (
            json!({"source": {"images": ["a"]}, "retention": {"keepAfterUnused": "soon"}}),
            "is not a duration",
        ),
        (
            json!({"source": {"images": ["a"]}, "nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Near", "values": []}]}}),
            "spec.nodeSelector",
        ),
    ] {
        let error = resolve::validate(&spec(value)).unwrap_err();
        assert!(error.contains(said) && error.len() < 300, "{error}");
        assert!(!error.contains('\u{1b}'), "{error}");
    }
}

#[test]
fn malformed_images_are_named_and_bounded() {
    let long = "X".repeat(4000);
    let mut images = vec!["registry.example/fine:1", "b\u{1b}[2J"];
    images.extend([long.as_str(), "C//d", "E:f:g", "h@sha256:x", "I", "J", "K"]);
    let resolved = resolved(&list(&images));
    assert_eq!(resolved.images.len(), 1, "{resolved:?}");
    let said = &resolved.malformed;
    assert!(said.len() < 2000 && !said.contains('\u{1b}'), "{said}");
    assert!(said.contains("and 3 more"), "{said}");
}

#[test]
fn spellings_and_prefetches_become_one_object() {
    let one_spec = spec(
        json!({"source": {"images": ["docker.io/library/web", "web:latest"]},
        "nodeSelector": {"matchLabels": {"pool": "a"}}, "pullSecrets": [{"namespace": "b", "name": "b"}],
        "rollout": {"type": "Doubling"}, "retention": {"policy": "Pin", "keepAfterUnused": "1h"}, "seal": "Never"}),
    );
    let other = spec(
        json!({"source": {"images": ["web"]}, "nodeSelector": {"matchLabels": {"pool": "b"}},
        "pullSecrets": [{"namespace": "a", "name": "a"}, {"namespace": "b", "name": "b"}],
        "rollout": {"window": "5m"}, "retention": {"policy": "Keep", "keepAfterUnused": "36h"}, "seal": "Auto"}),
    );
    let both = merged(
        &[("one", Some(&one_spec)), ("other", Some(&other))],
        &BTreeMap::new(),
    );
    let image = one(&both);
    assert_eq!(image.image, "docker.io/library/web:latest");
    assert_eq!(image.prefetches, ["one", "other"]);
    assert_eq!(image.placements.len(), 2);
    let json = serde_json::to_value(image).unwrap();
    assert_eq!(
        json["rollout"],
        json!({"type": "Linear", "window": "5m", "nodes": 7, "startTime": NOW})
    );
    assert_eq!(
        json["retention"],
        json!({"policy": "Pin", "keepAfterUnused": "36h"})
    );
    assert_eq!(
        (json["seal"].as_str(), image.pull_secrets.len()),
        (Some("Auto"), 2)
    );
    assert!(image.refresh);
    // The order of the ImagePrefetches does not matter.
    assert_eq!(
        merged(
            &[("other", Some(&other)), ("one", Some(&one_spec))],
            &BTreeMap::new()
        ),
        both
    );
    // Everywhere wins.
    let everywhere = list(&["web"]);
    let all = merged(
        &[("one", Some(&one_spec)), ("all", Some(&everywhere))],
        &BTreeMap::new(),
    );
    assert!(one(&all).placements.is_empty());
}

#[test]
fn only_large_placements_are_dropped() {
    let secrets = |count: usize| -> Vec<Value> {
        let names = (0..count).map(|n| format!("secret-{n}-{}", "x".repeat(80)));
        names
            .map(|name| json!({"namespace": "shop", "name": name}))
            .collect()
    };
    let placements = |pools: usize, count: usize| {
        let pools: Vec<String> = (0..pools).map(|n| format!("pool-{n}")).collect();
        let selector =
            json!({"matchExpressions": [{"key": "pool", "operator": "In", "values": pools}]});
        let spec = spec(
            json!({"source": {"images": ["web"]}, "nodeSelector": selector, "pullSecrets": secrets(count)}),
        );
        one(&merged(&[("a", Some(&spec))], &BTreeMap::new()))
            .placements
            .len()
    };
    assert_eq!(placements(2, 2), 1);
    assert_eq!(placements(200, 2), 0);
    assert_eq!(placements(2, 18), 1);
    assert_eq!(placements(200, 18), 0);
}

#[test]
fn wider_placement_is_another_rollout() {
    let pool = |pool: &str| {
        spec(
            json!({"source": {"images": ["web"]}, "nodeSelector": {"matchLabels": {"pool": pool}}}),
        )
    };
    let mut existing = stored(&merged(&[("a", Some(&pool("a")))], &BTreeMap::new()));
    let known = existing.values_mut().next().unwrap();
    known.spec.rollout.start_time = "2026-01-01T00:00:00Z".to_owned();
    let same = merged(&[("a", Some(&pool("a")))], &existing);
    assert_eq!(one(&same).rollout.start_time, "2026-01-01T00:00:00Z");
    let everywhere = merged(&[("a", Some(&list(&["web"])))], &existing);
    assert_eq!(one(&everywhere).rollout.start_time, NOW);
    // No node has seen that yet.
    let before = Index::new(&existing).revision("a").to_owned();
    assert_ne!(Index::new(&stored(&everywhere)).revision("a"), before);
    // Fewer nodes need none, a rollout in progress has slots for all, and what the API server stores otherwise was written all the same.
    let start = |known: &Planned| {
        let existing = existing.keys().cloned().zip([known.clone()]).collect();
        one(&merged(&[("a", Some(&pool("b")))], &existing))
            .rollout
            .start_time
            .clone()
    };
    let mut known = existing.values().next().unwrap().clone();
    assert_eq!(start(&known), NOW);
    known.spec.placements = one(&merged(&[("a", Some(&pool("b")))], &BTreeMap::new()))
        .placements
        .clone();
    known.spec.placements.extend(one(&same).placements.clone());
    assert_eq!(start(&known), "2026-01-01T00:00:00Z");
    known.spec.placements = one(&same).placements.clone();
    known.written = Some(Box::new(
        one(&merged(&[("a", Some(&pool("b")))], &BTreeMap::new())).clone(),
    ));
    assert_eq!(start(&known), "2026-01-01T00:00:00Z");
    known.written = None;
    known.spec.rollout.start_time = "2026-11-27T11:59:30Z".to_owned();
    assert_eq!(start(&known), "2026-11-27T11:59:30Z");
}

#[test]
fn start_time_survives_changes() {
    let old = list(&["web"]);
    let mut existing = stored(&merged(&[("a", Some(&old))], &BTreeMap::new()));
    let known = existing.values_mut().next().unwrap();
    known.spec.rollout.start_time = "2026-01-01T00:00:00Z".to_owned();
    known.spec.other.insert("future".to_owned(), json!(1));
    let slower = spec(json!({"source": {"images": ["web"]}, "rollout": {"window": "9m"}}));
    let changed = merged(&[("a", Some(&slower))], &existing);
    assert_eq!(one(&changed).rollout.start_time, "2026-01-01T00:00:00Z");
    assert_eq!(one(&changed).rollout.window, "9m");
    assert_eq!(one(&changed).other["future"], 1);
    // One that comes back starts anew.
    existing
        .values_mut()
        .next()
        .unwrap()
        .spec
        .prefetches
        .clear();
    assert_eq!(
        one(&merged(&[("a", Some(&slower))], &existing))
            .rollout
            .start_time,
        NOW
    );
}

#[test]
fn held_prefetch_keeps_its_images() {
    let spec = list(&["web", "db"]);
    let existing = stored(&merged(
        &[("a", Some(&spec)), ("b", Some(&list(&["db"])))],
        &BTreeMap::new(),
    ));
    let held = merged(&[("a", None), ("b", None)], &existing);
    let (changes, due) = apply::diff(&existing, &held, SystemTime::now());
    assert!(changes.is_empty() && due.is_none(), "{changes:?}");
    // Those of others still go.
    let (changes, _) = apply::diff(
        &existing,
        &merged(&[("a", None)], &existing),
        SystemTime::now(),
    );
    let [Change::Update(_, desired)] = &*changes else {
        panic!("{changes:?}");
    };
    assert_eq!(desired.spec.prefetches, ["a"]);
}

#[test]
fn large_placements_are_widened() {
    let labels: BTreeMap<String, String> = (0..40)
        .map(|n| (format!("key-{n}"), "x".repeat(60)))
        .collect();
    let spec =
        spec(json!({"source": {"images": ["web"]}, "nodeSelector": {"matchLabels": labels}}));
    let desired = merged(&[("a", Some(&spec))], &BTreeMap::new());
    assert!(desired.values().all(|desired| desired.is_widened));
    assert!(one(&desired).placements.is_empty());
}

#[test]
fn unused_images_are_retired_then_deleted() {
    let now = SystemTime::now();
    let spec = spec(json!({"source": {"images": ["web"]}, "retention": {"keepAfterUnused": "1h"}}));
    let mut existing = stored(&merged(&[("a", Some(&spec))], &BTreeMap::new()));
    let (changes, due) = apply::diff(&existing, &BTreeMap::new(), now);
    let [Change::Retire(_, retired, since)] = &*changes else {
        panic!("{changes:?}");
    };
    assert!(retired.prefetches.is_empty() && due.is_none());
    assert_eq!(retired.retention.keep_after_unused, "1h");
    let known = existing.values_mut().next().unwrap();
    known.spec = *retired.clone();
    known.unused_since = Some(since.clone());
    let (changes, due) = apply::diff(&existing, &BTreeMap::new(), now);
    assert!(changes.is_empty());
    let wait = due.unwrap().duration_since(now).unwrap();
    assert!(
        wait <= Duration::from_secs(3600) && wait > Duration::from_millis(3_599_900),
        "{wait:?}"
    );
    let (changes, _) = apply::diff(&existing, &BTreeMap::new(), now + Duration::from_secs(3601));
    assert!(matches!(&*changes, [Change::Delete(..)]), "{changes:?}");
    // It is used again.
    let (changes, _) = apply::diff(&existing, &merged(&[("a", Some(&spec))], &existing), now);
    assert!(matches!(&*changes, [Change::Update(..)]), "{changes:?}");
}

#[test]
fn many_images_delay_no_other_prefetch() {
    let many: Vec<String> = (0..300)
        .map(|n| format!("registry.example/many/{n}:1"))
        .collect();
    let many = list(&many.iter().map(String::as_str).collect::<Vec<_>>());
    let few = list(&["registry.example/few:1"]);
    let desired = merged(
        &[("many", Some(&many)), ("few", Some(&few))],
        &BTreeMap::new(),
    );
    let (changes, _) = apply::diff(&BTreeMap::new(), &desired, SystemTime::now());
    let at = changes
        .iter()
        .position(|change| change.prefetches() == ["few"]);
    assert!(at.is_some_and(|at| at < 2), "{at:?}");
    assert_eq!(changes.len(), 301);
}

#[test]
fn stored_object_that_differs_is_written_once() {
    let desired = merged(&[("a", Some(&list(&["web"])))], &BTreeMap::new());
    let mut existing = stored(&desired);
    let known = existing.values_mut().next().unwrap();
    known.spec.pods = 9;
    let count = |existing: &BTreeMap<String, Planned>| {
        apply::diff(existing, &desired, SystemTime::now()).0.len()
    };
    assert_eq!(count(&existing), 1);
    let known = existing.values_mut().next().unwrap();
    known.written = Some(Box::new(one(&desired).clone()));
    assert_eq!(count(&existing), 0);
}

#[test]
fn watch_knows_better_than_response() {
    let object = |version: &str| {
        let mut object = PlannedImage::new("web", PlannedImageSpec::default());
        object.metadata.resource_version = Some(version.to_owned());
        object
    };
    let stored = |version| Some(planned(&object(version), None));
    let known = |events: Vec<Event<PlannedImage>>, response| {
        let mut table = Table::default();
        let before = Event::Apply(object("1"));
        table.handle(before, |object, known, _| planned(object, known));
        table.write("web");
        for event in events {
            table.handle(event, |object, known, _| planned(object, known));
        }
        let is_taken = table.wrote("web", response);
        let version = table.items.remove("web").map(|web| web.resource_version);
        (is_taken, version.unwrap_or_default())
    };
    let (apply, delete) = (|v| Event::Apply(object(v)), |v| Event::Delete(object(v)));
    let is = |is_taken: bool, version: &str| (is_taken, version.to_owned());
    assert_eq!(known(vec![], stored("2")), is(true, "2"));
    assert_eq!(known(vec![apply("2")], stored("2")), is(true, "2"));
    assert_eq!(known(vec![], None), is(true, ""));
    assert_eq!(known(vec![delete("2")], None), is(true, ""));
    // Somebody deleted, changed or created it after the write.
    let deleted = vec![apply("2"), delete("3")];
    assert_eq!(known(deleted, stored("2")), is(false, ""));
    let changed = vec![apply("2"), apply("3")];
    assert_eq!(known(changed, stored("2")), is(false, "3"));
    let created = vec![delete("2"), apply("3")];
    assert_eq!(known(created, None), is(false, "3"));
    let listed = vec![Event::Init, Event::InitDone];
    assert_eq!(known(listed, stored("2")), is(false, ""));
}

#[test]
fn pace_is_ten_writes_a_second() {
    let start = Instant::now();
    // At once, where so many agents see each write; then ten a second.
    for (agents, burst) in [(0, 500), (100, 500), (1000, 50), (5000, 10), (20_000, 10)] {
        let mut pace = Pace::new(start);
        let (mut now, mut writes) = (start, 0);
        while now < start + Duration::from_secs(10) {
            if pace.next(now, agents) <= now {
                pace.take();
                writes += 1;
            }
            now += Duration::from_millis(1);
        }
        let expected = burst + 95..=burst + 101;
        assert!(expected.contains(&writes), "{agents}: {writes}");
    }
    let (now, mut pace) = (start, Pace::new(start));
    assert!(pace.failed("x", false, now));
    assert!(pace.next(now, 5000) >= now + Duration::from_millis(250));
    assert!(!pace.failed("x", false, now));
    pace.succeeded("x");
    assert!(pace.failed("y", true, now));
    assert!(pace.pause_of("y", now).is_some() && pace.pause_of("x", now).is_none());
    pace.retain(|_| false);
    assert!(pace.pause_of("y", now).is_none());
}

#[test]
fn brake_doubles_once_a_minute() {
    let mut brakes = Brakes::default();
    let mut existing = stored(&merged(
        &[("a", Some(&list(&["web", "db"])))],
        &BTreeMap::new(),
    ));
    let limited = |image: &str| image.contains("web");
    let start = Instant::now();
    let spec = list(&["web", "db"]);
    for round in 1..=10_u32 {
        let now = start + Duration::from_secs(61) * round;
        assert_eq!(
            brakes.decide(&existing, limited, now),
            round <= 8,
            "{round}"
        );
        let resolved = resolved(&spec);
        let desired = merge::merge(
            [("a", Demanded::Resolved(&spec, &resolved))],
            &existing,
            &brakes.doublings,
            Planning { now: NOW, nodes: 1 },
        );
        existing = stored(&desired);
        // Not twice within a minute.
        assert!(!brakes.decide(&existing, limited, now + Duration::from_secs(30)));
    }
    let window = |image: &str| {
        existing[&names::planned_image(image)]
            .spec
            .rollout
            .window
            .clone()
    };
    assert_eq!(
        window("docker.io/library/web:latest"),
        format!("{}s", 120 << 8)
    );
    assert_eq!(window("docker.io/library/db:latest"), "2m");
    // A held prefetch does not double it again.
    let held = merged(&[("a", None)], &existing);
    assert!(
        apply::diff(&existing, &held, SystemTime::now())
            .0
            .is_empty()
    );
}

#[test]
fn needs_prefer_few_watches() {
    let demand =
        |value: Value| resolve::validate(&spec(json!({"source": {"workloads": value}}))).unwrap();
    let key = |kind, namespace: Option<&str>| WatchKey {
        kind,
        scope: namespace.map_or(Scope::All, |name| Scope::Namespace(name.to_owned())),
    };
    let deployments = WorkloadKind::Deployments;
    let some = demand(json!({"namespaces": ["a", "b"]}));
    let needs = Needs::of([&some], |_| false);
    assert_eq!(
        needs.keys,
        BTreeSet::from([key(deployments, Some("a")), key(deployments, Some("b"))])
    );
    let all = demand(json!({"kinds": ["Deployment", "Pod"]}));
    let needs = Needs::of([&some, &all], |_| false);
    assert_eq!(
        needs.keys,
        BTreeSet::from([key(deployments, None), key(WorkloadKind::Pods, None)])
    );
    // Where all namespaces are refused, those that are named are watched on their own.
    let needs = Needs::of([&some, &all], |key| {
        key.kind == deployments && key.scope == Scope::All
    });
    assert_eq!(needs.keys.len(), 4);
    let many: Vec<String> = (0..21).map(|n| format!("n{n}")).collect();
    let many = demand(json!({"namespaces": many}));
    assert_eq!(
        Needs::of([&many], |_| false).keys,
        BTreeSet::from([key(deployments, None)])
    );
    let selected = demand(json!({"namespaceSelector": {"matchLabels": {"a": "b"}}}));
    let needs = Needs::of([&selected], |_| false);
    assert!(needs.namespaces && needs.keys.contains(&key(deployments, None)));
}

#[test]
fn unknown_workloads_are_not_available() {
    let mut state = State::new(false);
    let demand = resolve::validate(&spec(
        json!({"source": {"workloads": {"namespaces": ["a"]}}}),
    ))
    .unwrap();
    assert_eq!(state.availability(&demand), Err(None));
    let refusal = Refusal {
        reason: "Forbidden",
        message: "no".to_owned(),
    };
    let key = |scope| WatchKey {
        kind: WorkloadKind::Deployments,
        scope,
    };
    // All namespaces are refused, the own one is being listed.
    state
        .refusals
        .insert(Some(key(Scope::All)), refusal.clone());
    assert_eq!(state.availability(&demand), Err(None));
    let own = key(Scope::Namespace("a".to_owned()));
    state.refusals.insert(Some(own), refusal.clone());
    assert_eq!(state.availability(&demand), Err(Some(refusal)));
}

// --- status

fn node(changed: Instant, entries: &[(&str, &str, [i64; 3])]) -> Node {
    let entries =
        entries.iter().map(
            |(name, revision, [desired, present, failed])| NodePrefetchEntry {
                name: (*name).to_owned(),
                revision: (*revision).to_owned(),
                desired: *desired,
                present: *present,
                failed: *failed,
                pulling: 0,
            },
        );
    Node::new(&entries.collect::<Vec<_>>(), Vec::new(), changed)
}

#[test]
fn entries_are_found_in_any_order() {
    let entry = |name| (name, "r", [1, 0, 0]);
    let listed = ["web", "api", "db"].map(entry);
    let again = ("api", "r", [2, 0, 0]);
    let node = node(Instant::now(), &[&listed[..], &[again]].concat());
    let desired = |name| node.entry(name).map(|entry| entry.desired);
    assert_eq!(
        ["api", "db", "web"].map(desired),
        [Some(2), Some(1), Some(1)]
    );
    assert_eq!((desired("none"), node.entries().count()), (None, 3));
}

fn status_of(
    planned: &BTreeMap<String, Planned>,
    nodes: &BTreeMap<String, Node>,
    standing: &Standing,
    now: Instant,
) -> ImagePrefetchStatus {
    let subject = Subject {
        name: "a",
        generation: Some(3),
        standing,
        is_pending: false,
        refusal: None,
        gate: None,
    };
    let before = ImagePrefetchStatus::default();
    aggregate::status(subject, &Index::new(planned), nodes, &before, (now, NOW))
}

fn verdict(status: &ImagePrefetchStatus, kind: &str) -> (String, String) {
    let found = status
        .conditions
        .iter()
        .find(|condition| condition.kind == kind)
        .unwrap();
    assert!(!found.message.is_empty(), "{found:?}");
    (found.status.clone(), found.reason.clone())
}

fn is(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn conditions_follow_nodes() {
    let planned = stored(&merged(&[("a", Some(&list(&["web"])))], &BTreeMap::new()));
    let revision = names::revision(planned.keys().map(String::as_str));
    let now = Instant::now() + Duration::from_secs(1000);
    let fine = Standing::Resolved {
        images: 1,
        malformed: String::new(),
    };
    let check = |nodes: &[(&str, Node)], ready: (String, String), degraded: (String, String)| {
        let nodes = nodes
            .iter()
            .map(|(name, node)| ((*name).to_owned(), node.clone()))
            .collect();
        let status = status_of(&planned, &nodes, &fine, now);
        assert_eq!(verdict(&status, "Ready"), ready, "{status:?}");
        assert_eq!(verdict(&status, "Degraded"), degraded, "{status:?}");
        status.nodes
    };
    let full = node(now, &[("a", &revision, [1, 1, 0])]);
    let unneeded = node(now, &[("a", &revision, [0, 0, 0])]);
    let old = node(now, &[("a", "old", [1, 1, 0])]);
    let broken = node(now, &[("a", &revision, [1, 0, 1])]);
    let silent = node(now - aggregate::STALE, &[("a", &revision, [1, 1, 0])]);
    check(&[], is("False", "NoAgents"), is("False", "NoAgents"));
    check(
        &[("n", full.clone())],
        is("True", "Complete"),
        is("False", "Complete"),
    );
    check(
        &[("n", unneeded.clone())],
        is("True", "NoMatchingNodes"),
        is("False", "NoMatchingNodes"),
    );
    check(
        &[("n", old.clone()), ("m", full.clone())],
        is("False", "Updating"),
        is("False", "Updating"),
    );
    check(
        &[("n", silent.clone()), ("m", full.clone())],
        is("False", "NodesUnknown"),
        is("True", "NodesUnknown"),
    );
    check(
        &[("n", broken.clone())],
        is("False", "Other"),
        is("True", "Other"),
    );
    let counts = check(
        &[
            ("1", full),
            ("2", unneeded),
            ("3", old),
            ("4", broken),
            ("5", silent),
        ],
        is("False", "Other"),
        is("True", "Other"),
    );
    let sum = counts.complete + counts.updating + counts.failing + counts.unknown;
    assert_eq!((counts.desired, sum, counts.unknown), (4, 4, 1));
}

#[test]
fn standing_decides_before_nodes() {
    let refusal = Refusal {
        reason: "Forbidden",
        message: "needs \"list\"".to_owned(),
    };
    for (standing, ready, degraded) in [
        (
            Standing::Invalid("bad\u{1b}".to_owned()),
            is("False", "InvalidSpec"),
            "True",
        ),
        (Standing::Refused(refusal), is("False", "Forbidden"), "True"),
        (Standing::Suspended, is("False", "Suspended"), "False"),
        (Standing::Listing, is("False", "Updating"), "False"),
        (
            Standing::Resolved {
                images: 0,
                malformed: "image \"X\"".to_owned(),
            },
            is("False", "InvalidSpec"),
            "True",
        ),
    ] {
        let status = status_of(
            &BTreeMap::new(),
            &BTreeMap::new(),
            &standing,
            Instant::now(),
        );
        assert_eq!(verdict(&status, "Ready"), ready);
        assert_eq!(verdict(&status, "Degraded").0, degraded);
        assert_eq!(status.observed_generation, Some(3));
        assert!(
            status
                .conditions
                .iter()
                .all(|condition| !condition.message.contains('\u{1b}'))
        );
    }
}

#[test]
fn refused_write_is_named() {
    let standing = Standing::Resolved {
        images: 1,
        malformed: String::new(),
    };
    let subject = Subject {
        name: "a",
        generation: Some(3),
        standing: &standing,
        is_pending: true,
        refusal: Some("spec.image: Too long"),
        gate: None,
    };
    let now = Instant::now();
    let status = aggregate::status(
        subject,
        &Index::default(),
        &BTreeMap::from([("n".to_owned(), node(now, &[]))]),
        &ImagePrefetchStatus::default(),
        (now, NOW),
    );
    assert_eq!(verdict(&status, "Ready"), is("False", "WriteRefused"));
    assert_eq!(verdict(&status, "Degraded"), is("True", "WriteRefused"));
    assert!(
        status
            .conditions
            .iter()
            .all(|condition| condition.message.contains("spec.image"))
    );
}

#[test]
fn failures_are_summed_and_bounded() {
    let images: Vec<String> = (0..60).map(|n| format!("registry.example/{n}:1")).collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let planned = stored(&merged(&[("a", Some(&list(&images)))], &BTreeMap::new()));
    let now = Instant::now();
    let nodes = (0..30_usize).map(|n| {
        let mut node = node(now, &[("a", "old", [60, 0, 2])]);
        for image in [
            images[0],
            images[n + 1],
            images[0],
            "registry.example/foreign:1",
        ] {
            node.fail(image, FailureKind::RateLimited, "429");
        }
        (format!("node-{n:02}"), node)
    });
    let nodes = nodes.collect();
    let fine = Standing::Resolved {
        images: 60,
        malformed: String::new(),
    };
    let status = status_of(&planned, &nodes, &fine, now);
    assert_eq!(status.failures.len(), 20);
    let first = &status.failures[0];
    assert_eq!((first.image.as_str(), first.nodes), (images[0], 30));
    assert_eq!(
        (first.reason.as_str(), first.example_node.as_str()),
        ("RateLimited", "node-00")
    );
    assert!(
        status
            .failures
            .iter()
            .all(|failure| !failure.image.contains("foreign"))
    );
    assert_eq!(verdict(&status, "Ready"), is("False", "RateLimited"));
}

#[test]
fn condition_keeps_its_time() {
    let fine = Standing::Resolved {
        images: 0,
        malformed: String::new(),
    };
    let mut before = status_of(&BTreeMap::new(), &BTreeMap::new(), &fine, Instant::now());
    before
        .conditions
        .iter_mut()
        .for_each(|c| c.last_transition_time = "then".to_owned());
    let subject = Subject {
        name: "a",
        generation: Some(4),
        standing: &Standing::Suspended,
        is_pending: false,
        refusal: None,
        gate: None,
    };
    let planned = BTreeMap::new();
    let after = aggregate::status(
        subject,
        &Index::new(&planned),
        &BTreeMap::new(),
        &before,
        (Instant::now(), NOW),
    );
    assert_eq!(verdict(&after, "Ready").1, "Suspended");
    assert!(
        after
            .conditions
            .iter()
            .all(|condition| condition.last_transition_time == "then")
    );
}

#[test]
fn events_tell_transitions_only() {
    let conditions = |ready: &str, degraded: &str, reason: &str| {
        [("Ready", ready), ("Degraded", degraded)].map(|(kind, status)| Condition {
            kind: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: "m".repeat(5000),
            ..Condition::default()
        })
    };
    let count = |before: &[Condition], after: &[Condition]| events::notices(before, after).len();
    let ready = conditions("True", "False", "Complete");
    let failing = conditions("False", "True", "NotFound");
    let limited = conditions("False", "True", "RateLimited");
    let updating = conditions("False", "False", "Updating");
    assert_eq!(count(&[], &ready), 1);
    assert_eq!(count(&ready, &ready), 0);
    assert_eq!(count(&ready, &failing), 2);
    assert_eq!(count(&failing, &limited), 1);
    assert_eq!(count(&limited, &updating), 0);
    assert_eq!(count(&[], &updating), 0);
    // A new image: ready again soon.
    assert_eq!(count(&ready, &updating), 0);
    assert_eq!(count(&updating, &ready), 1);
    let suspended = conditions("False", "False", "Suspended");
    assert_eq!(count(&ready, &suspended), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is there, writing the differences once leads to what has to be, and nothing is left to do.
    #[test]
    fn differences_lead_to_desired_state(
        before in prop::collection::btree_map("[a-c]", prop::collection::btree_set(0..12_u8, 1..6), 0..3),
        after in prop::collection::btree_map("[a-c]", prop::collection::btree_set(0..12_u8, 1..6), 0..3),
        held in prop::collection::btree_set("[a-c]", 0..2),
    ) {
        let specs = |of: &BTreeMap<String, BTreeSet<u8>>| -> Vec<(String, ImagePrefetchSpec)> {
            let specs = of.iter().map(|(name, images)| {
                let images: Vec<String> = images.iter().map(|n| format!("registry.example/{n}:1")).collect();
                (name.clone(), list(&images.iter().map(String::as_str).collect::<Vec<_>>()))
            });
            specs.collect()
        };
        let old = specs(&before);
        let old: Vec<_> = old.iter().map(|(name, spec)| (name.as_str(), Some(spec))).collect();
        let mut existing = stored(&merged(&old, &BTreeMap::new()));
        let new = specs(&after);
        let mut new: Vec<_> = new.iter().filter(|(name, _)| !held.contains(name)).map(|(name, spec)| (name.as_str(), Some(spec))).collect();
        new.extend(held.iter().map(|name| (name.as_str(), None)));
        let desired = merged(&new, &existing);
        // A held prefetch loses nothing.
        for name in held.iter().filter(|name| before.contains_key(*name)) {
            let of = |names: &[String]| names.contains(name);
            let had = existing.iter().filter(|(_, planned)| of(&planned.spec.prefetches));
            for (object, _) in had {
                prop_assert!(of(&desired[object].spec.prefetches));
            }
        }
        let now = SystemTime::now();
        let (changes, _) = apply::diff(&existing, &desired, now);
        for change in changes {
            match change {
                Change::Add(name, desired) | Change::Update(name, desired) => {
                    let planned = Planned { spec: desired.spec, brake: desired.brake, ..Planned::default() };
                    existing.insert(name, planned);
                }
                Change::Retire(name, spec, since) => {
                    existing.insert(name, Planned { spec: *spec, unused_since: Some(since), ..Planned::default() });
                }
                Change::Delete(name, ..) => {
                    prop_assert!(false, "{name} deleted at once");
                }
            }
        }
        let again = merged(&new, &existing);
        prop_assert_eq!(apply::diff(&existing, &again, now).0, vec![]);
        let used: BTreeSet<&String> = existing.iter().filter(|(_, p)| !p.spec.prefetches.is_empty()).map(|(n, _)| n).collect();
        prop_assert_eq!(used, desired.keys().collect::<BTreeSet<_>>());
    }
}
