use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::*;

/// A shell script at this place. It is put there by another program, because a file that this one had open for writing
/// while another test's thread starts a program cannot be run for a while.
pub(crate) fn script(dir: &Path, name: &str, body: &str) -> PathBuf {
    let (draft, path) = (dir.join(format!("{name}.draft")), dir.join(name));
    fs::write(&draft, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
    let copied = std::process::Command::new("cp")
        .arg("-p")
        .arg(&draft)
        .arg(&path)
        .status();
    assert!(copied.unwrap().success());
    path
}

const MINUTE: Duration = Duration::from_secs(60);

async fn run(body: &str, limit: Duration) -> Result<Output, ProgramError> {
    let dir = tempfile::tempdir().unwrap();
    Program::new(script(dir.path(), "p", body))
        .run(b"asked", limit)
        .await
}

#[tokio::test]
async fn program_reads_stdin_and_writes_stdout() {
    let output = run("printf 'to %s' \"$(cat)\"; echo aside >&2", MINUTE)
        .await
        .unwrap();
    assert!(output.answer.is("to asked"));
    assert_eq!(output.said(), ", stderr: aside");
    assert!(!format!("{output:?}").contains("asked"));
}

#[tokio::test]
async fn program_may_answer_without_reading() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::new(script(dir.path(), "p", "exec 0<&-; echo yes"));
    let output = program.run(&vec![b'x'; 1 << 20], MINUTE).await.unwrap();
    assert!(output.answer.is("yes"));
}

#[tokio::test]
async fn failure_shows_stderr_tail_not_stdout() {
    let body = "echo hunter2; i=0; while [ $i -lt 3000 ]; do printf 'noise '; i=$((i+1)); done >&2; printf '\\033[31mno token\\n' >&2; exit 3";
    let error = run(body, MINUTE).await.unwrap_err();
    let shown = error.to_string();
    assert!(shown.starts_with("exit status: 3, stderr: "), "{shown}");
    assert!(shown.ends_with("\\u{1b}[31mno token"), "{shown}");
    assert!(shown.len() < 700, "{}", shown.len());
    assert!(!format!("{shown}{error:?}").contains("hunter2"));
}

#[tokio::test]
async fn oversized_answer_ends_program() {
    let error = run("cat /dev/zero", MINUTE).await.unwrap_err();
    assert!(matches!(error, ProgramError::TooLong), "{error}");
}

#[tokio::test]
async fn missing_program_fails_to_start() {
    let error = Program::new("/nonexistent/p")
        .run(b"", MINUTE)
        .await
        .unwrap_err();
    assert!(matches!(error, ProgramError::Start(_)), "{error}");
}

#[tokio::test]
async fn hanging_program_dies_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let body = format!(
        "sleep 1000 & echo $$ $! > {0}.new; mv {0}.new {0}; wait",
        pids.display()
    );
    let program = Program::new(script(dir.path(), "p", &body));
    let limit = Duration::from_secs(5);
    let error = program.run(b"", limit).await.unwrap_err();
    assert_eq!(error.to_string(), "no response within 5s");
    let pids = fs::read_to_string(&pids).unwrap();
    let began = Instant::now();
    for pid in pids.split_whitespace() {
        // Ended, even if not reaped yet.
        while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z ")) {
            assert!(began.elapsed() < MINUTE, "{pid} still runs");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn environment_is_passed_except_private_credential() {
    let dir = tempfile::tempdir().unwrap();
    let path = script(
        dir.path(),
        "p",
        "echo \"$HOME|$ADDED|${PRIVATE_REGISTRY_AUTH-none}\"",
    );
    let mut program = Program::new(path).env("ADDED", "1");
    // As if it were in this program's own environment, which a test cannot change for all others.
    let withheld: Vec<_> = program.command.as_std().get_envs().collect();
    assert!(withheld.contains(&(OsStr::new(WITHHELD), None)));
    program = program.env("HOME", "/home/x");
    let output = program.run(b"", MINUTE).await.unwrap();
    assert!(output.answer.is("/home/x|1|none"));
}

#[tokio::test]
async fn traced_answer_hides_password() {
    for (answer, end) in [
        (r#"{"auth":{"r":{"username":"u","password":"hunter2"}}}"#, 0),
        (r#"{"Username":"u","Secret":"hunter2"}"#, 3),
    ] {
        let body = format!("set -x; echo '{answer}'; exit {end}");
        let said = match run(&body, MINUTE).await {
            Ok(output) => output.said(),
            Err(error) => error.to_string(),
        };
        assert!(
            said.contains("[secret]") && !said.contains("hunter2"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn child_holding_stdout_loses_no_answer() {
    // An agent that the program starts and that inherits its output, as gpg-agent does.
    let dir = tempfile::tempdir().unwrap();
    let body = format!(
        "sleep 600 & echo $! > {}; echo yes; echo aside >&2; exit $1",
        dir.path().join("pid").display()
    );
    let path = script(dir.path(), "p", &body);
    for status in ["0", "3"] {
        let began = Instant::now();
        let answered = Program::new(&path).arg(status).run(b"", MINUTE).await;
        let pid = fs::read_to_string(dir.path().join("pid")).unwrap();
        std::process::Command::new("kill")
            .arg(pid.trim())
            .status()
            .unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{:?}",
            began.elapsed()
        );
        match answered {
            Ok(output) => {
                assert!(output.answer.is("yes") && status == "0");
                assert_eq!(output.said(), ", stderr: aside");
            }
            Err(error) => {
                assert_eq!(
                    error.to_string(),
                    format!("exit status: {status}, stderr: aside")
                );
            }
        }
    }
}
