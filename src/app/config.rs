//! Raw settings, as typed or found in the environment, made into validated ones.
//!
//! One table, [`settings`], names every setting with its variable, default and help; the command line, the README and
//! the tests are made from it. Nothing past this module meets a text that may be wrong.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::credentials::keyring::Private;
use crate::credentials::secret::Secret;
use crate::discovery::workloads::{Namespaces, Settings as ClusterSettings};
use crate::model::platform::Platform;
use crate::model::reference::Prefix;
use crate::model::workload_kind::WorkloadKind;
use crate::planning::plan::Policy;
use crate::runtime::detect::Endpoint;

mod quantity;
mod selector;
pub mod settings;

pub use settings::Setting;

/// A setting whose value is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid value {value:?} for {name}: {accepted}")]
pub struct ConfigError {
    /// The setting's flag and variable.
    pub name: String,
    /// What was given.
    pub value: String,
    /// What would have been accepted.
    pub accepted: String,
}

/// Settings as typed: flags first, then the environment.
pub struct Raw<'a> {
    flags: HashMap<&'static str, String>,
    environment: &'a dyn Fn(&str) -> Option<OsString>,
}

impl<'a> Raw<'a> {
    /// The flags that were typed, by name without dashes, and a view of the environment.
    pub fn new(
        flags: HashMap<&'static str, String>,
        environment: &'a dyn Fn(&str) -> Option<OsString>,
    ) -> Self {
        Self { flags, environment }
    }

    /// The setting's value or its default. A variable that is set to nothing is not set: manifests often have such.
    fn text(&self, setting: &Setting) -> Result<Option<String>, ConfigError> {
        if let Some(typed) = self.flags.get(setting.flag) {
            return match typed.trim() {
                "" => {
                    Err(setting.refuse(typed, "expected a value, or no such flag for the default"))
                }
                _ => Ok(Some(typed.clone())),
            };
        }
        for variable in setting.variables {
            let Some(value) = (self.environment)(variable).filter(|v| !v.is_empty()) else {
                continue;
            };
            return match value.into_string() {
                Ok(value) => Ok(Some(value)),
                Err(value) => Err(setting.refuse(&value.to_string_lossy(), "expected valid UTF-8")),
            };
        }
        Ok(setting.default.map(str::to_owned))
    }

    /// Returns whether the user gave the setting a value.
    fn is_given(&self, setting: &Setting) -> bool {
        let set = |variable: &&str| (self.environment)(variable).is_some_and(|v| !v.is_empty());
        self.flags.contains_key(setting.flag) || setting.variables.iter().any(set)
    }

    /// The items of a list, blanks around them and empty ones dropped.
    fn items(&self, setting: &Setting) -> Result<Vec<String>, ConfigError> {
        let text = self.text(setting)?.unwrap_or_default();
        let items = text.split(',').map(str::trim).filter(|i| !i.is_empty());
        let items: Vec<String> = items.map(str::to_owned).collect();
        if items.is_empty() && self.flags.contains_key(setting.flag) {
            return Err(setting.refuse(&text, "expected at least one item, separated by commas"));
        }
        Ok(items)
    }

    fn path(&self, setting: &Setting) -> Result<Option<PathBuf>, ConfigError> {
        self.parse(setting, "expected a path", |p| {
            (!p.is_empty() && !p.contains('\0')).then(|| PathBuf::from(p))
        })
    }

    fn switch(&self, setting: &Setting) -> Result<bool, ConfigError> {
        self.required(setting, "expected true or false", |text| text.parse().ok())
    }

    fn parse<T>(
        &self,
        setting: &Setting,
        accepted: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        match self.text(setting)? {
            None => Ok(None),
            Some(text) => match parse(text.trim()) {
                Some(value) => Ok(Some(value)),
                None => Err(setting.refuse(&text, accepted)),
            },
        }
    }

    /// The value of a setting that has a default.
    fn required<T>(
        &self,
        setting: &Setting,
        accepted: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, ConfigError> {
        self.parse(setting, accepted, parse)?
            .ok_or_else(|| setting.refuse("", accepted))
    }
}

/// Where candidates come from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The images file, which wins where it exists.
    pub images_file: PathBuf,
    /// True if the user named that file, so that it must exist.
    pub images_file_given: bool,
    /// What to ask the cluster for, else.
    pub cluster: ClusterSettings,
}

/// Which runtime is used.
#[derive(Debug, Clone)]
pub struct RuntimeSettings {
    /// The endpoint; `None` to find one.
    pub endpoint: Option<Endpoint>,
    /// The platform that an `oci:` directory is filled for, and that is planned for; `None` for the node's own.
    pub platform: Option<Platform>,
}

/// What is asked of stores and registries before anything is pulled.
#[derive(Debug, Clone, Copy)]
pub struct StoreSettings {
    /// What the runtime's image store may hold, in bytes.
    pub disk_budget: Option<u64>,
    /// Whether images whose tag may have moved are compared with their registries.
    pub refresh: bool,
}

/// When a run starts.
#[derive(Debug, Clone)]
pub struct StartSettings {
    /// The longest delay.
    pub stagger: Duration,
    /// A node younger than this does not wait.
    pub min_age: Duration,
    /// The node whose name fixes the delay; there is one wherever there is a delay.
    pub node: Option<String>,
}

/// Where the credentials are that the command line and the environment name.
#[derive(Debug, Clone, Default)]
pub struct CredentialSettings {
    /// One registry and base64 of `user:password` for it.
    pub private: Option<(String, Secret)>,
    /// Docker config files that must be there; `None` for the usual ones where they are.
    pub docker_configs: Option<Vec<PathBuf>>,
    /// The usual docker config files, of which the first that exists counts.
    pub usual_docker_configs: Vec<PathBuf>,
    /// The kubelet's configuration of credential provider plugins, and the directory that the plugins are in.
    pub providers: Option<(PathBuf, PathBuf)>,
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

/// How images are pulled.
#[derive(Debug, Clone)]
pub struct PullSettings {
    /// Pulls at once; at least 1.
    pub concurrency: usize,
    /// Pulls at once from one registry; at least 1.
    pub registry_concurrency: usize,
    /// The time limit of one attempt at one image.
    pub pull_timeout: Duration,
    /// The time limit of the whole run.
    pub deadline: Option<Duration>,
    /// Further attempts after a retryable failure.
    pub retries: u32,
    /// Which failures make the program fail.
    pub fail_on: FailOn,
}

/// Which failures make the program exit with 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailOn {
    /// That of any image.
    Any,
    /// When none of the images that were wanted is there.
    All,
    /// None.
    Never,
}

/// What standard output gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// A table for people.
    Text,
    /// One JSON object.
    Json,
}

/// What standard error gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    /// Lines of JSON rather than text.
    pub json: bool,
    /// The least severe level that is shown.
    pub level: tracing::Level,
}

/// Reads [`settings::SOURCES`].
///
/// # Errors
/// Names the setting, its value and what is accepted. So do all functions of this module.
pub fn sources(raw: &Raw<'_>) -> Result<Sources, ConfigError> {
    let images_file = raw.path(&settings::IMAGES_FILE)?;
    Ok(Sources {
        images_file: images_file.unwrap_or_default(),
        images_file_given: raw.is_given(&settings::IMAGES_FILE),
        cluster: ClusterSettings {
            namespaces: namespaces(raw)?,
            workloads: workloads(raw)?,
            selector: raw
                .parse(&settings::SELECTOR, selector::ACCEPTED, |s| {
                    selector::is_valid(s).then(|| s.to_owned())
                })?
                .filter(|s| !s.is_empty()),
            include_idle: raw.switch(&settings::INCLUDE_IDLE)?,
            pull_secrets: raw.switch(&settings::PULL_SECRETS)?,
            node: node_name(raw)?,
            startup_taints: startup_taints(raw)?,
            node_age: false,
            sizes: false,
            platform: platform(raw)?,
            watch_cache: raw.switch(&settings::WATCH_CACHE)?,
        },
    })
}

fn namespaces(raw: &Raw<'_>) -> Result<Namespaces, ConfigError> {
    let setting = &settings::NAMESPACES;
    let items = raw.items(setting)?;
    if items.is_empty() {
        return Ok(Namespaces::Default);
    }
    match items.iter().find(|i| *i != "*" && !is_dns_label(i)) {
        Some(bad) => {
            let accepted = "expected namespaces separated by commas (lower-case letters, digits and -, at most 63 characters), or *";
            Err(setting.refuse(bad, accepted))
        }
        None if items.iter().any(|i| i == "*") => Ok(Namespaces::All),
        None => Ok(Namespaces::These(items)),
    }
}

fn workloads(raw: &Raw<'_>) -> Result<Vec<WorkloadKind>, ConfigError> {
    let setting = &settings::WORKLOADS;
    let items = raw.items(setting)?;
    let all = items.iter().any(|i| i == "all");
    let mut kinds = Vec::new();
    for item in items.into_iter().filter(|i| i != "all") {
        match WorkloadKind::parse(&item) {
            Some(kind) if kinds.contains(&kind) => {}
            Some(kind) => kinds.push(kind),
            None => {
                let accepted = "expected some of deployments, statefulsets, daemonsets, replicasets, jobs, cronjobs, pods, separated by commas, or all";
                return Err(setting.refuse(&item, accepted));
            }
        }
    }
    if kinds.is_empty() {
        kinds.push(WorkloadKind::Deployments);
    }
    Ok(if all {
        WorkloadKind::ALL.to_vec()
    } else {
        kinds
    })
}

fn startup_taints(raw: &Raw<'_>) -> Result<Vec<String>, ConfigError> {
    let setting = &settings::STARTUP_TAINTS;
    let keys = raw.items(setting)?;
    match keys.iter().find(|key| !selector::is_key(key)) {
        None => Ok(keys),
        Some(bad) => {
            let accepted = "expected keys of taints separated by commas, without value and effect, such as example.com/starting";
            Err(setting.refuse(bad, accepted))
        }
    }
}

/// Reads [`settings::POLICY`].
///
/// # Errors
/// As [`sources`].
pub fn policy(raw: &Raw<'_>) -> Result<Policy, ConfigError> {
    let accepted = "expected a whole number, 1 or more";
    Ok(Policy {
        only: prefixes(raw, &settings::ONLY)?,
        ignore: prefixes(raw, &settings::IGNORE)?,
        limit: raw.parse(&settings::LIMIT, accepted, |text| {
            whole(text, usize::MAX as u64).map(|n| n as usize)
        })?,
        ..Policy::default()
    })
}

fn prefixes(raw: &Raw<'_>, setting: &Setting) -> Result<Vec<Prefix>, ConfigError> {
    let parse = |item: String| {
        Prefix::parse(&item).ok_or_else(|| {
            setting.refuse(
                &item,
                "expected beginnings of image references separated by commas, without a scheme and with the repository in lower case, such as quay.io or quay.io/team",
            )
        })
    };
    raw.items(setting)?.into_iter().map(parse).collect()
}

/// Reads [`settings::RUNTIME`].
///
/// # Errors
/// As [`sources`].
pub fn runtime(raw: &Raw<'_>) -> Result<RuntimeSettings, ConfigError> {
    let setting = &settings::RUNTIME_ENDPOINT;
    let endpoint = match raw.text(setting)? {
        None => None,
        Some(text) => match Endpoint::parse(text.trim()) {
            Ok(endpoint) => Some(endpoint),
            Err(_) => {
                return Err(
                    setting.refuse(&text, "expected unix:///PATH, an absolute PATH, or oci:DIR")
                );
            }
        },
    };
    Ok(RuntimeSettings {
        endpoint,
        platform: platform(raw)?,
    })
}

fn platform(raw: &Raw<'_>) -> Result<Option<Platform>, ConfigError> {
    let accepted = "expected OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/arm64";
    raw.parse(&settings::PLATFORM, accepted, Platform::parse)
}

/// Reads [`settings::STORE`].
///
/// # Errors
/// As [`sources`].
pub fn store(raw: &Raw<'_>) -> Result<StoreSettings, ConfigError> {
    Ok(StoreSettings {
        disk_budget: raw.parse(&settings::DISK_BUDGET, quantity::ACCEPTED, quantity::bytes)?,
        refresh: raw.switch(&settings::REFRESH)?,
    })
}

/// Reads [`settings::TOLD`]: whether sizes are asked for.
///
/// # Errors
/// As [`sources`].
pub fn sizes(raw: &Raw<'_>) -> Result<bool, ConfigError> {
    raw.switch(&settings::SIZES)
}

/// Reads [`settings::START`].
///
/// # Errors
/// As [`sources`].
pub fn start(raw: &Raw<'_>) -> Result<StartSettings, ConfigError> {
    let accepted = "expected a time, such as 90s, 5m or 0s";
    let time = |text: &str| humantime::parse_duration(text).ok();
    let stagger = raw.required(&settings::STAGGER, accepted, time)?;
    let node = node_name(raw)?;
    if node.is_none() && !stagger.is_zero() {
        let value = raw.text(&settings::STAGGER)?.unwrap_or_default();
        let accepted =
            "expected the node's name beside it, --node-name (NODE_NAME), which fixes the delay";
        return Err(settings::STAGGER.refuse(&value, accepted));
    }
    Ok(StartSettings {
        stagger,
        min_age: raw.required(&settings::STAGGER_MIN_AGE, accepted, time)?,
        node,
    })
}

/// Reads [`settings::CREDENTIALS`] and the variable of the private registry's secret.
///
/// # Errors
/// As [`sources`]; the secret is never shown.
pub fn credentials(raw: &Raw<'_>) -> Result<CredentialSettings, ConfigError> {
    let (config, bin_dir) = (
        &settings::CREDENTIAL_PROVIDER_CONFIG,
        &settings::CREDENTIAL_PROVIDER_BIN_DIR,
    );
    let providers = match (raw.path(config)?, raw.path(bin_dir)?) {
        (Some(config), Some(bin_dir)) => Some((config, bin_dir)),
        (None, None) => None,
        (Some(file), None) => {
            let accepted =
                "expected the plugins' directory beside it, --credential-provider-bin-dir";
            return Err(config.refuse(&file.to_string_lossy(), accepted));
        }
        (None, Some(directory)) => {
            let accepted = "expected their configuration beside it, --credential-provider-config";
            return Err(bin_dir.refuse(&directory.to_string_lossy(), accepted));
        }
    };
    let files = raw.items(&settings::REGISTRY_CONFIG)?;
    let usual = |variable: &str, below: &str| {
        let directory = (raw.environment)(variable).filter(|d| !d.is_empty())?;
        Some(PathBuf::from(directory).join(below))
    };
    let usual_docker_configs = [
        usual("DOCKER_CONFIG", "config.json"),
        usual("HOME", ".docker/config.json"),
    ];
    Ok(CredentialSettings {
        private: private_registry(raw)?,
        docker_configs: (!files.is_empty()).then(|| files.into_iter().map(PathBuf::from).collect()),
        usual_docker_configs: usual_docker_configs.into_iter().flatten().collect(),
        providers,
    })
}

fn private_registry(raw: &Raw<'_>) -> Result<Option<(String, Secret)>, ConfigError> {
    let secret = (raw.environment)(settings::PRIVATE_REGISTRY_AUTH).filter(|v| !v.is_empty());
    match (raw.text(&settings::PRIVATE_REGISTRY)?, secret) {
        (None, None) => Ok(None),
        (Some(registry), Some(secret)) => match secret.into_string() {
            Ok(secret) => Ok(Some((registry, Secret::new(secret)))),
            Err(_) => Err(secret_refused()),
        },
        (Some(registry), None) => Err(registry_refused(
            &registry,
            "expected the variable PRIVATE_REGISTRY_AUTH beside it, base64 of user:password",
        )),
        (None, Some(_)) => Err(registry_refused(
            "",
            "expected HOST or HOST/PATH, since PRIVATE_REGISTRY_AUTH is set",
        )),
    }
}

/// The error for a private registry that is not accepted, without the user and password that were put before its host, or
/// in its place.
pub fn registry_refused(registry: &str, accepted: &str) -> ConfigError {
    let shown = match registry.rsplit_once('@') {
        Some((_, host)) => format!("(not shown)@{host}"),
        None if Private::is_auth(registry) => "(not shown)".to_owned(),
        None => registry.to_owned(),
    };
    settings::PRIVATE_REGISTRY.refuse(&shown, accepted)
}

/// The error for a secret that cannot be read, without the secret.
pub fn secret_refused() -> ConfigError {
    ConfigError {
        name: settings::PRIVATE_REGISTRY_AUTH.to_owned(),
        value: "(not shown)".to_owned(),
        accepted: "expected base64 of user:password".to_owned(),
    }
}

/// Reads the node's name.
///
/// # Errors
/// As [`sources`].
pub fn node_name(raw: &Raw<'_>) -> Result<Option<String>, ConfigError> {
    let accepted =
        "expected a node's name: lower-case letters, digits, - and ., at most 253 characters";
    raw.parse(&settings::NODE_NAME, accepted, |name| {
        let fits = name.len() <= 253 && name.split('.').all(is_dns_label);
        fits.then(|| name.to_owned())
    })
}

/// Reads [`settings::PULL`], with the command's own default for `--fail-on`.
///
/// # Errors
/// As [`sources`].
pub fn pull(raw: &Raw<'_>, fail_on: FailOn) -> Result<PullSettings, ConfigError> {
    let span = "expected a time above zero, such as 90s, 15m or 1h30m";
    let positive = |text: &str| {
        humantime::parse_duration(text)
            .ok()
            .filter(|d| !d.is_zero())
    };
    let pulls = "expected a whole number from 1 to 1000";
    let at_once = |text: &str| whole(text, 1000).map(|n| n as usize);
    let concurrency = raw.required(&settings::CONCURRENCY, pulls, at_once)?;
    let of_one = raw.parse(&settings::REGISTRY_CONCURRENCY, pulls, at_once)?;
    Ok(PullSettings {
        concurrency,
        registry_concurrency: of_one.unwrap_or(concurrency),
        pull_timeout: raw.required(&settings::PULL_TIMEOUT, span, positive)?,
        deadline: raw.parse(&settings::DEADLINE, span, positive)?,
        retries: raw.required(
            &settings::RETRIES,
            "expected a whole number from 0 to 100",
            |text| match text {
                "0" => Some(0),
                text => whole(text, 100).map(|n| n as u32),
            },
        )?,
        fail_on: raw
            .parse(
                &settings::FAIL_ON,
                "expected any, all or never",
                |text| match text {
                    "any" => Some(FailOn::Any),
                    "all" => Some(FailOn::All),
                    "never" => Some(FailOn::Never),
                    _ => None,
                },
            )?
            .unwrap_or(fail_on),
    })
}

/// Reads what standard output gets.
///
/// # Errors
/// As [`sources`].
pub fn output(raw: &Raw<'_>) -> Result<Output, ConfigError> {
    raw.required(
        &settings::OUTPUT,
        "expected text or json",
        |text| match text {
            "text" => Some(Output::Text),
            "json" => Some(Output::Json),
            _ => None,
        },
    )
}

/// Reads what standard error gets.
///
/// # Errors
/// As [`sources`].
pub fn logs(raw: &Raw<'_>) -> Result<LogSettings, ConfigError> {
    Ok(LogSettings {
        json: raw.required(
            &settings::LOG_FORMAT,
            "expected text or json",
            |text| match text {
                "text" => Some(false),
                "json" => Some(true),
                _ => None,
            },
        )?,
        level: raw.required(
            &settings::LOG_LEVEL,
            "expected error, warn, info, debug or trace",
            |text| match text {
                "error" => Some(tracing::Level::ERROR),
                "warn" => Some(tracing::Level::WARN),
                "info" => Some(tracing::Level::INFO),
                "debug" => Some(tracing::Level::DEBUG),
                "trace" => Some(tracing::Level::TRACE),
                _ => None,
            },
        )?,
    })
}

/// A whole number from 1 to `max`, in digits alone.
fn whole(text: &str, max: u64) -> Option<u64> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|n| (1..=max).contains(n));
    number.filter(|_| digits)
}

/// Whether Kubernetes takes the text for a namespace's name (RFC 1123 label).
pub(crate) fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.len() <= 63
        && bytes.first().is_some_and(alnum)
        && bytes.last().is_some_and(alnum)
        && bytes.iter().all(|b| alnum(b) || *b == b'-')
}

#[cfg(test)]
mod tests;
