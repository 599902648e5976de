//! The few fields of a workload that are read, and their meaning. All other fields of an object are skipped.
//!
//! To read one more field of a pod template, add it to [`PodSpec`] or [`Container`]. Pure: JSON in, facts out.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::name::{Name, Text, or_default};
use super::scheduling::{Affinity, PodOs, Resources, Toleration};
use crate::kube_api::decode::Element;
use crate::model::dns_name::is_subdomain;
use crate::model::workload_kind::WorkloadKind;

/// Maximum length of an image reference. Registries have far lower limits.
pub(super) const MAX_IMAGE: usize = 4096;
/// Maximum number of running Jobs that are read of one CronJob.
const MAX_ACTIVE: usize = 100;
/// Maximum number of pull secrets that are read of one pod template.
const MAX_PULL_SECRETS: usize = 100;

/// The facts about one workload.
#[derive(Debug, PartialEq)]
pub(super) struct Facts {
    pub(super) metadata: Metadata,
    /// The desired number of pods.
    pub(super) pods: u64,
    /// True if it has finished.
    pub(super) finished: bool,
    /// True if it is a suspended CronJob or Job.
    pub(super) suspended: bool,
    /// The uids of the running Jobs of a CronJob, at most [`MAX_ACTIVE`].
    pub(super) active: Vec<Name>,
    pub(super) template: PodSpec,
    /// The reason why its pods cannot run on this node. Set after decoding, when the workload is checked against the node.
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
            WorkloadKind::Pods => Object::deserialize(from).map(Self::of_pod)?,
            WorkloadKind::CronJobs => Object::deserialize(from).map(Self::of_cron_job)?,
            WorkloadKind::Jobs => Object::deserialize(from).map(Self::of_job)?,
            WorkloadKind::DaemonSets => {
                let set = Object::<Templated>::deserialize(from)?;
                let scheduled = set.status.desired_number_scheduled;
                Self::of_template(set.metadata, set.spec.template, pods(Some(scheduled)))
            }
            WorkloadKind::Deployments | WorkloadKind::StatefulSets | WorkloadKind::ReplicaSets => {
                let set = Object::<Templated>::deserialize(from)?;
                Self::of_template(set.metadata, set.spec.template, pods(set.spec.replicas))
            }
        })
    }

    fn of_pod(pod: Object<PodSpec>) -> Self {
        let phase = pod.status.phase.0.as_deref();
        let finished = matches!(phase, Some("Succeeded" | "Failed"));
        let template = Template { spec: pod.spec };
        Self {
            finished,
            ..Self::of_template(pod.metadata, template, 1)
        }
    }

    fn of_cron_job(cron: Object<CronJobSpec, CronJobStatus>) -> Self {
        let suspended = cron.spec.suspend;
        let active = cron.status.active.into_iter().take(MAX_ACTIVE);
        let template = cron.spec.job_template.spec.template;
        Self {
            suspended,
            active: active.map(|job| job.uid).collect(),
            ..Self::of_template(cron.metadata, template, u64::from(!suspended))
        }
    }

    fn of_job(job: Object<Templated>) -> Self {
        let suspended = job.spec.suspend;
        let pods = match suspended {
            true => 0,
            false => pods(job.spec.parallelism),
        };
        Self {
            suspended,
            finished: job.status.conditions.iter().any(Condition::ends_a_job),
            ..Self::of_template(job.metadata, job.spec.template, pods)
        }
    }

    /// The facts about a watched object, whose kind its watch knows.
    pub(super) fn of_watched(kind: WorkloadKind, object: AnyObject) -> Self {
        let AnyObject {
            metadata,
            spec,
            status,
        } = object;
        let AnySpec {
            replicas,
            parallelism,
            suspend,
            template,
            job_template,
            pod,
        } = spec;
        let templated = |template| Templated {
            replicas,
            parallelism,
            suspend,
            template,
        };
        match kind {
            WorkloadKind::Pods => Self::of_pod(Object {
                metadata,
                spec: pod,
                status: status.rest,
            }),
            WorkloadKind::CronJobs => Self::of_cron_job(Object {
                metadata,
                spec: CronJobSpec {
                    suspend,
                    job_template,
                },
                status: CronJobStatus {
                    active: status.active.0,
                },
            }),
            WorkloadKind::Jobs => Self::of_job(Object {
                metadata,
                spec: templated(template),
                status: status.rest,
            }),
            WorkloadKind::DaemonSets => {
                let scheduled = status.rest.desired_number_scheduled;
                Self::of_template(metadata, template, pods(Some(scheduled)))
            }
            WorkloadKind::Deployments | WorkloadKind::StatefulSets | WorkloadKind::ReplicaSets => {
                Self::of_template(metadata, template, pods(replicas))
            }
        }
    }

    /// A workload that runs indefinitely.
    fn of_template(metadata: Metadata, template: Template, pods: u64) -> Self {
        Self {
            metadata,
            pods,
            finished: false,
            suspended: false,
            active: Vec::new(),
            template: template.spec,
            mismatch: None,
        }
    }
}

/// A number of pods; 1 if absent, which is the API server's default.
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

/// A watched object of any kind: `kube` decodes it without knowing the kind, so that all fields that any kind has are read.
#[derive(Debug)]
pub(super) struct AnyObject {
    pub(super) metadata: Metadata,
    pub(super) spec: AnySpec,
    pub(super) status: AnyStatus,
}

/// The spec of any kind.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AnySpec {
    #[serde(default)]
    replicas: Option<i64>,
    #[serde(default)]
    parallelism: Option<i64>,
    #[serde(default, deserialize_with = "or_default")]
    suspend: bool,
    #[serde(default, deserialize_with = "or_default")]
    template: Template,
    #[serde(default, deserialize_with = "or_default")]
    job_template: JobTemplate,
    #[serde(flatten)]
    pod: PodSpec,
}

/// The status of any kind.
#[derive(Debug, Default, Deserialize)]
pub(super) struct AnyStatus {
    #[serde(default, deserialize_with = "or_default")]
    active: Active,
    #[serde(flatten)]
    rest: Status,
}

/// `status.active`: the running Jobs of a CronJob, or the number of a Job's pods, which is not read.
#[derive(Debug, Default)]
struct Active(Vec<ObjectReference>);

impl<'de> Deserialize<'de> for Active {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ActiveVisitor)
    }
}

struct ActiveVisitor;

impl<'de> Visitor<'de> for ActiveVisitor {
    type Value = Active;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of references or a number")
    }

    fn visit_i64<E>(self, _: i64) -> Result<Active, E> {
        Ok(Active::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Active, E> {
        Ok(Active::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Active, A::Error> {
        let mut found = Vec::new();
        while let Some(reference) = seq.next_element::<ObjectReference>()? {
            if found.len() < MAX_ACTIVE {
                found.push(reference);
            }
        }
        Ok(Active(found))
    }
}

/// The identity and the owners of an object.
#[derive(Debug, Default, PartialEq, Deserialize)]
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
    pub(super) owner_references: Vec<OwnerReference>,
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
#[derive(Debug, Default, PartialEq, Deserialize)]
pub(super) struct Labels {
    #[serde(default, rename = "pod-template-hash", deserialize_with = "or_default")]
    pub(super) pod_template_hash: Name,
}

/// An entry of `metadata.ownerReferences`.
#[derive(Debug, Default, PartialEq, Deserialize)]
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

/// The spec of every kind with a pod template.
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
#[derive(Debug, Default, PartialEq, Deserialize)]
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
    /// The older spelling of the name, which the API server still writes too.
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

    /// The images, in the order in which a kubelet needs them: volumes are mounted before any container starts. Each comes with
    /// whether its pull policy is `Always`.
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

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    #[serde(default, deserialize_with = "or_default")]
    image: Image,
    #[serde(default, deserialize_with = "or_default")]
    image_pull_policy: Name,
    #[serde(default, deserialize_with = "or_default")]
    resources: Resources,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
struct Volume {
    /// An image volume (KEP-4639).
    #[serde(default)]
    image: Option<ImageVolume>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
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
    /// Set for a pod.
    #[serde(default, deserialize_with = "or_default")]
    phase: Name,
    /// Set for a Job.
    #[serde(default, deserialize_with = "or_default")]
    conditions: Vec<Condition>,
    /// Set for a DaemonSet.
    #[serde(default, deserialize_with = "or_default")]
    desired_number_scheduled: i64,
}

/// The status of a CronJob, whose `active` is a list, while a Job's is a number.
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

/// The distinct names of an `imagePullSecrets` list.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SecretNames {
    /// The valid names of Secrets, at most [`MAX_PULL_SECRETS`].
    pub(super) names: Vec<Box<str>>,
    /// True if the list has any entry, even one without a valid name.
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
            // Only valid names are used in the path of a request.
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

/// The image that a template names.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) enum Image {
    /// Templates may leave it out; it is then set when the pod is created.
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
        from.deserialize_str(Text::default())
    }
}
