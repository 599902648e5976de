//! Matches credentials with images by the kubelet's rules (`pkg/credentialprovider/keyring.go`). Pure.
//!
//! A pattern is a registry's host, in which each part between two dots may be a glob, with an optional port and path. The number
//! of parts and the port must be equal, and the path must be a prefix of the image's. Two cases follow the kubelet's
//! documentation, because its code parses a pattern as a URL and does not match them at all: `?` and `\` in a host, and an IPv6
//! address without a port.

use std::net::Ipv6Addr;

use crate::model::reference::{DOCKER_HUB, DOCKER_HUB_INDEX, Reference};

/// The text is not a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the registry is malformed, expected HOST or HOST:PORT, optionally followed by a path")]
pub struct PatternError;

/// The images that a credential is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    key: String,
    parts: Vec<Vec<char>>,
    port: String,
    path: String,
}

impl Pattern {
    /// A key of a docker config file or of a plugin's answer. A scheme and the path `/v1/` or `/v2/` are ignored.
    ///
    /// # Errors
    /// If the pattern could not match any image.
    pub fn key(text: &str) -> Result<Self, PatternError> {
        let rest = ["https://", "http://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme))
            .unwrap_or(text);
        let (host, path) = split(rest)?;
        let path = match path.get(..4) {
            Some("/v1/" | "/v2/") => path.get(3..).unwrap_or_default(),
            _ => path,
        };
        Self::new(host, if path == "/" { "" } else { path })
    }

    /// One of a plugin's `matchImages`: as written, without a scheme.
    ///
    /// # Errors
    /// If the pattern could not match any image.
    pub fn glob(text: &str) -> Result<Self, PatternError> {
        let (host, path) = split(text)?;
        Self::new(host, path)
    }

    fn new(host: &str, path: &str) -> Result<Self, PatternError> {
        let (name, port) = split_port(host)?;
        Ok(Self {
            key: format!("{host}{path}"),
            parts: parts(name),
            port: port.to_owned(),
            path: path.to_owned(),
        })
    }

    /// Returns whether the pattern matches the image.
    pub fn matches(&self, image: &Reference) -> bool {
        let Ok((name, port)) = split_port(image.registry()) else {
            return false;
        };
        let names = parts(name);
        let path_fits = match self.path.strip_prefix('/') {
            Some(path) => image.repository().starts_with(path),
            None => self.path.is_empty(),
        };
        port == self.port
            && names.len() == self.parts.len()
            && path_fits
            && self.parts.iter().zip(&names).all(|(glob, name)| {
                // An IPv6 address is one part, not a class of characters.
                if name.first() == Some(&'[') {
                    glob == name
                } else {
                    matches_glob(glob, name)
                }
            })
    }

    /// The host and path as written. Of several patterns for an image, the greatest key is used first, so that a longer path
    /// comes before its prefix.
    pub fn as_key(&self) -> &str {
        &self.key
    }

    /// Returns whether this is Docker Hub's own key, which is used for its images if no pattern matches.
    fn is_fallback_for(&self, image: &Reference) -> bool {
        self.key == DOCKER_HUB_INDEX && image.registry() == DOCKER_HUB
    }

    /// Returns whether a lookup of the image could use this pattern.
    pub fn concerns(&self, image: &Reference) -> bool {
        self.matches(image) || self.is_fallback_for(image)
    }
}

/// The items whose pattern matches the image, in the order in which they are tried.
pub fn select<'a, T: 'a>(
    items: impl Iterator<Item = &'a T> + Clone,
    pattern: impl Fn(&T) -> &Pattern,
    image: &Reference,
) -> Vec<&'a T> {
    let mut found: Vec<&T> = items
        .clone()
        .filter(|item| pattern(item).matches(image))
        .collect();
    if found.is_empty() {
        return items
            .filter(|item| pattern(item).is_fallback_for(image))
            .collect();
    }
    found.sort_by(|a, b| pattern(b).key.cmp(&pattern(a).key));
    found
}

/// The host with its port, and the path. Other parts of a URL (user, query, fragment) are ignored.
fn split(text: &str) -> Result<(&str, &str), PatternError> {
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(PatternError);
    }
    let (authority, path) = text.split_at(text.find('/').unwrap_or(text.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, h)| h);
    if host.is_empty() || host.contains(['#', '%']) {
        return Err(PatternError);
    }
    let path = path.split(['?', '#']).next().unwrap_or_default();
    Ok((host, path))
}

fn split_port(host: &str) -> Result<(&str, &str), PatternError> {
    let after_address = host.rfind(']').map_or(0, |i| i + 1);
    let (name, port) = match host.get(after_address..).and_then(|rest| rest.find(':')) {
        Some(at) => {
            let (name, port) = host.split_at(after_address + at);
            (name, port.get(1..).unwrap_or_default())
        }
        None => (host, ""),
    };
    if name.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(PatternError);
    }
    Ok((name, port))
}

fn parts(name: &str) -> Vec<Vec<char>> {
    if is_ipv6(name) {
        vec![name.chars().collect()]
    } else {
        name.split('.').map(|p| p.chars().collect()).collect()
    }
}

fn is_ipv6(name: &str) -> bool {
    name.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|address| address.parse::<Ipv6Addr>().is_ok())
}

/// Go's `filepath.Match`: `*`, `?`, `[a-z]`, `[^a-z]` and `\c`. A malformed glob matches nothing.
fn matches_glob(glob: &[char], text: &[char]) -> bool {
    let (mut g, mut t) = (0, 0);
    // The position to resume at if the text after the last star does not match here: the star then matches one more character.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let rest = glob.get(g..).unwrap_or_default();
        if rest.first() == Some(&'*') {
            g += 1;
            star = Some((g, t));
            continue;
        }
        let next = match (rest.is_empty(), text.get(t)) {
            (true, None) => return true,
            (false, Some(&c)) => one(rest, c),
            _ => None,
        };
        match (next, star) {
            (Some(taken), _) => {
                g += taken;
                t += 1;
            }
            (None, Some((after, from))) if from < text.len() => {
                (g, t) = (after, from + 1);
                star = Some((after, from + 1));
            }
            (None, _) => return false,
        }
    }
}

/// Length of the glob's first term if it matches `c`.
fn one(glob: &[char], c: char) -> Option<usize> {
    match glob {
        ['?', ..] => Some(1),
        ['[', rest @ ..] => class(rest, c).map(|taken| taken + 1),
        ['\\', escaped, ..] => (*escaped == c).then_some(2),
        ['\\'] => None,
        [literal, ..] => (*literal == c).then_some(1),
        [] => None,
    }
}

/// Matches `c` against the ranges of a class, which begin after its bracket.
fn class(ranges: &[char], c: char) -> Option<usize> {
    let negated = ranges.first() == Some(&'^');
    let mut at = usize::from(negated);
    let begin = at;
    let mut hit = false;
    loop {
        if ranges.get(at) == Some(&']') && at > begin {
            return (hit != negated).then_some(at + 1);
        }
        let low = bound(ranges, &mut at)?;
        let high = if ranges.get(at) == Some(&'-') {
            at += 1;
            bound(ranges, &mut at)?
        } else {
            low
        };
        hit |= (low..=high).contains(&c);
    }
}

fn bound(ranges: &[char], at: &mut usize) -> Option<char> {
    let mut c = *ranges.get(*at)?;
    if c == '-' || c == ']' {
        return None;
    }
    if c == '\\' {
        *at += 1;
        c = *ranges.get(*at)?;
    }
    *at += 1;
    Some(c)
}

#[cfg(test)]
mod tests;
