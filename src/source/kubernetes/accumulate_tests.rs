use super::*;
use WorkloadKind::{CronJobs, DaemonSets, Deployments, Jobs, Pods, ReplicaSets, StatefulSets};

/// Folds objects, JSON texts, and gives back `image: namespace/Kind/name=pods …` a candidate.
fn check(objects: &[(WorkloadKind, &str)], expected: &[&str]) {
    let mut into = Accumulator::default();
    for (kind, text) in objects {
        fold(&mut into, *kind, text);
    }
    assert_eq!(shown(into), expected);
}

fn fold(into: &mut Accumulator, kind: WorkloadKind, text: &str) {
    let mut json = serde_json::Deserializer::from_str(text);
    into.fold(kind, &Facts::decode(kind, &mut json).expect(text));
}

fn shown(into: Accumulator) -> Vec<String> {
    let candidates = into.into_candidates().into_iter();
    candidates
        .map(|candidate| {
            let uses = candidate.uses.unwrap().into_iter();
            let uses: Vec<String> = uses.map(|u| format!("{}={}", u.workload, u.pods)).collect();
            format!("{}: {}", candidate.image, uses.join(" "))
        })
        .collect()
}

/// An object named `name` in namespace `n`, with `meta` added to its metadata, and this spec and status.
fn object(name: &str, meta: &str, spec: &str, status: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"n"{meta}}},"spec":{{{spec}}},"status":{{{status}}}}}"#
    )
}

const TEMPLATE: &str = r#""template":{"spec":{"containers":[{"image":"i"}]}}"#;
const POD: &str = r#""containers":[{"image":"i"}]"#;

fn owned_by(version: &str, kind: &str, name: &str) -> String {
    format!(
        r#","ownerReferences":[{{"apiVersion":"x/v1","kind":"Other","name":"o"}},{{"apiVersion":"{version}","kind":"{kind}","name":"{name}","controller":true}}]"#
    )
}

fn hashed(meta: &str, hash: &str) -> String {
    format!(r#"{meta},"labels":{{"app":"x","pod-template-hash":"{hash}"}}"#)
}

#[test]
fn each_kind_counts_the_pods_that_it_is_meant_to_have() {
    let cases = [
        (
            Deployments,
            format!(r#""replicas":3,{TEMPLATE}"#),
            "",
            "i: n/Deployment/w=3",
        ),
        (Deployments, TEMPLATE.to_owned(), "", "i: n/Deployment/w=1"),
        (
            Deployments,
            format!(r#""replicas":null,{TEMPLATE}"#),
            "",
            "i: n/Deployment/w=1",
        ),
        (
            Deployments,
            format!(r#""replicas":0,{TEMPLATE}"#),
            "",
            "i: n/Deployment/w=0",
        ),
        (
            Deployments,
            format!(r#""replicas":-4,{TEMPLATE}"#),
            "",
            "i: n/Deployment/w=0",
        ),
        (
            StatefulSets,
            format!(r#""replicas":2,{TEMPLATE}"#),
            "",
            "i: n/StatefulSet/w=2",
        ),
        (
            ReplicaSets,
            format!(r#""replicas":2,{TEMPLATE}"#),
            "",
            "i: n/ReplicaSet/w=2",
        ),
        (
            DaemonSets,
            TEMPLATE.to_owned(),
            r#""desiredNumberScheduled":7"#,
            "i: n/DaemonSet/w=7",
        ),
        (DaemonSets, TEMPLATE.to_owned(), "", "i: n/DaemonSet/w=0"),
        (
            Jobs,
            format!(r#""parallelism":4,{TEMPLATE}"#),
            "",
            "i: n/Job/w=4",
        ),
        (
            Jobs,
            TEMPLATE.to_owned(),
            r#""conditions":[{"type":"Failed","status":"False"}]"#,
            "i: n/Job/w=1",
        ),
        (
            Jobs,
            format!(r#""parallelism":4,"suspend":true,{TEMPLATE}"#),
            "",
            "i: n/Job/w=0",
        ),
        (
            CronJobs,
            format!(r#""jobTemplate":{{"spec":{{"parallelism":5,{TEMPLATE}}}}}"#),
            "",
            "i: n/CronJob/w=1",
        ),
        (
            CronJobs,
            format!(r#""suspend":true,"jobTemplate":{{"spec":{{{TEMPLATE}}}}}"#),
            "",
            "i: n/CronJob/w=0",
        ),
        (Pods, POD.to_owned(), r#""phase":"Pending""#, "i: n/Pod/w=1"),
        (Pods, POD.to_owned(), r#""phase":"Running""#, "i: n/Pod/w=1"),
    ];
    for (kind, spec, status, expected) in cases {
        check(&[(kind, &object("w", "", &spec, status))], &[expected]);
    }
}

#[test]
fn what_has_ended_or_is_being_deleted_does_not_count() {
    let deleting = r#","deletionTimestamp":"2026-01-01T00:00:00Z""#;
    for (kind, meta, spec, status) in [
        (Pods, "", POD, r#""phase":"Succeeded""#),
        (Pods, "", POD, r#""phase":"Failed""#),
        (
            Jobs,
            "",
            TEMPLATE,
            r#""conditions":[{"type":"Suspended","status":"True"},{"type":"Complete","status":"True"}]"#,
        ),
        (
            Jobs,
            "",
            TEMPLATE,
            r#""conditions":[{"type":"Failed","status":"True"}]"#,
        ),
        (Deployments, deleting, TEMPLATE, ""),
        (Pods, deleting, POD, r#""phase":"Running""#),
    ] {
        check(&[(kind, &object("w", meta, spec, status))], &[]);
    }
}

#[test]
fn images_come_from_volumes_init_containers_and_containers() {
    let spec = r#""initContainers":[{"image":"init"},{"image":"sidecar","restartPolicy":"Always"}],
        "containers":[{"image":"main"},{"image":"sidecar"},{"image":""},{"name":"none"},{"image":null}],
        "ephemeralContainers":[{"image":"debug"}],
        "volumes":[{"name":"v","image":{"reference":"volume","pullPolicy":"Always"}},{"emptyDir":{}},{"image":{}},{"image":null}]"#;
    let expected = [
        "volume: n/Pod/p=1",
        "init: n/Pod/p=1",
        "sidecar: n/Pod/p=1",
        "main: n/Pod/p=1",
    ];
    check(&[(Pods, &object("p", "", spec, ""))], &expected);
    let nothing = r#""initContainers":null,"containers":null,"volumes":null"#;
    check(&[(Pods, &object("p", "", nothing, ""))], &[]);
}

#[test]
fn users_of_one_image_are_together_and_images_in_order() {
    let other = TEMPLATE.replace("\"i\"", "\"j\"");
    let cases = [
        (Deployments, object("a", "", TEMPLATE, "")),
        (Deployments, object("b", "", &other, "")),
        (StatefulSets, object("a", "", TEMPLATE, "")),
    ];
    let cases: Vec<_> = cases
        .iter()
        .map(|(kind, text)| (*kind, text.as_str()))
        .collect();
    check(
        &cases,
        &[
            "i: n/Deployment/a=1 n/StatefulSet/a=1",
            "j: n/Deployment/b=1",
        ],
    );
}

#[test]
fn what_a_scanned_workload_owns_is_not_counted_again() {
    let deployment = object("web", "", TEMPLATE, "");
    let of_web = owned_by("apps/v1", "Deployment", "web");
    let replicas = object("web-abc", &of_web, TEMPLATE, "");
    let of_replicas = owned_by("apps/v1", "ReplicaSet", "web-abc");
    let pod = object("web-abc-1", &of_replicas, POD, "");
    let labelled = object("web-abc-1", &hashed(&of_replicas, "abc"), POD, "");
    let cron = object(
        "cron",
        "",
        &format!(r#""jobTemplate":{{"spec":{{{TEMPLATE}}}}}"#),
        "",
    );
    let job = object(
        "cron-123",
        &owned_by("batch/v1beta1", "CronJob", "cron"),
        TEMPLATE,
        "",
    );
    let job_pod = object(
        "cron-123-x",
        &owned_by("batch/v1", "Job", "cron-123"),
        POD,
        "",
    );
    let set = object("set", "", TEMPLATE, "");
    let set_pod = object("set-0", &owned_by("apps/v1", "StatefulSet", "set"), POD, "");
    let daemon_pod = object("set-x", &owned_by("apps/v1", "DaemonSet", "set"), POD, "");

    let web = ["i: n/Deployment/web=1"];
    check(
        &[
            (Deployments, &deployment),
            (ReplicaSets, &replicas),
            (Pods, &pod),
        ],
        &web,
    );
    // Without the ReplicaSets, the names and the label tell.
    check(&[(Deployments, &deployment), (Pods, &labelled)], &web);
    check(
        &[(Deployments, &deployment), (Pods, &pod)],
        &["i: n/Deployment/web=1 n/Pod/web-abc-1=1"],
    );
    check(
        &[(ReplicaSets, &replicas), (Pods, &pod)],
        &["i: n/ReplicaSet/web-abc=1"],
    );
    check(&[(Pods, &labelled)], &["i: n/Pod/web-abc-1=1"]);
    check(
        &[(CronJobs, &cron), (Jobs, &job), (Pods, &job_pod)],
        &["i: n/CronJob/cron=1"],
    );
    check(
        &[(CronJobs, &cron), (Pods, &job_pod)],
        &["i: n/CronJob/cron=1"],
    );
    check(&[(Jobs, &job), (Pods, &job_pod)], &["i: n/Job/cron-123=1"]);
    check(
        &[(StatefulSets, &set), (Pods, &set_pod)],
        &["i: n/StatefulSet/set=1"],
    );
    check(
        &[(StatefulSets, &set), (Pods, &daemon_pod)],
        &["i: n/StatefulSet/set=1 n/Pod/set-x=1"],
    );
}

#[test]
fn owners_that_are_not_scanned_do_not_hide_what_they_own() {
    let cases = [
        // Of another group, of another namespace, not a controller, a node's own.
        owned_by("batch.volcano.sh/v1alpha1", "Job", "job"),
        owned_by("argoproj.io/v1alpha1", "Rollout", "job"),
        owned_by("v1", "Node", "job"),
        r#","ownerReferences":[{"apiVersion":"batch/v1","kind":"Job","name":"job"}]"#.to_owned(),
        r#","ownerReferences":null"#.to_owned(),
    ];
    let job = object("job", "", TEMPLATE, "");
    for meta in cases {
        let pod = object("p", &meta, POD, "");
        check(&[(Jobs, &job), (Pods, &pod)], &["i: n/Job/job=1 n/Pod/p=1"]);
    }
    let elsewhere = job.replace(r#""namespace":"n""#, r#""namespace":"m""#);
    let pod = object("p", &owned_by("batch/v1", "Job", "job"), POD, "");
    check(
        &[(Jobs, &elsewhere), (Pods, &pod)],
        &["i: m/Job/job=1 n/Pod/p=1"],
    );
}

#[test]
fn the_pods_of_what_is_scaled_to_zero_ended_or_being_deleted_are_hidden_too() {
    let ended = object(
        "job",
        "",
        TEMPLATE,
        r#""conditions":[{"type":"Complete","status":"True"}]"#,
    );
    let pod = object(
        "p",
        &owned_by("batch/v1", "Job", "job"),
        POD,
        r#""phase":"Running""#,
    );
    check(&[(Jobs, &ended), (Pods, &pod)], &[]);
}

#[test]
fn a_workload_listed_twice_counts_once() {
    let deployment = object("web", "", TEMPLATE, "");
    check(
        &[(Deployments, &deployment), (Deployments, &deployment)],
        &["i: n/Deployment/web=1"],
    );
}

#[test]
fn hostile_texts_are_left_out_and_named() {
    let longest = "x".repeat(4096);
    let spec = format!(r#""containers":[{{"image":"{longest}"}},{{"image":"{longest}y"}}]"#);
    let mut into = Accumulator::default();
    let start = into.mark();
    fold(&mut into, Pods, &object("p", "", &spec, ""));
    assert_eq!(into.oversized_since(start)[0].to_string(), "n/Pod/p");
    assert_eq!(shown(into), [format!("{longest}: n/Pod/p=1")]);
    // Names that Kubernetes would not give.
    for name in ["", "a b", "\\u001b[31m", "\\u202e", &"x".repeat(254)] {
        check(&[(Pods, &object(name, "", POD, ""))], &[]);
    }
}

#[test]
fn what_is_taken_back_leaves_no_trace() {
    let mut into = Accumulator::default();
    fold(&mut into, Deployments, &object("a", "", TEMPLATE, ""));
    let mark = into.mark();
    fold(
        &mut into,
        Deployments,
        &object("b", "", &TEMPLATE.replace("\"i\"", "\"j\""), ""),
    );
    fold(&mut into, Deployments, &object("c", "", TEMPLATE, ""));
    into.take_back(mark);
    fold(
        &mut into,
        Deployments,
        &object("c", "", &TEMPLATE.replace("\"i\"", "\"k\""), ""),
    );
    let of_b = owned_by("apps/v1", "Deployment", "b");
    fold(&mut into, ReplicaSets, &object("b-1", &of_b, TEMPLATE, ""));
    assert_eq!(
        shown(into),
        [
            "i: n/Deployment/a=1 n/ReplicaSet/b-1=1",
            "k: n/Deployment/c=1"
        ]
    );
}
