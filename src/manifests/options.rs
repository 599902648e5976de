//! What was typed for `harpoon manifests`, made into [`Options`]. Settings of `harpoon run` are judged by the code that judges
//! them there, so that a DaemonSet never starts with one that is wrong.

use std::collections::HashMap;

use super::{Access, Cloud, Images, Options, Priority, Socket};
use crate::app::settings::SettingError;
use crate::discovery::workloads::Namespaces;
use crate::model::reference::Reference;
use crate::model::workload_kind::WorkloadKind;
use crate::runtime::detect::{self, Endpoint};

/// A flag that is not a setting of `harpoon run`.
#[derive(Debug)]
pub struct Flag {
    /// Its name without dashes.
    pub name: &'static str,
    /// What stands for the value in the help; `BOOL` where the flag alone means `true`.
    pub value: &'static str,
    /// What it is when it is not given.
    pub default: Option<&'static str>,
    /// What it does, for the help.
    pub help: &'static str,
}

macro_rules! flags {
    ($($constant:ident: $name:literal, $value:literal, $default:expr, $help:expr;)+) => {
        $(static $constant: Flag = Flag { name: $name, value: $value, default: $default, help: $help };)+
        /// Every flag.
        pub static FLAGS: &[&Flag] = &[$(&$constant),+];
    };
}

/// No registry is promised: whoever builds the image puts it into their own.
const IMAGE: &str = concat!("registry.example/harpoon:", env!("CARGO_PKG_VERSION"));

flags! {
    RUNTIME: "runtime", "NAME", Some("containerd"),
        "The nodes' runtime: containerd, crio, k3s, rke2, microk8s, k0s, dockershim, cri-dockerd or docker";
    SOCKET_GROUP: "socket-group", "GID", None,
        "The number of the group that may open the runtime's socket [default: 0; where that is not so, root opens it]";
    NAMESPACE: "namespace", "NAME", Some("default"),
        "Where to install; also the namespace that is scanned unless --namespaces says otherwise";
    NAME: "name", "NAME", Some("harpoon"),
        "What the objects are called";
    IMAGE_FLAG: "image", "IMAGE", Some(IMAGE),
        "The image with harpoon in it";
    IMAGE_PULL_SECRET: "image-pull-secret", "SECRET", None,
        "The Secret to pull that image with";
    IMAGES: "images", "IMAGES", None,
        "Pull these and ask no cluster: image references separated by commas";
    IMAGES_FROM: "images-from", "FILE", None,
        "Pull what this file lists, one image a line, and ask no cluster";
    NODE_RELEVANCE: "node-relevance", "BOOL", Some("true"),
        "Leave out images whose workloads cannot run on the node; takes the right to get Nodes and RuntimeClasses";
    SECRET_NAMES: "secret-names", "NAMES", None,
        "With --pull-secrets, the Secrets that may be read [default: all of the namespaces]";
    REGISTRY_SECRET: "registry-secret", "SECRET", None,
        "A Secret of the type kubernetes.io/dockerconfigjson to pull with";
    CLOUD: "cloud", "CLOUD", None,
        "Pull with the kubelet's credential provider of eks, gke or aks";
    PRIORITY_CLASS: "priority-class", "NAME", None,
        "A PriorityClass that exists; none when empty [default: one that is installed too]";
}

/// What was typed, by the names of flags.
#[derive(Debug, Default)]
pub struct Typed {
    /// Flags of this command.
    pub flags: HashMap<&'static str, String>,
    /// Settings of `harpoon run`, judged already.
    pub settings: HashMap<&'static str, String>,
    /// What of them is not the pod's matter alone.
    pub scan: Scan,
    /// What the file named by `--images-from` lists.
    pub listed: Option<Vec<String>>,
}

/// The settings of `harpoon run` that decide about rights and mounts.
#[derive(Debug)]
pub struct Scan {
    /// `--namespaces`.
    pub namespaces: Namespaces,
    /// `--workloads`.
    pub workloads: Vec<WorkloadKind>,
    /// `--pull-secrets`.
    pub pull_secrets: bool,
    /// `--runtime-endpoint`.
    pub endpoint: Option<Endpoint>,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            namespaces: Namespaces::Default,
            workloads: vec![WorkloadKind::Deployments],
            pull_secrets: false,
            endpoint: None,
        }
    }
}

impl Flag {
    /// Whether the flag alone means `true`.
    pub fn is_switch(&self) -> bool {
        self.value == "BOOL"
    }

    fn refuse(&self, value: &str, accepted: &str) -> SettingError {
        SettingError::named(&format!("--{}", self.name), value, accepted)
    }
}

impl Typed {
    fn text(&self, flag: &Flag) -> Option<String> {
        let typed = self.flags.get(flag.name).map(String::as_str);
        typed.or(flag.default).map(|text| text.trim().to_owned())
    }

    fn checked(
        &self,
        flag: &Flag,
        accepted: &str,
        fits: impl Fn(&str) -> bool,
    ) -> Result<Option<String>, SettingError> {
        match self.text(flag) {
            Some(text) if !fits(&text) => Err(flag.refuse(&text, accepted)),
            text => Ok(text),
        }
    }

    /// The value of a flag that has a default.
    fn required(
        &self,
        flag: &Flag,
        accepted: &str,
        fits: impl Fn(&str) -> bool,
    ) -> Result<String, SettingError> {
        Ok(self.checked(flag, accepted, fits)?.unwrap_or_default())
    }

    fn items(&self, flag: &Flag) -> Option<Vec<String>> {
        let items = self.text(flag)?;
        let items = items.split(',').map(str::trim).filter(|i| !i.is_empty());
        Some(items.map(str::to_owned).collect())
    }

    /// The options.
    ///
    /// # Errors
    /// Names the flag or setting, its value and what is accepted.
    pub fn options(&self) -> Result<Options, SettingError> {
        let label = "expected lower-case letters, digits and -, at most 40 characters";
        let named = |text: &str| text.len() <= 40 && is_dns_label(text);
        let secret = "expected a name of an object: lower-case letters, digits, - and ., at most 253 characters";
        let node_relevance = self.required(&NODE_RELEVANCE, "expected true or false", |text| {
            matches!(text, "true" | "false")
        })?;
        let node_relevance = node_relevance == "true";
        let images = self.images()?;
        Ok(Options {
            name: self.required(&NAME, label, named)?,
            namespace: self.required(
                &NAMESPACE,
                "expected a namespace: lower-case letters, digits and -, at most 63 characters",
                is_dns_label,
            )?,
            image: self.required(&IMAGE_FLAG, "expected an image reference", |text| {
                Reference::parse(text).is_ok()
            })?,
            image_pull_secret: self.checked(&IMAGE_PULL_SECRET, secret, is_dns_name)?,
            socket: self.socket()?,
            node_relevance,
            registry_secret: self.checked(&REGISTRY_SECRET, secret, is_dns_name)?,
            cloud: self.cloud()?,
            priority: match self.checked(&PRIORITY_CLASS, secret, |text| {
                text.is_empty() || is_dns_name(text)
            })? {
                None => Priority::Own,
                Some(name) if name.is_empty() => Priority::Unset,
                Some(name) => Priority::Named(name),
            },
            settings: self.passed_on(),
            images,
        })
    }

    /// The settings that were typed, by variable.
    fn passed_on(&self) -> Vec<(&'static str, String)> {
        let typed = |setting: &Passed| {
            let value = self.settings.get(setting.flag)?.trim();
            Some((setting.variables[0], value.to_owned()))
        };
        let mut settings: Vec<_> = passed().filter_map(|s| typed(&s)).collect();
        settings.sort_unstable();
        settings
    }

    fn images(&self) -> Result<Images, SettingError> {
        let listed = self.listed()?;
        let Some(listed) = listed else {
            let cluster = &self.scan;
            let names = self.secret_names(cluster.pull_secrets)?;
            if cluster.pull_secrets && matches!(cluster.namespaces, Namespaces::All) {
                let accepted = "expected false with --namespaces *, because a ClusterRole would open every secret of the cluster; name the namespaces";
                return Err(SettingError::new("pull-secrets", "true", accepted));
            }
            return Ok(Images::Cluster {
                namespaces: cluster.namespaces.clone(),
                workloads: cluster.workloads.clone(),
                pull_secrets: cluster.pull_secrets.then_some(names),
            });
        };
        for flag in CLUSTER {
            if let Some(value) = self.settings.get(flag) {
                let accepted = "expected nothing, since with a list of images no cluster is asked";
                return Err(SettingError::new(flag, value, accepted));
            }
        }
        self.secret_names(false)?;
        Ok(Images::Listed(listed))
    }

    fn listed(&self) -> Result<Option<Vec<String>>, SettingError> {
        let (flag, images) = match (self.items(&IMAGES), &self.listed) {
            (None, None) => return Ok(None),
            (Some(typed), None) => (&IMAGES, typed),
            (None, Some(listed)) => (&IMAGES_FROM, listed.clone()),
            (Some(_), Some(_)) => {
                let file = self.text(&IMAGES_FROM).unwrap_or_default();
                return Err(IMAGES_FROM.refuse(&file, "expected no --images beside it"));
            }
        };
        for image in &images {
            if let Err(error) = Reference::parse(image) {
                return Err(flag.refuse(image, &error.to_string()));
            }
        }
        if images.is_empty() {
            return Err(flag.refuse("", "expected image references"));
        }
        Ok(Some(images))
    }

    fn secret_names(&self, wanted: bool) -> Result<Vec<String>, SettingError> {
        let names = self.items(&SECRET_NAMES);
        match names {
            Some(names) if !wanted => {
                Err(SECRET_NAMES.refuse(&names.join(","), "expected --pull-secrets beside it"))
            }
            Some(names) => match names.iter().find(|name| !is_dns_name(name)) {
                Some(bad) => Err(SECRET_NAMES.refuse(bad, "expected names of Secrets")),
                None => Ok(names),
            },
            None => Ok(Vec::new()),
        }
    }

    fn socket(&self) -> Result<Socket, SettingError> {
        let name = self.text(&RUNTIME).unwrap_or_default();
        // RKE2 has k3s' containerd where k3s has it.
        let known_as = if name == "rke2" { "k3s" } else { &name };
        let known = detect::well_known().find(|(known, _)| *known == known_as);
        let Some((_, path)) = known else {
            let accepted = "expected containerd, crio, k3s, rke2, microk8s, k0s, dockershim, cri-dockerd or docker";
            return Err(RUNTIME.refuse(&name, accepted));
        };
        let group = "expected a number of a group, as `stat -c %g` tells it";
        let group = match self.text(&SOCKET_GROUP) {
            None => None,
            Some(text) => match text.parse() {
                Ok(group) if i32::try_from(group).is_ok() => Some(group),
                _ => return Err(SOCKET_GROUP.refuse(&text, group)),
            },
        };
        let access = match (group, known_as) {
            (Some(group), _) => Access::Group(group),
            (None, "containerd" | "crio" | "k3s" | "k0s") => Access::Group(0),
            (None, _) => Access::Root,
        };
        let path = match &self.scan.endpoint {
            None => path.to_owned(),
            Some(Endpoint::Unix(path)) => path.to_string_lossy().into_owned(),
            Some(endpoint @ Endpoint::Oci(_)) => {
                let accepted = "expected the socket of the nodes' runtime: unix:///PATH";
                return Err(SettingError::new(
                    "runtime-endpoint",
                    &endpoint.to_string(),
                    accepted,
                ));
            }
        };
        Ok(Socket { path, access })
    }

    fn cloud(&self) -> Result<Option<Cloud>, SettingError> {
        match self.text(&CLOUD).as_deref() {
            None => Ok(None),
            Some("eks") => Ok(Some(Cloud::Eks)),
            Some("gke") => Ok(Some(Cloud::Gke)),
            Some("aks") => Ok(Some(Cloud::Aks)),
            Some(other) => Err(CLOUD.refuse(other, "expected eks, gke or aks")),
        }
    }
}

/// A setting of `harpoon run` that is passed on.
#[derive(Debug)]
pub struct Passed {
    /// The flag without its dashes.
    pub flag: &'static str,
    /// The environment variable.
    pub variables: [&'static str; 1],
}

macro_rules! passed {
    ($($flag:literal: $variable:literal;)+) => {
        /// The settings of `harpoon run` that are passed on.
        pub fn passed() -> impl Iterator<Item = Passed> {
            [$(Passed { flag: $flag, variables: [$variable] }),+].into_iter()
        }
    };
}

passed! {
    "namespaces": "NAMESPACES";
    "workloads": "WORKLOADS";
    "selector": "SELECTOR";
    "include-idle": "INCLUDE_IDLE";
    "watch-cache": "WATCH_CACHE";
    "startup-taints": "STARTUP_TAINTS";
    "only": "ONLY";
    "ignore": "IGNORE";
    "limit": "LIMIT";
    "disk-budget": "DISK_BUDGET";
    "refresh": "REFRESH";
    "runtime-endpoint": "RUNTIME_ENDPOINT";
    "private-registry": "PRIVATE_REGISTRY";
    "pull-secrets": "PULL_SECRETS";
    "concurrency": "CONCURRENCY";
    "registry-concurrency": "REGISTRY_CONCURRENCY";
    "pull-timeout": "PULL_TIMEOUT";
    "retries": "RETRIES";
    "deadline": "DEADLINE";
    "fail-on": "FAIL_ON";
    "stagger": "STAGGER";
    "stagger-min-age": "STAGGER_MIN_AGE";
    "output": "OUTPUT";
    "log-format": "LOG_FORMAT";
    "log-level": "LOG_LEVEL";
}

/// Those of them that have no meaning where no cluster is asked.
const CLUSTER: [&str; 9] = [
    "namespaces",
    "workloads",
    "selector",
    "include-idle",
    "watch-cache",
    "startup-taints",
    "pull-secrets",
    "stagger",
    "stagger-min-age",
];

/// Whether Kubernetes takes the text for an object's name (RFC 1123 subdomain).
fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// Whether Kubernetes takes the text for a namespace's name (RFC 1123 label).
fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.len() <= 63
        && bytes.first().is_some_and(alnum)
        && bytes.last().is_some_and(alnum)
        && bytes.iter().all(|b| alnum(b) || *b == b'-')
}
