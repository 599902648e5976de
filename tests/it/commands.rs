//! The commands that pull nothing, and the program's basics: help, version, completions, pause, closed streams.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::bed::{self, Harpoon, Running};

#[test]
fn version_names_the_commit() {
    let output = Harpoon::new(["--version"]).run().expect(0);
    let version = output.stdout.trim();
    let commit = version
        .strip_prefix(concat!("harpoon ", env!("CARGO_PKG_VERSION"), " ("))
        .and_then(|v| v.strip_suffix(')'));
    let commit = commit.unwrap_or_else(|| panic!("{version}"));
    let is_hex = commit.len() >= 12 && commit.bytes().all(|b| b.is_ascii_hexdigit());
    assert!(is_hex || commit == "unknown", "{version}");
}

#[test]
fn usage_errors_exit_with_2() {
    for arguments in [
        vec!["frob"],
        vec!["--frob"],
        vec!["pull"],
        vec!["plan", "x"],
        vec!["completions", "cmd.exe"],
    ] {
        let output = Harpoon::new(arguments).run().expect(2);
        assert!(output.stderr.starts_with("error: "), "{output}");
        assert_eq!(output.stdout, "");
    }
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = Harpoon::new(["completions", shell]).run().expect(0);
        assert!(
            output.stdout.contains("runtime-endpoint") && output.stdout.contains("plan"),
            "{shell}"
        );
    }
}

/// Returns whether `harpoon pause`, this process, has started to wait for signals.
pub(crate) fn listens_for_signals(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:\t"));
    // SIGINT is bit 1, SIGTERM bit 14, SIGCHLD bit 16.
    caught
        .and_then(|c| u64::from_str_radix(c.trim(), 16).ok())
        .is_some_and(|c| c & 0x1_4002 == 0x1_4002)
}

#[test]
fn pause_opens_nothing_until_signaled() {
    for signal in [Signal::TERM, Signal::INT] {
        let running = Harpoon::new(["pause"]).start();
        let descriptors = format!("/proc/{}/fd", running.pid());
        bed::eventually("pause handles signals", Duration::from_secs(40), || {
            listens_for_signals(running.pid())
        });
        // Its streams, and the socket pair for signals: no file, no socket of a daemon.
        for descriptor in std::fs::read_dir(&descriptors).expect("fd") {
            let target = std::fs::read_link(descriptor.expect("entry").path()).expect("link");
            let target = target.to_string_lossy();
            assert!(
                ["pipe:", "socket:", "/dev/null"]
                    .iter()
                    .any(|k| target.starts_with(k)),
                "{target}"
            );
        }
        let threads = std::fs::read_dir(format!("/proc/{}/task", running.pid()))
            .expect("task")
            .count();
        assert_eq!(threads, 1);
        let told = Instant::now();
        running.signal(signal);
        running.wait().expect(0);
        assert!(told.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn commands_with_credentials_never_dump_core() {
    for arguments in [["run", "--images-file=images"], ["pull", "r.example/x"]] {
        // A runtime that never responds, so that there is a process to observe. Each has its own, since a killed process may
        // leave a connection that was never accepted.
        let directory = bed::directory();
        let socket = directory.path().join("silent.sock");
        let silent = std::os::unix::net::UnixListener::bind(&socket).expect("socket");
        silent.set_nonblocking(true).expect("socket");
        let running = Harpoon::new(arguments)
            .env("RUNTIME_ENDPOINT", &socket)
            .start();
        let limits = format!("/proc/{}/limits", running.pid());
        bed::eventually("there is no core dump", Duration::from_secs(40), || {
            let limits = std::fs::read_to_string(&limits).unwrap_or_default();
            let core = limits
                .lines()
                .find_map(|l| l.strip_prefix("Max core file size"));
            core.is_some_and(|c| c.split_whitespace().eq(["0", "0", "bytes"]))
        });
        bed::eventually("the runtime is asked", Duration::from_secs(40), || {
            silent.accept().is_ok()
        });
        running.signal(Signal::TERM);
        running.wait().expect(143);
    }
}

#[test]
fn pause_reaps_orphans_as_process_1() {
    // Process 1 of a namespace of its own gets a child whose parent ends at once.
    let script = "(sleep 2 &) ; exec \"$@\"";
    let running = Harpoon::new(["pause"])
        .under([
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            script,
            "sh",
        ])
        .start();
    let children = |of: u32| -> Vec<u32> {
        let mut ps = std::process::Command::new("ps");
        let output = bed::run(ps.args(["-eo", "pid=,ppid="]));
        let pairs = output.lines().filter_map(|line| {
            let mut numbers = line.split_whitespace().map(|n| n.parse().unwrap());
            Some((numbers.next()?, numbers.next()?))
        });
        pairs
            .filter(|(_, parent)| *parent == of)
            .map(|(pid, _)| pid)
            .collect()
    };
    let orphans = || {
        children(running.pid())
            .into_iter()
            .flat_map(children)
            .count()
    };
    bed::eventually("the orphan is there", Duration::from_secs(40), || {
        orphans() > 0
    });
    // One that is not reaped stays as a zombie.
    bed::eventually("the orphan is gone", Duration::from_secs(40), || {
        orphans() == 0
    });
    assert!(!running.has_ended());
}

#[test]
fn closed_streams_never_cause_panic() {
    for redirect in [">&-", "2>&-", ">&- 2>&-", ">/dev/full", "2>/dev/full"] {
        for command in ["plan", "--help", "completions"] {
            let harpoon = Harpoon::new([command]).under([
                "sh",
                "-c",
                &format!("exec \"$@\" {redirect}"),
                "sh",
            ]);
            let harpoon = if command == "completions" {
                harpoon.arg("bash")
            } else {
                harpoon
            };
            std::fs::write(harpoon.home().join("images"), "a\nb\n").expect("images file");
            let file = harpoon.home().join("images");
            let output = harpoon.env("IMAGES_FILE", file).run();
            assert!(
                output.code.is_some_and(|c| c < 3),
                "{command} {redirect}: {output}"
            );
            assert!(!output.stderr.contains("panicked"), "{output}");
        }
    }
}

/// A plan that is blocked in its write to a full pipe.
fn stuck_in_a_write(place: &Path) -> Running {
    let list = place.join("images");
    let names: String = (0..5000).map(|n| format!("app/image-{n}\n")).collect();
    std::fs::write(&list, names).unwrap();
    // Opened for reading too, the pipe never breaks.
    let full = "mkfifo pipe; exec \"$@\" 1<>pipe";
    let running = Harpoon::new(["plan", "--limit=1"])
        .env("IMAGES_FILE", &list)
        .env("RUNTIME_ENDPOINT", "oci:bundle")
        .under(["sh", "-c", full, "sh"])
        .start();
    running.wait_for("contains 5000 images", Duration::from_secs(40));
    std::thread::sleep(Duration::from_millis(500));
    assert!(!running.has_ended());
    running
}

#[test]
fn signal_ends_run_despite_full_pipe() {
    let place = tempfile::tempdir().unwrap();
    let running = stuck_in_a_write(place.path());
    let told = Instant::now();
    running.signal(Signal::TERM);
    let output = running.wait().expect(143);
    assert!(told.elapsed() < Duration::from_secs(10), "{output}");
}

#[test]
fn second_signal_exits_at_once() {
    // Without the second one it ends 1.5 s after the first. On a busy machine any end may come late.
    let is_at_once = || {
        let place = tempfile::tempdir().unwrap();
        let running = stuck_in_a_write(place.path());
        let told = Instant::now();
        // Both are one request, as `timeout` sends them.
        running.signal(Signal::INT);
        running.signal(Signal::INT);
        std::thread::sleep(Duration::from_millis(300));
        assert!(!running.has_ended());
        running.signal(Signal::TERM);
        running.wait().expect(130);
        told.elapsed() < Duration::from_secs(1)
    };
    assert!((0..5).any(|_| is_at_once()));
}
