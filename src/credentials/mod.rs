//! Credentials for registries, in the order and by the rules of the kubelet.
//!
//! It never prints a credential and knows neither Kubernetes nor the command line.

pub mod docker_config;
mod file_watch;
pub mod keyring;
mod program;
pub mod provider;
pub mod secret;
