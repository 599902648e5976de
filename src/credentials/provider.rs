//! The kubelet's image credential providers: programs that know a cloud's registries, asked as the kubelet asks them.
//!
//! This is how ECR, Artifact Registry and ACR work without a line of cloud code. A plugin is only asked for images that its
//! `matchImages` has, its answer is matched by the same rules as a docker config file, and kept for as long as it says.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::docker_config::Entry;
use super::keyring::pattern::Pattern;
use super::keyring::{Found, matching};
use super::program::Program;
use crate::credentials::secret::{Secret, redact};
use crate::model::reference::Reference;
use crate::retry::single_flight::SingleFlight;

mod account;
mod answer;
mod cache;
mod config;
mod go_duration;

use account::Account;
pub use account::DIRECTORY as TOKENS;
use answer::{Answer, KeyType};
use cache::{Cache, Key};
pub use config::ProviderConfigError;

/// The kubelet's limit.
const LIMIT: Duration = Duration::from_secs(60);

/// A plugin's answer under fire.
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
        Err(words) => assert!(words.starts_with("its answer")),
    }
}

/// The plugins of one configuration, in its order.
#[derive(Debug)]
pub struct Providers {
    providers: Vec<Provider>,
    dropped: Vec<String>,
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
    /// The service account that it is told of.
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
    /// Reads a `CredentialProviderConfig`, or a directory of several, whose plugins are in `bin_dir`. Service account tokens for
    /// them are in the directory `tokens`, if it is there.
    ///
    /// # Errors
    /// A configuration that the kubelet would not start with either.
    pub fn read(config: &Path, bin_dir: &Path, tokens: &Path) -> Result<Self, ProviderConfigError> {
        let read = config::read(config, bin_dir, tokens)?;
        Ok(Self {
            providers: read.providers,
            dropped: read.dropped,
        })
    }

    /// The providers of the configuration that are not asked, each with why: for a warning when it is read.
    pub fn dropped(&self) -> impl Iterator<Item = &str> {
        self.dropped.iter().map(String::as_str)
    }

    /// What the plugins that are for this image say.
    pub(crate) async fn lookup(&self, image: &Reference) -> Found {
        let asked = self.providers.iter().filter(|p| p.is_for(image));
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

impl Provider {
    fn is_for(&self, image: &Reference) -> bool {
        self.match_images.iter().any(|p| p.matches(image))
    }

    async fn ask(&self, image: &Reference) -> Result<Arc<Answer>, String> {
        // What the kubelet passes: the repository's full name, without tag and digest.
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
                return Err("its service account token is gone".to_owned());
            }
            _ => {}
        }
        let request = format!("{request}\n");
        // What traces itself repeats what it was asked.
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
