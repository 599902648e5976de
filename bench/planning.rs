//! From a list of images to a plan: the planning step alone, and the whole program, which also reads the list, queries the
//! runtime and prints the plan.

use std::process::Command;

use super::bed::directory;
use super::measure::{Case, alternate, harpoon, run as taken};
use super::page::{Column, Part, column};

const SIZES: [usize; 4] = [1, 1_000, 10_000, 100_000];
const COLUMNS: [Column; 4] = [
    column("planning ms", 1),
    column("wall ms", 1),
    column("CPU ms", 1),
    column("memory MiB", 1),
];

pub fn run(part: &mut Part, runs: usize) {
    part.say(
        "`harpoon plan --images-file`. *Planning* is parsing, merging, ordering and selecting, from the program's debug log in a run of its own. \
         The other columns are the whole program, with the plan printed as JSON. The first row is the cost of a start.",
    );
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
            let command = || plan(list.to_str().unwrap(), layout.to_str().unwrap());
            let taken = taken(&mut command());
            vec![
                planning(command()),
                taken.wall * 1e3,
                taken.cpu * 1e3,
                taken.memory,
            ]
        })
    });
    let rows = alternate(runs, cases.collect());
    part.table("candidates", &COLUMNS, &rows, "100000 images");
    part.say("Command: `make bench ONLY=planning`.");
}

/// Milliseconds, according to the program's log.
fn planning(mut command: Command) -> f64 {
    let output = command.env("LOG_LEVEL", "debug").output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    let took = ["selected from ", "planned "].map(|begin| {
        let line = log.lines().find(|line| line.contains(begin)).unwrap();
        let micros = line.rsplit_once(" in ").unwrap().1.split_once(' ');
        micros.unwrap().0.parse::<f64>().unwrap() / 1e3
    });
    took.iter().sum()
}

/// The plan for an empty OCI layout, which has none of the images.
pub fn plan(list: &str, layout: &str) -> Command {
    let mut plan = harpoon([
        "plan",
        "--images-file",
        list,
        "--runtime-endpoint",
        &format!("oci:{layout}"),
        "--output",
        "json",
    ]);
    plan.env("LOG_LEVEL", "error");
    plan
}

pub fn image(n: usize) -> String {
    format!(
        "registry.example/team-{}/service-{n:06}:1.{}.{}",
        n % 100,
        n % 7,
        n % 31
    )
}
