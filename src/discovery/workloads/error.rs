//! Warnings and errors of discovery, in words that hold no credential.

use std::fmt;
use std::sync::Arc;

use super::node::NodeError;
use super::pull_secrets::SecretError;
use crate::credentials::docker_config::ConfigFileError;
use crate::kube_api::error::{ListError, colon};
use crate::model::candidate::Workload;
use crate::model::workload_kind::WorkloadKind;

/// Where a list was read: a namespace, or all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Every namespace of the cluster.
    All,
    /// One namespace.
    Namespace(String),
}

impl Scope {
    /// The namespace, where there is one.
    pub(crate) fn namespace(&self) -> Option<&str> {
        match self {
            Self::All => None,
            Self::Namespace(name) => Some(name),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all namespaces"),
            Self::Namespace(name) => write!(f, "namespace {name}"),
        }
    }
}

/// Something that was not found out, while the rest was.
#[derive(Debug, thiserror::Error)]
pub enum Warning {
    /// RBAC does not allow it.
    #[error(
        "{scope}: not allowed to list {}: needs the RBAC verb \"list\" on \"{}\" in apiGroup \"{}\"{}",
        .kind.resource(), .kind.plural(), .kind.group(), cluster_wide(.scope)
    )]
    Forbidden {
        /// Where.
        scope: Scope,
        /// What.
        kind: WorkloadKind,
    },
    /// The API server does not know the kind.
    #[error("{scope}: the API server has no {}", .kind.resource())]
    NoSuchKind {
        /// Where.
        scope: Scope,
        /// What.
        kind: WorkloadKind,
    },
    /// There is no such namespace.
    #[error("namespace {0} does not exist")]
    NoNamespace(String),
    /// A list could not be read, or not to its end.
    #[error("{scope}: failed to list {}: {error}", .kind.resource())]
    List {
        /// Where.
        scope: Scope,
        /// What.
        kind: WorkloadKind,
        /// Why. Part of the message already: a warning is one line.
        error: ListError,
    },
    /// An image reference that cannot be one.
    #[error("{0}: an image reference is longer than 4096 characters and was left out")]
    ImageTooLong(Arc<Workload>),
    /// A Secret, or the ServiceAccount that names some, that is of no use.
    #[error("{kind} {name}: {error}")]
    PullSecret {
        /// `Secret` or `ServiceAccount`.
        kind: &'static str,
        /// Its namespace and name, `shop/registry`.
        name: String,
        /// Why. Part of the message already: a warning is one line.
        error: SecretError,
    },
    /// A Secret whose content is no docker configuration.
    #[error(transparent)]
    PullSecretContent(ConfigFileError),
    /// An entry of a Secret's docker configuration that cannot be used.
    #[error("{0}")]
    PullSecretEntry(String),
    /// Others were not read after the API server went away, or refused the program altogether.
    #[error("{0} other pull secrets or service accounts were not read")]
    PullSecretsNotAsked(usize),
    /// More different pull secrets than anybody has.
    #[error("the workloads name more than {0} pull secrets: the others were left out")]
    TooManyPullSecrets(usize),
    /// This node could not be read, so nothing is known to be of no use on it.
    #[error("node {name}: {error}; no workload is left out for where it can run")]
    Node {
        /// Its name.
        name: String,
        /// Why. Part of the message already: a warning is one line.
        error: NodeError,
    },
    /// A RuntimeClass that some template names is of no use.
    #[error("RuntimeClass {name}: {error}; its workloads are judged as if they had none")]
    RuntimeClass {
        /// Its name.
        name: String,
        /// Why. Part of the message already: a warning is one line.
        error: NodeError,
    },
}

/// Why nothing at all could be found out.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// The credentials are not, or no longer, good.
    #[error("the API server {server} does not accept the credentials (401 Unauthorized){}", colon(.message))]
    Unauthorized {
        /// The API server, without path or credentials.
        server: String,
        /// Its words.
        message: String,
    },
    /// No answer.
    #[error("no answer from the API server {server}")]
    Unreachable {
        /// The API server, without path or credentials.
        server: String,
        /// Why.
        #[source]
        source: ListError,
    },
    /// Each list failed.
    #[error("failed to list any workload: {}", joined(.0))]
    Nothing(Vec<Warning>),
}

fn cluster_wide(scope: &Scope) -> &'static str {
    match scope {
        Scope::All => ", granted by a ClusterRole and a ClusterRoleBinding",
        Scope::Namespace(_) => "",
    }
}

fn joined(warnings: &[Warning]) -> String {
    let texts: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    texts.join("; ")
}
