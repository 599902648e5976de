//! The keyring of a run: from the settings before anything is asked, and from what the cluster told of its pull secrets.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::warn;

use crate::app::settings::{CredentialSettings, SettingError};
use crate::credentials::docker_config::DockerConfig;
use crate::credentials::keyring::{self, Keyring, Private, PrivateError};
use crate::credentials::provider::{Providers, TOKENS};
use crate::discovery::workloads::ImageSecret;
use crate::model::reference::Reference;
use crate::model::text::{chain, sanitize};

/// Reads what the settings name.
///
/// # Errors
/// Where a file that is named cannot be read or understood. What is found by itself and broken is a warning.
pub(crate) fn keyring(settings: &CredentialSettings) -> Result<Keyring, SettingError> {
    let private = match &settings.private {
        None => None,
        Some((registry, auth)) => match Private::parse(registry, auth) {
            Ok(private) => Some(private),
            Err(PrivateError::Auth(_)) => return Err(secret_refused()),
            Err(error) => {
                return Err(registry_refused(registry, &error.to_string()));
            }
        },
    };
    let providers = match &settings.providers {
        None => None,
        Some((file, directory)) => Some(
            Providers::read(file, directory, TOKENS.as_ref())
                .map_err(|error| refused("credential-provider-config", file, &error))?,
        ),
    };
    for provider in providers.iter().flat_map(Providers::dropped) {
        warn!("credential provider ignored: {}", sanitize(provider));
    }
    let docker_configs = match &settings.docker_configs {
        Some(files) => named(files)?,
        None => usual(&settings.usual_docker_configs).into_iter().collect(),
    };
    for problem in docker_configs.iter().flat_map(DockerConfig::problems) {
        warn!("{}", sanitize(problem));
    }
    Ok(Keyring::new(keyring::Settings {
        private,
        docker_configs,
        providers,
    }))
}

fn named(files: &[PathBuf]) -> Result<Vec<DockerConfig>, SettingError> {
    let setting = "registry-config";
    let read = |file: &PathBuf| match DockerConfig::read(file) {
        Ok(Some(config)) => Ok(config),
        Ok(None) => {
            let file = file.to_string_lossy();
            // A path has no braces and quotes: somebody has put the file's content here.
            let content = file.contains(['{', '}', '"']);
            let shown = if content { "(not shown)" } else { &*file };
            Err(SettingError::new(setting, shown, "the file does not exist"))
        }
        Err(error) => Err(refused(setting, file, &error)),
    };
    files.iter().map(read).collect()
}

/// The first of the usual files that exists.
fn usual(files: &[PathBuf]) -> Option<DockerConfig> {
    files
        .iter()
        .find_map(|file| match DockerConfig::read(file) {
            Ok(config) => config,
            Err(error) => {
                warn!("{}", sanitize(&chain(&error)));
                None
            }
        })
}

fn refused(setting: &str, file: &Path, error: &dyn std::error::Error) -> SettingError {
    SettingError::new(setting, &file.to_string_lossy(), &chain(error))
}

/// The error for a private registry that is not accepted, without the user and password that were put before its host, or
/// in its place.
pub(crate) fn registry_refused(registry: &str, reason: &str) -> SettingError {
    let shown = match registry.rsplit_once('@') {
        Some((_, host)) => format!("(not shown)@{host}"),
        None if Private::is_auth(registry) => "(not shown)".to_owned(),
        None => registry.to_owned(),
    };
    SettingError::new("private-registry", &shown, reason)
}

/// The error for a secret that cannot be read, without the secret.
pub(crate) fn secret_refused() -> SettingError {
    SettingError::named(
        "PRIVATE_REGISTRY_AUTH",
        "(not shown)",
        "expected base64 of user:password",
    )
}

/// Adds the cluster's pull secrets, each for the images of the workloads that name it and for no other.
pub(crate) fn add_pull_secrets(keyring: &mut Keyring, secrets: Vec<ImageSecret>) {
    // One secret serves many images: it is read once, and told of once if it is broken.
    let mut read: HashMap<Arc<str>, Option<Arc<DockerConfig>>> = HashMap::new();
    for secret in secrets {
        let Ok(image) = Reference::of(&secret.image) else {
            continue;
        };
        let config = read.entry(Arc::clone(&secret.name)).or_insert_with(|| {
            let json = secret.config.json.expose().as_bytes();
            let parsed = match secret.config.legacy {
                true => DockerConfig::parse_legacy(&secret.name, json),
                false => DockerConfig::parse(&secret.name, json),
            };
            match parsed {
                Ok(config) => {
                    for problem in config.problems() {
                        warn!("{}", sanitize(problem));
                    }
                    Some(Arc::new(config))
                }
                Err(error) => {
                    warn!("{}", sanitize(&chain(&error)));
                    None
                }
            }
        });
        if let Some(config) = config {
            keyring.scope(image.normalized().to_owned(), Arc::clone(config));
        }
    }
}
