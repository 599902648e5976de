//! A server or a connection that fails during a list: retryable failures are retried, and nothing is counted twice.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::super::bed::faulty::{Fault, Proxy, Seen, first};
use super::super::bed::{Harpoon, eventually, kubernetes};
use super::{Row, by_kubeconfig, deployments, error, found, plan, rows, templated, warnings};

/// More than two pages.
const CROWD: usize = 1100;
/// Ten images, the more used the lower the number.
const IMAGES: usize = 10;

/// A namespace of many Deployments, and the sole right to read it page by page: compaction spoils all such reading.
fn crowd() -> (&'static str, MutexGuard<'static, ()>) {
    static NAMESPACE: OnceLock<String> = OnceLock::new();
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let namespace = NAMESPACE.get_or_init(|| {
        let cluster = kubernetes();
        let namespace = cluster.namespace();
        let deployment = |n: usize| {
            let image = format!("image-{}:1", n % IMAGES);
            let replicas = json!({"replicas": 1 + n % IMAGES});
            templated(&name(n), &image, replicas)
        };
        cluster.create_all(
            &deployments(&namespace),
            (0..CROWD).map(deployment).collect(),
        );
        namespace
    });
    (namespace, alone)
}

fn name(n: usize) -> String {
    format!("web-{n:04}")
}

/// The expected images among the first `count` of the crowd.
fn of_crowd(namespace: &str, count: usize) -> Vec<Row> {
    let image = |i: usize| {
        let users = (0..count).filter(|n| n % IMAGES == i);
        let users: Vec<_> = users
            .map(|n| format!("{namespace}/Deployment/{}", name(n)))
            .collect();
        let pods = users.len() * (1 + i);
        (format!("image-{i}:1"), pods as u64, users)
    };
    (0..IMAGES).rev().map(image).collect()
}

fn is_second_page(seen: &Seen) -> bool {
    seen.query.contains("continue=") && seen.nth == 2
}

/// The continue tokens of the requests, in order; `None` for a first page.
fn tokens(proxy: &Proxy) -> Vec<Option<String>> {
    let token = |seen: Seen| {
        let mut pairs = seen.query.split('&');
        let token = pairs.find_map(|pair| pair.strip_prefix("continue="));
        token.map(str::to_owned)
    };
    proxy.seen().into_iter().map(token).collect()
}

fn gone() -> Fault {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired",
        "message": "The provided continue parameter is too old", "code": 410});
    Fault::Answer {
        status: 410,
        headers: vec![("content-type", "application/json".into())],
        body: status.to_string(),
    }
}

#[test]
fn failed_page_is_retried_counted_once() {
    let cluster = kubernetes();
    let (namespace, _alone) = crowd();
    let expected = of_crowd(namespace, CROWD);
    let faults = [
        Fault::Pass,
        Fault::Close,
        Fault::CutAfter(0),
        Fault::CutAfter(20_000),
        Fault::status(500),
        Fault::status(503),
    ];
    for fault in faults {
        let tries = if matches!(fault, Fault::Pass) { 1 } else { 2 };
        let proxy = Proxy::start_tls(
            cluster.server(),
            cluster.ca(),
            first(1, fault.clone(), is_second_page),
        );
        let output = plan(cluster, &proxy.url(), cluster.token(), namespace).run();
        let output = output.expect(0);
        assert!(found(&output) == expected, "{fault:?}: {}", output.stderr);
        assert_eq!(warnings(&output), [] as [&str; 0], "{fault:?}");
        let tokens = tokens(&proxy);
        assert_eq!(tokens.len(), 2 + tries, "{fault:?}: {tokens:?}");
        assert_eq!(tokens[0], None);
        assert_eq!(tokens[1], tokens[tries], "{fault:?}");
        assert!(
            proxy
                .seen()
                .iter()
                .all(|seen| seen.query.contains("limit=500"))
        );
    }
}

#[test]
fn throttled_list_waits_for_retry_after() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    cluster.deployment(&namespace, "web", 1, "web:1");
    let proxy = Proxy::start_tls(
        cluster.server(),
        cluster.ca(),
        first(1, Fault::too_many(2), |_| true),
    );
    let output = plan(cluster, &proxy.url(), cluster.token(), &namespace).run();
    let output = output.expect(0);
    assert_eq!(
        found(&output),
        rows(&namespace, &[("web:1", 1, &["Deployment/web"])])
    );
    assert!(output.elapsed >= Duration::from_secs(2), "{output}");
    assert_eq!(proxy.count(|_| true), 2);
}

#[test]
fn failing_list_is_error_after_retries() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    cluster.deployment(&namespace, "web", 1, "web:1");
    let cases = [
        (Fault::Close, "failed to reach the API server"),
        (Fault::CutAfter(100), "ended early"),
        (Fault::status(500), "the API server returned 500"),
    ];
    for (fault, why) in cases {
        let decide = fault.clone();
        let proxy = Proxy::start_tls(cluster.server(), cluster.ca(), move |_| decide.clone());
        let output = plan(cluster, &proxy.url(), cluster.token(), &namespace).run();
        let output = output.expect(1);
        assert_eq!(output.stdout, "");
        assert!(error(&output).contains(why), "{fault:?}: {output}");
        assert_eq!(proxy.count(|_| true), 4, "{fault:?}");
    }
}

/// Some pages of the only list are not a result: that run would succeed and hide the failure of discovery.
#[test]
fn incomplete_only_list_is_an_error() {
    let cluster = kubernetes();
    let (namespace, _alone) = crowd();
    let proxy = Proxy::start_tls(cluster.server(), cluster.ca(), |seen| {
        if seen.query.contains("continue=") {
            Fault::CutAfter(20_000)
        } else {
            Fault::Pass
        }
    });
    let output = plan(cluster, &proxy.url(), cluster.token(), namespace).run();
    let output = output.expect(1);
    assert_eq!(output.stdout, "");
    let last = output.stderr.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("error: ") && last.contains(namespace) && last.contains("failed to list"),
        "{output}"
    );
}

#[test]
fn lost_server_keeps_earlier_lists() {
    let cluster = kubernetes();
    let (one, two) = (cluster.namespace(), cluster.namespace());
    cluster.deployment(&one, "web", 1, "one:1");
    cluster.deployment(&two, "web", 1, "two:1");
    let second = two.clone();
    let proxy = Proxy::start_tls(cluster.server(), cluster.ca(), move |seen| {
        if seen.path.contains(&second) {
            Fault::Close
        } else {
            Fault::Pass
        }
    });
    let output = plan(cluster, &proxy.url(), cluster.token(), &one)
        .env("NAMESPACES", [one.as_str(), &two].join(","))
        .env("WORKLOADS", "deployments,pods")
        .run()
        .expect(0);
    assert_eq!(
        found(&output),
        rows(&one, &[("one:1", 1, &["Deployment/web"])])
    );
    let warnings = warnings(&output);
    assert_eq!(warnings.len(), 2, "{output}");
    assert!(
        warnings.iter().all(|warning| warning.contains(&two)),
        "{output}"
    );
    // Once it is known to be unreachable, no more requests are sent.
    assert_eq!(proxy.count(|seen| seen.path.ends_with("/pods")), 1);
}

#[test]
fn expired_list_continues_with_new_token() {
    let cluster = kubernetes();
    let (namespace, _alone) = crowd();
    let proxy = Proxy::start_tls(cluster.server(), cluster.ca(), move |seen| {
        if is_second_page(seen) {
            // The list's state is no longer the last one, and only the last one is kept.
            let path = format!("{}/{}", deployments(namespace), name(7));
            let change = json!({"metadata": {"annotations": {"touched": "in mid-list"}}});
            cluster.patch(&path, change);
            cluster.compact();
        }
        Fault::Pass
    });
    let output = plan(cluster, &proxy.url(), cluster.token(), namespace).run();
    let output = output.expect(0);
    assert!(
        found(&output) == of_crowd(namespace, CROWD),
        "{}",
        output.stderr
    );
    assert_eq!(warnings(&output), [] as [&str; 0]);
    // First page, the second refused with 410, the same with another token, the third.
    let tokens = tokens(&proxy);
    assert_eq!(tokens.len(), 4, "{tokens:?}");
    assert!(tokens[2].is_some() && tokens[2] != tokens[1], "{tokens:?}");
}

#[test]
fn expired_list_without_token_restarts() {
    let cluster = kubernetes();
    let (namespace, _alone) = crowd();
    let proxy = Proxy::start_tls(
        cluster.server(),
        cluster.ca(),
        first(1, gone(), is_second_page),
    );
    let output = plan(cluster, &proxy.url(), cluster.token(), namespace).run();
    assert!(found(&output.expect(0)) == of_crowd(namespace, CROWD));
    let firsts: Vec<_> = tokens(&proxy).iter().map(Option::is_none).collect();
    assert_eq!(firsts, [true, false, true, false, false]);

    let proxy = Proxy::start_tls(cluster.server(), cluster.ca(), |seen| {
        if seen.query.contains("continue=") {
            gone()
        } else {
            Fault::Pass
        }
    });
    let output = plan(cluster, &proxy.url(), cluster.token(), namespace).run();
    let output = output.expect(1);
    assert!(output.stderr.contains("expired 4 times"), "{output}");
}

#[test]
fn huge_object_fails_only_its_list() {
    let cluster = kubernetes();
    let (large, small) = (cluster.namespace(), cluster.namespace());
    cluster.deployment(&small, "web", 1, "small:1");
    let path = deployments(&large);
    let proxy = Proxy::start_tls(cluster.server(), cluster.ca(), move |seen| {
        if seen.path == path {
            Fault::Long {
                media_type: "application/json",
                start: r#"{"kind":"DeploymentList","items":[{"metadata":{"name":"web","annotations":{"a":""#,
                filling: 200_000_000,
                end: r#""}}}]}"#,
            }
        } else {
            Fault::Pass
        }
    });
    let output = plan(cluster, &proxy.url(), cluster.token(), &small)
        .env("NAMESPACES", [large.as_str(), &small].join(","))
        .run()
        .expect(0);
    assert_eq!(
        found(&output),
        rows(&small, &[("small:1", 1, &["Deployment/web"])])
    );
    let [warning] = warnings(&output)[..] else {
        panic!("{output}");
    };
    assert!(
        warning.contains(&large) && warning.contains("longer than 8 MiB"),
        "{warning}"
    );
    assert!(
        output.peak_anonymous < 30 << 20,
        "{} bytes",
        output.peak_anonymous
    );

    let output = plan(cluster, &proxy.url(), cluster.token(), &large)
        .run()
        .expect(1);
    assert!(error(&output).contains("longer than 8 MiB"), "{output}");
}

#[test]
fn endless_page_chain_is_an_error() {
    let cluster = kubernetes();
    let proxy = Proxy::start_tls(cluster.server(), cluster.ca(), |seen| {
        // Tokens as long as they may be, none of them twice.
        let token = format!("{:0>16000}", seen.nth);
        let page = json!({"kind": "DeploymentList", "metadata": {"continue": token}, "items": []});
        Fault::Answer {
            status: 200,
            headers: vec![("content-type", "application/json".into())],
            body: page.to_string(),
        }
    });
    let run = Harpoon::new(["run", "--deadline", "3s"]);
    let store = run.home().join("store");
    let run = run.env("RUNTIME_ENDPOINT", format!("oci:{}", store.display()));
    let run = by_kubeconfig(run, cluster, &proxy.url(), cluster.token(), "default");
    let output = run.run().expect(1);
    assert!(error(&output).contains("deadline"), "{output}");
    assert!(proxy.count(|_| true) > 10, "{output}");
    assert!(
        output.peak_anonymous < 30 << 20,
        "{} bytes",
        output.peak_anonymous
    );
}

#[test]
fn stalled_server_fails_at_deadline() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    cluster.deployment(&namespace, "web", 1, "web:1");
    for fault in [Fault::Stall, Fault::StallAfter(100)] {
        let decide = fault.clone();
        let proxy = Proxy::start_tls(cluster.server(), cluster.ca(), move |_| decide.clone());
        let run = Harpoon::new(["run", "--deadline", "4s"]);
        let store = run.home().join("store");
        let run = run.env("RUNTIME_ENDPOINT", format!("oci:{}", store.display()));
        let run = by_kubeconfig(run, cluster, &proxy.url(), cluster.token(), &namespace);
        let output = run.limit(Duration::from_secs(20)).run().expect(1);
        assert!(error(&output).contains("deadline"), "{fault:?}: {output}");
        assert!(output.elapsed >= Duration::from_secs(4), "{output}");
        assert_eq!(proxy.count(|_| true), 1);
    }
}

#[test]
fn signal_interrupts_stalled_server() {
    let cluster = kubernetes();
    for (fault, signal, code) in [
        (Fault::Stall, Signal::TERM, 143),
        (Fault::StallAfter(10), Signal::INT, 130),
    ] {
        let proxy = Proxy::start_tls(cluster.server(), cluster.ca(), move |_| fault.clone());
        let plan = plan(cluster, &proxy.url(), cluster.token(), "default");
        let running = plan.limit(Duration::from_secs(20)).start();
        eventually("it asks", Duration::from_secs(20), || {
            proxy.count(|_| true) == 1
        });
        running.signal(signal);
        running.wait().expect(code);
    }
}
