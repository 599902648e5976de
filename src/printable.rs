//! Text from outside and errors, made fit to be shown: on a terminal, in a log, on one line. Pure.

use std::error::Error;

use indicatif::DecimalBytes;

/// The longest excerpt, in characters.
const EXCERPT_MAX: usize = 500;

/// The whole text, safe to print on a terminal and in one line: control characters, among them newlines and the escape
/// that begins terminal commands, and the characters that reorder text are written as escapes.
pub fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        let reorders = matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || reorders {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// The beginning of a text, printable; for what may be as long as its author likes.
pub fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT_MAX) {
        Some((end, _)) => format!("{}…", printable(&text[..end])),
        None => printable(text),
    }
}

/// An error and what caused it, each said once, on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Bytes as people read them: `70.12 MB`.
pub fn size(bytes: u64) -> String {
    DecimalBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_cannot_command_a_terminal() {
        assert_eq!(
            printable("a\u{1b}[31mb\nc\u{202e}d é"),
            "a\\u{1b}[31mb\\nc\\u{202e}d é"
        );
    }

    #[test]
    fn an_excerpt_ends() {
        assert_eq!(excerpt("short"), "short");
        assert_eq!(excerpt(&"é".repeat(900)), format!("{}…", "é".repeat(500)));
    }
}
