//! Retry, hold-back and halting, on a paused clock with a scripted service. How real runtimes behave is the
//! integration tests' matter.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::candidate::Candidate;
use crate::disk::{Keeps, Usage};
use crate::plan::{Policy, Presence, select};
use crate::runtime::RuntimeInfo;

/// What a pull of an image does, attempt after attempt; the last one is repeated.
type Script = HashMap<&'static str, Vec<Answer>>;

#[derive(Clone)]
enum Answer {
    Pulled,
    Fails(FailureKind),
    Hangs,
}

struct Scripted {
    info: RuntimeInfo,
    script: Script,
    attempts: Mutex<HashMap<String, Vec<Instant>>>,
    running: AtomicUsize,
    most: AtomicUsize,
}

impl ImageService for Scripted {
    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    async fn status(&self, _: &Reference) -> Result<Option<StoredImage>, RuntimeError> {
        Ok(None)
    }

    async fn pull(
        &self,
        image: &Reference,
        _: Option<&Credential>,
        _: &Progress,
    ) -> Result<StoredImage, RuntimeError> {
        let attempt = {
            let mut attempts = self.attempts.lock().expect("lock");
            let seen = attempts.entry(image.as_written().to_owned()).or_default();
            seen.push(Instant::now());
            seen.len()
        };
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
        let answers = &self.script[image.as_written()];
        let answer = answers.get(attempt - 1).or(answers.last()).expect("script");
        if matches!(answer, Answer::Hangs) {
            std::future::pending::<()>().await;
        }
        self.running.fetch_sub(1, Ordering::SeqCst);
        match answer {
            Answer::Fails(kind) => Err(RuntimeError::new(*kind, format!("scripted {kind}"))),
            _ => Ok(StoredImage::default()),
        }
    }

    fn keeps(&self) -> Keeps {
        Keeps::Packed
    }

    async fn usage(&self) -> Result<Usage, RuntimeError> {
        Ok(Usage::default())
    }
}

fn options() -> Options {
    Options {
        concurrency: 2,
        pull_timeout: Duration::from_secs(60),
        deadline: None,
        retries: 2,
    }
}

/// Runs the script to its end; gives `image outcome reason attempts` a line, and the service.
async fn check(
    script: &[(&'static str, &[Answer])],
    options: &Options,
    stop: &CancellationToken,
) -> (Vec<String>, Scripted) {
    let service = Scripted {
        info: RuntimeInfo {
            name: "scripted".to_owned(),
            version: "1".to_owned(),
            endpoint: String::new(),
        },
        script: script.iter().map(|(i, a)| (*i, a.to_vec())).collect(),
        attempts: Mutex::default(),
        running: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
    };
    let candidates = script.iter().map(|(i, _)| Candidate::listed(*i)).collect();
    let plan = select(candidates, &Policy::default()).against(&Presence::new());
    let reports = execute(&plan, &service, &Keyring::default(), options, stop, &|_| {}).await;
    let lines = reports.iter().map(|r| {
        let reason = r.reason.map_or("-", |r| r.as_str());
        format!("{} {} {reason} {}", r.image, r.outcome.as_str(), r.attempts)
    });
    (lines.collect(), service)
}

#[tokio::test(start_paused = true)]
async fn what_can_help_is_tried_again_and_one_failure_is_no_others() {
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
async fn a_rate_limited_registry_is_left_alone_and_others_are_not() {
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
    // Both limits were answered before `c` had its turn: `c` waits as long as the first two.
    let held = attempts["quay.io/a"][1].max(attempts["quay.io/b"][1]);
    assert!(attempts["quay.io/c"][0] + Duration::from_millis(50) >= held);
    assert!(attempts["x.io/d"][0] < held);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_has_its_time_and_the_run_its_deadline() {
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
async fn a_full_disk_ends_the_run() {
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
async fn a_run_that_is_told_to_stop_stops_and_says_so() {
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
fn waits_grow_with_the_attempts_and_honour_the_registry() {
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
