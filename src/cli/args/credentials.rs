//! Settings of the credentials that images are pulled with.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::values::{List, list, path, paths, single, switch, text};
use crate::app::keyring::{registry_refused, secret_refused};
use crate::app::settings::{CredentialSettings, SettingError};
use crate::credentials::secret::Secret;

/// The variable of the one setting without a flag, because every user of a machine can see arguments.
const PRIVATE_REGISTRY_AUTH: &str = "PRIVATE_REGISTRY_AUTH";

/// Credentials that the command line and the environment name.
#[derive(Default, Args)]
#[command(next_help_heading = "Credentials")]
pub(crate) struct CredentialArgs {
    /// Private registry, HOST or HOST/PATH; the variable PRIVATE_REGISTRY_AUTH holds its credential, base64 of user:password
    #[arg(long, env, value_name = "REGISTRY", value_parser = single(text))]
    private_registry: Option<String>,

    /// Docker config files with credentials (default: $DOCKER_CONFIG/config.json, otherwise ~/.docker/config.json)
    #[arg(long, env, value_name = "FILES", value_parser = list(paths))]
    registry_config: Option<List<PathBuf>>,

    /// Configuration of the kubelet's credential provider plugins; requires --credential-provider-bin-dir
    #[arg(long, env, value_name = "FILE", value_parser = single(path))]
    credential_provider_config: Option<PathBuf>,

    /// Directory of the credential provider plugins; requires --credential-provider-config
    #[arg(long, env, value_name = "DIR", value_parser = single(path))]
    credential_provider_bin_dir: Option<PathBuf>,
}

/// Credentials that are read from the cluster.
#[derive(Args)]
#[command(next_help_heading = "Credentials")]
pub(crate) struct ClusterCredentialArgs {
    /// Use the imagePullSecrets of the workloads and of their ServiceAccounts
    #[arg(long, env, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", action = ArgAction::Set, value_parser = single(switch))]
    pub(crate) pull_secrets: bool,
}

impl CredentialArgs {
    /// The settings. The secret and the places of the usual Docker config files are read from the environment.
    ///
    /// # Errors
    /// An error if one of two settings that belong together is missing.
    pub(crate) fn settings(
        self,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<CredentialSettings, SettingError> {
        let set = |variable: &str| environment(variable).filter(|value| !value.is_empty());
        let usual = |variable, below| Some(PathBuf::from(set(variable)?).join(below));
        let usual_docker_configs = [
            usual("DOCKER_CONFIG", "config.json"),
            usual("HOME", ".docker/config.json"),
        ];
        let files = self.registry_config.map(|files| files.0);
        Ok(CredentialSettings {
            private: private_registry(self.private_registry, set(PRIVATE_REGISTRY_AUTH))?,
            docker_configs: files.filter(|files| !files.is_empty()),
            usual_docker_configs: usual_docker_configs.into_iter().flatten().collect(),
            providers: providers(
                self.credential_provider_config,
                self.credential_provider_bin_dir,
            )?,
        })
    }
}

fn providers(
    config: Option<PathBuf>,
    bin_dir: Option<PathBuf>,
) -> Result<Option<(PathBuf, PathBuf)>, SettingError> {
    match (config, bin_dir) {
        (Some(config), Some(bin_dir)) => Ok(Some((config, bin_dir))),
        (None, None) => Ok(None),
        (Some(file), None) => Err(SettingError::new(
            "credential-provider-config",
            &file.to_string_lossy(),
            "expected --credential-provider-bin-dir (CREDENTIAL_PROVIDER_BIN_DIR) as well",
        )),
        (None, Some(directory)) => Err(SettingError::new(
            "credential-provider-bin-dir",
            &directory.to_string_lossy(),
            "expected --credential-provider-config (CREDENTIAL_PROVIDER_CONFIG) as well",
        )),
    }
}

/// A private registry and its secret, which is never shown.
pub(crate) fn private_registry(
    registry: Option<String>,
    secret: Option<OsString>,
) -> Result<Option<(String, Secret)>, SettingError> {
    match (registry, secret) {
        (None, None) => Ok(None),
        (Some(registry), Some(secret)) => match secret.into_string() {
            Ok(secret) => Ok(Some((registry, Secret::new(secret)))),
            Err(_) => Err(secret_refused()),
        },
        (Some(registry), None) => Err(registry_refused(
            &registry,
            "expected the variable PRIVATE_REGISTRY_AUTH as well, base64 of user:password",
        )),
        (None, Some(_)) => Err(registry_refused(
            "",
            "expected HOST or HOST/PATH, because PRIVATE_REGISTRY_AUTH is set",
        )),
    }
}
