//! Docker's credential helpers: `docker-credential-NAME get`, asked for a registry's credential.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{shown, texts, user_or_token};
use crate::credentials::program::{Program, ProgramError};
use crate::credentials::secret::{Credential, Login};
use crate::model::reference::{DOCKER_HUB, DOCKER_HUB_INDEX, DOCKER_HUB_URL};
use crate::model::text::excerpt;
use crate::retry::single_flight::SingleFlight;

const LIMIT: Duration = Duration::from_secs(10);
/// Lifetime of a cached answer: long enough for the pulls that begin together in one run.
const KEEP: Duration = Duration::from_secs(60);
/// The output of a helper that has no credential for the registry.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// The helpers that one file names.
#[derive(Default)]
pub(super) struct Helpers {
    file: String,
    /// Helpers by registry, as written in the file.
    by_registry: BTreeMap<String, String>,
    /// The helper for all other registries.
    store: Option<String>,
    answers: SingleFlight<Option<Arc<Login>>>,
}

impl fmt::Debug for Helpers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Helpers")
            .field("by_registry", &self.by_registry)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Found {
    #[serde(rename = "Username", default)]
    user: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

impl Helpers {
    /// The file's `credHelpers` and `credsStore`. Entries that cannot be used are passed to `refuse`.
    pub(super) fn new(
        file: &Path,
        root: &Map<String, Value>,
        mut refuse: impl FnMut(String),
    ) -> Self {
        let mut by_registry = match root.get("credHelpers") {
            None | Some(Value::Null) => BTreeMap::new(),
            Some(Value::Object(map)) => texts(map, |key| {
                refuse(format!("credHelpers of {} must be a name", shown(key)));
            }),
            Some(_) => {
                refuse("\"credHelpers\" must be an object".to_owned());
                BTreeMap::new()
            }
        };
        by_registry.retain(|registry, name| {
            // An empty name disables the store for the registry.
            let fits = name.is_empty() || is_name(name);
            if !fits {
                refuse(format!("the helper of {} {BAD_NAME}", shown(registry)));
            }
            fits
        });
        let store = match root.get("credsStore") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) if name.is_empty() => None,
            Some(Value::String(name)) if is_name(name) => Some(name.clone()),
            Some(_) => {
                refuse(format!("the helper of \"credsStore\" {BAD_NAME}"));
                None
            }
        };
        Self {
            file: excerpt(&file.display().to_string()),
            by_registry,
            store,
            answers: SingleFlight::default(),
        }
    }

    /// The answer of the helper for this registry, if there is one.
    pub(super) async fn ask(&self, registry: &str) -> Result<Option<Credential>, String> {
        let Some((name, server)) = self.helper_for(registry) else {
            return Ok(None);
        };
        let source = format!("helper {name} ({})", self.file);
        let program = Program::new(format!("docker-credential-{name}"));
        let login = self
            .share(registry, get(program, server))
            .await
            .map_err(|problem| format!("{source} failed: {problem}"))?;
        Ok(login.map(|login| Credential {
            login,
            source: Arc::from(source),
            is_pull_secret: false,
        }))
    }

    async fn share(
        &self,
        registry: &str,
        run: impl Future<Output = Result<Option<Arc<Login>>, String>>,
    ) -> Result<Option<Arc<Login>>, String> {
        self.answers
            .share(registry, registry, KEEP, || None, run)
            .await
    }

    /// The helper's name and its request.
    fn helper_for<'a>(&'a self, registry: &'a str) -> Option<(&'a str, &'a str)> {
        let aliases: &[&str] = if registry == DOCKER_HUB {
            &[DOCKER_HUB_URL, DOCKER_HUB_INDEX, DOCKER_HUB]
        } else {
            &[registry]
        };
        let own = aliases
            .iter()
            .find_map(|alias| self.by_registry.get_key_value(*alias));
        if let Some((key, name)) = own {
            return (!name.is_empty()).then_some((name, key));
        }
        let server = if registry == DOCKER_HUB {
            DOCKER_HUB_URL
        } else {
            registry
        };
        self.store.as_deref().map(|name| (name, server))
    }
}

const BAD_NAME: &str = "has a malformed name, expected letters, digits, . _ and -";

/// Returns whether the text can be the end of a program's name and cannot be a path.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

async fn get(program: Program, server: &str) -> Result<Option<Arc<Login>>, String> {
    let output = match program.arg("get").run(server.as_bytes(), LIMIT).await {
        Ok(output) => output,
        Err(ProgramError::Failed { answer, .. }) if answer.is(NOT_FOUND) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let Ok(found) = serde_json::from_slice::<Found>(&output.answer.0) else {
        return Err(format!("unexpected response{}", output.said()));
    };
    if found.user.is_empty() && found.secret.is_empty() {
        return Ok(None);
    }
    Ok(Some(Arc::new(user_or_token(found.user, found.secret))))
}

#[cfg(test)]
mod tests;
