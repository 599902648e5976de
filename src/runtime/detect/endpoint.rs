//! The values of `--runtime-endpoint`. No I/O.

use std::fmt;
use std::path::PathBuf;

/// The endpoint of a runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket, by its absolute path.
    Unix(PathBuf),
    /// A directory for an OCI image layout, which may not exist yet.
    Oci(PathBuf),
}

/// The text is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid runtime endpoint {value:?}: expected unix:///path/to/socket, the absolute path of a socket, or oci:DIR"
)]
pub struct EndpointError {
    /// The text as given.
    pub value: String,
}

impl Endpoint {
    /// Parses `unix:///path`, a bare absolute path, or `oci:DIR`, whose directory may be relative.
    ///
    /// # Errors
    /// [`EndpointError`] for everything else: other schemes, a host in a `unix:` URL, a relative path, nothing.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let absolute = |path: &str| path.starts_with('/').then(|| PathBuf::from(path));
        let parsed = if text.contains('\0') {
            None
        } else if let Some(dir) = text.strip_prefix("oci:") {
            // `oci://dir` is probably a mistake by analogy with `unix://`, and would create a directory in the root.
            (!dir.is_empty() && !dir.starts_with("//")).then(|| Self::Oci(PathBuf::from(dir)))
        } else {
            absolute(text.strip_prefix("unix://").unwrap_or(text)).map(Self::Unix)
        };
        parsed.ok_or_else(|| EndpointError {
            value: text.to_owned(),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Oci(dir) => write!(f, "oci:{}", dir.display()),
        }
    }
}
