//! Forbidden dependencies: the rules of ARCHITECTURE.md, checked for all production lines of the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The layers, from the lowest up: a module uses only those below it.
const FLOORS: &[&str] = &[
    "model",
    "retry",
    "credentials",
    "registry",
    "kube_api",
    "runtime",
    "fill",
    "planning",
    "discovery",
    "pulling",
    "report",
    "api",
    "app",
    "cli",
];

/// The scope of a rule, the forbidden words, and its exceptions.
struct Rule {
    within: &'static [&'static str],
    except: &'static [&'static str],
    forbids: &'static [&'static str],
}

/// Words that some modules must not contain.
const RULES: &[Rule] = &[
    Rule {
        within: &[
            "model",
            "planning/plan",
            "planning/node_match",
            "planning/disk_budget",
            "planning/disk_marks",
        ],
        // A node's age is computed where the node is known.
        except: &["model/node_facts"],
        forbids: &[
            "async ",
            ".await",
            "tokio",
            "futures",
            "reqwest",
            "tonic",
            "hyper",
            "kube::",
            "kube_api",
            "k8s_",
            "std::fs",
            "std::io",
            "env::var",
            "Instant",
            "SystemTime",
            "TcpStream",
            "UnixStream",
        ],
    },
    Rule {
        within: &["pulling"],
        except: &[],
        forbids: &[
            "kube",
            "k8s_",
            "runtime::cri",
            "runtime::docker",
            "runtime::oci",
            "runtime::detect",
            "runtime::containerd",
            "runtime::sealing",
            "bollard",
            "tonic",
            "reqwest",
        ],
    },
    Rule {
        within: &["credentials", "registry", "runtime", "fill"],
        except: &[],
        forbids: &["kube::", "kube_api", "k8s_openapi", "clap", "cli::"],
    },
    Rule {
        within: &[""],
        except: &["kube_api", "discovery/workloads", "api", "app"],
        forbids: &["kube::", "k8s_openapi"],
    },
    Rule {
        within: &[""],
        except: &["cli"],
        forbids: &["clap"],
    },
    Rule {
        within: &[""],
        except: &["cli", "app"],
        forbids: &["anyhow", "process::exit"],
    },
    Rule {
        within: &[""],
        except: &["runtime/docker"],
        forbids: &["bollard"],
    },
    Rule {
        within: &[""],
        except: &["runtime/cri", "runtime/containerd"],
        forbids: &["k8s_cri", "containerd_client"],
    },
    // Time limits are kept by the monotonic clock: one that is set, forwards or back, ends nothing and prolongs nothing. The
    // exceptions: the date in a Retry-After, which is bounded; a node's age; the ages that `harpoon status` shows; a leftover's age; a blob's age; a lease's expiry; what a bar shows;
    // the slot of a rollout and the time of a report, which other processes read; so are the time since when an image is unused, that of
    // a condition and those of the controller's Lease, and the hours of an Event. The node gate takes the longer of a node's age and the time by its own clock.
    Rule {
        within: &[""],
        except: &[
            "retry/retry_after",
            "model/node_facts",
            "app/node_run",
            "app/agent",
            "app/controller/apply",
            "app/controller/gate",
            "app/controller/guard",
            "app/controller/leader",
            "app/controller/pressure",
            "app/controller/reconcile",
            "app/status",
            "runtime/oci/partial",
            "runtime/cri/progress",
            "runtime/cri/content",
            "runtime/containerd/leases",
            "runtime/containerd/seal",
        ],
        forbids: &["SystemTime", "UNIX_EPOCH", "chrono::", "jiff::"],
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
    },
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("read src") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Returns whether the file is the module itself or below it: `plan` holds for `plan.rs`, `plan/mod.rs` and all of `plan/`.
fn is_in(file: &str, module: &str) -> bool {
    module.is_empty() || file == format!("{module}.rs") || file.starts_with(&format!("{module}/"))
}

/// Returns whether an attribute excludes the following item from the program.
fn is_for_tests(line: &str) -> bool {
    line.trim_start().starts_with("#[cfg(test)]")
        || line.trim_start().starts_with("#[cfg(any(test, fuzzing))]")
}

/// The production lines of a file by number, without comments; and the modules that it declares for tests alone.
fn production(text: &str) -> (Vec<(usize, &str)>, Vec<String>) {
    let (mut code, mut test_modules) = (Vec::new(), Vec::new());
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        if !is_for_tests(line) {
            code.push((number + 1, line));
            continue;
        }
        // The item that follows: to the end of its line, or of its braces.
        let indent = line.len() - line.trim_start().len();
        let closes = format!("{}}}", " ".repeat(indent));
        for (_, item) in lines.by_ref() {
            let trimmed = item.trim_start();
            if let Some((_, name)) = trimmed.split_once("mod ")
                && let Some(name) = name.strip_suffix(';')
            {
                test_modules.push(name.to_owned());
            }
            let is_own = item.len() - trimmed.len() == indent;
            if is_own && (item.starts_with(&closes) || trimmed.ends_with(';')) {
                break;
            }
        }
    }
    (code, test_modules)
}

/// Every production line of `src/`, by file.
fn tree() -> BTreeMap<String, Vec<(usize, String)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&root, &mut paths);
    let (mut tree, mut of_tests) = (BTreeMap::new(), BTreeSet::new());
    for path in paths {
        let file = path.strip_prefix(&root).expect("below src");
        let file = file.to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("read source");
        let (code, test_modules) = production(&text);
        let module = file.trim_end_matches(".rs").trim_end_matches("/mod");
        let below = if module == "lib" { "" } else { module };
        for name in test_modules {
            of_tests.insert(format!("{below}/{name}").trim_start_matches('/').to_owned());
        }
        let code = code.into_iter().map(|(n, line)| (n, line.to_owned()));
        tree.insert(file, code.collect());
    }
    tree.retain(|file, _| !of_tests.iter().any(|module| is_in(file, module)));
    tree
}

/// The top-level modules that each one uses, with the places.
fn uses(tree: &BTreeMap<String, Vec<(usize, String)>>) -> BTreeMap<(String, String), String> {
    let mut uses = BTreeMap::new();
    for (file, code) in tree {
        let module = file.split(['/', '.']).next().unwrap_or_default();
        for (number, line) in code {
            for used in line.split("crate::").skip(1) {
                let end = used.find(|c: char| c != '_' && !c.is_alphanumeric());
                let used = &used[..end.unwrap_or(used.len())];
                if used != module && used.starts_with(char::is_lowercase) {
                    let edge = (module.to_owned(), used.to_owned());
                    uses.entry(edge)
                        .or_insert_with(|| format!("src/{file}:{number}"));
                }
            }
        }
    }
    uses
}

/// The modules in a dependency cycle.
fn circles<'a>(edges: &[&'a (String, String)]) -> BTreeSet<&'a str> {
    let edges: Vec<(&str, &str)> = edges.iter().map(|(a, b)| (&**a, &**b)).collect();
    let mut reached: BTreeSet<_> = edges.iter().copied().collect();
    loop {
        let further: Vec<_> = reached
            .iter()
            .flat_map(|(a, b)| {
                let next = edges.iter().filter(move |(c, _)| c == b);
                next.map(move |(_, d)| (*a, *d))
            })
            .filter(|edge| !reached.contains(edge))
            .collect();
        if further.is_empty() {
            break;
        }
        reached.extend(further);
    }
    let circular = reached.into_iter().filter(|(a, b)| a == b);
    circular.map(|(a, _)| a).collect()
}

/// The violations of word rules in one file.
fn broken(file: &str, code: &[(usize, String)]) -> Vec<String> {
    let mut broken = Vec::new();
    for rule in RULES {
        let holds = rule.within.iter().any(|m| is_in(file, m));
        if !holds || rule.except.iter().any(|m| is_in(file, m)) {
            continue;
        }
        for (number, line) in code {
            for word in rule.forbids.iter().filter(|word| line.contains(**word)) {
                broken.push(format!("src/{file}:{number}: {word:?} in {line}"));
            }
        }
    }
    broken
}

#[test]
fn modules_use_only_floors_below() {
    let tree = tree();
    assert!(tree.len() > 60, "the sources were not found: {tree:?}");
    let floor = |module: &str| FLOORS.iter().position(|floor| *floor == module);
    let uses = uses(&tree);
    let mut upwards = Vec::new();
    for ((module, used), place) in &uses {
        // The crate root and the list of modules are above all layers.
        let Some(own) = floor(module) else {
            assert!(
                ["lib", "main"].contains(&module.as_str()),
                "{module} has no floor"
            );
            continue;
        };
        if floor(used).is_none_or(|used| used >= own) {
            upwards.push(format!("{place}: {module} uses {used}"));
        }
    }
    assert!(upwards.is_empty(), "{}", upwards.join("\n"));
    assert_eq!(circles(&uses.keys().collect::<Vec<_>>()), BTreeSet::new());
}

#[test]
fn modules_use_only_allowed_words() {
    let tree = tree();
    let broken: Vec<_> = tree
        .iter()
        .flat_map(|(file, code)| broken(file, code))
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn rules_can_fail() {
    // Lines after the tests of a file count, and those of the tests do not.
    let text = "use a;\n#[cfg(test)]\nmod standin;\n#[cfg(test)]\nmod tests {\n    use tokio;\n}\nuse tokio::time;\n";
    let (code, test_modules) = production(text);
    assert_eq!(code, [(1, "use a;"), (8, "use tokio::time;")]);
    assert_eq!(test_modules, ["standin"]);
    let code: Vec<_> = code.into_iter().map(|(n, l)| (n, l.to_owned())).collect();
    assert_eq!(broken("model/reference.rs", &code).len(), 1);
    assert_eq!(broken("pulling/executor.rs", &code).len(), 0);
    let edge = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    let edges = [
        edge("a", "b"),
        edge("b", "c"),
        edge("c", "a"),
        edge("c", "d"),
    ];
    assert_eq!(
        circles(&edges.iter().collect::<Vec<_>>()),
        BTreeSet::from(["a", "b", "c"])
    );
    assert!(circles(&edges[..2].iter().collect::<Vec<_>>()).is_empty());
}

#[test]
fn main_file_stays_short() {
    let main = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/main.rs"))
        .expect("main.rs");
    assert!(main.lines().count() < 40);
}
