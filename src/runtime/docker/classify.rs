//! What kind of failure a text of the Docker Engine stands for. Pure.
//!
//! The Engine answers nearly every failed pull with HTTP status 500, or with an error inside a stream that began with
//! 200, so its words have to tell. Those words hold image names, and registries write a part of them: a name or a
//! registry's own prose must not choose the kind. Hence the order here: take away the reference and all URLs, then what
//! the Engine puts around a registry's answer, then look at the code that a registry's answer begins with, and only
//! then for the words of the Engine and of Go's network library.

use crate::model::failure::FailureKind;
use crate::model::failure::FailureKind::*;
use crate::model::reference::Reference;
use crate::runtime::error_kind::{is_full, own_words};

/// Error codes of the distribution specification as the Engine prints them, at the beginning of a registry's answer.
const CODES: &[(&str, FailureKind)] = &[
    ("toomanyrequests", RateLimited),
    ("unauthorized", Unauthorized),
    ("denied", Unauthorized),
    ("manifest unknown", NotFound),
    ("name unknown", NotFound),
    ("unknown blob", NotFound),
    ("blob unknown", NotFound),
    ("invalid repository name", InvalidReference),
    ("name invalid", InvalidReference),
    ("unavailable", Unavailable),
    ("manifest invalid", Other),
    ("unsupported", Other),
    ("unknown", Other),
];

/// Words of the Engine, and of containerd inside newer ones, for what no registry decides.
const OWN_WORDS: &[(&str, FailureKind)] = &[
    ("no matching manifest for ", PlatformMismatch),
    ("no match for platform", PlatformMismatch),
    ("cannot be used on this platform", PlatformMismatch),
    ("does not match the specified platform", PlatformMismatch),
    ("invalid reference format", InvalidReference),
    ("invalid tag format", InvalidReference),
];

/// Words of the Engine, of containerd inside newer ones, and of Go's network library.
const WORDS: &[(&str, FailureKind)] = &[
    ("no basic auth credentials", Unauthorized),
    ("pull access denied", Unauthorized),
    ("authentication required", Unauthorized),
    ("authorization failed", Unauthorized),
    ("access to the resource is denied", Unauthorized),
    ("pull rate limit", RateLimited),
    ("too many requests", RateLimited),
    ("client.timeout exceeded", Timeout),
    ("context deadline exceeded", Timeout),
    ("i/o timeout", Timeout),
    ("tls handshake timeout", Timeout),
    ("connection refused", Unavailable),
    ("connection reset by peer", Unavailable),
    ("connection timed out", Timeout),
    ("broken pipe", Unavailable),
    ("no such host", Unavailable),
    ("server misbehaving", Unavailable),
    ("temporary failure in name resolution", Unavailable),
    ("no route to host", Unavailable),
    ("network is unreachable", Unavailable),
    ("transport connection broken", Unavailable),
    ("expected http 206 from byte range request", Unavailable),
    ("unexpected eof", Unavailable),
];

/// Takes away what an image's name could smuggle in: the reference in its spellings, and all URLs.
pub(super) fn without_reference(message: &str, image: &Reference) -> String {
    let name = format!("{}/{}", image.registry(), image.repository());
    let mut spellings = vec![
        image.as_written().to_owned(),
        super::explicit(image),
        super::name(image).to_owned(),
        image.normalized().to_owned(),
        name,
        image.repository().to_owned(),
        image.registry().to_owned(),
    ];
    // A name of one word is left, since it may be a word of the message too; it stands only where `kind_of` skips it.
    spellings.retain(|s| s.contains(['/', ':', '.', '@']));
    spellings.sort_by_key(|s| std::cmp::Reverse(s.len()));
    let mut text = message.to_owned();
    for scheme in ["http://", "https://"] {
        while let Some(start) = text.find(scheme) {
            let rest = &text[start..];
            let end = rest.find(['"', ' ', '\n']).unwrap_or(rest.len());
            text.replace_range(start..start + end, "");
        }
    }
    for spelling in &spellings {
        text = text.replace(spelling.as_str(), "");
    }
    text
}

/// The kind of a failure, from the HTTP status where the Engine refused the request with one, and its message.
pub(super) fn kind_of(status: Option<u16>, message: &str) -> FailureKind {
    let message = message.to_ascii_lowercase();
    let text = without_frame(message.trim());
    from_registry_status(text)
        .or_else(|| from_code(text))
        .or_else(|| from_words(text))
        .or_else(|| status.and_then(from_status))
        .unwrap_or(Other)
}

/// What is left when the Engine's frame around a registry's or the network's words is taken away.
fn without_frame(message: &str) -> &str {
    let mut text = message;
    loop {
        let rest = text
            .strip_prefix("errors:")
            .or_else(|| text.strip_prefix("error pulling image configuration: "))
            .or_else(|| after(text, "download failed after attempts=", ": "))
            .or_else(|| after(text, "manifest for ", " not found: "))
            .or_else(|| after(text, "get \"", "\": "))
            .or_else(|| after(text, "head \"", "\": "));
        match rest {
            Some(rest) => text = rest.trim_start(),
            None => return text,
        }
    }
}

fn after<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a str> {
    let rest = text.strip_prefix(begin)?;
    rest.split_once(end).map(|(_, rest)| rest)
}

/// The HTTP status of the registry, where the Engine passes it on; what the registry wrote behind it is not looked at.
fn from_registry_status(text: &str) -> Option<FailureKind> {
    let digits = text
        .strip_prefix("received unexpected http status: ")
        .or_else(|| text.strip_prefix("error parsing http "))
        .or_else(|| {
            // containerd's store: `unexpected status from HEAD request to URL: 503 Service Unavailable`. The URL may be gone already.
            let (_, rest) = text.split_once("unexpected status from ")?;
            let (_, rest) = rest.split_once(" request to ")?;
            rest.split_whitespace().find(|word| !word.contains("://"))
        })?;
    match digits.get(..3)?.parse().ok()? {
        // A registry that is broken is as good as one that is away; the Engine itself says 500 to everything.
        500..=599 => Some(Unavailable),
        status => Some(from_status(status).unwrap_or(Other)),
    }
}

fn from_code(text: &str) -> Option<FailureKind> {
    CODES.iter().find_map(|(code, kind)| {
        let rest = text.strip_prefix(code)?;
        (rest.is_empty() || rest.starts_with([':', '\n'])).then_some(*kind)
    })
}

fn from_words(text: &str) -> Option<FailureKind> {
    if is_full(text) {
        return Some(NoSpace);
    }
    let end = text.strip_suffix(": unknown").unwrap_or(text);
    if end == "eof" || end.ends_with(": eof") {
        return Some(Unavailable);
    }
    let own = own_words(text);
    let words = OWN_WORDS.iter().find(|(word, _)| own.contains(word));
    words
        .or_else(|| WORDS.iter().find(|(word, _)| text.contains(word)))
        .map(|(_, kind)| *kind)
        .or_else(|| end.ends_with(": not found").then_some(NotFound))
        .or_else(|| (text.contains("x509: ") || text.contains("tls: ")).then_some(Unavailable))
}

fn from_status(status: u16) -> Option<FailureKind> {
    match status {
        401 | 403 => Some(Unauthorized),
        404 => Some(NotFound),
        408 => Some(Timeout),
        429 => Some(RateLimited),
        502..=504 => Some(Unavailable),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
