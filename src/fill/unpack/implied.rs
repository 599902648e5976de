//! Directories that a layer uses without containing them: their metadata comes from the layers below.

use std::collections::{BTreeMap, BTreeSet};

/// Memory of one record, beside its path.
const RECORD: usize = 96;

/// Record of an implied directory.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Implied {
    /// The layer names it later than it uses it: only the attributes come from below.
    pub(super) is_named: bool,
    /// Something was created or removed in it, so that its time of modification is that of the unpacking.
    pub(super) is_changed: bool,
    /// Its parent was implied too when this one was created, and may hand down its group.
    pub(super) is_in_implied: bool,
}

/// The implied directories by path.
#[derive(Debug, Default)]
pub(super) struct ImpliedDirectories {
    records: BTreeMap<Vec<u8>, Implied>,
    memory: usize,
}

impl ImpliedDirectories {
    pub(super) fn insert(&mut self, path: &[u8], record: Implied) {
        self.memory += RECORD + path.len();
        self.records.insert(path.to_vec(), record);
    }

    pub(super) fn get_mut(&mut self, path: &[u8]) -> Option<&mut Implied> {
        self.records.get_mut(path)
    }

    pub(super) fn get(&self, path: &[u8]) -> Option<&Implied> {
        self.records.get(path)
    }

    /// Forgets a path and everything beneath it.
    pub(super) fn remove(&mut self, path: &[u8]) {
        for gone in self.beneath(path) {
            self.records.remove(&gone);
            self.memory = self.memory.saturating_sub(RECORD + gone.len());
        }
        if self.records.remove(path).is_some() {
            self.memory = self.memory.saturating_sub(RECORD + path.len());
        }
    }

    /// The topmost directories beneath `path` that the layer does not name.
    pub(super) fn topmost_unnamed(&self, path: &[u8]) -> BTreeSet<Vec<u8>> {
        let mut topmost = BTreeSet::new();
        for path in self.beneath(path) {
            let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/');
            // Not only the last one: `a-b` is between `a` and `a/b`.
            let is_covered = slashes
                .into_iter()
                .any(|(at, _)| topmost.contains(&path[..at]));
            if !is_covered && !self.records[&path].is_named {
                topmost.insert(path);
            }
        }
        topmost
    }

    fn beneath(&self, path: &[u8]) -> Vec<Vec<u8>> {
        if path.is_empty() {
            return self.records.keys().cloned().collect();
        }
        // `/` is followed by `0`.
        let (from, to) = ([path, b"/"].concat(), [path, b"0"].concat());
        let beneath = self.records.range(from..to);
        beneath.map(|(path, _)| path.clone()).collect()
    }

    /// All of them, parents first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &Implied)> {
        self.records.iter().map(|(path, record)| (&**path, record))
    }

    pub(super) fn memory(&self) -> usize {
        self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_beneath_are_found() {
        let mut all = ImpliedDirectories::default();
        for path in [
            "a",
            "a/b",
            "a/b/c",
            "a-b",
            "a0",
            "ab/c",
            "a/named",
            "a/named/x",
        ] {
            let is_named = path.ends_with("named");
            let record = Implied {
                is_named,
                ..Implied::default()
            };
            all.insert(path.as_bytes(), record);
        }
        let topmost = all.topmost_unnamed(b"a");
        let expected = [b"a/b".to_vec(), b"a/named/x".to_vec()];
        assert_eq!(topmost, BTreeSet::from(expected));
        assert_eq!(all.topmost_unnamed(b"").len(), 4);
        all.remove(b"a");
        let left: Vec<_> = all.iter().map(|(path, _)| path.to_vec()).collect();
        assert_eq!(left, [b"a-b".to_vec(), b"a0".to_vec(), b"ab/c".to_vec()]);
        for path in left {
            all.remove(&path);
        }
        assert_eq!((all.iter().count(), all.memory()), (0, 0));
    }
}
