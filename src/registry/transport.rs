//! HTTP for registries: redirects, bounded bodies, a limit on stalled responses.
//!
//! Redirects are followed here and not by the HTTP client, because registries redirect to object stores: `Authorization` is not
//! sent to another origin, a form is never sent on, and https never becomes http. Responses are never decompressed.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::Url;

use super::endpoint::{AnyCertificate, Endpoint};
use super::{ClientError, Error, Options};
use crate::credentials::secret::{Login, Secret};
use crate::model::reference::served_at;

const REDIRECTS_MAX: usize = 5;
/// Maximum size of an error's body in bytes.
const ERROR_BODY_MAX: u64 = 64 << 10;
/// Maximum number of loopback registries whose scheme is cached.
const SCHEMES_MAX: usize = 256;

/// The request to send.
pub(super) struct Ask<'a> {
    method: Method,
    accept: &'a str,
    range: Option<String>,
    authorization: Option<HeaderValue>,
    form: Option<String>,
    /// Secrets to remove from the response's error.
    secrets: Vec<Secret>,
}

impl<'a> Ask<'a> {
    pub(super) fn new(method: Method, accept: &'a str) -> Self {
        Self {
            method,
            accept,
            range: None,
            authorization: None,
            form: None,
            secrets: Vec::new(),
        }
    }

    /// Removes the login from the error of the response.
    pub(super) fn concealing(mut self, login: Option<&Login>) -> Self {
        self.secrets
            .extend(login.into_iter().flat_map(Login::secrets));
        self
    }

    /// Adds a urlencoded body, which contains a secret.
    pub(super) fn with_form(mut self, form: String) -> Self {
        self.form = Some(form);
        self
    }

    /// Requests the content from this byte on. From byte 0, no range is requested, since not all servers support ranges.
    pub(super) fn from(mut self, offset: u64) -> Self {
        self.range = (offset > 0).then(|| format!("bytes={offset}-"));
        self
    }

    /// Requests only these bytes; a server without support for ranges sends all.
    pub(super) fn within(mut self, part: &Range<u64>) -> Self {
        self.range = Some(format!(
            "bytes={}-{}",
            part.start,
            part.end.saturating_sub(1)
        ));
        self
    }

    pub(super) fn authorize(&mut self, authorization: Option<HeaderValue>) {
        let text = authorization.as_ref().and_then(|a| a.to_str().ok());
        let shown = text.and_then(|text| text.split_once(' '));
        self.secrets
            .extend(shown.map(|(_scheme, secret)| Secret::new(secret)));
        self.authorization = authorization;
    }

    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }
}

/// Sends requests.
pub(super) struct Transport {
    /// Uses the proxies of the environment.
    proxied: reqwest::Client,
    /// For loopback, which uses no proxy (as in Go's `http.ProxyFromEnvironment`).
    direct: reqwest::Client,
    /// True for a loopback registry that uses plain http; cached.
    plain: Mutex<HashMap<String, bool>>,
    /// The server to ask instead of the registry.
    endpoint: Option<Endpoint>,
    sent: AtomicU64,
    stall: Duration,
}

impl Transport {
    pub(super) fn new(options: &Options, endpoint: Option<Endpoint>) -> Result<Self, ClientError> {
        let tls = tls_config(endpoint.as_ref())?;
        let build = |builder: reqwest::ClientBuilder| {
            builder
                .tls_backend_preconfigured(tls.clone())
                .user_agent(concat!("harpoon/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .connect_timeout(options.connect_timeout)
                // One connection for each layer: TLS is then decrypted on several cores, and layers share no flow-control window.
                .http1_only()
                .build()
                .map_err(ClientError::Http)
        };
        Ok(Self {
            proxied: build(reqwest::Client::builder())?,
            direct: build(reqwest::Client::builder().no_proxy())?,
            plain: Mutex::default(),
            endpoint,
            sent: AtomicU64::new(0),
            stall: options.stall_timeout,
        })
    }

    /// Number of requests sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Sends a request to a registry. One on this machine may use plain http, as with Docker: this is detected once.
    pub(super) async fn send_to_registry(
        &self,
        registry: &str,
        path: &str,
        ask: &Ask<'_>,
    ) -> Result<Answer, Error> {
        if let Some(endpoint) = &self.endpoint {
            let url = endpoint.url(path).ok_or_else(|| Error::Redirect {
                host: host_of(&endpoint.base),
                reason: "the path is not valid in a URL",
            })?;
            return self.send(url, ask).await;
        }
        let host = served_at(registry);
        let url = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}{path}")).map_err(|_| Error::Redirect {
                host: host.to_owned(),
                reason: "the host name is not valid in a URL",
            })
        };
        if !is_loopback(host) {
            return self.send(url("https")?, ask).await;
        }
        match self.scheme(host) {
            Some(true) => self.send(url("http")?, ask).await,
            Some(false) => self.send(url("https")?, ask).await,
            None => {
                let (answer, plain) = match self.send(url("https")?, ask).await {
                    Err(error) if speaks_no_tls(&error, host) => {
                        (self.send(url("http")?, ask).await?, true)
                    }
                    answer => (answer?, false),
                };
                self.remember(host, plain);
                Ok(answer)
            }
        }
    }

    /// Sends a request and follows redirects.
    pub(super) async fn send(&self, url: Url, ask: &Ask<'_>) -> Result<Answer, Error> {
        let origin = url.origin();
        let mut url = url;
        for _ in 0..=REDIRECTS_MAX {
            let same_origin = url.origin() == origin;
            let response = self.send_once(&url, ask, same_origin).await?;
            let location = match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => response.headers().get(header::LOCATION),
                _ => None,
            };
            let Some(location) = location else {
                return Ok(Answer {
                    response,
                    host: host_of(&url),
                    same_origin,
                    plain: url.scheme() == "http",
                    stall: self.stall,
                    secrets: self.secrets(ask),
                });
            };
            if ask.form.is_some() {
                return Err(Error::Redirect {
                    host: host_of(&url),
                    reason: "a token request with a secret is not redirected",
                });
            }
            url = next_hop(&url, location)?;
        }
        Err(Error::Redirect {
            host: host_of(&url),
            reason: "too many redirects",
        })
    }

    async fn send_once(
        &self,
        url: &Url,
        ask: &Ask<'_>,
        same_origin: bool,
    ) -> Result<reqwest::Response, Error> {
        let host = host_of(url);
        let client = if is_loopback(&host) {
            &self.direct
        } else {
            &self.proxied
        };
        let mut request = client
            .request(ask.method.clone(), url.clone())
            .header(header::ACCEPT, ask.accept);
        if let Some(range) = &ask.range {
            request = request.header(header::RANGE, range);
        }
        if let Some(authorization) = ask.authorization.as_ref().filter(|_| same_origin) {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if let Some(endpoint) = &self.endpoint
            && endpoint.base.origin() == url.origin()
        {
            for (name, value) in &endpoint.headers {
                request = request.header(name, value);
            }
        }
        if let Some(form) = &ask.form {
            request = request
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.clone());
        }
        tracing::trace!(%host, method = %ask.method, "asking");
        let answer = tokio::time::timeout(self.stall, request.send()).await;
        // Without a connection, no request was sent.
        if !matches!(&answer, Ok(Err(error)) if error.is_connect()) {
            self.sent.fetch_add(1, Ordering::Relaxed);
        }
        match answer {
            Ok(Ok(response)) => {
                tracing::trace!(%host, status = response.status().as_u16(), "answered");
                Ok(response)
            }
            Ok(Err(error)) => Err(Error::Unreachable {
                host,
                source: error.without_url(),
            }),
            Err(_) => Err(stalled(host, self.stall)),
        }
    }

    /// All secrets that the response may quote.
    fn secrets(&self, ask: &Ask<'_>) -> Vec<Secret> {
        let configured = self.endpoint.iter().flat_map(Endpoint::secrets);
        ask.secrets.iter().cloned().chain(configured).collect()
    }

    fn scheme(&self, host: &str) -> Option<bool> {
        let plain = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        plain.get(host).copied()
    }

    fn remember(&self, host: &str, plain: bool) {
        let mut known = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= SCHEMES_MAX {
            known.clear();
        }
        known.insert(host.to_owned(), plain);
    }
}

/// A response whose body has not been read yet.
pub(super) struct Answer {
    response: reqwest::Response,
    host: String,
    same_origin: bool,
    plain: bool,
    stall: Duration,
    secrets: Vec<Secret>,
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The header's text; empty if it is missing or not text.
    pub(super) fn header(&self, name: impl header::AsHeaderName) -> &str {
        self.headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The host that sent the response, with the port.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Returns whether the registry itself sent the response, rather than the target of a redirect.
    pub(super) fn is_same_origin(&self) -> bool {
        self.same_origin
    }

    pub(super) fn is_plain(&self) -> bool {
        self.plain
    }

    pub(super) fn content_length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// The response if it is successful, otherwise its error.
    pub(super) async fn successful(mut self) -> Result<Self, Error> {
        let status = self.status();
        if status.is_success() {
            return Ok(self);
        }
        let mut body = BytesMut::new();
        while let Ok(Some(chunk)) = self.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > ERROR_BODY_MAX {
                break;
            }
        }
        Err(Error::refused(
            self.host.clone(),
            status,
            self.headers(),
            &body,
            &self.secrets,
        ))
    }

    /// The next part of the body; `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        match tokio::time::timeout(self.stall, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(Error::Broken {
                host: self.host.clone(),
                source: error.without_url(),
            }),
            Err(_) => Err(stalled(self.host.clone(), self.stall)),
        }
    }

    /// The whole body, if it has at most `limit` bytes.
    pub(super) async fn bytes(mut self, what: &'static str, limit: u64) -> Result<Bytes, Error> {
        let too_large = Error::TooLarge { what, limit };
        if self.content_length().is_some_and(|length| length > limit) {
            return Err(too_large);
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(too_large);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }
}

fn stalled(host: String, limit: Duration) -> Error {
    Error::Stalled {
        host,
        seconds: limit.as_secs(),
    }
}

/// `registry.example:5000`; no other part of a URL is ever shown.
pub(super) fn host_of(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => String::new(),
    }
}

pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost"
        || name.parse::<Ipv4Addr>().is_ok_and(|a| a.is_loopback())
        || name.parse::<Ipv6Addr>().is_ok_and(|a| a.is_loopback())
}

/// The target URL of a redirect.
fn next_hop(from: &Url, location: &HeaderValue) -> Result<Url, Error> {
    let refused = |reason| Error::Redirect {
        host: host_of(from),
        reason,
    };
    let mut url = std::str::from_utf8(location.as_bytes())
        .ok()
        .and_then(|text| from.join(text).ok())
        .filter(Url::has_host)
        .ok_or_else(|| refused("its target is not a URL"))?;
    match (from.scheme(), url.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => return Err(refused("its target downgrades https to http")),
        _ => return Err(refused("its target is neither https nor http")),
    }
    // A user name in a URL would become an `Authorization` header.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Ok(url)
}

/// Returns whether the connection to `registry` failed as it does with a server that uses plain http.
fn speaks_no_tls(error: &Error, registry: &str) -> bool {
    let Error::Unreachable { host, source } = error else {
        return false;
    };
    // Only the registry's own failure counts, not that of a redirect's target.
    if host != registry || !source.is_connect() {
        return false;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(source);
    while let Some(error) = cause {
        match error.downcast_ref::<rustls::Error>() {
            Some(rustls::Error::InvalidMessage(_)) => return true,
            Some(_) => return false,
            None => {}
        }
        // An io::Error does not return the error that it wraps as its source.
        let wrapped = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        cause = match wrapped {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    true
}

/// TLS with an explicit crypto provider: a library must not install one for the whole process.
fn tls_config(endpoint: Option<&Endpoint>) -> Result<rustls::ClientConfig, ClientError> {
    // The built-in roots make the program work in an image without any; the machine's own (`SSL_CERT_FILE`, `SSL_CERT_DIR`)
    // include those of a company's registry.
    let mut roots = rustls::RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    let native = rustls_native_certs::load_native_certs();
    let (added, ignored) = roots.add_parsable_certificates(native.certs);
    tracing::debug!(added, ignored, errors = ?native.errors, "the machine's root certificates");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(ClientError::Tls)?;
    let Some(tls) = endpoint.map(|endpoint| &endpoint.tls) else {
        return Ok(builder.with_root_certificates(roots).with_no_client_auth());
    };
    tls.extend(&mut roots)?;
    let builder = match tls.skip_verify {
        true => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))),
        false => builder.with_root_certificates(roots),
    };
    match tls.identity()? {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(ClientError::Tls),
    }
}

#[cfg(test)]
mod tests;
