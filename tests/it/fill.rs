//! Fast fill against a real containerd.

pub(crate) mod unpack;
