//! What must never be: the dependency rules of ARCHITECTURE.md, read off the sources.

use std::fs;
use std::path::{Path, PathBuf};

/// Where a rule holds, what it forbids, and where it does not hold all the same.
struct Rule {
    within: &'static [&'static str],
    except: &'static [&'static str],
    forbids: &'static [&'static str],
    /// What is allowed although it begins like something forbidden.
    allows: &'static [&'static str],
}

const RULES: &[Rule] = &[
    Rule {
        within: &[
            "image",
            "plan",
            "relevance",
            "candidate",
            "failure",
            "printable",
        ],
        except: &[],
        forbids: &[
            "async ",
            ".await",
            "tokio",
            "futures",
            "reqwest",
            "tonic",
            "hyper",
            "kube::",
            "k8s_",
            "std::fs",
            "std::io",
            "env::var",
            "Instant",
            "SystemTime",
            "TcpStream",
            "UnixStream",
            "crate::runtime",
            "crate::registry",
            "crate::source",
            "crate::pull",
            "crate::report",
            "crate::cli",
            "crate::config",
        ],
        allows: &[],
    },
    Rule {
        within: &["manifests"],
        except: &[],
        forbids: &[
            "async ",
            ".await",
            "tokio",
            "std::fs",
            "std::io",
            "env::var",
            "Instant",
            "SystemTime",
            "crate::plan",
            "crate::pull",
            "crate::report",
            "crate::cli",
        ],
        allows: &[],
    },
    Rule {
        within: &["pull"],
        except: &[],
        forbids: &[
            "kube",
            "k8s_",
            "crate::source",
            "crate::cli",
            "crate::config",
            "runtime::cri",
            "runtime::docker",
            "runtime::oci",
            "runtime::find",
            "bollard",
            "tonic",
            "reqwest",
        ],
        allows: &[],
    },
    Rule {
        within: &["runtime", "registry"],
        except: &[],
        forbids: &[
            "kube::",
            "k8s_openapi",
            "crate::source",
            "crate::cli",
            "crate::config",
            "crate::plan",
            "crate::pull",
            "crate::report",
        ],
        allows: &[],
    },
    Rule {
        within: &["source"],
        except: &[],
        forbids: &[
            "crate::runtime",
            "crate::registry",
            "crate::cli",
            "crate::pull",
            "crate::report",
        ],
        // A Secret of the cluster is handed on in the type that cannot print it.
        allows: &["crate::registry::credential::Secret"],
    },
    Rule {
        within: &[""],
        except: &["source/kubernetes"],
        forbids: &["kube::", "kube_", "k8s_openapi"],
        allows: &[],
    },
    Rule {
        within: &[""],
        except: &["cli"],
        forbids: &["clap", "process::exit", "anyhow"],
        allows: &[],
    },
    Rule {
        within: &[""],
        except: &["runtime/docker"],
        forbids: &["bollard"],
        allows: &[],
    },
    Rule {
        within: &[""],
        except: &["runtime/cri"],
        forbids: &["k8s_cri", "containerd_client"],
        allows: &[],
    },
    // Time limits are kept by the monotonic clock: one that is set, forwards or back, ends nothing and prolongs nothing. The
    // exceptions: the date in a Retry-After, which is bounded; a node's age; a leftover's age; a blob's age; what a bar shows.
    Rule {
        within: &[""],
        except: &[
            "registry/error",
            "source/mod",
            "cli/flow",
            "runtime/oci/partial",
            "runtime/cri/progress",
            "runtime/cri/content",
        ],
        forbids: &["SystemTime", "UNIX_EPOCH", "chrono::", "jiff::"],
        allows: &[],
    },
    Rule {
        within: &[""],
        except: &[],
        forbids: &[
            "unsafe ",
            "static mut",
            "async_trait",
            "lazy_static",
            "Box<dyn",
            "mod utils",
            "mod helpers",
        ],
        allows: &[],
    },
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("read src") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !is_test(&path) {
            found.push(path);
        }
    }
}

fn is_test(path: &Path) -> bool {
    path.file_stem().is_some_and(|s| s == "tests")
        || path.components().any(|c| c.as_os_str() == "tests")
}

/// Whether the file is the module itself or below it: `plan` holds for `plan.rs` and `plan/`.
fn is_in(file: &str, module: &str) -> bool {
    module.is_empty() || file == format!("{module}.rs") || file.starts_with(&format!("{module}/"))
}

/// The code without comments and without the tests at its end.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn modules_use_only_what_they_may() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 20, "the sources were not found: {files:?}");
    let mut broken = Vec::new();
    for path in files {
        let file = path
            .strip_prefix(&root)
            .expect("below src")
            .to_string_lossy()
            .into_owned();
        let text = fs::read_to_string(&path).expect("read source");
        for rule in RULES {
            if !rule.within.iter().any(|m| is_in(&file, m))
                || rule.except.iter().any(|m| is_in(&file, m))
            {
                continue;
            }
            for (line, code) in code(&text) {
                let code = rule
                    .allows
                    .iter()
                    .fold(code.to_owned(), |code, allowed| code.replace(allowed, ""));
                for word in rule.forbids.iter().filter(|w| code.contains(**w)) {
                    broken.push(format!("src/{file}:{}: {word:?} in {code}", line + 1));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_main_file_stays_thin() {
    let main = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/main.rs"))
        .expect("main.rs");
    assert!(main.lines().count() < 40);
}
