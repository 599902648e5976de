//! A registry with a token service, on loopback over plain http: the distribution token protocol in front of a real registry.
//!
//! Requests with a valid token are passed to the registry; all others get a `Bearer` challenge. The service issues tokens to
//! anonymous clients too, but these are not accepted, as for private repositories on Docker Hub.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, header};

use super::faulty::{Fault, Proxy, Seen};
use super::unique;

const SERVICE: &str = "bed";
/// The lifetime that the service reports for each token, regardless of the actual one.
const TOLD: Duration = Duration::from_secs(300);

/// The registry. Closes its port when dropped.
#[derive(Debug)]
pub struct Registry {
    proxy: Proxy,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    /// The address of the service, set as soon as it listens.
    address: OnceLock<String>,
    /// `Basic …`, for each user.
    users: Vec<String>,
    refresh_tokens: Vec<String>,
    lifetime: Mutex<Duration>,
    uses: AtomicUsize,
    issued: Mutex<HashMap<String, Token>>,
}

#[derive(Debug)]
struct Token {
    /// The expiry time.
    until: Instant,
    /// Remaining number of requests.
    uses: usize,
    /// `repository:NAME:pull`, each.
    scopes: Vec<String>,
}

impl Token {
    fn takes(&mut self, scope: Option<&String>) -> bool {
        let good = self.uses > 0
            && Instant::now() < self.until
            && scope.is_none_or(|scope| self.scopes.contains(scope));
        self.uses -= usize::from(good);
        good
    }
}

impl Registry {
    /// In front of the registry at `upstream` (one that asks for no password), for these users with their passwords and for
    /// who has one of these refresh tokens, which docker config files call identity tokens.
    pub fn start(upstream: &str, users: &[(&str, &str)], refresh_tokens: &[&str]) -> Self {
        let basic =
            |(user, password): &(_, _)| format!("Basic {}", encode(&format!("{user}:{password}")));
        let state = Arc::new(State {
            address: OnceLock::new(),
            users: users.iter().map(basic).collect(),
            refresh_tokens: refresh_tokens.iter().map(|&t| t.to_owned()).collect(),
            lifetime: Mutex::new(TOLD),
            uses: AtomicUsize::new(usize::MAX),
            issued: Mutex::default(),
        });
        let deciding = Arc::clone(&state);
        let proxy = Proxy::start(upstream, move |seen| deciding.decide(seen));
        state.address.set(proxy.address()).unwrap();
        Self { proxy, state }
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> String {
        self.proxy.address()
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        self.proxy.url()
    }

    /// The reference of an image of the registry behind by way of this one.
    pub fn reference(&self, name: &str) -> String {
        self.proxy.reference(name)
    }

    /// All requests so far, to the registry and to `/token`, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.proxy.seen()
    }

    /// Number of token requests.
    pub fn asked_for_tokens(&self) -> usize {
        self.proxy.count(|seen| seen.path == "/token")
    }

    /// Limits the lifetime of tokens from now on. The service still reports 300 s, so that clients learn of it by a 401.
    pub fn set_lifetime(&self, lifetime: Duration) {
        *self.state.lifetime.lock().unwrap() = lifetime;
    }

    /// Limits the number of requests per token from now on: tokens then expire in mid-pull, at a deterministic point.
    pub fn set_uses(&self, uses: usize) {
        self.state.uses.store(uses, Ordering::SeqCst);
    }

    /// Invalidates all tokens issued so far.
    pub fn expire_tokens(&self) {
        let mut issued = self.state.issued.lock().unwrap();
        let now = Instant::now();
        issued.values_mut().for_each(|token| token.until = now);
    }

    /// All tokens issued so far, valid or not: none of them may be in a log.
    pub fn tokens(&self) -> Vec<String> {
        self.state.issued.lock().unwrap().keys().cloned().collect()
    }
}

impl State {
    fn decide(&self, seen: &Seen) -> Fault {
        if seen.path == "/token" {
            return self.give(seen);
        }
        let scope = scope_of(&seen.path);
        let shown = authorization(seen).and_then(|a| a.strip_prefix("Bearer "));
        let mut issued = self.issued.lock().unwrap();
        let good = shown
            .and_then(|token| issued.get_mut(token))
            .is_some_and(|token| token.takes(scope.as_ref()));
        if good {
            return Fault::Pass;
        }
        let mut challenge = format!(
            r#"Bearer realm="http://{}/token",service="{SERVICE}""#,
            self.address.get().unwrap()
        );
        if let Some(scope) = scope {
            challenge += &format!(r#",scope="{scope}""#);
        }
        if shown.is_some() {
            challenge += r#",error="invalid_token""#;
        }
        answer(
            401,
            r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#,
            vec![("www-authenticate", challenge)],
        )
    }

    /// The response of `/token`.
    fn give(&self, seen: &Seen) -> Fault {
        let text = match seen.method {
            Method::POST => String::from_utf8_lossy(&seen.body).into_owned(),
            _ => seen.query.clone(),
        };
        let form = form_urlencoded::parse(text.as_bytes()).into_owned();
        let form: Vec<(String, String)> = form.collect();
        let get = |name| {
            form.iter()
                .filter(move |(key, _)| key == name)
                .map(|(_, v)| v)
        };
        let granted = match (&seen.method, authorization(seen)) {
            (&Method::POST, _) => match get("grant_type").next().map(String::as_str) {
                Some("refresh_token") => {
                    get("refresh_token").any(|token| self.refresh_tokens.contains(token))
                }
                Some("password") => {
                    let of = |name| get(name).next().map_or("", String::as_str);
                    let basic = encode(&format!("{}:{}", of("username"), of("password")));
                    self.users.contains(&format!("Basic {basic}"))
                }
                _ => false,
            },
            (_, Some(basic)) => self.users.iter().any(|user| user == basic),
            (_, None) => return self.token(Vec::new()),
        };
        if !granted {
            let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"incorrect username or password"}]}"#;
            return answer(401, body, vec![]);
        }
        let scopes = get("scope").flat_map(|scope| scope.split(' '));
        self.token(scopes.map(str::to_owned).collect())
    }

    fn token(&self, scopes: Vec<String>) -> Fault {
        let token = encode(&unique("bed-token"));
        let body = format!(
            r#"{{"token":"{token}","access_token":"{token}","expires_in":{}}}"#,
            TOLD.as_secs()
        );
        let until = Instant::now() + *self.lifetime.lock().unwrap();
        let mut issued = self.issued.lock().unwrap();
        let uses = self.uses.load(Ordering::SeqCst);
        issued.insert(
            token,
            Token {
                until,
                uses,
                scopes,
            },
        );
        answer(200, &body, vec![])
    }
}

fn answer(status: u16, body: &str, mut headers: Vec<(&'static str, String)>) -> Fault {
    headers.push(("content-type", "application/json".to_owned()));
    Fault::Answer {
        status,
        headers,
        body: body.to_owned(),
    }
}

/// The scope of a path of the registry; `None` for `/v2/` itself.
fn scope_of(path: &str) -> Option<String> {
    let path = path.strip_prefix("/v2/")?;
    let end = ["/manifests/", "/blobs/", "/tags/"]
        .into_iter()
        .find_map(|part| path.rfind(part))?;
    Some(format!("repository:{}:pull", &path[..end]))
}

fn authorization(seen: &Seen) -> Option<&str> {
    seen.headers.get(header::AUTHORIZATION)?.to_str().ok()
}

fn encode(text: &str) -> String {
    STANDARD.encode(text)
}
