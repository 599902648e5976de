//! The Kubernetes API client: connection, requests, decoding, errors.
//!
//! It never decides which objects are read.

/// Characters of a text from outside that an error or a log shows.
const QUOTED_MAX: usize = 300;

pub mod connect;
pub(crate) mod counted;
pub(crate) mod decode;
pub mod error;
pub(crate) mod get;
pub(crate) mod pages;
pub(crate) mod request;
