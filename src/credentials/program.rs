//! Runs credential programs: docker's credential helpers and the kubelet's plugins.
//!
//! They run without a shell, within a time limit and with bounded output. They and all their child processes are ended when the
//! future is dropped. Their standard output is never shown, and they do not receive `PRIVATE_REGISTRY_AUTH`.

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

/// Maximum size of an answer in bytes.
const ANSWER_MAX: usize = 1 << 20;
/// Bytes of the end of standard error that are kept, and characters of it that are shown.
const STDERR_KEPT: usize = 4096;
const STDERR_SHOWN: usize = 500;
/// Maximum wait for the end of a program's output, which its children may hold open.
const LINGER: Duration = Duration::from_millis(500);
/// Interval of checks for the end of a program whose output is still open.
const LOOK: Duration = Duration::from_millis(20);
/// A variable with a credential that these programs do not need: anyone who may read a process's environment could read it there.
const WITHHELD: &str = "PRIVATE_REGISTRY_AUTH";

/// The reason why a program gave no answer.
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
    /// The answer is kept separate from the text: in some protocols it contains the reason of the failure.
    #[error("{status}{}", said(.stderr))]
    Failed {
        status: ExitStatus,
        stderr: Vec<u8>,
        answer: Answer,
    },
}

/// The standard output of a program: usually a credential.
pub(crate) struct Answer(pub(crate) Vec<u8>);

impl Answer {
    /// Returns whether the answer equals this text.
    pub(crate) fn is(&self, text: &str) -> bool {
        self.0.trim_ascii() == text.as_bytes()
    }

    /// The parts that must not be shown of standard error: a shell script that traces itself repeats its answer there.
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

/// The output of a program that succeeded.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) answer: Answer,
    stderr: Vec<u8>,
}

impl Output {
    /// Its standard error, for the end of a sentence that describes a problem with the answer.
    pub(crate) fn said(&self) -> String {
        said(&self.stderr)
    }
}

/// A program with its arguments and additional environment.
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
            // A process group of its own, so that its child processes can be ended with it.
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

    /// Writes the request to the program and waits until it has answered and ended.
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
                // All its output is in the pipes by now.
                () = group.leader_ended() => {
                    if let Ok(talked) = tokio::time::timeout(LINGER, talk).await {
                        talked.map(drop)?;
                    }
                }
            }
        }
        // Only now: the group's number is its leader's, and can be reused once the leader is waited for.
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

    /// Waits until the leader has ended but does not reap it, so that the group's number is not reused.
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
        // A program that does not read its request may still answer, or fail with a better reason.
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
