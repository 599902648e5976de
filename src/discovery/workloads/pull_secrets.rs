//! Reads the pull secrets of the workloads: each by its own name, with `get`, never a list.
//!
//! A Secret is passed on parsed, in types that cannot print a credential. A decoder's messages are not shown, because they quote
//! the content of the Secret.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use serde::Deserialize;

use super::name::{Name, or_default};
use super::object::SecretNames;
use super::pulls::{MAX_NAMED, Means, Pulls};
use super::strings::Strings;
use crate::credentials::docker_config::{ConfigFileError, DockerConfig};
use crate::credentials::secret::Secret;
use crate::kube_api::connect::Cluster;
use crate::kube_api::error::ListError;
use crate::kube_api::get::{self, GetFault};
use crate::model::digest::Digest;
use crate::model::dns_name::{is_label, is_subdomain};
use crate::model::text::sanitize;
use crate::registry::digest::sha256;

/// Maximum number of concurrent requests. Low, since every node sends them.
const AT_ONCE: usize = 4;
/// Maximum total size of secrets in bytes; one may have a mebibyte, and those of a cluster together have some hundred kilobytes.
const MAX_READ: usize = 16 << 20;

/// A secret for an image: a workload that uses the image names it.
#[derive(Debug, Clone)]
pub struct ImageSecret {
    /// The image as written in the workload's template: the [`image`](crate::model::candidate::Candidate::image) of a candidate.
    pub image: Arc<str>,
    /// The secret's credentials, under its displayed name: `Secret shop/registry`.
    pub config: Arc<DockerConfig>,
}

/// The docker configuration of a Secret.
struct SecretConfig {
    /// True if it is of the older type (`kubernetes.io/dockercfg`), which has the registries at the top level.
    is_legacy: bool,
    /// The JSON text.
    json: Secret,
}

impl SecretConfig {
    fn parse(&self, name: &str) -> Result<DockerConfig, ConfigFileError> {
        let json = self.json.expose().as_bytes();
        match self.is_legacy {
            true => DockerConfig::parse_legacy(name, json),
            false => DockerConfig::parse(name, json),
        }
    }
}

/// The reason why a Secret or a ServiceAccount cannot be used. Quotes nothing from the object.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The object does not exist.
    #[error("does not exist")]
    Missing,
    /// RBAC does not allow it.
    #[error("not allowed to read it: needs the RBAC verb \"get\" on \"{0}\" in apiGroup \"\"")]
    Forbidden(&'static str),
    /// The API server refuses the credentials, or no longer accepts them.
    #[error("the API server does not accept the credentials (401 Unauthorized)")]
    Unauthorized,
    /// The request failed.
    #[error("failed to read it: {0}")]
    Failed(ListError),
    /// The response is too large.
    #[error("it is larger than 1.5 MiB")]
    TooLarge,
    /// The secrets are too large in total.
    #[error("skipped: the pull secrets exceed 16 MiB in total")]
    TooMuch,
    /// The response is not the object.
    #[error("unexpected response from the API server")]
    Garbage,
    /// The Secret has another type.
    #[error("unsupported type, expected kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg")]
    WrongType,
    /// The Secret lacks the required key.
    #[error("the key {0} has no value")]
    NoValue(&'static str),
    /// The value is not base64 text.
    #[error("the value of the key {0} is malformed")]
    Broken(&'static str),
    /// The request was skipped; these are counted, not reported one by one.
    #[error("not asked")]
    NotAsked,
}

/// A problem with the pull secrets; the rest of discovery succeeded.
#[derive(Debug, thiserror::Error)]
pub enum SecretWarning {
    /// A Secret, or the ServiceAccount that names some, cannot be used.
    #[error("{kind} {name}: {error}")]
    Unread {
        /// `Secret` or `ServiceAccount`.
        kind: &'static str,
        /// Its namespace and name, `shop/registry`.
        name: String,
        /// The cause. Part of the message already: a warning is one line.
        error: SecretError,
    },
    /// The content of a Secret is not a docker configuration.
    #[error(transparent)]
    Content(ConfigFileError),
    /// An entry of a Secret's docker configuration cannot be used.
    #[error("{0}")]
    Entry(String),
    /// Requests were skipped after the API server became unreachable or refused the credentials.
    #[error("{0} other pull secrets or service accounts were not read")]
    NotAsked(usize),
    /// There are too many different pull secrets.
    #[error("more than {0} pull secrets; the rest are ignored")]
    TooMany(usize),
}

/// The resource to read, in the terms of the API.
#[derive(Clone, Copy)]
struct Resource {
    kind: &'static str,
    plural: &'static str,
}

const SECRET: Resource = Resource {
    kind: "Secret",
    plural: "secrets",
};
const ACCOUNT: Resource = Resource {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
};

/// Reads the secrets: those of each image, by the accumulator's index, and the problems with some. `gone` means that the API
/// server no longer answers, so that no request is made.
pub(super) async fn read(cluster: &Cluster, mut pulls: Pulls, gone: bool) -> PullSecrets {
    let mut reader = Reader {
        cluster,
        stopped: AtomicBool::new(gone),
        not_asked: 0,
        warnings: Vec::new(),
    };
    let accounts = reader.accounts(&mut pulls).await;
    let configs = reader.secrets(&pulls.secrets).await;
    if pulls.overflown {
        reader.warn(SecretWarning::TooMany(MAX_NAMED));
    }
    if reader.not_asked > 0 {
        let not_asked = reader.not_asked;
        reader.warn(SecretWarning::NotAsked(not_asked));
    }
    let read = configs.iter().flatten().count();
    tracing::debug!(read, named = configs.len(), "read the pull secrets");

    let mut of_images = Vec::new();
    // The sets of several workloads may overlap.
    let mut known = HashSet::new();
    for (image, means) in pulls.uses {
        let secrets = match &pulls.means[means as usize] {
            Means::Secrets(secrets) => secrets,
            Means::Account(account) => &accounts[*account as usize],
        };
        for &secret in secrets {
            if let Some(config) = &configs[secret as usize]
                && known.insert((image, secret))
            {
                of_images.push((image, Arc::clone(config)));
            }
        }
    }
    PullSecrets {
        of_images,
        warnings: reader.warnings,
    }
}

/// The result of reading the secrets.
pub(super) struct PullSecrets {
    /// Pairs of an image's index in the accumulator and the credentials of one of its secrets.
    pub(super) of_images: Vec<(u32, Arc<DockerConfig>)>,
    /// The problems with the secrets. Logged already.
    pub(super) warnings: Vec<SecretWarning>,
}

/// One pull secret.
#[derive(Debug)]
pub(crate) struct NamedSecret {
    /// Its credentials, under its displayed name: `Secret shop/registry`.
    pub(crate) config: Arc<DockerConfig>,
    /// The digest of its content, which tells whether it has changed.
    pub(crate) digest: Digest,
}

/// Reads one pull secret.
///
/// # Errors
/// If it cannot be used; with a message for people.
pub(crate) async fn named_secret(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
) -> Result<NamedSecret, SecretWarning> {
    let full = format!("{namespace}/{name}");
    let unread = |error| SecretWarning::Unread {
        kind: SECRET.kind,
        name: full.clone(),
        error,
    };
    // The names go into the path of a request.
    if !is_label(namespace) || !is_subdomain(name) {
        return Err(unread(SecretError::Missing));
    }
    let reader = Reader {
        cluster,
        stopped: AtomicBool::new(false),
        not_asked: 0,
        warnings: Vec::new(),
    };
    let config = reader.ask(SECRET, &full, config).await.map_err(unread)?;
    let digest = sha256(config.json.expose().as_bytes());
    let config = config.parse(&format!("{} {full}", SECRET.kind));
    Ok(NamedSecret {
        config: Arc::new(config.map_err(SecretWarning::Content)?),
        digest,
    })
}

struct Reader<'a> {
    cluster: &'a Cluster,
    /// True if no further request is made.
    stopped: AtomicBool,
    not_asked: usize,
    warnings: Vec<SecretWarning>,
}

impl Reader<'_> {
    /// The secrets of each account, in the accounts' order, as indices.
    async fn accounts(&mut self, pulls: &mut Pulls) -> Vec<Box<[u32]>> {
        let accounts: Vec<Arc<str>> = pulls.accounts.iter().cloned().collect();
        let listed: Vec<_> = futures_util::stream::iter(&accounts)
            .map(|name| self.ask(ACCOUNT, name, account_secrets))
            .buffered(AT_ONCE)
            .collect()
            .await;
        let mut secrets = Vec::with_capacity(accounts.len());
        for (account, listed) in accounts.iter().zip(listed) {
            let namespace = account.split('/').next().unwrap_or_default();
            let listed = listed.unwrap_or_else(|error| {
                self.fault(ACCOUNT, account, error);
                SecretNames::default()
            });
            let names = listed.names.iter();
            let found = names.filter_map(|name| pulls.secret(namespace, name));
            secrets.push(found.collect());
        }
        secrets
    }

    /// The credentials of each secret, in the secrets' order; `None` for one that cannot be used.
    async fn secrets(&mut self, secrets: &Strings) -> Vec<Option<Arc<DockerConfig>>> {
        let mut read = 0;
        let mut bounded = |config: SecretConfig| {
            read += config.json.expose().len();
            if read > MAX_READ {
                return Err(SecretError::TooMuch);
            }
            Ok(config)
        };
        let answers: Vec<_> = futures_util::stream::iter(secrets.iter())
            .map(|name| self.ask(SECRET, name, config))
            .buffered(AT_ONCE)
            .map(|answer| answer.and_then(&mut bounded))
            .collect()
            .await;
        let pairs = secrets.iter().zip(answers);
        pairs
            .map(|(name, answer)| match answer {
                Ok(config) => self.parsed(name, &config),
                Err(error) => {
                    self.fault(SECRET, name, error);
                    None
                }
            })
            .collect()
    }

    /// The credentials of a secret. A problem with a single entry is a warning; the other entries are used.
    fn parsed(&mut self, name: &str, config: &SecretConfig) -> Option<Arc<DockerConfig>> {
        match config.parse(&format!("{} {name}", SECRET.kind)) {
            Ok(config) => {
                for problem in config.problems() {
                    self.warn(SecretWarning::Entry(sanitize(problem)));
                }
                Some(Arc::new(config))
            }
            Err(error) => {
                self.warn(SecretWarning::Content(error));
                None
            }
        }
    }

    /// Requests the object `namespace/name` and decodes it.
    async fn ask<T>(
        &self,
        what: Resource,
        name: &str,
        decode: fn(&[u8]) -> Result<T, SecretError>,
    ) -> Result<T, SecretError> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(SecretError::NotAsked);
        }
        let (namespace, name) = name.split_once('/').ok_or(SecretError::Missing)?;
        let path = format!("/api/v1/namespaces/{namespace}/{}/{name}", what.plural);
        let fault = match get::object(self.cluster, &path).await {
            Ok(bytes) => return decode(&bytes),
            Err(fault) => fault,
        };
        let error = match fault {
            GetFault::NotFound => SecretError::Missing,
            GetFault::Forbidden => SecretError::Forbidden(what.plural),
            GetFault::TooLarge => SecretError::TooLarge,
            GetFault::Unauthorized => SecretError::Unauthorized,
            GetFault::Failed(error) => SecretError::Failed(error),
        };
        let hopeless = match &error {
            SecretError::Failed(error) => error.is_unreachable(),
            error => matches!(error, SecretError::Unauthorized),
        };
        if hopeless {
            self.stopped.store(true, Ordering::Relaxed);
        }
        Err(error)
    }

    fn fault(&mut self, what: Resource, name: &str, error: SecretError) {
        if matches!(error, SecretError::NotAsked) {
            self.not_asked += 1;
            return;
        }
        self.warn(SecretWarning::Unread {
            kind: what.kind,
            name: name.to_owned(),
            error,
        });
    }

    fn warn(&mut self, warning: SecretWarning) {
        tracing::warn!("{warning}");
        self.warnings.push(warning);
    }
}

/// The part of a ServiceAccount that is read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Account {
    #[serde(default, deserialize_with = "or_default")]
    image_pull_secrets: SecretNames,
}

fn account_secrets(bytes: &[u8]) -> Result<SecretNames, SecretError> {
    let account: Account = serde_json::from_slice(bytes).map_err(|_| SecretError::Garbage)?;
    Ok(account.image_pull_secrets)
}

/// The part of a Secret that is read. It has no `Debug`, so that nothing can print it.
#[derive(Deserialize)]
struct SecretObject {
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    what: Name,
    #[serde(default, deserialize_with = "or_default")]
    data: Data,
}

#[derive(Default, Deserialize)]
struct Data {
    #[serde(default, rename = ".dockerconfigjson")]
    config_json: Option<String>,
    #[serde(default, rename = ".dockercfg")]
    legacy: Option<String>,
}

fn config(bytes: &[u8]) -> Result<SecretConfig, SecretError> {
    let object: SecretObject = serde_json::from_slice(bytes).map_err(|_| SecretError::Garbage)?;
    let (key, value, is_legacy) = match object.what.as_str() {
        "kubernetes.io/dockerconfigjson" => (".dockerconfigjson", object.data.config_json, false),
        "kubernetes.io/dockercfg" => (".dockercfg", object.data.legacy, true),
        _ => return Err(SecretError::WrongType),
    };
    let value = value.filter(|value| !value.is_empty());
    let value = value.ok_or(SecretError::NoValue(key))?;
    let value = STANDARD
        .decode(value)
        .map_err(|_| SecretError::Broken(key))?;
    let json = String::from_utf8(value).map_err(|_| SecretError::Broken(key))?;
    Ok(SecretConfig {
        is_legacy,
        json: Secret::new(json),
    })
}

#[cfg(test)]
mod tests;
