//! Reads one list, of one kind in one namespace or in all, page by page, to its end.
//!
//! Pages are read as described in the Kubernetes API concepts ("Retrieving large results sets in chunks"), including an expired
//! continue token. A failed page is retried and never counted twice.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use http::Response;
use kube::client::Body;

use super::accumulate::Accumulator;
use super::node::LocalNode;
use super::object::Facts;
use crate::discovery::workloads::error::Scope;
use crate::kube_api::connect::Cluster;
use crate::kube_api::decode::PageEnd;
use crate::kube_api::error::ListError;
use crate::kube_api::request::{ListFault, PageFault, decode_each, retrying, send};
use crate::model::workload_kind::{WorkloadKind, percent_encode};

/// Objects per page, as in kubectl.
const LIMIT: usize = 500;
/// Ten million objects; a longer list is assumed to be endless.
const MAX_PAGES: usize = 20_000;
const MAX_RESTARTS: u32 = 3;

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
    let mut token: Option<String> = None;
    // Only hashes are kept: 20,000 tokens of the maximum length would be 320 MB.
    let (mut tokens, hash) = (HashSet::new(), RandomState::new());
    let mut objects = 0;
    let mut restarts = 0;
    for _ in 0..MAX_PAGES {
        let next = match read_page(cluster, query, token.as_deref(), here, into).await {
            Ok(end) => {
                objects += end.objects;
                match end.next {
                    Some(next) => next,
                    None => return Ok(objects),
                }
            }
            Err(PageFault::Gone(Some(next))) => next,
            Err(PageFault::Gone(None)) if restarts == MAX_RESTARTS => {
                return failed(ListError::Expired(restarts + 1));
            }
            Err(PageFault::Gone(None)) => {
                tracing::debug!(?query, "list expired, restarting");
                into.rollback(start);
                restarts += 1;
                cluster.patience.pause(restarts, None).await;
                objects = 0;
                token = None;
                tokens.clear();
                continue;
            }
            Err(PageFault::Passing(error, _)) => return failed(error),
            Err(PageFault::Final(fault)) => return Err(fault),
        };
        if !tokens.insert(hash.hash_one(&next)) {
            return failed(ListError::Endless("it repeats a page"));
        }
        token = Some(next);
    }
    failed(ListError::Endless("it has more than 20000 pages"))
}

fn failed(error: ListError) -> Result<usize, ListFault> {
    Err(ListFault::Failed(error))
}

/// Reads one page, with retries where these may help.
async fn read_page(
    cluster: &Cluster,
    query: Query<'_>,
    token: Option<&str>,
    here: &mut Option<LocalNode>,
    into: &mut Accumulator,
) -> Result<PageEnd, PageFault> {
    retrying(cluster, query, async || {
        let start = into.checkpoint();
        let page = try_page(cluster, query, token, here, into).await;
        if page.is_err() {
            into.rollback(start);
        }
        page
    })
    .await
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
