//! A few values that were made last: permutations, which several threads ask for at once.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

/// Keeps the last `most` values.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    most: usize,
    values: Mutex<Vec<(K, Arc<V>)>>,
}

impl<K: Copy + PartialEq + Debug, V> Recent<K, V> {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, values: Mutex::default() }
    }

    /// The value of `key`; `make` must be a pure function of it.
    pub(crate) fn get(&self, key: K, make: impl FnOnce() -> V) -> Arc<V> {
        // Holding the lock while making lets the other threads wait instead of doing the same work.
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, value)) = values.iter().find(|(at, _)| *at == key) {
            return Arc::clone(value);
        }
        let value = Arc::new(make());
        if values.len() >= self.most {
            values.remove(0);
        }
        values.push((key, Arc::clone(&value)));
        value
    }
}
