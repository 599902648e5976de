//! All credentials at hand, and which of them are for an image.
//!
//! Nobody is given a credential that is not theirs: matching is the kubelet's, in [`pattern`], save for `PRIVATE_REGISTRY`, which
//! is stricter. A source that fails is told of and does not keep the others from being asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::docker_config::{DockerConfig, Entry};
use super::provider::Providers;
use crate::credentials::secret::Credential;
use crate::model::failure::FailureKind;
use crate::model::reference::Reference;
use crate::retry::single_flight::FAILURE_KEPT_MAX;

pub(crate) mod basic;
pub mod pattern;
pub mod private;

pub use basic::BasicError;
pub use private::{Private, PrivateError};

/// The shortest wait after which a source that failed is asked again.
pub const SOURCE_PAUSE: Duration = FAILURE_KEPT_MAX;

/// What a keyring is made of.
#[derive(Debug, Default)]
pub struct Settings {
    /// `PRIVATE_REGISTRY`.
    pub private: Option<Private>,
    /// Docker config files, in the order in which they are asked.
    pub docker_configs: Vec<DockerConfig>,
    /// The kubelet's plugins.
    pub providers: Option<Providers>,
}

/// The credentials of all sources, in the order in which they are tried.
#[derive(Debug, Default)]
pub struct Keyring {
    settings: Settings,
    /// By the image's normalised name.
    scoped: HashMap<String, Vec<Arc<DockerConfig>>>,
}

/// What a keyring has for one image.
#[derive(Debug, Default)]
pub struct Found {
    /// The credentials to try, in order; anonymously comes after the last.
    pub credentials: Vec<Credential>,
    /// Sources that should have been asked and failed, each as a sentence without any secret in it.
    pub problems: Vec<String>,
    /// A program that knows credentials gave no answer; it may give one later.
    pub is_incomplete: bool,
}

impl Keyring {
    /// A keyring of these sources.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            scoped: HashMap::new(),
        }
    }

    /// Adds what is for one image alone, which is named as [`Reference::normalized`] does. Within it, only what matches the image
    /// is used. Several for one image are one to the matching rules, as a pod's pull secrets are to the kubelet.
    pub fn scope(&mut self, normalised_image: String, config: Arc<DockerConfig>) {
        let configs = self.scoped.entry(normalised_image).or_default();
        if !configs.iter().any(|known| Arc::ptr_eq(known, &config)) {
            configs.push(config);
        }
    }

    /// The credentials for an image. Dropping the future ends the programs that are asked.
    pub async fn lookup(&self, image: &Reference) -> Found {
        let mut found = Found::default();
        found.add(self.settings.private.iter().filter_map(|p| p.lookup(image)));
        // The programs of all sources are asked at once: each may take its time.
        let helpers = join_all(
            self.settings
                .docker_configs
                .iter()
                .map(|config| config.ask_helper(image)),
        );
        let (helped, provided) = tokio::join!(helpers, async {
            match &self.settings.providers {
                Some(providers) => providers.lookup(image).await,
                None => Found::default(),
            }
        });
        for (config, helped) in self.settings.docker_configs.iter().zip(helped) {
            // Where a helper is named, it knows better than what is left in the file.
            match helped {
                Ok(credential) => found.add(credential.iter()),
                Err(problem) => {
                    found.problems.push(problem);
                    found.is_incomplete = true;
                }
            }
            found.add(matching(config.entries().iter(), image));
            found.problems.extend(config.problems_for(image));
        }
        found.add(provided.credentials.iter());
        found.problems.extend(provided.problems);
        found.is_incomplete |= provided.is_incomplete;
        if let Some(configs) = self.scoped.get(image.normalized()) {
            found.add(matching(configs.iter().flat_map(|c| c.entries()), image));
            for config in configs {
                found.problems.extend(config.problems_for(image));
            }
        }
        found
    }
}

/// That nobody was let in.
#[derive(Debug)]
pub struct Refused<E> {
    /// What the first that was refused was told, or what no other credential can change.
    pub error: E,
    /// Which credentials were tried in vain, and which could not be, for the end of a message; often empty.
    pub tried: String,
    /// A source of credentials gave no answer, so that another try after [`SOURCE_PAUSE`] may have one that is let in.
    pub source_failed: bool,
}

impl Keyring {
    /// Tries the credentials for the image in order, anonymously last, until one is let in; says which one that was.
    ///
    /// Many registries say "not found" to those who may not see, and some have words of their own for a login that they
    /// refuse, so these answers are no end either.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn with_each<T, E>(
        &self,
        image: &Reference,
        kind: impl Fn(&E) -> FailureKind,
        attempt: impl AsyncFn(Option<&Credential>) -> Result<T, E>,
    ) -> Result<(T, Option<Credential>), Refused<E>> {
        self.with_each_until(image, kind, || false, attempt).await
    }

    /// The same, and ends with the first failure after which `is_let_in` says that no other credential can help.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn with_each_until<T, E>(
        &self,
        image: &Reference,
        kind: impl Fn(&E) -> FailureKind,
        is_let_in: impl Fn() -> bool,
        attempt: impl AsyncFn(Option<&Credential>) -> Result<T, E>,
    ) -> Result<(T, Option<Credential>), Refused<E>> {
        let is_refusal = |error: &E| !is_let_in() && is_refusal(kind(error));
        let found = self.lookup(image).await;
        let mut refusal: Option<E> = None;
        for credential in &found.credentials {
            match attempt(Some(credential)).await {
                Ok(answer) => return Ok((answer, Some(credential.clone()))),
                Err(error) if is_refusal(&error) => {
                    refusal = Some(telling(refusal, error, &kind));
                }
                Err(error) => return Err(Refused::at_once(error)),
            }
        }
        match attempt(None).await {
            Ok(answer) => Ok((answer, None)),
            Err(error) if !is_refusal(&error) => Err(Refused::at_once(error)),
            Err(error) => Err(Refused {
                error: telling(refusal, error, &kind),
                tried: found.tried(),
                source_failed: found.is_incomplete,
            }),
        }
    }
}

impl<E> Refused<E> {
    fn at_once(error: E) -> Self {
        Self {
            error,
            tried: String::new(),
            source_failed: false,
        }
    }
}

/// Whether another credential may be let in.
fn is_refusal(kind: FailureKind) -> bool {
    matches!(
        kind,
        FailureKind::Unauthorized | FailureKind::NotFound | FailureKind::Other
    )
}

/// Which of two refusals tells more: "not found" is said by those who could see, else the first.
fn telling<E>(first: Option<E>, next: E, kind: &impl Fn(&E) -> FailureKind) -> E {
    match first {
        Some(first) if kind(&next) != FailureKind::NotFound => first,
        _ => next,
    }
}

impl Found {
    /// Which credentials were tried in vain, and which could not be, for the end of a message.
    fn tried(&self) -> String {
        let mut text = String::new();
        if !self.credentials.is_empty() {
            let sources: Vec<&str> = self.credentials.iter().map(|c| &*c.source).collect();
            text = format!(
                " (tried with the credentials of {}, and anonymously)",
                sources.join(", ")
            );
        }
        for problem in &self.problems {
            text.push_str("; ");
            text.push_str(problem);
        }
        text
    }

    /// Adds credentials at the end, save those that are tried already.
    fn add<'a>(&mut self, credentials: impl IntoIterator<Item = &'a Credential>) {
        for credential in credentials {
            if !self.credentials.iter().any(|c| c.login == credential.login) {
                self.credentials.push(credential.clone());
            }
        }
    }
}

/// The credentials of those entries that are for the image, in the kubelet's order.
pub(crate) fn matching<'a>(
    entries: impl Iterator<Item = &'a Entry> + Clone,
    image: &Reference,
) -> impl Iterator<Item = &'a Credential> {
    pattern::select(entries, |entry| &entry.pattern, image)
        .into_iter()
        .map(|entry| &entry.credential)
}

#[cfg(test)]
mod tests;
