//! Image references and prefixes: parsing, normalising, comparing.
//!
//! The grammar is that of the `distribution/reference` specification, with Docker's familiar names, as in containerd's CRI
//! plugin, cri-dockerd, Docker and the kubelet. Pure: no I/O, no clock, no async.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::model::digest::Digest;

/// Maximum length of a repository without its registry, in bytes (`distribution/reference`: RepositoryNameTotalLengthMax).
/// containerd 1.6 and Docker 20.10 include the registry, and reject longer references themselves.
const REPOSITORY_MAX: usize = 255;

/// Docker Hub's name in references.
pub(crate) const DOCKER_HUB: &str = "docker.io";
/// Another name of Docker Hub.
pub(crate) const DOCKER_HUB_INDEX: &str = "index.docker.io";
/// Docker Hub's key in the files that `docker login` writes.
pub(crate) const DOCKER_HUB_URL: &str = "https://index.docker.io/v1/";
/// The host that serves Docker Hub's images.
const DOCKER_HUB_SERVER: &str = "registry-1.docker.io";
const TAG_MAX: usize = 128;

/// The reason why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The text is empty.
    #[error("the reference is empty")]
    Empty,
    /// The text contains white space or a control character.
    #[error("the reference contains blanks or control characters")]
    Blank,
    /// The text contains a character outside ASCII.
    #[error("the reference contains a character outside ASCII")]
    NotAscii,
    /// The repository contains an upper-case letter.
    #[error("the repository name must be lower case")]
    UpperCase,
    /// 64 hexadecimal digits are an image ID, with or without `sha256:`.
    #[error(
        "an image ID is not a reference: expected REPOSITORY, REPOSITORY:TAG or REPOSITORY@sha256:DIGEST"
    )]
    ImageId,
    /// The registry host is malformed.
    #[error("the registry host is malformed, expected HOST or HOST:PORT")]
    Host,
    /// The repository is malformed.
    #[error(
        "the repository name is malformed, expected lower-case letters and digits, separated by one of . _ __ - or /"
    )]
    Repository,
    /// The tag is malformed.
    #[error(
        "the tag is malformed, expected a letter, digit or _, then up to 127 of letters, digits, _ . and -"
    )]
    Tag,
    /// The digest is malformed.
    #[error("the digest is malformed, expected sha256: and 64 lower-case hexadecimal digits")]
    Digest,
    /// The name exceeds the maximum length.
    #[error("the repository name has more than 255 characters")]
    TooLong,
}

/// A well-formed image reference. It is small, since a large cluster has many.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    written: Arc<str>,
    /// The normalised form: the registry, `/`, the repository, then `:` and the tag or `@` and the digest. If the reference was
    /// written like this, both share one text.
    name: Arc<str>,
    /// Offset of the registry's end in it.
    registry: u8,
    /// Offset of the repository's end in it.
    repository: u16,
    digest: Option<Box<Digest>>,
}

/// The parts of a reference as it was written.
struct Parts<'a> {
    registry: &'a str,
    path: &'a str,
    tag: &'a str,
    digest: Option<Digest>,
}

fn check_characters(text: &str) -> Result<(), ReferenceError> {
    if text.is_empty() {
        return Err(ReferenceError::Empty);
    }
    if text.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(());
    }
    match text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        true => Err(ReferenceError::Blank),
        false => Err(ReferenceError::NotAscii),
    }
}

fn split(text: &str) -> Result<Parts<'_>, ReferenceError> {
    let (registry, rest) = split_registry(text);
    if !is_host(registry) {
        return Err(ReferenceError::Host);
    }
    let (rest, digest) = match split_at(rest, b'@') {
        Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
        None => (rest, None),
    };
    let (path, tag) = match split_at(rest, b':') {
        Some((path, tag)) if is_tag(tag) => (path, tag),
        Some(_) => return Err(ReferenceError::Tag),
        None => (rest, "latest"),
    };
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ReferenceError::UpperCase);
    }
    if !is_path(path) {
        return Err(ReferenceError::Repository);
    }
    if is_image_id(text) {
        return Err(ReferenceError::ImageId);
    }
    Ok(Parts {
        registry,
        path,
        tag,
        digest,
    })
}

impl Reference {
    /// Parses a reference as users write it: `nginx`, `quay.io/org/app:1.2`, `localhost:5000/a@sha256:…`.
    ///
    /// # Errors
    /// [`ReferenceError`] for the first malformed part.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        Self::of(&Arc::from(text))
    }

    /// Parses a shared text without copying it.
    ///
    /// # Errors
    /// [`ReferenceError`] for the first malformed part.
    pub fn of(written: &Arc<str>) -> Result<Self, ReferenceError> {
        let text = &**written;
        check_characters(text)?;
        let Parts {
            registry,
            path,
            tag,
            digest,
        } = split(text)?;
        let library = match registry == DOCKER_HUB && !path.contains('/') {
            true => "library/",
            false => "",
        };
        let repository = library.len() + path.len();
        if repository > REPOSITORY_MAX {
            return Err(ReferenceError::TooLong);
        }
        let repository = registry.len() + 1 + repository;
        let repository = u16::try_from(repository).map_err(|_| ReferenceError::TooLong)?;
        let (mark, version) = match &digest {
            Some(digest) => ("@", digest.as_str()),
            None => (":", tag),
        };
        let parts = [registry, "/", library, path, mark, version];
        let rest = parts
            .iter()
            .try_fold(text, |rest, part| rest.strip_prefix(part));
        Ok(Self {
            written: Arc::clone(written),
            name: match rest {
                Some("") => Arc::clone(written),
                _ => parts.concat().into(),
            },
            registry: u8::try_from(registry.len()).map_err(|_| ReferenceError::TooLong)?,
            repository,
            digest: digest.map(Box::new),
        })
    }

    /// The reference as the user wrote it, which is passed to a runtime.
    pub fn as_written(&self) -> &str {
        &self.written
    }

    /// The registry's host, with its port if given; `docker.io` if the reference has none.
    pub fn registry(&self) -> &str {
        &self.name[..self.registry.into()]
    }

    /// The reference as the user wrote it, with `:latest` if it has neither a tag nor a digest.
    pub fn tagged(&self) -> Cow<'_, str> {
        let written = self.as_written();
        match self.tag() {
            Some("latest") if !written.ends_with(":latest") => format!("{written}:latest").into(),
            _ => written.into(),
        }
    }

    /// Returns whether the user wrote the registry's host; a name without one is Docker Hub's by convention.
    pub fn names_registry(&self) -> bool {
        split_at(self.as_written(), b'/').is_some_and(|(first, _)| looks_like_host(first))
    }

    /// The repository within the registry, such as `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.name[usize::from(self.registry) + 1..self.repository.into()]
    }

    /// Returns whether both have the same registry and repository, regardless of tags and digests.
    pub fn is_same_repository(&self, other: &Self) -> bool {
        self.registry == other.registry
            && self.name[..self.repository.into()] == other.name[..other.repository.into()]
    }

    /// The effective tag: the given one or `latest`; `None` if there is a digest, which overrides the tag.
    pub fn tag(&self) -> Option<&str> {
        match self.digest {
            Some(_) => None,
            None => Some(&self.name[usize::from(self.repository) + 1..]),
        }
    }

    /// The digest, if one was written.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_deref()
    }

    /// The normalised form, equal for equal images: `docker.io/library/nginx:latest`.
    pub fn normalized(&self) -> &str {
        &self.name
    }

    /// The normalised form, without the rest.
    pub fn into_normalized(self) -> Arc<str> {
        self.name
    }

    /// The repository with its tag and digest as written; with `latest` if it has neither.
    fn path(&self) -> Cow<'_, str> {
        let path = &self.name[usize::from(self.registry) + 1..];
        let beside = self.digest.as_ref().and_then(|_| {
            let (name, digest) = self.written.split_once('@')?;
            let last = name.rsplit_once('/').map_or(name, |(_, last)| last);
            Some((last.split_once(':')?.1, digest))
        });
        match beside {
            Some((tag, digest)) => format!("{}:{tag}@{digest}", self.repository()).into(),
            None => path.into(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_written())
    }
}

/// Splits off the registry's host. The first component is a host if it has a dot or a colon or is `localhost`; otherwise the
/// image is Docker Hub's. Newer Go parsers also accept an upper-case word as a host; containerd 1.6 and Docker 20.10 reject it.
/// harpoon rejects it too, because the same list must mean the same on every node.
fn split_registry(text: &str) -> (&str, &str) {
    let (registry, rest) = match split_at(text, b'/') {
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        _ => (DOCKER_HUB, text),
    };
    (canonical_host(registry), rest)
}

/// The host that serves a registry's images, with its port: Docker Hub's differs from the name in references.
pub(crate) fn served_at(registry: &str) -> &str {
    if registry == DOCKER_HUB {
        DOCKER_HUB_SERVER
    } else {
        registry
    }
}

fn looks_like_host(component: &str) -> bool {
    component.bytes().any(|b| b == b'.' || b == b':') || component == "localhost"
}

fn canonical_host(host: &str) -> &str {
    if host == DOCKER_HUB_INDEX {
        DOCKER_HUB
    } else {
        host
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else {
                return false;
            };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            match port {
                "" => return true,
                port => match port.strip_prefix(':') {
                    Some(port) => ("ipv6", Some(port)),
                    None => return false,
                },
            }
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    port.is_none_or(|p| p.parse::<u16>().is_ok() && p.bytes().all(|b| b.is_ascii_digit()))
        && name.split('.').all(|label| {
            let bytes = label.as_bytes();
            bytes
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
                && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
                && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// Components separated by `/`, each of `[a-z0-9]+` runs that are separated by one dot, one or two underscores, or any number
/// of dashes.
fn is_path(path: &str) -> bool {
    let is_run = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (mut last, mut alike) = (b'/', 1);
    for b in path.bytes() {
        let goes_on = b == last && (b == b'-' || b == b'_' && alike == 1);
        let separates = is_run(last) && matches!(b, b'.' | b'_' | b'-' | b'/');
        if !(is_run(b) || goes_on || separates) {
            return false;
        }
        alike = if b == last { alike + 1 } else { 1 };
        last = b;
    }
    is_run(last)
}

/// The text before and after the first such byte, which is ASCII. For a text as short as a reference this is faster than
/// `split_once`.
fn split_at(text: &str, mark: u8) -> Option<(&str, &str)> {
    let at = text.bytes().position(|b| b == mark)?;
    Some((&text[..at], &text[at + 1..]))
}

fn is_image_id(text: &str) -> bool {
    let text = text.strip_prefix("sha256:").unwrap_or(text);
    text.len() == 64 && text.bytes().all(is_lower_hex)
}

pub(crate) fn is_lower_hex(b: u8) -> bool {
    b.is_ascii_digit() || (b'a'..=b'f').contains(&b)
}

/// A prefix of image references, for `--only` and `--ignore`.
///
/// The registry's host must be complete, so that `registry.example` does not match `registry.example.org`, and is
/// case-insensitive. After the host, any beginning of `repository:tag` matches. A prefix without a host is one of Docker Hub,
/// like a reference: `nginx` means `docker.io/library/nginx`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    written: String,
    /// The host in lower case, and the beginning of the text after it.
    of_registry: Option<(String, String)>,
    /// The beginning of the text after Docker Hub's host. One word may be either: `nginx.io` is a host or a repository.
    of_hub: Option<String>,
}

impl Prefix {
    /// Parses a prefix; `None` if no reference can start with it.
    pub fn parse(text: &str) -> Option<Self> {
        let host = |host: &str| {
            let lower = host.to_ascii_lowercase();
            (looks_like_host(&lower) && is_host(&lower)).then(|| canonical_host(&lower).to_owned())
        };
        let (of_registry, of_hub) = match text.split_once('/') {
            Some((first, rest)) if looks_like_host(first) => {
                let fits = rest.is_empty() || begins_path(rest);
                (Some((host(first).filter(|_| fits)?, rest.to_owned())), None)
            }
            _ => {
                let whole = host(text).map(|host| (host, String::new()));
                (whole, begins_path(text).then(|| text.to_owned()))
            }
        };
        (of_registry.is_some() || of_hub.is_some()).then(|| Self {
            written: text.to_owned(),
            of_registry,
            of_hub,
        })
    }

    /// Returns whether the image has this prefix.
    pub fn matches(&self, image: &Reference) -> bool {
        let rest = image.path();
        let lower;
        let registry = match image.registry() {
            host if host.bytes().any(|b| b.is_ascii_uppercase()) => {
                lower = host.to_ascii_lowercase();
                canonical_host(&lower)
            }
            host => host,
        };
        let hub = registry == DOCKER_HUB;
        let begins = |prefix: &str| {
            rest.starts_with(prefix)
                || hub
                    && rest
                        .strip_prefix("library/")
                        .is_some_and(|r| r.starts_with(prefix))
        };
        let of_registry = self
            .of_registry
            .as_ref()
            .is_some_and(|(host, prefix)| registry.eq_ignore_ascii_case(host) && begins(prefix));
        of_registry || hub && self.of_hub.as_deref().is_some_and(begins)
    }
}

/// Returns whether the text after a registry's host can start with this text: a part of the repository, or all of it and a part
/// of the tag or the digest.
fn begins_path(text: &str) -> bool {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    let (path, tag) = match name.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (name, None),
    };
    let is_digest = |digest: &str| {
        digest
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b':')
    };
    match (tag, digest) {
        // Whatever its last character is, one more letter makes it complete.
        (None, None) => is_path(&format!("{path}x")) && !path.is_empty(),
        (Some(""), None) => is_path(path),
        (tag, digest) => is_path(path) && tag.is_none_or(is_tag) && digest.is_none_or(is_digest),
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

#[cfg(test)]
mod tests;
