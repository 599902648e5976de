//! The choice of the cluster, its credentials, and objects without permission.

use std::net::TcpListener;

use serde_json::json;

use super::super::bed::faulty::{Fault, Proxy};
use super::super::bed::{Harpoon, Kubernetes, Output, kubernetes, unique};
use super::{by_kubeconfig, deployments, error, found, may_list, plan, rows, warnings};

const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A namespace with one Deployment, `web`, of two pods of this image.
fn shop(cluster: &Kubernetes, image: &str) -> String {
    let namespace = cluster.namespace();
    cluster.deployment(&namespace, "web", 2, image);
    namespace
}

/// A token of a service account in the namespace that may list Deployments there and nothing else.
fn reader(cluster: &Kubernetes, namespace: &str) -> String {
    cluster.account_with(
        namespace,
        Some(namespace),
        &may_list("apps", "deployments"),
        &deployments(namespace),
    )
}

/// Checks that the program's output contains no token.
#[track_caller]
fn keeps(token: &str, output: &Output) {
    assert!(!output.stdout.contains(token) && !output.stderr.contains(token));
}

#[test]
fn pod_lists_own_namespace_by_default() {
    let cluster = kubernetes();
    let (own, other) = (shop(cluster, "own:1"), shop(cluster, "other:1"));
    let account = cluster.account_directory(&own, &reader(cluster, &own));
    let pod = Harpoon::new(["plan", "--output", "json"])
        .bind(account.path(), ACCOUNT)
        .envs(cluster.service());
    let output = pod.run().expect(0);
    assert_eq!(
        found(&output),
        rows(&own, &[("own:1", 2, &["Deployment/web"])])
    );
    assert_eq!(warnings(&output), [] as [&str; 0]);

    // And another one only when it is named, for which the account has no right.
    let output = pod.env("NAMESPACES", &other).run().expect(1);
    assert!(error(&output).contains(&other), "{output}");
}

#[test]
fn pod_without_service_account_names_it() {
    let pod = Harpoon::new(["plan"]).pod().envs(kubernetes().service());
    let output = pod.run().expect(1);
    assert!(error(&output).contains(ACCOUNT), "{output}");
}

#[test]
fn kubeconfig_context_gives_default_namespace() {
    let cluster = kubernetes();
    let (one, two) = (shop(cluster, "one:1"), shop(cluster, "two:1"));
    let [of_one, of_two] = [(&one, "one:1"), (&two, "two:1")]
        .map(|(namespace, image)| rows(namespace, &[(image, 2, &["Deployment/web"])]));
    let by_variable = plan(cluster, cluster.server(), cluster.token(), &one);
    assert_eq!(found(&by_variable.run().expect(0)), of_one);

    // Without the variable, kubectl's default path is used; with it, that path is not read.
    let kube = by_variable.home().join(".kube");
    std::fs::create_dir(&kube).unwrap();
    cluster.write_kubeconfig(
        &kube.join("config"),
        cluster.server(),
        cluster.token(),
        &two,
    );
    assert_eq!(found(&by_variable.run().expect(0)), of_one);
    let home = by_variable.env("KUBECONFIG", "");
    assert_eq!(found(&home.run().expect(0)), of_two);
}

#[test]
fn malformed_kubeconfig_is_refused_unquoted() {
    let harpoon = Harpoon::new(["plan", "--log-level", "trace"]);
    let file = harpoon.home().join("kubeconfig");
    let harpoon = harpoon.env("KUBECONFIG", &file);
    assert!(error(&harpoon.run().expect(1)).contains("kubeconfig"));
    std::fs::write(
        &file,
        "apiVersion: v1\nusers:\n- user: {token: s3cr3t\n  x: [",
    )
    .unwrap();
    let output = harpoon.run().expect(1);
    assert!(error(&output).contains("kubeconfig"), "{output}");
    keeps("s3cr3t", &output);
}

#[test]
fn role_listing_deployments_is_enough() {
    let cluster = kubernetes();
    let namespace = shop(cluster, "web:1");
    let token = reader(cluster, &namespace);
    let proxy = Proxy::start_tls(cluster.server(), cluster.ca(), |_| Fault::Pass);
    let output = plan(cluster, &proxy.url(), &token, &namespace)
        .env("LOG_LEVEL", "trace")
        .run()
        .expect(0);
    assert_eq!(
        found(&output),
        rows(&namespace, &[("web:1", 2, &["Deployment/web"])])
    );
    assert_eq!(warnings(&output), [] as [&str; 0]);
    keeps(&token, &output);
    let seen = proxy.seen();
    let asked: Vec<_> = seen
        .iter()
        .map(|seen| (seen.method.as_str(), seen.path.as_str()))
        .collect();
    assert_eq!(asked, [("GET", deployments(&namespace).as_str())]);
}

#[test]
fn empty_namespace_is_not_an_error() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    for token in [cluster.token(), &reader(cluster, &namespace)] {
        let output = plan(cluster, cluster.server(), token, &namespace);
        let output = output.run().expect(0);
        assert_eq!(found(&output), []);
        assert_eq!(warnings(&output), [] as [&str; 0]);
        assert!(output.stderr.contains(&namespace), "{output}");
    }
}

#[test]
fn forbidden_namespace_is_named_others_scanned() {
    let cluster = kubernetes();
    let (mine, foreign) = (shop(cluster, "mine:1"), shop(cluster, "foreign:1"));
    let token = reader(cluster, &mine);
    let plan = plan(cluster, cluster.server(), &token, &mine);
    let expected = rows(&mine, &[("mine:1", 2, &["Deployment/web"])]);

    let namespaces = [foreign.as_str(), &mine].join(",");
    let output = plan.clone().env("NAMESPACES", namespaces).run().expect(0);
    assert_eq!(found(&output), expected);
    let warning = &warnings(&output)[..];
    assert_eq!(warning.len(), 1, "{output}");
    for part in [foreign.as_str(), "\"list\"", "\"deployments\"", "\"apps\""] {
        assert!(warning[0].contains(part), "{part}: {output}");
    }

    // A kind, too.
    let kinds = plan.clone().env("WORKLOADS", "deployments,cronjobs,pods");
    let output = kinds.run().expect(0);
    assert_eq!(found(&output), expected);
    let warnings = warnings(&output);
    assert_eq!(warnings.len(), 2, "{output}");
    for (warning, kind) in warnings.iter().zip(["\"cronjobs\"", "\"pods\""]) {
        for part in [mine.as_str(), "\"list\"", kind] {
            assert!(warning.contains(part), "{part}: {output}");
        }
    }

    let output = plan.env("NAMESPACES", "*").run().expect(1);
    let error = error(&output);
    for part in ["all namespaces", "\"list\"", "ClusterRole"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn cluster_role_permits_all_namespaces() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let object = super::templated("web", "wide:1", json!({}));
    cluster.create(&deployments(&namespace), object);
    let token = cluster.account_with(
        &namespace,
        None,
        &may_list("apps", "deployments"),
        "/apis/apps/v1/deployments?limit=1",
    );
    let output = plan(cluster, cluster.server(), &token, &namespace)
        .env("NAMESPACES", "*")
        .run()
        .expect(0);
    let images = found(&output);
    let wide = images.iter().find(|(image, ..)| image == "wide:1").unwrap();
    assert!(wide.2.contains(&format!("{namespace}/Deployment/web")));
    assert_eq!(warnings(&output), [] as [&str; 0]);
}

#[test]
fn everything_forbidden_is_an_error() {
    let cluster = kubernetes();
    let (one, two) = (shop(cluster, "one:1"), shop(cluster, "two:1"));
    let output = plan(cluster, cluster.server(), cluster.nobody(), &one)
        .env("NAMESPACES", [one.as_str(), &two].join(","))
        .run()
        .expect(1);
    assert_eq!(output.stdout, "");
    let error = error(&output);
    for part in [one.as_str(), &two, "\"list\"", "\"deployments\""] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn missing_namespace_is_named_others_scanned() {
    let cluster = kubernetes();
    let there = shop(cluster, "there:1");
    let (missing, also) = (unique("missing"), unique("missing"));
    let plan = plan(cluster, cluster.server(), cluster.token(), &there);
    let namespaces = [missing.as_str(), &there].join(",");
    let output = plan.clone().env("NAMESPACES", namespaces).run().expect(0);
    assert_eq!(
        found(&output),
        rows(&there, &[("there:1", 2, &["Deployment/web"])])
    );
    let warning = warnings(&output);
    assert!(
        warning.len() == 1 && warning[0].contains(&format!("namespace {missing} does not exist")),
        "{output}"
    );

    let namespaces = [missing.as_str(), &also].join(",");
    let output = plan.env("NAMESPACES", namespaces).run().expect(1);
    let error = error(&output);
    assert!(error.contains(&missing) && error.contains(&also), "{error}");
}

#[test]
fn invalid_token_is_refused_unquoted() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let token = "s3cr3t.but-no-good";
    let plan = plan(cluster, cluster.server(), token, &namespace);
    let output = plan.env("LOG_LEVEL", "trace").run().expect(1);
    let error = error(&output);
    assert!(
        error.contains("401") && error.contains("credentials"),
        "{error}"
    );
    assert!(error.contains(cluster.server()), "{error}");
    keeps(token, &output);
}

#[test]
fn unreachable_server_is_named() {
    let cluster = kubernetes();
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let server = format!("https://{closed}");
    let output = plan(cluster, &server, cluster.token(), "default").run();
    let output = output.expect(1);
    let error = error(&output);
    assert!(error.contains(&closed), "{error}");
    assert!(error.to_lowercase().contains("refused"), "{error}");
    keeps(cluster.token(), &output);
}

#[test]
fn untrusted_server_gets_no_token() {
    let (cluster, other) = (kubernetes(), Harpoon::new(["plan"]));
    let file = other.home().join("kubeconfig");
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": {"server": cluster.server()}}],
        "users": [{"name": "it", "user": {"token": cluster.token()}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}]});
    std::fs::write(&file, config.to_string()).unwrap();
    let output = other.env("KUBECONFIG", &file).run().expect(1);
    let error = error(&output);
    assert!(error.contains(cluster.server()), "{error}");
    assert!(error.contains("certificate"), "{error}");
    keeps(cluster.token(), &output);
}

#[test]
fn run_discovers_the_same_images() {
    let cluster = kubernetes();
    let namespace = shop(cluster, "UPPER/case");
    let run = Harpoon::new(["run", "--output", "json"]);
    let store = run.home().join("store");
    let run = run.env("RUNTIME_ENDPOINT", format!("oci:{}", store.display()));
    let run = by_kubeconfig(run, cluster, cluster.server(), cluster.token(), &namespace);
    // One malformed image: all wanted images failed.
    let output = run.run().expect(1);
    let report = output.json();
    let image = &report["images"][0];
    assert_eq!(image["pods"], json!(2), "{output}");
    assert_eq!(
        image["workloads"],
        json!([format!("{namespace}/Deployment/web")])
    );
    assert_eq!(image["reason"], json!("invalid_reference"));
}
