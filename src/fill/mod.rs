//! Fast fill: fetches and unpacks the layers of an image in parallel and hands containerd finished content and snapshots.
//!
//! It knows neither Kubernetes nor the command line.

pub mod unpack;
