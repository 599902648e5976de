//! Reads one list, of one kind in one namespace or in all. A failed page is retried and never counted twice.

use http::Response;
use kube::client::Body;

use super::accumulate::{Accumulator, Checkpoint};
use super::node::LocalNode;
use super::object::Facts;
use crate::discovery::workloads::error::Scope;
use crate::kube_api::connect::Cluster;
use crate::kube_api::decode::PageEnd;
use crate::kube_api::pages::{self, LIMIT, Pages};
use crate::kube_api::request::{ListFault, PageFault, decode_each, retrying, send};
use crate::model::workload_kind::{WorkloadKind, percent_encode};

/// The parameters of a list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Query<'a> {
    pub(super) kind: WorkloadKind,
    pub(super) version: &'a str,
    pub(super) scope: &'a Scope,
    pub(super) selector: Option<&'a str>,
    /// True to read from the API server's watch cache, in one response.
    pub(super) cached: bool,
}

/// Reads the list into the accumulator, checks each workload against the node if there is one, and returns the number of objects.
/// The accumulator keeps the pages that were read, even after an error.
pub(super) async fn read(
    cluster: &Cluster,
    query: Query<'_>,
    here: &mut Option<LocalNode>,
    into: &mut Accumulator,
) -> Result<usize, ListFault> {
    let start = into.checkpoint();
    let mut list = List {
        cluster,
        query,
        here,
        into,
        start,
    };
    pages::read(cluster, &mut list).await
}

/// A list that is read into an accumulator.
struct List<'a> {
    cluster: &'a Cluster,
    query: Query<'a>,
    here: &'a mut Option<LocalNode>,
    into: &'a mut Accumulator,
    /// The state of the accumulator before the list.
    start: Checkpoint,
}

impl Pages for List<'_> {
    async fn read(&mut self, token: Option<&str>) -> Result<PageEnd, PageFault> {
        let (cluster, query) = (self.cluster, self.query);
        retrying(cluster, query, async || {
            let start = self.into.checkpoint();
            let page = try_page(cluster, query, token, self.here, self.into).await;
            if page.is_err() {
                self.into.rollback(start);
            }
            page
        })
        .await
    }

    fn clear(&mut self) {
        tracing::debug!(query = ?self.query, "list expired, restarting");
        self.into.rollback(self.start);
    }
}

async fn try_page(
    cluster: &Cluster,
    query: Query<'_>,
    token: Option<&str>,
    here: &mut Option<LocalNode>,
    into: &mut Accumulator,
) -> Result<PageEnd, PageFault> {
    let response = send(cluster, &target(query, token)).await?;
    decode_page(cluster, query.kind, response, here, into).await
}

fn target(query: Query<'_>, token: Option<&str>) -> String {
    let mut path = query.kind.path(query.version, query.scope.namespace());
    // The watch cache does not paginate: API servers ignore a limit together with resourceVersion=0, or read the list from etcd.
    match query.cached {
        true => path.push_str("?resourceVersion=0"),
        false => path.push_str(&format!("?limit={LIMIT}")),
    }
    for (key, value) in [("labelSelector", query.selector), ("continue", token)] {
        if let Some(value) = value {
            path.push_str(&format!("&{key}="));
            percent_encode(value, &mut path);
        }
    }
    path
}

/// Decodes a page of workloads.
///
/// Objects are added here, in the task that continues with planning: memory that another thread allocated stays in that thread's
/// arena when it is freed, where this task cannot reuse it.
async fn decode_page(
    cluster: &Cluster,
    kind: WorkloadKind,
    response: Response<Body>,
    here: &mut Option<LocalNode>,
    into: &mut Accumulator,
) -> Result<PageEnd, PageFault> {
    decode_each(cluster, kind, response, async |mut facts: Facts| {
        if let Some(here) = here.as_mut() {
            facts.mismatch = here.judge(cluster, kind, &facts).await;
        }
        into.fold(kind, &facts);
    })
    .await
}

/// Returns whether a namespace exists; `None` if the API server does not answer that.
pub(super) async fn namespace_exists(cluster: &Cluster, namespace: &str) -> Option<bool> {
    let mut path = "/api/v1/namespaces/".to_owned();
    percent_encode(namespace, &mut path);
    match send(cluster, &path).await {
        Ok(_) => Some(true),
        Err(PageFault::Final(ListFault::NotFound)) => Some(false),
        Err(_) => None,
    }
}
