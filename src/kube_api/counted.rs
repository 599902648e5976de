//! Counts the requests to the API server by verb, kind and status code, each from a fixed set.
//!
//! A watch counts once, when the API server answers it. No label is an object's name.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Method, Request, Response, Uri};
use kube::client::Body;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tower::{Layer, Service};

/// The resources whose requests are counted by kind; any other is `other`.
const KINDS: &[(&str, &str)] = &[
    ("cronjobs", "CronJob"),
    ("customresourcedefinitions", "CustomResourceDefinition"),
    ("daemonsets", "DaemonSet"),
    ("deployments", "Deployment"),
    ("events", "Event"),
    ("imageprefetches", "ImagePrefetch"),
    ("jobs", "Job"),
    ("leases", "Lease"),
    ("namespaces", "Namespace"),
    ("nodeprefetches", "NodePrefetch"),
    ("nodes", "Node"),
    ("plannedimages", "PlannedImage"),
    ("pods", "Pod"),
    ("replicasets", "ReplicaSet"),
    ("runtimeclasses", "RuntimeClass"),
    ("secrets", "Secret"),
    ("serviceaccounts", "ServiceAccount"),
    ("statefulsets", "StatefulSet"),
];

/// The status codes that are counted by number; any other is counted by its class, such as `4xx`.
const CODES: &[(u16, &str)] = &[
    (200, "200"),
    (201, "201"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (409, "409"),
    (410, "410"),
    (422, "422"),
    (429, "429"),
    (500, "500"),
    (503, "503"),
    (504, "504"),
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    verb: &'static str,
    kind: &'static str,
    code: &'static str,
}

/// The number of requests to the API server, shared by all clones.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequestCounts(Family<Labels, Counter>);

impl RequestCounts {
    /// The counters, to be registered as `harpoon_api_requests`.
    pub(crate) fn family(&self) -> impl prometheus_client::registry::Metric + use<> {
        self.0.clone()
    }

    fn count(&self, verb: &'static str, kind: &'static str, code: &'static str) {
        let labels = Labels { verb, kind, code };
        self.0.get_or_create(&labels).inc();
    }
}

impl<S> Layer<S> for RequestCounts {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            counts: self.clone(),
        }
    }
}

/// A client's service whose requests are counted.
#[derive(Debug, Clone)]
pub(crate) struct Counted<S> {
    inner: S,
    counts: RequestCounts,
}

impl<S, B> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Unpin,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = CountedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (verb, kind) = verb_and_kind(request.method(), request.uri());
        CountedFuture {
            inner: self.inner.call(request),
            counts: self.counts.clone(),
            verb,
            kind,
        }
    }
}

/// The response of a counted request.
pub(crate) struct CountedFuture<F> {
    inner: F,
    counts: RequestCounts,
    verb: &'static str,
    kind: &'static str,
}

impl<F, B, E> Future for CountedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>> + Unpin,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let answer = std::task::ready!(Pin::new(&mut self.inner).poll(cx));
        let code = answer
            .as_ref()
            .map_or("error", |answer| code(answer.status().as_u16()));
        self.counts.count(self.verb, self.kind, code);
        Poll::Ready(answer)
    }
}

fn code(status: u16) -> &'static str {
    if let Some((_, code)) = CODES.iter().find(|(known, _)| *known == status) {
        return code;
    }
    match status / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

/// The verb and the kind of a request, as RBAC and audit logs name them.
fn verb_and_kind(method: &Method, uri: &Uri) -> (&'static str, &'static str) {
    let (resource, has_name) = resource(uri.path());
    let kind = KINDS.iter().find(|(plural, _)| *plural == resource);
    let kind = kind.map_or("other", |(_, kind)| *kind);
    let verb = match *method {
        Method::GET if is_watch(uri.query().unwrap_or_default()) => "watch",
        Method::GET if has_name => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    };
    (verb, kind)
}

fn is_watch(query: &str) -> bool {
    query
        .split('&')
        .any(|pair| matches!(pair, "watch=true" | "watch=1"))
}

/// The resource in a path and whether an object of it is named: `/api/VERSION/…` or `/apis/GROUP/VERSION/…`, with or without a
/// namespace. A path that is neither has no resource and counts as named.
fn resource(path: &str) -> (&str, bool) {
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    let skipped = match segments.next() {
        Some("api") => 1,
        Some("apis") => 2,
        _ => return ("", true),
    };
    for _ in 0..skipped {
        segments.next();
    }
    let parts: [Option<&str>; 4] = std::array::from_fn(|_| segments.next());
    match parts {
        // `namespaces/NAME/status` is the namespace itself.
        [
            Some("namespaces"),
            Some(_),
            Some("status" | "finalize"),
            None,
        ] => ("namespaces", true),
        [Some("namespaces"), Some(_), Some(resource), name] => (resource, name.is_some()),
        [Some(resource), name, ..] => (resource, name.is_some()),
        [None, ..] => ("", true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(method: &Method, uri: &str) -> (&'static str, &'static str) {
        verb_and_kind(method, &uri.parse().unwrap())
    }

    #[test]
    fn paths_give_verb_and_kind() {
        let get = Method::GET;
        for (method, uri, expected) in [
            (&get, "/api/v1/nodes/node-1", ("get", "Node")),
            (&get, "/api/v1/nodes?fieldSelector=a", ("list", "Node")),
            (&get, "/api/v1/pods?&watch=true&a=b", ("watch", "Pod")),
            (&get, "/api/v1/namespaces", ("list", "Namespace")),
            (&get, "/api/v1/namespaces/shop", ("get", "Namespace")),
            (
                &get,
                "/api/v1/namespaces/shop/secrets/regcred",
                ("get", "Secret"),
            ),
            (
                &get,
                "/apis/apps/v1/namespaces/shop/deployments?limit=500",
                ("list", "Deployment"),
            ),
            (
                &get,
                "/apis/harpoon.dev/v1alpha1/plannedimages?watch=1",
                ("watch", "PlannedImage"),
            ),
            (
                &Method::PATCH,
                "/apis/harpoon.dev/v1alpha1/nodeprefetches/node-1/status?force=true",
                ("patch", "NodePrefetch"),
            ),
            (
                &Method::POST,
                "/apis/coordination.k8s.io/v1/namespaces/harpoon/leases",
                ("create", "Lease"),
            ),
            (
                &Method::PUT,
                "/apis/coordination.k8s.io/v1/namespaces/harpoon/leases/harpoon-controller",
                ("update", "Lease"),
            ),
            (
                &Method::DELETE,
                "/apis/harpoon.dev/v1alpha1/plannedimages/a",
                ("delete", "PlannedImage"),
            ),
            (&get, "/version", ("get", "other")),
            (&get, "/apis/example.com/v1/widgets", ("list", "other")),
            (&Method::OPTIONS, "/", ("other", "other")),
        ] {
            assert_eq!(labels(method, uri), expected, "{method} {uri}");
        }
    }

    #[test]
    fn unknown_codes_count_by_class() {
        let codes = [101, 200, 204, 302, 403, 418, 500, 502, 999].map(code);
        let expected = [
            "1xx", "200", "2xx", "3xx", "403", "4xx", "500", "5xx", "5xx",
        ];
        assert_eq!(codes, expected);
    }

    #[tokio::test]
    async fn layer_counts_answers_and_errors() {
        let counts = RequestCounts::default();
        let mut service = counts.layer(tower::service_fn(|request: Request<Body>| {
            let found = request.uri().path().ends_with("/node-1");
            std::future::ready(match found {
                true => Ok(Response::new(())),
                false => Err("connection refused"),
            })
        }));
        for name in ["node-1", "node-1", "node-2"] {
            let uri = format!("/api/v1/nodes/{name}");
            let request = Request::get(uri).body(Body::empty()).unwrap();
            let _ = service.call(request).await;
        }
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register("harpoon_api_requests", "Requests", counts.family());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "harpoon_api_requests_total{verb=\"get\",kind=\"Node\",code=\"200\"} 2\n",
            "harpoon_api_requests_total{verb=\"get\",kind=\"Node\",code=\"error\"} 1\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
