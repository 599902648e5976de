//! containerd's own API beside the CRI, on the same socket: it seals images, so that they are on the node without a name, pins
//! images, so that the kubelet keeps them, and stores content and snapshots of images that harpoon has fetched and unpacked itself.
//!
//! A seal is a lease on an image's manifest. containerd's gc labels hold the configuration, the layers and the snapshots below
//! it. Every lease of harpoon expires. No name that harpoon did not make is ever removed.

use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::streaming_client::StreamingClient;
use containerd_client::services::v1::transfer_client::TransferClient;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::model::failure::FailureKind;
use crate::runtime::grpc::unexplained;
use crate::runtime::image_service::RuntimeError;

mod beside;
mod config;
mod events;
mod graph;
mod leases;
mod names;
mod pins;
mod seal;
mod store;
mod transfer;

pub use beside::Beside;
pub use config::{Config, HostDir};
pub use events::Removal;
pub use pins::{PinChanges, Pins};
pub use seal::{Keep, Seal, Seals, Unsettled};
pub use store::{BlobReader, BlobWriter, Labels, Prepared, Store};

/// The CRI plugin keeps everything in this namespace of containerd.
const NAMESPACE: &str = "k8s.io";
/// tonic decodes 4 MB unless told otherwise.
const MESSAGE_MAX: usize = 64 << 20;
/// A call that does not move content is answered within this, or containerd hangs.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// The services of one containerd.
#[derive(Debug, Clone)]
struct Client {
    channel: Channel,
}

impl Client {
    fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    fn diff(&self) -> DiffClient<Channel> {
        DiffClient::new(self.channel.clone())
    }

    fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    fn introspection(&self) -> IntrospectionClient<Channel> {
        IntrospectionClient::new(self.channel.clone())
    }

    fn streaming(&self) -> StreamingClient<Channel> {
        StreamingClient::new(self.channel.clone())
    }

    fn transfer(&self) -> TransferClient<Channel> {
        TransferClient::new(self.channel.clone())
    }

    fn cri_images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    fn cri_runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }
}

/// The request in the CRI's namespace.
fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let namespace = MetadataValue::from_static(NAMESPACE);
    request
        .metadata_mut()
        .insert("containerd-namespace", namespace);
    request
}

/// The same, where all that containerd stores for the request is held by the lease.
fn leased<T>(message: T, lease: &str) -> Result<Request<T>, Status> {
    let mut request = request(message);
    let lease = lease
        .parse()
        .map_err(|_| Status::invalid_argument("invalid lease ID"))?;
    request.metadata_mut().insert("containerd-lease", lease);
    Ok(request)
}

/// The response to a call, within the time limit.
async fn answer<T>(
    asked: impl Future<Output = Result<Response<T>, Status>>,
    method: &str,
) -> Result<T, RuntimeError> {
    match tokio::time::timeout(CALL_LIMIT, asked).await {
        Ok(answer) => answer
            .map(Response::into_inner)
            .map_err(|status| unexplained(&status)),
        Err(_) => Err(RuntimeError::new(
            FailureKind::Timeout,
            format!(
                "no response from containerd within {} s ({method})",
                CALL_LIMIT.as_secs()
            ),
        )),
    }
}
