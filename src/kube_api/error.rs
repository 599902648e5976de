//! Errors of the connection to the API server. They contain no credential.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use super::QUOTED_MAX;
use super::decode::DecodeError;
use crate::model::text::one_line;

/// The reason why no cluster can be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No cluster is configured.
    #[error(
        "no cluster configured: KUBERNETES_SERVICE_HOST and KUBECONFIG are not set, and {0} does not exist"
    )]
    NoCluster(String),
    /// The kubeconfig cannot be used.
    #[error("failed to load the kubeconfig: {0}")]
    Kubeconfig(KubeconfigProblem),
    /// The pod's service account cannot be used.
    #[error(
        "failed to use the pod's service account (/var/run/secrets/kubernetes.io/serviceaccount): {0}"
    )]
    ServiceAccount(kube::config::InClusterError),
    /// The settings for TLS or for the login are invalid.
    #[error("failed to set up the connection to the API server: {0}")]
    Client(TransportError),
    /// A credential plugin of the kubeconfig did not end in time.
    #[error("the kubeconfig's credential plugin timed out after {}", humantime::format_duration(*.0))]
    Plugin(Duration),
}

/// An error in a kubeconfig. Quotes nothing from it.
#[derive(Debug)]
pub struct KubeconfigProblem(pub(crate) kube::config::KubeconfigError);

impl fmt::Display for KubeconfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            // The parser's own message quotes the lines around the error, which may contain a token.
            kube::config::KubeconfigError::Parse(error) => match error.location() {
                Some(at) => write!(
                    f,
                    "not a kubeconfig: line {}, column {}",
                    at.line(),
                    at.column()
                ),
                None => f.write_str("not a kubeconfig"),
            },
            other => f.write_str(&one_line(&other.to_string(), QUOTED_MAX)),
        }
    }
}

/// A request that got no response. The output of a credential plugin is left out.
#[derive(Debug)]
pub struct TransportError(pub(crate) kube::Error);

impl Error for TransportError {}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chain: Vec<String> = Vec::new();
        let mut next: Option<&(dyn Error + 'static)> = match &self.0 {
            kube::Error::Service(inner) => Some(inner.as_ref()),
            kube::Error::HyperError(inner) => Some(inner),
            other => Some(other),
        };
        while let Some(error) = next {
            if let Some(auth) = error.downcast_ref::<kube::client::AuthError>() {
                chain.push(login(auth));
                break;
            }
            if let Some(kube::Error::Auth(auth)) = error.downcast_ref::<kube::Error>() {
                chain.push(login(auth));
                break;
            }
            let text = one_line(&error.to_string(), QUOTED_MAX);
            // Several layers repeat the message of their cause.
            chain.retain(|above| !text.contains(above.as_str()));
            if !chain.iter().any(|above| above.contains(&text)) {
                chain.push(text);
            }
            next = error.source();
        }
        f.write_str(&chain.join(": "))
    }
}

/// The message of a failed request for people. It contains no credential, but may be of any length.
pub(crate) fn message(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message,
        error => TransportError(error).to_string(),
    }
}

/// A failed login. A plugin's output is left out: it may be the token.
fn login(error: &kube::client::AuthError) -> String {
    use kube::client::AuthError as E;
    match error {
        // Its arguments and its output may be secrets.
        E::AuthExecRun { out, .. } => {
            format!("the kubeconfig's credential plugin failed ({})", out.status)
        }
        E::AuthExecParse(_) => {
            "the kubeconfig's credential plugin printed no ExecCredential".to_owned()
        }
        E::AuthExecStart(error) => {
            format!("failed to start the kubeconfig's credential plugin: {error}")
        }
        E::ReadTokenFile(error, path) => {
            format!("failed to read the token file {}: {error}", path.display())
        }
        E::AuthExec(_) => {
            "the auth-provider of the kubeconfig failed or is not supported".to_owned()
        }
        E::MissingCommand | E::ExecPluginFailed | E::UnrefreshableTokenResponse => {
            error.to_string()
        }
        _ => "the credentials cannot be used".to_owned(),
    }
}

/// The reason why one list, of one kind in one namespace, could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The API server refused the request.
    #[error("the API server returned {code}{}", colon(.message))]
    Answer {
        /// The HTTP status.
        code: u16,
        /// The API server's message.
        message: String,
    },
    /// The connection failed.
    #[error("failed to reach the API server: {0}")]
    Transport(TransportError),
    /// The API server did not respond in time.
    #[error("no response from the API server within {}", humantime::format_duration(*.0))]
    Silent(Duration),
    /// The response stalled.
    #[error("the API server sent nothing for {}", humantime::format_duration(*.0))]
    Stalled(Duration),
    /// The response ended before the list did.
    #[error("the response of the API server ended early{}", .0.as_ref().map(|e| format!(": {e}")).unwrap_or_default())]
    Cut(Option<TransportError>),
    /// The response is not a list.
    #[error("unexpected response from the API server: {0}")]
    Garbage(Undecodable),
    /// The list does not end.
    #[error("the API server's list never ends: {0}")]
    Endless(&'static str),
    /// The list expired repeatedly before it was read to its end.
    #[error("the API server's list expired {0} times")]
    Expired(u32),
    /// The request was skipped, because the API server had become unreachable.
    #[error("skipped: the API server is unreachable")]
    NotAsked,
}

impl ListError {
    /// Returns whether the API server is unreachable, so that further requests are useless.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Transport(_) | Self::Silent(_))
    }
}

/// The decoder's error.
#[derive(Debug)]
pub struct Undecodable(pub(crate) DecodeError);

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

pub(crate) fn colon(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn failed_credential_plugin_is_not_quoted() {
        let ran = || kube::client::AuthError::AuthExecRun {
            cmd: "plugin --secret s3cr3t".to_owned(),
            out: Box::new(std::process::Output {
                status: std::process::ExitStatus::from_raw(3 << 8),
                stdout: b"s3cr3t".to_vec(),
                stderr: b"s3cr3t".to_vec(),
            }),
        };
        // During the creation of the client, and when a token is renewed for a request.
        let now = kube::Error::Auth(ran());
        let later = kube::Error::Service(Box::new(ran()));
        for error in [now, later] {
            let said = TransportError(error).to_string();
            assert_eq!(
                said,
                "the kubeconfig's credential plugin failed (exit status: 3)"
            );
        }
    }
}
