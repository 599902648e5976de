//! The Kubernetes API of continuous mode, group `harpoon.dev`: types of the custom resources and their definitions.
//!
//! It reads and writes nothing.

#![allow(
    unreachable_pub,
    reason = "kube's derive copies the structs into private places"
)]
#![allow(
    clippy::duplicated_attributes,
    reason = "each printed column has a type"
)]

pub mod v1alpha1;
