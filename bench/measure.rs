//! Measures commands; runs them in turn, so that a temporary load of the machine affects all of them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// Clock ticks per second in `/proc/PID/stat`; constant on Linux for all architectures.
const TICKS: f64 = 100.0;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The directories of programs; those of the newer runtimes come first if they are measured.
fn path() -> String {
    if !crate::bed::has_newer_runtimes() {
        return PATH.to_owned();
    }
    let cache = std::env::var("XDG_CACHE_HOME")
        .unwrap_or_else(|_| std::env::var("HOME").unwrap() + "/.cache");
    format!("{cache}/harpoon-testbed/modern/bin:{PATH}")
}

/// The measurements of one run of a command.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    /// Seconds.
    pub wall: f64,
    /// User and system CPU seconds of the command and the children it waited for.
    pub cpu: f64,
    /// Maximum resident memory of the command without its children, in MiB; sampled every millisecond.
    pub memory: f64,
}

/// The measured program, with an empty environment.
pub fn harpoon<const N: usize>(arguments: [&str; N]) -> Command {
    let mut command = tool(crate::bed::program());
    command.args(arguments);
    command
}

/// A program of this machine, with only a path and a home in its environment.
pub fn tool(name: &str) -> Command {
    // By its full path: a name would be searched for between fork and exec, and a fork of this program, with its memory, is slow.
    let path = path();
    let whole = path
        .split(':')
        .map(|directory| Path::new(directory).join(name));
    let whole = whole.into_iter().find(|path| path.exists());
    let mut command = Command::new(
        whole.unwrap_or_else(|| panic!("{name} is missing: run testbed/install bench")),
    );
    command.env_clear();
    command.env("PATH", &path);
    command.env("HOME", std::env::temp_dir());
    command
}

/// Runs a command to its end and discards its standard output. Panics if it fails.
pub fn run(command: &mut Command) -> Taken {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let before = children();
    let began = Instant::now();
    let child = command
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}: run testbed/install bench"));
    let (status, peak, over) = (
        Path::new("/proc")
            .join(child.id().to_string())
            .join("status"),
        AtomicU64::new(0),
        AtomicBool::new(false),
    );
    let (output, wall) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                peak.fetch_max(field(&status, "VmHWM:").unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let output = child.wait_with_output().unwrap();
        over.store(true, Ordering::Relaxed);
        (output, began.elapsed())
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}: {errors}",
        output.status
    );
    Taken {
        wall: wall.as_secs_f64(),
        cpu: (children() - before).max(0.0),
        memory: peak.into_inner() as f64 / 1024.0,
    }
}

/// CPU seconds so far of children that were waited for.
fn children() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6
}

/// CPU seconds so far of a running process, in steps of 10 ms.
pub fn cpu_of(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in brackets may contain blanks.
    let fields: Vec<_> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let ticks: f64 = fields[11..13]
        .iter()
        .map(|ticks| ticks.parse::<f64>().unwrap())
        .sum();
    ticks / TICKS
}

/// Resets the maximum of a process' resident memory.
pub fn forget_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

/// Maximum resident memory of a process since [`forget_peak`], in MiB.
pub fn peak_of(pid: u32) -> f64 {
    field(Path::new(&format!("/proc/{pid}/status")), "VmHWM:").unwrap() as f64 / 1024.0
}

/// Resident memory of a process, in MiB.
pub fn memory_of(pid: u32) -> f64 {
    field(Path::new(&format!("/proc/{pid}/status")), "VmRSS:").unwrap() as f64 / 1024.0
}

/// A field of `/proc/PID/status` in KiB.
fn field(status: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// A measured case: its name, and a function that measures it once and returns a value for each column.
pub struct Case<'a> {
    pub name: String,
    pub once: Box<dyn FnMut() -> Vec<f64> + 'a>,
}

impl<'a> Case<'a> {
    pub fn new(name: impl Into<String>, once: impl FnMut() -> Vec<f64> + 'a) -> Self {
        Self {
            name: name.into(),
            once: Box::new(once),
        }
    }
}

/// The measurements of a case: a list for each column.
#[derive(Debug)]
pub struct Row {
    pub name: String,
    pub columns: Vec<Vec<f64>>,
}

/// Measures all cases in turn, this many times.
pub fn alternate(runs: usize, cases: Vec<Case<'_>>) -> Vec<Row> {
    let mut cases = cases;
    let mut rows: Vec<_> = cases
        .iter()
        .map(|case| Row {
            name: case.name.clone(),
            columns: Vec::new(),
        })
        .collect();
    for run in 1..=runs {
        for (case, row) in cases.iter_mut().zip(&mut rows) {
            let values = (case.once)();
            eprintln!("{run}/{runs} {}: {values:.3?}", case.name);
            row.columns.resize(values.len(), Vec::new());
            for (column, value) in row.columns.iter_mut().zip(values) {
                column.push(value);
            }
        }
    }
    rows
}
