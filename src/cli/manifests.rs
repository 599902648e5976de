//! `harpoon manifests`: the objects that install harpoon on a cluster, for `kubectl apply -f -`.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::args::{List, RunArgs, kinds, private_registry};
use super::{Exit, outcome};
use crate::app::keyring::registry_refused;
use crate::app::settings::SettingError;
use crate::credentials::keyring::Private;
use crate::discovery::images_file;
use crate::discovery::workloads::Namespaces;
use crate::manifests::options::{FLAGS, Scan, passed};
use crate::manifests::{self, Typed};
use crate::model::workload_kind::WorkloadKind;
use crate::runtime::detect::Endpoint;

const AFTER_HELP: &str = "A setting goes into the DaemonSet as the environment variable that is named; this command reads none.";
/// base64 of `user:password`, to judge the setting beside it.
const ANY_LOGIN: &str = "dXNlcjpwYXNzd29yZA==";

/// The flags of the command, and the settings of `harpoon run` that it passes on.
pub(super) struct ManifestsArgs {
    typed: Typed,
    stagger: Duration,
}

impl Args for ManifestsArgs {
    fn augment_args(command: Command) -> Command {
        let flags = FLAGS.iter().map(|flag| {
            let arg = Arg::new(flag.name).long(flag.name).value_name(flag.value);
            let arg = match flag.is_switch() {
                true => arg
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true"),
                false => arg.allow_hyphen_values(true),
            };
            let help = match flag.default {
                Some(default) => format!("{} [default: {default}]", flag.help),
                None => flag.help.to_owned(),
            };
            arg.help(help).help_heading("Manifests")
        });
        let run = RunArgs::augment_args(Command::new("run"));
        let settings = passed().filter_map(|setting| {
            let known = |arg: &&Arg| arg.get_long() == Some(setting.flag);
            let arg = run.get_arguments().find(known)?.clone();
            let help = format!(
                "{} [env: {}]",
                arg.get_help().cloned().unwrap_or_default(),
                setting.variables[0]
            );
            let takes_any = !arg.is_require_equals_set();
            let arg = arg.allow_hyphen_values(takes_any);
            Some(arg.help(help).env(None::<&'static str>))
        });
        command.after_help(AFTER_HELP).args(flags).args(settings)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ManifestsArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut typed = Typed::default();
        for flag in FLAGS {
            if let Some(value) = matches.get_one::<String>(flag.name) {
                typed.flags.insert(flag.name, value.clone());
            }
        }
        for setting in passed() {
            let id = setting.flag.replace('-', "_");
            if matches.value_source(&id) != Some(ValueSource::CommandLine) {
                continue;
            }
            let raw = matches.get_raw(&id).and_then(|mut values| values.next());
            let value = raw.unwrap_or_default().to_string_lossy().into_owned();
            typed.settings.insert(setting.flag, value);
        }
        let workloads = matches.get_one::<List<WorkloadKind>>("workloads").cloned();
        let namespaces = matches.get_one::<Namespaces>("namespaces").cloned();
        typed.scan = Scan {
            namespaces: namespaces.unwrap_or(Namespaces::Default),
            workloads: kinds(workloads.unwrap_or(List(Vec::new()))),
            pull_secrets: matches.get_flag("pull_secrets"),
            endpoint: matches.get_one::<Endpoint>("runtime_endpoint").cloned(),
        };
        let stagger = matches.get_one("stagger").copied().unwrap_or_default();
        Ok(Self { typed, stagger })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Runs the command.
pub(super) fn main(args: ManifestsArgs) -> Result<Exit> {
    let ManifestsArgs { mut typed, stagger } = args;
    if let Some(file) = typed.flags.get("images-from") {
        let Some(listed) = images_file::read_images_file(Path::new(file))? else {
            bail!("there is no images file at {file}");
        };
        typed.listed = Some(
            listed
                .into_iter()
                .map(|candidate| candidate.image.to_string())
                .collect(),
        );
    }
    let options = typed.options()?;
    judge(&typed, options.node_relevance, stagger)?;
    let objects = manifests::objects(&options);
    let text = manifests::print(&objects).context("failed to write the objects as YAML")?;
    outcome::print(|out| out.write_all(text.as_bytes()))?;
    Ok(Exit::Done)
}

/// Judges the settings that say nothing by themselves, as the pod will.
fn judge(typed: &Typed, has_node: bool, stagger: Duration) -> Result<(), SettingError> {
    let registry = typed.settings.get("private-registry").cloned();
    let secret = registry.as_ref().map(|_| OsString::from(ANY_LOGIN));
    if let Some((registry, auth)) = private_registry(registry, secret)? {
        Private::parse(&registry, &auth)
            .map_err(|error| registry_refused(&registry, &error.to_string()))?;
    }
    match typed.settings.get("stagger") {
        Some(value) if !stagger.is_zero() && !has_node => Err(SettingError::new(
            "stagger",
            value,
            "expected --node-relevance, which tells the node's name that determines the delay",
        )),
        _ => Ok(()),
    }
}
