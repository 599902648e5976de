//! The kubelet's `CredentialProviderConfig`: read and validated by the kubelet's rules. Never runs a plugin.
//!
//! Errors name the provider and the field, never a value from `env` or `args`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Map, Value};

use super::account::Account;
use super::{Cache, LIMIT, Provider};
use crate::credentials::docker_config::{ConfigFileError, read_bounded};
use crate::credentials::keyring::pattern::Pattern;
use crate::credentials::secret::Secret;
use crate::model::go_duration;
use crate::model::text::excerpt;
use crate::retry::single_flight::SingleFlight;

const KINDS: &[&str] = &[
    "kubelet.config.k8s.io/v1",
    "kubelet.config.k8s.io/v1beta1",
    "kubelet.config.k8s.io/v1alpha1",
];
const PROTOCOL_GROUP: &str = "credentialprovider.kubelet.k8s.io/";
const PROTOCOLS: &[&str] = &[
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

/// The reason why the plugins cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProviderConfigError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] ConfigFileError),
    /// A path is not a file or directory as expected.
    #[error("{}: {what}", path.display())]
    Path {
        /// The file or directory.
        path: PathBuf,
        /// The problem.
        what: String,
    },
    /// The configuration of one provider is invalid.
    #[error("{}, provider {provider}: {what}", path.display())]
    Provider {
        /// The file.
        path: PathBuf,
        /// The provider's name, or its position if it has none.
        provider: String,
        /// The problem.
        what: String,
    },
}

/// The providers of a configuration.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) providers: Vec<Provider>,
    /// The providers that cannot be used, each with the reason, as a sentence that contains no value.
    pub(super) dropped: Vec<String>,
}

/// The reason why a provider's configuration cannot be used.
enum Refused {
    /// Invalid: the kubelet would not start with it either.
    Malformed(String),
    /// Not supported: it requires a newer version, or something that a pod does not have.
    Beyond(String),
}

impl From<String> for Refused {
    fn from(what: String) -> Self {
        Self::Malformed(what)
    }
}

impl From<&str> for Refused {
    fn from(what: &str) -> Self {
        Self::Malformed(what.to_owned())
    }
}

/// The providers of a file, or of the files of a directory in the order of their names. The cloud provider writes the file for
/// its kubelet: a feature that harpoon does not support drops only the provider that uses it.
pub(super) fn read(
    config: &Path,
    bin_dir: &Path,
    tokens: &Path,
) -> Result<Read, ProviderConfigError> {
    let bin_dir = std::path::absolute(bin_dir).map_err(|e| at(bin_dir, &e))?;
    if !fs::metadata(&bin_dir)
        .map_err(|e| at(&bin_dir, &e))?
        .is_dir()
    {
        return Err(at(&bin_dir, "not a directory"));
    }
    let mut read = Read::default();
    for file in files(config)? {
        for (place, value) in entries(&file)?.iter().enumerate() {
            let named = value.get("name").and_then(Value::as_str);
            let named = named.map_or_else(|| format!("number {}", place + 1), excerpt);
            let refused = |what| ProviderConfigError::Provider {
                path: file.clone(),
                provider: named.clone(),
                what,
            };
            let provider = match provider(value, &bin_dir, tokens) {
                Ok(provider) => provider,
                Err(Refused::Malformed(what)) => return Err(refused(what)),
                Err(Refused::Beyond(what)) => {
                    read.dropped.push(refused(what).to_string());
                    continue;
                }
            };
            if read.providers.iter().any(|p| p.name == provider.name) {
                return Err(refused("duplicate name".to_owned()));
            }
            read.providers.push(provider);
        }
    }
    Ok(read)
}

fn at(path: &Path, what: &(impl ToString + ?Sized)) -> ProviderConfigError {
    ProviderConfigError::Path {
        path: path.to_owned(),
        what: what.to_string(),
    }
}

/// The files of a configuration: the file itself, or those in the directory, by name.
pub(super) fn files(config: &Path) -> Result<Vec<PathBuf>, ProviderConfigError> {
    if !fs::metadata(config).map_err(|e| at(config, &e))?.is_dir() {
        return Ok(vec![config.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(config).map_err(|e| at(config, &e))? {
        let path = entry.map_err(|e| at(config, &e))?.path();
        let named = path
            .extension()
            .is_some_and(|e| e == "json" || e == "yaml" || e == "yml");
        if named && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(at(config, "the directory has no .json, .yaml or .yml file"));
    }
    Ok(files)
}

/// The items of a file's `providers`.
fn entries(path: &Path) -> Result<Vec<Value>, ProviderConfigError> {
    let bytes = read_bounded(path)?.ok_or_else(|| at(path, "does not exist"))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| at(path, "it is not UTF-8"))?;
    // The parser's own message is left out, because it could quote a credential from `env`.
    let root: Value = serde_saphyr::from_str(text).map_err(|error| match error.location() {
        Some(place) => at(
            path,
            &format!(
                "neither YAML nor JSON (line {}, column {})",
                place.line(),
                place.column()
            ),
        ),
        None => at(path, "neither YAML nor JSON"),
    })?;
    let text = |field| root.get(field).and_then(Value::as_str).unwrap_or_default();
    if text("kind") != "CredentialProviderConfig" || !KINDS.contains(&text("apiVersion")) {
        let what = format!("not a CredentialProviderConfig of {}", KINDS.join(" or "));
        return Err(at(path, &what));
    }
    match root.get("providers") {
        Some(Value::Array(providers)) if !providers.is_empty() => Ok(providers.clone()),
        _ => Err(at(path, "providers must be a list of at least one")),
    }
}

fn provider(value: &Value, bin_dir: &Path, tokens: &Path) -> Result<Provider, Refused> {
    let fields = value.as_object().ok_or("it must be an object")?;
    known(fields)?;
    let name = text(fields, "name")?.ok_or("name is missing")?;
    if name.is_empty()
        || name == "."
        || name == ".."
        || name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control())
    {
        return Err("name must be a file name without / or whitespace".into());
    }
    let api_version = text(fields, "apiVersion")?.unwrap_or_default();
    if !PROTOCOLS.contains(&api_version) {
        let what = format!("apiVersion must be one of {}", PROTOCOLS.join(", "));
        return Err(match api_version.starts_with(PROTOCOL_GROUP) {
            true => Refused::Beyond(what),
            false => Refused::Malformed(what),
        });
    }
    let account = match fields.get("tokenAttributes") {
        None | Some(Value::Null) => None,
        Some(attributes) => Some(Account::parse(attributes, tokens).map_err(Refused::Beyond)?),
    };
    Ok(Provider {
        name: name.to_owned(),
        program: program(bin_dir, name)?,
        api_version: api_version.to_owned(),
        match_images: match_images(fields)?,
        default_cache: default_cache(fields)?,
        args: texts(fields, "args")?,
        env: env(fields)?,
        account,
        limit: LIMIT,
        cache: Mutex::new(Cache::default()),
        flights: SingleFlight::default(),
    })
}

/// An unknown field may change the meaning of the others.
fn known(fields: &Map<String, Value>) -> Result<(), Refused> {
    const KNOWN: &[&str] = &[
        "name",
        "matchImages",
        "defaultCacheDuration",
        "apiVersion",
        "args",
        "env",
        "tokenAttributes",
    ];
    match fields.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        Some(key) => Err(Refused::Beyond(format!(
            "unsupported field {}",
            excerpt(key)
        ))),
        None => Ok(()),
    }
}

fn program(bin_dir: &Path, name: &str) -> Result<PathBuf, String> {
    let program = bin_dir.join(name);
    let shown = program.display();
    match fs::metadata(&program) {
        Ok(data) if data.is_file() && data.permissions().mode() & 0o111 != 0 => Ok(program),
        Ok(_) => Err(format!("{shown} is not a program")),
        Err(error) => Err(format!("failed to find its program {shown}: {error}")),
    }
}

fn match_images(fields: &Map<String, Value>) -> Result<Vec<Pattern>, String> {
    let globs = texts(fields, "matchImages")?;
    if globs.is_empty() {
        return Err("matchImages must have at least one item".to_owned());
    }
    globs
        .iter()
        .map(|glob| {
            Pattern::glob(glob).map_err(|error| format!("matchImages {}: {error}", excerpt(glob)))
        })
        .collect()
}

fn default_cache(fields: &Map<String, Value>) -> Result<Duration, String> {
    match text(fields, "defaultCacheDuration")?.map(go_duration::parse) {
        Some(Some(Ok(duration))) => Ok(duration),
        None => Err("defaultCacheDuration is missing".to_owned()),
        Some(_) => {
            Err("defaultCacheDuration must be a duration such as 12h, not below 0".to_owned())
        }
    }
}

fn env(fields: &Map<String, Value>) -> Result<Vec<(String, Secret)>, String> {
    let malformed = || "env must be a list of name and value".to_owned();
    let items = match fields.get("env") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(_) => return Err(malformed()),
    };
    let mut env = Vec::new();
    for item in items {
        let item = item.as_object().ok_or_else(malformed)?;
        let name = text(item, "name")?.ok_or_else(malformed)?;
        let value = text(item, "value")?.unwrap_or_default();
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(malformed());
        }
        env.push((name.to_owned(), Secret::new(value)));
    }
    Ok(env)
}

pub(super) fn text<'a>(
    fields: &'a Map<String, Value>,
    field: &str,
) -> Result<Option<&'a str>, String> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("{field} must be a string")),
    }
}

pub(super) fn texts(fields: &Map<String, Value>, field: &str) -> Result<Vec<String>, String> {
    let malformed = || format!("{field} must be a list of strings");
    match fields.get(field) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| {
                item.as_str()
                    .filter(|t| !t.contains('\0'))
                    .map(str::to_owned)
                    .ok_or_else(malformed)
            })
            .collect(),
        Some(_) => Err(malformed()),
    }
}

#[cfg(test)]
mod tests;
