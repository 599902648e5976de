//! Objects as YAML for people and for `kubectl apply -f`: one document each, with why it is so where somebody will ask.

use serde_json::Value;

/// Beginnings of lines of a DaemonSet, and what is said above them.
const WHY: &[(&str, &str)] = &[
    (
        "tolerations:",
        "Every node, whatever its taints: some workload may tolerate them too. List others to keep harpoon off a node.",
    ),
    (
        "priorityClassName:",
        "Before workloads in the scheduler's queue; never evicts one.",
    ),
    (
        "maxUnavailable:",
        "A new version comes to a tenth of the nodes at a time.",
    ),
    (
        "runAsGroup: 0",
        "The group of the runtime's socket; it is not root.",
    ),
    (
        "runAsUser: 0",
        "root, but without its capabilities: what it has to open is root's, or a group's whose number nobody knows.",
    ),
    (
        "volumeMounts:",
        "Nothing of this is in the other container.",
    ),
];

/// The objects as YAML, with a line about where they come from.
///
/// # Errors
/// When a value cannot be written as YAML.
pub fn print(objects: &[Value]) -> Result<String, serde_saphyr::ser::Error> {
    // Strings stay on one line, however long they are.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    let mut text = "# Made by `harpoon manifests`; docs/deploy.md tells of it.\n".to_owned();
    for object in objects {
        let document = serde_saphyr::to_string_with_options(object, options.clone())?;
        text.push_str("---\n");
        match object["kind"] == "DaemonSet" {
            true => explain(&document, &mut text),
            false => text.push_str(&document),
        }
    }
    Ok(text)
}

fn explain(document: &str, text: &mut String) {
    // Where root's user is explained, its group needs no words.
    let root = document.contains("runAsUser: 0\n");
    for line in document.lines() {
        let content = line.trim_start_matches([' ', '-']);
        let why = WHY.iter().find(|(start, _)| content.starts_with(start));
        if let Some((start, why)) = why
            && !(root && *start == "runAsGroup: 0")
        {
            let indent = line.len() - line.trim_start().len();
            text.push_str(&format!("{:indent$}# {why}\n", ""));
        }
        text.push_str(line);
        text.push('\n');
    }
}
