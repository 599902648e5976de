//! Fuzz targets for the parsers of untrusted input, each with its invariants: it terminates, it does not panic, and its results
//! are consistent. Built only for tests and for fuzzers (`fuzz/`); not part of the program.
//!
//! The tests run each target with its corpus and with some thousand seeded mutations of it.

use std::path::Path;

use crate::credentials::docker_config::DockerConfig;
use crate::credentials::keyring::pattern::Pattern;
use crate::model::digest::Digest;
use crate::model::platform::Platform;
use crate::model::reference::{Prefix, Reference};
use crate::model::text;
use crate::{credentials, discovery, fill, registry, runtime};

/// A fuzz target: its name, which is that of its corpus, and the function that receives the text.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("reference", reference),
    ("images_file", images_file),
    ("docker_config", docker_config),
    ("provider_answer", credentials::provider::fuzz_answer),
    ("list_page", discovery::workloads::fuzz_page),
    ("manifest", registry::manifest::fuzz),
    ("layout_index", runtime::oci::fuzz_index),
    ("layer", fill::unpack::fuzz_layer),
];

/// Passes the text to the target of this name.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    target.expect("a target of the table").1(data);
}

/// An image reference, or a prefix and a reference divided by a newline.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let shown = text::sanitize(text);
    assert!(!shown.chars().any(text::is_unsafe), "{shown:?}");
    assert_eq!(text::sanitize(&shown), shown);
    let _ = Platform::parse(text);
    if let Ok(digest) = Digest::parse(text) {
        // It is used as a path.
        assert!(digest.hex().bytes().all(|b| b.is_ascii_hexdigit()));
    }
    let (prefix, text) = text.split_once('\n').unwrap_or((text, text));
    let Ok(image) = Reference::parse(text) else {
        return;
    };
    assert_eq!(image.as_written(), text);
    assert!(!image.registry().is_empty() && !image.repository().is_empty());
    assert!(image.tag().is_some() != image.digest().is_some());
    let normalized = image.normalized();
    let again = Reference::parse(normalized).expect("what is normalised is a reference");
    assert_eq!(again.normalized(), normalized);
    assert!(again.is_same_repository(&image));
    let _ = Prefix::parse(prefix).map(|prefix| prefix.matches(&image));
    let whole = Prefix::parse(image.registry()).expect("a registry is a prefix");
    assert!(whole.matches(&image));
    if let Ok(pattern) = Pattern::key(prefix) {
        let _ = pattern.concerns(&image);
    }
}

/// An images file.
pub fn images_file(data: &[u8]) {
    let Ok(found) = discovery::images_file::parse(data, Path::new("list")) else {
        return;
    };
    let lines = data.split(|b| *b == b'\n').count();
    assert!(found.len() <= lines);
    for candidate in found {
        let image = candidate.image;
        assert!(!image.is_empty() && image.trim() == &*image && !image.starts_with('#'));
        assert!(!image.contains(['\n', '\0']));
    }
}

/// Docker's configuration, as a secret and in its older form.
pub fn docker_config(data: &[u8]) {
    let image = Reference::parse("registry.example/team/app:1").expect("a reference");
    let configs = [
        DockerConfig::parse("secret a/b", data),
        DockerConfig::parse_legacy("secret a/b", data),
    ];
    for config in configs {
        match config {
            Ok(config) => config.fuzz(&image),
            // No error quotes a possible password.
            Err(error) => assert!(error.to_string().len() < 200, "{error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// Number of mutations of a corpus for each target; `FUZZ_MUTATIONS=N` overrides it.
    const MUTATIONS: usize = 3000;
    const SEED: u64 = 0x6861_7270_6f6f_6e00;
    /// Tokens of the grammars.
    const WORDS: &[&[u8]] = &[
        b"\0",
        b"\xff",
        b"\n",
        b"\"",
        b"\\u0000",
        b"\\ud800",
        b"{}",
        b"[]",
        b"null",
        b"-1",
        b"1e999",
        b"18446744073709551616",
        b"://",
        b"@sha256:",
        b":",
        b"/",
        b"..",
        b"\xe2\x80\xae",
        b"\x1b[2J",
    ];

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(target);
        let mut files: Vec<_> = fs::read_dir(&dir)
            .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!(files.len() > 3, "{}: {files:?}", dir.display());
        files.iter().map(|file| fs::read(file).unwrap()).collect()
    }

    /// Applies one to eight small damages, or appends the end of another text.
    fn mutate(random: &mut fastrand::Rng, texts: &[Vec<u8>]) -> Vec<u8> {
        let mut text = random.choice(texts).unwrap().clone();
        for _ in 0..random.usize(1..=8) {
            let at = random.usize(0..=text.len());
            let to = random.usize(at..=text.len()).min(at + 64);
            match random.u8(0..7) {
                0 if at < text.len() => text[at] ^= 1 << random.u8(0..8),
                1 if at < text.len() => text[at] = random.u8(..),
                2 => _ = text.splice(at..at, random.choice(WORDS).unwrap().iter().copied()),
                3 => _ = text.splice(at..to, random.choice(WORDS).unwrap().iter().copied()),
                4 => _ = text.drain(at..to),
                5 => {
                    let piece = text[at..to].repeat(random.usize(1..20));
                    text.splice(at..at, piece);
                }
                _ => {
                    let other = random.choice(texts).unwrap();
                    text.truncate(at);
                    text.extend_from_slice(&other[random.usize(0..=other.len())..]);
                }
            }
        }
        text
    }

    #[test]
    fn hostile_texts_never_panic() {
        let mutations = std::env::var("FUZZ_MUTATIONS").map_or(MUTATIONS, |n| n.parse().unwrap());
        for (name, _) in TARGETS {
            let texts = corpus(name);
            let mut random = fastrand::Rng::with_seed(SEED);
            let mutations = (0..mutations).map(|_| mutate(&mut random, &texts));
            for text in texts.iter().cloned().chain(mutations) {
                if catch_unwind(AssertUnwindSafe(|| run(name, &text))).is_err() {
                    panic!("{name}, seed {SEED:#x}: b\"{}\"", text.escape_ascii());
                }
            }
        }
    }

    /// Each target has a fuzzer, and no fuzzer is left over.
    #[test]
    fn every_target_has_its_fuzzer() {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/Cargo.toml");
        let manifest = fs::read_to_string(manifest).unwrap();
        let named: Vec<_> = manifest
            .lines()
            .filter_map(|line| {
                line.strip_prefix("path = \"fuzz_targets/")?
                    .strip_suffix(".rs\"")
            })
            .collect();
        let targets: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
        assert_eq!(named, targets);
    }
}
