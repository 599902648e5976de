//! Plans that change, failures that are never final, a full disk; with a paused clock and a scripted service.

use tokio::time::Instant;

use super::*;
use crate::model::candidate::Candidate;
use crate::model::image_size::{ImageFs, LayerStorage, Size, Usage};
use crate::planning::plan::{Facts, Policy, select};
use crate::pulling::scripted::{Answer, Scripted, scripted};

fn options() -> Options<'static> {
    Options {
        concurrency: 2,
        registry_concurrency: 2,
        probe: None,
        pull_timeout: Duration::from_secs(3600),
        deadline: None,
        retries: 0,
    }
}

/// The plan of these images. Images without pods are ordered by name.
fn plan(images: &[&str]) -> Plan {
    let candidates = images.iter().map(|image| Candidate::listed(*image));
    select(candidates.collect(), &Policy::default()).against(Facts::default())
}

/// A bed on which plans are followed.
struct Bed {
    feed: Feed,
    service: Scripted,
    finished: Mutex<Vec<String>>,
    began: Instant,
}

impl Bed {
    fn new(script: &[(&'static str, &[Answer])]) -> Self {
        Self {
            feed: Feed::default(),
            service: scripted(script, &[]),
            finished: Mutex::default(),
            began: Instant::now(),
        }
    }

    /// Follows the feed while `story` is told.
    async fn during(&self, options: &Options<'_>, story: impl Future<Output = ()>) {
        let keyring = Keyring::default();
        let see = |event: Event<'_>| {
            if let Event::Finished { report, .. } = event {
                let reason = report.reason.map_or("-", |reason| reason.as_str());
                let line = format!("{} {} {reason}", report.image, report.outcome.as_str());
                self.finished.lock().expect("lock").push(line);
            }
        };
        tokio::select! {
            never = keep_pulling(&self.feed, &self.service, &keyring, options, None, None, &see) => match never {},
            () = story => {}
        }
    }

    /// The start of the image's attempts, in seconds.
    fn attempts(&self, image: &str) -> Vec<u64> {
        let attempts = self.service.attempts.lock().expect("lock");
        let attempts = attempts.get(image).into_iter().flatten();
        attempts.map(|at| (*at - self.began).as_secs()).collect()
    }

    fn finished(&self) -> Vec<String> {
        self.finished.lock().expect("lock").clone()
    }
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn changed_plan_keeps_running_pulls() {
    let slow: &[Answer] = &[Answer::Trickles(20)];
    let script = ["a", "b", "c", "d"].map(|image| (image, slow));
    let bed = Bed::new(&script);
    bed.during(&options(), async {
        bed.feed.set(plan(&["a", "b", "c"]));
        seconds(10).await;
        bed.feed.set(plan(&["a", "b", "d"]));
        seconds(100).await;
    })
    .await;
    assert_eq!(bed.finished(), ["a pulled -", "b pulled -", "d pulled -"]);
    assert_eq!(bed.attempts("a"), [0]);
    assert_eq!(bed.attempts("c"), [0; 0]);
}

#[tokio::test(start_paused = true)]
async fn image_that_leaves_is_cancelled() {
    let bed = Bed::new(&[("a", &[Answer::Hangs]), ("b", &[Answer::Pulled])]);
    let mut one = options();
    one.concurrency = 1;
    bed.during(&one, async {
        bed.feed.set(plan(&["a", "b"]));
        seconds(2).await;
        assert_eq!(bed.attempts("b"), [0; 0]);
        bed.feed.set(plan(&["b"]));
        seconds(1).await;
        assert_eq!(bed.finished(), ["b pulled -"]);
        // It can come back.
        bed.feed.set(plan(&["a"]));
        seconds(1).await;
    })
    .await;
    assert_eq!(bed.attempts("a"), [0, 3]);
}

#[tokio::test(start_paused = true)]
async fn new_plan_reorders_waiting_pulls() {
    let slow: &[Answer] = &[Answer::Trickles(5)];
    let bed = Bed::new(&["x", "m", "n", "a"].map(|image| (image, slow)));
    let mut one = options();
    one.concurrency = 1;
    bed.during(&one, async {
        bed.feed.set(plan(&["x"]));
        seconds(1).await;
        bed.feed.set(plan(&["x", "m", "n"]));
        seconds(1).await;
        // Names are the order: `a` comes before those that have waited.
        bed.feed.set(plan(&["x", "m", "n", "a"]));
        seconds(60).await;
    })
    .await;
    let order = ["x pulled -", "a pulled -", "m pulled -", "n pulled -"];
    assert_eq!(bed.finished(), order);
}

#[tokio::test(start_paused = true)]
async fn failed_image_is_retried_forever() {
    use Answer::{Fails, Pulled};
    let fails = vec![Fails(FailureKind::Other); 30];
    let missing = [vec![Fails(FailureKind::NotFound); 3], vec![Pulled]].concat();
    let bed = Bed::new(&[("a", &fails), ("b", &missing)]);
    bed.during(&options(), async {
        bed.feed.set(plan(&["a", "b"]));
        seconds(4 * 3600).await;
    })
    .await;
    let gaps = |image| {
        let attempts = bed.attempts(image);
        let gaps = attempts.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.collect::<Vec<_>>()
    };
    // From 30 s to 10 min, each up to half shorter.
    let passing = gaps("a");
    assert!(passing.len() >= 24, "{passing:?}");
    assert!((14..=31).contains(&passing[0]), "{passing:?}");
    assert!(passing.iter().all(|gap| *gap <= 601), "{passing:?}");
    assert!(passing[10..].iter().all(|gap| *gap >= 299), "{passing:?}");
    // From 2 min; it appears in the registry in the meantime.
    let lasting = gaps("b");
    assert_eq!(lasting.len(), 3);
    assert!((59..=121).contains(&lasting[0]), "{lasting:?}");
    assert!(bed.finished().contains(&"b pulled -".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn retry_ends_the_pause() {
    use Answer::{Fails, Pulled};
    let denied = [Fails(FailureKind::Unauthorized), Pulled];
    let other = [Fails(FailureKind::Unauthorized)];
    let bed = Bed::new(&[("a", &denied), ("b", &other)]);
    bed.during(&options(), async {
        bed.feed.set(plan(&["a", "b"]));
        seconds(5).await;
        bed.feed.retry(["docker.io/library/a:latest".to_owned()]);
        seconds(5).await;
    })
    .await;
    assert_eq!(bed.attempts("a"), [0, 5]);
    assert_eq!(bed.attempts("b"), [0]);
}

#[tokio::test(start_paused = true)]
async fn full_disk_holds_new_pulls() {
    use Answer::{Fails, Pulled, Trickles};
    let bed = Bed::new(&[
        ("a", &[Fails(FailureKind::NoSpace)]),
        ("b", &[Trickles(5)]),
        ("c", &[Pulled]),
        ("d", &[Pulled]),
    ]);
    bed.during(&options(), async {
        bed.feed.set(plan(&["a", "b", "c", "d"]));
        seconds(10).await;
        // What was being pulled goes on; nothing starts.
        assert_eq!(bed.finished(), ["a failed no_space", "b pulled -"]);
        assert_eq!(bed.attempts("c"), [0; 0]);
        seconds(30).await;
        // The image that does not fit does not block the smaller ones.
        assert_eq!(bed.finished()[2..], ["c pulled -", "d pulled -"]);
        assert_eq!(bed.attempts("a"), [0]);
        seconds(600).await;
    })
    .await;
    assert!(bed.attempts("a").len() > 2);
}

#[tokio::test(start_paused = true)]
async fn evicted_images_leave_space() {
    // At first 40 of 100 bytes are left; a minute later, everything is.
    let usage = [60, 60, 60, 0];
    let service = scripted(
        &[("a", &[Answer::Pulled]), ("b", &[Answer::Pulled])],
        &usage,
    );
    let candidates = ["a", "b"].map(Candidate::listed).into();
    let name = |image: &str| {
        Reference::parse(image)
            .expect("image")
            .normalized()
            .to_owned()
    };
    let facts = Facts {
        sizes: [("a", 50), ("b", 30)]
            .map(|(i, bytes)| (name(i), Ok(Size::Packed(bytes))))
            .into(),
        ..Facts::default()
    };
    let plan = select(candidates, &Policy::default()).against(facts);
    let taken = Usage {
        bytes: 60,
        ..Usage::default()
    };
    let budget = DiskBudget::new(100, LayerStorage::Packed, taken);
    let (feed, keyring) = (Feed::default(), Keyring::default());
    let finished = Mutex::new(Vec::new());
    let see = |event: Event<'_>| {
        if let Event::Finished { report, .. } = event {
            let line = format!("{} {}", report.image, report.outcome.as_str());
            finished.lock().expect("lock").push(line);
        }
    };
    feed.set(plan);
    let options = options();
    tokio::select! {
        never = keep_pulling(&feed, &service, &keyring, &options, Some(budget), None, &see) => match never {},
        () = seconds(600) => {}
    }
    let finished = finished.into_inner().expect("lock");
    assert_eq!(finished[..2], ["a skipped", "b pulled"]);
    assert_eq!(finished.last().map(String::as_str), Some("a pulled"));
}

#[tokio::test(start_paused = true)]
async fn rate_limited_registry_is_held() {
    use Answer::{Fails, Pulled};
    let limited = [Fails(FailureKind::RateLimited), Pulled];
    let bed = Bed::new(&[
        ("q.io/a", &limited),
        ("q.io/b", &limited),
        ("x.io/c", &[Pulled]),
    ]);
    bed.during(&options(), async {
        bed.feed.set(plan(&["q.io/a", "q.io/b", "x.io/c"]));
        seconds(200).await;
    })
    .await;
    assert_eq!(bed.attempts("x.io/c"), [0]);
    assert_eq!(bed.attempts("q.io/a").len(), 2);
    let finished = bed.finished();
    assert!(
        finished.contains(&"q.io/a failed rate_limited".to_owned()),
        "{finished:?}"
    );
    assert!(
        finished.contains(&"q.io/a pulled -".to_owned()),
        "{finished:?}"
    );
}

#[test]
fn ended_images_leave_the_maps() {
    let mut items = Items::default();
    for round in 0..100 {
        let images = [format!("a:{round}"), format!("b:{round}")];
        let new = items.follow(&plan(&[&images[0], &images[1]]));
        assert_eq!((new.len(), items.known.len()), (2, 2));
        items.ended(&new[0]);
        assert_eq!(items.known.len(), 1);
        // One that was cancelled and ends late does not end its successor.
        let again = items.follow(&plan(&[&images[0]]));
        assert!(new[1].cancelled.is_cancelled() && !again[0].cancelled.is_cancelled());
        items.ended(&new[0]);
        assert_eq!(items.known.len(), 1);
    }
}

/// Follows a plan of images with these sizes, on a disk of 1,000 bytes with a high mark of 80%, while `story` is told. Returns what
/// is finished.
async fn below_mark(
    script: &[(&'static str, &[Answer])],
    sizes: &[(&str, u64)],
    options: &Options<'_>,
    story: impl AsyncFnOnce(&Mutex<Vec<String>>, &dyn Fn(u64)),
) -> Vec<String> {
    let service = scripted(script, &[0]);
    let used = |used: u64| {
        let capacity = 1000;
        *service.fs.lock().expect("lock") = Some(ImageFs { capacity, used });
    };
    used(700);
    let images = sizes.iter().map(|(image, _)| Candidate::listed(*image));
    let sizes = sizes.iter().map(|(image, bytes)| {
        let image = Reference::parse(image).expect("image");
        (image.normalized().to_owned(), Ok(Size::Packed(*bytes)))
    });
    let facts = Facts {
        sizes: sizes.collect(),
        ..Facts::default()
    };
    let (feed, keyring) = (Feed::default(), Keyring::default());
    let finished = Mutex::new(Vec::new());
    let see = |event: Event<'_>| {
        if let Event::Finished { report, .. } = event {
            let reason = report.reason.map_or("-", |reason| reason.as_str());
            let line = format!("{} {reason}", report.image);
            finished.lock().expect("lock").push(line);
        }
    };
    feed.set(select(images.collect(), &Policy::default()).against(facts));
    let marks = Mutex::new(DiskMarks::new(80));
    tokio::select! {
        never = keep_pulling(&feed, &service, &keyring, options, None, Some(&marks), &see) => match never {},
        () = story(&finished, &used) => {}
    }
    finished.into_inner().expect("lock")
}

#[tokio::test(start_paused = true)]
async fn pulls_stay_below_high_mark() {
    use Answer::{Pulled, Trickles};
    let script: [(_, &[_]); 3] = [("a", &[Trickles(10)]), ("b", &[Pulled]), ("c", &[Pulled])];
    // Only two of the three fit together, and the large one never.
    let sizes = [("a", 60), ("b", 60), ("c", 500)];
    let story = async |finished: &Mutex<Vec<String>>, _: &dyn Fn(u64)| {
        seconds(5).await;
        // b waits for the outcome of a.
        assert!(finished.lock().expect("lock").is_empty());
        seconds(55).await;
    };
    let finished = below_mark(&script, &sizes, &options(), story).await;
    assert_eq!(finished, ["a -", "b -", "c disk_pressure"]);
}

#[tokio::test(start_paused = true)]
async fn retries_wait_for_no_other_retry() {
    let fails = [Answer::Fails(FailureKind::Unavailable), Answer::Pulled];
    let options = Options {
        retries: 1,
        ..options()
    };
    // Both begin; then there is space for only one more of them.
    let story = async |_: &Mutex<Vec<String>>, used: &dyn Fn(u64)| {
        tokio::time::sleep(Duration::from_millis(5)).await;
        used(720);
        seconds(60).await;
    };
    let script: [(_, &[_]); 2] = [("a", &fails), ("b", &fails)];
    let finished = below_mark(&script, &[("a", 45), ("b", 45)], &options, story).await;
    assert_eq!(finished.len(), 2, "{finished:?}");
}
