//! One at a time for each key: those who want the same content wait for each other instead of
//! fetching it twice. Keys are forgotten when nobody holds or awaits them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

type Keys = Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>;

#[derive(Clone, Debug, Default)]
pub(crate) struct Locks {
    keys: Arc<Keys>,
}

/// Holds one key.
#[derive(Debug)]
pub(crate) struct Held {
    // Dropped in this order: what a claim finds on its end is what others hold.
    _guard: OwnedMutexGuard<()>,
    _claim: Claim,
}

#[derive(Debug)]
struct Claim {
    keys: Arc<Keys>,
    key: String,
}

impl Locks {
    /// Waits until nobody else holds the key.
    pub(crate) async fn hold(&self, key: impl Into<String>) -> Held {
        let claim = Claim { keys: self.keys.clone(), key: key.into() };
        let lock = {
            let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            keys.entry(claim.key.clone()).or_default().clone()
        };
        Held { _guard: lock.lock_owned().await, _claim: claim }
    }
}

impl Locks {
    /// Whether somebody holds the key, or waits for it.
    pub(crate) fn is_wanted(&self, key: &str) -> bool {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).contains_key(key)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            keys.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_exclude_and_are_forgotten() {
        let locks = Locks::default();
        let held = locks.hold("a").await;
        let other = locks.hold("b").await;
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(5), locks.hold("a"));
        assert!(waiting.await.is_err());
        assert_eq!(locks.keys.lock().unwrap().len(), 2);
        assert!(locks.is_wanted("b"));
        drop(other);
        assert!(!locks.is_wanted("b"));
        let (next, ()) = tokio::join!(locks.hold("a"), async { drop(held) });
        assert_eq!(locks.keys.lock().unwrap().len(), 1);
        drop(next);
        assert!(locks.keys.lock().unwrap().is_empty());
    }
}
