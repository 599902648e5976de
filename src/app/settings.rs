//! Plain, validated settings of the commands, and the error for one that is not accepted.
//!
//! It never reads the command line or the environment.

use std::path::PathBuf;
use std::time::Duration;

use crate::credentials::secret::Secret;
use crate::discovery::workloads::Settings as ClusterSettings;
use crate::model::image_size::DiskLimit;
use crate::model::platform::Platform;
use crate::model::seal::SealPolicy;
use crate::runtime::containerd::Keep;
use crate::runtime::detect::Endpoint;

/// A setting whose value is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid value {value:?} for {name}: {reason}")]
pub struct SettingError {
    /// The setting's flag and variables.
    name: String,
    /// The value that was given.
    value: String,
    /// The values that are accepted, or the reason why this one is not.
    reason: String,
}

impl SettingError {
    /// The error for the setting with this flag, which is given without its dashes.
    pub fn new(flag: &str, value: &str, reason: &str) -> Self {
        Self::named(&format!("--{flag} ({})", variables(flag)), value, reason)
    }

    /// The error for an input that is no setting with a flag and a variable.
    pub fn named(name: &str, value: &str, reason: &str) -> Self {
        Self {
            name: name.to_owned(),
            value: value.to_owned(),
            reason: reason.to_owned(),
        }
    }
}

/// Time that content of a killed pull is kept after the attempt's time limit, for the next attempt.
const PULL_MARGIN: Duration = Duration::from_secs(600);

/// The second variable of `--runtime-endpoint`, read where the first is not set: `crictl` and the Go tool read it too.
pub const CONTAINER_RUNTIME_ENDPOINT: &str = "CONTAINER_RUNTIME_ENDPOINT";

/// The environment variables of a flag, separated by commas. The first is named after the flag.
pub fn variables(flag: &str) -> String {
    let variable = flag.to_uppercase().replace('-', "_");
    match flag {
        "runtime-endpoint" => format!("{variable}, {CONTAINER_RUNTIME_ENDPOINT}"),
        _ => variable,
    }
}

/// The sources of candidates.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The images file, which wins where it exists.
    pub images_file: PathBuf,
    /// True if the user named that file, so that it must exist.
    pub images_file_given: bool,
    /// The scan of the cluster, used if there is no images file.
    pub cluster: ClusterSettings,
}

/// The runtime to use.
#[derive(Debug, Clone)]
pub struct RuntimeSettings {
    /// The endpoint; `None` to find one.
    pub endpoint: Option<Endpoint>,
    /// The platform to plan for and to fill an `oci:` directory for; `None` for the node's own.
    pub platform: Option<Platform>,
}

/// The lookups in stores and registries before the pulls.
#[derive(Debug, Clone, Copy)]
pub struct StoreSettings {
    /// The maximum size of the runtime's image store.
    pub disk_budget: Option<DiskLimit>,
    /// True to compare images whose tag may have moved with their registries.
    pub refresh: bool,
}

/// Sealing policy and lifetime of seals.
#[derive(Debug, Clone, Copy)]
pub struct SealSettings {
    /// The images to seal.
    pub policy: SealPolicy,
    /// The lifetime of a seal.
    pub lifetime: Duration,
}

impl SealSettings {
    /// The lifetimes, where one attempt at an image takes at most so long.
    pub fn keep(self, pull_timeout: Duration) -> Keep {
        Keep {
            seal: self.lifetime,
            pull: pull_timeout.saturating_add(PULL_MARGIN),
            by_agent: false,
        }
    }
}

/// The start delay of a run.
#[derive(Debug, Clone)]
pub struct StartSettings {
    /// The longest delay.
    pub stagger: Duration,
    /// Nodes younger than this start without delay.
    pub min_age: Duration,
    /// The node whose name determines the delay; present wherever there is a delay.
    pub node: Option<String>,
}

impl StartSettings {
    /// Without any delay.
    pub fn at_once() -> Self {
        Self {
            stagger: Duration::ZERO,
            min_age: Duration::ZERO,
            node: None,
        }
    }
}

/// Sources of credentials that the command line and the environment name.
#[derive(Debug, Clone, Default)]
pub struct CredentialSettings {
    /// One registry and base64 of `user:password` for it.
    pub private: Option<(String, Secret)>,
    /// Docker config files that must exist; `None` for the usual ones where they exist.
    pub docker_configs: Option<Vec<PathBuf>>,
    /// The usual docker config files; the first that exists is used.
    pub usual_docker_configs: Vec<PathBuf>,
    /// The kubelet's credential provider configuration, and the directory of the plugins.
    pub providers: Option<(PathBuf, PathBuf)>,
}

/// Limits of pulling.
#[derive(Debug, Clone)]
pub struct PullSettings {
    /// The maximum number of concurrent pulls; at least 1.
    pub concurrency: usize,
    /// The maximum number of concurrent pulls from one registry; at least 1.
    pub registry_concurrency: usize,
    /// The time limit for one attempt at one image.
    pub pull_timeout: Duration,
    /// The time limit for the whole run.
    pub deadline: Option<Duration>,
    /// Retries after a retryable failure.
    pub retries: u32,
}

/// Format and level of the logs on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    /// Lines of JSON rather than text.
    pub json: bool,
    /// The least severe level that is shown.
    pub level: tracing::Level,
}
