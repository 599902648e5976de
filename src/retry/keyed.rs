//! Values that concurrent tasks share by a key, such as a lock or a limit for each registry.
//!
//! An entry leaves the map when no task holds its value, so that the map contains only entries in use.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

/// Values by a key, each kept for as long as a task holds it.
#[derive(Debug)]
pub(crate) struct Keyed<K, V>(Mutex<HashMap<K, Weak<V>>>);

impl<K, V> Default for Keyed<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V> Keyed<K, V> {
    /// The value that another task holds for the key, otherwise a new one.
    pub(super) fn get_or_insert_with(&self, key: K, new: impl FnOnce() -> V) -> Arc<V> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.retain(|_, value| value.strong_count() > 0);
        let held = shared.get(&key).and_then(Weak::upgrade);
        let value = held.unwrap_or_else(|| Arc::new(new()));
        shared.insert(key, Arc::downgrade(&value));
        value
    }

    /// The value for the key, by default a default value.
    pub(crate) fn get(&self, key: K) -> Arc<V>
    where
        V: Default,
    {
        self.get_or_insert_with(key, V::default)
    }
}

impl<K: Eq + Hash> Keyed<K, tokio::sync::Mutex<()>> {
    /// Waits for the lock of the key.
    pub(crate) async fn lock(&self, key: K) -> OwnedMutexGuard<()> {
        self.get(key).lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lock_excludes_same_key_only() {
        let locks = Keyed::default();
        let brief = Duration::from_millis(1);
        let held = locks.lock("a").await;
        let _other = locks.lock("b").await;
        assert!(tokio::time::timeout(brief, locks.lock("a")).await.is_err());
        drop(held);
        assert!(tokio::time::timeout(brief, locks.lock("a")).await.is_ok());
    }

    #[test]
    fn unused_entries_are_removed() {
        let values = Keyed::<u32, u32>::default();
        let held = values.get(0);
        for key in 1..1000 {
            drop(values.get(key));
        }
        assert!(Arc::ptr_eq(&held, &values.get(0)));
        let entries = || values.0.lock().map(|map| map.len());
        assert_eq!(entries().ok(), Some(1));
    }
}
