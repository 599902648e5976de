//! Retries, back-off and halting, with a paused clock and a scripted service. The integration tests cover the behaviour of real
//! runtimes.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::model::candidate::Candidate;
use crate::model::image_size::{LayerStorage, Size, Usage};
use crate::model::reference::Reference;
use crate::planning::disk_budget::DiskBudget;
use crate::planning::plan::{Facts, Policy, select};
use crate::retry::backoff;

use crate::pulling::scripted::{Answer, SILENT, Scripted, scripted};

mod schedule;

fn options() -> Options<'static> {
    Options {
        concurrency: 2,
        registry_concurrency: 2,
        probe: None,
        pull_timeout: Duration::from_secs(60),
        deadline: None,
        retries: 2,
    }
}

/// Runs the script to its end; returns `image outcome reason attempts` per line, and the service.
async fn check(
    script: &[(&'static str, &[Answer])],
    options: &Options<'_>,
    stop: &CancellationToken,
) -> (Vec<String>, Scripted) {
    let service = scripted(script, &[]);
    let candidates = script.iter().map(|(i, _)| Candidate::listed(*i)).collect();
    let plan = select(candidates, &Policy::default()).against(Facts::default());
    let reports = execute(&plan, &service, &Keyring::default(), options, stop, &|_| {}).await;
    (lines(&reports), service)
}

/// The same with a service and a keyring of the test's own.
async fn run(
    service: &Scripted,
    script: &[(&'static str, &[Answer])],
    options: &Options<'_>,
    keyring: &Keyring,
) -> Vec<String> {
    let candidates = script.iter().map(|(i, _)| Candidate::listed(*i)).collect();
    let plan = select(candidates, &Policy::default()).against(Facts::default());
    let stop = CancellationToken::new();
    lines(&execute(&plan, service, keyring, options, &stop, &|_| {}).await)
}

fn lines(reports: &[ImageReport]) -> Vec<String> {
    let line = |r: &ImageReport| {
        let reason = r.reason.map_or("-", |r| r.as_str());
        format!("{} {} {reason} {}", r.image, r.outcome.as_str(), r.attempts)
    };
    reports.iter().map(line).collect()
}

/// Runs images of these sizes with a budget of 100 bytes, in a store that reports no usage at first.
async fn with_budget(
    script: &[(&'static str, &[Answer])],
    sizes: &[u64],
    usage: &[u64],
) -> (Vec<ImageReport>, Scripted) {
    let service = scripted(script, usage);
    let candidates = script.iter().map(|(i, _)| Candidate::listed(*i)).collect();
    let named = script
        .iter()
        .map(|(i, _)| Reference::parse(i).unwrap().normalized().to_owned());
    let facts = Facts {
        sizes: named
            .zip(sizes)
            .map(|(n, s)| (n, Ok(Size::Packed(*s))))
            .collect(),
        room: Some(DiskBudget::new(100, LayerStorage::Packed, Usage::default())),
        ..Facts::default()
    };
    let plan = select(candidates, &Policy::default()).against(facts);
    let stop = CancellationToken::new();
    let keyring = Keyring::default();
    let reports = execute(&plan, &service, &keyring, &options(), &stop, &|_| {}).await;
    (reports, service)
}

#[tokio::test(start_paused = true)]
async fn foreign_content_counts_against_budget() {
    let pulled: &[Answer] = &[Answer::Pulled];
    let script = [("a", pulled), ("b", pulled), ("c", pulled)];
    let check = async |usage: &[u64]| lines(&with_budget(&script, &[30, 40, 10], usage).await.0);
    // As planned; a store that reports its usage late, or not at all, changes nothing.
    for usage in [&[0][..], &[0, 30, 70], &[0, 0, 0], &[SILENT]] {
        assert_eq!(
            check(usage).await,
            ["a pulled - 1", "b pulled - 1", "c pulled - 1"],
            "{usage:?}"
        );
    }
    // `b` no longer fits; a smaller one after it does.
    assert_eq!(
        check(&[0, 65]).await,
        ["a pulled - 1", "b skipped disk_budget 0", "c pulled - 1"]
    );
    assert_eq!(
        check(&[95]).await,
        [
            "a skipped disk_budget 0",
            "b skipped disk_budget 0",
            "c skipped disk_budget 0"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn image_waits_for_budget_of_others() {
    // While `a` is pulled, the store already counts half of it, so `b` would not fit beside its reservation; then it does.
    let pulled: &[Answer] = &[Answer::Pulled];
    let (reports, service) =
        with_budget(&[("a", pulled), ("b", pulled)], &[60, 40], &[0, 30, 60]).await;
    assert_eq!(lines(&reports), ["a pulled - 1", "b pulled - 1"]);
    assert_eq!(service.most.load(Ordering::SeqCst), 1);
    // A failed image leaves its space to the next.
    let fails: &[Answer] = &[Answer::Fails(FailureKind::NotFound)];
    let (reports, _) = with_budget(&[("a", fails), ("b", pulled)], &[60, 40], &[0, 30, 60]).await;
    assert_eq!(lines(&reports), ["a failed not_found 1", "b pulled - 1"]);
}

#[tokio::test(start_paused = true)]
async fn no_space_error_gives_needed_size() {
    let full: &[Answer] = &[Answer::Fails(FailureKind::NoSpace)];
    let (reports, _) = with_budget(&[("a", full)], &[90_000_000], &[0]).await;
    assert_eq!(lines(&reports), ["a skipped disk_budget 0"]);
    let (reports, _) = with_budget(&[("a", full)], &[90], &[0]).await;
    let message = reports[0].message.clone().unwrap();
    assert_eq!(
        message,
        "scripted no_space; the image needs about 90 B on disk"
    );
}

#[tokio::test(start_paused = true)]
async fn registry_concurrency_is_limited() {
    let pulled: &[Answer] = &[Answer::Pulled];
    let images = ["quay.io/a", "quay.io/b", "quay.io/c", "x.io/d", "x.io/e"];
    let script = images.map(|i| (i, pulled));
    let mut options = options();
    options.concurrency = 4;
    options.registry_concurrency = 1;
    let (_, service) = check(&script, &options, &CancellationToken::new()).await;
    assert_eq!(service.most.load(Ordering::SeqCst), 2);
    let attempts = service.attempts.lock().expect("lock");
    let mut begun: Vec<_> = images[..3].iter().map(|i| attempts[*i][0]).collect();
    begun.sort();
    assert!(begun.windows(2).all(|w| w[0] < w[1]), "{begun:?}");
}

#[tokio::test(start_paused = true)]
async fn only_retryable_failures_are_retried() {
    use Answer::{Fails, Pulled};
    let (lines, service) = check(
        &[
            ("a", &[Fails(FailureKind::Unavailable), Pulled]),
            ("b", &[Fails(FailureKind::NotFound)]),
            ("c", &[Fails(FailureKind::Other)]),
            ("d", &[Pulled]),
        ],
        &options(),
        &CancellationToken::new(),
    )
    .await;
    assert_eq!(
        lines,
        [
            "a pulled - 2",
            "b failed not_found 1",
            "c failed other 3",
            "d pulled - 1"
        ]
    );
    assert_eq!(service.most.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn rate_limit_pauses_only_its_registry() {
    use Answer::{Fails, Pulled};
    let (lines, service) = check(
        &[
            ("quay.io/a", &[Fails(FailureKind::RateLimited), Pulled]),
            ("quay.io/b", &[Fails(FailureKind::RateLimited), Pulled]),
            ("quay.io/c", &[Pulled]),
            ("x.io/d", &[Pulled]),
        ],
        &options(),
        &CancellationToken::new(),
    )
    .await;
    assert_eq!(
        lines,
        [
            "quay.io/a pulled - 2",
            "quay.io/b pulled - 2",
            "quay.io/c pulled - 1",
            "x.io/d pulled - 1"
        ]
    );
    let attempts = service.attempts.lock().expect("lock");
    // Both limits were answered before `c` could start: `c` waits as long as the first two.
    let held = attempts["quay.io/a"][1].max(attempts["quay.io/b"][1]);
    assert!(attempts["quay.io/c"][0] + Duration::from_millis(50) >= held);
    assert!(attempts["x.io/d"][0] < held);
}

#[tokio::test(start_paused = true)]
async fn attempts_and_run_have_time_limits() {
    let mut options = options();
    options.pull_timeout = Duration::from_secs(5);
    options.retries = 0;
    let (lines, _) = check(
        &[("a", &[Answer::Hangs]), ("b", &[Answer::Pulled])],
        &options,
        &CancellationToken::new(),
    )
    .await;
    assert_eq!(lines, ["a failed timeout 1", "b pulled - 1"]);

    options.pull_timeout = Duration::from_secs(3600);
    options.deadline = Some(Instant::now() + Duration::from_secs(60));
    options.concurrency = 1;
    let (lines, _) = check(
        &[("a", &[Answer::Hangs]), ("b", &[Answer::Pulled])],
        &options,
        &CancellationToken::new(),
    )
    .await;
    assert_eq!(lines, ["a failed timeout 1", "b failed timeout 0"]);
}

#[tokio::test(start_paused = true)]
async fn full_disk_ends_the_run() {
    use Answer::{Fails, Hangs, Pulled};
    let mut options = options();
    options.concurrency = 1;
    let (lines, _) = check(
        &[
            ("a", &[Pulled]),
            ("b", &[Fails(FailureKind::NoSpace)]),
            ("c", &[Hangs]),
        ],
        &options,
        &CancellationToken::new(),
    )
    .await;
    assert_eq!(
        lines,
        ["a pulled - 1", "b failed no_space 1", "c failed no_space 0"]
    );
}

#[tokio::test(start_paused = true)]
async fn cancelled_run_stops_and_reports() {
    let stop = CancellationToken::new();
    let later = stop.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        later.cancel();
    });
    let (lines, _) = check(
        &[("a", &[Answer::Hangs]), ("b", &[Answer::Pulled])],
        &options(),
        &stop,
    )
    .await;
    assert_eq!(lines, ["a failed other 1", "b pulled - 1"]);
}

#[test]
fn backoff_grows_and_honors_retry_after() {
    let longest = |kind, attempt| {
        (0..200)
            .map(|_| backoff::wait(kind, attempt, None))
            .max()
            .expect("200")
    };
    assert!(longest(FailureKind::Other, 1) <= Duration::from_secs(1));
    assert!(longest(FailureKind::Other, 50) <= Duration::from_secs(30));
    assert!(longest(FailureKind::RateLimited, 1) > longest(FailureKind::Unavailable, 1));
    let wish = Duration::from_secs(20);
    assert!(backoff::wait(FailureKind::RateLimited, 1, Some(wish)) >= wish);
    assert!(
        backoff::wait(FailureKind::RateLimited, 1, Some(Duration::MAX)) < Duration::from_secs(700)
    );
}
