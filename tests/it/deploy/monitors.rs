//! The objects for the Prometheus Operator.

use serde_json::{Value, json};

use super::{committed, parse, rendered};

fn values(mode: &str) -> Value {
    json!({"mode": mode, "continuous": {"podMonitor": true, "serviceMonitor": true, "prometheusRule": true,
        "monitorLabels": {"release": "prometheus"}}})
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let object = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "several of kind {kind}");
    object
}

#[test]
fn rule_has_the_alerts() {
    let objects = rendered(&values("continuous"));
    let rule = of_kind(&objects, "PrometheusRule");
    let alerts = parse(&committed("chart/files/alerts.yaml"));
    assert_eq!(rule["spec"], alerts[0]);
    assert_eq!(rule["metadata"]["labels"]["release"], "prometheus");
}

#[test]
fn monitors_select_pods_and_name_nodes() {
    let objects = rendered(&values("continuous"));
    let relabelings =
        json!([{"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}]);
    let pods = &of_kind(&objects, "PodMonitor")["spec"];
    assert_eq!(
        pods["podMetricsEndpoints"],
        json!([{"port": "metrics", "relabelings": relabelings}])
    );
    let services = &of_kind(&objects, "ServiceMonitor")["spec"];
    assert_eq!(
        services["endpoints"],
        json!([{"port": "metrics", "relabelings": relabelings}])
    );
    let service = of_kind(&objects, "Service");
    assert_eq!(service["spec"]["clusterIP"], "None");
    assert_eq!(service["spec"]["ports"][0]["name"], "metrics");
    let has = |labels: &Value, wanted: &Value| {
        let wanted = wanted.as_object().unwrap();
        assert!(!wanted.is_empty());
        wanted.iter().all(|(key, value)| labels[key] == *value)
    };
    let labels = &service["metadata"]["labels"];
    assert!(has(labels, &services["selector"]["matchLabels"]));
    for kind in ["DaemonSet", "Deployment"] {
        let template = &of_kind(&objects, kind)["spec"]["template"];
        let labels = &template["metadata"]["labels"];
        for selector in [
            &pods["selector"]["matchLabels"],
            &service["spec"]["selector"],
        ] {
            assert!(has(labels, selector), "{kind}: {selector}");
        }
        let ports = &template["spec"]["containers"][0]["ports"];
        assert_eq!(ports[0]["name"], "metrics", "{kind}");
    }
}

#[test]
fn monitors_need_continuous_mode_and_values() {
    let kinds = ["PodMonitor", "ServiceMonitor", "PrometheusRule", "Service"];
    for values in [values("once"), json!({"mode": "continuous"})] {
        let objects = rendered(&values);
        let of_operator = |object: &&Value| kinds.iter().any(|kind| object["kind"] == *kind);
        assert_eq!(objects.iter().find(of_operator), None);
    }
}
