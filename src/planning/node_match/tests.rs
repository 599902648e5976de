use super::*;

/// `key=value` or `key` to a pair.
fn pair(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.to_owned(), value.to_owned())
}

/// `key=value:Effect`, as kubectl writes a taint.
fn taint(text: &str) -> Taint {
    let (rest, effect) = text.rsplit_once(':').unwrap();
    let (key, value) = pair(rest);
    Taint {
        key,
        value,
        effect: effect.to_owned(),
    }
}

/// The node `here` of the tables: these labels, and taints of its own for each row.
fn here(taints: &[&str]) -> Node {
    let labels = [
        "disk=ssd",
        "cores=16",
        "kubernetes.io/arch=arm64",
        "pool",
        "zone=a",
        "size=big",
        "below=-3",
    ];
    Node {
        name: "here".to_owned(),
        labels: labels.into_iter().map(pair).collect(),
        taints: taints.iter().map(|text| taint(text)).collect(),
        ..Node::default()
    }
}

/// `key Operator value value`.
fn expression(text: &str) -> Expression {
    let mut words = text.split(' ').map(str::to_owned);
    Expression {
        key: words.next().unwrap(),
        operator: words.next().unwrap(),
        values: words.collect(),
    }
}

/// `key Operator value & key Operator` with fields marked by `@`; nothing for an empty term.
fn term(text: &str) -> Term {
    let mut term = Term::default();
    for part in text.split(" & ").filter(|part| !part.is_empty()) {
        match part.strip_prefix('@') {
            Some(field) => term.fields.push(expression(field)),
            None => term.labels.push(expression(part)),
        }
    }
    term
}

fn affinity(terms: &[&str]) -> Requirements {
    Requirements {
        affinity: Some(terms.iter().map(|text| term(text)).collect()),
        ..Requirements::default()
    }
}

/// `[key, operator, value, effect]`
fn toleration([key, operator, value, effect]: [&str; 4]) -> Toleration {
    Toleration {
        key: key.to_owned(),
        operator: operator.to_owned(),
        value: value.to_owned(),
        effect: effect.to_owned(),
    }
}

#[track_caller]
fn check(requirements: &Requirements, node: &Node, expected: &str) {
    let said = mismatch(requirements, node);
    assert_eq!(
        said.as_deref().unwrap_or("fits"),
        expected,
        "{requirements:?} {node:?}"
    );
}

#[test]
fn node_names_and_selectors_must_match() {
    for (name, selector, expected) in [
        ("", &[][..], "fits"),
        ("here", &[], "fits"),
        ("node-7", &[], "pods require node node-7"),
        ("node-7", &["disk=hdd"], "pods require node node-7"),
        ("here", &["disk=hdd"], "node's label disk is ssd, not hdd"),
        ("", &["disk=ssd"], "fits"),
        ("", &["disk=ssd", "zone=a", "pool"], "fits"),
        ("", &["disk=hdd"], "node's label disk is ssd, not hdd"),
        (
            "",
            &["accelerator=gpu"],
            "node has no label accelerator=gpu",
        ),
        ("", &["role"], "node has no label role"),
        ("", &["disk"], "node's label disk is ssd, not empty"),
        ("", &["pool=x"], "node's label pool is empty, not x"),
        ("", &["Disk=ssd"], "node has no label Disk=ssd"),
        ("", &["kubernetes.io/arch=arm64"], "fits"),
        (
            "",
            &["kubernetes.io/arch=amd64"],
            "node's label kubernetes.io/arch is arm64, not amd64",
        ),
        ("", &["z=1", "disk=ssd", "b=1"], "node has no label b=1"),
        // A RuntimeClass that says otherwise than the template.
        (
            "",
            &["disk=ssd", "disk=hdd"],
            "node's label disk is ssd, not hdd",
        ),
    ] {
        let requirements = Requirements {
            node_name: name.to_owned(),
            node_selector: selector.iter().map(|text| pair(text)).collect(),
            ..Requirements::default()
        };
        check(&requirements, &here(&[]), expected);
    }
}

#[test]
fn required_affinity_must_match() {
    let odd =
        |said: &str| format!("its node affinity has a term that no node matches: {said} values");
    let table: &[(&[&str], &str)] = &[
        (&[], "its node affinity has no terms, so it matches no node"),
        (
            &[""],
            "its node affinity has an empty term, which matches no node",
        ),
        (&["", "disk Exists"], "fits"),
        (&["disk In ssd"], "fits"),
        (&["disk In hdd ssd"], "fits"),
        (&["disk In hdd"], "node's label disk is ssd, not hdd"),
        (
            &["disk In hdd nvme"],
            "node's label disk is ssd, not one of hdd, nvme",
        ),
        (&["gpu In a"], "node has no label gpu=a"),
        (
            &["gpu In a b"],
            "node has no label gpu, which must be one of a, b",
        ),
        (&["disk In"], &odd("disk In with 0")),
        (&["disk NotIn hdd"], "fits"),
        (
            &["disk NotIn hdd ssd"],
            "node's label disk is ssd, which its node affinity excludes",
        ),
        // What has no such label is not in the set.
        (&["gpu NotIn a"], "fits"),
        (&["gpu NotIn"], &odd("gpu NotIn with 0")),
        (&["pool Exists"], "fits"),
        (&["gpu Exists"], "node has no label gpu"),
        (&["pool Exists x"], &odd("pool Exists with 1")),
        (&["gpu DoesNotExist"], "fits"),
        (&["pool DoesNotExist"], "node has the label pool"),
        (&["gpu DoesNotExist x"], &odd("gpu DoesNotExist with 1")),
        (&["cores Gt 15"], "fits"),
        (
            &["cores Gt 16"],
            "node's label cores is 16, not greater than 16",
        ),
        (&["cores Gt 9"], "fits"),
        (&["cores Lt 17"], "fits"),
        (
            &["cores Lt 16"],
            "node's label cores is 16, not less than 16",
        ),
        (&["below Lt -2"], "fits"),
        (
            &["below Gt -3"],
            "node's label below is -3, not greater than -3",
        ),
        (&["gpu Gt 1"], "node has no label gpu"),
        (&["gpu Lt 1"], "node has no label gpu"),
        (
            &["size Gt 1"],
            "node's label size is big, not greater than 1",
        ),
        (&["size Lt 1"], "node's label size is big, not less than 1"),
        (&["cores Gt many"], &odd("cores Gt with 1")),
        (&["cores Gt 1.5"], &odd("cores Gt with 1")),
        (&["cores Gt 9223372036854775808"], &odd("cores Gt with 1")),
        (&["cores Gt"], &odd("cores Gt with 0")),
        (&["cores Gt 1 2"], &odd("cores Gt with 2")),
        // An operator of a later version may match.
        (&["cores gt 1"], "fits"),
        (&["cores  1"], "fits"),
        (&["@metadata.name Later x"], "fits"),
        (
            &["cores gt 1 & disk In hdd"],
            "node's label disk is ssd, not hdd",
        ),
        (&["disk In ssd & cores Gt 8 & gpu DoesNotExist"], "fits"),
        (
            &["disk In ssd & cores Gt 80"],
            "node's label cores is 16, not greater than 80",
        ),
        (&["gpu Exists", "disk In ssd"], "fits"),
        // What cannot be parsed spoils its own term alone.
        (&["cores Gt many", "disk In ssd"], "fits"),
        (
            &["gpu Exists", "disk In hdd"],
            "node has no label gpu; 1 other node affinity term does not match",
        ),
        (
            &["gpu Exists", "disk In hdd", ""],
            "node has no label gpu, nor does any of the other 2 terms of its node affinity match",
        ),
        (&["@metadata.name In here"], "fits"),
        (&["@metadata.name In node-7"], "pods require node node-7"),
        (&["@metadata.name NotIn node-7"], "fits"),
        (&["@metadata.name NotIn here"], "pods exclude node here"),
        (
            &["@metadata.name In here there"],
            &odd("metadata.name In with 2"),
        ),
        (
            &["@metadata.name Exists"],
            &odd("metadata.name Exists with 0"),
        ),
        (
            &["@spec.podCIDR NotIn x"],
            &odd("spec.podCIDR NotIn with 1"),
        ),
        (&["disk In ssd & @metadata.name In here"], "fits"),
        (
            &["disk In hdd & @metadata.name In here"],
            "node's label disk is ssd, not hdd",
        ),
        (
            &["disk In ssd & @metadata.name In node-7"],
            "pods require node node-7",
        ),
        // A label of that name is another thing.
        (
            &["metadata.name In here"],
            "node has no label metadata.name=here",
        ),
    ];
    for (terms, expected) in table {
        check(&affinity(terms), &here(&[]), expected);
    }
}

#[test]
fn untolerated_taints_exclude_the_node() {
    const DB: &str = "dedicated=db:NoSchedule";
    let not = |taint: &str| format!("node has the taint {taint}, which is not tolerated");
    type Row<'a> = (&'a [&'a str], &'a [[&'a str; 4]], String);
    let table: &[Row<'_>] = &[
        (&[], &[["x", "Exists", "", ""]], "fits".into()),
        (&[DB], &[], not(DB)),
        (&["gpu:NoExecute"], &[], not("gpu:NoExecute")),
        (&["dedicated=db:PreferNoSchedule"], &[], "fits".into()),
        (&["dedicated=db:Later"], &[], "fits".into()),
        (
            &[DB],
            &[["dedicated", "Equal", "db", "NoSchedule"]],
            "fits".into(),
        ),
        (
            &[DB],
            &[["dedicated", "", "db", "NoSchedule"]],
            "fits".into(),
        ),
        (&[DB], &[["dedicated", "Equal", "db", ""]], "fits".into()),
        (&[DB], &[["dedicated", "Equal", "web", ""]], not(DB)),
        (&[DB], &[["dedicated", "Equal", "", ""]], not(DB)),
        (&[DB], &[["Dedicated", "Equal", "db", ""]], not(DB)),
        (&[DB], &[["dedicated", "Equal", "db", "NoExecute"]], not(DB)),
        (&[DB], &[["dedicated", "Exists", "", ""]], "fits".into()),
        (
            &[DB],
            &[["dedicated", "Exists", "", "NoSchedule"]],
            "fits".into(),
        ),
        (
            &[DB],
            &[["dedicated", "Exists", "", "PreferNoSchedule"]],
            not(DB),
        ),
        (&[DB], &[["other", "Exists", "", ""]], not(DB)),
        (&[DB], &[["", "Exists", "", ""]], "fits".into()),
        (
            &[DB, "gpu:NoExecute"],
            &[["", "Exists", "", "NoSchedule"]],
            not("gpu:NoExecute"),
        ),
        (
            &[DB, "gpu:NoExecute"],
            &[["dedicated", "Exists", "", ""]],
            not("gpu:NoExecute"),
        ),
        (
            &[DB, "gpu:NoExecute"],
            &[["gpu", "Exists", "", ""], ["dedicated", "", "db", ""]],
            "fits".into(),
        ),
        (&["gpu:NoSchedule"], &[["gpu", "", "", ""]], "fits".into()),
        // Numbers (KEP-5471) are not compared, and count as fitting like any operator of a later version.
        (
            &["sla=950:NoSchedule"],
            &[["sla", "Gt", "900", ""]],
            "fits".into(),
        ),
        (
            &["sla=950:NoSchedule"],
            &[["sla", "Lt", "900", ""]],
            "fits".into(),
        ),
        (
            &["sla=950:NoSchedule"],
            &[["cost", "Lt", "900", ""]],
            not("sla=950:NoSchedule"),
        ),
        (
            &["sla=950:NoSchedule"],
            &[["sla", "Gt", "900", "NoExecute"]],
            not("sla=950:NoSchedule"),
        ),
        (&[DB], &[["dedicated", "exists", "", ""]], "fits".into()),
    ];
    for (taints, tolerations, expected) in table {
        let requirements = Requirements {
            tolerations: tolerations.iter().copied().map(toleration).collect(),
            ..Requirements::default()
        };
        check(&requirements, &here(taints), expected);
    }
}

/// What the DaemonSet controller adds to its pods (`daemon/util.AddOrUpdateDaemonPodTolerations`) needs no rule of its
/// own, because no workload is judged by these taints.
#[test]
fn transient_taints_exclude_no_image() {
    for passing in [
        "node.kubernetes.io/not-ready:NoExecute",
        "node.kubernetes.io/not-ready:NoSchedule",
        "node.kubernetes.io/unreachable:NoExecute",
        "node.kubernetes.io/disk-pressure:NoSchedule",
        "node.kubernetes.io/memory-pressure:NoSchedule",
        "node.kubernetes.io/pid-pressure:NoSchedule",
        "node.kubernetes.io/unschedulable:NoSchedule",
        "node.kubernetes.io/network-unavailable:NoSchedule",
        "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute",
        "node.cloudprovider.kubernetes.io/uninitialized=true:NoSchedule",
        "node.cloudprovider.kubernetes.io/shutdown:NoSchedule",
        "karpenter.sh/unregistered:NoExecute",
        "node.cilium.io/agent-not-ready=true:NoExecute",
        "ebs.csi.aws.com/agent-not-ready:NoExecute",
        "startup-taint.cluster-autoscaler.kubernetes.io/driver:NoSchedule",
        "ignore-taint.cluster-autoscaler.kubernetes.io/driver:NoSchedule",
        "node.cluster.x-k8s.io/uninitialized:NoSchedule",
        "cni.istio.io/not-ready=true:NoSchedule",
        "readiness.k8s.io/example.com.network:NoSchedule",
        "node.gardener.cloud/critical-components-not-ready:NoSchedule",
    ] {
        check(&Requirements::default(), &here(&[passing]), "fits");
    }
    for staying in [
        "node-role.kubernetes.io/control-plane:NoSchedule",
        "node.kubernetes.io/windows:NoSchedule",
        "nvidia.com/gpu=present:NoSchedule",
        "not-ready:NoSchedule",
        "node.cluster.x-k8s.io/uninitialized2:NoSchedule",
        "cni.istio.io/not-ready2:NoSchedule",
        "readiness.k8s.io:NoSchedule",
    ] {
        let expected = format!("node has the taint {staying}, which is not tolerated");
        check(&Requirements::default(), &here(&[staying]), &expected);
    }
}

#[test]
fn pods_with_node_name_ignore_noschedule() {
    let requirements = Requirements {
        node_name: "here".to_owned(),
        ..Requirements::default()
    };
    check(&requirements, &here(&["dedicated=db:NoSchedule"]), "fits");
    let expected = "node has the taint dedicated=db:NoExecute, which is not tolerated";
    check(&requirements, &here(&["dedicated=db:NoExecute"]), expected);
}

#[test]
fn rules_are_ordered_and_messages_bounded() {
    let mut requirements = affinity(&["gpu Exists"]);
    let node = here(&["dedicated=db:NoSchedule"]);
    check(&requirements, &node, "node has no label gpu");
    requirements.node_selector.push(pair("disk=hdd"));
    check(&requirements, &node, "node's label disk is ssd, not hdd");
    requirements.node_selector[0].1 = format!("\u{1b}\n{}", "x".repeat(1 << 20));
    let said = mismatch(&requirements, &node).unwrap();
    assert!(said.chars().count() == 301 && !said.contains(char::is_control));
}

#[test]
fn own_startup_taints_exclude_no_image() {
    let mut node = here(&["example.com/booting=yes:NoExecute"]);
    let expected = "node has the taint example.com/booting=yes:NoExecute, which is not tolerated";
    for keys in [
        &[][..],
        &["example.com/boot"],
        &["example.com/booting2", "booting"],
    ] {
        node.startup_taints = keys.iter().map(|key| (*key).to_owned()).collect();
        check(&Requirements::default(), &node, expected);
    }
    node.startup_taints.push("example.com/booting".to_owned());
    check(&Requirements::default(), &node, "fits");
}

#[test]
fn labels_pending_makes_missing_unknown() {
    let selector = |text: &str| Requirements {
        node_selector: vec![pair(text)],
        ..Requirements::default()
    };
    for key in LABELS_PENDING_TAINTS {
        let node = here(&[&format!("{key}:NoSchedule")]);
        for expression in ["gpu In a b", "gpu Exists", "gpu Gt 1", "gpu Lt 1"] {
            check(&affinity(&[expression]), &node, "fits");
        }
        check(&selector("gpu=a"), &node, "fits");
        // Existing labels keep their values.
        let differs = "node's label disk is ssd, not hdd";
        check(&selector("disk=hdd"), &node, differs);
        check(&affinity(&["disk In hdd & gpu Exists"]), &node, differs);
        check(
            &affinity(&["pool DoesNotExist"]),
            &node,
            "node has the label pool",
        );
        check(
            &affinity(&["@metadata.name In there"]),
            &node,
            "pods require node there",
        );
    }
    let node = here(&["node.kubernetes.io/not-ready:NoSchedule"]);
    check(&selector("gpu=a"), &node, "node has no label gpu=a");
}

#[test]
fn pod_os_must_be_the_nodes() {
    for (wanted, own, expected) in [
        ("", "linux", "fits"),
        ("", "windows", "fits"),
        ("linux", "linux", "fits"),
        ("windows", "windows", "fits"),
        ("windows", "linux", "node OS is linux, pods require windows"),
        ("linux", "windows", "node OS is windows, pods require linux"),
        // One that has not said yet.
        ("linux", "", "fits"),
        ("windows", "", "node OS is linux, pods require windows"),
    ] {
        let mut requirements = Requirements {
            os: wanted.to_owned(),
            ..Requirements::default()
        };
        let node = Node {
            os: own.to_owned(),
            ..here(&[])
        };
        check(&requirements, &node, expected);
        // The kubelet turns away those that were not scheduled, too.
        requirements.node_name = "here".to_owned();
        check(&requirements, &node, expected);
    }
}

#[test]
fn extended_resources_must_be_offered() {
    const MISSING: &str = "node has no resource example.com/fpga";
    type Row<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str], &'a str);
    let table: &[Row<'_>] = &[
        (&[], &[], &[], MISSING),
        (&["cpu", "example.com/gpu"], &[], &[], MISSING),
        (&["example.com/fpga"], &[], &[], "fits"),
        (&[], &["example.com/fpga"], &[], "fits"),
        (&[], &["example.com/fpga=a10"], &[], "fits"),
        (&[], &["example.com/fpga=false"], &[], MISSING),
        (&[], &["example.com/fpga.present=true"], &[], "fits"),
        (&[], &["example.com/fpga.present=false"], &[], MISSING),
        (&[], &["example.com/fpga2=true"], &[], MISSING),
        (&[], &["example.com/fpg=true"], &[], MISSING),
        (&[], &[], &["example.com/fpga:PreferNoSchedule"], "fits"),
        (&[], &[], &["example.com/other:PreferNoSchedule"], MISSING),
    ];
    let requirements = Requirements {
        extended_resources: BTreeSet::from(["example.com/fpga".to_owned()]),
        ..Requirements::default()
    };
    let old = Some(Duration::from_secs(600));
    for (resources, labels, taints, expected) in table {
        let mut node = here(taints);
        node.age = old;
        node.resources = resources.iter().map(|name| (*name).to_owned()).collect();
        node.labels.extend(labels.iter().map(|text| pair(text)));
        check(&requirements, &node, expected);
    }
    for (age, expected) in [
        (Some(Duration::ZERO), "fits"),
        (Some(Duration::from_secs(599)), "fits"),
        (None, "fits"),
        (old, MISSING),
    ] {
        let node = Node { age, ..here(&[]) };
        check(&requirements, &node, expected);
    }
    // Its labels are not all there yet.
    let mut node = here(&["node.cloudprovider.kubernetes.io/uninitialized:NoSchedule"]);
    node.age = old;
    check(&requirements, &node, "fits");
    // The kubelet accepts pods that were not scheduled.
    let mut node = here(&[]);
    node.age = old;
    let named = Requirements {
        node_name: "here".to_owned(),
        ..requirements
    };
    check(&named, &node, "fits");
}
