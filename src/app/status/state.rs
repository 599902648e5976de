//! The few fields of the objects that are shown. Texts are sanitized and shortened here. Pure, except for the clock of ages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::ResourceExt;
use tokio::time::Instant;

use super::Subject;
use crate::api::v1alpha1::PlannedImage;
use crate::api::v1alpha1::{
    Condition, ImagePrefetch, NodeFailure, NodePrefetch, NodePrefetchEntry, NodePrefetchStatus,
};
use crate::app::continuous::names;
use crate::model::text::{clip, sanitize};
use crate::report::status::{ImageSums, StoreRow};

/// Characters of an image's name, and of a message.
const TEXT_MAX: usize = 512;
/// Maximum number of failures of one node that are kept.
const FAILURES_MAX: usize = 10;

/// The objects that were read.
pub(super) struct State {
    subject: Subject,
    pub(super) prefetches: BTreeMap<String, Prefetch>,
    pub(super) planned: BTreeMap<String, Planned>,
    pub(super) nodes: BTreeMap<String, Node>,
    /// Each kind of failure once; thousands of nodes may have the same.
    failures: BTreeMap<(String, String), Arc<Failure>>,
    /// The API server's time as time since 1970, and when it was learned.
    now: (Duration, Instant),
}

/// An ImagePrefetch.
#[derive(Debug, Clone, Default)]
pub(super) struct Prefetch {
    pub(super) ready: Verdict,
    pub(super) degraded: Verdict,
    pub(super) is_suspended: bool,
    /// Time of its creation.
    pub(super) created: Option<Duration>,
}

/// A condition.
#[derive(Debug, Clone, Default)]
pub(super) struct Verdict {
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) message: String,
}

/// A PlannedImage that an ImagePrefetch uses.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub(super) image: String,
    pub(super) pods: u64,
    pub(super) prefetches: Vec<String>,
    /// True if every node needs it.
    pub(super) is_everywhere: bool,
    /// The object as revisions count it.
    pub(super) revised: String,
}

/// A NodePrefetch.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    pub(super) has_reported: bool,
    /// Time of its last report.
    pub(super) heartbeat: Option<Duration>,
    /// Time of its creation.
    pub(super) created: Option<Duration>,
    pub(super) images: ImageSums,
    /// By name.
    entries: Vec<Entry>,
    pub(super) failures: Vec<Arc<Failure>>,
    pub(super) first_fill: Option<f64>,
    /// Only for the node that is shown by itself.
    pub(super) detail: Option<Box<Detail>>,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) revision: String,
    pub(super) images: ImageSums,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) image: String,
    pub(super) reason: String,
    pub(super) message: String,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Detail {
    pub(super) ready: Verdict,
    pub(super) runtime: String,
    pub(super) store: StoreRow,
    pub(super) messages: Vec<String>,
}

impl Node {
    /// Its images by ImagePrefetch.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Its images of an ImagePrefetch.
    pub(super) fn entry(&self, prefetch: &str) -> Option<&Entry> {
        let at = self
            .entries
            .binary_search_by(|entry| entry.name.as_str().cmp(prefetch));
        self.entries.get(at.ok()?)
    }
}

impl State {
    pub(super) fn new(subject: Subject) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            subject,
            prefetches: BTreeMap::new(),
            planned: BTreeMap::new(),
            nodes: BTreeMap::new(),
            failures: BTreeMap::new(),
            now: (now.unwrap_or_default(), Instant::now()),
        }
    }

    pub(super) fn subject(&self) -> &Subject {
        &self.subject
    }

    pub(super) fn set_now(&mut self, now: Duration) {
        self.now = (now, Instant::now());
    }

    /// The API server's time.
    pub(super) fn now(&self) -> Duration {
        self.now.0 + self.now.1.elapsed()
    }

    pub(super) fn prefetch(&mut self, object: ImagePrefetch) {
        let name = object.name_any();
        let wanted = match &self.subject {
            Subject::All => true,
            Subject::Prefetch(one) => *one == name,
            Subject::Node(_) => false,
        };
        if !wanted {
            return;
        }
        let created = created(&object);
        let status = object.status.unwrap_or_default();
        let mut ready = verdict(&status.conditions, "Ready");
        // A status that is about an earlier spec says nothing about this one.
        if status.observed_generation != object.metadata.generation {
            ready = Verdict::default();
        }
        let prefetch = Prefetch {
            ready,
            degraded: verdict(&status.conditions, "Degraded"),
            is_suspended: object.spec.suspend,
            created,
        };
        self.prefetches.insert(name, prefetch);
    }

    pub(super) fn planned(&mut self, object: PlannedImage) {
        let name = object.name_any();
        let mut prefetches = object.spec.prefetches;
        if let Subject::Prefetch(one) = &self.subject {
            prefetches.retain(|name| name == one);
        }
        if prefetches.is_empty() {
            self.planned.remove(&name);
            return;
        }
        let planned = Planned {
            image: text(&object.spec.image),
            pods: number(object.spec.pods),
            prefetches,
            is_everywhere: object.spec.placements.is_empty(),
            revised: names::revised(&name, &object.spec.placements),
        };
        self.planned.insert(name, planned);
    }

    pub(super) fn node(&mut self, object: NodePrefetch) {
        let name = object.name_any();
        if matches!(&self.subject, Subject::Node(one) if *one != name) {
            return;
        }
        let created = created(&object);
        let recorded = recorded(&object);
        let status = object.status.unwrap_or_default();
        let detail = matches!(self.subject, Subject::Node(_)).then(|| Box::new(detail(&status)));
        let has_reported = status != NodePrefetchStatus::default();
        let mut entries: Vec<Entry> = status.prefetches.into_iter().map(entry).collect();
        if let Subject::Prefetch(one) = &self.subject {
            entries.retain(|entry| entry.name == *one);
        }
        entries.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        let failures = status.failures.iter().take(FAILURES_MAX);
        let failures = failures.map(|failure| self.failure(failure)).collect();
        let node = Node {
            has_reported,
            // The creation of the object is recorded too, before the first report.
            heartbeat: time(&status.heartbeat_time).map(|told| recorded.unwrap_or(told)),
            created,
            images: sums([
                status.desired,
                status.present,
                status.pulling,
                status.failed,
            ]),
            entries,
            failures,
            first_fill: status.first_fill_seconds.filter(|s| s.is_finite()),
            detail,
        };
        self.nodes.insert(name, node);
    }

    fn failure(&mut self, failure: &NodeFailure) -> Arc<Failure> {
        let key = (text(&failure.image), text(&failure.reason));
        let known = self
            .failures
            .entry(key)
            .or_insert_with_key(|(image, reason)| {
                Arc::new(Failure {
                    image: image.clone(),
                    reason: reason.clone(),
                    message: text(&failure.message),
                })
            });
        Arc::clone(known)
    }

    pub(super) fn retain_prefetches(&mut self, keep: &dyn Fn(&str) -> bool) {
        self.prefetches.retain(|name, _| keep(name));
    }

    pub(super) fn retain_planned(&mut self, keep: &dyn Fn(&str) -> bool) {
        self.planned.retain(|name, _| keep(name));
    }

    pub(super) fn retain_nodes(&mut self, keep: &dyn Fn(&str) -> bool) {
        self.nodes.retain(|name, _| keep(name));
        self.forget_failures();
    }

    /// Drops the failures that no node has any more.
    pub(super) fn forget_failures(&mut self) {
        self.failures
            .retain(|_, known| Arc::strong_count(known) > 1);
    }

    /// The images of each ImagePrefetch: the names of its PlannedImages.
    pub(super) fn by_prefetch(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut names: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (name, planned) in &self.planned {
            for prefetch in &planned.prefetches {
                names.entry(prefetch).or_default().insert(name);
            }
        }
        names
    }
}

fn detail(status: &NodePrefetchStatus) -> Detail {
    let store = status.image_store.clone().unwrap_or_default();
    let bytes = |bytes: Option<i64>| bytes.map(number);
    let failures = status.failures.iter().take(FAILURES_MAX);
    Detail {
        ready: verdict(&status.conditions, "Ready"),
        runtime: text(&status.runtime),
        store: StoreRow {
            harpoon_bytes: bytes(store.harpoon_bytes),
            used_bytes: bytes(store.used_bytes),
            capacity_bytes: bytes(store.capacity_bytes),
        },
        messages: failures.map(|failure| text(&failure.message)).collect(),
    }
}

fn entry(entry: NodePrefetchEntry) -> Entry {
    let images = sums([entry.desired, entry.present, entry.pulling, entry.failed]);
    Entry {
        name: entry.name,
        revision: entry.revision,
        images,
    }
}

fn sums([desired, present, pulling, failed]: [i64; 4]) -> ImageSums {
    ImageSums {
        desired: number(desired),
        present: number(present),
        pulling: number(pulling),
        failed: number(failed),
    }
}

fn verdict(conditions: &[Condition], kind: &str) -> Verdict {
    let condition = conditions.iter().find(|condition| condition.kind == kind);
    condition.map_or_else(Verdict::default, |condition| Verdict {
        status: text(&condition.status),
        reason: text(&condition.reason),
        message: text(&condition.message),
    })
}

fn number(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// Text of an object, safe for a terminal and of limited length.
fn text(text: &str) -> String {
    sanitize(&clip(text, TEXT_MAX))
}

/// The API server's time of the agent's last write. The time in the status is that of the node's clock, which may be wrong.
fn recorded(object: &NodePrefetch) -> Option<Duration> {
    let writes = object.metadata.managed_fields.iter().flatten();
    let own = writes.filter(|write| write.manager.as_deref() == Some(names::AGENT));
    own.filter_map(|write| since_epoch(write.time.as_ref()?.0))
        .max()
}

/// The time of RFC 3339 as time since 1970.
fn time(text: &str) -> Option<Duration> {
    since_epoch(text.parse().ok()?)
}

fn created(object: &impl ResourceExt) -> Option<Duration> {
    since_epoch(object.creation_timestamp()?.0)
}

fn since_epoch(time: jiff::Timestamp) -> Option<Duration> {
    Duration::try_from(time.duration_since(jiff::Timestamp::UNIX_EPOCH)).ok()
}
