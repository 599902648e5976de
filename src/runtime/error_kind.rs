//! Failure kinds from error texts. The runtimes return little more than a text (CRI errors are mostly gRPC `Unknown`), so the
//! text decides; a status code is used only if the text gives no kind.
//!
//! Image names are untrusted and occur in these texts, so they are removed before a rule is applied. Pure: no I/O; the displayed
//! text is never shortened here.
//!
//! [`RULES`] apply to every source. The rules for the Docker Engine's own text are in `docker.rs`.

use crate::model::failure::FailureKind;
use crate::model::reference::Reference;
use names::without_image;

pub(super) mod docker;
mod names;
mod tidy;

pub(super) use tidy::tidy;

/// The system's errors for a full store, as Go prints them at the end of a chain: `write PATH: no space left on device`.
const FULL: [&str; 2] = ["no space left on device", "disk quota exceeded"];

/// Phrases that a registry's own text may follow: the status line and the body of its answers, the message after an error code of
/// the distribution specification, and text that CRI-O's image library reads from a registry.
const REGISTRY_PROSE: &[&str] = &[
    "server message:",
    "unexpected status",
    "status code",
    "http status",
    "error parsing http",
    "error from registry:",
    "access denied",
    "access to the resource is denied",
    "authentication required",
    "unauthorized:",
    "denied:",
    "toomanyrequests:",
    "unsupported:",
    "unavailable:",
    "unverified:",
    "invalid:",
    "unknown: ",
    "reading manifest",
    "fetching blob",
    "requesting bearer token",
];

/// Phrases of lower-case texts and their kinds. The first row with a phrase in the text decides. The order matters, because texts
/// are chains (`failed to …: unexpected status …: 503 Service Unavailable`) and the more specific link must win.
///
/// Docker Hub answers `pull access denied, repository does not exist or may require authorization` both for private and for
/// missing repositories. It counts as `unauthorized`: credentials may help, and neither is retried. An untrusted certificate is
/// `unavailable`: no trusted registry was reached. A pull that the runtime itself cancelled (containerd's
/// `image_pull_progress_timeout`) is a `timeout`.
const RULES: &[(FailureKind, &[&str])] = &[
    (
        FailureKind::SignatureRejected,
        &[
            "source image rejected",
            "signaturevalidationfailed",
            "signature was required",
            "signature verification failed",
            "signature validation failed",
            "rejected by policy",
        ],
    ),
    (
        FailureKind::PlatformMismatch,
        &[
            "no match for platform",
            "no matching manifest for",
            "no image found in manifest list for architecture",
            "no image found in image index for architecture",
            "does not match the specified platform",
            "cannot be used on this platform",
            "no supported platform found",
        ],
    ),
    (
        FailureKind::RateLimited,
        &[
            "toomanyrequests",
            "too many requests",
            "pull rate limit",
            "rate limit exceeded",
            "rate exceeded",
            "status code 429",
            "status: 429",
            "status 429",
        ],
    ),
    (
        FailureKind::InvalidReference,
        &[
            "invalid reference format",
            "invalid tag format",
            "failed to parse image reference",
            "repository name must be lowercase",
            "repository name must be canonical",
            "repository name must not be longer",
            "invalid checksum digest",
            "unsupported digest algorithm",
            "did not resolve to an alias",
            "short name mode is enforcing",
            "short-name resolution enforced",
        ],
    ),
    (
        FailureKind::Unavailable,
        &[
            "internal server error",
            "bad gateway",
            "service unavailable",
            "gateway time",
            "status code 5",
            "status code from registry 5",
            "http status: 5",
            "registryunavailable",
            "x509:",
            "certificate",
        ],
    ),
    (
        FailureKind::Timeout,
        &[
            "deadline exceeded",
            "deadlineexceeded",
            "i/o timeout",
            "tls handshake timeout",
            "client.timeout exceeded",
            "timeout awaiting",
            "connection timed out",
            "operation timed out",
            "timed out",
            "408 request timeout",
            "no progress",
            "context canceled",
        ],
    ),
    (
        FailureKind::Unavailable,
        &[
            "connection refused",
            "connection reset",
            "connection closed",
            "closed network connection",
            "broken pipe",
            "unexpected eof",
            ": eof",
            "no such host",
            "server misbehaving",
            "failure in name resolution",
            "network is unreachable",
            "no route to host",
            "host is down",
            "host is unreachable",
            "remote error: tls",
            "tls: ",
            "tls handshake",
            "server gave http response to https client",
            "malformed http response",
            "server closed idle connection",
            "stream error",
            "goaway",
            "proxyconnect",
            "failed size validation",
            "transport is closing",
            "transport error",
            "transport connection broken",
            "expected http 206 from byte range request",
        ],
    ),
    (
        FailureKind::Unauthorized,
        &[
            "pull access denied",
            "access denied",
            "access forbidden",
            "requested access to the resource is denied",
            "insufficient_scope",
            "authorization failed",
            "authentication required",
            "authentication failed",
            "no basic auth credentials",
            "incorrect username or password",
            "unauthorized",
            "not authorized",
            "forbidden",
            "no pull access",
            "registry denied",
            "denied:",
            ": denied",
            "status code 401",
            "status code 403",
        ],
    ),
    (
        FailureKind::NotFound,
        &[
            "manifest unknown",
            "manifest_unknown",
            "name unknown",
            "name_unknown",
            "manifest not found",
            "repository not found",
            "repo not found",
            "repository name not known",
            "repository does not exist",
            "404 not found",
            "404 (not found)",
            "status code 404",
            "blob unknown",
            "from remote: not found",
        ],
    ),
];

/// The runtime's own part of a lower-case text: everything before the registry's text.
fn own_words(text: &str) -> &str {
    let ends = REGISTRY_PROSE.iter().filter_map(|phrase| text.find(phrase));
    &text[..ends.min().unwrap_or(text.len())]
}

/// Returns whether a lower-case text reports that the node's store is full. This ends a run, so neither a registry's text nor the
/// name of a file in a layer is enough: the runtime's own text must end with the system's error.
pub(super) fn is_full(text: &str) -> bool {
    let end = text.strip_suffix(": unknown").unwrap_or(text);
    let mut before = FULL.iter().filter_map(|error| end.strip_suffix(error));
    own_words(text) == text && before.any(|text| text.is_empty() || text.ends_with(": "))
}

/// Returns whether a pull failed after the registry had sent bytes, according to the runtime's text. containerd's content API is
/// polled too rarely to show that, and Docker with containerd's image store shows no progress of a small layer.
pub(super) fn came(message: &str) -> bool {
    // containerd's texts, then those of CRI-O's image library.
    const WORDS: [&str; 8] = [
        "failed to extract layer",
        "failed to unpack",
        "failed commit on ref",
        "unexpected commit digest",
        "writing blob",
        "storing blob",
        "committing the finished image",
        "adding layer with blob",
    ];
    WORDS.iter().any(|words| message.contains(words))
}

/// Returns whether a kind can only occur on the node, not in a registry.
fn is_local(kind: FailureKind) -> bool {
    matches!(
        kind,
        FailureKind::SignatureRejected
            | FailureKind::PlatformMismatch
            | FailureKind::InvalidReference
    )
}

/// The kind of failure for a text from which [`without_image`] removed the image's name.
fn kind_of(message: &str) -> FailureKind {
    from_rules(&message.trim().to_ascii_lowercase()).unwrap_or(FailureKind::Other)
}

/// The kind that [`RULES`] give for a text in lower case; `None` if no rule applies.
fn from_rules(text: &str) -> Option<FailureKind> {
    if is_full(text) {
        return Some(FailureKind::NoSpace);
    }
    let own = own_words(text);
    let says = |kind, phrase: &str| if is_local(kind) { own } else { text }.contains(phrase);
    RULES
        .iter()
        .find(|(kind, phrases)| phrases.iter().any(|phrase| says(*kind, phrase)))
        .map(|(kind, _)| *kind)
        .or_else(|| unresolved(text).then_some(FailureKind::NotFound))
}

/// Returns whether a text is containerd's bare `not found` for a registry's answer 404. Its own store uses the same words for a
/// blob or a snapshot that was removed, which a retry can repair.
fn unresolved(text: &str) -> bool {
    let asked = text.contains("failed to resolve") || text.contains("failed open: content at");
    asked && text.trim_end().ends_with("not found")
}

/// The kind of failure for a text that may contain the image's name.
pub(super) fn kind_for(message: &str, image: &Reference) -> FailureKind {
    kind_of(&without_image(message, image))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
