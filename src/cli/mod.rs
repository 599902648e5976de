//! The command line: one file for each command, which only wires modules together. The only module that uses `clap`.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Error;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use crate::app::settings::SettingError;
use crate::app::telemetry;
use crate::fill::FillError;
use crate::model::text::{clip_bytes, sanitize};
use crate::report::termination;
use crate::runtime::detect::FindError;

mod agent;
mod args;
mod completions;
mod controller;
mod crds;
mod outcome;
mod pause;
mod plan;
mod pull;
mod run;
mod seals;
mod settings;
mod status;
mod wait;

pub use agent::run_agent;
use args::Subcommands;
pub use settings::{Setting, settings};

use crate::app::shutdown::{Interrupt, Interrupted};

/// The result of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything succeeded.
    Done,
    /// Images failed and `--fail-on` applies, or discovery failed completely.
    Failed,
    /// A signal interrupted it.
    Interrupted(Interrupt),
}

impl Exit {
    /// The exit code of the program.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Interrupted(interrupt) => interrupt.exit_code(),
        }
    }
}

/// The exit code of an error.
fn error_code(error: &Error) -> u8 {
    if error.is::<SettingError>() {
        2
    } else if error.is::<FindError>() || error.is::<FillError>() {
        3
    } else if let Some(Interrupted(signal)) = error.downcast_ref() {
        Exit::Interrupted(*signal).code()
    } else {
        1
    }
}

/// Disables core dumps of this process and of the programs that it runs, because they would contain credentials.
fn keep_memory_private() {
    // Child processes inherit the limit. A dump that the kernel pipes to a program ignores a limit of 0, hence the second call;
    // it also prevents other processes of the same user from reading the memory and the environment. If the system refuses, there
    // is no alternative.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = setrlimit(Resource::Core, none);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Parses the arguments, runs the command and prints its error. Returns the exit code.
pub fn main() -> ExitCode {
    let started = Instant::now();
    keep_memory_private();
    // The sleeping process on every node must use little memory: the command line is not even built for it.
    if std::env::args_os().skip(1).eq(["pause"]) {
        return ended(pause::main(), false);
    }
    let cli = match args::parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap's exit code treats help and version as success; a closed terminal is no failure either.
            let _ = error.print();
            if error.use_stderr() {
                // Written for every command, because users look at the pod's state first.
                terminated(&error.render().to_string());
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let leaves_message = matches!(
        cli.command,
        None | Some(Subcommands::Run(_) | Subcommands::Pull(_))
    );
    let result = match cli.command {
        None => run::main(cli.run, started),
        Some(Subcommands::Run(args)) => run::main(*args, started),
        Some(Subcommands::Pull(args)) => pull::main(*args, started),
        Some(Subcommands::Plan(args)) => plan::main(*args),
        Some(Subcommands::Agent(args)) => agent::main(*args),
        Some(Subcommands::Controller(args)) => controller::main(*args),
        Some(Subcommands::Seals(args)) => seals::list(*args),
        Some(Subcommands::Release(args)) => seals::release(*args),
        Some(Subcommands::Status(args)) => status::main(&args),
        Some(Subcommands::Crds) => crds::main(),
        Some(Subcommands::Pause) => pause::main(),
        Some(Subcommands::WaitForDaemonset(args)) => wait::main(&args),
        Some(Subcommands::Completions { shell }) => completions::main(shell),
    };
    ended(result, leaves_message)
}

/// Prints the error of a command, if any. Returns the exit code.
fn ended(result: anyhow::Result<Exit>, leaves_message: bool) -> ExitCode {
    match result {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) => {
            let text = format!("error: {}", sanitize(&format!("{error:#}")));
            telemetry::write_error(&text);
            // An interrupted run has written its report there.
            let is_told = error.is::<Interrupted>();
            if leaves_message && !is_told {
                terminated(&text);
            }
            ExitCode::from(error_code(&error))
        }
    }
}

/// Writes an error as the container's termination message. A failure to write is ignored; standard error has the error too.
fn terminated(error: &str) {
    let lines: Vec<String> = error.trim_end().lines().map(sanitize).collect();
    let message = clip_bytes(&lines.join("\n"), termination::MAX_BYTES);
    let _ = termination::write(termination::PATH.as_ref(), &message);
}
