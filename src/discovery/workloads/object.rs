//! The few fields of a workload that are read, and what they mean. Everything else of an object is skipped unread.
//!
//! To read one more field of a pod template, add it to [`PodSpec`] or [`Container`]. Pure: JSON in, facts out.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::{self, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::scheduling::{Affinity, PodOs, Resources, Toleration};
use crate::kube_api::decode::Element;
use crate::model::dns_name::is_subdomain;
use crate::model::workload_kind::WorkloadKind;

/// The longest image reference that is kept. A registry's own limits end far below.
pub(super) const MAX_IMAGE: usize = 4096;
/// Kubernetes names end at 253 characters, labels at 63.
const MAX_NAME: usize = 253;
/// The most running Jobs of one CronJob that are read.
const MAX_ACTIVE: usize = 100;
/// The most pull secrets of one pod template that are read.
const MAX_PULL_SECRETS: usize = 100;

/// What is known of one workload.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) metadata: Metadata,
    /// The pods that it is meant to have.
    pub(super) pods: u64,
    /// Whether it has ended for good.
    pub(super) finished: bool,
    /// True if it is a CronJob or a Job that is suspended.
    pub(super) suspended: bool,
    /// The uids of the Jobs that a CronJob has running, [`MAX_ACTIVE`] at most.
    pub(super) active: Vec<Name>,
    pub(super) template: PodSpec,
    /// Why its pods cannot run on this node. The object itself does not tell: it is judged when it has arrived.
    pub(super) mismatch: Option<Arc<str>>,
}

impl Element for Facts {
    type Kind = WorkloadKind;

    fn decode<'de, D: Deserializer<'de>>(kind: WorkloadKind, from: D) -> Result<Self, D::Error> {
        Self::decode(kind, from)
    }
}

impl Facts {
    /// Decodes an element of a list of `kind`.
    pub(super) fn decode<'de, D: Deserializer<'de>>(
        kind: WorkloadKind,
        from: D,
    ) -> Result<Self, D::Error> {
        Ok(match kind {
            WorkloadKind::Pods => {
                let pod = Object::<PodSpec>::deserialize(from)?;
                let phase = pod.status.phase.0.as_deref();
                Self {
                    pods: 1,
                    finished: matches!(phase, Some("Succeeded" | "Failed")),
                    suspended: false,
                    active: Vec::new(),
                    template: pod.spec,
                    mismatch: None,
                    metadata: pod.metadata,
                }
            }
            WorkloadKind::CronJobs => {
                let cron = Object::<CronJobSpec, CronJobStatus>::deserialize(from)?;
                let active = cron.status.active.into_iter().take(MAX_ACTIVE);
                Self {
                    pods: u64::from(!cron.spec.suspend),
                    finished: false,
                    suspended: cron.spec.suspend,
                    active: active.map(|job| job.uid).collect(),
                    template: cron.spec.job_template.spec.template.spec,
                    mismatch: None,
                    metadata: cron.metadata,
                }
            }
            WorkloadKind::Jobs => {
                let job = Object::<Templated>::deserialize(from)?;
                let pods = if job.spec.suspend {
                    0
                } else {
                    pods(job.spec.parallelism)
                };
                Self {
                    pods,
                    finished: job.status.conditions.iter().any(Condition::ends_a_job),
                    suspended: job.spec.suspend,
                    active: Vec::new(),
                    template: job.spec.template.spec,
                    mismatch: None,
                    metadata: job.metadata,
                }
            }
            WorkloadKind::DaemonSets => {
                let set = Object::<Templated>::deserialize(from)?;
                Self {
                    pods: pods(Some(set.status.desired_number_scheduled)),
                    finished: false,
                    suspended: false,
                    active: Vec::new(),
                    template: set.spec.template.spec,
                    mismatch: None,
                    metadata: set.metadata,
                }
            }
            WorkloadKind::Deployments | WorkloadKind::StatefulSets | WorkloadKind::ReplicaSets => {
                let set = Object::<Templated>::deserialize(from)?;
                Self {
                    pods: pods(set.spec.replicas),
                    finished: false,
                    suspended: false,
                    active: Vec::new(),
                    template: set.spec.template.spec,
                    mismatch: None,
                    metadata: set.metadata,
                }
            }
        })
    }
}

/// A number of pods; one where nothing is said, as the API server defaults it.
fn pods(wanted: Option<i64>) -> u64 {
    u64::try_from(wanted.unwrap_or(1)).unwrap_or(0)
}

#[derive(Debug, Deserialize)]
#[serde(bound = "S: Deserialize<'de> + Default, T: Deserialize<'de> + Default")]
struct Object<S, T = Status> {
    #[serde(default, deserialize_with = "or_default")]
    metadata: Metadata,
    #[serde(default, deserialize_with = "or_default")]
    spec: S,
    #[serde(default, deserialize_with = "or_default")]
    status: T,
}

/// The identity and the owners of an object.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) namespace: Name,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) name: Name,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) uid: Name,
    #[serde(default)]
    pub(super) deletion_timestamp: Option<IgnoredAny>,
    #[serde(default, deserialize_with = "or_default")]
    owner_references: Vec<OwnerReference>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) labels: Labels,
}

impl Metadata {
    /// The controller that manages this object; there is at most one.
    pub(super) fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller)
    }
}

/// The one label that is read.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Labels {
    #[serde(default, rename = "pod-template-hash", deserialize_with = "or_default")]
    pub(super) pod_template_hash: Name,
}

/// An entry of `metadata.ownerReferences`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OwnerReference {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) api_version: Name,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) kind: Name,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) name: Name,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) uid: Name,
    #[serde(default, deserialize_with = "or_default")]
    controller: bool,
}

/// The spec of everything that has a pod template.
#[derive(Debug, Default, Deserialize)]
struct Templated {
    #[serde(default)]
    replicas: Option<i64>,
    #[serde(default)]
    parallelism: Option<i64>,
    #[serde(default, deserialize_with = "or_default")]
    suspend: bool,
    #[serde(default, deserialize_with = "or_default")]
    template: Template,
}

#[derive(Debug, Default, Deserialize)]
struct Template {
    #[serde(default, deserialize_with = "or_default")]
    spec: PodSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CronJobSpec {
    #[serde(default, deserialize_with = "or_default")]
    suspend: bool,
    #[serde(default, deserialize_with = "or_default")]
    job_template: JobTemplate,
}

#[derive(Debug, Default, Deserialize)]
struct JobTemplate {
    #[serde(default, deserialize_with = "or_default")]
    spec: Templated,
}

/// The spec of a pod, or of a template's pods.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec {
    #[serde(default, deserialize_with = "or_default")]
    init_containers: Vec<Container>,
    #[serde(default, deserialize_with = "or_default")]
    containers: Vec<Container>,
    #[serde(default, deserialize_with = "or_default")]
    volumes: Vec<Volume>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) image_pull_secrets: SecretNames,
    #[serde(default, deserialize_with = "or_default")]
    service_account_name: Name,
    /// The name's older spelling, which the API server still writes beside it.
    #[serde(default, deserialize_with = "or_default")]
    service_account: Name,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) node_name: Name,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) node_selector: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) affinity: Affinity,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) tolerations: Vec<Toleration>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) runtime_class_name: Name,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) os: PodOs,
}

impl PodSpec {
    /// The service account that the pods run as.
    pub(super) fn account(&self) -> &str {
        let names = [&self.service_account_name, &self.service_account];
        let named = names.into_iter().find_map(|name| name.0.as_deref());
        named.unwrap_or("default")
    }

    /// The resources of each container, init containers included.
    pub(super) fn resources(&self) -> impl Iterator<Item = &Resources> {
        let containers = self.init_containers.iter().chain(&self.containers);
        containers.map(|container| &container.resources)
    }

    /// The images, in the order in which a kubelet needs them: volumes are mounted before any container starts.
    /// With each goes whether it is to be asked for at every start.
    pub(super) fn images(&self) -> impl Iterator<Item = (&Image, bool)> {
        let volumes = self
            .volumes
            .iter()
            .filter_map(|volume| volume.image.as_ref());
        let containers = self.init_containers.iter().chain(&self.containers);
        volumes
            .map(|source| (&source.reference, source.pull_policy.is_always()))
            .chain(containers.map(|c| (&c.image, c.image_pull_policy.is_always())))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    #[serde(default, deserialize_with = "or_default")]
    image: Image,
    #[serde(default, deserialize_with = "or_default")]
    image_pull_policy: Name,
    #[serde(default, deserialize_with = "or_default")]
    resources: Resources,
}

#[derive(Debug, Default, Deserialize)]
struct Volume {
    /// An image volume (KEP-4639).
    #[serde(default)]
    image: Option<ImageVolume>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ImageVolume {
    #[serde(default, deserialize_with = "or_default")]
    reference: Image,
    #[serde(default, deserialize_with = "or_default")]
    pull_policy: Name,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    /// Of a pod.
    #[serde(default, deserialize_with = "or_default")]
    phase: Name,
    /// Of a Job.
    #[serde(default, deserialize_with = "or_default")]
    conditions: Vec<Condition>,
    /// Of a DaemonSet.
    #[serde(default, deserialize_with = "or_default")]
    desired_number_scheduled: i64,
}

/// The status of a CronJob, whose `active` is a list where a Job has a number.
#[derive(Debug, Default, Deserialize)]
struct CronJobStatus {
    #[serde(default, deserialize_with = "or_default")]
    active: Vec<ObjectReference>,
}

#[derive(Debug, Default, Deserialize)]
struct ObjectReference {
    #[serde(default, deserialize_with = "or_default")]
    uid: Name,
}

#[derive(Debug, Default, Deserialize)]
struct Condition {
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    what: Name,
    #[serde(default, deserialize_with = "or_default")]
    status: Name,
}

impl Condition {
    fn ends_a_job(&self) -> bool {
        let ends = matches!(self.what.0.as_deref(), Some("Complete" | "Failed"));
        ends && self.status.0.as_deref() == Some("True")
    }
}

/// A name that Kubernetes could have given; `None` for what is absent, too long, or not plain ASCII.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Name(pub(super) Option<Box<str>>);

impl Name {
    pub(super) fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }

    /// Of a pull policy: the API server writes `Always` itself where a template has none and the tag is `latest`.
    fn is_always(&self) -> bool {
        self.as_str() == "Always"
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        let plain = !text.is_empty()
            && text.len() <= MAX_NAME
            && text.bytes().all(|b| b.is_ascii_graphic());
        Self(plain.then(|| text.into()))
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text(PhantomData))
    }
}

/// The names of an `imagePullSecrets` list, each once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SecretNames {
    /// Those that can be names of Secrets, [`MAX_PULL_SECRETS`] at most.
    pub(super) names: Vec<Box<str>>,
    /// Whether the list has any entry, were it one without a proper name.
    pub(super) listed: bool,
}

impl<'de> Deserialize<'de> for SecretNames {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(SecretNamesVisitor)
    }
}

struct SecretNamesVisitor;

impl<'de> Visitor<'de> for SecretNamesVisitor {
    type Value = SecretNames;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of references to Secrets")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<SecretNames, A::Error> {
        let mut found = SecretNames::default();
        while let Some(reference) = seq.next_element::<LocalObjectReference>()? {
            found.listed = true;
            // Nothing else comes into the path of a request.
            if let Some(name) = reference.name.0
                && is_subdomain(&name)
                && found.names.len() < MAX_PULL_SECRETS
                && !found.names.contains(&name)
            {
                found.names.push(name);
            }
        }
        Ok(found)
    }
}

#[derive(Debug, Default, Deserialize)]
struct LocalObjectReference {
    #[serde(default, deserialize_with = "or_default")]
    name: Name,
}

/// An image as a template names it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) enum Image {
    /// Templates may leave it out, for something else to fill in when the pod is made.
    #[default]
    Absent,
    Named(Box<str>),
    /// Longer than [`MAX_IMAGE`].
    TooLong,
}

impl From<&str> for Image {
    fn from(text: &str) -> Self {
        match text.len() {
            0 => Self::Absent,
            1..=MAX_IMAGE => Self::Named(text.into()),
            _ => Self::TooLong,
        }
    }
}

impl<'de> Deserialize<'de> for Image {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text(PhantomData))
    }
}

/// Makes a `T` of a string without owning the string, however long it is.
struct Text<T>(PhantomData<T>);

impl<T: for<'a> From<&'a str>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        Ok(text.into())
    }
}

/// The default for `null`, which is how Go writes an empty slice.
pub(super) fn or_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}
