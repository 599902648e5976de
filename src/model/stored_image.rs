//! An image in a store. No I/O.

/// The facts that a store reports about an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoredImage {
    /// The digest of the manifest or index that the reference resolves to, `sha256:…`.
    pub digest: Option<String>,
    /// Every digest of the image in the reference's repository, according to the store. One of them is the digest of its tag when
    /// it was pulled, even if the store does not know which.
    pub known: Vec<String>,
    /// Its size in bytes as the store reports it (containerd: compressed layers; Docker: unpacked).
    pub bytes: Option<u64>,
    /// harpoon keeps it by a seal, so that it needs no name.
    pub is_sealed: bool,
}
