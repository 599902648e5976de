//! What `docs/` says of tests: each that is named is there.

use std::fs;
use std::path::Path;

/// The tests that a document names: `` `file::name` ``, the file below `tests/it/` or with `src/` in front of it.
fn named(text: &str) -> Vec<(String, String)> {
    let quoted = text.split('`').skip(1).step_by(2);
    let tests = quoted.filter_map(|word| word.split_once("::"));
    tests
        .map(|(file, name)| {
            let file = match file.strip_prefix("src/") {
                Some(file) => format!("src/{file}.rs"),
                None => format!("tests/it/{file}.rs"),
            };
            (file, name.to_owned())
        })
        .collect()
}

/// Whether the source has a test of this name: a function with the attribute, or a case of a macro that makes it one.
fn has_test(source: &str, name: &str) -> bool {
    let function = format!("fn {name}(");
    let generic = format!("fn {name}<R: Runtime>(");
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    lines.iter().enumerate().any(|(at, line)| {
        let is_test =
            |line: &&&str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        line.contains(&function) && lines[..at].iter().rev().take(3).any(|l| is_test(&l))
            || line.starts_with(&generic) && lines.contains(&format!("{name},").as_str())
    })
}

fn all_are_there(document: &str, at_least: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join(document)).unwrap();
    let tests = named(&text);
    assert!(
        tests.len() >= at_least,
        "{document} names {} tests",
        tests.len()
    );
    for (file, name) in tests {
        let source = fs::read_to_string(root.join(&file))
            .unwrap_or_else(|e| panic!("{document}: {file}: {e}"));
        assert!(
            has_test(&source, &name),
            "{document}: {file} has no test {name}"
        );
    }
}

#[test]
fn the_fault_matrix_names_real_tests() {
    all_are_there("docs/reliability.md", 60);
    // Every fault says by which test it is known.
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reliability.md"))
            .unwrap();
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    let unknown: Vec<_> = rows
        .filter(|row| !row.starts_with("| fault") && named(row).is_empty())
        .collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn the_threat_model_names_real_tests() {
    all_are_there("docs/threat-model.md", 20);
}
