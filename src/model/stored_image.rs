//! An image as a store describes it. No I/O.

/// What a store says of an image that it has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoredImage {
    /// The digest of the manifest or index that the reference stands for, `sha256:…`.
    pub digest: Option<String>,
    /// Every digest by which the store knows the image in the reference's repository: one of them is what its tag stood
    /// for when it was pulled, even where the store cannot tell which.
    pub known: Vec<String>,
    /// Its size in bytes as the store counts it (containerd: compressed layers; Docker: unpacked).
    pub bytes: Option<u64>,
    /// harpoon keeps it by a seal, so that it needs no name.
    pub is_sealed: bool,
}
