//! The output of a run: JSON, the table, the termination message, colours.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::bed::faulty::{Fault, Proxy};
use crate::bed::{self, Harpoon, Terminal};

/// The keys of an object, in order.
fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect()
}

fn sorted<const N: usize>(mut names: [&'static str; N]) -> Vec<&'static str> {
    names.sort_unstable();
    names.to_vec()
}

const IMAGE_KEYS: [&str; 11] = [
    "image",
    "outcome",
    "reason",
    "message",
    "pods",
    "workloads",
    "attempts",
    "seconds",
    "bytes",
    "digest",
    "credential",
];

#[test]
fn pull_and_run_json_matches_design() {
    let pushed = bed::registry().push(&bed::unique("json/app"));
    let pull = Harpoon::new(["pull", "--output=json", &pushed.reference, "Bad/Name"])
        .env("RUNTIME_ENDPOINT", bed::containerd().endpoint())
        .env("NODE_NAME", "node-1");
    let output = pull.run().expect(1);
    let json = output.json();
    assert_eq!(output.stdout.lines().count(), 1, "{output}");
    assert_eq!(
        keys(&json),
        sorted(["runtime", "node", "images", "summary"])
    );
    assert_eq!(
        keys(&json["runtime"]),
        sorted(["name", "version", "endpoint"])
    );
    assert_eq!(json["runtime"]["name"], "containerd");
    assert_eq!(json["runtime"]["endpoint"], bed::containerd().endpoint());
    assert_eq!(json["node"], "node-1");
    let [good, bad] = &json["images"].as_array().expect("images")[..] else {
        panic!("{output}");
    };
    assert_eq!(keys(good), sorted(IMAGE_KEYS));
    assert_eq!(keys(bad), sorted(IMAGE_KEYS));
    for (key, value) in [
        ("image", json!(pushed.reference)),
        ("outcome", json!("pulled")),
        ("reason", Value::Null),
        ("message", Value::Null),
        ("pods", Value::Null),
        ("workloads", json!([])),
        ("attempts", json!(1)),
        ("bytes", good["bytes"].clone()),
        ("digest", json!(pushed.digest)),
        ("credential", Value::Null),
    ] {
        assert_eq!(good[key], value, "{key}: {output}");
    }
    assert!(
        good["seconds"].is_f64() && good["bytes"].as_u64().is_some_and(|b| b > 0),
        "{output}"
    );
    assert_eq!(bad["outcome"], "failed");
    assert_eq!(bad["reason"], "invalid_reference");
    assert!(
        bad["message"]
            .as_str()
            .is_some_and(|m| m.contains("lower case")),
        "{output}"
    );
    assert_eq!(
        (&bad["attempts"], &bad["seconds"], &bad["digest"]),
        (&json!(0), &Value::Null, &Value::Null)
    );
    assert_eq!(
        keys(&json["summary"]),
        sorted(["pulled", "present", "failed", "skipped", "seconds"])
    );
    assert_eq!(json["summary"]["pulled"], 1);
    assert_eq!(json["summary"]["failed"], 1);

    let run = Harpoon::new(["run", "--output=json"])
        .env("RUNTIME_ENDPOINT", bed::containerd().endpoint());
    fs::write(
        run.home().join("list"),
        format!("{}\nquay.io/x\n", pushed.reference),
    )
    .expect("list");
    let file = run.home().join("list");
    let output = run
        .env("IMAGES_FILE", file)
        .env("IGNORE", "quay.io")
        .run()
        .expect(0);
    let json = output.json();
    assert_eq!(json["images"][0]["outcome"], "present", "{output}");
    assert_eq!(json["images"][0]["digest"], pushed.digest.as_str());
    assert_eq!(json["images"][1]["outcome"], "skipped");
    assert_eq!(json["images"][1]["reason"], "ignored");
    assert_eq!(json["node"], Value::Null);
    assert_eq!(json["summary"]["skipped"], 1);
}

#[test]
fn plan_json_matches_design() {
    let pushed = bed::registry().push(&bed::unique("planned/app"));
    let containerd = bed::containerd();
    Harpoon::new(["pull", &pushed.reference])
        .env("RUNTIME_ENDPOINT", containerd.endpoint())
        .run()
        .expect(0);
    // In a pod no socket is at a well-known place.
    let plan = Harpoon::new(["plan", "--output=json"]).pod();
    fs::write(
        plan.home().join("list"),
        format!("{}\nquay.io/x\nquay.io/x:latest\n", pushed.reference),
    )
    .expect("list");
    let file = plan.home().join("list");
    let plan = plan.env("IMAGES_FILE", file);
    let actions = |json: &Value| {
        let images = json["images"].as_array().expect("images").clone();
        images
            .iter()
            .map(|i| i["action"].as_str().expect("action").to_owned())
            .collect::<Vec<_>>()
    };
    let output = plan.run().expect(0);
    let json = output.json();
    assert_eq!(
        keys(&json),
        sorted(["runtime", "node", "images", "summary"])
    );
    assert_eq!(json["runtime"], Value::Null);
    assert_eq!(actions(&json), ["pull", "pull"], "{output}");
    let image_keys = sorted(["image", "action", "reason", "message", "pods", "workloads"]);
    assert_eq!(keys(&json["images"][0]), image_keys);
    assert_eq!(json["summary"], json!({"pull": 2, "present": 0, "skip": 0}));

    let socket = "/run/containerd/containerd.sock";
    let output = plan.bind(containerd.socket(), socket).run().expect(0);
    let json = output.json();
    assert_eq!(
        json["runtime"]["endpoint"],
        format!("unix://{socket}"),
        "{output}"
    );
    assert_eq!(actions(&json), ["present", "pull"], "{output}");
    assert_eq!(json["summary"], json!({"pull": 1, "present": 1, "skip": 0}));
}

#[test]
fn container_gets_termination_message() {
    let pushed = bed::registry().push(&bed::unique("term/app"));
    let missing = bed::registry().reference(&bed::unique("term/missing"));
    // The file is the kubelet's: harpoon finds it, and the test reads it.
    let log = bed::directory();
    let log = log.path().join("log");
    fs::write(&log, "x".repeat(9000)).expect("log");
    let in_pod = |arguments: &[&str]| {
        Harpoon::new(arguments.iter().copied())
            .pod()
            .bind(
                bed::containerd().socket(),
                "/run/containerd/containerd.sock",
            )
            .bind(&log, "/dev/termination-log")
    };
    in_pod(&["pull", &pushed.reference, &missing])
        .run()
        .expect(1);
    let message = fs::read_to_string(&log).expect("log");
    assert!(message.starts_with("harpoon: pulled 1 ("), "{message}");
    assert!(
        message.contains(&format!("\n{missing}: not_found: ")),
        "{message}"
    );

    // Hundreds of failures are cut to what the kubelet reads.
    let many: Vec<String> = (0..300).map(|n| format!("Bad/Image-{n}")).collect();
    let arguments: Vec<&str> = ["pull"]
        .into_iter()
        .chain(many.iter().map(String::as_str))
        .collect();
    in_pod(&arguments).run().expect(1);
    let message = fs::read_to_string(&log).expect("log");
    assert!(
        message.len() <= 4096 && message.ends_with(" more failed"),
        "{message}"
    );
    assert!(
        message.starts_with("harpoon: pulled 0, present 0, failed 300"),
        "{message}"
    );

    // A run that ends earlier reports the reason.
    in_pod(&["run", "--images-file=/etc"]).run().expect(1);
    let message = fs::read_to_string(&log).expect("log");
    assert!(
        message.starts_with("error: ") && message.contains("/etc"),
        "{message}"
    );
}

#[test]
fn termination_log_is_never_created() {
    let existed = fs::exists("/dev/termination-log").expect("stat");
    Harpoon::new(["pull", "Bad/Name"])
        .env("RUNTIME_ENDPOINT", bed::containerd().endpoint())
        .run()
        .expect(1);
    assert_eq!(fs::exists("/dev/termination-log").expect("stat"), existed);
}

#[test]
fn text_report_is_table_with_summary() {
    let pushed = bed::registry().push(&bed::unique("text/app"));
    let pull = Harpoon::new(["pull", &pushed.reference, "evil\u{1b}[31m\nname"])
        .env("RUNTIME_ENDPOINT", bed::containerd().endpoint());
    let output = pull.run().expect(1);
    let lines: Vec<_> = output.stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{output}");
    assert!(
        lines[0].starts_with("IMAGE ") && lines[0].ends_with("WHY"),
        "{output}"
    );
    let row: Vec<_> = lines[1].split_whitespace().collect();
    assert_eq!(
        row[..3],
        [pushed.reference.as_str(), "pulled", "-"],
        "{output}"
    );
    // Terminal commands in a name are escaped, not executed.
    assert!(
        lines[2].contains("evil\\u{1b}[31m\\nname") && lines[2].contains("invalid_reference"),
        "{output}"
    );
    assert!(
        lines[3].starts_with("harpoon: pulled 1 (") && lines[3].contains("failed 1, skipped 0 in "),
        "{output}"
    );
    assert!(
        !output.stdout.contains('\u{1b}') && !output.stderr.contains('\u{1b}'),
        "{output}"
    );
}

/// Returns whether a text contains nothing that controls a terminal, reorders or hides text, or fakes a line; newlines are
/// allowed.
fn is_harmless(text: &str) -> bool {
    !text.chars().any(|c| {
        c.is_control() && c != '\n'
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    })
}

/// Users with access to pods choose names; registries write error texts.
#[test]
fn foreign_text_cannot_control_terminal() {
    let evil = "\u{1b}]0;pwned\u{7}\u{1b}[2J\u{9b}31m\u{90}q\u{9c}\u{202e}\u{2066}\u{200b}\u{2028}\r\nharpoon: pulled 99\u{8}\u{7f}";
    let name = bed::unique("evil");
    let body = json!({"errors": [{"code": "DENIED", "message": evil}]}).to_string();
    let denied = Fault::Answer {
        status: 403,
        headers: vec![("content-type", "application/json".into())],
        body,
    };
    let proxy = Proxy::start(bed::registry().url(), move |_| denied.clone());
    let image = proxy.reference(&name);
    let named = format!("evil{evil}name");
    for endpoint in [
        "oci:store",
        bed::containerd().endpoint(),
        bed::docker().endpoint(),
    ] {
        let log = bed::directory();
        let log = log.path().join("log");
        fs::write(&log, "").expect("log");
        // An argument cannot hold some of it, a file can.
        for format in ["text", "json"] {
            let run =
                Harpoon::new(["run", "--fail-on=any", "--retries=0", "--log-level=debug"]).pod();
            fs::write(
                run.home().join("list"),
                format!("{image}\n{}\n", named.replace('\n', "")),
            )
            .expect("list");
            let run = run
                .args([
                    "--images-file=list",
                    "--runtime-endpoint",
                    endpoint,
                    "--log-format",
                    format,
                ])
                .bind(&log, "/dev/termination-log");
            let output = run.run().expect(1);
            let message = fs::read_to_string(&log).expect("log");
            for (what, text) in [
                ("report", &output.stdout),
                ("log", &output.stderr),
                ("message", &message),
            ] {
                assert!(is_harmless(text), "{endpoint} {format} {what}: {text:?}");
                let feigned = text
                    .lines()
                    .any(|line| line.starts_with("harpoon: pulled 99"));
                assert!(!feigned, "{endpoint} {format} {what}: {text:?}");
            }
            assert!(message.contains("failed 2"), "{message}");
            assert!(output.stdout.contains("\\u{1b}]0;pwned"), "{output}");
        }
    }
    // On a terminal the bars show names too; what they draw with is ours, so only the name's own commands count.
    let run = Harpoon::new([
        "pull",
        "--fail-on=never",
        "--retries=0",
        "--runtime-endpoint=oci:store",
    ])
    .args([image, named])
    .terminal(Terminal::Stderr)
    .run()
    .expect(0);
    for command in ["\u{1b}]0;", "\u{1b}[2J", "\u{9b}", "\u{202e}", "\u{7}"] {
        assert!(
            !run.stderr.contains(command),
            "{command:?}: {:?}",
            run.stderr
        );
    }
}

#[test]
fn no_color_and_dumb_disable_colors() {
    let plan = |variables: &[(&str, &str)]| {
        let plan = Harpoon::new(["plan"])
            .terminal(Terminal::Stderr)
            .envs(variables.iter().copied());
        fs::write(plan.home().join("list"), "a\n").expect("list");
        let file = plan.home().join("list");
        plan.env("IMAGES_FILE", file).run().expect(0).stderr
    };
    assert!(plan(&[]).contains("\u{1b}["));
    assert!(!plan(&[("NO_COLOR", "1")]).contains("\u{1b}["));
    assert!(!plan(&[("TERM", "dumb")]).contains("\u{1b}["));
}

#[test]
fn usage_error_writes_termination_message() {
    let log = bed::directory();
    let log = log.path().join("log");
    for arguments in [
        &["run", "--conccurrency=4"][..],
        &["rum"],
        &["pull"],
        &["pause", "--now"],
    ] {
        fs::write(&log, "").expect("log");
        Harpoon::new(arguments.iter().copied())
            .pod()
            .bind(&log, "/dev/termination-log")
            .run()
            .expect(2);
        let message = fs::read_to_string(&log).expect("log");
        assert!(
            message.starts_with("error: ") && !message.contains('\u{1b}'),
            "{arguments:?}: {message:?}"
        );
    }
    // Only the help was requested.
    fs::write(&log, "").expect("log");
    let help = Harpoon::new(["--help"]).pod();
    help.bind(&log, "/dev/termination-log").run().expect(0);
    assert_eq!(fs::read_to_string(&log).expect("log"), "");
}

#[test]
fn unwritable_report_fails_only_plan() {
    let pushed = bed::registry().push(&bed::unique("full/app"));
    let log = bed::directory();
    let log = log.path().join("log");
    fs::write(&log, "").expect("log");
    let pull = |arguments: &[&str]| {
        Harpoon::new(["pull"])
            .args(arguments.iter().copied())
            .pod()
            .bind(
                bed::containerd().socket(),
                "/run/containerd/containerd.sock",
            )
            .bind(&log, "/dev/termination-log")
            .under(["sh", "-c", "exec \"$@\" >/dev/full", "sh"])
            .run()
    };
    for format in ["--output=text", "--output=json"] {
        let output = pull(&[format, &pushed.reference]).expect(0);
        let warned = |line: &str| line.contains("WARN") && line.contains("report");
        assert!(output.stderr.lines().any(warned), "{output}");
        let message = fs::read_to_string(&log).expect("log");
        assert!(message.starts_with("harpoon: pulled "), "{message}");
    }
    // What failed fails it as ever; and a plan is for nothing but its output.
    pull(&["Bad/Name"]).expect(1);
    let plan = Harpoon::new(["plan"]);
    fs::write(plan.home().join("list"), "a\n").expect("list");
    let plan = plan.env("IMAGES_FILE", "list");
    let plan = plan.under(["sh", "-c", "exec \"$@\" >/dev/full", "sh"]);
    plan.run().expect(1);
}

#[test]
fn interrupted_planning_leaves_a_report() {
    let log = bed::directory();
    let log = log.path().join("log");
    fs::write(&log, "").expect("log");
    // A registry that says nothing while it is asked for sizes.
    let silent = Proxy::start(bed::registry().url(), |_| Fault::Stall);
    let image = silent.reference(&bed::unique("slow/app"));
    for (format, signal, code) in [
        ("json", Signal::TERM, 143),
        ("text", Signal::INT, 130),
        ("json", Signal::INT, 130),
    ] {
        let asked = silent.count(|_| true);
        let running = Harpoon::new(["pull", &image, "Bad/Name", "--disk-budget=1Gi"])
            .args(["--runtime-endpoint=oci:store", "--output", format])
            .pod()
            .bind(&log, "/dev/termination-log")
            .start();
        bed::eventually("it asks", Duration::from_secs(40), || {
            silent.count(|_| true) > asked
        });
        running.signal(signal);
        let output = running.wait().expect(code);
        if format == "text" {
            assert!(output.stdout.contains("failed 2, skipped 0"), "{output}");
        } else {
            let json = output.json();
            assert_eq!(json["images"].as_array().map(Vec::len), Some(2), "{output}");
            let row = &json["images"][0];
            assert_eq!(row["image"], image.as_str(), "{output}");
            assert_eq!(
                (&row["outcome"], &row["reason"]),
                (&json!("failed"), &json!("other"))
            );
            assert!(
                row["message"]
                    .as_str()
                    .is_some_and(|m| m.contains("interrupted")),
                "{output}"
            );
        }
        let message = fs::read_to_string(&log).expect("log");
        assert!(message.contains("failed 2, skipped 0"), "{message}");
        assert!(message.contains("interrupted"), "{message}");
    }
}

#[test]
fn interrupted_discovery_leaves_a_report() {
    let cluster = bed::kubernetes();
    for (format, signal, code) in [("json", Signal::TERM, 143), ("text", Signal::TERM, 143)] {
        let silent = Proxy::start_tls(cluster.server(), cluster.ca(), |_| Fault::Stall);
        let run = Harpoon::new(["run", "--node-name=node-1", "--runtime-endpoint=oci:store"])
            .args(["--output", format]);
        let file = run.home().join("kubeconfig");
        cluster.write_kubeconfig(&file, &silent.url(), cluster.token(), "default");
        let running = run.env("KUBECONFIG", file).start();
        bed::eventually("it asks", Duration::from_secs(40), || {
            silent.count(|_| true) > 0
        });
        running.signal(signal);
        let output = running.wait().expect(code);
        let why = "interrupted by SIGTERM before images were discovered";
        assert!(output.stderr.contains("error: "), "{output}");
        if format == "text" {
            assert!(output.stdout.contains(why), "{output}");
        } else {
            let json = output.json();
            assert_eq!(json["images"], json!([]), "{output}");
            assert_eq!(json["error"], why, "{output}");
            assert_eq!(json["node"], "node-1", "{output}");
            assert_eq!(
                keys(&json),
                sorted(["runtime", "node", "images", "summary", "error"])
            );
        }
    }
}
