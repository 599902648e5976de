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

/// An object named `name` in namespace `n`, with a uid that follows from its name and `meta` added to its metadata, and this spec and status.
fn object(name: &str, meta: &str, spec: &str, status: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"n","uid":"uid-{name}"{meta}}},"spec":{{{spec}}},"status":{{{status}}}}}"#
    )
}

const TEMPLATE: &str = r#""template":{"spec":{"containers":[{"image":"i"}]}}"#;
const POD: &str = r#""containers":[{"image":"i"}]"#;

fn owned_by(version: &str, kind: &str, name: &str) -> String {
    format!(
        r#","ownerReferences":[{{"apiVersion":"x/v1","kind":"Other","name":"o"}},{{"apiVersion":"{version}","kind":"{kind}","name":"{name}","uid":"uid-{name}","controller":true}}]"#
    )
}

fn hashed(meta: &str, hash: &str) -> String {
    format!(r#"{meta},"labels":{{"app":"x","pod-template-hash":"{hash}"}}"#)
}

#[test]
fn each_kind_counts_desired_pods() {
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
            CronJobs,
            format!(r#""jobTemplate":{{"spec":{{"parallelism":5,{TEMPLATE}}}}}"#),
            "",
            "i: n/CronJob/w=1",
        ),
        (Pods, POD.to_owned(), r#""phase":"Pending""#, "i: n/Pod/w=1"),
        (Pods, POD.to_owned(), r#""phase":"Running""#, "i: n/Pod/w=1"),
    ];
    for (kind, spec, status, expected) in cases {
        check(&[(kind, &object("w", "", &spec, status))], &[expected]);
    }
}

#[test]
fn suspended_workloads_count_when_included() {
    let cron = format!(r#""suspend":true,"jobTemplate":{{"spec":{{{TEMPLATE}}}}}"#);
    let job = format!(r#""parallelism":4,"suspend":true,{TEMPLATE}"#);
    for (kind, spec, expected) in [
        (CronJobs, cron, "i: n/CronJob/w=0"),
        (Jobs, job, "i: n/Job/w=0"),
    ] {
        let object = object("w", "", &spec, "");
        check(&[(kind, &object)], &[]);
        let mut into = Accumulator::default().include_idle(true);
        fold(&mut into, kind, &object);
        assert_eq!(shown(into), [expected]);
    }
    // A suspended CronJob does not hide a Job that was started by hand.
    let cron = format!(r#""suspend":true,"jobTemplate":{{"spec":{{{TEMPLATE}}}}}"#);
    let cron = object("c", "", &cron, "");
    let job = object("j", &owned_by("batch/v1", "CronJob", "c"), TEMPLATE, "");
    check(&[(CronJobs, &cron), (Jobs, &job)], &["i: n/Job/j=1"]);
}

#[test]
fn controlled_replicaset_without_replicas_is_ignored() {
    let empty = format!(r#""replicas":0,{TEMPLATE}"#);
    for (version, kind) in [
        ("apps/v1", "Deployment"),
        ("argoproj.io/v1alpha1", "Rollout"),
    ] {
        let set = object("s", &owned_by(version, kind, "w"), &empty, "");
        check(&[(ReplicaSets, &set)], &[]);
    }
    let own = object("s", "", &empty, "");
    check(&[(ReplicaSets, &own)], &["i: n/ReplicaSet/s=0"]);
}

/// A pod of the ReplicaSet `web-abc` with these images.
fn pod_of_web(images: &[&str], meta: &str, status: &str) -> String {
    let images: Vec<String> = images
        .iter()
        .map(|image| format!(r#"{{"image":"{image}"}}"#))
        .collect();
    let spec = format!(
        r#""initContainers":[{0}],"containers":[{0}],"ephemeralContainers":[{{"image":"debug"}}]"#,
        images.join(",")
    );
    let meta = format!("{}{meta}", owned_by("apps/v1", "ReplicaSet", "web-abc"));
    object("p", &hashed(&meta, "abc"), &spec, status)
}

#[test]
fn live_pods_add_images_to_owner() {
    let web = object("web", "", &format!(r#""replicas":3,{TEMPLATE}"#), "");
    let of_web = owned_by("apps/v1", "Deployment", "web");
    let older = TEMPLATE.replace("\"i\"", "\"old\"");
    let older = object("web-abc", &of_web, &format!(r#""replicas":2,{older}"#), "");
    let injected = pod_of_web(&["i", "mesh"], "", r#""phase":"Running""#);
    let pending = pod_of_web(&["old", "mesh"], "", r#""phase":"Pending""#);
    let failed = pod_of_web(&["failed"], "", r#""phase":"Failed""#);
    let deleting = r#","deletionTimestamp":"2026-01-01T00:00:00Z""#;
    let deleting = pod_of_web(&["gone"], deleting, r#""phase":"Running""#);
    let pods = [&injected, &pending, &failed, &deleting].map(|pod| (Pods, pod.as_str()));
    let expected = [
        "i: n/Deployment/web=3",
        "mesh: n/Deployment/web=2",
        "old: n/Deployment/web=1",
    ];
    let deployment = (Deployments, web.as_str());
    check(&[&[deployment][..], &pods].concat(), &expected);
    // The ReplicaSet and its pods say the same: the plan takes the larger number of one workload.
    let set = (ReplicaSets, older.as_str());
    check(
        &[&[deployment, set][..], &pods].concat(),
        &[
            "i: n/Deployment/web=3",
            "old: n/Deployment/web=2 n/Deployment/web=1",
            "mesh: n/Deployment/web=2",
        ],
    );
}

#[test]
fn pods_fill_template_without_images() {
    let empty = object(
        "web-abc",
        "",
        r#""template":{"spec":{"containers":[{}]}}"#,
        "",
    );
    let pod = pod_of_web(&["filled"], "", "");
    check(
        &[(ReplicaSets, &empty), (Pods, &pod), (Pods, &pod)],
        &["filled: n/ReplicaSet/web-abc=2"],
    );
}

#[test]
fn fitting_pods_of_misfit_template_count() {
    let mut into = Accumulator::default();
    let mut fold = |kind, text: &str, mismatch: Option<&str>| {
        let mut json = serde_json::Deserializer::from_str(text);
        let mut facts = Facts::decode(kind, &mut json).unwrap();
        facts.mismatch = mismatch.map(Into::into);
        into.fold(kind, &facts);
    };
    let set = object("web-abc", "", TEMPLATE, "");
    let pod = pod_of_web(&["i", "mesh"], "", "");
    fold(ReplicaSets, &set, Some("taint"));
    fold(Pods, &pod, Some("taint"));
    fold(Pods, &pod, Some("taint"));
    fold(Pods, &pod, None);
    let uses = into.into_candidates().into_iter().map(|candidate| {
        let uses = candidate.uses.unwrap().into_iter();
        let uses: Vec<_> = uses.map(|u| (u.pods, u.mismatch.is_some())).collect();
        (candidate.image.to_string(), uses)
    });
    assert_eq!(
        uses.collect::<Vec<_>>(),
        [
            ("i".to_owned(), vec![(1, true), (1, false)]),
            ("mesh".to_owned(), vec![(1, false)])
        ]
    );
}

#[test]
fn pods_rolled_back_leave_counts() {
    let mut into = Accumulator::default();
    fold(&mut into, ReplicaSets, &object("web-abc", "", TEMPLATE, ""));
    let list = into.checkpoint();
    let pod = pod_of_web(&["mesh"], "", "");
    into.checkpoint();
    fold(&mut into, Pods, &pod);
    let page = into.checkpoint();
    fold(&mut into, Pods, &pod);
    fold(&mut into, Pods, &pod_of_web(&["other"], "", ""));
    into.rollback(page);
    into.checkpoint();
    fold(&mut into, Pods, &pod);
    let expected = ["i: n/ReplicaSet/web-abc=1", "mesh: n/ReplicaSet/web-abc=2"];
    let candidates = into.images.len();
    assert_eq!(candidates, expected.len());
    into.rollback(list);
    fold(&mut into, Pods, &pod);
    let expected = [expected[0], "mesh: n/ReplicaSet/web-abc=1"];
    assert_eq!(shown(into), expected);
}

#[test]
fn owner_of_same_name_hides_nothing() {
    let job = object("job", "", TEMPLATE, "");
    let owner = owned_by("batch/v1", "Job", "job").replace("uid-job", "uid-earlier");
    let pod = object("p", &owner, POD, "");
    check(&[(Jobs, &job), (Pods, &pod)], &["i: n/Job/job=1 n/Pod/p=1"]);
    // The name alone makes no Job one of the CronJob's.
    let cron = format!(r#""jobTemplate":{{"spec":{{{TEMPLATE}}}}}"#);
    let cron = object("backup", "", &cron, "");
    let pod = owned_by("batch/v1", "Job", "backup-20250101");
    let pod = object("p", &pod, POD, "");
    check(
        &[(CronJobs, &cron), (Pods, &pod)],
        &["i: n/CronJob/backup=1 n/Pod/p=1"],
    );
}

#[test]
fn ended_or_deleted_workloads_count_nothing() {
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
fn images_come_from_volumes_and_containers() {
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
fn image_users_are_grouped_in_order() {
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
fn owned_workloads_count_once() {
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
        r#""active":[{"kind":"Job","uid":"uid-cron-123"}]"#,
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
    // Without the ReplicaSets, the name and the label tell; without the Jobs, the CronJob's status.
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
fn unscanned_owners_hide_nothing() {
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
fn pods_of_inactive_owners_are_hidden() {
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
fn workload_listed_twice_counts_once() {
    let deployment = object("web", "", TEMPLATE, "");
    check(
        &[(Deployments, &deployment), (Deployments, &deployment)],
        &["i: n/Deployment/web=1"],
    );
}

#[test]
fn hostile_texts_are_dropped_and_reported() {
    let longest = "x".repeat(4096);
    let spec = format!(r#""containers":[{{"image":"{longest}"}},{{"image":"{longest}y"}}]"#);
    let mut into = Accumulator::default();
    let start = into.checkpoint();
    fold(&mut into, Pods, &object("p", "", &spec, ""));
    assert_eq!(into.oversized_since(start)[0].to_string(), "n/Pod/p");
    assert_eq!(shown(into), [format!("{longest}: n/Pod/p=1")]);
    // Names that Kubernetes would not give.
    for name in ["", "a b", "\\u001b[31m", "\\u202e", &"x".repeat(254)] {
        check(&[(Pods, &object(name, "", POD, ""))], &[]);
    }
}

#[test]
fn rollback_leaves_no_trace() {
    let mut into = Accumulator::default();
    fold(&mut into, Deployments, &object("a", "", TEMPLATE, ""));
    let mark = into.checkpoint();
    fold(
        &mut into,
        Deployments,
        &object("b", "", &TEMPLATE.replace("\"i\"", "\"j\""), ""),
    );
    fold(&mut into, Deployments, &object("c", "", TEMPLATE, ""));
    into.rollback(mark);
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
