//! The objects of watched workloads, as `kube`'s watcher decodes them. Pure.
//!
//! One type serves all kinds, because a kind may be served in an older version (CronJobs in `batch/v1beta1` on Kubernetes 1.20),
//! which is known only at run time. It keeps what an [`Inventory`](super::inventory::Inventory) needs: never annotations or
//! `managedFields`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::name::{Name, or_default};
use super::object::{AnyObject, AnySpec, AnyStatus, Facts, Labels, Metadata, OwnerReference};
use crate::model::workload_kind::WorkloadKind;

/// The label from which the Deployment of a pod is derived.
const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// A watched workload.
#[derive(Debug, Clone)]
pub struct Watched {
    /// Namespace, name and resource version only.
    meta: ObjectMeta,
    /// Shared, because `kube` requires that events can be cloned. There is one owner.
    object: Arc<Decoded>,
}

#[derive(Debug)]
struct Decoded {
    labels: BTreeMap<String, String>,
    object: AnyObject,
}

impl Watched {
    /// The resource to watch, in one of the versions of the kind (`WorkloadKind::versions`).
    pub fn resource(kind: WorkloadKind, version: &str) -> ApiResource {
        let group = kind.group();
        let api_version = match group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        };
        ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version,
            kind: kind.kind().to_owned(),
            plural: kind.plural().to_owned(),
        }
    }

    /// The labels and the facts; `None` if another clone is in use.
    pub(super) fn into_parts(
        self,
        kind: WorkloadKind,
    ) -> Option<(BTreeMap<String, String>, Facts)> {
        let Decoded { labels, object } = Arc::into_inner(self.object)?;
        Some((labels, Facts::of_watched(kind, object)))
    }
}

impl Resource for Watched {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        resource.api_version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMetadata {
    #[serde(default, deserialize_with = "or_default")]
    namespace: Name,
    #[serde(default, deserialize_with = "or_default")]
    name: Name,
    #[serde(default, deserialize_with = "or_default")]
    uid: Name,
    #[serde(default)]
    resource_version: Option<String>,
    #[serde(default)]
    deletion_timestamp: Option<IgnoredAny>,
    #[serde(default, deserialize_with = "or_default")]
    owner_references: Vec<OwnerReference>,
    #[serde(default, deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawObject {
    #[serde(default, deserialize_with = "or_default")]
    metadata: RawMetadata,
    #[serde(default, deserialize_with = "or_default")]
    spec: AnySpec,
    #[serde(default, deserialize_with = "or_default")]
    status: AnyStatus,
}

impl<'de> Deserialize<'de> for Watched {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let RawObject {
            metadata,
            spec,
            status,
        } = RawObject::deserialize(from)?;
        let owned = |name: &Name| name.0.as_deref().map(str::to_owned);
        let meta = ObjectMeta {
            namespace: owned(&metadata.namespace),
            name: owned(&metadata.name),
            resource_version: metadata.resource_version,
            ..ObjectMeta::default()
        };
        let hash = metadata.labels.get(POD_TEMPLATE_HASH);
        let metadata_read = Metadata {
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            deletion_timestamp: metadata.deletion_timestamp,
            owner_references: metadata.owner_references,
            labels: Labels {
                pod_template_hash: hash.map_or(Name(None), |hash| hash.as_str().into()),
            },
        };
        let object = AnyObject {
            metadata: metadata_read,
            spec,
            status,
        };
        Ok(Self {
            meta,
            object: Arc::new(Decoded {
                labels: metadata.labels,
                object,
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn facts(kind: WorkloadKind, object: Value) -> (BTreeMap<String, String>, Facts) {
        let watched: Watched = serde_json::from_value(object).unwrap();
        watched.into_parts(kind).unwrap()
    }

    /// Every kind gives the facts that the decoder of lists gives.
    #[test]
    fn watched_facts_equal_listed_facts() {
        let pod = json!({"initContainers": [{"image": "init:1", "imagePullPolicy": "Always"}], "nodeName": "n",
            "containers": [{"image": "app:1", "resources": {"limits": {"example.com/gpu": 1}}}, {"name": "none"}],
            "volumes": [{"image": {"reference": "data:1"}}, {"emptyDir": {}}], "runtimeClassName": "kata",
            "nodeSelector": {"disk": "ssd"}, "tolerations": [{"operator": "Exists"}], "imagePullSecrets": [{"name": "s"}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms":
                [{"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}]}}}});
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": pod});
        let metadata = json!({"namespace": "shop", "name": "web", "uid": "u", "resourceVersion": "7",
            "annotations": {"a": "x"}, "managedFields": [{"manager": "kubectl"}],
            "labels": {"app": "web", "pod-template-hash": "abc"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-abc", "uid": "o", "controller": true}]});
        for kind in WorkloadKind::ALL {
            let (spec, status) = match kind {
                WorkloadKind::Pods => (
                    pod.clone(),
                    json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}),
                ),
                WorkloadKind::CronJobs => (
                    json!({"suspend": true, "jobTemplate": {"spec": {"template": template}}}),
                    json!({"active": [{"uid": "j"}]}),
                ),
                WorkloadKind::Jobs => (
                    json!({"parallelism": 3, "template": template}),
                    json!({"active": 3, "conditions": [{"type": "Failed", "status": "True"}]}),
                ),
                _ => (
                    json!({"replicas": 2, "selector": {}, "template": template}),
                    json!({"desiredNumberScheduled": 5}),
                ),
            };
            let object = json!({"metadata": metadata, "spec": spec, "status": status});
            let listed = Facts::decode(kind, object.clone()).unwrap();
            let (labels, watched) = facts(kind, object);
            assert_eq!(format!("{watched:?}"), format!("{listed:?}"), "{kind:?}");
            assert_eq!(labels["app"], "web");
        }
    }

    #[test]
    fn empty_object_is_decoded() {
        let (labels, facts) = facts(
            WorkloadKind::Deployments,
            json!({"spec": null, "status": null}),
        );
        assert!(labels.is_empty());
        assert_eq!(facts.pods, 1);
    }

    #[test]
    fn resource_has_path_of_kind() {
        let path = |kind, version, namespace| {
            Watched::url_path(&Watched::resource(kind, version), namespace)
        };
        assert_eq!(path(WorkloadKind::Pods, "v1", None), "/api/v1/pods");
        let beta = path(WorkloadKind::CronJobs, "v1beta1", Some("a"));
        assert_eq!(beta, "/apis/batch/v1beta1/namespaces/a/cronjobs");
    }
}
