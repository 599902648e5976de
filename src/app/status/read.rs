//! Reads the lists of the three kinds page by page, one object at a time.

use std::fmt;
use std::time::{Duration, SystemTime};

use kube::Resource;
use kube::core::DeserializeGuard;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer};
use tracing::warn;

use super::Subject;
use super::state::State;
use crate::api::v1alpha1::{ImagePrefetch, NodePrefetch, PlannedImage};
use crate::kube_api::connect::Cluster;
use crate::kube_api::decode::{Element, PageEnd};
use crate::kube_api::error::ListError;
use crate::kube_api::pages::{self, LIMIT, Pages};
use crate::kube_api::request::{ListFault, PageFault, decode_each, retrying, send};
use crate::model::text::{one_line, sanitize};
use crate::model::workload_kind::percent_encode;

pub(super) const PREFETCHES: &str = "imageprefetches";
pub(super) const PLANNED: &str = "plannedimages";
pub(super) const NODES: &str = "nodeprefetches";

/// Maximum number of characters of an error.
const QUOTED_MAX: usize = 300;

/// A list cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(
        "the API server {server} does not have the resource {plural}.harpoon.dev: continuous mode is not installed; install its \
         CustomResourceDefinitions with \"kubectl apply -f deploy/crds.yaml\" or \"harpoon crds | kubectl apply -f -\""
    )]
    Missing {
        server: String,
        plural: &'static str,
    },
    #[error(
        "not allowed to {verb} {plural}.harpoon.dev: needs the RBAC verb \"{verb}\" on \"{plural}\" in the API group \
         \"harpoon.dev\", granted by a ClusterRole and a ClusterRoleBinding"
    )]
    Forbidden {
        verb: &'static str,
        plural: &'static str,
    },
    #[error("the API server {server} does not accept the credentials (401 Unauthorized)")]
    Unauthorized { server: String },
    #[error("failed to list {plural}.harpoon.dev: {error}")]
    Failed {
        plural: &'static str,
        error: ListError,
    },
}

impl ReadError {
    /// The error of a watch that was answered with this HTTP status; `None` if another attempt may succeed.
    pub(super) fn of_watch(cluster: &Cluster, plural: &'static str, code: u16) -> Option<Self> {
        let server = || cluster.server().to_owned();
        match code {
            401 => Some(Self::Unauthorized { server: server() }),
            403 => Some(Self::Forbidden {
                verb: "watch",
                plural,
            }),
            404 => Some(Self::Missing {
                server: server(),
                plural,
            }),
            _ => None,
        }
    }
}

/// An object of any kind, or what is wrong with it.
struct Guarded<K>(DeserializeGuard<K>);

impl<K: Resource + DeserializeOwned + Send + 'static> Element for Guarded<K> {
    type Kind = ();

    fn decode<'de, D: Deserializer<'de>>((): (), from: D) -> Result<Self, D::Error> {
        DeserializeGuard::deserialize(from).map(Self)
    }
}

/// Reads what the subject needs.
pub(super) async fn all(cluster: &Cluster, state: &mut State) -> Result<(), ReadError> {
    // The images come before the nodes, so that a node that has seen the latest is not taken for one that has not.
    match state.subject() {
        Subject::Node(_) => {}
        Subject::All | Subject::Prefetch(_) => {
            let put = |state: &mut State, object: ImagePrefetch| state.prefetch(object);
            list(cluster, PREFETCHES, "", state, put, |state| {
                state.retain_prefetches(&|_| false);
            })
            .await?;
        }
    }
    let put = |state: &mut State, object: PlannedImage| state.planned(object);
    list(cluster, PLANNED, "", state, put, |state| {
        state.retain_planned(&|_| false);
    })
    .await?;
    let only = match state.subject() {
        Subject::Node(name) => {
            let mut only = "&fieldSelector=metadata.name%3D".to_owned();
            percent_encode(name, &mut only);
            only
        }
        _ => String::new(),
    };
    let put = |state: &mut State, object: NodePrefetch| state.node(object);
    list(cluster, NODES, &only, state, put, |state| {
        state.retain_nodes(&|_| false);
    })
    .await
}

/// Reads a list to its end. An object that cannot be decoded is skipped.
async fn list<K: Resource + DeserializeOwned + Send + 'static>(
    cluster: &Cluster,
    plural: &'static str,
    only: &str,
    state: &mut State,
    put: fn(&mut State, K),
    clear: fn(&mut State),
) -> Result<(), ReadError> {
    let mut list = List {
        cluster,
        plural,
        only,
        state,
        put,
        clear,
    };
    match pages::read(cluster, &mut list).await {
        Ok(_) => Ok(()),
        Err(fault) => Err(refused(cluster, plural, fault)),
    }
}

/// A list that is read into the state.
struct List<'a, K> {
    cluster: &'a Cluster,
    plural: &'static str,
    /// A further parameter of the request, or nothing.
    only: &'a str,
    state: &'a mut State,
    put: fn(&mut State, K),
    clear: fn(&mut State),
}

impl<K: Resource + DeserializeOwned + Send + 'static> Pages for List<'_, K> {
    async fn read(&mut self, token: Option<&str>) -> Result<PageEnd, PageFault> {
        let Self {
            cluster,
            plural,
            only,
            state,
            put,
            ..
        } = self;
        let mut path = format!("/apis/harpoon.dev/v1alpha1/{plural}?limit={LIMIT}{only}");
        if let Some(token) = token {
            path.push_str("&continue=");
            percent_encode(token, &mut path);
        }
        // An object that is read twice replaces itself, so that a page can be tried again.
        retrying(cluster, &*plural, async || {
            let response = send(cluster, &path).await?;
            if let Some(now) = date(response.headers()) {
                state.set_now(now);
            }
            decode_each(
                cluster,
                (),
                response,
                async |object: Guarded<K>| match object.0.0 {
                    Ok(object) => put(state, object),
                    Err(invalid) => warn!(
                        "skipped an object of {plural} that cannot be decoded: {}: {}",
                        sanitize(invalid.metadata.name.as_deref().unwrap_or_default()),
                        one_line(&invalid.error, QUOTED_MAX)
                    ),
                },
            )
            .await
        })
        .await
    }

    fn clear(&mut self) {
        (self.clear)(self.state);
    }
}

fn refused(cluster: &Cluster, plural: &'static str, fault: ListFault) -> ReadError {
    let server = cluster.server().to_owned();
    match fault {
        ListFault::NotFound => ReadError::Missing { server, plural },
        ListFault::Forbidden => ReadError::Forbidden {
            verb: "list",
            plural,
        },
        ListFault::Unauthorized(_) => ReadError::Unauthorized { server },
        ListFault::Failed(error) => ReadError::Failed { plural, error },
    }
}

/// The API server's own time, so that the clock of this machine does not matter for ages.
fn date(headers: &http::HeaderMap) -> Option<Duration> {
    let date = headers.get(http::header::DATE)?.to_str().ok()?;
    let date = httpdate::parse_http_date(date).ok()?;
    date.duration_since(SystemTime::UNIX_EPOCH).ok()
}

impl<K> fmt::Debug for Guarded<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guarded")
    }
}
