//! Failure kinds from texts of the Docker Engine. Pure.
//!
//! The Engine answers nearly every failed pull with HTTP status 500, or with an error inside a stream that started with 200, so
//! the text must decide. Registries write a part of it, and a registry's own prose must not choose the kind. Hence the order
//! here: without the image's names, remove the Engine's text around a registry's answer, then check the code at the beginning of
//! that answer, and only then apply the rules for all runtimes.

use super::from_rules;
use super::names::without_image;
use crate::model::failure::FailureKind;
use crate::model::failure::FailureKind::*;
use crate::model::reference::Reference;

/// Error codes of the distribution specification as the Engine prints them at the beginning of a registry's answer.
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

/// Prefixes of the Engine's own texts for a refusal. The registry's text follows them.
const REFUSALS: &[&str] = &[
    "pull access denied",
    "requested access to the resource is denied",
];

/// The kind of a failed pull, from the HTTP status, if the Engine refused the request with one, and its message.
pub(in crate::runtime) fn kind_for(
    status: Option<u16>,
    message: &str,
    image: &Reference,
) -> FailureKind {
    kind_of(status, &without_image(message, image))
}

/// The kind of a message from which the image's names were removed.
fn kind_of(status: Option<u16>, message: &str) -> FailureKind {
    let message = message.to_ascii_lowercase();
    let text = without_frame(message.trim());
    from_registry_status(text)
        .or_else(|| from_code(text))
        .or_else(|| from_rules(text))
        .or_else(|| from_end(text))
        .or_else(|| status.and_then(from_status))
        .unwrap_or(Other)
}

/// The text of a registry or of the network, without the Engine's text around it.
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

/// The kind for the registry's HTTP status, if the Engine passes it on; the registry's text after it is ignored.
fn from_registry_status(text: &str) -> Option<FailureKind> {
    let digits = text
        .strip_prefix("received unexpected http status: ")
        .or_else(|| text.strip_prefix("error parsing http "))
        .or_else(|| {
            // containerd's store: `unexpected status from HEAD request to URL: 503 Service Unavailable`. The URL may have been
            // removed already.
            let (_, rest) = text.split_once("unexpected status from ")?;
            let (_, rest) = rest.split_once(" request to ")?;
            rest.split_whitespace()
                .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        })?;
    match digits.get(..3)?.parse().ok()? {
        // A failing registry is like an unavailable one; the Engine itself uses 500 for everything.
        500..=599 => Some(Unavailable),
        status => Some(from_status(status).unwrap_or(Other)),
    }
}

fn from_code(text: &str) -> Option<FailureKind> {
    if REFUSALS.iter().any(|refusal| text.starts_with(refusal)) {
        return Some(Unauthorized);
    }
    CODES.iter().find_map(|(code, kind)| {
        let rest = text.strip_prefix(code)?;
        (rest.is_empty() || rest.starts_with([':', '\n'])).then_some(*kind)
    })
}

/// The kind of texts with an ending that only the Engine writes.
fn from_end(text: &str) -> Option<FailureKind> {
    let end = text.strip_suffix(": unknown").unwrap_or(text);
    match end {
        "eof" => Some(Unavailable),
        _ => end.ends_with(": not found").then_some(NotFound),
    }
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
#[allow(clippy::unwrap_used)]
mod tests;
