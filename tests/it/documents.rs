//! Checks the documentation: the tests that it names exist, its links resolve, and the book lists all pages.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

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
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "deploy/chart/README.md",
        ".github/pull_request_template.md",
    ];
    book()
        .into_iter()
        .chain(own.map(|name| root().join(name)))
        .collect()
}

/// The links and the images of a page, without those in code.
#[derive(Debug, Default)]
struct Page {
    links: Vec<String>,
    /// The targets of the images, and the texts that stand for them.
    images: Vec<(String, String)>,
    /// The anchors of the headings, as GitHub and mdBook make them.
    anchors: Vec<String>,
}

impl Page {
    fn parse(text: &str) -> Self {
        let mut page = Self::default();
        // The text of the heading, and that of the image, in which the parser is.
        let (mut heading, mut image) = (None::<String>, None::<String>);
        for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => page.heading(&heading.take().unwrap()),
                Event::Start(Tag::Link { dest_url, .. }) => page.links.push(dest_url.into_string()),
                Event::Start(Tag::Image { dest_url, .. }) => {
                    page.images.push((dest_url.into_string(), String::new()));
                    image = Some(String::new());
                }
                Event::End(TagEnd::Image) => {
                    page.images.last_mut().unwrap().1 = image.take().unwrap();
                }
                Event::Text(text) | Event::Code(text) => {
                    for open in [&mut heading, &mut image].into_iter().flatten() {
                        open.push_str(&text);
                    }
                }
                Event::Html(html) | Event::InlineHtml(html) => {
                    let attributes = ["href=\"", "src=\"", "srcset=\""];
                    let values = attributes.iter().flat_map(|name| html.split(name).skip(1));
                    let values = values.filter_map(|rest| rest.split('"').next());
                    page.links.extend(values.map(str::to_owned));
                }
                _ => {}
            }
        }
        page
    }

    fn heading(&mut self, text: &str) {
        let kept = text.trim().to_lowercase();
        let kept = kept
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        // The second heading of a name has -1 behind it.
        let same = |n: &usize| match n {
            0 => anchor.clone(),
            n => format!("{anchor}-{n}"),
        };
        let free = (0..)
            .map(|n| same(&n))
            .find(|anchor| !self.anchors.contains(anchor));
        self.anchors.extend(free);
    }

    /// The targets of the links and the images.
    fn targets(&self) -> impl Iterator<Item = &str> {
        let images = self.images.iter().map(|(target, _)| target);
        self.links.iter().chain(images).map(String::as_str)
    }
}

fn read(path: &Path) -> Page {
    Page::parse(&fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

/// True for a link that leads out of the repository.
fn is_external(link: &str) -> bool {
    link.contains("://") || link.starts_with("mailto:") || link.starts_with("//")
}

/// True for a well-formed link out of the repository: `https`, and a host with a dot. It is not followed.
fn is_well_formed(link: &str) -> bool {
    link.parse::<http::Uri>().is_ok_and(|uri| {
        let host = uri.host().unwrap_or_default();
        uri.scheme_str() == Some("https") && host.contains('.')
    })
}

/// The target of a link, if it does not exist or is not well formed.
fn broken(page: &Path, link: &str) -> Option<String> {
    let fault = || Some(format!("{}: {link}", page.display()));
    if is_external(link) {
        return if is_well_formed(link) { None } else { fault() };
    }
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match file {
        "" => page.to_owned(),
        _ => page.with_file_name(file),
    };
    let found = target.exists()
        && (anchor.is_empty() || read(&target).anchors.contains(&anchor.to_owned()));
    if found { None } else { fault() }
}

#[test]
fn links_lead_to_pages_and_headings() {
    let mut all = 0;
    let mut wrong = Vec::new();
    for path in pages() {
        let page = read(&path);
        all += page.targets().count();
        wrong.extend(page.targets().filter_map(|link| broken(&path, link)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(all > 100, "{all} links");
}

#[test]
fn broken_links_are_found() {
    let page = root().join("docs/deploy.md");
    let text = "[a](no-such-page.md \"title\") [b]\n\n    [code](no-link.md)\n\n`[c](no-link.md)` <img src=\"no-such.svg\">\n\n[b]: deploy.md#no-such";
    let links = Page::parse(text).links;
    assert_eq!(
        links,
        ["no-such-page.md", "deploy.md#no-such", "no-such.svg"]
    );
    for link in links {
        assert!(broken(&page, &link).is_some(), "{link}");
    }
    for link in [
        "http://example.com",
        "https://host",
        "https:///path",
        "ftp://example.com/a",
        "//example.com",
    ] {
        assert!(broken(&page, link).is_some(), "{link}");
    }
    assert_eq!(broken(&page, "https://example.com/a#b"), None);
}

#[test]
fn anchors_are_those_of_headings() {
    let text = "# A `code` & more\n\n## Same\n\n## Same\n\n```\n# no heading\n```\n";
    assert_eq!(
        Page::parse(text).anchors,
        ["a-code--more", "same", "same-1"]
    );
}

#[test]
fn every_page_is_checked() {
    let files = Command::new("git")
        .args(["ls-files", "-z", "*.md"])
        .current_dir(root())
        .output()
        .unwrap();
    let files = String::from_utf8(files.stdout).unwrap();
    let checked = pages();
    for file in files.split_terminator('\0') {
        assert!(checked.contains(&root().join(file)), "{file}");
    }
}

#[test]
fn images_are_described_and_used() {
    let mut used = BTreeSet::new();
    for path in pages() {
        for (target, text) in read(&path).images {
            assert!(text.len() > 20, "{}: {target} has no text", path.display());
            used.insert(path.with_file_name(target).canonicalize().unwrap());
        }
    }
    for image in fs::read_dir(root().join("docs/img")).unwrap() {
        let image = image.unwrap().path().canonicalize().unwrap();
        assert!(used.contains(&image), "no page shows {}", image.display());
    }
}

#[test]
fn book_lists_every_page() {
    let listed = read(&root().join("docs/SUMMARY.md")).links;
    for page in book() {
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(
            name == "SUMMARY.md" || listed.iter().any(|listed| listed == name),
            "{name}"
        );
    }
}

/// A picture of the book, which mdBook copies.
fn is_own_picture(link: &str) -> bool {
    let name = link.strip_prefix("img/").unwrap_or("/");
    !name.contains('/') && root().join("docs").join(link).is_file()
}

#[test]
fn book_links_stay_inside_it() {
    for path in book() {
        let page = read(&path);
        let outside: Vec<_> = page
            .targets()
            .filter(|link| {
                !is_external(link)
                    && !is_own_picture(link)
                    && (link.starts_with('/') || link.contains(".."))
            })
            .collect();
        assert!(outside.is_empty(), "{}: {outside:?}", path.display());
    }
}
