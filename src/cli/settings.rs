//! The list of all settings, as `clap` reflects them: for generated documentation and for tests.

use clap::{Arg, Command, CommandFactory};

use super::args::Cli;
use crate::app::settings::variables;

/// One setting: a flag and its environment variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The flag without its dashes.
    pub flag: String,
    /// The environment variables; the first that is set counts.
    pub variables: Vec<String>,
    /// The name of the value in the help, such as `TIME`; `BOOL` where the flag alone means `true`.
    pub value: String,
    /// The default value; `None` if there is none or if it varies, in which case the help describes it.
    pub default: Option<String>,
    /// The help text.
    pub help: String,
    /// The heading of its group in the help.
    pub heading: String,
    /// The commands that accept it.
    pub commands: Vec<String>,
}

/// Every setting, grouped by heading, in the order of the help.
pub fn settings() -> Vec<Setting> {
    let mut settings: Vec<Setting> = Vec::new();
    for command in Cli::command().get_subcommands() {
        for setting in of_command(command) {
            match settings.iter_mut().find(|s| s.flag == setting.flag) {
                Some(known) => known.commands.extend(setting.commands),
                None => {
                    let of_heading = |s: &Setting| s.heading == setting.heading;
                    let last = settings.iter().rposition(of_heading);
                    settings.insert(last.map_or(settings.len(), |last| last + 1), setting);
                }
            }
        }
    }
    settings
}

fn of_command(command: &Command) -> impl Iterator<Item = Setting> {
    let setting = |arg: &Arg| {
        arg.get_env()?;
        let flag = arg.get_long()?;
        let default = arg.get_default_values().first();
        Some(Setting {
            flag: flag.to_owned(),
            variables: variables(flag).split(", ").map(str::to_owned).collect(),
            value: arg.get_value_names().unwrap_or_default().concat(),
            default: default.map(|value| value.to_string_lossy().into_owned()),
            help: arg.get_help().map(ToString::to_string).unwrap_or_default(),
            heading: arg.get_help_heading().unwrap_or_default().to_owned(),
            commands: vec![command.get_name().to_owned()],
        })
    };
    command.get_arguments().filter_map(setting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_named_after_flags() {
        for command in Cli::command().get_subcommands() {
            for arg in command
                .get_arguments()
                .filter(|arg| arg.get_env().is_some())
            {
                let flag = arg.get_long().unwrap_or_default();
                let first = variables(flag).split(", ").next().map(str::to_owned);
                let variable = arg
                    .get_env()
                    .map(|name| name.to_string_lossy().into_owned());
                assert_eq!(variable, first, "--{flag}");
            }
        }
    }

    #[test]
    fn settings_name_their_commands() {
        let settings = settings();
        let commands = |flag: &str| {
            let setting = settings.iter().find(|s| s.flag == flag);
            setting.map(|s| s.commands.join(" ")).unwrap_or_default()
        };
        assert_eq!(settings.len(), 39);
        for (flag, expected) in [
            ("namespaces", "run plan"),
            ("images-file", "run plan"),
            ("limit", "run plan"),
            ("pull-secrets", "run plan"),
            ("sizes", "plan"),
            ("stagger", "run"),
            ("stagger-min-age", "run"),
            ("concurrency", "run pull agent"),
            ("fail-on", "run pull"),
            ("refresh", "run pull plan"),
            ("seal", "run pull plan"),
            ("seal-ttl", "run pull plan"),
            ("runtime-endpoint", "run pull plan agent seals release"),
            ("private-registry", "run pull plan agent"),
            ("log-level", "run pull plan agent controller seals release"),
            ("startup-taints", "run plan agent"),
            ("resync", "agent"),
            ("metrics-address", "agent controller"),
            ("leader-election-lease", "controller"),
        ] {
            assert_eq!(commands(flag), expected, "--{flag}");
        }
        for setting in &settings {
            assert!(
                !setting.help.is_empty() && !setting.heading.is_empty(),
                "{setting:?}"
            );
        }
        let endpoint = settings.iter().find(|s| s.flag == "runtime-endpoint");
        let variables = endpoint.map(|s| s.variables.clone());
        let expected = ["RUNTIME_ENDPOINT", "CONTAINER_RUNTIME_ENDPOINT"];
        assert_eq!(variables, Some(expected.map(str::to_owned).to_vec()));
    }
}
