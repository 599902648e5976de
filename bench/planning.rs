//! From a list of images to a plan, by the whole program: read, parse, merge, order, print.

use super::bed::directory;
use super::measure::{Case, alternate, harpoon, run as taken};
use super::page::{Column, Part, column};

const SIZES: [usize; 4] = [1, 1_000, 10_000, 100_000];
const COLUMNS: [Column; 3] = [
    column("wall ms", 1),
    column("CPU ms", 1),
    column("memory MiB", 1),
];

pub fn run(part: &mut Part, runs: usize) {
    part.say("`harpoon plan --images-file`, the program from its start to its end with the plan printed as JSON; the first row is what a start takes.");
    let files = directory();
    let cases = SIZES.iter().map(|size| {
        let list = files.path().join(size.to_string());
        std::fs::write(
            &list,
            (0..*size).map(|n| image(n) + "\n").collect::<String>(),
        )
        .unwrap();
        let layout = files.path().join("layout");
        Case::new(format!("{size} images"), move || {
            let taken = taken(&mut plan(list.to_str().unwrap(), layout.to_str().unwrap()));
            vec![taken.wall * 1e3, taken.cpu * 1e3, taken.memory]
        })
    });
    let rows = alternate(runs, cases.collect());
    part.table("candidates", &COLUMNS, &rows, "100000 images");
    part.say("Command: `make bench ONLY=planning`.");
}

/// Of an empty OCI layout, which has none of them.
pub fn plan(list: &str, layout: &str) -> std::process::Command {
    harpoon([
        "plan",
        "--images-file",
        list,
        "--runtime-endpoint",
        &format!("oci:{layout}"),
        "--output",
        "json",
        "--log-level",
        "error",
    ])
}

pub fn image(n: usize) -> String {
    format!(
        "registry.example/team-{}/service-{n:06}:1.{}.{}",
        n % 100,
        n % 7,
        n % 31
    )
}
