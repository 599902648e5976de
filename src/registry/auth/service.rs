//! Requests tokens from a registry's token service (distribution specification, "Token Authentication").
//!
//! A user and password are sent as Docker sends them: `GET` with `Basic`. An identity token is an OAuth2 refresh token and is
//! sent with `POST`; if the service does not support `POST` (404, 405), it is sent as a password without a user, as containerd
//! does.

use std::time::Duration;

use http::{HeaderValue, Method, StatusCode};
use reqwest::Url;
use serde::Deserialize;
use tokio::time::Instant;

use super::challenge::Challenge;
use super::{Access, Error, basic, basic_of};
use crate::credentials::secret::Login;
use crate::registry::transport::{Answer, Ask, Transport, host_of, is_loopback};

const TOKEN_BODY_MAX: u64 = 1 << 20;
/// The distribution specification's default for a response without a lifetime.
const EXPIRES_DEFAULT: u64 = 60;
const EXPIRES_MAX: u64 = 3600;
/// The client ID in OAuth2 requests.
const CLIENT_ID: &str = "harpoon";

pub(super) struct Token {
    /// `Bearer …`, marked sensitive, so that its `Debug` output does not contain the token.
    pub(super) header: HeaderValue,
    pub(super) until: Instant,
}

/// The address of a token service and the scope of the token.
#[derive(Debug, Clone)]
pub(super) struct TokenRequest {
    realm: Url,
    service: Option<String>,
    scopes: Vec<String>,
}

impl TokenRequest {
    /// Builds the request from the challenge of `host`, as far as it is safe to follow; `plain` means that the host was contacted
    /// over plain http.
    pub(super) fn new(
        challenge: &Challenge,
        access: Access<'_>,
        host: &str,
        plain: bool,
    ) -> Result<Self, Error> {
        let realm = challenge
            .get("realm")
            .ok_or_else(|| failed(host, "the challenge has no realm"))?;
        let mut realm = Url::parse(realm)
            .ok()
            .filter(Url::has_host)
            .ok_or_else(|| failed(host, "the challenge's realm is not a URL"))?;
        match realm.scheme() {
            "https" => {}
            "http" if plain && (access.credential.is_none() || is_loopback(&host_of(&realm))) => {}
            _ => return Err(failed(host, "the challenge's realm is not https")),
        }
        // Credentials in the challenge's URL are never sent to a token service.
        let _ = realm.set_username("");
        let _ = realm.set_password(None);
        realm.set_fragment(None);
        let own = format!("repository:{}:pull", access.image.repository());
        // Some registries use another name for the repository or have scopes of their own.
        let asked = challenge.get("scope").filter(|s| !s.is_empty());
        let scopes = match asked {
            Some(asked) if asked != own => vec![own, asked.to_owned()],
            _ => vec![own],
        };
        Ok(Self {
            realm,
            service: challenge.get("service").map(str::to_owned),
            scopes,
        })
    }

    /// The URL with the query that Docker sends: `account` is the user, which some services require as well.
    pub(super) fn url(&self, account: Option<&str>) -> Url {
        let mut url = self.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &self.service {
                query.append_pair("service", service);
            }
            for scope in &self.scopes {
                query.append_pair("scope", scope);
            }
            if let Some(account) = account.filter(|account| !account.is_empty()) {
                query.append_pair("account", account);
            }
        }
        url
    }

    /// The body of the `POST` request for an identity token (RFC 6749, section 6).
    fn form(&self, token: &str) -> String {
        form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "refresh_token")
            .append_pair("refresh_token", token)
            .append_pair("service", self.service.as_deref().unwrap_or_default())
            .append_pair("scope", &self.scopes.join(" "))
            .append_pair("client_id", CLIENT_ID)
            .finish()
    }
}

/// Requests a token, with the credential if there is one.
pub(super) async fn fetch(
    transport: &Transport,
    request: TokenRequest,
    login: Option<&Login>,
) -> Result<Token, Error> {
    let host = host_of(&request.realm);
    let asked_at = Instant::now();
    let answer = ask(transport, &request, login).await?;
    if matches!(
        answer.status(),
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
    ) {
        // Otherwise it would look as if the image did not exist.
        return Err(failed(&host, "no token service at the challenge's realm"));
    }
    let answer = answer.successful().await?;
    let body = answer.bytes("the token", TOKEN_BODY_MAX).await?;
    parse(&host, &body, asked_at)
}

async fn ask(
    transport: &Transport,
    request: &TokenRequest,
    login: Option<&Login>,
) -> Result<Answer, Error> {
    let new = |method| Ask::new(method, "application/json").concealing(login);
    let mut get = new(Method::GET);
    match login {
        None => transport.send(request.url(None), &get).await,
        Some(login @ Login::Password { user, .. }) => {
            get.authorize(basic(login));
            transport.send(request.url(Some(user.expose())), &get).await
        }
        Some(login @ Login::Bytes(_)) => {
            get.authorize(basic(login));
            transport.send(request.url(None), &get).await
        }
        Some(Login::IdentityToken(token)) => {
            let post = new(Method::POST).with_form(request.form(token.expose()));
            let answer = transport.send(request.realm.clone(), &post).await?;
            if !matches!(
                answer.status(),
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
            ) {
                return Ok(answer);
            }
            drop(answer);
            get.authorize(Some(basic_of("", token.expose())));
            transport.send(request.url(None), &get).await
        }
    }
}

#[derive(Deserialize)]
struct TokenBody {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<serde_json::Value>,
}

fn parse(host: &str, body: &[u8], asked_at: Instant) -> Result<Token, Error> {
    let malformed = || failed(host, "unexpected response from the token service");
    let body: TokenBody = serde_json::from_slice(body).map_err(|_| malformed())?;
    let token = [body.token, body.access_token]
        .into_iter()
        .flatten()
        .find(|token| !token.is_empty())
        .ok_or_else(|| failed(host, "the token service returned no token"))?;
    let mut header = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| malformed())?;
    header.set_sensitive(true);
    let seconds = body
        .expires_in
        .and_then(|v| v.as_u64())
        .filter(|seconds| *seconds > 0)
        .unwrap_or(EXPIRES_DEFAULT)
        .min(EXPIRES_MAX);
    // A token that expires in transit causes a failed request, so it is used for nine tenths of its lifetime.
    let until = asked_at + Duration::from_secs(seconds).mul_f32(0.9);
    Ok(Token { header, until })
}

fn failed(host: &str, reason: &'static str) -> Error {
    Error::Token {
        host: host.to_owned(),
        reason,
    }
}
