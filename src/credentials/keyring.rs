//! All credentials at hand, and which of them are for an image.
//!
//! Nobody is given a credential that is not theirs: matching is the kubelet's, in [`pattern`], save for `PRIVATE_REGISTRY`, which
//! is stricter. A source that fails is told of and does not keep the others from being asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::docker_config::{ConfigFile, DockerConfig, Entry};
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
    pub docker_configs: Vec<ConfigFile>,
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
    /// A program that knows credentials gave no answer; it may give one after [`SOURCE_PAUSE`].
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

    /// Sets what is for single images alone, each named as [`Reference::normalized`] does, in place of all that was set before: a
    /// keyring that lives long holds what is in use now. Within a configuration, only what matches the image is used. Several for
    /// one image are one to the matching rules, as a pod's pull secrets are to the kubelet.
    pub fn set_scoped(&mut self, configs: impl IntoIterator<Item = (String, Arc<DockerConfig>)>) {
        self.scoped = HashMap::new();
        for (image, config) in configs {
            let known = self.scoped.entry(image).or_default();
            if !known.iter().any(|known| Arc::ptr_eq(known, &config)) {
                known.push(config);
            }
        }
    }

    /// The credentials for an image. Dropping the future ends the programs that are asked.
    pub async fn lookup(&self, image: &Reference) -> Found {
        let mut found = Found::default();
        found.add(self.settings.private.iter().filter_map(|p| p.lookup(image)));
        let files = self.settings.docker_configs.iter();
        let configs: Vec<_> = files.filter_map(ConfigFile::current).collect();
        // The programs of all sources are asked at once: each may take its time.
        let helpers = join_all(configs.iter().map(|config| config.ask_helper(image)));
        let (helped, provided) = tokio::join!(helpers, async {
            match &self.settings.providers {
                Some(providers) => providers.lookup(image).await,
                None => Found::default(),
            }
        });
        for (config, helped) in configs.iter().zip(helped) {
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
            let of_secrets = matching(configs.iter().flat_map(|c| c.entries()), image);
            let of_secrets = of_secrets.map(|credential| Credential {
                is_pull_secret: true,
                ..credential.clone()
            });
            found.add(&of_secrets.collect::<Vec<_>>());
            for config in configs {
                found.problems.extend(config.problems_for(image));
            }
        }
        found
    }

    /// The pull secret that is tried first for an image, unless a file or variable has a credential that is tried before it. No
    /// program is run: what a helper or a provider may have is left out.
    pub fn pull_secret(&self, image: &Reference) -> Option<Arc<str>> {
        let configs = self.scoped.get(image.normalized())?;
        let secret = matching(configs.iter().flat_map(|c| c.entries()), image).next()?;
        let private = self.settings.private.as_ref();
        let files = self.settings.docker_configs.iter();
        let configs: Vec<_> = files.filter_map(ConfigFile::current).collect();
        let is_later = private.is_some_and(|private| private.lookup(image).is_some())
            || configs
                .iter()
                .any(|config| matching(config.entries().iter(), image).next().is_some());
        (!is_later).then(|| Arc::clone(&secret.source))
    }
}

/// Returns whether a failure is a refusal, after which another credential may be let in. Many registries say "not found" to
/// those who may not see, and some have words of their own for a login that they refuse.
pub fn is_refusal(kind: FailureKind) -> bool {
    matches!(
        kind,
        FailureKind::Unauthorized | FailureKind::NotFound | FailureKind::Other
    )
}

/// The more telling of two refusals: "not found" is said by those who could see, else the first.
pub fn more_telling<E>(first: Option<E>, next: E, kind: impl Fn(&E) -> FailureKind) -> E {
    match first {
        Some(first) if kind(&next) != FailureKind::NotFound => first,
        _ => next,
    }
}

impl Found {
    /// The credentials that were tried in vain, and those that could not be, for the end of a message; often empty.
    pub fn tried(&self) -> String {
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
