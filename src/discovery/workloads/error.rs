//! Warnings and errors of discovery. They contain no credential.

use std::fmt;
use std::sync::Arc;

use super::node::NodeWarning;
use super::pull_secrets::SecretWarning;
use crate::kube_api::error::{ListError, colon};
use crate::model::candidate::Workload;
use crate::model::workload_kind::WorkloadKind;

/// The scope of a list: one namespace, or all of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Every namespace of the cluster.
    All,
    /// One namespace.
    Namespace(String),
}

impl Scope {
    /// The namespace, if it is only one.
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

/// A problem with a part of discovery; the rest succeeded.
#[derive(Debug, thiserror::Error)]
pub enum Warning {
    /// RBAC does not allow the list.
    #[error(
        "{scope}: not allowed to list {}: needs the RBAC verb \"list\" on \"{}\" in apiGroup \"{}\"{}",
        .kind.resource(), .kind.plural(), .kind.group(), cluster_wide(.scope)
    )]
    Forbidden {
        /// The scope.
        scope: Scope,
        /// The kind.
        kind: WorkloadKind,
    },
    /// The API server does not know the kind.
    #[error("{scope}: the API server has no {}", .kind.resource())]
    NoSuchKind {
        /// The scope.
        scope: Scope,
        /// The kind.
        kind: WorkloadKind,
    },
    /// There is no such namespace.
    #[error("namespace {0} does not exist")]
    NoNamespace(String),
    /// A list could not be read, or not to its end.
    #[error("{scope}: failed to list {}: {error}", .kind.resource())]
    List {
        /// The scope.
        scope: Scope,
        /// The kind.
        kind: WorkloadKind,
        /// The cause. Part of the message already: a warning is one line.
        error: ListError,
    },
    /// An image reference is too long to be valid.
    #[error("{0}: image reference skipped: longer than 4096 characters")]
    ImageTooLong(Arc<Workload>),
    /// A problem with the pull secrets.
    #[error(transparent)]
    PullSecret(#[from] SecretWarning),
    /// A problem with this node.
    #[error(transparent)]
    Node(#[from] NodeWarning),
}

/// The reason why discovery failed completely.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// The credentials are invalid or have expired.
    #[error("the API server {server} does not accept the credentials (401 Unauthorized){}", colon(.message))]
    Unauthorized {
        /// The API server, without path or credentials.
        server: String,
        /// The API server's message.
        message: String,
    },
    /// The API server cannot be reached.
    #[error("failed to reach the API server {server}")]
    Unreachable {
        /// The API server, without path or credentials.
        server: String,
        /// The cause.
        #[source]
        source: ListError,
    },
    /// The API server rejects the label selector.
    #[error("the API server rejects the label selector {selector:?}{}", colon(.message))]
    Selector {
        /// The selector as given.
        selector: String,
        /// The API server's message.
        message: String,
    },
    /// Every list failed.
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
