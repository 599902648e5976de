//! `harpoon completions SHELL`.

use std::io::Write;

use anyhow::Result;
use clap_complete::{Shell, generate};

use super::outcome;
use super::{Exit, args};

/// Runs the command.
pub(super) fn main(shell: Shell) -> Result<Exit> {
    let mut script = Vec::new();
    generate(shell, &mut args::command(), "harpoon", &mut script);
    outcome::print(|out| out.write_all(&script))?;
    Ok(Exit::Done)
}
