//! Whose turn it is at a registry: at most so many at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

/// A semaphore for each registry.
pub(crate) struct RegistryLimiter {
    at_once: usize,
    registries: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl RegistryLimiter {
    /// At most so many at once at each registry; at least one.
    pub(crate) fn new(at_once: usize) -> Self {
        Self {
            at_once: at_once.max(1),
            registries: Mutex::default(),
        }
    }

    /// The registry's own.
    pub(crate) fn at(&self, registry: &str) -> Arc<Semaphore> {
        let mut registries = self
            .registries
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Semaphore::new(self.at_once));
        Arc::clone(registries.entry(registry.to_owned()).or_insert_with(new))
    }
}
