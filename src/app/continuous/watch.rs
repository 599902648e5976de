//! Watches that never end: an error is logged and the watch is started again, with a jittered back-off.
//!
//! An object that cannot be decoded is skipped and does not end a watch.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tracing::{debug, warn};

use crate::kube_api::error::message;
use crate::model::text::{one_line, sanitize};

/// The lifetime of one watch request. A longer one costs the API server fewer lists; the bookmarks of every minute keep the
/// position.
const LIFETIME: Duration = Duration::from_secs(1800);
/// Number of large objects in a page of a list. One has up to tens of kilobytes, most of which are skipped.
const LARGE_PAGE: u32 = 100;
/// The shortest time between two log lines about the same failure of a watch.
const QUIET: Duration = Duration::from_secs(300);
/// The most characters of a message that are logged.
const QUOTED_MAX: usize = 300;

/// The settings of a watch, for [`objects`].
pub(crate) fn config() -> watcher::Config {
    let seconds = u32::try_from(LIFETIME.as_secs()).unwrap_or(u32::MAX);
    watcher::Config::default().timeout(seconds)
}

/// The same for objects that may be large, such as Nodes and workloads. A whole page is in memory while it is decoded, and the process
/// does not give that memory back.
pub(crate) fn config_for_large() -> watcher::Config {
    config().page_size(LARGE_PAGE)
}

/// The events of a watch, without end. Errors are logged under the name of the resource, such as `plannedimages`.
pub(crate) fn objects<K>(
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    resource: &'static str,
) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Clone + Default + Debug + Send + 'static,
{
    outcomes(api, config, resource).filter_map(|outcome| std::future::ready(outcome.ok()))
}

/// Like [`objects`], with the HTTP status of each answer that is an error.
pub(crate) fn outcomes<K>(
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    resource: &'static str,
) -> impl Stream<Item = Result<Event<K>, u16>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Clone + Default + Debug + Send + 'static,
{
    let mut complaint = Complaint::default();
    watch(api, config)
        .default_backoff()
        .filter_map(move |event| {
            let event = match event {
                Ok(event) => {
                    if works(&event) && complaint.over() {
                        tracing::info!(resource, "watching again");
                    }
                    decoded(event, resource).map(Ok)
                }
                Err(error) => {
                    let code = status(&error);
                    complaint.tell(resource, error);
                    code.map(Err)
                }
            };
            std::future::ready(event)
        })
}

/// Returns whether an event shows that the watch works: each attempt to list starts with [`Event::Init`].
pub(crate) fn works<K>(event: &Event<K>) -> bool {
    !matches!(event, Event::Init | Event::InitApply(_))
}

/// The event with its object; `None` if that cannot be decoded.
fn decoded<K: Resource>(event: Event<DeserializeGuard<K>>, resource: &str) -> Option<Event<K>> {
    let valid = |DeserializeGuard(object): DeserializeGuard<K>| {
        object
            .map_err(|invalid| {
                warn!(
                    resource,
                    name = sanitize(invalid.metadata.name.as_deref().unwrap_or_default()),
                    "skipped an object that cannot be decoded: {}",
                    one_line(&invalid.error, QUOTED_MAX)
                );
            })
            .ok()
    };
    Some(match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(valid(object)?),
        Event::Apply(object) => Event::Apply(valid(object)?),
        Event::Delete(object) => Event::Delete(valid(object)?),
    })
}

/// The failure of a watch that was logged last.
#[derive(Default)]
struct Complaint {
    last: Option<(String, tokio::time::Instant)>,
}

impl Complaint {
    /// Logs the error, unless the same was logged a short time ago.
    fn tell(&mut self, resource: &str, error: watcher::Error) {
        let text = describe(resource, error);
        let now = tokio::time::Instant::now();
        match &self.last {
            Some((last, at)) if *last == text && now.duration_since(*at) < QUIET => {
                debug!(resource, "{text}");
            }
            _ => {
                warn!(resource, "{text}; retrying");
                self.last = Some((text, now));
            }
        }
    }

    /// Returns whether a failure was logged; it is forgotten.
    fn over(&mut self) -> bool {
        self.last.take().is_some()
    }
}

/// The error for people. A missing definition and a missing permission say what to do.
fn describe(resource: &str, error: watcher::Error) -> String {
    match status(&error) {
        Some(404) => format!(
            "the API server does not have the resource {resource}.harpoon.dev: install the CustomResourceDefinitions with \
             \"kubectl apply -f deploy/crds.yaml\" or \"harpoon crds | kubectl apply -f -\""
        ),
        Some(403) => format!(
            "not allowed to watch: needs the RBAC verbs \"list\" and \"watch\" on \"{resource}\""
        ),
        // The same message again and again, such as an expired resource version, is the API server's way to ask for a new list.
        _ => format!("failed to watch: {}", one_line(&cause(error), QUOTED_MAX)),
    }
}

/// The HTTP status of the API server's answer, if it answered.
pub(crate) fn status(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

/// The message of the error, without any output of a credential plugin.
fn cause(error: watcher::Error) -> String {
    use watcher::Error as E;
    match error {
        E::InitialListFailed(inner) | E::WatchStartFailed(inner) | E::WatchFailed(inner) => {
            message(inner)
        }
        E::WatchError(status) => status.message,
        E::NoResourceVersion => error.to_string(),
    }
}
