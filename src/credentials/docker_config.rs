//! Docker config files, and Kubernetes secrets with the same content: the credentials that they hold for an image.
//!
//! A file may name credential helpers, which are run. A secret may not: otherwise anyone who can write secrets could choose
//! programs on the node. One broken entry does not affect the others, and no error contains a value.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::keyring::basic;
use super::keyring::pattern::Pattern;
use crate::credentials::secret::{Credential, Login, Secret};
use crate::model::reference::Reference;
use crate::model::text::excerpt;

mod files;
mod helper;
pub use files::ConfigFile;
use helper::Helpers;

/// Maximum size of a file in bytes: the limit of a Kubernetes secret.
const FILE_MAX: u64 = 1 << 20;
/// The user name that marks the password as an identity token.
const TOKEN_USER: &str = "<token>";

/// The reason why a file with credentials cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// The file exists and cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is too long.
    #[error("failed to read {}: it is longer than {FILE_MAX} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The file is not JSON. The parser's own message is left out, because it quotes values.
    #[error("{name} is not JSON (line {line}, column {column})")]
    Json {
        /// The file or secret.
        name: String,
        /// The line, starting at 1.
        line: usize,
        /// The column, starting at 1.
        column: usize,
    },
    /// The JSON has an unexpected structure.
    #[error("{name} is not a docker configuration: {what} must be an object")]
    Shape {
        /// The file or secret.
        name: String,
        /// The part with the unexpected structure.
        what: &'static str,
    },
}

/// One file's or secret's credentials.
#[derive(Debug)]
pub struct DockerConfig {
    name: Arc<str>,
    entries: Vec<Entry>,
    broken: Vec<Broken>,
    helpers: Helpers,
}

/// A credential and the images that it is for.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) pattern: Pattern,
    pub(crate) credential: Credential,
}

/// The problem with an entry, and the images that it was for, if known.
#[derive(Debug)]
struct Broken {
    pattern: Option<Pattern>,
    problem: String,
}

impl DockerConfig {
    /// Reads a `config.json`, a mounted `.dockerconfigjson`, or a file with the name `.dockercfg`. `None` if there is no file.
    ///
    /// # Errors
    /// If the file cannot be read or has none of these formats.
    pub fn read(path: &Path) -> Result<Option<Self>, ConfigFileError> {
        let Some(json) = read_bounded(path)? else {
            return Ok(None);
        };
        let name = format!("file {}", excerpt(&path.display().to_string()));
        let root = object(&name, &json)?;
        if path.file_name().is_some_and(|n| n == ".dockercfg") {
            return Ok(Some(Self::from_auths(&name, &root)));
        }
        let mut config = Self::from_root(&name, &root)?;
        config.helpers = Helpers::new(path, &root, |problem| {
            config.broken.push(Broken {
                pattern: None,
                problem: format!("{name}: {problem}"),
            });
        });
        Ok(Some(config))
    }

    /// Parses a `.dockerconfigjson`; reports show its credentials under this name. Its helpers are not run.
    ///
    /// # Errors
    /// If it has another format.
    pub fn parse(name: &str, json: &[u8]) -> Result<Self, ConfigFileError> {
        let root = object(name, json)?;
        let mut config = Self::from_root(name, &root)?;
        if !root.contains_key("auths") {
            config.broken.push(Broken {
                pattern: None,
                problem: format!(
                    "{name} has no \"auths\"; credential helpers are supported in files only"
                ),
            });
        }
        Ok(config)
    }

    /// Parses a `.dockercfg`, which consists only of the map of registries.
    ///
    /// # Errors
    /// If it has another format.
    pub fn parse_legacy(name: &str, json: &[u8]) -> Result<Self, ConfigFileError> {
        Ok(Self::from_auths(name, &object(name, json)?))
    }

    fn from_root(name: &str, root: &Map<String, Value>) -> Result<Self, ConfigFileError> {
        match root.get("auths") {
            None | Some(Value::Null) => Ok(Self::from_auths(name, &Map::new())),
            Some(Value::Object(auths)) => Ok(Self::from_auths(name, auths)),
            Some(_) => Err(ConfigFileError::Shape {
                name: name.to_owned(),
                what: "\"auths\"",
            }),
        }
    }

    fn from_auths(name: &str, auths: &Map<String, Value>) -> Self {
        let name: Arc<str> = Arc::from(name);
        let (mut entries, mut broken) = (Vec::new(), Vec::new());
        for (key, value) in auths {
            let login = match login(value) {
                Ok(None) => continue,
                Ok(Some(login)) => Ok(login),
                Err(problem) => Err(problem),
            };
            match (Pattern::key(key), login) {
                (Ok(pattern), Ok(login)) => entries.push(Entry {
                    pattern,
                    credential: Credential {
                        login: Arc::new(login),
                        source: Arc::clone(&name),
                        is_pull_secret: false,
                    },
                }),
                (pattern, login) => {
                    let problem = match (&pattern, login) {
                        (_, Err(problem)) => problem,
                        (Err(error), Ok(_)) => error.to_string(),
                        (Ok(_), Ok(_)) => continue,
                    };
                    broken.push(Broken {
                        problem: format!("{name}, entry {}: {problem}", shown(key)),
                        pattern: pattern.ok(),
                    });
                }
            }
        }
        Self {
            name,
            entries,
            broken,
            helpers: Helpers::default(),
        }
    }

    /// The name under which reports show its credentials.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The problems of its entries, for a warning when it is read.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        self.broken.iter().map(|b| b.problem.as_str())
    }

    /// Exercises a configuration, for fuzzing.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn fuzz(&self, image: &Reference) {
        for entry in &self.entries {
            let _ = entry.pattern.concerns(image);
        }
        for problem in self.problems() {
            assert!(
                !problem.chars().any(crate::model::text::is_unsafe),
                "{problem:?}"
            );
        }
        let _ = self.problems_for(image).count();
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The problems of the entries that might have matched the image.
    pub(crate) fn problems_for(&self, image: &Reference) -> impl Iterator<Item = String> {
        self.broken
            .iter()
            .filter(|b| b.pattern.as_ref().is_some_and(|p| p.concerns(image)))
            .map(|b| b.problem.clone())
    }

    /// The answer of the credential helper for the image's registry, if there is one.
    pub(crate) async fn ask_helper(&self, image: &Reference) -> Result<Option<Credential>, String> {
        self.helpers.ask(image.registry()).await
    }
}

/// The file's content; none where there is no file.
pub(crate) fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>, ConfigFileError> {
    let failed = |source| ConfigFileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(ConfigFileError::TooLong {
            path: path.to_owned(),
        });
    }
    Ok(Some(bytes))
}

fn object(name: &str, json: &[u8]) -> Result<Map<String, Value>, ConfigFileError> {
    match serde_json::from_slice(json) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(ConfigFileError::Shape {
            name: name.to_owned(),
            what: "the document",
        }),
        Err(error) => Err(ConfigFileError::Json {
            name: name.to_owned(),
            line: error.line(),
            column: error.column(),
        }),
    }
}

/// The login of one entry; none where it only marks that a helper knows the registry.
fn login(entry: &Value) -> Result<Option<Login>, String> {
    let Value::Object(fields) = entry else {
        return Err("it must be an object".to_owned());
    };
    let text = |field: &'static str| match fields.get(field) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err(format!("{field:?} must be a string")),
    };
    let token = text("identitytoken")?;
    if !token.is_empty() {
        return Ok(Some(Login::IdentityToken(Secret::new(token))));
    }
    let (auth, user, password) = (text("auth")?, text("username")?, text("password")?);
    let login = match (auth.is_empty(), user.is_empty()) {
        (false, _) => {
            let decoded = basic::decode(auth);
            let (user, password) = decoded.map_err(|error| format!("in \"auth\", {error}"))?;
            basic::login(user, password)
        }
        (true, false) => user_or_token(user.to_owned(), password.to_owned()),
        (true, true) if password.is_empty() => return Ok(None),
        (true, true) => return Err("password without \"username\"".to_owned()),
    };
    Ok(Some(match login {
        Login::Password { user, password } if user.expose() == TOKEN_USER => {
            Login::IdentityToken(password)
        }
        login => login,
    }))
}

fn user_or_token(user: String, password: String) -> Login {
    if user == TOKEN_USER {
        return Login::IdentityToken(Secret::new(password));
    }
    Login::Password {
        user: Secret::new(user),
        password: Secret::new(password),
    }
}

/// A registry's key without the user and password that a URL may hold.
fn shown(key: &str) -> String {
    excerpt(key.rsplit_once('@').map_or(key, |(_, rest)| rest))
}

/// The values of an object's fields that are texts; what else there is goes to `refuse`.
fn texts(fields: &Map<String, Value>, mut refuse: impl FnMut(&str)) -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    for (key, value) in fields {
        match value {
            Value::String(text) => {
                texts.insert(key.clone(), text.clone());
            }
            _ => refuse(key),
        }
    }
    texts
}

#[cfg(test)]
mod tests;
