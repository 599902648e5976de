use super::*;

fn no_environment(_: &str) -> Option<OsString> {
    None
}

/// Settings from flags alone.
fn typed<T>(flags: &[(&'static str, &str)], read: impl Fn(&Raw<'_>) -> T) -> T {
    let flags = flags.iter().map(|(f, v)| (*f, (*v).to_owned())).collect();
    read(&Raw::new(flags, &no_environment))
}

#[test]
fn a_flag_beats_the_variable_and_an_empty_variable_is_none() {
    let environment = |name: &str| match name {
        "LIMIT" => Some(OsString::from("7")),
        "IGNORE" => Some(OsString::new()),
        "CONTAINER_RUNTIME_ENDPOINT" => Some(OsString::from("/run/x.sock")),
        _ => None,
    };
    let limit = |flags| policy(&Raw::new(flags, &environment)).expect("valid").limit;
    assert_eq!(limit(HashMap::new()), Some(7));
    assert_eq!(limit(HashMap::from([("limit", "2".to_owned())])), Some(2));
    let raw = Raw::new(HashMap::new(), &environment);
    assert!(policy(&raw).expect("valid").ignore.is_empty());
    assert!(runtime(&raw).expect("valid").endpoint.is_some());
}

#[test]
fn lists_drop_blanks_and_empty_items() {
    let kinds = typed(&[("workloads", " pods ,, jobs,pods ")], |r| {
        sources(r).expect("valid")
    });
    assert_eq!(
        kinds.cluster.workloads,
        [WorkloadKind::Pods, WorkloadKind::Jobs]
    );
    let all = typed(&[("workloads", "all")], |r| sources(r).expect("valid"));
    assert_eq!(all.cluster.workloads.len(), WorkloadKind::ALL.len());
    let spaces = typed(&[("namespaces", "a, b ,")], |r| sources(r).expect("valid"));
    assert!(matches!(spaces.cluster.namespaces, Namespaces::These(n) if n == ["a", "b"]));
    let spaces = typed(&[("namespaces", "a,*")], |r| sources(r).expect("valid"));
    assert!(matches!(spaces.cluster.namespaces, Namespaces::All));
}

#[test]
fn a_bad_value_is_named_with_its_setting_and_what_is_accepted() {
    for (flag, value) in [
        ("namespaces", "Kube"),
        ("namespaces", "a/b"),
        ("namespaces", "*,Kube"),
        ("workloads", "deployment"),
        ("workloads", "all,deployment"),
        ("selector", "app in"),
        ("images-file", ""),
        ("ignore", "/x"),
        ("only", "a b"),
        ("limit", "0"),
        ("limit", "-1"),
        ("limit", "+1"),
        ("limit", "x"),
        ("disk-budget", "20GB"),
        ("disk-budget", "0"),
        ("refresh", "perhaps"),
        ("sizes", "all"),
        ("watch-cache", "1"),
        ("startup-taints", "example.com/*"),
        ("startup-taints", "booting,example.com/a=b:NoSchedule"),
        ("stagger", "5"),
        ("stagger", "5m"),
        ("stagger-min-age", "old"),
        ("registry-concurrency", "0"),
        ("node-name", "Node_1"),
        ("credential-provider-config", ""),
        ("credential-provider-bin-dir", ""),
        ("private-registry", "quay.io"),
        ("runtime-endpoint", "tcp://x:1"),
        ("runtime-endpoint", ""),
        ("platform", "linux"),
        ("concurrency", "0"),
        ("concurrency", "1001"),
        ("pull-timeout", "15"),
        ("pull-timeout", "0s"),
        ("deadline", "soon"),
        ("retries", "-1"),
        ("retries", "101"),
        ("fail-on", "some"),
        ("output", "yaml"),
        ("log-format", "xml"),
        ("log-level", "loud"),
    ] {
        let errors = typed(&[(flag, value)], |raw| {
            [
                sources(raw).err(),
                policy(raw).err(),
                store(raw).err(),
                sizes(raw).err(),
                start(raw).err(),
                runtime(raw).err(),
                credentials(raw).err(),
                pull(raw, FailOn::Any).err(),
                output(raw).err(),
                logs(raw).err(),
            ]
        });
        let mut errors: Vec<_> = errors.into_iter().flatten().collect();
        errors.dedup();
        assert_eq!(errors.len(), 1, "--{flag} {value:?}: {errors:?}");
        let text = errors[0].to_string();
        let variable = flag.to_uppercase().replace('-', "_");
        assert!(text.contains(&format!("--{flag} ({variable}")), "{text}");
        // Of a list, the item that is wrong is named.
        let item = value.rsplit(',').next().unwrap_or_default().trim();
        assert!(
            text.contains(&format!("{item:?}")) && text.contains("expected"),
            "{text}"
        );
    }
}

#[test]
fn every_setting_belongs_to_one_group_and_is_named_after_its_flag() {
    for setting in settings::ALL {
        let groups = settings::RUN
            .iter()
            .copied()
            .chain([&settings::TOLD])
            .filter(|(_, s)| s.iter().any(|s| s.flag == setting.flag));
        assert_eq!(groups.count(), 1, "{}", setting.flag);
        assert_eq!(
            setting.variables[0],
            setting.flag.to_uppercase().replace('-', "_")
        );
    }
}

#[test]
fn empty_flags_are_refused_by_name() {
    for flag in [
        "namespaces",
        "workloads",
        "selector",
        "only",
        "ignore",
        "registry-config",
        "private-registry",
    ] {
        for value in ["", " "] {
            let errors = typed(&[(flag, value)], |raw| {
                [
                    sources(raw).err(),
                    policy(raw).err(),
                    credentials(raw).err(),
                ]
            });
            let errors: Vec<_> = errors.into_iter().flatten().collect();
            assert_eq!(errors.len(), 1, "--{flag}={value:?}: {errors:?}");
            let text = errors[0].to_string();
            assert!(
                text.contains(&format!("--{flag} (")) && text.contains("expected"),
                "{text}"
            );
        }
    }
    let commas = typed(&[("namespaces", " , ")], |raw| sources(raw).err());
    assert!(commas.is_some());
}
