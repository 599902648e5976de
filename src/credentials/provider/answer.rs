//! Parses a plugin's answer, a `CredentialProviderResponse`. Pure; its errors quote nothing from the answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::credentials::docker_config::Entry;
use crate::credentials::keyring::pattern::Pattern;
use crate::credentials::secret::{Credential, Login, Secret};
use crate::model::go_duration;

/// The scope that the answer is valid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyType {
    Image,
    Registry,
    Global,
}

/// A plugin's credentials.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) entries: Vec<Entry>,
    /// The problems of entries that cannot be used.
    pub(super) problems: Vec<String>,
    pub(super) key_type: KeyType,
    /// The cache duration, if the answer has one.
    pub(super) keep: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    api_version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    #[serde(default)]
    cache_key_type: Option<String>,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Auth>>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

impl Answer {
    /// Parses the output of the plugin `name`. Its API version must equal `api_version`, that of the request.
    pub(super) fn parse(name: &str, api_version: &str, json: &[u8]) -> Result<Self, &'static str> {
        let kind: Kind = serde_json::from_slice(json).map_err(|_| "the response is not JSON")?;
        if kind.kind != "CredentialProviderResponse" {
            return Err("the response is not a CredentialProviderResponse");
        }
        if kind.api_version != api_version {
            return Err("the apiVersion of the response differs from that of the request");
        }
        let response: Response =
            serde_json::from_slice(json).map_err(|_| "the response has a malformed field")?;
        let key_type = match response.cache_key_type.as_deref() {
            Some("Image") => KeyType::Image,
            Some("Registry") => KeyType::Registry,
            Some("Global") => KeyType::Global,
            _ => return Err("the cacheKeyType of the response is not Image, Registry or Global"),
        };
        let keep = match response.cache_duration.as_deref().map(go_duration::parse) {
            None => None,
            // The kubelet does not cache an answer with a negative duration.
            Some(Some(keep)) => Some(keep.unwrap_or(Duration::ZERO)),
            Some(None) => {
                return Err("the cacheDuration of the response is not a duration such as 12h");
            }
        };
        let source: Arc<str> = Arc::from(format!("credential provider {name}"));
        let (mut entries, mut problems) = (Vec::new(), Vec::new());
        for (key, auth) in response.auth.unwrap_or_default() {
            if auth.username.is_empty() && auth.password.is_empty() {
                continue;
            }
            match Pattern::key(&key) {
                Ok(pattern) => entries.push(Entry {
                    pattern,
                    credential: Credential {
                        login: Arc::new(Login::Password {
                            user: Secret::new(auth.username),
                            password: Secret::new(auth.password),
                        }),
                        source: Arc::clone(&source),
                        is_pull_secret: false,
                    },
                }),
                Err(error) => problems.push(format!("{source}, response: {error}")),
            }
        }
        Ok(Self {
            entries,
            problems,
            key_type,
            keep,
        })
    }
}
