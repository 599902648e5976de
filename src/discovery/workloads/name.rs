//! Decodes texts and fields of objects without allocating more than is kept. Pure.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

/// Kubernetes limits names to 253 characters, labels to 63.
const MAX_NAME: usize = 253;

/// A valid Kubernetes name; `None` if it is absent, too long, or not plain ASCII.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Name(pub(super) Option<Box<str>>);

impl Name {
    pub(super) fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }

    /// Returns whether this pull policy is `Always`. The API server sets `Always` itself if a template has no policy and the tag
    /// is `latest`.
    pub(super) fn is_always(&self) -> bool {
        self.as_str() == "Always"
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        let plain = !text.is_empty()
            && text.len() <= MAX_NAME
            && text.bytes().all(|b| b.is_ascii_graphic());
        Self(plain.then(|| text.into()))
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text::default())
    }
}

/// Parses a `T` from a string of any length without copying the string.
pub(super) struct Text<T>(PhantomData<T>);

impl<T> Default for Text<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: for<'a> From<&'a str>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        Ok(text.into())
    }
}

/// The default for `null`, which Go writes for an empty slice.
pub(super) fn or_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}
