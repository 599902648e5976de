//! Checks the documentation: the tests that it names exist, its links resolve, and the book lists all pages.

use std::fs;
use std::path::{Path, PathBuf};

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
fn fault_matrix_names_real_tests() {
    all_are_there("docs/reliability.md", 60);
    // Every fault names the test that covers it.
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
fn threat_model_names_real_tests() {
    all_are_there("docs/threat-model.md", 20);
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages of the book.
fn book() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("docs")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect()
}

/// The pages of the book and those of the repository.
fn pages() -> Vec<PathBuf> {
    let own = [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
    ];
    book()
        .into_iter()
        .chain(own.map(|name| root().join(name)))
        .collect()
}

/// The targets of the links of a page that lead into the repository.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1);
    let targets = targets.filter_map(|rest| rest.split(')').next());
    targets
        .filter(|target| !target.contains("://") && !target.contains(char::is_whitespace))
        .collect()
}

/// The anchors of a page's headings, as GitHub and mdBook make them.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// The target of a link, if it does not exist.
fn broken(page: &Path, link: &str) -> Option<String> {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match file {
        "" => page.to_owned(),
        _ => page.with_file_name(file),
    };
    let found = target.exists()
        && (anchor.is_empty()
            || anchors(&fs::read_to_string(&target).unwrap()).contains(&anchor.to_owned()));
    (!found).then(|| format!("{}: {link}", page.display()))
}

#[test]
fn links_lead_to_pages_and_headings() {
    let mut all = 0;
    let mut wrong = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let links = links(&text);
        all += links.len();
        wrong.extend(links.iter().filter_map(|link| broken(&page, link)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(all > 50, "{all} links");
    let page = root().join("docs/deploy.md");
    assert!(broken(&page, "deploy.md#no-such-heading").is_some());
    assert!(broken(&page, "no-such-page.md").is_some());
}

#[test]
fn book_lists_every_page() {
    let text = fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let listed = links(&text);
    for page in book() {
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(name == "SUMMARY.md" || listed.contains(&name), "{name}");
    }
}

/// A picture of the book, which mdBook copies.
fn is_own_picture(link: &str) -> bool {
    let name = link.strip_prefix("img/").unwrap_or("/");
    !name.contains('/') && root().join("docs").join(link).is_file()
}

#[test]
fn book_links_stay_inside_it() {
    for page in book() {
        let text = fs::read_to_string(&page).unwrap();
        let outside: Vec<_> = links(&text)
            .into_iter()
            .filter(|link| link.contains('/') && !is_own_picture(link))
            .collect();
        assert!(outside.is_empty(), "{}: {outside:?}", page.display());
    }
}
