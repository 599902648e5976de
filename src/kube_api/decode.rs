//! Decodes a list while it arrives: passes on one object at a time and never holds a page in memory.
//!
//! The bytes come through a bounded channel from the task that reads the network. When that task is dropped, the channel closes,
//! the JSON ends early, and the decoding thread ends.

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use bytes::{Buf, Bytes};
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use tokio::sync::mpsc;

use super::QUOTED_MAX;
use crate::model::text::one_line;

/// Maximum size of one object in bytes. etcd's own limit is 1.5 MiB, in a denser encoding.
pub(crate) const MAX_OBJECT_BYTES: u64 = 8 << 20;
/// Maximum number of objects in one response, far above any known cluster. The watch cache returns all objects in one response.
const MAX_OBJECTS: usize = 1_000_000;
/// API servers' continue tokens take some hundred bytes.
const MAX_TOKEN: usize = 16 << 10;

/// The metadata of a page.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PageEnd {
    /// The continue token of the next page.
    pub(crate) next: Option<String>,
    /// Number of objects in the page.
    pub(crate) objects: usize,
}

/// The bytes are not a valid list.
#[derive(Debug)]
pub(crate) struct DecodeError(serde_json::Error);

impl DecodeError {
    /// Returns whether the JSON was valid up to its early end.
    pub(crate) fn is_cut(&self) -> bool {
        self.0.is_eof()
    }
}

impl std::error::Error for DecodeError {}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // serde quotes the invalid value, which may be long.
        f.write_str(&one_line(&self.0.to_string(), QUOTED_MAX))
    }
}

/// An object of a list, of which few fields are kept.
pub(crate) trait Element: Sized + Send + 'static {
    /// The context for decoding it.
    type Kind: Copy + Send + 'static;

    /// Decodes one object.
    fn decode<'de, D: Deserializer<'de>>(kind: Self::Kind, from: D) -> Result<Self, D::Error>;
}

/// Receives an object; returns false to stop.
pub(crate) type Sink<'a, E> = &'a mut dyn FnMut(E) -> bool;

/// Decodes one page from the channel into the sink. Blocks.
pub(crate) fn page<E: Element>(
    kind: E::Kind,
    chunks: mpsc::Receiver<Bytes>,
    into: Sink<'_, E>,
) -> Result<PageEnd, DecodeError> {
    let budget = Budget::default();
    let reader = ChunkReader {
        chunks,
        current: Bytes::new(),
        budget: budget.clone(),
    };
    from_reader(
        kind,
        BufReader::with_capacity(16 << 10, reader),
        budget,
        into,
    )
}

pub(crate) fn from_reader<E: Element>(
    kind: E::Kind,
    reader: impl Read,
    budget: Budget,
    into: Sink<'_, E>,
) -> Result<PageEnd, DecodeError> {
    let mut json = serde_json::Deserializer::from_reader(reader);
    let page = ListVisitor { kind, budget, into };
    let end = json.deserialize_map(page).map_err(DecodeError)?;
    json.end().map_err(DecodeError)?;
    Ok(end)
}

/// Number of bytes that the current object may still take.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Rc<Cell<u64>>);

impl Default for Budget {
    fn default() -> Self {
        Self(Rc::new(Cell::new(MAX_OBJECT_BYTES)))
    }
}

impl Budget {
    fn renew(&self) {
        self.0.set(MAX_OBJECT_BYTES);
    }

    pub(crate) fn spend(&self, bytes: usize) -> io::Result<()> {
        let left = self.0.get().checked_sub(bytes as u64);
        self.0.set(left.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "an object is longer than 8 MiB")
        })?);
        Ok(())
    }
}

struct ChunkReader {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
    budget: Budget,
}

impl Read for ChunkReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let len = into.len().min(self.current.len());
        self.budget.spend(len)?;
        self.current.copy_to_slice(&mut into[..len]);
        Ok(len)
    }
}

struct ListVisitor<'a, E: Element> {
    kind: E::Kind,
    budget: Budget,
    into: Sink<'a, E>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Field {
    Metadata,
    Items,
    #[serde(other)]
    Other,
}

#[derive(Default, Deserialize)]
struct ListMeta {
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

impl<'de, E: Element> Visitor<'de> for ListVisitor<'_, E> {
    type Value = PageEnd;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Kubernetes objects")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<PageEnd, A::Error> {
        let mut end = PageEnd::default();
        let mut seen = false;
        while let Some(field) = map.next_key()? {
            match field {
                Field::Metadata => {
                    let meta: Option<ListMeta> = map.next_value()?;
                    let token = meta.and_then(|meta| meta.next);
                    end.next = token.filter(|token| !token.is_empty());
                }
                Field::Items => {
                    seen = true;
                    end.objects += map.next_value_seed(Items(&mut self))?;
                }
                Field::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            self.budget.renew();
        }
        if !seen {
            return Err(de::Error::missing_field("items"));
        }
        match &end.next {
            Some(token) if token.len() > MAX_TOKEN => {
                Err(de::Error::custom("the continue token is too long"))
            }
            _ => Ok(end),
        }
    }
}

/// The array of objects; Go writes `null` for an empty one.
struct Items<'a, 'b, E: Element>(&'a mut ListVisitor<'b, E>);

impl<'de, E: Element> DeserializeSeed<'de> for Items<'_, '_, E> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<usize, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, E: Element> Visitor<'de> for Items<'_, '_, E> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of Kubernetes objects")
    }

    fn visit_unit<F: de::Error>(self) -> Result<usize, F> {
        Ok(0)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<usize, A::Error> {
        let mut objects = 0;
        while items.next_element_seed(Item(self.0))?.is_some() {
            objects += 1;
            if objects > MAX_OBJECTS {
                return Err(de::Error::custom("the page has more than 1000000 objects"));
            }
        }
        Ok(objects)
    }
}

struct Item<'a, 'b, E: Element>(&'a mut ListVisitor<'b, E>);

impl<'de, E: Element> DeserializeSeed<'de> for Item<'_, '_, E> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        self.0.budget.renew();
        let element = E::decode(self.0.kind, from)?;
        if (self.0.into)(element) {
            Ok(())
        } else {
            Err(de::Error::custom("the list is no longer needed"))
        }
    }
}
