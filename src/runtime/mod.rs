//! The container runtimes and image stores of this node, behind one small trait.
//!
//! To add a runtime: implement [`image_service::ImageService`] in a file of its own, add a variant to [`detect::Runtime`] and, if it has a
//! well-known socket, a row to the table in `detect.rs`. This module knows neither Kubernetes nor the command line.

pub mod containerd;
pub mod cri;
pub mod detect;
pub mod docker;
mod error_kind;
mod grpc;
pub mod image_fs;
pub mod image_service;
mod listed;
pub mod oci;
pub mod sealing;
mod socket;
