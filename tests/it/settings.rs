//! Every row of the settings table on the real command line: flag, variable, precedence, bad value, help, docs/settings.md.

use std::fs;
use std::path::{Path, PathBuf};

use harpoon::cli::{Setting, settings};
use serde_json::Value;

use crate::bed::{self, Harpoon, Output};

/// A program that finds an images file with these images, and needs no cluster.
fn harpoon(command: &str, images: &[&str]) -> Harpoon {
    let harpoon = Harpoon::new([command, "--output", "json"]);
    fs::write(harpoon.home().join("images"), images.join("\n")).expect("images file");
    let file = harpoon.home().join("images");
    harpoon.env("IMAGES_FILE", file)
}

/// `image action reason` of each image of a plan.
fn planned(output: &Output) -> Vec<String> {
    let json = output.json();
    let images = json["images"].as_array().expect("images");
    let line = |i: &Value| {
        let text = |key: &str| i[key].as_str().unwrap_or("-").to_owned();
        format!("{} {} {}", text("image"), text("action"), text("reason"))
    };
    images.iter().map(line).collect()
}

/// A bad value for each setting, and a word of what is accepted instead.
const BAD: &[(&str, &str, &str)] = &[
    (
        "namespaces",
        "Kube_System",
        "namespaces separated by commas",
    ),
    ("workloads", "deployment", "deployments, statefulsets"),
    ("ignore", "/nginx", "image references"),
    ("only", "a b", "image references"),
    ("limit", "many", "whole number"),
    ("include-idle", "yes", "true or false"),
    ("watch-cache", "1", "true or false"),
    ("startup-taints", "booting=true:NoSchedule", "taint keys"),
    ("disk-budget", "20GB", "20Gi"),
    ("disk-high-percent", "5", "10 to 100"),
    ("refresh", "perhaps", "true or false"),
    ("registry-concurrency", "1001", "1 to 1000"),
    ("stagger", "5", "90s"),
    ("stagger-min-age", "old", "90s"),
    ("node-name", "Node_1", "node's name"),
    ("runtime-endpoint", "tcp://127.0.0.1:1", "unix:///PATH"),
    ("platform", "amd64", "OS/ARCHITECTURE"),
    ("registry-config", "/nowhere/config.json", "does not exist"),
    (
        "credential-provider-config",
        "/nowhere/config.yaml",
        "--credential-provider-bin-dir",
    ),
    (
        "credential-provider-bin-dir",
        "/nowhere",
        "--credential-provider-config",
    ),
    ("pull-secrets", "maybe", "true or false"),
    ("private-registry", "quay.io", "PRIVATE_REGISTRY_AUTH"),
    ("concurrency", "0", "1 to 1000"),
    ("pull-timeout", "15", "90s"),
    ("deadline", "-1s", "90s"),
    ("retries", "-1", "0 to 100"),
    ("seal", "often", "auto, never or always"),
    ("fill", "slow", "auto, runtime or fast"),
    ("seal-ttl", "0s", "90s"),
    ("fail-on", "sometimes", "any, all or never"),
    ("resync", "0s", "above zero"),
    ("metrics-address", "localhost", "0.0.0.0:9464"),
    ("leader-election-lease", "My_Lease", "name of a Lease"),
    ("output", "yaml", "text or json"),
    ("log-format", "xml", "text or json"),
    ("log-level", "loud", "debug"),
];

/// A command that accepts the setting, with what it requires.
fn command_of(flag: &str) -> &'static [&'static str] {
    let setting = settings().into_iter().find(|setting| setting.flag == flag);
    let accepts = |command: &str| {
        setting
            .as_ref()
            .is_some_and(|s| s.commands.iter().any(|c| c == command))
    };
    match () {
        () if accepts("run") => &["run"],
        () if accepts("agent") => &["agent", "--node-name=n"],
        () => &["controller"],
    }
}

#[test]
fn bad_values_are_refused_everywhere() {
    for (flag, value, accepted) in BAD {
        let variable = flag.to_uppercase().replace('-', "_");
        let command = command_of(flag);
        let by_flag = Harpoon::new(command.iter().copied()).arg(format!("--{flag}={value}"));
        let by_variable = Harpoon::new(command.iter().copied()).env(&variable, *value);
        for harpoon in [by_flag, by_variable] {
            let output = harpoon.run().expect(2);
            let begin = format!("error: invalid value {value:?} for --{flag} ({variable}");
            assert!(output.stderr.starts_with(&begin), "{output}");
            assert!(output.stderr.contains(accepted), "{output}");
            assert_eq!(output.stdout, "");
        }
    }
    for (harpoon, value) in [
        (Harpoon::new(["plan", "--sizes=all"]), "all"),
        (Harpoon::new(["plan"]).env("SIZES", "some"), "some"),
    ] {
        let output = harpoon.run().expect(2);
        let error =
            format!("error: invalid value {value:?} for --sizes (SIZES): expected true or false");
        assert!(output.stderr.starts_with(&error), "{output}");
    }
    let output = Harpoon::new(["run", "--stagger=5m"]).run().expect(2);
    assert!(
        output.stderr.contains("--node-name (NODE_NAME)"),
        "{output}"
    );

    let told: Vec<_> = BAD.iter().map(|(flag, ..)| *flag).collect();
    // The API server validates selectors: `kubernetes::workloads` has an invalid one.
    let elsewhere = ["images-file", "sizes", "selector"];
    for setting in settings() {
        let flag = &*setting.flag;
        assert!(
            told.contains(&flag) || elsewhere.contains(&flag),
            "no bad value for --{flag}"
        );
    }
}

#[test]
fn flag_precedes_its_variable() {
    let images = ["a", "b", "c"];
    let plan = |variable: &str, flag: Option<&str>| {
        let harpoon = harpoon("plan", &images).env("LIMIT", variable);
        let harpoon = harpoon.args(flag.map(|f| format!("--limit={f}")));
        let output = harpoon.run().expect(0);
        planned(&output)
            .iter()
            .filter(|l| l.contains(" pull "))
            .count()
    };
    assert_eq!(plan("1", None), 1);
    assert_eq!(plan("1", Some("2")), 2);
    assert_eq!(plan("", None), 3);
}

#[test]
fn selection_settings_take_effect() {
    let images = [
        "quay.io/a/one",
        "quay.io/b/two",
        "ghcr.io/three",
        "UPPER/case",
    ];
    for (settings, expected) in [
        (
            vec![("IGNORE", "quay.io/a, ghcr.io")],
            vec![
                "UPPER/case skip invalid_reference",
                "ghcr.io/three skip ignored",
                "quay.io/a/one skip ignored",
                "quay.io/b/two pull -",
            ],
        ),
        (
            vec![("ONLY", "quay.io"), ("LIMIT", "1")],
            vec![
                "UPPER/case skip invalid_reference",
                "ghcr.io/three skip not_only",
                "quay.io/a/one pull -",
                "quay.io/b/two skip limit",
            ],
        ),
    ] {
        let output = harpoon("plan", &images).envs(settings).run().expect(0);
        assert_eq!(planned(&output), expected, "{output}");
    }
}

#[test]
fn output_node_and_log_settings_apply() {
    let harpoon = harpoon("plan", &["a"]).env("NODE_NAME", "node-1");
    let output = harpoon.run().expect(0);
    assert_eq!(output.json()["node"], "node-1");
    assert!(
        output.stderr.contains(" INFO ") && !output.stderr.contains('\u{1b}'),
        "{output}"
    );

    let quiet = Harpoon::new(["plan", "--log-level", "error"])
        .env("IMAGES_FILE", harpoon.home().join("images"));
    let output = quiet.run().expect(0);
    assert_eq!(output.stderr, "");
    assert!(output.stdout.starts_with("IMAGE "), "{output}");

    let output = harpoon.arg("--log-format=json").run().expect(0);
    for line in output.stderr.lines() {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        assert!(
            line["level"].is_string() && line["message"].is_string(),
            "{line}"
        );
    }
}

#[test]
fn pull_settings_take_effect() {
    // No process listens there: every attempt fails immediately, so that the attempts can be counted.
    let image = "127.0.0.1:1/none:1";
    let pull = |arguments: &[&str]| {
        let harpoon = Harpoon::new(["pull", image, "--output=json"])
            .env("RUNTIME_ENDPOINT", bed::containerd().endpoint());
        harpoon.args(arguments.iter().copied()).run()
    };
    let output = pull(&["--retries=1"]).expect(1);
    assert_eq!(output.json()["images"][0]["attempts"], 2, "{output}");
    assert_eq!(output.json()["images"][0]["reason"], "unavailable");
    pull(&["--retries=0", "--fail-on=never"]).expect(0);
    pull(&["--retries=0", "--fail-on=all"]).expect(1);
    let output = pull(&["--retries=100", "--deadline=3s"]).expect(1);
    assert_eq!(output.json()["images"][0]["reason"], "timeout", "{output}");
}

#[test]
fn help_names_settings_and_variables() {
    let help = |arguments: &[&str]| {
        Harpoon::new(arguments.iter().copied())
            .run()
            .expect(0)
            .stdout
    };
    let help = help(&["--help"])
        + &help(&["plan", "--help"])
        + &help(&["agent", "--help"])
        + &help(&["controller", "--help"]);
    let words: Vec<_> = help.split_whitespace().collect();
    for setting in settings() {
        assert!(
            words
                .iter()
                .any(|w| w.split('[').next() == Some(&format!("--{}", setting.flag))),
            "{help}"
        );
        for variable in setting.variables {
            assert!(
                words
                    .iter()
                    .any(|w| w.trim_matches(['[', ']', ',']) == variable),
                "{variable}: {help}"
            );
        }
    }
    for heading in ["Images:", "Selection:", "Runtime:", "Pulling:", "Output:"] {
        assert!(help.contains(heading), "{help}");
    }
}

/// The page that lists every setting. `make generate` writes its tables.
const PAGE: &str = "docs/settings.md";

fn page() -> (PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{PAGE}: {e}"));
    (path, text)
}

fn row(setting: &Setting) -> String {
    let (meaning, default) = match setting.help.split_once(" (default: ") {
        Some((meaning, default)) => (meaning, default.trim_end_matches(')').to_owned()),
        None => {
            let default = setting.default.as_ref();
            let default = default.map(|default| format!("`{default}`"));
            (setting.help.as_str(), default.unwrap_or_default())
        }
    };
    let variables = setting.variables.iter();
    let variables: Vec<_> = variables.map(|name| format!("`{name}`")).collect();
    let cells = [
        format!("`--{}`", setting.flag),
        variables.join(", then "),
        default,
        meaning.to_owned(),
        setting.commands.join(", "),
    ];
    let row = cells.map(|cell| cell.replace('|', "\\|")).join(" | ");
    format!("| {row} |\n").replace("|  |", "| |")
}

/// A table for each heading of the help, in the help's order.
fn tables() -> String {
    let head =
        "| flag | variable | default | meaning | commands |\n| --- | --- | --- | --- | --- |\n";
    let mut text = String::new();
    let mut heading = String::new();
    for setting in settings() {
        if setting.heading != heading {
            let end = if heading.is_empty() { "" } else { "\n" };
            text.push_str(&format!("{end}### {}\n\n{head}", setting.heading));
            heading.clone_from(&setting.heading);
        }
        text.push_str(&row(&setting));
    }
    text + "\n"
}

#[test]
fn generated_settings_page_is_current() {
    let (path, text) = page();
    let (begin, end) = ("<!-- settings -->\n\n", "<!-- end of settings -->");
    let (before, rest) = text.split_once(begin).expect(begin);
    let (committed, after) = rest.split_once(end).expect(end);
    let expected = tables();
    if std::env::var_os("HARPOON_GENERATE").is_some() {
        fs::write(path, [before, begin, &expected, end, after].concat()).expect(PAGE);
        return;
    }
    assert!(
        committed == expected,
        "{PAGE} differs from the settings of the program: run `make generate`"
    );
}

#[test]
fn settings_page_has_every_setting() {
    let (_, text) = page();
    for setting in settings() {
        let row = text
            .lines()
            .find(|l| l.starts_with(&format!("| `--{}`", setting.flag)));
        let row = row.unwrap_or_else(|| panic!("{PAGE} has no row for --{}", setting.flag));
        for variable in setting.variables {
            assert!(row.contains(&format!("`{variable}`")), "{row}");
        }
        if let Some(default) = setting.default {
            assert!(
                row.contains(&format!("`{default}`")),
                "{row} has not the default {default}"
            );
        }
    }
    let known: Vec<_> = settings().into_iter().map(|s| s.flag).collect();
    for row in text.lines().filter_map(|l| l.strip_prefix("| `--")) {
        let flag = row.split('`').next().unwrap_or_default();
        assert!(
            known.iter().any(|known| known == flag),
            "{PAGE} has a row for --{flag}, which does not exist"
        );
    }
    assert!(text.contains("`PRIVATE_REGISTRY_AUTH`"));
}

#[test]
fn prefix_with_scheme_is_refused() {
    for (variable, value) in [
        ("IGNORE", "https://quay.io"),
        ("ONLY", "quay.io,https://quay.io"),
        ("IGNORE", "quay.io/Team"),
    ] {
        let output = harpoon("plan", &["quay.io/a:1"])
            .env(variable, value)
            .run()
            .expect(2);
        assert!(output.stderr.contains("without a scheme"), "{output}");
    }
    let output = harpoon("plan", &["quay.io/a:1", "ghcr.io/a:1"])
        .env("IGNORE", "Quay.io")
        .run()
        .expect(0);
    assert_eq!(
        planned(&output),
        ["ghcr.io/a:1 pull -", "quay.io/a:1 skip ignored"]
    );
}

#[test]
fn empty_list_flag_is_refused() {
    for flag in ["--namespaces=", "--only=", "--ignore= "] {
        let output = harpoon("plan", &["a"]).arg(flag).run().expect(2);
        let name = flag.split('=').next().unwrap_or_default();
        assert!(output.stderr.contains(name), "{output}");
    }
    // An empty variable counts as not set.
    harpoon("plan", &["a"]).env("IGNORE", "").run().expect(0);
}

#[test]
fn empty_variables_are_not_set() {
    let empty = settings().into_iter().flat_map(|s| s.variables);
    let empty: Vec<_> = empty.chain(["PRIVATE_REGISTRY_AUTH".to_owned()]).collect();
    // No process listens there.
    let image = "127.0.0.1:1/none:1";
    let flags = ["--retries=0", "--runtime-endpoint=oci:store"];
    for (arguments, code) in [
        (vec!["plan", "--images-file=images"], 0),
        (vec!["run", "--images-file=images", flags[0], flags[1]], 1),
        (vec!["pull", image, flags[0], flags[1]], 1),
    ] {
        let harpoon = Harpoon::new(arguments).envs(empty.iter().map(|name| (name, "")));
        fs::write(harpoon.home().join("images"), image).expect("images file");
        let output = harpoon.run().expect(code);
        assert!(!output.stderr.contains("invalid value"), "{output}");
    }
}

#[test]
fn cri_tools_variable_is_the_fallback() {
    let second = |first: &str| {
        let harpoon = harpoon("plan", &["a"]).env("CONTAINER_RUNTIME_ENDPOINT", "tcp://x:1");
        harpoon.env("RUNTIME_ENDPOINT", first).run()
    };
    let output = second("").expect(2);
    let error = "error: invalid value \"tcp://x:1\" for --runtime-endpoint (RUNTIME_ENDPOINT, CONTAINER_RUNTIME_ENDPOINT): ";
    assert!(output.stderr.starts_with(error), "{output}");
    second("oci:store").expect(0);
}

#[test]
fn commands_ignore_variables_of_others() {
    // `CONCURRENCY` is no setting of `plan`, and `completions` has none at all.
    let bad = [("CONCURRENCY", "0"), ("STAGGER", "5")];
    harpoon("plan", &["a"]).envs(bad).run().expect(0);
    let completions = Harpoon::new(["completions", "bash"]);
    completions.envs([("LIMIT", "x")]).run().expect(0);
    let pause = Harpoon::new(["pause", "--help"]);
    pause.envs([("LIMIT", "x")]).run().expect(0);
    for arguments in [&[][..], &["run"], &["plan"]] {
        let harpoon = Harpoon::new(arguments.iter().copied()).env("LIMIT", "x");
        harpoon.run().expect(2);
    }
}

#[test]
fn help_shows_no_values_of_variables() {
    let help = |limit: &str| {
        let harpoon = Harpoon::new(["run", "--help"]).env("LIMIT", limit);
        harpoon
            .env("PRIVATE_REGISTRY", "user:s3cr3t@r.example")
            .run()
            .expect(0)
            .stdout
    };
    assert!(!help("7").contains("s3cr3t"));
    // The error names an empty variable too.
    assert_eq!(help(""), help("7"));
}

#[test]
fn missing_images_file_is_refused() {
    let missing = "/nowhere/images";
    for command in ["plan", "run"] {
        let by_flag = Harpoon::new([command, "--images-file", missing]);
        let by_variable = Harpoon::new([command]).env("IMAGES_FILE", missing);
        for harpoon in [by_flag, by_variable] {
            let output = harpoon.env("RUNTIME_ENDPOINT", "oci:store").run().expect(2);
            for part in ["--images-file (IMAGES_FILE)", missing, "does not exist"] {
                assert!(output.stderr.contains(part), "{part}: {output}");
            }
            assert_eq!(output.stdout, "", "{output}");
        }
    }
}
