//! A credential for a registry, in a type that cannot print it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};

/// A secret text. Its `Debug` output does not contain the value, and there is no `Display`. Only [`Secret::expose`] returns the
/// value, for sending it to a registry or a runtime. Its memory is overwritten when it is dropped.
#[derive(Clone)]
pub struct Secret(SecretString);

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Secret {}

impl Hash for Secret {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.expose().hash(state);
    }
}

impl Secret {
    /// Wraps a text so that it cannot be printed.
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// The text itself. Call it only to send the value.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// A login for a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Login {
    /// A user name and password.
    Password {
        /// The user name: secret too, because some registries use access keys as user names.
        user: Secret,
        /// The password.
        password: Secret,
    },
    /// A user name and password of which one is not UTF-8: base64 of both, joined by a colon, as in `Basic`.
    Bytes(Secret),
    /// An OAuth2 refresh token; docker config files call it identity token.
    IdentityToken(Secret),
}

impl Login {
    /// The values that must not appear in any text, in each form in which they are sent or may be quoted. The user name alone is
    /// not one of them.
    pub(crate) fn secrets(&self) -> Vec<Secret> {
        let (user, secret) = match self {
            Self::Password { user, password } => (user.expose(), password.expose()),
            Self::IdentityToken(token) => ("", token.expose()),
            Self::Bytes(basic) => {
                let bytes = STANDARD.decode(basic.expose()).unwrap_or_default();
                let text = String::from_utf8_lossy(&bytes);
                let password = text.split_once(':').map_or("", |(_, password)| password);
                return vec![basic.clone(), Secret::new(password)];
            }
        };
        let mut secrets = vec![
            Secret::new(STANDARD.encode(format!("{user}:{secret}"))),
            Secret::new(secret),
        ];
        for quoted in [in_json(secret), in_form(secret)] {
            if quoted != secret {
                secrets.push(Secret::new(quoted));
            }
        }
        secrets
    }
}

/// A text as it appears in a JSON string, without the quotes.
fn in_json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// A text as it appears in a query or a form.
fn in_form(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// The text without the secrets: a server may quote the request in its error. A secret shorter than four bytes stays: it occurs
/// in any text by chance, and the gaps would reveal it.
pub(crate) fn redact(text: &str, secrets: &[Secret]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().map(Secret::expose).filter(|s| s.len() >= 4) {
        if text.contains(secret) {
            text = text.replace(secret, "[secret]");
        }
    }
    text
}

/// A login and its source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Credential {
    /// The login for the registry.
    pub login: Arc<Login>,
    /// The source for the report: a file's path, a plugin's name, `Secret shop/registry`; never a value.
    pub source: Arc<str>,
    /// It is of a pull secret of a workload or a ServiceAccount: what it opens is not for every pod.
    pub is_pull_secret: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_password_is_redacted() {
        let password = r#"hunter2 "two\ü&"#;
        let login = Login::Password {
            user: Secret::new("robot"),
            password: Secret::new(password),
        };
        let basic = STANDARD.encode(format!("robot:{password}"));
        let json = serde_json::json!({"saw": [password, format!("robot:{password}")]}).to_string();
        for text in [
            password.to_owned(),
            format!("Basic {basic} it was"),
            json,
            format!("password={}&x", in_form(password)),
        ] {
            let shown = redact(&text, &login.secrets());
            assert!(
                !shown.contains("hunter2") && !shown.contains(&basic) && !shown.contains("two"),
                "{shown}"
            );
            assert!(shown.contains("[secret]"), "{shown}");
        }
    }
}
