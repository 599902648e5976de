//! Interned texts, identified by their index. No I/O.

use std::sync::Arc;

use indexmap::IndexSet;

/// Strings without duplicates, in the order of first appearance.
pub(super) type Strings = IndexSet<Arc<str>>;

/// The index of a text, which is added if it is new.
pub(super) fn intern(strings: &mut Strings, text: &str) -> u32 {
    let known = strings.get_index_of(text);
    index(known.unwrap_or_else(|| strings.insert_full(text.into()).0))
}

pub(super) fn index(len: usize) -> u32 {
    u32::try_from(len).expect("the lists are bounded far below four thousand million objects")
}
