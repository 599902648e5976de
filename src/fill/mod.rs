//! Fast fill: fetches and unpacks the layers of an image in parallel and hands containerd finished content and snapshots.
//!
//! containerd's own pull then finds all of it and makes the names; for a sealed image, no name is made. What cannot be done with
//! containerd's result is left to the runtime: [`FillingRuntime`] then pulls through it. It knows neither Kubernetes nor the
//! command line.

mod direct;
mod fetch;
mod filling;
mod hand_over;
mod hosts;
mod image;
mod keep;
mod place;
mod stream;
pub mod unpack;

pub use filling::{FillError, FillMode, FillingRuntime};

use crate::model::failure::FailureKind;
use crate::registry;
use crate::runtime::image_service::RuntimeError;

/// The reason why an image was not filled.
#[derive(Debug)]
enum Failure {
    /// The runtime can do it, or says better why not.
    Unsupported(String),
    /// The image cannot be pulled.
    Failed(RuntimeError),
}

impl From<hosts::Unsupported> for Failure {
    fn from(error: hosts::Unsupported) -> Self {
        Self::Unsupported(error.0)
    }
}

impl From<registry::Error> for Failure {
    fn from(error: registry::Error) -> Self {
        let is_format = matches!(
            error,
            registry::Error::Schema1
                | registry::Error::Algorithm { .. }
                | registry::Error::Scheme { .. }
        );
        // The runtime may have a proxy, or another network.
        if is_format || error.is_unreachable() {
            return Self::Unsupported(error.chain());
        }
        let mut failed = RuntimeError::new(error.kind(), error.chain());
        failed.retry_after = error.retry_after();
        Self::Failed(failed)
    }
}

impl From<RuntimeError> for Failure {
    /// A call of containerd's own API that failed. What cannot be told apart is left to its pull.
    fn from(error: RuntimeError) -> Self {
        match error.kind {
            FailureKind::Other => Self::Unsupported(error.message),
            _ => Self::Failed(error),
        }
    }
}
