//! Sanitizes external error texts for display. Pure.

use super::names::words;

/// An external text, sanitized for display: on one line, without control characters, and without possible credentials in a URL (a
/// password, the signature of a redirect to a blob store).
pub(in crate::runtime) fn tidy(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    for word in words(message.trim()) {
        if let Some(at) = word.find("://") {
            push_url(&mut text, word, at + 3);
        } else {
            text.push_str(word);
        }
    }
    let lines: Vec<&str> = text
        .split(['\n', '\r'])
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join(" ").replace(|c: char| c.is_control(), " ")
}

/// Query parameters that identify the request and are needed to understand a message.
const PLAIN_PARAMETERS: [&str; 4] = ["ns", "scope", "service", "account"];

fn push_url(text: &mut String, url: &str, host_at: usize) {
    let (scheme, rest) = url.split_at(host_at);
    text.push_str(scheme);
    let host_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, rest) = rest.split_at(host_end);
    match host.rsplit_once('@') {
        Some((_, host)) => {
            text.push_str("…@");
            text.push_str(host);
        }
        None => text.push_str(host),
    }
    let Some((path, query)) = rest.split_once('?') else {
        text.push_str(rest);
        return;
    };
    text.push_str(path);
    // Punctuation after a sentence or a chain link is not part of the last value.
    let end = query.trim_end_matches([':', ',', ';', ')', ']']).len();
    let (query, closing) = query.split_at(end);
    for (index, parameter) in query.split('&').enumerate() {
        text.push(if index == 0 { '?' } else { '&' });
        match parameter.split_once('=') {
            Some((name, _)) if !PLAIN_PARAMETERS.contains(&name) => {
                text.push_str(name);
                text.push_str("=…");
            }
            _ => text.push_str(parameter),
        }
    }
    text.push_str(closing);
}
