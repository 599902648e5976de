//! The Kubernetes API client: connection, requests, decoding, errors.
//!
//! It never decides what is read.

pub mod connect;
pub(crate) mod decode;
pub mod error;
pub(crate) mod get;
pub(crate) mod request;
