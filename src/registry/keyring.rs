//! All credentials at hand, and which of them are for an image.
//!
//! Nobody is given a credential that is not theirs: matching is the kubelet's, in [`pattern`], save for `PRIVATE_REGISTRY`, which
//! is stricter. A source that fails is told of and does not keep the others from being asked.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join_all;

use super::credential::Credential;
use super::docker_config::{DockerConfig, Entry};
use super::provider::Providers;
use crate::image::Reference;

pub(super) mod basic;
pub mod pattern;
pub mod private;

pub use basic::BasicError;
pub use private::{Private, PrivateError};

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
                Err(problem) => found.problems.push(problem),
            }
            found.add(matching(config.entries().iter(), image));
            found.problems.extend(config.problems_for(image));
        }
        found.add(provided.credentials.iter());
        found.problems.extend(provided.problems);
        if let Some(configs) = self.scoped.get(&image.normalized()) {
            found.add(matching(configs.iter().flat_map(|c| c.entries()), image));
            for config in configs {
                found.problems.extend(config.problems_for(image));
            }
        }
        found
    }
}

impl Found {
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
pub(super) fn matching<'a>(
    entries: impl Iterator<Item = &'a Entry> + Clone,
    image: &Reference,
) -> impl Iterator<Item = &'a Credential> {
    pattern::select(entries, |entry| &entry.pattern, image)
        .into_iter()
        .map(|entry| &entry.credential)
}

#[cfg(test)]
mod tests;
