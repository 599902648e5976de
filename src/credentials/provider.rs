//! The kubelet's image credential providers: plugins for the registries of a cloud, called as the kubelet calls them.
//!
//! They provide the credentials for ECR, Artifact Registry and ACR, without any cloud code in harpoon. A plugin is called only
//! for images that match its `matchImages`. Its answer is matched by the same rules as a docker config file and cached for the
//! duration that it specifies.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tracing::{info, warn};

use super::docker_config::Entry;
use super::file_watch::FileWatch;
use super::keyring::pattern::Pattern;
use super::keyring::{Found, matching};
use super::program::Program;
use crate::credentials::secret::{Secret, redact};
use crate::model::reference::Reference;
use crate::model::text::{chain, excerpt, sanitize};
use crate::retry::single_flight::SingleFlight;

mod account;
mod answer;
mod cache;
mod config;

use account::Account;
pub use account::DIRECTORY as TOKENS;
use answer::{Answer, KeyType};
use cache::{Cache, Key};
pub use config::ProviderConfigError;

/// The kubelet's time limit.
const LIMIT: Duration = Duration::from_secs(60);

/// Exercises the parsing of a plugin's answer, for fuzzing.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_answer(data: &[u8]) {
    let version = "credentialprovider.kubelet.k8s.io/v1";
    match Answer::parse("plugin", version, data) {
        Ok(answer) => {
            let image = Reference::parse("registry.example/team/app:1").expect("a reference");
            for entry in &answer.entries {
                let _ = entry.pattern.concerns(&image);
                assert!(!format!("{entry:?}").is_empty());
            }
        }
        Err(words) => assert!(words.starts_with("the ")),
    }
}

/// The plugins of one configuration, in its order. It is reloaded after it changes.
#[derive(Debug)]
pub struct Providers {
    place: Place,
    state: Mutex<State>,
}

/// The paths that a configuration is read from.
#[derive(Debug)]
struct Place {
    config: PathBuf,
    bin_dir: PathBuf,
    tokens: PathBuf,
}

#[derive(Debug)]
struct State {
    providers: Arc<Vec<Provider>>,
    watch: FileWatch,
}

/// One plugin.
struct Provider {
    name: String,
    program: PathBuf,
    api_version: String,
    match_images: Vec<Pattern>,
    default_cache: Duration,
    args: Vec<String>,
    env: Vec<(String, Secret)>,
    /// The service account that its requests describe.
    account: Option<Account>,
    limit: Duration,
    cache: Mutex<Cache>,
    flights: SingleFlight<Arc<Answer>>,
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("name", &self.name)
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

impl Providers {
    /// Reads a `CredentialProviderConfig`, or a directory of several, whose plugins are in `bin_dir`. The directory `tokens`, if
    /// it exists, contains service account tokens for them.
    ///
    /// # Errors
    /// If the configuration is invalid; the kubelet would not start with it either.
    pub fn read(config: &Path, bin_dir: &Path, tokens: &Path) -> Result<Self, ProviderConfigError> {
        let place = Place {
            config: config.to_owned(),
            bin_dir: bin_dir.to_owned(),
            tokens: tokens.to_owned(),
        };
        let watch = FileWatch::new(place.watched());
        let providers = Arc::new(place.read()?);
        let state = Mutex::new(State { providers, watch });
        Ok(Self { place, state })
    }

    /// The plugins of the current configuration. If a new one is invalid, it is ignored with a warning and the previous one stays
    /// in use.
    fn current(&self) -> Arc<Vec<Provider>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.watch.has_changed(|| self.place.watched()) {
            let config = excerpt(&self.place.config.display().to_string());
            match self.place.read_again() {
                Ok(providers) => {
                    info!("reloaded {config} after a change");
                    state.providers = Arc::new(providers);
                }
                Err(problem) => warn!(
                    "failed to read changed credential providers, keeping the previous ones: {}",
                    sanitize(&problem)
                ),
            }
        }
        Arc::clone(&state.providers)
    }

    /// The answers of the plugins that match this image.
    pub(crate) async fn lookup(&self, image: &Reference) -> Found {
        let providers = self.current();
        let asked = providers.iter().filter(|p| p.is_for(image));
        let answers = join_all(asked.map(|p| p.ask(image))).await;
        let mut found = Found::default();
        let mut entries: Vec<Entry> = Vec::new();
        for answer in answers {
            match answer {
                Ok(answer) => {
                    entries.extend(answer.entries.iter().cloned());
                    found.problems.extend(answer.problems.iter().cloned());
                }
                Err(problem) => {
                    found.problems.push(problem);
                    found.is_incomplete = true;
                }
            }
        }
        found.credentials = matching(entries.iter(), image).cloned().collect();
        found
    }
}

impl Place {
    /// Reads the configuration, and logs a warning for the providers that are not used.
    fn read(&self) -> Result<Vec<Provider>, ProviderConfigError> {
        let read = config::read(&self.config, &self.bin_dir, &self.tokens)?;
        for provider in &read.dropped {
            warn!("credential provider ignored: {}", sanitize(provider));
        }
        Ok(read.providers)
    }

    fn read_again(&self) -> Result<Vec<Provider>, String> {
        // A pipe may never have a writer.
        if self.config.exists() && !self.config.is_file() && !self.config.is_dir() {
            let config = excerpt(&self.config.display().to_string());
            return Err(format!("{config} is neither a file nor a directory"));
        }
        self.read().map_err(|error| chain(&error))
    }

    /// All files that the providers depend on: a plugin may be installed after its configuration, and a token after both.
    fn watched(&self) -> Vec<PathBuf> {
        let mut paths = config::files(&self.config).unwrap_or_default();
        paths.push(self.config.clone());
        paths.push(self.bin_dir.clone());
        paths.extend(Account::files(&self.tokens));
        paths
    }
}

impl Provider {
    fn is_for(&self, image: &Reference) -> bool {
        self.match_images.iter().any(|p| p.matches(image))
    }

    async fn ask(&self, image: &Reference) -> Result<Arc<Answer>, String> {
        // Like the kubelet: the repository's full name, without tag and digest.
        let name = format!("{}/{}", image.registry(), image.repository());
        let cached = || {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.get(image.registry(), &name, Instant::now())
        };
        if let Some(answer) = cached() {
            return Ok(answer);
        }
        self.flights
            .share(
                image.registry(),
                &name,
                Duration::ZERO,
                cached,
                self.run(image.registry(), &name),
            )
            .await
            .map_err(|problem| format!("credential provider {} failed: {problem}", self.name))
    }

    async fn run(&self, registry: &str, image: &str) -> Result<Arc<Answer>, String> {
        let mut program = Program::new(&self.program);
        for arg in &self.args {
            program = program.arg(arg);
        }
        for (name, value) in &self.env {
            program = program.env(name, value.expose());
        }
        let mut request = serde_json::json!({
            "kind": "CredentialProviderRequest",
            "apiVersion": self.api_version,
            "image": image,
        });
        let token = self.account.as_ref().and_then(Account::token);
        match (&self.account, &token) {
            (Some(account), Some(token)) => {
                request["serviceAccountToken"] = token.expose().into();
                request["serviceAccountAnnotations"] = serde_json::json!(account.annotations());
            }
            (Some(account), None) if account.is_required() => {
                return Err("service account token not found".to_owned());
            }
            _ => {}
        }
        let request = format!("{request}\n");
        // A plugin that traces itself repeats its request.
        let hidden = |text: String| redact(&text, token.as_slice());
        let output = program
            .run(request.as_bytes(), self.limit)
            .await
            .map_err(|error| hidden(error.to_string()))?;
        let answer = Answer::parse(&self.name, &self.api_version, &output.answer.0)
            .map_err(|problem| hidden(format!("{problem}{}", output.said())))?;
        let answer = Arc::new(answer);
        if token.is_some() && !self.account.as_ref().is_some_and(Account::outlives_token) {
            return Ok(answer);
        }
        let key = match answer.key_type {
            KeyType::Image => Key::Image(image.to_owned()),
            KeyType::Registry => Key::Registry(registry.to_owned()),
            KeyType::Global => Key::Global,
        };
        let keep = answer.keep.unwrap_or(self.default_cache);
        self.cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .put(key, &answer, keep, Instant::now());
        Ok(answer)
    }
}

#[cfg(test)]
mod tests;
