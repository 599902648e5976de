use std::convert::Infallible;
use std::sync::Arc;

use axum::http::{Request, Response};
use futures_util::stream;
use http_body_util::{Either, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use kube::client::Body;
use serde_json::json;
use tokio::time::{advance, timeout_at};

use super::super::observe::State;
use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// The answer to a watch that is open, and in which nothing happens.
const SILENCE: u16 = 200;

/// An API server without any object. `answer` gives the status for each list (false) and each watch (true) of a path.
fn server(answer: impl Fn(&str, bool) -> u16 + Send + Sync + 'static) -> Client {
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: Request<Body>| {
        let is_watch = (request.uri().query()).is_some_and(|query| query.contains("watch=true"));
        let (code, body) = match answer(request.uri().path(), is_watch) {
            SILENCE if is_watch => {
                let silence = stream::pending::<Result<Frame<Bytes>, Infallible>>();
                (200, Either::Right(StreamBody::new(silence)))
            }
            200 => {
                let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": []});
                (200, Either::Left(Full::new(Bytes::from(list.to_string()))))
            }
            code => {
                let status = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": "no", "reason": "no", "code": code});
                (
                    code,
                    Either::Left(Full::new(Bytes::from(status.to_string()))),
                )
            }
        };
        std::future::ready(Response::builder().status(code).body(body))
    });
    Client::new(service, "default")
}

/// The watches of namespaces and CronJobs.
fn needs() -> Needs {
    let cron_jobs = WatchKey {
        kind: WorkloadKind::CronJobs,
        scope: Scope::All,
    };
    Needs {
        keys: BTreeSet::from([cron_jobs]),
        namespaces: true,
    }
}

/// The state that is observed within a time, and all refusals of that time.
async fn observed(client: &Client, time: Duration) -> (State, Vec<Refusal>) {
    let (mut watches, mut receiver) = Watches::start(client);
    watches.adjust(&needs());
    let (mut state, mut refusals) = (State::new(false), Vec::new());
    let end = Instant::now() + time;
    while let Ok(Some(seen)) = timeout_at(end, receiver.recv()).await {
        if let Seen::Workload(_, _, Err(refusal)) | Seen::Namespace(Err(refusal)) = &seen {
            refusals.push(refusal.clone());
        }
        state.handle(seen, &watches);
    }
    (state, refusals)
}

/// True if the workloads of all watches were listed.
fn is_synced(state: &State) -> bool {
    let keys = needs().keys;
    keys.iter().all(|key| state.inventory.is_synced(key))
}

/// True for the first call.
fn once() -> impl Fn() -> bool {
    let is_first = std::sync::atomic::AtomicBool::new(true);
    move || is_first.swap(false, std::sync::atomic::Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn silent_resume_takes_refusal_back() {
    let (namespaces, workloads) = (once(), once());
    let client = server(move |path, is_watch| match path {
        "/api/v1/namespaces" if is_watch && namespaces() => 403,
        "/apis/batch/v1/cronjobs" if is_watch && workloads() => 401,
        _ => 200,
    });
    let (state, refusals) = observed(&client, Duration::from_secs(30)).await;
    assert_eq!(refusals.len(), 2, "{refusals:?}");
    assert!(state.refusals.is_empty(), "{:?}", state.refusals);
}

#[tokio::test(start_paused = true)]
async fn missing_version_leads_to_newest() {
    let missing = once();
    let client = server(move |path, _| match path {
        "/apis/batch/v1/cronjobs" if missing() => 404,
        "/apis/batch/v1beta1/cronjobs" => 404,
        _ => 200,
    });
    let (state, refusals) = observed(&client, Duration::from_secs(30)).await;
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    assert!(state.refusals.is_empty(), "{:?}", state.refusals);
    assert!(is_synced(&state));
}

#[tokio::test(start_paused = true)]
async fn upgraded_server_is_no_refusal() {
    let (old, open) = (once(), once());
    let client = server(move |path, is_watch| match path {
        "/apis/batch/v1/cronjobs" if old() => 404,
        "/apis/batch/v1beta1/cronjobs" if is_watch && !open() => 404,
        _ => 200,
    });
    let (state, refusals) = observed(&client, HOUR).await;
    assert_eq!(refusals, []);
    assert!(is_synced(&state));
}

#[tokio::test(start_paused = true)]
async fn refused_watch_is_listed_rarely() {
    let lists = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&lists);
    let client = server(move |path, is_watch| match path {
        "/api/v1/namespaces" if is_watch => 403,
        "/api/v1/namespaces" => {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            200
        }
        _ => 200,
    });
    observed(&client, HOUR).await;
    let lists = lists.load(std::sync::atomic::Ordering::Relaxed);
    assert!((12..40).contains(&lists), "{lists}");
}

#[tokio::test(start_paused = true)]
async fn distant_errors_are_no_refusal() {
    let mut trouble = Trouble::default();
    for _ in 0..3 {
        assert_eq!(trouble.tell(None, Resourced::Namespaces), None);
        advance(HOUR).await;
    }
    // The second of these is too early, the last is not.
    let errors = [Duration::ZERO, PATIENCE / 2, PATIENCE / 2];
    let mut told = Vec::new();
    for pause in errors {
        advance(pause).await;
        told.push(trouble.tell(None, Resourced::Namespaces).is_some());
    }
    assert_eq!(told, [false, false, true]);
}

#[test]
fn only_refused_nodes_are_given_up() {
    for status in [401, 403, 404] {
        assert!(is_given_up(false, Some(status)), "{status}");
        assert!(!is_given_up(true, Some(status)), "{status}");
    }
    for status in [None, Some(410), Some(429), Some(500)] {
        assert!(!is_given_up(false, status), "{status:?}");
    }
}
