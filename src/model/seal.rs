//! The policy of sealing: images kept on the node without a name. No I/O.

/// The images to seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SealPolicy {
    /// Those whose credential came from a pull secret of a workload or a ServiceAccount.
    #[default]
    Auto,
    /// None.
    Never,
    /// All.
    Always,
}

impl SealPolicy {
    /// Returns whether an image is sealed that is pulled with a pull secret, or without one.
    pub fn seals(self, with_pull_secret: bool) -> bool {
        match self {
            Self::Auto => with_pull_secret,
            Self::Never => false,
            Self::Always => true,
        }
    }
}
