//! Drives the real program against real daemons; one binary, so that its tests share them.
//!
//! Run by `make test`, or by `testbed/run cargo test`. A missing part of the test bed fails a test, never skips it.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "tests say what failed by panicking"
)]

mod agent;
mod api;
mod bed;
mod chaos;
mod commands;
mod continuous;
mod controller;
mod credentials;
mod cri;
mod crio;
mod deploy;
mod docker;
mod documents;
mod e2e;
mod fast;
mod fill;
mod find;
mod generations;
mod image;
mod images_file;
mod kubernetes;
mod layers;
mod lies;
mod monitoring;
mod oci;
mod output;
mod pictures;
mod pins;
mod private;
mod pulling;
mod references;
mod relevance;
mod scale;
mod sealed;
mod settings;
mod soak;
mod start;
mod status;
