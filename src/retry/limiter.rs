//! A limit on the concurrent work for each registry.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::keyed::Keyed;

/// A semaphore for each registry that is in use.
pub(crate) struct RegistryLimiter {
    at_once: usize,
    registries: Keyed<String, Semaphore>,
}

impl RegistryLimiter {
    /// Creates a limiter for this number of concurrent permits at each registry; at least one.
    pub(crate) fn new(at_once: usize) -> Self {
        Self {
            at_once: at_once.max(1),
            registries: Keyed::default(),
        }
    }

    /// The registry's semaphore. The holder of its permit must hold the semaphore, too.
    pub(crate) fn at(&self, registry: &str) -> Arc<Semaphore> {
        let new = || Semaphore::new(self.at_once);
        self.registries.get_or_insert_with(registry.to_owned(), new)
    }
}
