use proptest::prelude::*;

use super::*;
use crate::model::digest::Digest;
use crate::model::image_size::{Blob, LayerStorage, Usage};

fn workload(name: &str) -> Workload {
    Workload {
        namespace: "default".into(),
        kind: "Deployment",
        name: name.into(),
    }
}

fn used(image: &str, uses: &[(&str, u64)]) -> Candidate {
    Candidate {
        image: image.into(),
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
            (reference.normalized().to_owned(), StoredImage::default())
        })
        .collect();
    let plan = select(candidates, policy).against(Facts {
        presence,
        ..Facts::default()
    });
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
fn images_are_ordered_by_use() {
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
fn spellings_merge_under_the_first() {
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
fn limit_counts_images_after_the_filters() {
    let policy = Policy {
        only: prefixes(&["quay.io", "nginx"]),
        ignore: prefixes(&["quay.io/bad"]),
        limit: Some(2),
        ..Policy::default()
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
fn misfit_image_is_skipped_with_reason() {
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
    let plan = select(candidates, &Policy::default()).against(Facts::default());
    let said = |place: usize| match &plan.images()[place].step {
        Step::Skip(_, message) => message.clone(),
        step => format!("{step:?}"),
    };
    assert_eq!(said(0), "default/Deployment/train: node has no label gpu");
    assert_eq!(said(1), "default/Deployment/a: why a, and 2 more");
    assert_eq!(plan.images()[1].workloads.len(), 3);
    assert_eq!(*plan.images()[2].workloads, [Arc::new(workload("small"))]);
}

/// Where the runtime searches registries for short names.
#[test]
fn separate_short_names_do_not_merge() {
    let policy = Policy {
        short_names_apart: true,
        ..Policy::default()
    };
    let candidates = [
        "nginx:1.27",
        "docker.io/library/nginx:1.27",
        "index.docker.io/nginx:1.27",
        "library/nginx:1.27",
        "app",
        "app:latest",
        "quay.io/app",
        "nginx:1.27",
    ];
    let candidates = candidates.map(Candidate::listed).to_vec();
    let mut plan = check(
        candidates.clone(),
        &policy,
        &["docker.io/library/nginx:1.27"],
    );
    plan.sort();
    assert_eq!(
        plan,
        [
            "app pull - ?",
            "docker.io/library/nginx:1.27 present - ?",
            "library/nginx:1.27 pull - ?",
            "nginx:1.27 pull - ?",
            "quay.io/app pull - ?",
        ]
    );
    let selection = select(candidates, &policy);
    let wanted: Vec<_> = selection
        .wanted()
        .map(|i| selection.key(i).into_owned())
        .collect();
    let mut once = wanted.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), wanted.len(), "{wanted:?}");
}

#[test]
fn separate_short_names_each_get_sizes() {
    let policy = Policy {
        short_names_apart: true,
        ..Policy::default()
    };
    let candidates = ["nginx", "docker.io/library/nginx"].map(Candidate::listed);
    let size = Ok(Size::Packed(1));
    let sizes = [("docker.io/library/nginx:latest".to_owned(), size)];
    let plan = select(candidates.to_vec(), &policy).against(Facts {
        sizes: sizes.into(),
        room: Some(DiskBudget::new(100, LayerStorage::Packed, Usage::default())),
        ..Facts::default()
    });
    assert_eq!(plan.count(Action::Pull), 2);
}

#[test]
fn node_filter_precedes_limit_follows_prefixes() {
    let policy = Policy {
        only: prefixes(&["quay.io"]),
        ignore: prefixes(&["quay.io/bad"]),
        limit: Some(1),
        ..Policy::default()
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
fn listed_images_have_no_pod_count() {
    let candidates = vec![Candidate::listed("b"), Candidate::listed("a")];
    assert_eq!(
        check(candidates, &Policy::default(), &[]),
        ["a pull - ?", "b pull - ?"]
    );
}

/// An image of these blobs: `"12"` has blob 1 and blob 2, each of as many bytes as its digit says.
fn blobs(digits: &str) -> Size {
    let blob = |digit: char| Blob {
        digest: Digest::parse(&format!("sha256:{}", digit.to_string().repeat(64))).expect("digest"),
        bytes: u64::from(digit.to_digit(10).expect("digit")),
    };
    let once: std::collections::BTreeSet<char> = digits.chars().collect();
    Size::Blobs(once.into_iter().map(blob).collect())
}

fn unknown(kind: FailureKind) -> Unknown {
    Unknown::new(kind, "registry said so")
}

fn facts(sizes: &[(&str, Result<Size, Unknown>)], budget: Option<u64>) -> Facts {
    let name = |image: &str| {
        Reference::parse(image)
            .expect("valid")
            .normalized()
            .to_owned()
    };
    Facts {
        sizes: sizes.iter().map(|(i, s)| (name(i), s.clone())).collect(),
        room: budget.map(|budget| DiskBudget::new(budget, LayerStorage::Packed, Usage::default())),
        ..Facts::default()
    }
}

/// `image action reason: message` a line.
fn told(plan: &Plan) -> Vec<String> {
    let line = |i: &PlannedImage| match &i.step {
        Step::Skip(reason, message) => format!("{} skip {}: {message}", i.image, reason.as_str()),
        step => {
            let note = i
                .note
                .as_deref()
                .map_or(String::new(), |n| format!(": {n}"));
            format!("{} {}{note}", i.image, step.action().as_str())
        }
    };
    plan.images().iter().map(line).collect()
}

#[test]
fn oversized_image_is_skipped_smaller_fit() {
    let images = ["a", "b", "c", "d"].map(Candidate::listed).to_vec();
    let sizes = [
        ("a", Ok(blobs("15"))),
        ("b", Ok(blobs("59"))),
        ("c", Ok(blobs("513"))),
        ("d", Err(unknown(FailureKind::Unauthorized))),
    ];
    let plan = select(images.clone(), &Policy::default()).against(facts(&sizes, Some(10)));
    assert_eq!(
        told(&plan),
        [
            "a pull",
            "b skip disk_budget: over --disk-budget 10 B: needs about 9 B, 4 B left",
            "c pull",
            "d skip unauthorized: size unknown; cannot enforce --disk-budget: registry said so",
        ]
    );
    let shared: Vec<_> = plan
        .images()
        .iter()
        .map(|i| i.download().map(|d| (d.bytes, d.shared)))
        .collect();
    assert_eq!(shared, [Some((6, Some(0))), None, Some((9, Some(6))), None]);
    let sum = plan.downloads();
    assert_eq!((sum.bytes, sum.shared, sum.unknown), (9, 6, 0));

    // Without a budget all are pulled, and unknown facts are noted.
    let plan = select(images, &Policy::default()).against(facts(&sizes, None));
    assert_eq!(told(&plan)[3], "d pull: size unknown: registry said so");
    assert_eq!(plan.downloads().unknown, 1);
}

#[test]
fn image_of_unavailable_size_is_pulled() {
    let late = Unknown {
        is_retryable: true,
        ..unknown(FailureKind::Unauthorized)
    };
    let sizes = [
        ("a", Err(unknown(FailureKind::Unavailable))),
        ("b", Ok(blobs("9"))),
        ("c", Err(late)),
        ("d", Err(unknown(FailureKind::NotFound))),
    ];
    let images = ["a", "b", "c", "d"].map(Candidate::listed).to_vec();
    let plan = select(images, &Policy::default()).against(facts(&sizes, Some(10)));
    assert_eq!(
        told(&plan),
        [
            "a pull: size unknown: registry said so",
            "b pull",
            "c pull: size unknown: registry said so",
            "d skip not_found: size unknown; cannot enforce --disk-budget: registry said so",
        ]
    );
    assert_eq!(plan.downloads().unknown, 2);
}

#[test]
fn image_for_other_platform_is_skipped() {
    let sizes = [("a", Err(unknown(FailureKind::PlatformMismatch)))];
    for budget in [None, Some(5)] {
        let plan = select(vec![Candidate::listed("a")], &Policy::default());
        let plan = plan.against(facts(&sizes, budget));
        assert_eq!(told(&plan), ["a skip platform_mismatch: registry said so"]);
    }
}

#[test]
fn only_moved_tags_are_pulled_again() {
    let mut always = used("always:1", &[("w", 1)]);
    always
        .uses
        .iter_mut()
        .flatten()
        .for_each(|u| u.always = true);
    // Under another spelling a second workload lacks it: one workload with it is enough.
    let also = used("docker.io/always:1", &[("x", 1)]);
    let pinned = format!("pinned@sha256:{}", "a".repeat(64));
    let candidates = vec![
        always,
        also,
        used("moved", &[("w", 9)]),
        used("same:latest", &[("w", 8)]),
        used("fixed:1", &[("w", 7)]),
        used(&pinned, &[("w", 6)]),
        used("silent", &[("w", 5)]),
        used("absent", &[("w", 4)]),
    ];
    let name = |image: &str| {
        Reference::parse(image)
            .expect("valid")
            .normalized()
            .to_owned()
    };
    let here = ["always:1", "moved", "same", "fixed:1", &pinned, "silent"];
    let presence: Presence = here
        .iter()
        .map(|i| (name(i), StoredImage::default()))
        .collect();
    let selection = select(candidates, &Policy::default());
    let asked: Vec<_> = selection
        .movable(&presence)
        .map(|(i, _)| i.as_written())
        .collect();
    assert_eq!(asked, ["moved", "same:latest", "silent", "always:1"]);
    let moved = [
        ("moved", Moved::Yes("its tag has moved".to_owned())),
        ("same", Moved::No),
        ("silent", Moved::Unknown(unknown(FailureKind::Unavailable))),
        ("always:1", Moved::Yes("its tag has moved".to_owned())),
    ];
    let plan = selection.against(Facts {
        presence,
        moved: moved.into_iter().map(|(i, m)| (name(i), m)).collect(),
        ..Facts::default()
    });
    let pinned = format!("{pinned} present");
    assert_eq!(
        told(&plan),
        [
            "moved pull: its tag has moved",
            "same:latest present",
            "fixed:1 present",
            &pinned,
            "silent present: failed to check whether the tag has moved: registry said so",
            "absent pull",
            "always:1 pull: its tag has moved",
        ]
    );
}

proptest! {
    #[test]
    fn plan_keeps_budget_for_any_order(
        images in prop::collection::btree_map("(quay[.]io/)?[a-c]{1,2}", (0u64..4, "[1-9]{0,5}", any::<bool>()), 0..12),
        budget in 0u64..60,
        held in 0u64..20,
        limit in prop::option::of(1usize..6),
        keeps in prop::sample::select(vec![LayerStorage::Packed, LayerStorage::Unpacked, LayerStorage::Both]),
        seed in any::<u64>(),
    ) {
        let policy = Policy { only: vec![], ignore: prefixes(&["quay.io/a"]), limit, ..Policy::default() };
        let name = |image: &str| Reference::parse(image).expect("valid").normalized().to_owned();
        let candidates: Vec<_> = images.iter().map(|(image, (pods, ..))| used(image, &[("w", *pods)])).collect();
        let mut shuffled = candidates.clone();
        fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
        let there = blobs("1");
        let usage = || {
            let Size::Blobs(blobs) = &there else { unreachable!() };
            Usage { bytes: held, blobs: blobs.iter().map(|b| b.digest.clone()).collect() }
        };
        let planned = |candidates| {
            let facts = Facts {
                sizes: images.iter().map(|(image, (_, digits, known))| {
                    let size = if *known { Ok(blobs(digits)) } else { Err(unknown(FailureKind::NotFound)) };
                    (name(image), size)
                }).collect(),
                tally: Tally::new(usage().blobs),
                room: Some(DiskBudget::new(budget, keeps, usage())),
                ..Facts::default()
            };
            select(candidates, &policy).against(facts)
        };
        let plan = planned(candidates);
        prop_assert_eq!(told(&plan), told(&planned(shuffled)));
        let pulls: Vec<_> = plan.images().iter().filter(|i| i.step.action() == Action::Pull).collect();
        // What the store would hold, counted anew: each blob once, in each form that it keeps.
        let mut digits: Vec<char> = pulls.iter().flat_map(|i| images[&*i.image].1.chars()).filter(|c| *c != '1').collect();
        digits.sort_unstable();
        digits.dedup();
        let packed: u64 = digits.iter().map(|c| u64::from(c.to_digit(10).expect("digit"))).sum();
        let unpacked = (packed as f64 * crate::model::image_size::UNPACKED_FACTOR) as u64;
        let more = match keeps {
            LayerStorage::Packed => packed,
            LayerStorage::Unpacked => unpacked,
            LayerStorage::Both => packed + unpacked,
        };
        prop_assert!(more == 0 || held + more <= budget, "{held} + {more} > {budget}: {:?}", told(&plan));
        prop_assert!(limit.is_none_or(|l| pulls.len() <= l));
        for image in pulls {
            prop_assert!(images[&*image.image].2, "of unknown size: {}", image.image);
            prop_assert!(!name(&image.image).starts_with("quay.io/a"));
        }
        prop_assert_eq!(plan.downloads().bytes, packed);
    }


    #[test]
    fn plan_ignores_order_of_input(
        images in prop::collection::vec(("(quay[.]io/)?[a-c]{1,2}(:[12])?", 0u64..5, "[w-z]"), 0..20),
        limit in prop::option::of(1usize..6),
        seed in any::<u64>(),
    ) {
        let policy = Policy { only: vec![], ignore: prefixes(&["quay.io/a"]), limit, ..Policy::default() };
        let candidates: Vec<_> = images.iter().map(|(image, pods, name)| used(image, &[(name, *pods)])).collect();
        let mut shuffled = candidates.clone();
        fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
        let normal = |c| {
            let plan = select(c, &policy).against(Facts::default());
            plan.images().iter().map(|i| (Reference::parse(&i.image).expect("valid").normalized().to_owned(), i.step.action(), i.pods)).collect::<Vec<_>>()
        };
        let plan = normal(candidates);
        prop_assert_eq!(&plan, &normal(shuffled));
        let pulls = plan.iter().filter(|(_, action, _)| *action == Action::Pull).count();
        prop_assert!(limit.is_none_or(|l| pulls <= l));
        prop_assert!(plan.iter().all(|(image, action, _)| !image.starts_with("quay.io/a") || *action == Action::Skip));
    }
}
