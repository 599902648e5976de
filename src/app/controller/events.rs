//! Events on ImagePrefetches: when one becomes ready or stops being so, and when something is wrong with it; and on Nodes whose gate
//! opened without all images.
//!
//! Events are hints for people: one that cannot be published is dropped. What is worth an event is pure.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::leader::Fence;
use crate::api::v1alpha1::Condition;
use crate::model::text::clip_bytes;

/// Events that wait to be published; further ones are dropped.
const WAITING: usize = 64;
/// Maximum size of a note in bytes, which the API server checks.
const NOTE_MAX: usize = 1000;
/// The namespace of events on objects without a namespace; Kubernetes 1.20 refuses them without it.
pub(super) const NAMESPACE: &str = "default";

/// A change of a condition that people want to know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notice {
    is_warning: bool,
    reason: String,
    note: String,
}

impl Notice {
    pub(super) fn warning(reason: &str, note: &str) -> Self {
        Self {
            is_warning: true,
            reason: reason.to_owned(),
            note: clip_bytes(note, NOTE_MAX),
        }
    }
}

/// The notices for a change of the conditions. Pure.
pub(super) fn notices(before: &[Condition], after: &[Condition]) -> Vec<Notice> {
    let find = |of: &[Condition], kind: &str| of.iter().find(|c| c.kind == kind).cloned();
    let mut notices = Vec::new();
    let mut add = |is_warning, condition: &Condition, what: &str| {
        let note = match condition.message.as_str() {
            "" => what.to_owned(),
            message => format!("{what}: {message}"),
        };
        notices.push(Notice {
            is_warning,
            reason: condition.reason.clone(),
            note: clip_bytes(&note, NOTE_MAX),
        });
    };
    let was = |kind: &str| find(before, kind).map(|c| (c.status, c.reason));
    if let Some(ready) = find(after, "Ready") {
        let was_ready = was("Ready").is_some_and(|(status, _)| status == "True");
        match (was_ready, ready.status == "True") {
            (false, true) => add(false, &ready, "ready"),
            // A change of the images, which becomes ready again.
            (true, false) if ready.reason == "Updating" => {}
            (true, false) => add(false, &ready, "not ready any more"),
            _ => {}
        }
    }
    if let Some(degraded) = find(after, "Degraded")
        && degraded.status == "True"
        && was("Degraded") != Some(("True".to_owned(), degraded.reason.clone()))
    {
        add(true, &degraded, "degraded");
    }
    notices
}

/// Publishes events, one after the other. Dropping it ends that.
pub(super) struct Publisher {
    sender: mpsc::Sender<(Notice, ObjectReference)>,
    _task: AbortOnDropHandle<()>,
}

impl Publisher {
    pub(super) fn start(client: Client, identity: &str, fence: Fence) -> Self {
        let (sender, mut receiver) = mpsc::channel::<(Notice, ObjectReference)>(WAITING);
        let reporter = Reporter {
            controller: "harpoon-controller".to_owned(),
            instance: Some(clip_bytes(identity, 128)),
        };
        let recorder = Recorder::new(client, reporter);
        let task = async move {
            while let Some((notice, about)) = receiver.recv().await {
                let event = Event {
                    type_: match notice.is_warning {
                        true => EventType::Warning,
                        false => EventType::Normal,
                    },
                    reason: notice.reason,
                    note: Some(notice.note),
                    action: "Prefetch".to_owned(),
                    secondary: None,
                };
                if fence.is_leading()
                    && let Err(error) = recorder.publish(&event, &about).await
                {
                    tracing::debug!("failed to publish an event: {}", super::shown(error));
                }
            }
        };
        Self {
            sender,
            _task: AbortOnDropHandle::new(tokio::spawn(task)),
        }
    }

    /// Publishes the notices about the ImagePrefetch with this name and uid.
    pub(super) fn publish(&self, notices: Vec<Notice>, name: &str, uid: &str) {
        for notice in notices {
            self.send(notice, ("harpoon.dev/v1alpha1", "ImagePrefetch"), name, uid);
        }
    }

    /// Publishes a notice about the Node with this name and uid.
    pub(super) fn publish_on_node(&self, notice: Notice, name: &str, uid: &str) {
        self.send(notice, ("v1", "Node"), name, uid);
    }

    fn send(&self, notice: Notice, (version, kind): (&str, &str), name: &str, uid: &str) {
        let about = ObjectReference {
            api_version: Some(version.to_owned()),
            kind: Some(kind.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        if self.sender.try_send((notice, about)).is_err() {
            tracing::debug!("an event was dropped: too many wait");
        }
    }
}
