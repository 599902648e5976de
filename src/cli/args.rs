//! The command line as clap sees it, made from the table of settings.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt::Write as _;

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use crate::app::config::settings::{self, Group};
use crate::app::config::{Raw, Setting};

const ABOUT: &str = "Puts container images onto this node before a pod needs them";

const AFTER_HELP: &str = "\
Every setting is a flag and an environment variable; the flag wins. Lists are separated by commas.

Exit codes: 0 done; 1 images failed as --fail-on says, or discovery failed; 2 usage or settings; \
3 no usable runtime; 130 and 143 interrupted.";

/// The whole command line.
pub fn command() -> Command {
    let run =
        "Pull what the configuration selects, once, then exit (the default): the init container";
    let images = Arg::new("images")
        .value_name("IMAGE")
        .required(true)
        .num_args(1..)
        .help("Image references to pull");
    let shell = Arg::new("shell")
        .value_name("SHELL")
        .required(true)
        .value_parser(value_parser!(Shell))
        .help("The shell to complete for");
    with_settings(Command::new("harpoon"), settings::RUN)
        .version(env!("HARPOON_VERSION"))
        .about(ABOUT)
        .after_help(AFTER_HELP)
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
        .max_term_width(100)
        .subcommands([
            with_settings(Command::new("run").about(run), settings::RUN),
            with_settings(
                Command::new("pull").about("Pull these images with this node's runtime"),
                settings::PULL_COMMAND,
            )
            .arg(images),
            with_settings(
                Command::new("plan").about("Print what run would do and why; pull nothing"),
                settings::PLAN,
            ),
            Command::new("pause")
                .about("Sleep until SIGTERM or SIGINT: the DaemonSet's main container"),
            Command::new("completions")
                .about("Print a shell's completions")
                .arg(shell),
        ])
}

fn with_settings(mut command: Command, groups: &[&'static Group]) -> Command {
    for (heading, settings) in groups {
        for setting in *settings {
            command = command.arg(argument(setting).help_heading(*heading));
        }
    }
    command
}

fn argument(setting: &'static Setting) -> Arg {
    let mut help = setting.help.to_owned();
    if let Some(default) = setting.default {
        let _ = write!(help, " [default: {default}]");
    }
    let _ = write!(help, " [env: {}]", setting.variables.join(", "));
    let argument = Arg::new(setting.flag).long(setting.flag).help(help);
    with_value(argument, setting.value, setting.is_switch())
}

fn with_value(argument: Arg, value: &'static str, is_switch: bool) -> Arg {
    let argument = argument.value_name(value);
    if is_switch {
        argument
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
    } else {
        argument.allow_hyphen_values(true)
    }
}

/// The settings that were typed, with the environment behind them.
pub(super) fn raw(matches: &ArgMatches) -> Raw<'static> {
    Raw::new(typed(matches), &variable)
}

/// The settings that were typed, by flag.
fn typed(matches: &ArgMatches) -> HashMap<&'static str, String> {
    let typed = |setting: &&&'static Setting| {
        let value = matches.try_get_one::<String>(setting.flag).ok().flatten();
        value.map(|v| (setting.flag, v.clone()))
    };
    settings::ALL.iter().filter_map(|s| typed(&s)).collect()
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

#[cfg(test)]
mod tests {
    #[test]
    fn clap_finds_no_fault_with_the_command_line() {
        super::command().debug_assert();
    }
}
