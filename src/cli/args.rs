//! The command line: `clap` structs, one file for each group of settings, and the validated settings that they become.
//!
//! Every setting is a flag and an environment variable of the same name. Settings are validated here; other modules receive valid
//! values only.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::{Arg, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap::{ArgMatches, parser::ValueSource};
use clap_complete::Shell;

use crate::app::settings::{CONTAINER_RUNTIME_ENDPOINT, variables};

mod agent;
mod cluster;
mod controller;
mod credentials;
mod fill;
mod output;
mod pulling;
mod quantity;
mod runtime;
mod seal;
mod selection;
mod serve;
mod status;
mod store;
mod values;

pub(super) use agent::AgentArgs;
use cluster::ClusterArgs;
pub(super) use controller::ControllerArgs;
use credentials::{ClusterCredentialArgs, CredentialArgs};
use fill::FillArgs;
use output::OutputArgs;
use pulling::{PullingArgs, StartArgs};
use runtime::{EndpointArgs, RuntimeArgs};
use seal::SealArgs;
use selection::SelectionArgs;
use store::{SizeArgs, StoreArgs};

pub(crate) use output::Format;
pub(crate) use pulling::FailOn;
pub(crate) use status::{StatusArgs, StatusFormat};

const AFTER_HELP: &str = "\
Every setting is a flag and an environment variable; the flag takes precedence, and an empty variable counts as not set. \
Lists are separated by commas.

Exit codes: 0 success; 1 images failed (see --fail-on) or discovery failed; 2 invalid usage or settings; \
3 no usable container runtime; 130 or 143 interrupted by SIGINT or SIGTERM.";

/// Pre-pull container images onto this node before pods need them
#[derive(Parser)]
#[command(
    name = "harpoon",
    version = env!("HARPOON_VERSION"),
    after_help = AFTER_HELP,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Subcommands>,
    #[command(flatten)]
    pub(super) run: RunArgs,
}

#[derive(Subcommand)]
pub(super) enum Subcommands {
    /// Pull the images of the cluster's workloads or of the images file, then exit (default command)
    Run(Box<RunArgs>),
    /// Pull the given images with this node's container runtime
    Pull(Box<PullArgs>),
    /// Show which images run would pull or skip, and why; pull nothing
    Plan(Box<PlanArgs>),
    /// Keep the images that the controller has planned for this node: the node side of continuous mode
    Agent(Box<AgentArgs>),
    /// Plan the images of all ImagePrefetches and sum up what the agents report: the cluster side of continuous mode
    Controller(Box<ControllerArgs>),
    /// List this node's sealed images
    Seals(Box<SealsArgs>),
    /// Give up seals and pins on this node, so that the images may be deleted
    Release(Box<ReleaseArgs>),
    /// Show what continuous mode has put onto the cluster's nodes: prefetches, nodes and failures
    Status(Box<StatusArgs>),
    /// Print the CustomResourceDefinitions of continuous mode, for kubectl apply
    Crds,
    /// Sleep until SIGTERM or SIGINT, as the DaemonSet's main container
    Pause,
    /// Wait until a DaemonSet is ready on all its nodes, as the chart does after an uninstall
    #[command(hide = true)]
    WaitForDaemonset(WaitArgs),
    /// Print a shell completion script
    Completions {
        /// Shell to generate the script for
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
}

/// The settings of `harpoon run`.
#[derive(Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
    #[command(flatten)]
    pub(super) selection: SelectionArgs,
    #[command(flatten)]
    pub(super) store: StoreArgs,
    #[command(flatten)]
    pub(super) runtime: RuntimeArgs,
    #[command(flatten)]
    pub(super) credentials: CredentialArgs,
    #[command(flatten)]
    pub(super) cluster_credentials: ClusterCredentialArgs,
    #[command(flatten)]
    pub(super) pulling: PullingArgs,
    #[command(flatten)]
    pub(super) seal: SealArgs,
    #[command(flatten)]
    pub(super) fill: FillArgs,
    #[command(flatten)]
    pub(super) start: StartArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// The settings of `harpoon pull`.
#[derive(Args)]
pub(super) struct PullArgs {
    /// Image references to pull
    #[arg(value_name = "IMAGE", required = true)]
    pub(super) images: Vec<String>,
    #[command(flatten)]
    pub(super) store: StoreArgs,
    #[command(flatten)]
    pub(super) runtime: RuntimeArgs,
    #[command(flatten)]
    pub(super) credentials: CredentialArgs,
    #[command(flatten)]
    pub(super) pulling: PullingArgs,
    #[command(flatten)]
    pub(super) seal: SealArgs,
    #[command(flatten)]
    pub(super) fill: FillArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// The settings of `harpoon plan`.
#[derive(Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
    #[command(flatten)]
    pub(super) selection: SelectionArgs,
    #[command(flatten)]
    pub(super) store: StoreArgs,
    #[command(flatten)]
    pub(super) sizes: SizeArgs,
    #[command(flatten)]
    pub(super) seal: SealArgs,
    #[command(flatten)]
    pub(super) runtime: RuntimeArgs,
    #[command(flatten)]
    pub(super) credentials: CredentialArgs,
    #[command(flatten)]
    pub(super) cluster_credentials: ClusterCredentialArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// The settings of `harpoon seals`.
#[derive(Args)]
pub(super) struct SealsArgs {
    #[command(flatten)]
    pub(super) runtime: EndpointArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// The settings of `harpoon release`.
#[derive(Args)]
pub(super) struct ReleaseArgs {
    /// Images whose seals and pins to give up (default: all)
    #[arg(value_name = "IMAGE")]
    pub(super) images: Vec<String>,
    #[command(flatten)]
    pub(super) runtime: EndpointArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// The arguments of `harpoon wait-for-daemonset`.
#[derive(Args)]
pub(super) struct WaitArgs {
    /// Name of the DaemonSet, in the pod's own namespace
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// Longest wait
    #[arg(long, value_name = "SECONDS", default_value_t = 240)]
    pub(super) seconds: u64,
}

/// The command line without the environment, for reflection and completion.
pub(super) fn command() -> Command {
    each(Cli::command(), describe)
}

/// The name of the program as a plugin of kubectl.
const PLUGIN: &str = "kubectl-harpoon";

/// Returns whether a program of this name was started by kubectl as a plugin.
fn is_plugin(program: &OsStr) -> bool {
    Path::new(program)
        .file_stem()
        .is_some_and(|name| name == PLUGIN)
}

/// The arguments of a plugin of kubectl: without a command it shows the status, because a user's own machine is no node.
fn of_plugin(mut arguments: Vec<OsString>) -> Vec<OsString> {
    const GENERAL: [&str; 4] = ["-h", "--help", "-V", "--version"];
    let has_command = arguments.get(1).is_some_and(|first| {
        let is_flag = first.as_encoded_bytes().starts_with(b"-");
        !is_flag || GENERAL.iter().any(|general| first == general)
    });
    if !has_command {
        arguments.insert(arguments.len().min(1), "status".into());
    }
    arguments
}

/// Parses the arguments of this process and its environment.
pub(super) fn parse() -> Result<Cli, clap::Error> {
    let mut command = command();
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.first().is_some_and(|program| is_plugin(program)) {
        command = command.bin_name("kubectl harpoon");
        arguments = of_plugin(arguments);
    }
    let first = arguments.get(1);
    let is_named = first.is_some_and(|first| command.find_subcommand(first).is_some());
    command = each(command, read_variable);
    if is_named {
        // Settings of plain `harpoon` do not apply to the subcommand, so their variables are not read.
        command = command.mut_args(|arg| arg.env(None::<&'static str>));
    }
    let matches = command.try_get_matches_from(arguments)?;
    from_matches(&matches)
}

fn from_matches(matches: &ArgMatches) -> Result<Cli, clap::Error> {
    let mut cli = Cli::from_arg_matches(matches)?;
    let matches = matches.subcommand().map_or(matches, |(_, of)| of);
    let cluster = match &mut cli.command {
        None => Some(&mut cli.run.cluster),
        Some(Subcommands::Run(args)) => Some(&mut args.cluster),
        Some(Subcommands::Plan(args)) => Some(&mut args.cluster),
        Some(_) => None,
    };
    if let Some(cluster) = cluster {
        let source = matches.value_source("images_file");
        cluster.images_file_given = source != Some(ValueSource::DefaultValue);
    }
    Ok(cli)
}

/// Changes each argument of the command and of its subcommands.
fn each(command: Command, change: fn(Arg) -> Arg) -> Command {
    command
        .mut_args(change)
        .mut_subcommands(|subcommand| subcommand.mut_args(change))
}

/// Adds the names of the variables to the help of a setting, never their values. A negative number is a value, not a flag.
fn describe(arg: Arg) -> Arg {
    let Some(flag) = arg.get_env().and(arg.get_long()) else {
        return arg;
    };
    let help = format!(
        "{} [env: {}]",
        arg.get_help().cloned().unwrap_or_default(),
        variables(flag)
    );
    let takes_any = !arg.is_require_equals_set();
    arg.help(help).hide_env(true).allow_hyphen_values(takes_any)
}

/// Treats an empty variable as not set: manifests often contain such.
fn read_variable(arg: Arg) -> Arg {
    let is_set = |name: &OsStr| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    match arg.get_env() {
        None => arg,
        Some(name) if is_set(name) => arg,
        Some(_)
            if arg.get_id() == "runtime_endpoint"
                && is_set(CONTAINER_RUNTIME_ENDPOINT.as_ref()) =>
        {
            arg.env(CONTAINER_RUNTIME_ENDPOINT)
        }
        Some(_) => arg.env(None::<&'static str>),
    }
}

#[cfg(test)]
mod tests;
