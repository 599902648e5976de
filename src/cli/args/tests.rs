use std::path::Path;

use super::store::DiskMarkArgs;
use super::*;
use crate::app::settings::SettingError;
use crate::discovery::workloads::Namespaces;
use crate::model::image_size::DiskLimit;
use crate::model::workload_kind::WorkloadKind;
use crate::runtime::detect::Endpoint;

/// The command line of these arguments, without the environment.
fn parsed(arguments: &[&str]) -> Result<Cli, clap::Error> {
    let command = each(command(), |arg| arg.env(None::<&'static str>));
    let arguments = ["harpoon"].iter().chain(arguments);
    from_matches(&command.try_get_matches_from(arguments)?)
}

fn plan(arguments: &[&str]) -> PlanArgs {
    let arguments = [&["plan"], arguments].concat();
    match parsed(&arguments).map(|cli| cli.command) {
        Ok(Some(Subcommands::Plan(args))) => *args,
        Ok(_) => panic!("another command"),
        Err(error) => panic!("{error}"),
    }
}

/// The error for the arguments of a command, once all of its settings are read.
fn error(command: &str, flag: &str) -> Option<String> {
    let told = |error: SettingError| format!("error: {error}");
    let cli = match parsed(&[command, flag]) {
        Ok(cli) => cli,
        Err(error) => return Some(error.to_string()),
    };
    let (start, credentials) = match cli.command {
        Some(Subcommands::Run(args)) => (
            args.start.settings(&args.runtime).err(),
            args.credentials.settings(|_| None).err(),
        ),
        Some(Subcommands::Plan(args)) => (None, args.credentials.settings(|_| None).err()),
        _ => panic!("another command"),
    };
    start.or(credentials).map(told)
}

#[test]
fn command_line_passes_clap_checks() {
    command().debug_assert();
}

#[test]
fn lists_drop_blanks_and_empty_items() {
    let sources = |flag: &str| {
        let args = plan(&[flag]);
        args.cluster
            .sources(&args.runtime, &args.cluster_credentials)
            .cluster
    };
    let kinds = |flag: &str| sources(flag).workloads;
    assert_eq!(
        kinds("--workloads= pods ,, jobs,pods "),
        [WorkloadKind::Pods, WorkloadKind::Jobs]
    );
    assert_eq!(kinds("--workloads=all").len(), WorkloadKind::ALL.len());
    assert_eq!(kinds("--limit=1"), [WorkloadKind::Deployments]);
    let spaces = |flag: &str| sources(flag).namespaces;
    assert!(matches!(spaces("--namespaces=a, b ,"), Namespaces::These(n) if n == ["a", "b"]));
    assert!(matches!(spaces("--namespaces=a,*"), Namespaces::All));
    assert!(matches!(spaces("--limit=1"), Namespaces::Default));
}

#[test]
fn named_images_file_must_exist() {
    let sources = |cluster: ClusterArgs| {
        let other = plan(&[]);
        cluster.sources(&other.runtime, &other.cluster_credentials)
    };
    for (arguments, given) in [
        (&[][..], false),
        (&["--images-file", "/config/images"], true),
    ] {
        let all = [&["run"], arguments].concat();
        let Some(Subcommands::Run(run)) = parsed(&all).expect("valid").command else {
            panic!("another command");
        };
        let alone = parsed(arguments).expect("valid").run;
        for cluster in [plan(arguments).cluster, run.cluster, alone.cluster] {
            let sources = sources(cluster);
            assert_eq!(sources.images_file, Path::new("/config/images"));
            assert_eq!(sources.images_file_given, given);
        }
    }
}

#[test]
fn switches_need_no_value() {
    let refresh = |arguments: &[&str]| plan(arguments).store.settings().refresh;
    assert!(!refresh(&[]));
    assert!(refresh(&["--refresh"]));
    assert!(refresh(&["--refresh=true"]));
    assert!(!refresh(&["--refresh=false"]));
}

#[test]
fn budget_is_bytes_or_percent() {
    let budget = |text: &str| plan(&["--disk-budget", text]).store.settings().disk_budget;
    assert_eq!(budget("20Gi"), Some(DiskLimit::Bytes(20 << 30)));
    assert_eq!(budget("30%"), Some(DiskLimit::Percent(30)));
    assert_eq!(budget("100%"), Some(DiskLimit::Percent(100)));
}

#[test]
fn high_mark_is_a_percentage() {
    let command = DiskMarkArgs::augment_args(Command::new("agent"));
    let command = each(command, |arg| arg.env(None::<&'static str>));
    let parsed = |arguments: &[&str]| {
        let arguments = ["agent"].iter().chain(arguments);
        let matches = command.clone().try_get_matches_from(arguments);
        let args = matches.and_then(|matches| DiskMarkArgs::from_arg_matches(&matches));
        args.map(|args| args.high_percent())
    };
    assert_eq!(parsed(&[]).ok(), Some(80));
    assert_eq!(parsed(&["--disk-high-percent=100"]).ok(), Some(100));
    for wrong in ["9", "101", "80%", "x", "-1"] {
        let error = parsed(&[&format!("--disk-high-percent={wrong}")]).err();
        let text = error.map(|error| error.to_string()).unwrap_or_default();
        let name = "--disk-high-percent (DISK_HIGH_PERCENT)";
        assert!(text.contains(name) && text.contains("10 to 100"), "{text}");
    }
}

#[test]
fn endpoints_are_sockets_or_directories() {
    let endpoint = |text: &str| {
        plan(&["--runtime-endpoint", text])
            .runtime
            .settings()
            .endpoint
    };
    assert_eq!(
        endpoint("/run/x.sock"),
        Some(Endpoint::Unix("/run/x.sock".into()))
    );
    assert_eq!(endpoint("oci:x"), Some(Endpoint::Oci("x".into())));
}

#[test]
fn bad_value_names_its_setting() {
    for (flag, value) in [
        ("namespaces", "Kube"),
        ("namespaces", "a/b"),
        ("namespaces", "*,Kube"),
        ("workloads", "deployment"),
        ("workloads", "all,deployment"),
        ("images-file", ""),
        ("ignore", "/x"),
        ("only", "a b"),
        ("limit", "0"),
        ("limit", "-1"),
        ("limit", "+1"),
        ("limit", "x"),
        ("disk-budget", "20GB"),
        ("disk-budget", "0"),
        ("disk-budget", "0%"),
        ("disk-budget", "101%"),
        ("disk-budget", "1.5%"),
        ("disk-budget", "%"),
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
        let command = if flag == "sizes" { "plan" } else { "run" };
        let error = error(command, &format!("--{flag}={value}"));
        let text = error.unwrap_or_else(|| panic!("--{flag} {value:?} is accepted"));
        // Of a list, the item that is wrong is named.
        let item = value.rsplit(',').next().unwrap_or_default().trim();
        let begin = format!(
            "error: invalid value {item:?} for --{flag} ({})",
            variables(flag)
        );
        assert!(
            text.starts_with(&begin) && text.contains("expected"),
            "{text}"
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
            let text = error("run", &format!("--{flag}={value}")).unwrap_or_default();
            assert!(
                text.contains(&format!("--{flag} (")) && text.contains("expected"),
                "{text}"
            );
        }
    }
    assert!(error("run", "--namespaces= , ").is_some());
}

#[test]
fn errors_have_no_control_characters() {
    let text = error("run", "--limit=\u{1b}[31m\n").unwrap_or_default();
    assert!(
        !text.contains('\u{1b}') && text.trim_end().lines().count() == 1,
        "{text:?}"
    );
}
