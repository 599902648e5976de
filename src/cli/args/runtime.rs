//! Settings of the container runtime and of its node.

use clap::Args;

use super::values::{Parsed, single};
use crate::app::settings::RuntimeSettings;
use crate::model::dns_name::is_subdomain;
use crate::model::platform::Platform;
use crate::runtime::detect::Endpoint;

/// The runtime to connect to.
#[derive(Args)]
#[command(next_help_heading = "Runtime")]
pub(crate) struct EndpointArgs {
    /// Container runtime: unix:///PATH, an absolute path, or oci:DIR (default: the first well-known socket that answers)
    #[arg(long, env, value_name = "ENDPOINT", value_parser = single(endpoint))]
    runtime_endpoint: Option<Endpoint>,
}

/// The runtime to use, and the node to plan for.
#[derive(Args)]
#[command(next_help_heading = "Runtime")]
pub(crate) struct RuntimeArgs {
    #[command(flatten)]
    endpoint: EndpointArgs,

    /// Platform to plan for, and to pull for into oci:DIR (default: the node's, otherwise this machine's)
    #[arg(long, env, value_name = "OS/ARCH", value_parser = single(platform))]
    pub(crate) platform: Option<Platform>,

    /// Name of this node; images of workloads that cannot run on it are skipped
    #[arg(long, env, value_name = "NAME", value_parser = single(node_name))]
    pub(crate) node_name: Option<String>,
}

impl RuntimeArgs {
    pub(crate) fn settings(self) -> RuntimeSettings {
        RuntimeSettings {
            endpoint: self.endpoint.runtime_endpoint,
            platform: self.platform,
        }
    }
}

impl EndpointArgs {
    pub(crate) fn settings(self) -> RuntimeSettings {
        RuntimeSettings {
            endpoint: self.runtime_endpoint,
            platform: None,
        }
    }
}

fn endpoint(text: &str) -> Parsed<Endpoint> {
    let expected = "expected unix:///PATH, an absolute PATH, or oci:DIR";
    Endpoint::parse(text).map_err(|_| expected.into())
}

pub(super) fn platform(text: &str) -> Parsed<Platform> {
    let expected = "expected OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/arm64";
    Platform::parse(text).ok_or_else(|| expected.into())
}

pub(super) fn node_name(text: &str) -> Parsed<String> {
    match is_subdomain(text) {
        true => Ok(text.to_owned()),
        false => Err(
            "expected a node's name: lower-case letters, digits, - and ., at most 253 characters"
                .into(),
        ),
    }
}
