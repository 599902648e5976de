//! The pace of the writes to Nodes, over all and for each Node. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::gate::Action;
use crate::retry::backoff;

/// The time between the starts of two writes that open a gate on average, and that after any other write.
const GAP: Duration = Duration::from_millis(20);
const TOLD_GAP: Duration = Duration::from_millis(100);
/// The time by which a burst may be ahead.
const BURST: Duration = Duration::from_millis(500);
/// The first and the longest rest of a Node after a write, done or failed.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// The time after a rest in which a further write makes the next one longer.
const MEMORY: Duration = Duration::from_secs(60);

/// The state of the pace.
pub(super) struct Pace {
    /// The time up to which writes have used the pace.
    used: Instant,
    /// The rest of each Node by its name; apart for the writes that open its gate, which no other delays.
    rests: BTreeMap<(String, bool), Rest>,
}

/// The rest of a Node. It grows with each write, so that a fight with another writer of the Node becomes slow.
struct Rest {
    uid: String,
    until: Instant,
    length: Duration,
    failures: u32,
}

impl Pace {
    /// Full speed.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            used: now,
            rests: BTreeMap::new(),
        }
    }

    /// The time to ask again whether this may be written; `None`, if it may be now.
    pub(super) fn wait(&self, action: &Action, now: Instant) -> Option<Instant> {
        let rest = self.rests.get(&key(action));
        let rest = rest.filter(|rest| rest.uid == action.uid && rest.until > now);
        match rest {
            Some(rest) => Some(rest.until),
            None => (self.used > now + BURST).then(|| now + GAP),
        }
    }

    /// Takes the right to this write.
    pub(super) fn take(&mut self, action: &Action, now: Instant) {
        let gap = if action.opens() { GAP } else { TOLD_GAP };
        self.used = self.used.max(now) + gap;
    }

    /// Starts the rest after a write. Returns the number of failures without a success, of this one too.
    pub(super) fn rest(&mut self, action: &Action, has_failed: bool, now: Instant) -> u32 {
        let known = self.rests.get(&key(action));
        let known = known.filter(|rest| rest.uid == action.uid);
        let length = known.map_or(REST, |rest| (rest.length * 2).min(LONGEST_REST));
        let failures = match has_failed {
            true => known.map_or(0, |rest| rest.failures).saturating_add(1),
            false => 0,
        };
        let rest = Rest {
            uid: action.uid.clone(),
            until: now + backoff::around(length, 0.2),
            length,
            failures,
        };
        self.rests.insert(key(action), rest);
        failures
    }

    /// Forgets Nodes that are gone, or that were not written for a while.
    pub(super) fn retain(&mut self, exists: impl Fn(&str) -> bool, now: Instant) {
        self.rests
            .retain(|(name, _), rest| rest.until + MEMORY > now && exists(name));
    }
}

fn key(action: &Action) -> (String, bool) {
    (action.name.clone(), action.opens())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(name: &str, uid: &str, opens: bool) -> Action {
        Action {
            name: name.to_owned(),
            uid: uid.to_owned(),
            version: None,
            taints: Vec::from_iter(opens.then_some((0, serde_json::Value::Null))),
            condition: None,
            complaint: None,
        }
    }

    #[test]
    fn fight_over_taint_becomes_slow() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let open = action("n", "u", true);
        // Another writer sets the taint again at once, for ten minutes.
        let (mut now, mut writes) = (start, 0);
        while now < start + Duration::from_secs(600) {
            pace.retain(|_| true, now);
            match pace.wait(&open, now) {
                Some(at) => now = at,
                None => {
                    writes += 1;
                    pace.take(&open, now);
                    assert_eq!(pace.rest(&open, false, now), 0);
                }
            }
        }
        assert!((20..40).contains(&writes), "{writes}");
        // Neither its condition nor a new Node of this name waits for that.
        assert_eq!(pace.wait(&action("n", "u", false), now), None);
        assert_eq!(pace.wait(&action("n", "another", true), now), None);
        // It is forgotten after a while, and when the Node is gone.
        pace.rest(&open, true, now);
        assert_eq!(pace.rest(&open, true, now), 2);
        pace.retain(|_| true, now + LONGEST_REST * 2 + MEMORY);
        assert!(pace.rests.is_empty());
        pace.rest(&open, true, now);
        pace.retain(|_| false, now);
        assert!(pace.rests.is_empty());
    }

    #[test]
    fn writes_of_all_nodes_are_paced() {
        let start = Instant::now();
        for (opens, expected) in [(true, 500..=530), (false, 100..=110)] {
            let mut pace = Pace::new(start);
            let (mut now, mut writes) = (start, 0);
            while now < start + Duration::from_secs(10) {
                let action = action(&format!("node-{writes}"), "u", opens);
                match pace.wait(&action, now) {
                    Some(at) => now = at,
                    None => {
                        pace.take(&action, now);
                        writes += 1;
                    }
                }
            }
            assert!(expected.contains(&writes), "{writes}");
        }
    }
}
