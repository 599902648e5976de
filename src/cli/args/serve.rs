//! Settings of the HTTP server of agent and controller.

use std::net::SocketAddr;

use clap::Args;

use super::values::{Parsed, single};

/// The HTTP server of agent and controller.
#[derive(Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct ServingArgs {
    /// Address of the HTTP server for /metrics, /healthz and /readyz
    #[arg(long, env, value_name = "ADDRESS", default_value = "0.0.0.0:9464", value_parser = single(address))]
    pub(crate) metrics_address: SocketAddr,
}

fn address(text: &str) -> Parsed<SocketAddr> {
    text.parse()
        .map_err(|_| "expected an IP address and a port, such as 0.0.0.0:9464 or [::]:9464".into())
}
