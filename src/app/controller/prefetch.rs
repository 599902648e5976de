//! ImagePrefetches as they are watched: one that cannot be decoded is still known by its name, so that its images stay. Pure.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DeserializeGuard;
use kube::{Resource, ResourceExt};
use serde::Deserialize;

use super::observe::Prefetch;
use crate::api::v1alpha1::{ImagePrefetch, ImagePrefetchStatus};
use crate::model::text::clip_sanitized;

/// Characters of the decoder's message that are shown.
const MESSAGE_MAX: usize = 300;

/// An ImagePrefetch, or why it cannot be decoded.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub(super) struct AnyPrefetch(DeserializeGuard<ImagePrefetch>);

impl AnyPrefetch {
    /// The part that matters.
    pub(super) fn read(&self) -> Prefetch {
        let (spec, status) = match &self.0.0 {
            Ok(prefetch) => (Ok(prefetch.spec.clone()), prefetch.status.clone()),
            Err(invalid) => {
                let message = clip_sanitized(&invalid.error, MESSAGE_MAX);
                (Err(format!("failed to decode the object: {message}")), None)
            }
        };
        Prefetch {
            uid: self.uid().unwrap_or_default(),
            generation: self.meta().generation,
            spec,
            status: status.unwrap_or_else(ImagePrefetchStatus::default),
        }
    }
}

impl Resource for AnyPrefetch {
    type DynamicType = <ImagePrefetch as Resource>::DynamicType;
    type Scope = <ImagePrefetch as Resource>::Scope;

    fn kind(of: &Self::DynamicType) -> Cow<'_, str> {
        ImagePrefetch::kind(of)
    }

    fn group(of: &Self::DynamicType) -> Cow<'_, str> {
        ImagePrefetch::group(of)
    }

    fn version(of: &Self::DynamicType) -> Cow<'_, str> {
        ImagePrefetch::version(of)
    }

    fn plural(of: &Self::DynamicType) -> Cow<'_, str> {
        ImagePrefetch::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}
