//! Platforms that images are made for. No I/O.

use std::fmt;

/// An operating system and processor that an image is made for, `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Go's name of the operating system, such as `linux`.
    pub os: String,
    /// Go's name of the architecture, such as `amd64`.
    pub architecture: String,
    /// The variant of the architecture, such as `v7`.
    pub variant: Option<String>,
}

impl Platform {
    /// Parses `os/architecture` or `os/architecture/variant`; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let word = |s: &str| {
            !s.is_empty()
                && s.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(|p| word(p)) {
            return None;
        }
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return None,
        };
        Some(Self {
            os: os.to_owned(),
            architecture: go_architecture(architecture).to_owned(),
            variant,
        })
    }

    /// The platform that this program was built for.
    pub fn current() -> Self {
        Self {
            os: "linux".to_owned(),
            architecture: go_architecture(std::env::consts::ARCH).to_owned(),
            variant: None,
        }
    }

    /// Returns whether a machine of platform `wanted` runs images made for `self`. Variants are compared if both have one;
    /// `arm64` and `arm64/v8` are equal.
    pub fn suits(&self, wanted: &Self) -> bool {
        let variant = |p: &Self| match (p.architecture.as_str(), p.variant.as_deref()) {
            ("arm64", Some("v8")) => None,
            (_, v) => v.map(str::to_owned),
        };
        self.os == wanted.os
            && go_architecture(&self.architecture) == wanted.architecture
            && match (variant(self), variant(wanted)) {
                (Some(a), Some(b)) => a == b,
                _ => true,
            }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

fn go_architecture(name: &str) -> &str {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" | "i686" => "386",
        "powerpc64" | "powerpc64le" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}
