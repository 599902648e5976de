use super::super::accumulate::Accumulator;
use super::super::object::Facts;
use super::*;
use WorkloadKind::{CronJobs, Deployments, Pods};

fn fold(into: &mut Accumulator, kind: WorkloadKind, text: &str) {
    let mut json = serde_json::Deserializer::from_str(text);
    into.fold(kind, &Facts::decode(kind, &mut json).expect(text));
}

/// A Deployment of one container, with `pod` added to its template's spec.
fn deployment(namespace: &str, name: &str, image: &str, pod: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"{namespace}"}},"spec":{{"template":{{"spec":{{"containers":[{{"image":"{image}"}}]{pod}}}}}}}}}"#
    )
}

fn secrets(names: &[&str]) -> String {
    let names: Vec<String> = names
        .iter()
        .map(|name| format!(r#"{{"name":"{name}"}}"#))
        .collect();
    format!(r#","imagePullSecrets":[{}]"#, names.join(","))
}

/// `image < Secret namespace/name …` or `image < Account namespace/name`, a line each.
fn shown(mut into: Accumulator) -> Vec<String> {
    let pulls = into.take_pulls().unwrap();
    let candidates = into.into_candidates();
    let line = |&(image, means): &(u32, u32)| {
        let with = match &pulls.means[means as usize] {
            Means::Secrets(secrets) => secrets
                .iter()
                .map(|secret| format!(" {}", pulls.secrets[*secret as usize]))
                .collect(),
            Means::Account(account) => format!(" account {}", pulls.accounts[*account as usize]),
        };
        format!("{} <{with}", candidates[image as usize].image)
    };
    pulls.uses.iter().map(line).collect()
}

#[test]
fn secret_serves_images_of_its_workload() {
    let mut into = Accumulator::with_pull_secrets();
    for (namespace, name, image, pod) in [
        ("a", "w", "x", secrets(&["s"])),
        ("b", "w", "y", secrets(&["s", "t", "s"])),
        ("b", "v", "z", secrets(&["s", "t"])),
        // Only now may x be pulled with b's secret of the same name.
        ("b", "u", "x", secrets(&["s"])),
        ("a", "again", "x", secrets(&["s"])),
    ] {
        fold(
            &mut into,
            Deployments,
            &deployment(namespace, name, image, &pod),
        );
    }
    assert_eq!(
        shown(into),
        ["x < a/s", "y < b/s b/t", "z < b/s b/t", "x < b/s"]
    );
}

#[test]
fn account_serves_template_without_secrets() {
    for (pod, expected) in [
        ("".to_owned(), Some("x < account n/default")),
        (
            r#","imagePullSecrets":null"#.to_owned(),
            Some("x < account n/default"),
        ),
        (
            r#","imagePullSecrets":[],"serviceAccountName":"builder","serviceAccount":"old""#
                .to_owned(),
            Some("x < account n/builder"),
        ),
        (
            r#","serviceAccount":"old""#.to_owned(),
            Some("x < account n/old"),
        ),
        (
            format!(r#"{},"serviceAccountName":"builder""#, secrets(&["s"])),
            Some("x < n/s"),
        ),
        // The API server takes these lists, and then does not look at the account.
        (secrets(&[""]), None),
        (r#","imagePullSecrets":[{}]"#.to_owned(), None),
        (secrets(&["../../kube-system/secrets/s"]), None),
        (secrets(&["Up", "a..b", "-a", "a.b-1"]), Some("x < n/a.b-1")),
        (r#","serviceAccountName":"../s""#.to_owned(), None),
    ] {
        let mut into = Accumulator::with_pull_secrets();
        fold(&mut into, Deployments, &deployment("n", "w", "x", &pod));
        assert_eq!(
            shown(into),
            expected.into_iter().collect::<Vec<_>>(),
            "{pod}"
        );
    }
}

#[test]
fn live_pod_needs_no_account_secrets() {
    let mut into = Accumulator::with_pull_secrets();
    let pod = |name: &str, more: &str| {
        format!(
            r#"{{"metadata":{{"name":"{name}","namespace":"n"}},"spec":{{"containers":[{{"image":"{name}"}}],"serviceAccountName":"builder"{more}}}}}"#
        )
    };
    fold(&mut into, Pods, &pod("x", ""));
    fold(&mut into, Pods, &pod("y", &secrets(&["s"])));
    let cron = r#"{"metadata":{"name":"c","namespace":"n"},"spec":{"jobTemplate":{"spec":{"template":{"spec":{"containers":[{"image":"z"}],"serviceAccountName":"nightly"}}}}}}"#;
    fold(&mut into, CronJobs, cron);
    assert_eq!(shown(into), ["y < n/s", "z < account n/nightly"]);
}

#[test]
fn page_rollback_drops_its_secrets() {
    let mut into = Accumulator::with_pull_secrets();
    let first = deployment("a", "w", "x", &secrets(&["s"]));
    let second = deployment("a", "v", "y", &secrets(&["t"]));
    let third = deployment("a", "u", "x", &secrets(&["t"]));
    fold(&mut into, Deployments, &first);
    let mark = into.checkpoint();
    fold(&mut into, Deployments, &second);
    fold(&mut into, Deployments, &third);
    into.rollback(mark);
    fold(&mut into, Deployments, &third);
    fold(&mut into, Deployments, &second);
    assert_eq!(shown(into), ["x < a/s", "x < a/t", "y < a/t"]);
}

#[test]
fn secret_names_are_bounded() {
    let mut into = Accumulator::with_pull_secrets();
    for workload in 0..=MAX_NAMED / 100 {
        let names: Vec<String> = (0..120).map(|n| format!("s{workload}-{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let name = format!("w{workload}");
        fold(
            &mut into,
            Deployments,
            &deployment("n", &name, "x", &secrets(&names)),
        );
    }
    fold(
        &mut into,
        Deployments,
        &deployment("n", "v", "y", &secrets(&["s0-0", "new"])),
    );
    let pulls = into.take_pulls().unwrap();
    assert!(pulls.overflown);
    assert_eq!(pulls.secrets.len(), MAX_NAMED);
    assert_eq!(
        pulls.means.first().map(|m| match m {
            Means::Secrets(secrets) => secrets.len(),
            Means::Account(_) => 0,
        }),
        Some(100)
    );
    // What is known already is still taken.
    assert_eq!(pulls.means.last(), Some(&Means::Secrets(Box::new([0]))));
}

#[test]
fn disabled_pull_secrets_record_nothing() {
    let mut into = Accumulator::default();
    let text = deployment("a", "w", "x", &secrets(&["s"]));
    fold(&mut into, Deployments, &text);
    assert!(into.take_pulls().is_none());
    assert_eq!(into.into_candidates().len(), 1);
}
