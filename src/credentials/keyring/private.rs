//! The one registry of `PRIVATE_REGISTRY` and `PRIVATE_REGISTRY_AUTH`. Pure.

use std::sync::Arc;

use super::basic::{self, BasicError};
use crate::credentials::secret::{Credential, Secret};
use crate::model::reference::{DOCKER_HUB, DOCKER_HUB_INDEX, Reference};

/// The reason why the two settings cannot be used. Contains neither of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PrivateError {
    /// The registry is malformed.
    #[error("the registry is malformed, expected HOST or HOST:PORT, optionally followed by a path")]
    Registry,
    /// The user and password are malformed.
    #[error("the credential is malformed, expected base64 of USER:PASSWORD: {0}")]
    Auth(BasicError),
}

/// A credential for one registry, or for a part of it. The host with its port must be equal, and the path must consist of whole
/// components.
#[derive(Debug, Clone)]
pub struct Private {
    registry: String,
    path: Option<String>,
    credential: Credential,
}

impl Private {
    /// The registry is `host` or `host/path`; a scheme before it and a slash at its end are ignored.
    ///
    /// # Errors
    /// [`PrivateError`] for the one that is malformed.
    pub fn parse(registry: &str, auth_base64: &Secret) -> Result<Self, PrivateError> {
        let (registry, path) = place(registry.trim()).ok_or(PrivateError::Registry)?;
        let (user, mut password) =
            basic::decode(auth_base64.expose()).map_err(PrivateError::Auth)?;
        // `echo user:password | base64` adds a line break, which no password ends with.
        while matches!(password.last(), Some(b'\r' | b'\n')) {
            password.pop();
        }
        Ok(Self {
            registry,
            path,
            credential: Credential {
                login: Arc::new(basic::login(user, password)),
                source: Arc::from("PRIVATE_REGISTRY"),
                is_pull_secret: false,
            },
        })
    }

    /// Returns whether a text is a value for `PRIVATE_REGISTRY_AUTH`, and so must not be shown.
    pub fn is_auth(text: &str) -> bool {
        basic::decode(text).is_ok()
    }

    /// The credential, if it is for this image.
    pub fn lookup(&self, image: &Reference) -> Option<&Credential> {
        let path_fits = self.path.as_deref().is_none_or(|path| {
            image
                .repository()
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        (image.registry() == self.registry && path_fits).then_some(&self.credential)
    }
}

/// The registry and path, normalised by the rules for images, so that they can be compared.
fn place(text: &str) -> Option<(String, Option<String>)> {
    let text = ["https://", "http://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme))
        .unwrap_or(text);
    let text = text.strip_suffix('/').unwrap_or(text);
    // Users often copy the key that `docker login` writes.
    let text = if text.strip_suffix("/v1") == Some(DOCKER_HUB_INDEX) {
        DOCKER_HUB
    } else {
        text
    };
    let (host, path) = match text.split_once('/') {
        Some((host, path)) => (host, Some(path)),
        None => (text, None),
    };
    // A word without dot and port is not a host: the parser would treat the path as an image of Docker Hub.
    if !host.contains(['.', ':']) && host != "localhost" || text.contains('@') {
        return None;
    }
    let image = Reference::parse(&format!("{text}/image")).ok()?;
    let path = match path {
        None => None,
        Some(_) => Some(image.repository().strip_suffix("/image")?.to_owned()),
    };
    Some((image.registry().to_owned(), path))
}
