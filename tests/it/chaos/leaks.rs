//! Leaks: descriptors and memory of the processes; leases, downloads, snapshots and files of containerds.

use std::time::{Duration, Instant};

use super::actors::{Cast, Node};
use crate::bed::eventually;
use crate::fast::remains;

/// The most descriptors of an agent or controller that is idle.
const DESCRIPTORS: usize = 40;
/// The most memory of it in bytes that is not mapped from files, in a debug build.
const MEMORY: u64 = 32 << 20;
/// The most descriptors of an idle containerd more than at the start.
const MORE: usize = 20;
const PATIENCE: Duration = Duration::from_secs(90);

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kibibytes.map_or(0, |text| text.parse::<u64>().unwrap() << 10)
}

/// The descriptors of each containerd.
pub(super) fn of_daemons(cast: &Cast) -> Vec<usize> {
    let daemons = cast.nodes.iter();
    daemons
        .map(|node| descriptors(node.containerd.pid()))
        .collect()
}

/// The processes use no more than they need. Connections to the registry are closed after a while.
#[track_caller]
pub(super) fn processes(cast: &Cast, daemons_before: &[usize]) {
    let end = Instant::now() + PATIENCE;
    loop {
        let (mut found, mut figures) = (Vec::new(), Vec::new());
        for program in cast.programs() {
            let pid = program.running().unwrap().pid();
            let (descriptors, memory) = (descriptors(pid), memory(pid));
            let figure = format!(
                "{}: {descriptors} descriptors, {} KiB",
                program.name,
                memory >> 10
            );
            if descriptors > DESCRIPTORS || memory > MEMORY {
                found.push(figure.clone());
            }
            figures.push(figure);
        }
        let now = of_daemons(cast);
        for ((node, now), before) in cast.nodes.iter().zip(&now).zip(daemons_before) {
            if *now > before + MORE {
                found.push(format!(
                    "containerd of {}: {before} -> {now} descriptors",
                    node.name
                ));
            }
        }
        if found.is_empty() {
            eprintln!(
                "{}; containerds: {daemons_before:?} -> {now:?} descriptors",
                figures.join("; ")
            );
            return;
        }
        assert!(Instant::now() < end, "{found:#?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Nothing is left on the nodes once all names are gone.
#[track_caller]
pub(super) fn nodes(cast: &Cast) {
    for node in &cast.nodes {
        let mut left = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            clear(node);
            let leases = node.containerd.leases().into_iter();
            left.clear();
            left.extend(leases.map(|lease| format!("lease {lease}")));
            left.extend(remains(&node.containerd));
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "{}: {left:#?}", node.name);
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    for program in cast.programs() {
        assert_eq!(program.files(), [""; 0], "{}", program.name);
    }
}

/// Removes all names of images, and what containerd itself leaves when it is killed during a pull: leases with numbers for names.
fn clear(node: &Node) {
    let containerd = &node.containerd;
    for image in containerd.images() {
        containerd.remove(&image);
    }
    let leases = containerd.leases().into_iter();
    let is_ours =
        |lease: &String| lease.starts_with("harpoon/") && !lease.starts_with("harpoon/trial/");
    for lease in leases.filter(|lease| !is_ours(lease)) {
        containerd.ctr(&["leases", "delete", "--sync", &lease]);
    }
    // Another one has it collect what nothing holds.
    containerd.ctr(&["leases", "create", "--id", "chaos"]);
    containerd.ctr(&["leases", "delete", "--sync", "chaos"]);
}

/// No download is incomplete.
#[track_caller]
pub(super) fn downloads(cast: &Cast) {
    for node in &cast.nodes {
        let mut found = Vec::new();
        eventually("no download is left", PATIENCE, || {
            found = node.containerd.downloads();
            found.is_empty()
        });
    }
}
