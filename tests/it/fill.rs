//! Fast fill against a real containerd.

mod unpack;
