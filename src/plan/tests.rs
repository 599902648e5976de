use proptest::prelude::*;

use super::*;

fn workload(name: &str) -> Workload {
    Workload {
        namespace: "default".to_owned(),
        kind: "Deployment",
        name: name.to_owned(),
    }
}

fn used(image: &str, uses: &[(&str, u64)]) -> Candidate {
    Candidate {
        image: image.to_owned(),
        uses: Some(
            uses.iter()
                .map(|(name, pods)| Use {
                    workload: Arc::new(workload(name)),
                    pods: *pods,
                    mismatch: None,
                    always: false,
                })
                .collect(),
        ),
    }
}

fn prefixes(texts: &[&str]) -> Vec<Prefix> {
    texts
        .iter()
        .map(|t| Prefix::parse(t).expect("prefix"))
        .collect()
}

/// The plan in short: image, action, reason, pods.
fn check(candidates: Vec<Candidate>, policy: &Policy, present: &[&str]) -> Vec<String> {
    let presence = present
        .iter()
        .map(|p| {
            let reference = Reference::parse(p).expect("reference");
            (reference.normalized(), StoredImage::default())
        })
        .collect();
    let plan = select(candidates, policy).against(&presence);
    plan.images()
        .iter()
        .map(|i| {
            let reason = match &i.step {
                Step::Skip(reason, _) => reason.as_str(),
                _ => "-",
            };
            let pods = i.pods.map_or("?".to_owned(), |p| p.to_string());
            format!("{} {} {reason} {pods}", i.image, i.step.action().as_str())
        })
        .collect()
}

#[test]
fn the_most_used_come_first_then_more_workloads_then_the_name() {
    let candidates = vec![
        used("zero", &[("z", 0)]),
        used("b", &[("x", 3)]),
        used("a", &[("y", 3)]),
        used("two", &[("p", 1), ("q", 2)]),
        used("most", &[("m", 9)]),
    ];
    assert_eq!(
        check(candidates, &Policy::default(), &["b"]),
        [
            "most pull - 9",
            "two pull - 3",
            "a pull - 3",
            "b present - 3",
            "zero pull - 0"
        ]
    );
}

#[test]
fn spellings_of_one_image_are_one_entry_under_the_first() {
    let candidates = vec![
        used("docker.io/nginx", &[("a", 2)]),
        used("nginx:latest", &[("a", 2), ("b", 1)]),
        Candidate::listed("library/nginx"),
    ];
    assert_eq!(
        check(candidates, &Policy::default(), &[]),
        ["docker.io/nginx pull - 3"]
    );
}

#[test]
fn the_policy_skips_with_a_reason_and_the_limit_counts_what_is_left() {
    let policy = Policy {
        only: prefixes(&["quay.io", "nginx"]),
        ignore: prefixes(&["quay.io/bad"]),
        limit: Some(2),
    };
    let candidates = vec![
        used("quay.io/bad/a", &[("a", 9)]),
        used("ghcr.io/x", &[("b", 8)]),
        used("UPPER/case", &[("c", 7)]),
        used("quay.io/one", &[("d", 6)]),
        used("nginx", &[("e", 5)]),
        used("quay.io/three", &[("f", 4)]),
    ];
    assert_eq!(
        check(candidates, &policy, &["quay.io/one"]),
        [
            "quay.io/bad/a skip ignored 9",
            "ghcr.io/x skip not_only 8",
            "UPPER/case skip invalid_reference 7",
            "quay.io/one present - 6",
            "nginx pull - 5",
            "quay.io/three skip limit 4"
        ]
    );
}

/// That uses of the image do not fit on this node: workload, pods, why.
fn misfit(image: &str, uses: &[(&str, u64, &str)]) -> Candidate {
    let pods: Vec<_> = uses.iter().map(|(name, pods, _)| (*name, *pods)).collect();
    let mut candidate = used(image, &pods);
    let own = candidate.uses.iter_mut().flatten();
    for (own, (_, _, why)) in own.zip(uses) {
        own.mismatch = (!why.is_empty()).then(|| Arc::from(*why));
    }
    candidate
}

#[test]
fn an_image_that_no_workload_can_use_here_is_skipped_with_the_first_workloads_rule() {
    let candidates = vec![
        misfit("gpu", &[("train", 9, "node has no label gpu")]),
        misfit(
            "two",
            &[("b", 2, "why b"), ("a", 2, "why a"), ("c", 1, "why c")],
        ),
        // One that fits keeps it, under one spelling or the other, and counts alone.
        misfit("some", &[("big", 50, "why"), ("small", 1, "")]),
        misfit("docker.io/some:latest", &[("huge", 100, "why")]),
        misfit("listed", &[("l", 0, "why")]),
        Candidate::listed("docker.io/library/listed"),
    ];
    assert_eq!(
        check(candidates.clone(), &Policy::default(), &[]),
        [
            "gpu skip node_mismatch 9",
            "two skip node_mismatch 5",
            "some pull - 1",
            "listed pull - 0",
        ]
    );
    let plan = select(candidates, &Policy::default()).against(&Presence::new());
    let said = |place: usize| match &plan.images()[place].step {
        Step::Skip(_, message) => message.clone(),
        step => format!("{step:?}"),
    };
    assert_eq!(said(0), "default/Deployment/train: node has no label gpu");
    assert_eq!(said(1), "default/Deployment/a: why a, and 2 more");
    assert_eq!(plan.images()[1].workloads.len(), 3);
    assert_eq!(plan.images()[2].workloads, [Arc::new(workload("small"))]);
}

#[test]
fn the_node_comes_after_the_users_prefixes_and_before_the_limit() {
    let policy = Policy {
        only: prefixes(&["quay.io"]),
        ignore: prefixes(&["quay.io/bad"]),
        limit: Some(1),
    };
    let no = |image: &str, pods| misfit(image, &[("w", pods, "why")]);
    let candidates = vec![
        no("UPPER/case", 9),
        no("quay.io/bad/a", 8),
        no("ghcr.io/x", 7),
        no("quay.io/elsewhere", 6),
        used("quay.io/one", &[("w", 5)]),
        no("quay.io/late", 4),
        used("quay.io/two", &[("w", 3)]),
    ];
    assert_eq!(
        check(candidates, &policy, &["quay.io/elsewhere"]),
        [
            "UPPER/case skip invalid_reference 9",
            "quay.io/bad/a skip ignored 8",
            "ghcr.io/x skip not_only 7",
            "quay.io/elsewhere skip node_mismatch 6",
            "quay.io/one pull - 5",
            "quay.io/late skip node_mismatch 4",
            "quay.io/two skip limit 3",
        ]
    );
}

#[test]
fn a_list_knows_no_pods() {
    let candidates = vec![Candidate::listed("b"), Candidate::listed("a")];
    assert_eq!(
        check(candidates, &Policy::default(), &[]),
        ["a pull - ?", "b pull - ?"]
    );
}

proptest! {
    #[test]
    fn a_plan_keeps_to_its_policy_and_not_to_the_order_of_its_input(
        images in prop::collection::vec(("(quay[.]io/)?[a-c]{1,2}(:[12])?", 0u64..5, "[w-z]"), 0..20),
        limit in prop::option::of(1usize..6),
        seed in any::<u64>(),
    ) {
        let policy = Policy { only: vec![], ignore: prefixes(&["quay.io/a"]), limit };
        let candidates: Vec<_> = images.iter().map(|(image, pods, name)| used(image, &[(name, *pods)])).collect();
        let mut shuffled = candidates.clone();
        fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
        let normal = |c| {
            let plan = select(c, &policy).against(&Presence::new());
            plan.images().iter().map(|i| (Reference::parse(&i.image).expect("valid").normalized(), i.step.action(), i.pods)).collect::<Vec<_>>()
        };
        let plan = normal(candidates);
        prop_assert_eq!(&plan, &normal(shuffled));
        let pulls = plan.iter().filter(|(_, action, _)| *action == Action::Pull).count();
        prop_assert!(limit.is_none_or(|l| pulls <= l));
        prop_assert!(plan.iter().all(|(image, action, _)| !image.starts_with("quay.io/a") || *action == Action::Skip));
    }
}
