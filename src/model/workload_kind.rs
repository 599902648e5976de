//! The kinds of workload that can be scanned, and their names in the API. Pure.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// A kind of workload, in the order of scanning: owners come before the objects that they own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WorkloadKind {
    /// `deployments.apps`.
    Deployments,
    /// `cronjobs.batch`.
    CronJobs,
    /// `statefulsets.apps`.
    StatefulSets,
    /// `daemonsets.apps`.
    DaemonSets,
    /// `replicasets.apps`.
    ReplicaSets,
    /// `jobs.batch`.
    Jobs,
    /// `pods`.
    Pods,
}

impl WorkloadKind {
    /// Every kind, in the order of scanning.
    pub const ALL: [Self; 7] = [
        Self::Deployments,
        Self::CronJobs,
        Self::StatefulSets,
        Self::DaemonSets,
        Self::ReplicaSets,
        Self::Jobs,
        Self::Pods,
    ];

    /// Parses a kind in a setting: the plural in lower case, such as `deployments`.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.plural() == text)
    }

    /// The name in settings and in URLs, such as `deployments`.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Deployments => "deployments",
            Self::CronJobs => "cronjobs",
            Self::StatefulSets => "statefulsets",
            Self::DaemonSets => "daemonsets",
            Self::ReplicaSets => "replicasets",
            Self::Jobs => "jobs",
            Self::Pods => "pods",
        }
    }

    /// The kind as manifests spell it, such as `Deployment`.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Deployments => "Deployment",
            Self::CronJobs => "CronJob",
            Self::StatefulSets => "StatefulSet",
            Self::DaemonSets => "DaemonSet",
            Self::ReplicaSets => "ReplicaSet",
            Self::Jobs => "Job",
            Self::Pods => "Pod",
        }
    }

    /// The API group, empty for the core group.
    pub fn group(self) -> &'static str {
        match self {
            Self::Deployments | Self::StatefulSets | Self::DaemonSets | Self::ReplicaSets => "apps",
            Self::Jobs | Self::CronJobs => "batch",
            Self::Pods => "",
        }
    }

    /// The resource as an argument of `kubectl auth can-i list`, such as `deployments.apps`.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Deployments => "deployments.apps",
            Self::CronJobs => "cronjobs.batch",
            Self::StatefulSets => "statefulsets.apps",
            Self::DaemonSets => "daemonsets.apps",
            Self::ReplicaSets => "replicasets.apps",
            Self::Jobs => "jobs.batch",
            Self::Pods => "pods",
        }
    }

    /// The API versions to try, the preferred one first. CronJobs are in `batch/v1` since Kubernetes 1.21.
    pub(crate) fn versions(self) -> &'static [&'static str] {
        match self {
            Self::CronJobs => &["v1", "v1beta1"],
            _ => &["v1"],
        }
    }

    /// The path that lists this kind, in one namespace or in all.
    pub(crate) fn path(self, version: &str, namespace: Option<&str>) -> String {
        let mut path = match self.group() {
            "" => format!("/api/{version}"),
            group => format!("/apis/{group}/{version}"),
        };
        if let Some(namespace) = namespace {
            path.push_str("/namespaces/");
            percent_encode(namespace, &mut path);
        }
        path.push('/');
        path.push_str(self.plural());
        path
    }

    /// The kind that a controller reference names, if it is one of these.
    pub(crate) fn of_owner(api_version: &str, kind: &str) -> Option<Self> {
        let found = Self::ALL.into_iter().find(|known| known.kind() == kind)?;
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        // Deployments and similar kinds were in `extensions` before they were in `apps`. Other groups have kinds of the same name
        // (`Job` of batch.volcano.sh) with another meaning.
        let same = group == found.group() || (group == "extensions" && found.group() == "apps");
        same.then_some(found)
    }

    /// Returns whether this kind can own other kinds of this list.
    pub(crate) fn can_own(self) -> bool {
        self != Self::Pods
    }
}

/// All but RFC 3986's unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Appends `text`, escaped for a path segment or a query value.
pub(crate) fn percent_encode(text: &str, into: &mut String) {
    into.extend(utf8_percent_encode(text, RESERVED));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_match_api_server() {
        for kind in WorkloadKind::ALL {
            assert_eq!(WorkloadKind::parse(kind.plural()), Some(kind));
        }
        assert_eq!(WorkloadKind::parse("Deployments"), None);
        assert_eq!(WorkloadKind::parse("all"), None);
        let path = WorkloadKind::Deployments.path("v1", Some("a/b"));
        assert_eq!(path, "/apis/apps/v1/namespaces/a%2Fb/deployments");
        assert_eq!(WorkloadKind::Pods.path("v1", None), "/api/v1/pods");
    }

    #[test]
    fn owners_are_distinguished_by_group() {
        let of = WorkloadKind::of_owner;
        assert_eq!(of("apps/v1", "ReplicaSet"), Some(WorkloadKind::ReplicaSets));
        assert_eq!(
            of("extensions/v1beta1", "ReplicaSet"),
            Some(WorkloadKind::ReplicaSets)
        );
        assert_eq!(of("batch/v1beta1", "CronJob"), Some(WorkloadKind::CronJobs));
        assert_eq!(of("batch.volcano.sh/v1alpha1", "Job"), None);
        assert_eq!(of("v1", "Node"), None);
        assert_eq!(of("apps.openshift.io/v1", "DeploymentConfig"), None);
    }
}
