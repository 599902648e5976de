//! The pace at which statuses of ImagePrefetches are written: news at once, mere progress seldom. Pure.
//!
//! A change of the plan is two writes of the status: its images are to be filled, and they are everywhere. While nodes fill for
//! longer, the counts follow after half a minute, and then every two minutes; `harpoon status` counts the nodes itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::api::v1alpha1::{Condition, ImagePrefetchStatus};
use crate::retry::backoff;

/// The least time between two writes of the status of one ImagePrefetch.
const INTERVAL: Duration = Duration::from_secs(5);
/// The least time from a write to one without news while nodes fill, and to further ones.
const PROGRESS: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(120)];
/// The longest time between attempts of a write that fails.
const LONGEST: Duration = Duration::from_secs(120);
/// The longest time for which a status waits for writes of PlannedImages, which change it again.
const PLAN_WAIT: Duration = Duration::from_secs(2);

/// A status that was written.
#[derive(Debug)]
struct Written {
    status: ImagePrefetchStatus,
    at: Instant,
    is_news: bool,
    /// Number of failures since a success, and the least time to the next attempt because of them.
    failures: u32,
    rest: Duration,
}

/// The last writes, and what they wait for, by the uid of the ImagePrefetch.
#[derive(Debug, Default)]
pub(super) struct StatusPace {
    written: BTreeMap<String, Written>,
    /// The time since when PlannedImages have to be written.
    pending: BTreeMap<String, Instant>,
}

impl StatusPace {
    /// The status that was written last.
    pub(super) fn written(&self, uid: &str) -> Option<&ImagePrefetchStatus> {
        self.written.get(uid).map(|written| &written.status)
    }

    /// Notes the ImagePrefetches of which PlannedImages have to be written.
    pub(super) fn note_pending(&mut self, pending: &BTreeSet<String>, now: Instant) {
        self.pending.retain(|uid, _| pending.contains(uid));
        for uid in pending {
            self.pending.entry(uid.clone()).or_insert(now);
        }
    }

    /// The time from which the status may be written in place of the known one.
    pub(super) fn due(
        &self,
        uid: &str,
        known: &ImagePrefetchStatus,
        status: &ImagePrefetchStatus,
        now: Instant,
    ) -> Instant {
        let last = self.written.get(uid);
        let interval = match last {
            _ if is_news(known, status) || !is_progressing(status) => INTERVAL,
            Some(written) if !written.is_news => PROGRESS[1],
            _ => PROGRESS[0],
        };
        let free = last.map_or(now, |written| written.at + interval.max(written.rest));
        let planned = self
            .pending
            .get(uid)
            .map_or(now, |since| *since + PLAN_WAIT);
        free.max(planned)
    }

    /// The status is written now in place of the known one.
    pub(super) fn write(
        &mut self,
        uid: &str,
        known: &ImagePrefetchStatus,
        status: &ImagePrefetchStatus,
        now: Instant,
    ) {
        let last = self.written.get(uid);
        let (failures, rest) =
            last.map_or_else(Default::default, |last| (last.failures, last.rest));
        let written = Written {
            status: status.clone(),
            at: now,
            is_news: is_news(known, status),
            failures,
            rest,
        };
        self.written.insert(uid.to_owned(), written);
    }

    /// The last write has succeeded.
    pub(super) fn succeeded(&mut self, uid: &str) {
        if let Some(written) = self.written.get_mut(uid) {
            (written.failures, written.rest) = (0, Duration::ZERO);
        }
    }

    /// The last write has failed. Returns the number of failures since a success.
    pub(super) fn failed(&mut self, uid: &str) -> u32 {
        let Some(written) = self.written.get_mut(uid) else {
            return 1;
        };
        written.failures = written.failures.saturating_add(1);
        written.rest = backoff::pause((INTERVAL, LONGEST), written.failures);
        written.failures
    }

    /// Forgets ImagePrefetches that are gone.
    pub(super) fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.written.retain(|uid, _| exists(uid));
    }
}

/// Returns whether nodes are being filled.
fn is_progressing(status: &ImagePrefetchStatus) -> bool {
    let mut conditions = status.conditions.iter();
    conditions.any(|condition| condition.kind == "Progressing" && condition.status == "True")
}

/// Returns whether the status says something that others wait for, and not only other counts and messages.
fn is_news(known: &ImagePrefetchStatus, status: &ImagePrefetchStatus) -> bool {
    known.observed_generation != status.observed_generation
        || !Condition::verdicts(&known.conditions).eq(Condition::verdicts(&status.conditions))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::v1alpha1::NodeCounts;

    const SECOND: Duration = Duration::from_secs(1);

    fn status(reason: &str, complete: i64) -> ImagePrefetchStatus {
        ImagePrefetchStatus {
            observed_generation: Some(1),
            nodes: NodeCounts {
                complete,
                ..NodeCounts::default()
            },
            conditions: vec![Condition {
                kind: "Progressing".to_owned(),
                status: ["False", "True"][usize::from(reason == "Updating")].to_owned(),
                reason: reason.to_owned(),
                message: format!("{complete} of 9 nodes are complete"),
                ..Condition::default()
            }],
            ..ImagePrefetchStatus::default()
        }
    }

    /// The seconds at which the statuses are written if each second has another one.
    fn writes(statuses: impl Fn(u64) -> ImagePrefetchStatus, seconds: u64) -> Vec<u64> {
        let start = Instant::now();
        let mut pace = StatusPace::default();
        let mut known = ImagePrefetchStatus::default();
        let mut writes = Vec::new();
        for second in 0..seconds {
            let (now, status) = (start + SECOND * second as u32, statuses(second));
            if status != known && pace.due("shop", &known, &status, now) <= now {
                pace.write("shop", &known, &status, now);
                known = status;
                writes.push(second);
            }
        }
        writes
    }

    #[test]
    fn progress_is_written_seldom() {
        let filling = |second: u64| status("Updating", second as i64);
        assert_eq!(writes(filling, 400), [0, 30, 150, 270, 390]);
    }

    #[test]
    fn settled_counts_wait_five_seconds() {
        let failing = |second: u64| status("NotFound", second as i64);
        assert_eq!(writes(failing, 12), [0, 5, 10]);
    }

    #[test]
    fn short_fill_is_two_writes() {
        let fill = |second: u64| match second {
            0..20 => status("Updating", second as i64),
            _ => status("Complete", 20),
        };
        assert_eq!(writes(fill, 200), [0, 20]);
    }

    #[test]
    fn news_wait_five_seconds() {
        let flapping = |second: u64| status(["Updating", "Complete"][second as usize % 2], 9);
        assert_eq!(writes(flapping, 20), [0, 5, 10, 15]);
        let changed = |second: u64| ImagePrefetchStatus {
            observed_generation: Some(second as i64),
            ..status("Updating", 9)
        };
        assert_eq!(writes(changed, 11), [0, 5, 10]);
    }

    #[test]
    fn status_waits_for_the_plan() {
        let now = Instant::now();
        let mut pace = StatusPace::default();
        let pending = BTreeSet::from(["shop".to_owned()]);
        pace.note_pending(&pending, now);
        pace.note_pending(&pending, now + SECOND);
        let (known, status) = (ImagePrefetchStatus::default(), status("Updating", 0));
        let due = |pace: &StatusPace, name: &str| pace.due(name, &known, &status, now);
        assert_eq!(due(&pace, "shop"), now + PLAN_WAIT);
        assert_eq!(due(&pace, "other"), now);
        pace.note_pending(&BTreeSet::new(), now + SECOND);
        assert_eq!(due(&pace, "shop"), now);
        assert!(pace.pending.is_empty());
    }

    #[test]
    fn failed_writes_become_rare() {
        let now = Instant::now();
        let mut pace = StatusPace::default();
        let (known, news) = (status("Updating", 1), status("Complete", 3));
        pace.write("shop", &known, &news, now);
        assert_eq!(pace.failed("shop"), 1);
        assert_eq!(pace.due("shop", &known, &news, now), now + INTERVAL);
        for _ in 1..50 {
            pace.write("shop", &known, &news, now);
            pace.failed("shop");
        }
        let rare = pace.due("shop", &known, &news, now);
        assert!(rare >= now + LONGEST / 2 && rare <= now + LONGEST);
        pace.succeeded("shop");
        assert_eq!(pace.due("shop", &known, &news, now), now + INTERVAL);
        pace.retain(|_| false);
        assert!(pace.written("shop").is_none());
    }
}
