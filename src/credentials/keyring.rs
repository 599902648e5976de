//! The keyring: all credentials, and the lookup of those for an image.
//!
//! A credential is used only for the images that it is for: matching follows the kubelet's rules, in [`pattern`], except for
//! `PRIVATE_REGISTRY`, which is stricter. A source that fails is reported and does not prevent the use of the others.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
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

/// Minimum wait before a failed source is queried again.
pub const SOURCE_PAUSE: Duration = FAILURE_KEPT_MAX;

/// The sources of a keyring.
#[derive(Debug, Default)]
pub struct Settings {
    /// `PRIVATE_REGISTRY`.
    pub private: Option<Private>,
    /// Docker config files, in the order in which they are used.
    pub docker_configs: Vec<ConfigFile>,
    /// The kubelet's plugins.
    pub providers: Option<Providers>,
}

/// The credentials of all sources, in the order in which they are tried.
#[derive(Debug, Default)]
pub struct Keyring {
    settings: Settings,
    /// Configurations by the image's normalised name. They can be replaced while pulls look them up.
    scoped: RwLock<Scoped>,
}

type Scoped = HashMap<String, Vec<Arc<DockerConfig>>>;

/// The credentials of a keyring for one image.
#[derive(Debug, Default)]
pub struct Found {
    /// The credentials to try, in order; an anonymous attempt follows the last.
    pub credentials: Vec<Credential>,
    /// Sources that failed, each as a sentence that contains no secret.
    pub problems: Vec<String>,
    /// True if a program gave no answer; it may give one after [`SOURCE_PAUSE`].
    pub is_incomplete: bool,
}

impl Keyring {
    /// A keyring of these sources.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            scoped: RwLock::default(),
        }
    }

    /// Replaces the configurations that are each for one image, named as [`Reference::normalized`] does; a long-lived keyring
    /// holds only those in use. Within a configuration, only entries that match the image are used. Several configurations for
    /// one image are matched as one, as the kubelet does with a pod's pull secrets.
    pub fn set_scoped(&self, configs: impl IntoIterator<Item = (String, Arc<DockerConfig>)>) {
        let mut scoped = Scoped::new();
        for (image, config) in configs {
            let known = scoped.entry(image).or_default();
            if !known.iter().any(|known| Arc::ptr_eq(known, &config)) {
                known.push(config);
            }
        }
        *self.scoped.write().unwrap_or_else(PoisonError::into_inner) = scoped;
    }

    /// Grows whenever a docker config file has another content than before.
    pub fn changes(&self) -> u64 {
        let files = self.settings.docker_configs.iter();
        files.map(ConfigFile::changes).sum()
    }

    /// The configurations that are only for this image.
    fn scoped(&self, image: &Reference) -> Option<Vec<Arc<DockerConfig>>> {
        let scoped = self.scoped.read().unwrap_or_else(PoisonError::into_inner);
        scoped.get(image.normalized()).cloned()
    }

    /// The credentials for an image. Dropping the future ends the programs that it runs.
    pub async fn lookup(&self, image: &Reference) -> Found {
        let mut found = Found::default();
        found.add(self.settings.private.iter().filter_map(|p| p.lookup(image)));
        let files = self.settings.docker_configs.iter();
        let configs: Vec<_> = files.filter_map(ConfigFile::current).collect();
        // The programs of all sources run concurrently, because each may be slow.
        let helpers = join_all(configs.iter().map(|config| config.ask_helper(image)));
        let (helped, provided) = tokio::join!(helpers, async {
            match &self.settings.providers {
                Some(providers) => providers.lookup(image).await,
                None => Found::default(),
            }
        });
        for (config, helped) in configs.iter().zip(helped) {
            // A helper takes precedence over the entries in the file.
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
        if let Some(configs) = self.scoped(image) {
            let of_secrets = matching(configs.iter().flat_map(|c| c.entries()), image);
            let of_secrets = of_secrets.map(|credential| Credential {
                is_pull_secret: true,
                ..credential.clone()
            });
            found.add(&of_secrets.collect::<Vec<_>>());
            for config in &configs {
                found.problems.extend(config.problems_for(image));
            }
        }
        found
    }

    /// The pull secret that is tried first for an image, unless a file or variable has a credential that is tried before it. No
    /// program is run: what a helper or a provider may have is left out.
    pub fn pull_secret(&self, image: &Reference) -> Option<Arc<str>> {
        let configs = self.scoped(image)?;
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

/// Returns whether a failure is a refusal, after which another credential may succeed. Many registries answer "not found" to
/// unauthorised clients, and some have their own messages for a login that they refuse.
pub fn is_refusal(kind: FailureKind) -> bool {
    matches!(
        kind,
        FailureKind::Unauthorized | FailureKind::NotFound | FailureKind::Other
    )
}

/// The more informative of two refusals: "not found", because it may come from an authorised request, otherwise the first.
pub fn more_telling<E>(first: Option<E>, next: E, kind: impl Fn(&E) -> FailureKind) -> E {
    match first {
        Some(first) if kind(&next) != FailureKind::NotFound => first,
        _ => next,
    }
}

impl Found {
    /// The credentials that failed, and the sources that failed, for the end of a message; often empty.
    pub fn tried(&self) -> String {
        let mut text = String::new();
        if !self.credentials.is_empty() {
            let sources: Vec<&str> = self.credentials.iter().map(|c| &*c.source).collect();
            text = format!(" (tried: {}, anonymous)", sources.join(", "));
        }
        for problem in &self.problems {
            text.push_str("; ");
            text.push_str(problem);
        }
        text
    }

    /// Appends credentials, except those that were tried already.
    fn add<'a>(&mut self, credentials: impl IntoIterator<Item = &'a Credential>) {
        for credential in credentials {
            if !self.credentials.iter().any(|c| c.login == credential.login) {
                self.credentials.push(credential.clone());
            }
        }
    }
}

/// The credentials of the entries that match the image, in the kubelet's order.
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
