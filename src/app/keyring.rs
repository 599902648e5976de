//! The keyring of a run: first from the settings, then also from the pull secrets of the cluster.

use std::path::{Path, PathBuf};

use crate::app::settings::{CredentialSettings, SettingError};
use crate::credentials::docker_config::ConfigFile;
use crate::credentials::keyring::{self, Keyring, Private, PrivateError};
use crate::credentials::provider::{Providers, TOKENS};
use crate::discovery::workloads::ImageSecret;
use crate::model::reference::Reference;
use crate::model::text::chain;

/// Reads the sources that the settings name.
///
/// # Errors
/// If a named file cannot be read or parsed. A default file that is broken causes a warning.
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
    let docker_configs = match &settings.docker_configs {
        Some(files) => named(files)?,
        None => vec![ConfigFile::first_of(settings.usual_docker_configs.clone())],
    };
    Ok(Keyring::new(keyring::Settings {
        private,
        docker_configs,
        providers,
    }))
}

fn named(files: &[PathBuf]) -> Result<Vec<ConfigFile>, SettingError> {
    let setting = "registry-config";
    let read = |file: &PathBuf| match ConfigFile::named(file) {
        Ok(Some(config)) => Ok(config),
        Ok(None) => {
            let file = file.to_string_lossy();
            // A path has no braces and quotes: this is the file's content.
            let content = file.contains(['{', '}', '"']);
            let shown = if content { "(not shown)" } else { &*file };
            Err(SettingError::new(setting, shown, "the file does not exist"))
        }
        Err(error) => Err(refused(setting, file, &error)),
    };
    files.iter().map(read).collect()
}

fn refused(setting: &str, file: &Path, error: &dyn std::error::Error) -> SettingError {
    SettingError::new(setting, &file.to_string_lossy(), &chain(error))
}

/// The error for a private registry that is not accepted. A user and password before its host, or in its place, are left out.
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

/// Replaces the pull secrets of the cluster. Each is used only for the images of the workloads that name it.
pub(crate) fn set_pull_secrets(keyring: &Keyring, secrets: Vec<ImageSecret>) {
    keyring.set_scoped(secrets.into_iter().filter_map(|secret| {
        let image = Reference::of(&secret.image).ok()?;
        Some((image.normalized().to_owned(), secret.config))
    }));
}
