//! The parts that the agent and the controller of continuous mode share.

pub(crate) mod names;
pub(crate) mod placement;
pub(crate) mod rollout;
pub(crate) mod status;
pub(crate) mod watch;
