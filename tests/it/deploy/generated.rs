//! Files of the repository that are rendered from the chart. `make generate` writes them.

use std::fs;
use std::path::Path;

use super::{committed, deploy, template, template_with, text_of};
use crate::bed::Harpoon;

mod reference;

/// The files of `deploy/`, and the values file of the chart's `ci/` that each is rendered with.
pub(super) const FILES: &[(&str, &str)] = &[
    ("daemonset-auto.yaml", "default"),
    ("daemonset-manual.yaml", "list"),
    ("kustomize/base/harpoon.yaml", "base"),
    ("continuous.yaml", "continuous"),
    (super::image_volumes::FILE, super::image_volumes::VARIANT),
];

/// The admission policy of continuous mode, which only API servers from Kubernetes 1.30 on have.
const POLICY: &str = "continuous-admission-policy.yaml";

/// The rights that a component of kustomize adds: the file, the values file, and the name of the role and its binding.
const ROLES: &[(&str, &str, &str)] = &[
    ("all-namespaces", "default", "harpoon-harpoon"),
    ("node-relevance", "default", "harpoon-harpoon-node"),
    ("pull-secrets", "pull-secrets", "harpoon-pull-secrets"),
];

const HEADER: &str = "# Rendered from deploy/chart by `make generate`. Do not edit.\n";

const README: &str = "chart/README.md";

#[track_caller]
fn check(file: &str, expected: &str) {
    if std::env::var_os("HARPOON_GENERATE").is_some() {
        fs::write(deploy(file), expected).unwrap();
        return;
    }
    assert!(
        committed(file) == expected,
        "deploy/{file} is not what deploy/chart renders: run `make generate`"
    );
}

fn objects(values: &str) -> String {
    let values = deploy(&format!("chart/ci/{values}-values.yaml"));
    text_of(template("harpoon", "harpoon", &values))
}

#[test]
fn rendered_files_match_the_chart() {
    for (file, values) in FILES {
        check(file, &format!("{HEADER}{}", objects(values)));
    }
    let values = deploy("chart/ci/continuous-values.yaml");
    let always = "--set=continuous.admissionPolicy=always";
    let policy = text_of(template_with(
        &values,
        &[always, "--show-only=templates/continuous/admission.yaml"],
    ));
    check(POLICY, &format!("{HEADER}{policy}"));
    for (component, values, name) in ROLES {
        let objects = objects(values);
        let name = format!("\nmetadata:\n  name: \"{name}\"\n");
        let is_role =
            |object: &&str| object.contains("kind: Role") || object.contains("kind: ClusterRole");
        let roles = objects
            .split("---\n")
            .filter(|object| object.contains(&name));
        let roles: Vec<_> = roles.filter(is_role).collect();
        assert_eq!(roles.len(), 2, "{component}");
        let file = format!("kustomize/components/{component}/rbac.yaml");
        check(&file, &format!("{HEADER}---\n{}", roles.join("---\n")));
    }
}

#[test]
fn definitions_match_the_types() {
    let printed = Harpoon::new(["crds"]).run();
    assert_eq!(printed.code, Some(0), "{printed:?}");
    for file in ["crds.yaml", "chart/crds/harpoon.yaml"] {
        check(file, &printed.stdout);
    }
}

#[test]
fn chart_readme_matches_the_values() {
    let values = committed("chart/values.yaml");
    let readme = committed(README);
    let (begin, end) = ("<!-- values -->\n", "<!-- end of values -->\n");
    let (before, rest) = readme.split_once(begin).expect(begin);
    let (_, after) = rest.split_once(end).expect(end);
    check(
        README,
        &[before, begin, &table(&values), end, after].concat(),
    );
}

/// A table of the values that a comment `# --` describes, as helm-docs makes it.
fn table(values: &str) -> String {
    let mut rows = "| value | default | description |\n| --- | --- | --- |\n".to_owned();
    let mut description = String::new();
    let mut parents: Vec<(usize, String)> = Vec::new();
    let mut lines = values.lines().peekable();
    while let Some(line) = lines.next() {
        let text = line.trim_start();
        let depth = line.len() - text.len();
        if let Some(first) = text.strip_prefix("# -- ") {
            first.clone_into(&mut description);
        } else if let (Some(more), false) = (text.strip_prefix("# "), description.is_empty()) {
            description.push(' ');
            description.push_str(more);
        } else if let Some((key, value)) = text.split_once(':').filter(|_| is_key(text)) {
            parents.retain(|(at, _)| *at < depth);
            let path = parents.iter().map(|(_, key)| key.as_str()).chain([key]);
            let path = path.collect::<Vec<_>>().join(".");
            parents.push((depth, key.to_owned()));
            if description.is_empty() {
                continue;
            }
            let mut default = value.trim().to_owned();
            while let Some(below) = lines.next_if(|line| is_below(line, depth)) {
                default = format!("{default} {}", below.trim());
            }
            let default = match default.len() > 40 {
                true => "see `values.yaml`".to_owned(),
                false => format!("`{}`", default.trim()),
            };
            rows.push_str(&format!("| `{path}` | {default} | {description} |\n"));
            description.clear();
        }
    }
    rows
}

fn is_key(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// Returns whether a line belongs to the value of a key at `depth`.
fn is_below(line: &str, depth: usize) -> bool {
    let text = line.trim_start();
    !text.is_empty() && !text.starts_with('#') && line.len() - text.len() > depth
}

#[test]
fn every_value_is_described() {
    let values = committed("chart/values.yaml");
    let schema: serde_json::Value =
        serde_json::from_str(&committed("chart/values.schema.json")).unwrap();
    let table = table(&values);
    // Helm itself sets the first two, and the last is chart 0.1's.
    let own = |key: &&String| !["enabled", "global", "imagePullSecret"].contains(&key.as_str());
    for key in schema["properties"].as_object().unwrap().keys().filter(own) {
        let described =
            table.contains(&format!("| `{key}`")) || table.contains(&format!("| `{key}."));
        assert!(
            described,
            "deploy/chart/values.yaml does not describe {key}"
        );
    }
    assert!(Path::new(&deploy(README)).exists());
}
