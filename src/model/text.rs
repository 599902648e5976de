//! Sanitizes external text and errors for display: on a terminal, in a log, on one line. Pure.

use std::error::Error;

use indicatif::DecimalBytes;

/// Maximum length of an excerpt in characters.
const EXCERPT_MAX: usize = 500;

/// The whole text, safe to print on a terminal and in one line: control characters, including newlines and the escape character
/// of terminal commands, and characters that reorder text are escaped.
pub fn sanitize(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Returns whether a character is a control character (C0, C1), a line or paragraph separator, reorders text (Unicode's
/// Bidi_Control) or is invisible: one name must not look like another.
pub(crate) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// At most `most` characters of a text, with an ellipsis if it is shortened.
pub(crate) fn clip(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// At most so many bytes of a text, cut between characters, with an ellipsis where something was cut.
pub(crate) fn clip_bytes(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let mut end = max.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

/// At most `most` characters of a text after sanitizing. For external text of any length: no more of it is read than is shown.
pub(crate) fn clip_sanitized(text: &str, most: usize) -> String {
    clip(&sanitize(&clip(text, most)), most)
}

/// The beginning of a text, sanitized. For external text of any length.
pub fn excerpt(text: &str) -> String {
    sanitize(&clip(text, EXCERPT_MAX))
}

/// The beginning of a text of at most `most` characters, with spaces for control characters.
pub(crate) fn one_line(text: &str, most: usize) -> String {
    clip(text.trim(), most).replace(char::is_control, " ")
}

/// The causes of an error, the outermost first, without the error itself.
pub(crate) fn causes<'a>(
    error: &'a (dyn Error + '_),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(error.source(), |&error| error.source())
}

/// Joins the messages of an error and its causes. A cause that the previous message repeats is left out.
pub(crate) fn join_causes(error: String, causes: impl IntoIterator<Item = String>) -> String {
    let mut joined = error;
    for cause in causes {
        if !joined.contains(&cause) {
            joined.push_str(": ");
            joined.push_str(&cause);
        }
    }
    joined
}

/// An error and its causes, each once, on one line.
pub fn chain(error: &dyn Error) -> String {
    let text = join_causes(error.to_string(), causes(error).map(ToString::to_string));
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Bytes in readable form: `70.12 MB`.
pub fn size(bytes: u64) -> String {
    DecimalBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_control_terminal() {
        assert_eq!(
            sanitize("a\u{1b}[31mb\nc\u{202e}d é"),
            "a\\u{1b}[31mb\\nc\\u{202e}d é"
        );
    }

    #[test]
    fn invisible_characters_are_escaped() {
        // OSC, C1's CSI and DCS, every Bidi_Control, zero widths, separators, tags.
        for c in "\u{1b}\u{7}\u{9b}\u{90}\u{9c}\u{61c}\u{200e}\u{202a}\u{202e}\u{2066}\u{2069}\u{200b}\u{200d}\u{feff}\u{2028}\u{2029}\u{85}\u{e0041}\u{7f}\r"
            .chars()
        {
            let shown = sanitize(&format!("a{c}b"));
            assert!(shown.is_ascii() && shown.len() > 3, "{shown:?}");
        }
        assert_eq!(sanitize("größe 한국 😀"), "größe 한국 😀");
    }

    #[test]
    fn excerpt_is_bounded() {
        assert_eq!(excerpt("short"), "short");
        assert_eq!(excerpt(&"é".repeat(900)), format!("{}…", "é".repeat(500)));
    }

    #[test]
    fn repeated_cause_is_shown_once() {
        let causes = ["no such file: x", "no such file", "x", "other"].map(str::to_owned);
        assert_eq!(
            join_causes("failed to open: no such file: x".to_owned(), causes),
            "failed to open: no such file: x: other"
        );
    }

    #[test]
    fn one_line_is_bounded() {
        assert_eq!(one_line(" a\u{1b}[31m\nb ", 300), "a [31m b");
        assert_eq!(one_line("ééé", 2), "éé…");
    }
}
