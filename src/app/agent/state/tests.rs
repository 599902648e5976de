//! Images that are pulled, failed, removed or moved; the first fill; forgetting.

use serde_json::{Value, json};

use super::*;
use crate::app::agent::status::{Counts, counts, status};
use crate::planning::plan::Step;
use crate::runtime::image_service::RuntimeError;

fn planned(image: &str, spec: &Value) -> Planned {
    let mut object = json!({
        "apiVersion": "harpoon.dev/v1alpha1", "kind": "PlannedImage",
        "metadata": {"name": image.replace(['/', ':'], "-")}, "spec": {"image": image, "prefetches": ["shop"]}
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    Planned::of(serde_json::from_value(object).unwrap())
}

/// A state that knows a node, a runtime and these images, and has decided.
fn state(images: &[&str]) -> State {
    let mut state = State::new();
    state.node = Some(LocalNode {
        node: Node::default(),
        facts: NodeFacts {
            created: None,
            platform: None,
        },
        uid: "1".to_owned(),
        is_deleted: false,
    });
    state.first_fill.earlier(None);
    state.found_runtime(RuntimeInfo {
        name: "scripted".to_owned(),
        version: "1".to_owned(),
        endpoint: String::new(),
    });
    state.replace(images.iter().map(|image| planned(image, &json!({}))));
    state.decide();
    state
}

fn pulls(state: &mut State) -> Vec<String> {
    let plan = state.plan(SystemTime::now(), Instant::now());
    let pulls = plan
        .images()
        .iter()
        .filter(|image| matches!(image.step, Step::Pull(_)));
    pulls.map(|image| image.image.to_string()).collect()
}

fn here() -> Status {
    Ok(Some(StoredImage::default()))
}

/// Asks a runtime that has the images for which `has` holds.
fn look_up(state: &mut State, all: bool, has: impl Fn(&str) -> bool) {
    let references = state.references(all);
    let found = references.iter().map(|r| match has(r.normalized()) {
        true => here(),
        false => Ok(None),
    });
    let found = found.collect();
    state.looked_up(&references, found, Instant::now());
}

fn report(image: &str, failed: Option<FailureKind>) -> ImageReport {
    let candidate = Candidate::listed(image);
    let plan = select(vec![candidate], &Policy::default()).against(Facts::default());
    match failed {
        None => plan.images()[0].report(Outcome::Pulled),
        Some(kind) => plan.images()[0]
            .report(Outcome::Failed)
            .because(Reason::Failure(kind), "scripted".to_owned()),
    }
}

const A: &str = "r.io/a:1";
const B: &str = "r.io/b:1";

#[tokio::test(start_paused = true)]
async fn unknown_images_are_not_pulled() {
    let mut state = state(&[A, B]);
    assert!(pulls(&mut state).is_empty());
    look_up(&mut state, false, |image| image == A);
    assert_eq!(pulls(&mut state), [B]);
    assert!(state.references(false).is_empty());
    // A runtime that is away tells nothing.
    let references = state.references(true);
    let away = || Err(RuntimeError::new(FailureKind::Unavailable, "away"));
    state.looked_up(&references, vec![away(), away()], Instant::now());
    assert_eq!(pulls(&mut state), [B]);
}

#[tokio::test(start_paused = true)]
async fn revisions_are_those_decided_about() {
    let mut state = state(&[A]);
    let before = state.revisions();
    assert_eq!(before.len(), 1);
    // The counts do not include the new image yet, so that the revision must not either.
    state.apply(planned(B, &json!({})));
    assert_eq!(
        (state.revisions(), counts(&state).desired()),
        (before.clone(), 1)
    );
    state.decide();
    assert_ne!(state.revisions(), before);
    assert_eq!(counts(&state).desired(), 2);
    assert!(!State::new().has_decided());
}

#[tokio::test(start_paused = true)]
async fn only_changes_are_decided_about() {
    let mut state = state(&[A, B]);
    assert_eq!(state.decide(), None);
    state.delete("unknown");
    assert_eq!(state.decide(), None);
    // Each of these may change what the node needs, or when.
    let local = state.node.as_mut().unwrap();
    local.node.labels.insert("pool".into(), "gpu".into());
    assert!(state.decide().is_some());
    state.node.as_mut().unwrap().facts.created = Some(SystemTime::UNIX_EPOCH);
    assert!(state.decide().is_some());
    state.first_fill.end();
    assert!(state.decide().is_some());
    state.apply(planned(A, &json!({"pods": 9})));
    assert!(state.decide().is_some());
    state.delete("r.io-a-1");
    assert!(state.decide().is_some());
    assert_eq!(counts(&state).desired(), 1);
    // A young node may get its extended resources yet.
    state.node.as_mut().unwrap().facts.created = Some(SystemTime::now());
    assert!(state.decide().is_some() && state.decide().is_some());
    state.node.as_mut().unwrap().facts.created = None;
    state.replace([]);
    assert!(state.decide().is_some());
    assert_eq!((state.decide(), counts(&state).desired()), (None, 0));
}

#[tokio::test(start_paused = true)]
async fn first_fill_ends_with_failures() {
    let mut state = state(&[A, B]);
    look_up(&mut state, false, |_| false);
    tokio::time::advance(Duration::from_secs(3)).await;
    state.finished(&report(A, None), Instant::now());
    // The controller sees a rate limit at once, but attempts are left.
    state.retrying(B, FailureKind::RateLimited, "slow down");
    assert_eq!(counts(&state).failed, 1);
    assert!(!state.first_fill.is_over());
    state.finished(&report(B, Some(FailureKind::RateLimited)), Instant::now());
    assert_eq!(state.first_fill.duration(), Some(Duration::from_secs(3)));
    // It is over for good, also when images come.
    state.apply(planned("r.io/c:1", &json!({})));
    state.decide();
    assert!(state.first_fill.is_over());
}

#[tokio::test(start_paused = true)]
async fn pulled_image_is_looked_at_again() {
    let mut state = state(&[A]);
    look_up(&mut state, false, |_| false);
    let before = Instant::now();
    tokio::time::advance(Duration::from_secs(1)).await;
    state.finished(&report(A, None), Instant::now());
    // The answer to an older question says nothing about it.
    let references = state.references(true);
    state.looked_up(&references, vec![Ok(None)], before);
    assert!(pulls(&mut state).is_empty());
    state.finished(&report(A, None), Instant::now());
    assert_eq!(state.references(false).len(), 1);
    look_up(&mut state, false, |_| true);
    assert!(state.references(false).is_empty());
}

#[tokio::test(start_paused = true)]
async fn attempt_in_progress_decides_alone() {
    let mut state = state(&[A]);
    state.apply(planned(A, &json!({"seal": "Always"})));
    state.decide();
    look_up(&mut state, false, |_| false);
    state.started(A);
    // The pull has made the name, which it removes once the image is sealed.
    let asked = Instant::now();
    look_up(&mut state, true, |_| true);
    assert_eq!(pulls(&mut state), [A]);
    assert!(state.to_hold(|_| true).is_empty());
    tokio::time::advance(Duration::from_secs(1)).await;
    let mut sealed = report(A, None);
    sealed.is_sealed = true;
    state.finished(&sealed, Instant::now());
    // An answer from before comes late.
    let references = state.references(true);
    state.looked_up(&references, vec![here()], asked);
    assert!(state.to_hold(|_| true).is_empty());
    // Between attempts the image may come in another way.
    let mut state = super::tests::state(&[A]);
    look_up(&mut state, false, |_| false);
    state.started(A);
    state.retrying(A, FailureKind::Unavailable, "scripted");
    look_up(&mut state, true, |_| true);
    assert!(pulls(&mut state).is_empty());
}

#[tokio::test(start_paused = true)]
async fn removed_image_is_pulled_with_pauses() {
    let mut state = state(&[A]);
    for (time, longest) in [(1, 0), (2, 30), (3, 60), (9, 600)] {
        while state.image(A).unwrap().gone < time {
            look_up(&mut state, true, |_| true);
            tokio::time::advance(Duration::from_secs(1)).await;
            look_up(&mut state, true, |_| false);
        }
        let pause = state.next_start(SystemTime::now(), Instant::now());
        let pause = pause.unwrap_or_default();
        let longest = Duration::from_secs(longest);
        assert!(
            pause >= longest / 2 && pause <= longest,
            "{time}: {pause:?}"
        );
        assert_eq!(pulls(&mut state).is_empty(), time > 1);
        tokio::time::advance(pause).await;
        assert_eq!(pulls(&mut state), [A]);
    }
    // It is there for long.
    look_up(&mut state, true, |_| true);
    tokio::time::advance(Duration::from_secs(3600)).await;
    look_up(&mut state, true, |_| false);
    assert_eq!(pulls(&mut state), [A]);
}

#[tokio::test(start_paused = true)]
async fn retention_none_pulls_once() {
    let mut state = state(&[]);
    let none = json!({"retention": {"policy": "None"}});
    state.apply(planned(A, &none));
    state.decide();
    look_up(&mut state, false, |_| false);
    assert_eq!(pulls(&mut state), [A]);
    look_up(&mut state, true, |_| true);
    look_up(&mut state, true, |_| false);
    assert!(pulls(&mut state).is_empty());
    let status = status(&state, None, SystemTime::now());
    assert_eq!((status.desired, status.present), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn moved_tag_is_pulled_again() {
    let mut state = state(&[]);
    state.apply(planned(A, &json!({"refresh": true})));
    state.apply(planned(B, &json!({})));
    state.decide();
    look_up(&mut state, false, |_| true);
    let movable: Vec<_> = state
        .movable()
        .into_iter()
        .map(|(r, _)| r.normalized().to_owned())
        .collect();
    assert_eq!(movable, [A]);
    state.moved(A, "from here to there".to_owned());
    assert_eq!(pulls(&mut state), [A]);
    // The old one still counts as present.
    assert_eq!(counts(&state).present, 2);
    state.finished(&report(A, None), Instant::now());
    assert!(pulls(&mut state).is_empty());
}

#[tokio::test(start_paused = true)]
async fn slot_that_moves_stops_no_pull() {
    let mut state = state(&[]);
    state.first_fill.earlier(Some(1.0));
    let later = |image: &str| {
        let start = humantime::format_rfc3339(SystemTime::now()).to_string();
        let rollout = json!({"type": "Linear", "window": "720h", "startTime": start});
        planned(image, &json!({"rollout": rollout}))
    };
    state.replace([planned(A, &json!({})), later(B)]);
    state.decide();
    look_up(&mut state, false, |_| false);
    assert_eq!(pulls(&mut state), [A]);
    let left = state.next_start(SystemTime::now(), Instant::now());
    assert!(left.is_some_and(|left| left > Duration::from_secs(1)));
    assert!(state.is_busy(SystemTime::now()));
    state.started(A);
    state.replace([later(A), later(B)]);
    state.decide();
    assert_eq!(pulls(&mut state), [A]);
    state.finished(&report(A, None), Instant::now());
    assert!(!state.is_busy(SystemTime::now()));
}

#[tokio::test(start_paused = true)]
async fn images_that_leave_are_forgotten() {
    let mut state = state(&[]);
    for round in 0..100 {
        let images = [format!("r.io/a:{round}"), format!("r.io/b:{round}")];
        state.replace(images.iter().map(|image| planned(image, &json!({}))));
        state.decide();
        look_up(&mut state, false, |_| false);
        state.finished(
            &report(&images[0], Some(FailureKind::NotFound)),
            Instant::now(),
        );
        assert_eq!(
            (state.images.len(), state.objects.len(), state.places.len()),
            (2, 2, 2)
        );
    }
    state.delete("r.io-a-99");
    state.decide();
    assert_eq!(state.images.len(), 1);
    // What finishes late is of no interest.
    state.finished(&report("r.io/a:99", None), Instant::now());
    assert_eq!(state.images.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn lost_runtime_excuses_its_failures() {
    let mut state = state(&[A, B]);
    look_up(&mut state, false, |_| false);
    state.finished(&report(A, Some(FailureKind::Unavailable)), Instant::now());
    state.finished(&report(B, Some(FailureKind::NotFound)), Instant::now());
    let ready = |state: &State| {
        let status = status(state, None, SystemTime::now());
        (status.conditions[0].reason.clone(), status.failed)
    };
    state.lost_runtime();
    assert_eq!(ready(&state), ("RuntimeUnavailable".to_owned(), 2));
    let info = state.last_runtime.clone().unwrap();
    state.found_runtime(info);
    assert_eq!(ready(&state), ("NotFound".to_owned(), 1));
}

#[tokio::test(start_paused = true)]
async fn refused_pull_tells_secret_problem() {
    let secret = PullSecret {
        namespace: "shop".to_owned(),
        name: "regcred".to_owned(),
    };
    let mut state = state(&[]);
    state.apply(planned(
        A,
        &json!({"pullSecrets": [{"namespace": "shop", "name": "regcred"}]}),
    ));
    state.decide();
    look_up(&mut state, false, |_| false);
    let wanted = state.pull_secrets();
    assert_eq!(wanted[&secret], [Arc::from(A)]);
    state.secret_problems = HashMap::from([(secret, "Secret shop/regcred: no".to_owned())]);
    state.finished(&report(A, Some(FailureKind::Unauthorized)), Instant::now());
    assert!(state.is_refused);
    let status = status(&state, None, SystemTime::now());
    assert_eq!(
        status.failures[0].message,
        "Secret shop/regcred: no; scripted"
    );
}

#[tokio::test(start_paused = true)]
async fn malformed_image_fails_alone() {
    let mut state = state(&["a b", A]);
    look_up(&mut state, false, |_| false);
    assert_eq!(pulls(&mut state), [A]);
    assert_eq!(counts(&state).failed, 1);
    state.finished(&report(A, None), Instant::now());
    assert!(state.first_fill.is_over());
}

#[tokio::test(start_paused = true)]
async fn evicted_image_is_named_while_resting() {
    let mut state = state(&[A]);
    for time in 1..=3 {
        look_up(&mut state, true, |_| true);
        tokio::time::advance(Duration::from_secs(1)).await;
        look_up(&mut state, true, |_| false);
        let is_named = state.image(A).unwrap().failure.is_some();
        assert_eq!(is_named, time > 1, "{time}");
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert!(pulls(&mut state).is_empty());
    let told = status(&state, None, SystemTime::now());
    assert_eq!((told.failed, &*told.failures[0].reason), (1, "evicted"));
    let message = &told.failures[0].message;
    assert!(
        message.starts_with("removed from the node 3 times; pulled again in "),
        "{message}"
    );
    assert_eq!(told.conditions[0].reason, "Evicted");
    tokio::time::advance(Duration::from_secs(600)).await;
    assert_eq!(pulls(&mut state), [A]);
    look_up(&mut state, true, |_| true);
    assert!(status(&state, None, SystemTime::now()).failures.is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_pulled_while_yielding() {
    let mut state = state(&[A, B]);
    look_up(&mut state, false, |image| image == A);
    assert_eq!(pulls(&mut state), [B]);
    state.set_yielding(Some("82% of the image file system is used".to_owned()));
    assert!(pulls(&mut state).is_empty());
    assert!(state.first_fill.duration().is_none());
    state.end_first_fill();
    assert!(state.first_fill.is_over());
    let told = status(&state, None, SystemTime::now());
    assert_eq!((told.present, told.failed), (1, 1));
    assert_eq!(told.failures[0].reason, "disk_pressure");
    let kinds: Vec<_> = told.conditions.iter().map(|c| &*c.kind).collect();
    assert_eq!(kinds, ["Ready", "DiskPressure"]);
    assert_eq!(told.conditions[0].reason, "DiskPressure");
    assert_eq!(state.set_yielding(None), [B]);
    assert_eq!(pulls(&mut state), [B]);
    let told = status(&state, None, SystemTime::now());
    assert_eq!((told.failed, told.conditions.len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn unused_image_is_kept_protected() {
    let mut state = state(&[A]);
    state.apply(planned(B, &json!({"prefetches": []})));
    let elsewhere = json!([{"nodeSelector": {"pool": "other"}}]);
    state.apply(planned(
        "r.io/c:1",
        &json!({"prefetches": [], "placements": elsewhere}),
    ));
    state.decide();
    let kept: Vec<_> = state.kept.iter().map(|planned| &*planned.image).collect();
    assert_eq!(kept, [B]);
    assert!(state.is_planned(B) && !state.needs(B));
    let sealed = state.protected_by_seals();
    assert_eq!(sealed.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn changed_seal_is_looked_up_again() {
    let mut state = state(&[A]);
    look_up(&mut state, false, |_| true);
    let names = |images: Vec<Reference>| {
        let names = images.iter().map(Reference::normalized);
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    // With `Auto`, only a tag that has moved away from its seal.
    assert_eq!(names(state.to_hold(|_| false)), [""; 0]);
    assert_eq!(names(state.to_hold(|_| true)), [A]);
    for (seal, held, is_open) in [("Always", &[A][..], false), ("Never", &[], true)] {
        state.apply(planned(A, &json!({"seal": seal})));
        state.decide();
        // Not before the runtime was asked.
        assert!(!state.is_open(A) && state.to_hold(|_| true).is_empty());
        look_up(&mut state, false, |_| true);
        assert_eq!(names(state.to_hold(|_| false)), held);
        assert_eq!(state.is_open(A), is_open);
    }
    look_up(&mut state, true, |_| false);
    assert!(!state.is_open(A), "it is to be pulled under its name first");
    state.apply(planned(
        A,
        &json!({"seal": "Never", "retention": {"policy": "None"}}),
    ));
    state.decide();
    assert!(state.is_open(A));
}

#[tokio::test(start_paused = true)]
async fn changed_seal_stops_no_pull() {
    let mut state = state(&[A]);
    look_up(&mut state, false, |_| false);
    let seal = |state: &mut State, seal: &str| {
        state.apply(planned(A, &json!({"seal": seal})));
        state.decide();
    };
    state.started(A);
    seal(&mut state, "Never");
    // The name that the pull makes before the seal is no answer.
    look_up(&mut state, true, |_| true);
    assert_eq!(pulls(&mut state), [A]);
    // It may start while the runtime is asked.
    state.retrying(A, FailureKind::Unavailable, "scripted");
    seal(&mut state, "Always");
    let references = state.references(false);
    state.started(A);
    state.looked_up(&references, vec![Ok(None)], Instant::now());
    assert_eq!(pulls(&mut state), [A]);
}

#[tokio::test(start_paused = true)]
async fn unwanted_seal_is_no_presence() {
    let mut state = state(&[]);
    let never = json!({"seal": "Never", "retention": {"policy": "None"}});
    state.replace([planned(A, &json!({"seal": "Always"}))]);
    state.decide();
    look_up(&mut state, false, |_| false);
    state.started(A);
    state.apply(planned(A, &never));
    state.decide();
    look_up(&mut state, false, |_| false);
    let mut sealed = report(A, None);
    sealed.is_sealed = true;
    state.finished(&sealed, Instant::now());
    look_up(&mut state, false, |_| false);
    assert_eq!(pulls(&mut state), [A]);
    assert!(!state.is_open(A));
}

#[tokio::test(start_paused = true)]
async fn pull_ends_with_its_plan() {
    let mut state = state(&[A]);
    look_up(&mut state, false, |_| false);
    assert_eq!(pulls(&mut state), [A]);
    // The kubelet is faster, and the pull starts before it is cancelled.
    look_up(&mut state, true, |_| true);
    state.started(A);
    assert!(pulls(&mut state).is_empty());
    look_up(&mut state, true, |_| false);
    assert_eq!(pulls(&mut state), [A]);
}

#[tokio::test(start_paused = true)]
async fn full_disk_stops_moved_tags() {
    let mut state = state(&[A]);
    look_up(&mut state, false, |_| true);
    state.moved(A, "from sha256:1 to sha256:2".to_owned());
    state.started(A);
    state.set_yielding(Some("full".to_owned()));
    assert!(pulls(&mut state).is_empty());
    assert_eq!(counts(&state).present, 1);
    assert!(!state.resumes(A));
    look_up(&mut state, true, |_| false);
    assert_eq!(counts(&state).present, 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_removed_image() {
    let none = json!({"retention": {"policy": "None"}});
    let evicted = |state: &mut State| {
        look_up(state, true, |_| true);
        look_up(state, true, |_| false);
    };
    // The pause after repeated removals.
    let mut resting = state(&[A]);
    (0..2).for_each(|_| evicted(&mut resting));
    assert_eq!(counts(&resting).failed, 1);
    // A pull in progress.
    let mut pulling = state(&[A]);
    evicted(&mut pulling);
    pulling.started(A);
    // The failed pull of a moved tag.
    let mut moved = state(&[A]);
    look_up(&mut moved, true, |_| true);
    moved.moved(A, "from sha256:1 to sha256:2".to_owned());
    moved.finished(&report(A, Some(FailureKind::NotFound)), Instant::now());
    look_up(&mut moved, true, |_| false);
    for mut state in [resting, pulling, moved] {
        state.apply(planned(A, &none));
        state.decide();
        look_up(&mut state, true, |_| false);
        assert!(pulls(&mut state).is_empty());
        assert_eq!(counts(&state), Counts::default());
    }
}

#[tokio::test(start_paused = true)]
async fn rejoined_node_is_decided_again() {
    let mut state = state(&[A]);
    look_up(&mut state, false, |_| true);
    assert!(state.has_decided() && state.first_fill.is_over());
    state.rejoined();
    assert!(!state.has_decided() && !state.can_decide());
    state.first_fill.earlier(None);
    state.apply(planned(B, &json!({})));
    assert!(state.decide().is_some());
    look_up(&mut state, false, |_| false);
    assert!(!state.first_fill.is_over());
    state.finished(&report(B, None), Instant::now());
    assert!(state.first_fill.is_over());
}

#[tokio::test(start_paused = true)]
async fn interrupted_pull_waits_for_next_attempt() {
    let mut state = state(&[A, B]);
    look_up(&mut state, false, |image| image == A);
    let resumed = |state: &State| [A, B, "r.io/other:1"].map(|image| state.resumes(image));
    assert_eq!(resumed(&state), [false, true, false]);
    state.set_yielding(Some("82% of the image file system is used".to_owned()));
    assert_eq!(resumed(&state), [false, false, false]);
    state.set_yielding(None);
    // A pull of the moved tag is in progress.
    state.started(A);
    assert_eq!(resumed(&state), [true, true, false]);
}
