//! The table of settings. Every row is a flag and an environment variable of the same name.

use super::ConfigError;

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// The flag without its dashes.
    pub flag: &'static str,
    /// The environment variables, the first that is set counts.
    pub variables: &'static [&'static str],
    /// The default where it is the same for every command.
    pub default: Option<&'static str>,
    /// What stands for the value in the help.
    pub value: &'static str,
    /// What it does, for the help.
    pub help: &'static str,
}

/// The variable of the one setting that has no flag, because arguments can be seen by every user of a machine.
pub const PRIVATE_REGISTRY_AUTH: &str = "PRIVATE_REGISTRY_AUTH";

impl Setting {
    /// Whether the flag alone means `true`.
    pub fn is_switch(&self) -> bool {
        self.value == "BOOL"
    }

    /// The error for a value that is not accepted.
    pub fn refuse(&self, value: &str, accepted: &str) -> ConfigError {
        ConfigError {
            name: format!("--{} ({})", self.flag, self.variables.join(", ")),
            value: value.to_owned(),
            accepted: accepted.to_owned(),
        }
    }
}

macro_rules! settings {
    ($($name:ident: $flag:literal, [$($variable:literal),+], $default:expr, $value:literal, $help:literal;)+) => {
        $(
            #[doc = $help]
            pub static $name: Setting = Setting {
                flag: $flag,
                variables: &[$($variable),+],
                default: $default,
                value: $value,
                help: $help,
            };
        )+
        /// Every setting.
        pub static ALL: &[&Setting] = &[$(&$name),+];
    };
}

settings! {
    NAMESPACES: "namespaces", ["NAMESPACES"], None, "NAMES",
        "Namespaces to scan, separated by commas; * is all [default: the pod's own, outside a cluster the kubeconfig context's]";
    WORKLOADS: "workloads", ["WORKLOADS"], Some("deployments"), "KINDS",
        "Kinds of workloads to scan: deployments, statefulsets, daemonsets, replicasets, jobs, cronjobs, pods; or all";
    SELECTOR: "selector", ["SELECTOR"], None, "SELECTOR",
        "Label selector that the workloads must match, such as app=web,tier!=test";
    INCLUDE_IDLE: "include-idle", ["INCLUDE_IDLE"], Some("false"), "BOOL",
        "Include suspended CronJobs and Jobs";
    WATCH_CACHE: "watch-cache", ["WATCH_CACHE"], Some("false"), "BOOL",
        "Read the lists from the API server's memory (resourceVersion=0), whole and maybe some seconds old, rather than from etcd in pages";
    STARTUP_TAINTS: "startup-taints", ["STARTUP_TAINTS"], None, "KEYS",
        "Keys of further taints that are gone once the node has started; they keep no image from it";
    IMAGES_FILE: "images-file", ["IMAGES_FILE"], Some("/config/images"), "PATH",
        "File with one image a line, blank lines and # comments dropped; where it exists the cluster is not asked";
    IGNORE: "ignore", ["IGNORE"], None, "PREFIXES",
        "Image prefixes not to pull";
    ONLY: "only", ["ONLY"], None, "PREFIXES",
        "Image prefixes outside of which nothing is pulled";
    LIMIT: "limit", ["LIMIT"], None, "N",
        "At most so many images, the most used first";
    DISK_BUDGET: "disk-budget", ["DISK_BUDGET"], None, "BYTES",
        "Pull nothing that would have the runtime's image store hold more than this, such as 20Gi";
    REFRESH: "refresh", ["REFRESH"], Some("false"), "BOOL",
        "Pull again what is here and has moved: tag latest or pull policy Always, when the registry has another digest";
    SIZES: "sizes", ["SIZES"], Some("false"), "BOOL",
        "Find out what the images that are not here weigh, of Nodes and registries";
    NODE_NAME: "node-name", ["NODE_NAME"], None, "NAME",
        "This node; with it, images of workloads that cannot run here are skipped";
    RUNTIME_ENDPOINT: "runtime-endpoint", ["RUNTIME_ENDPOINT", "CONTAINER_RUNTIME_ENDPOINT"], None, "ENDPOINT",
        "The container runtime: unix:///PATH, a bare path, or oci:DIR [default: the first well-known socket that answers]";
    PLATFORM: "platform", ["PLATFORM"], None, "OS/ARCH",
        "The platform to pull for into oci:DIR, and to plan for [default: the node's, else this machine's]";
    REGISTRY_CONFIG: "registry-config", ["REGISTRY_CONFIG"], None, "FILES",
        "Docker config files with credentials [default: $DOCKER_CONFIG/config.json, else ~/.docker/config.json]";
    CREDENTIAL_PROVIDER_CONFIG: "credential-provider-config", ["CREDENTIAL_PROVIDER_CONFIG"], None, "FILE",
        "The kubelet's configuration of its credential provider plugins";
    CREDENTIAL_PROVIDER_BIN_DIR: "credential-provider-bin-dir", ["CREDENTIAL_PROVIDER_BIN_DIR"], None, "DIR",
        "Where those plugins are";
    PULL_SECRETS: "pull-secrets", ["PULL_SECRETS"], Some("false"), "BOOL",
        "Read the imagePullSecrets of the workloads and of their service accounts";
    PRIVATE_REGISTRY: "private-registry", ["PRIVATE_REGISTRY"], None, "REGISTRY",
        "One registry, HOST or HOST/PATH, whose base64 of user:password is in the variable PRIVATE_REGISTRY_AUTH";
    CONCURRENCY: "concurrency", ["CONCURRENCY"], Some("4"), "N",
        "Pulls at once";
    REGISTRY_CONCURRENCY: "registry-concurrency", ["REGISTRY_CONCURRENCY"], None, "N",
        "Pulls at once from one registry [default: as --concurrency]";
    STAGGER: "stagger", ["STAGGER"], Some("0s"), "TIME",
        "Wait before the start, between 0 and this, as a hash of the node's name says; needs --node-name";
    STAGGER_MIN_AGE: "stagger-min-age", ["STAGGER_MIN_AGE"], Some("10m"), "TIME",
        "A node younger than this does not wait";
    PULL_TIMEOUT: "pull-timeout", ["PULL_TIMEOUT"], Some("15m"), "TIME",
        "Time limit of one attempt at one image";
    DEADLINE: "deadline", ["DEADLINE"], None, "TIME",
        "Time limit of the whole run, after the wait of --stagger; what is not done by then is reported as failed";
    RETRIES: "retries", ["RETRIES"], Some("3"), "N",
        "Further attempts after a failure that another attempt may mend";
    FAIL_ON: "fail-on", ["FAIL_ON"], None, "WHEN",
        "Exit with 1 when any image failed, when all failed, or never [default: all for run, any for pull]";
    OUTPUT: "output", ["OUTPUT"], Some("text"), "FORMAT",
        "The report on standard output: text or json";
    LOG_FORMAT: "log-format", ["LOG_FORMAT"], Some("text"), "FORMAT",
        "The logs on standard error: text or json";
    LOG_LEVEL: "log-level", ["LOG_LEVEL"], Some("info"), "LEVEL",
        "The least severe log lines to show: error, warn, info, debug or trace";
}

/// A part of the help, with the settings that belong together.
pub type Group = (&'static str, &'static [&'static Setting]);

/// Where candidates come from.
pub static SOURCES: Group = (
    "Images",
    &[
        &NAMESPACES,
        &WORKLOADS,
        &SELECTOR,
        &INCLUDE_IDLE,
        &WATCH_CACHE,
        &STARTUP_TAINTS,
        &IMAGES_FILE,
    ],
);
/// Which of them are wanted.
pub static POLICY: Group = ("Selection", &[&ONLY, &IGNORE, &LIMIT]);
/// What is done with them besides, also where they are named one by one.
pub static STORE: Group = ("Selection", &[&DISK_BUDGET, &REFRESH]);
/// What a plan tells besides.
pub static TOLD: Group = ("Selection", &[&SIZES]);
/// What pulls them.
pub static RUNTIME: Group = ("Runtime", &[&RUNTIME_ENDPOINT, &PLATFORM, &NODE_NAME]);
/// Who pulls them.
pub static CREDENTIALS: Group = (
    "Credentials",
    &[
        &PRIVATE_REGISTRY,
        &REGISTRY_CONFIG,
        &CREDENTIAL_PROVIDER_CONFIG,
        &CREDENTIAL_PROVIDER_BIN_DIR,
    ],
);
/// Credentials that are the cluster's.
pub static CLUSTER_CREDENTIALS: Group = ("Credentials", &[&PULL_SECRETS]);
/// How they are pulled.
pub static PULL: Group = (
    "Pulling",
    &[
        &CONCURRENCY,
        &REGISTRY_CONCURRENCY,
        &PULL_TIMEOUT,
        &RETRIES,
        &DEADLINE,
        &FAIL_ON,
    ],
);
/// When they are pulled.
pub static START: Group = ("Pulling", &[&STAGGER, &STAGGER_MIN_AGE]);
/// What is printed.
pub static OUTPUTS: Group = ("Output", &[&OUTPUT, &LOG_FORMAT, &LOG_LEVEL]);

/// The settings of `harpoon run`.
pub static RUN: &[&Group] = &[
    &SOURCES,
    &POLICY,
    &STORE,
    &RUNTIME,
    &CREDENTIALS,
    &CLUSTER_CREDENTIALS,
    &PULL,
    &START,
    &OUTPUTS,
];
/// The settings of `harpoon pull`.
pub static PULL_COMMAND: &[&Group] = &[&STORE, &RUNTIME, &CREDENTIALS, &PULL, &OUTPUTS];
/// The settings of `harpoon plan`.
pub static PLAN: &[&Group] = &[
    &SOURCES,
    &POLICY,
    &STORE,
    &TOLD,
    &RUNTIME,
    &CREDENTIALS,
    &CLUSTER_CREDENTIALS,
    &OUTPUTS,
];
