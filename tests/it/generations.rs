//! `testbed/generations` runs the tests of runtimes again on newer ones: those of each module that has any.

use std::collections::BTreeSet;
use std::path::Path;

/// Signs that a test uses a runtime.
const SIGNS: [&str; 6] = [
    "containerd()",
    "docker()",
    "Containerd::",
    "Docker::",
    "Cluster::",
    "with_both!",
];

/// The words of the array `name` in the script.
fn words(script: &str, name: &str) -> BTreeSet<String> {
    let (_, rest) = script.split_once(&format!("\n{name}=(")).unwrap();
    let (words, _) = rest.split_once(')').unwrap();
    words.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn every_runtime_module_is_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = std::fs::read_to_string(root.join("testbed/generations")).unwrap();
    let (again, once) = (words(&script, "again"), words(&script, "once"));
    let listed: BTreeSet<_> = again.union(&once).cloned().collect();
    assert_eq!(listed.len(), again.len() + once.len(), "listed twice");

    let mut found = BTreeSet::new();
    let mut files = vec![root.join("tests/it")];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap();
            files.extend(entries.map(|entry| entry.unwrap().path()));
            continue;
        }
        let module = path.strip_prefix(root.join("tests/it")).unwrap();
        let module = module.iter().next().unwrap().to_str().unwrap();
        let module = module.trim_end_matches(".rs").to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        if SIGNS.iter().any(|sign| text.contains(sign)) && module != "generations" {
            found.insert(module);
        }
    }
    assert_eq!(listed, found, "testbed/generations");
}
