//! Follows the PlannedImages and this node's own Node.

use std::convert::Infallible;
use std::pin::pin;

use futures_util::StreamExt;
use kube::Api;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;
use tracing::{info, warn};

use super::Agent;
use super::planned::Planned;
use super::state::LocalNode;
use crate::api::v1alpha1::PlannedImage;
use crate::app::continuous::watch;
use crate::discovery::workloads::WatchedNode;

/// Follows the planned images, without end.
pub(super) async fn images(agent: &Agent) -> Infallible {
    let api: Api<DeserializeGuard<PlannedImage>> = Api::all(agent.cluster.client().clone());
    let mut events = pin!(watch::objects(api, watch::config(), "plannedimages"));
    let mut listed = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(object) => {
                listed.push(Planned::of(object));
                continue;
            }
            Event::InitDone => {
                agent.state().replace(std::mem::take(&mut listed));
                agent.told.notify_one();
            }
            Event::Apply(object) => agent.state().apply(Planned::of(object)),
            Event::Delete(object) => {
                let name = object.metadata.name.unwrap_or_default();
                agent.state().delete(&name);
            }
        }
        agent.planned.notify_one();
    }
    std::future::pending().await
}

/// Follows this node, without end.
pub(super) async fn node(agent: &Agent) -> Infallible {
    let name = agent.settings.node.as_str();
    let api: Api<DeserializeGuard<WatchedNode>> = Api::all(agent.cluster.client().clone());
    let config = watch::config().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watch::objects(api, config, "nodes"));
    let mut is_listed = false;
    while let Some(event) = events.next().await {
        match event {
            Event::Init => is_listed = false,
            Event::InitApply(object) | Event::Apply(object) => {
                is_listed = true;
                take_over(agent, object);
            }
            Event::InitDone if is_listed => {}
            Event::InitDone | Event::Delete(_) => {
                warn!("node {name} does not exist; not reporting until it does");
                if let Some(node) = &mut agent.state().node {
                    node.is_deleted = true;
                }
            }
        }
    }
    std::future::pending().await
}

fn take_over(agent: &Agent, object: WatchedNode) {
    let uid = object.uid().to_owned();
    let Some((mut node, facts)) = object.named(&agent.settings.node) else {
        return;
    };
    node.startup_taints
        .clone_from(&agent.settings.startup_taints);
    let mut state = agent.state();
    let known = state.node.as_ref();
    let is_same = known.is_some_and(|known| known.uid == uid);
    let is_unchanged = known.is_some_and(|known| {
        let aged = node.age;
        node.age = known.node.age;
        let equal = known.node == node && !known.is_deleted;
        node.age = aged;
        equal
    });
    if is_same && is_unchanged {
        // The kubelet writes the Node's status every few minutes.
        return;
    }
    if known.is_some() && !is_same {
        info!("node {} has joined the cluster again", node.name);
        state.rejoined();
    }
    state.node = Some(LocalNode {
        node,
        facts,
        uid,
        is_deleted: false,
    });
    drop(state);
    agent.planned.notify_one();
    agent.told.notify_one();
}
