//! The work of the commands, from discovery to the report.
//!
//! It never parses arguments, prints, or picks an exit code.

pub(crate) mod agent;
pub(crate) mod candidates;
pub(crate) mod continuous;
pub(crate) mod controller;
pub(crate) mod keyring;
pub(crate) mod metrics;
pub(crate) mod node_run;
pub(crate) mod serve;
pub mod settings;
pub(crate) mod shutdown;
pub mod start_delay;
pub(crate) mod status;
pub(crate) mod telemetry;
pub(crate) mod wait;
