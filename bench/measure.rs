//! Runs a command and says what it took; several commands in turn, so that a busy minute of the machine hits all alike.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// Clock ticks a second in `/proc/PID/stat`; Linux has had this one on every architecture for long.
const TICKS: f64 = 100.0;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What one run of a command took.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    /// Seconds.
    pub wall: f64,
    /// Seconds of CPU, user and system, of the command and the children it waited for.
    pub cpu: f64,
    /// The most memory resident, in MiB, of the command without its children; sampled every millisecond.
    pub memory: f64,
}

/// The program measured, in an environment with nothing in it.
pub fn harpoon<const N: usize>(arguments: [&str; N]) -> Command {
    let mut command = tool(crate::bed::program());
    command.args(arguments);
    command
}

/// A program of this machine, in an environment with nothing but a path and a home.
pub fn tool(name: &str) -> Command {
    // By its whole path: a name would be looked for between fork and exec, and a fork of this program, with its memory, is slow.
    let whole = PATH
        .split(':')
        .map(|directory| Path::new(directory).join(name));
    let whole = whole.into_iter().find(|path| path.exists());
    let mut command = Command::new(
        whole.unwrap_or_else(|| panic!("{name} is missing: run testbed/install bench")),
    );
    command.env_clear();
    command.env("PATH", PATH);
    command.env("HOME", std::env::temp_dir());
    command
}

/// Runs a command to its end, its standard output into nothing. Panics when it fails.
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

/// Seconds of CPU that children took so far which were waited for.
fn children() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6
}

/// Seconds of CPU that a process which still runs took so far, in steps of 10 ms.
pub fn cpu_of(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in brackets may have blanks in it.
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

/// From now on the peak of a process' resident memory is counted anew.
pub fn forget_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

/// The most memory that a process had resident since [`forget_peak`], in MiB.
pub fn peak_of(pid: u32) -> f64 {
    field(Path::new(&format!("/proc/{pid}/status")), "VmHWM:").unwrap() as f64 / 1024.0
}

/// A field of `/proc/PID/status` in KiB.
fn field(status: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Something that is measured: what it is called, and what measures it once, a value a column.
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

/// What a case measured: a list a column.
#[derive(Debug)]
pub struct Row {
    pub name: String,
    pub columns: Vec<Vec<f64>>,
}

/// Measures all cases in turn, so many times.
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

/// The middle of the values; of an even number of them the mean of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[half]
    } else {
        f64::midpoint(sorted[half - 1], sorted[half])
    }
}
