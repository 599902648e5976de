//! Runs the programs that know credentials: docker's credential helpers and the kubelet's plugins.
//!
//! They are run without a shell, within a time limit, with what they say bounded, and are ended with all that they started when
//! the future is dropped. Their standard output is never shown; nor do they see `PRIVATE_REGISTRY_AUTH`.

use std::ffi::OsStr;
use std::io;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, Command};

use crate::credentials::secret::{Secret, redact};
use crate::model::text::excerpt;

/// Longest answer that is read, in bytes.
const ANSWER_MAX: usize = 1 << 20;
/// How much of the end of standard error is kept, in bytes, and how much of that is shown, in characters.
const STDERR_KEPT: usize = 4096;
const STDERR_SHOWN: usize = 500;
/// Longest wait for the end of an ended program's output, which its children may hold open.
const LINGER: Duration = Duration::from_millis(500);
/// Interval of checks for the end of a program whose output is open.
const LOOK: Duration = Duration::from_millis(20);
/// The variable that holds a credential which is no business of these programs: anyone who may read a process's environment
/// could read it there.
const WITHHELD: &str = "PRIVATE_REGISTRY_AUTH";

/// Why a program gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    #[error("failed to start: {0}")]
    Start(io::Error),
    #[error("failed to communicate: {0}")]
    Talk(io::Error),
    #[error("no response within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    #[error("the response is longer than {ANSWER_MAX} bytes")]
    TooLong,
    /// The answer is kept apart from the text: some protocols say in it why they failed.
    #[error("{status}{}", said(.stderr))]
    Failed {
        status: ExitStatus,
        stderr: Vec<u8>,
        answer: Answer,
    },
}

/// What a program wrote to standard output: a credential, most likely.
pub(crate) struct Answer(pub(crate) Vec<u8>);

impl Answer {
    /// Whether it is nothing but this text.
    pub(crate) fn is(&self, text: &str) -> bool {
        self.0.trim_ascii() == text.as_bytes()
    }

    /// What must not be shown of standard error: a shell script that traces itself repeats its answer there.
    fn passwords(&self) -> Vec<Secret> {
        let mut found = Vec::new();
        if let Ok(json) = serde_json::from_slice(&self.0) {
            passwords(&json, &mut found);
        }
        found
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

/// What a program that ended well said.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) answer: Answer,
    stderr: Vec<u8>,
}

impl Output {
    /// What it wrote to standard error, for the end of a sentence that says what is wrong with the answer.
    pub(crate) fn said(&self) -> String {
        said(&self.stderr)
    }
}

/// A program with its arguments and what is added to its environment.
pub(crate) struct Program {
    command: Command,
}

impl Program {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command
            .env_remove(WITHHELD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            // A group of its own, so that what it starts can be ended with it.
            .process_group(0);
        Self { command }
    }

    pub(crate) fn arg(mut self, arg: &str) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives it the request and waits until it has answered and ended.
    pub(crate) async fn run(self, request: &[u8], limit: Duration) -> Result<Output, ProgramError> {
        tokio::time::timeout(limit, self.converse(request))
            .await
            .unwrap_or(Err(ProgramError::Timeout(limit)))
    }

    async fn converse(mut self, request: &[u8]) -> Result<Output, ProgramError> {
        let mut child = self.command.spawn().map_err(ProgramError::Start)?;
        let mut group = Group(child.id());
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (mut answer, mut said) = (Vec::new(), Vec::new());
        {
            let mut talk = pin!(async {
                tokio::try_join!(
                    read_bounded(stdout, &mut answer),
                    read_end(stderr, &mut said),
                    write(stdin, request)
                )
            });
            tokio::select! {
                talked = &mut talk => talked.map(drop)?,
                // What it wrote is in the pipes by now.
                () = group.leader_ended() => {
                    if let Ok(talked) = tokio::time::timeout(LINGER, talk).await {
                        talked.map(drop)?;
                    }
                }
            }
        }
        // Only now, because the group's number is its leader's, and free for others once that one is waited for.
        let status = child.wait().await.map_err(ProgramError::Talk)?;
        group.0 = None;
        let answer = Answer(answer);
        let stderr = redact(&String::from_utf8_lossy(&said), &answer.passwords()).into_bytes();
        if status.success() {
            Ok(Output { answer, stderr })
        } else {
            Err(ProgramError::Failed {
                status,
                stderr,
                answer,
            })
        }
    }
}

/// A process group that is ended when this is dropped, unless it was taken out.
struct Group(Option<u32>);

impl Group {
    fn leader(&self) -> Option<Pid> {
        self.0
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
    }

    /// Waits until the leader has ended, and leaves it to be waited for by others, so that the group's number stays its own.
    async fn leader_ended(&self) {
        let Some(leader) = self.leader() else {
            return std::future::pending().await;
        };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while !matches!(waitid(WaitId::Pid(leader), options), Ok(Some(_))) {
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.leader() {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

async fn write(pipe: Option<ChildStdin>, request: &[u8]) -> Result<(), ProgramError> {
    if let Some(mut pipe) = pipe {
        // A program that does not read what it was asked still answers, or fails with a better reason.
        let _ = pipe.write_all(request).await;
        let _ = pipe.shutdown().await;
    }
    Ok(())
}

async fn read_bounded(
    pipe: Option<impl AsyncRead + Unpin>,
    bytes: &mut Vec<u8>,
) -> Result<(), ProgramError> {
    if let Some(pipe) = pipe {
        pipe.take(ANSWER_MAX as u64 + 1)
            .read_to_end(bytes)
            .await
            .map_err(ProgramError::Talk)?;
    }
    if bytes.len() > ANSWER_MAX {
        return Err(ProgramError::TooLong);
    }
    Ok(())
}

async fn read_end(
    pipe: Option<impl AsyncRead + Unpin>,
    end: &mut Vec<u8>,
) -> Result<(), ProgramError> {
    let Some(mut pipe) = pipe else {
        return Ok(());
    };
    let mut buffer = [0; 1024];
    loop {
        let read = pipe.read(&mut buffer).await.map_err(ProgramError::Talk)?;
        let Some(piece @ [_, ..]) = buffer.get(..read) else {
            return Ok(());
        };
        end.extend_from_slice(piece);
        let surplus = end.len().saturating_sub(STDERR_KEPT);
        end.drain(..surplus);
    }
}

fn passwords(json: &Value, found: &mut Vec<Secret>) {
    let Value::Object(fields) = json else {
        return;
    };
    for (name, value) in fields {
        match value {
            Value::String(text) if matches!(name.as_str(), "password" | "Secret") => {
                found.push(Secret::new(text));
            }
            _ => passwords(value, found),
        }
    }
}

fn said(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let text = text.trim();
    if text.is_empty() {
        return String::new();
    }
    let surplus = text.chars().count().saturating_sub(STDERR_SHOWN);
    let end: String = text.chars().skip(surplus).collect();
    format!(", stderr: {}", excerpt(&end))
}

#[cfg(test)]
pub(crate) mod tests;
