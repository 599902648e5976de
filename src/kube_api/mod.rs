//! The Kubernetes API client: connection, requests, decoding, errors.
//!
//! It never decides which objects are read.

pub mod connect;
pub(crate) mod decode;
pub mod error;
pub(crate) mod get;
pub(crate) mod request;
