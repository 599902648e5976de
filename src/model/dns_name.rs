//! DNS names as Kubernetes validates the names of objects. Pure.

/// Returns whether this is a label of RFC 1123 in lower case, as the name of a namespace is.
pub fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_part(text)
}

/// Returns whether this is a subdomain of RFC 1123 in lower case, as the names of most objects are: at most 253 characters.
/// Kubernetes does not limit the length of its parts.
pub fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_part)
}

fn is_part(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let ends_well = !text.starts_with('-') && !text.ends_with('-');
    !text.is_empty() && ends_well && text.bytes().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains_follow_kubernetes() {
        let long = "a".repeat(64);
        let longest = format!("{}.{}", "a".repeat(126), "b".repeat(126));
        for (text, label, subdomain) in [
            ("a", true, true),
            ("0-a", true, true),
            ("a.b", false, true),
            (&long[..63], true, true),
            (&long, false, true),
            (&longest, false, true),
            (&format!("{longest}b"), false, false),
            ("", false, false),
            ("-a", false, false),
            ("a-", false, false),
            ("a..b", false, false),
            (".a", false, false),
            ("A", false, false),
            ("a_b", false, false),
            ("a/b", false, false),
            ("\u{e4}", false, false),
        ] {
            assert_eq!(
                (is_label(text), is_subdomain(text)),
                (label, subdomain),
                "{text}"
            );
        }
    }
}
