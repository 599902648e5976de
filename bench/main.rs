//! `make bench`: compares harpoon with the alternatives of a user, on real daemons, in alternating runs.
//!
//! Each benchmark is a file here. Its results are stored in `results/`; its part of `docs/benchmarks.md` and the pictures are made
//! from them. The program measured is the one that `HARPOON_BIN` names, a release build; the daemons come from the tests' bed,
//! with `HARPOON_RUNTIMES=modern` those of a newer generation, whose results have names of their own.
//!
//! Arguments: names of benchmarks (default: all) and `--runs N` (default: 5).
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "a benchmark that cannot go on says why by panicking"
)]

#[path = "../tests/it/bed/mod.rs"]
mod bed;
mod board;
mod chart;
mod dashboard;
mod discovery;
mod fast;
mod fill;
mod footprint;
mod guard;
mod images;
mod measure;
mod oci;
mod page;
mod pictures;
mod planning;
mod results;
mod scale;
mod shaping;
mod warm;

/// A benchmark: writes its part of the page.
type Benchmark = fn(&mut page::Part, runs: usize);

const ALL: &[(&str, Benchmark)] = &[
    ("fill", fill::run),
    ("fast", fast::run),
    ("warm", warm::run),
    ("oci", oci::run),
    ("discovery", discovery::run),
    ("planning", planning::run),
    ("footprint", footprint::run),
    ("guard", guard::run),
    ("scale", scale::run),
    ("dashboard", dashboard::run),
];

fn main() {
    let mut runs = 5;
    let mut chosen = Vec::new();
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().is_some_and(|first| first == scale::AGENTS) {
        return scale::agents(arguments.skip(1));
    }
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // Passed by cargo.
            "--bench" => {}
            "--runs" => {
                runs = arguments
                    .next()
                    .and_then(|n| n.parse().ok())
                    .expect("--runs N")
            }
            name => chosen.push(name.to_owned()),
        }
    }
    for name in &chosen {
        let known: Vec<_> = ALL.iter().map(|(name, _)| *name).collect();
        assert!(
            known.contains(&name.as_str()),
            "no benchmark {name}, there are {known:?}"
        );
    }
    // One of a cold node, the other of one cold image, which has the newer runtimes beside the others.
    if chosen.iter().any(|name| name == "fill") && !bed::has_newer_runtimes() {
        chosen.push("fast".to_owned());
    }
    for (name, benchmark) in ALL {
        if chosen.is_empty() || chosen.iter().any(|chosen| chosen == name) {
            eprintln!("== {name}");
            let newer = if bed::has_newer_runtimes() {
                "-modern"
            } else {
                ""
            };
            let mut part = page::Part::new(&format!("{name}{newer}"));
            benchmark(&mut part, runs);
            part.write();
        }
    }
}
