//! Authentication at a registry: a user and password, or a token of its token service, with or without a login.
//!
//! A credential is sent only to the registry that it is for, after a `Basic` challenge, and to the token service that this
//! registry names as the realm of its `Bearer` challenge. That may be another host than the registry (Docker Hub's is
//! `auth.docker.io`): the distribution specification leaves it to the registry, and Docker and containerd follow it. A credential
//! is never sent to the target of a redirect, nor over plain http, except on this machine.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use tokio::time::Instant;

use super::transport::{Answer, Transport};
use super::{Access, Error};
use crate::credentials::secret::Login;
use crate::retry::keyed::Keyed;

mod challenge;
mod service;

use service::{Token, TokenRequest};

/// Maximum number of repositories with cached tokens, far more than are pulled from at once.
const TOKENS_MAX: usize = 256;

/// The key of a cached token: a token that was obtained with one credential is not used for another, nor anonymously.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    registry: String,
    repository: String,
    login: Option<Arc<Login>>,
}

impl Key {
    fn of(access: Access<'_>) -> Self {
        Self {
            registry: access.registry().to_owned(),
            repository: access.image.repository().to_owned(),
            login: access.credential.map(|c| c.login.clone()),
        }
    }
}

/// The cached tokens by registry, repository and credential, and the registries that accept a password directly.
#[derive(Default)]
pub(super) struct Tokens {
    at_hand: Mutex<HashMap<Key, Token>>,
    /// Held while a token is renewed, so that tasks that need the same one get it once.
    renewals: Keyed<Key, tokio::sync::Mutex<()>>,
    basic: Mutex<HashSet<(String, Arc<Login>)>>,
}

impl Tokens {
    /// The current `Authorization` header for the registry, if it is known and has not expired.
    pub(super) async fn current(&self, access: Access<'_>) -> Option<HeaderValue> {
        if let Some(credential) = access.credential
            && self.takes_basic(access.registry(), &credential.login)
        {
            return basic(&credential.login);
        }
        let key = Key::of(access);
        let _renewal = self.renewals.lock(key.clone()).await;
        self.valid(&key)
    }

    /// The `Authorization` header after the registry's response 401. `shown` is the header of that request: if another task has
    /// obtained a newer one since, that is returned. `None` if there is nothing else to send: the response is a refusal.
    pub(super) async fn renew(
        &self,
        transport: &Transport,
        access: Access<'_>,
        answer: &Answer,
        shown: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Error> {
        let login = access.credential.map(|c| &c.login);
        let challenges = challenge::challenges(answer.headers());
        let offers = |scheme: &str| challenges.iter().find(|c| c.scheme == scheme);
        // A stolen token does less harm than a password: if both are possible, the token is used.
        let Some(bearer) = offers("bearer") else {
            let host = || answer.host().to_owned();
            return match (offers("basic"), login) {
                (None, _) if challenges.is_empty() => Ok(None),
                (None, _) => Err(Error::Scheme { host: host() }),
                (Some(_), None) => Err(Error::NoCredentials { host: host() }),
                (Some(_), Some(login)) => {
                    let header =
                        basic(login).ok_or_else(|| Error::NotAPassword { host: host() })?;
                    self.remember_basic(access.registry(), login);
                    Ok(Some(header).filter(|header| Some(header) != shown))
                }
            };
        };
        if let Some(login) = login {
            self.forget_basic(access.registry(), login);
        }
        let key = Key::of(access);
        let _renewal = self.renewals.lock(key.clone()).await;
        if let Some(newer) = self.valid(&key).filter(|token| Some(token) != shown) {
            return Ok(Some(newer));
        }
        let request = TokenRequest::new(bearer, access, answer.host(), answer.is_plain())?;
        let token = service::fetch(transport, request, login.map(|l| &**l)).await?;
        let header = token.header.clone();
        self.keep(key, token);
        Ok(Some(header))
    }

    /// The header of a token that has not expired.
    fn valid(&self, key: &Key) -> Option<HeaderValue> {
        let at_hand = self.at_hand.lock().unwrap_or_else(PoisonError::into_inner);
        let token = at_hand.get(key).filter(|token| token.is_valid())?;
        Some(token.header.clone())
    }

    fn keep(&self, key: Key, token: Token) {
        let mut at_hand = self.at_hand.lock().unwrap_or_else(PoisonError::into_inner);
        if at_hand.len() >= TOKENS_MAX && !at_hand.contains_key(&key) {
            at_hand.retain(|_, token| token.is_valid());
            if at_hand.len() >= TOKENS_MAX {
                at_hand.clear();
            }
        }
        at_hand.insert(key, token);
    }

    fn takes_basic(&self, registry: &str, login: &Arc<Login>) -> bool {
        let known = self.basic.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains(&(registry.to_owned(), login.clone()))
    }

    fn remember_basic(&self, registry: &str, login: &Arc<Login>) {
        let mut known = self.basic.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= TOKENS_MAX {
            known.clear();
        }
        known.insert((registry.to_owned(), login.clone()));
    }

    fn forget_basic(&self, registry: &str, login: &Arc<Login>) {
        let mut known = self.basic.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(&(registry.to_owned(), login.clone()));
    }
}

impl Token {
    fn is_valid(&self) -> bool {
        Instant::now() < self.until
    }
}

/// The header of a user and password (RFC 7617); `None` for an identity token.
fn basic(login: &Login) -> Option<HeaderValue> {
    match login {
        Login::Password { user, password } => Some(basic_of(user.expose(), password.expose())),
        Login::Bytes(encoded) => Some(header_of(encoded.expose())),
        Login::IdentityToken(_) => None,
    }
}

fn basic_of(user: &str, password: &str) -> HeaderValue {
    header_of(&STANDARD.encode(format!("{user}:{password}")))
}

fn header_of(encoded: &str) -> HeaderValue {
    let mut header = HeaderValue::try_from(format!("Basic {encoded}"))
        .expect("base64 has no control characters");
    header.set_sensitive(true);
    header
}

#[cfg(test)]
mod tests;
