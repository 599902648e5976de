//! Removal of the image's names from an error text, so that a name cannot decide the kind of a failure. Pure.

use crate::model::reference::{DOCKER_HUB, Reference};

/// The text without the image's names: URLs, and every word that contains its repository or its registry's host.
///
/// The tag, and a repository of one word, are removed only where the text refers to them: a tag named `unauthorized` must not
/// decide, and must not hide a real `401 Unauthorized` either.
pub(super) fn without_image(message: &str, image: &Reference) -> String {
    let names = Names::of(image);
    let mut kept = String::with_capacity(message.len());
    let mut previous = "";
    let mut quoted = false;
    for word in words(message) {
        if word.starts_with(separates) {
            quoted = !word.starts_with(char::is_whitespace);
            kept.push_str(word);
            continue;
        }
        if names.are_in(word, previous, quoted) {
            // The last character of the word may separate two errors of a chain.
            let end = word.trim_end_matches([':', ',', ';', ']', ')', '.']).len();
            kept.push_str(&word[end..]);
        } else {
            kept.push_str(word);
        }
        previous = word;
    }
    kept
}

/// The names of one image, in lower case, as they occur in an error text.
struct Names {
    repository: String,
    familiar: String,
    registry: String,
    tag: Option<String>,
}

impl Names {
    fn of(image: &Reference) -> Self {
        let repository = image.repository().to_ascii_lowercase();
        let hub = image.registry() == DOCKER_HUB;
        let familiar = repository
            .strip_prefix("library/")
            .filter(|_| hub)
            .unwrap_or(&repository)
            .to_owned();
        // A digest overrides a tag, but the runtime may quote both.
        let tag = image.tag().map(str::to_ascii_lowercase).or_else(|| {
            let name = image.as_written().split('@').next()?;
            let (_, tag) = name
                .rsplit_once('/')
                .unwrap_or(("", name))
                .1
                .split_once(':')?;
            Some(tag.to_ascii_lowercase())
        });
        Self {
            repository,
            familiar,
            registry: image.registry().to_ascii_lowercase(),
            tag,
        }
    }

    fn are_in(&self, word: &str, previous: &str, quoted: bool) -> bool {
        let word = word.to_ascii_lowercase();
        if word.contains("://") || word.contains(&self.registry) {
            return true;
        }
        if self.familiar.contains('/') && word.contains(&self.familiar) {
            return true;
        }
        if word.contains('/') && word.contains(&self.repository) {
            return true;
        }
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let previous = previous.to_ascii_lowercase();
        let named = quoted
            || matches!(
                previous.as_str(),
                "for"
                    | "image"
                    | "manifest"
                    | "tag"
                    | "in"
                    | "from"
                    | "reference"
                    | "repository"
                    | "lookup"
            );
        let begins = |rest: &str| rest.starts_with(':') || rest.starts_with('@');
        if bare
            .strip_prefix(&self.familiar)
            .is_some_and(|rest| begins(rest) || rest.is_empty() && named)
        {
            return true;
        }
        self.tag.as_ref().is_some_and(|tag| {
            bare == tag && named
                || bare
                    .strip_suffix(tag.as_str())
                    .is_some_and(|rest| rest.ends_with(':') && rest.len() > 1)
        })
    }
}

fn separates(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '\\')
}

/// Splits at white space, quotes and backslashes, and keeps these: the joined words equal the text.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(separates).flat_map(|piece| {
        let at = piece
            .char_indices()
            .next_back()
            .filter(|(_, c)| separates(*c))
            .map_or(piece.len(), |(at, _)| at);
        let (word, separator) = piece.split_at(at);
        [word, separator].into_iter().filter(|w| !w.is_empty())
    })
}
