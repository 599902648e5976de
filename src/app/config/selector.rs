//! The grammar of label selectors, so that a typing error is told before the cluster is asked.
//!
//! Source: the Kubernetes documentation, "Labels and Selectors", and the API server's parser, which also takes `<`
//! and `>`.

/// What is accepted, for the error.
pub(super) const ACCEPTED: &str =
    "expected a label selector such as app=web,tier!=test,env in (a,b),!legacy";

/// Whether the API server can read the text as a label selector. The empty one selects everything.
pub(super) fn is_valid(text: &str) -> bool {
    text.trim().is_empty()
        || requirements(text).is_some_and(|parts| parts.into_iter().all(is_requirement))
}

/// Splits at the commas that are not within parentheses; `None` where those do not match.
fn requirements(text: &str) -> Option<Vec<&str>> {
    let (mut parts, mut begin, mut within) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match (c, within) {
            ('(', false) => within = true,
            (')', true) => within = false,
            ('(' | ')', _) => return None,
            (',', false) => {
                parts.push(text[begin..at].trim());
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[begin..].trim());
    (!within).then_some(parts)
}

fn is_requirement(text: &str) -> bool {
    if let Some(key) = text.strip_prefix('!') {
        return is_key(key.trim());
    }
    for operator in ["!=", "==", "="] {
        if let Some((key, value)) = text.split_once(operator) {
            return is_key(key.trim()) && is_value(value.trim());
        }
    }
    for operator in ['<', '>'] {
        if let Some((key, value)) = text.split_once(operator) {
            return is_key(key.trim()) && value.trim().parse::<i64>().is_ok();
        }
    }
    match text.split_once('(') {
        Some((left, right)) => {
            let mut words = left.split_whitespace();
            let (key, operator, rest) = (words.next(), words.next(), words.next());
            let values = right.strip_suffix(')');
            key.is_some_and(is_key)
                && matches!(operator, Some("in" | "notin"))
                && rest.is_none()
                && values.is_some_and(|v| v.split(',').all(|v| is_value(v.trim())))
        }
        None => is_key(text),
    }
}

/// Returns whether Kubernetes takes the text for the key of a label or a taint.
pub(super) fn is_key(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let is_prefix = |p: &str| p.len() <= 253 && p.split('.').all(super::is_dns_label);
    !name.is_empty() && is_value(name) && prefix.is_none_or(is_prefix)
}

fn is_value(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        && bytes.first().is_none_or(u8::is_ascii_alphanumeric)
        && bytes.last().is_none_or(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_told_from_typing_errors() {
        for valid in [
            "",
            "app",
            "!app",
            "app=web",
            "app==web",
            "app!=web",
            "app=",
            "a.b/c in (x, y)",
            "tier notin (x),app=web",
            "n>5",
            "example.com/part-of=a_b.c",
        ] {
            assert!(is_valid(valid), "{valid:?}");
        }
        for bad in [
            ",",
            "app=web,",
            "=web",
            "app in",
            "app in x",
            "app in (x",
            "app in x)",
            "app on (x)",
            "a b",
            "app=web!",
            "-a=b",
            "app=$(x)",
            "a/b/c",
            "n>x",
            "app=&limit=1",
        ] {
            assert!(!is_valid(bad), "{bad:?}");
        }
    }
}
