//! A hash map cut into shards, each behind its own lock: look-ups by many threads do not meet.

use std::borrow::Borrow;
use std::hash::Hash;

use ahash::RandomState;
use parking_lot::RwLock;
use std::collections::HashMap;

const SHARDS: usize = 64;

/// A concurrent map whose values are cheap to clone (`Arc`, ids).
#[derive(Debug)]
pub struct Sharded<K, V> {
    hasher: RandomState,
    shards: Vec<RwLock<HashMap<K, V, RandomState>>>,
}

impl<K: Hash + Eq, V: Clone> Default for Sharded<K, V> {
    fn default() -> Self {
        let hasher = RandomState::new();
        let shards = (0..SHARDS).map(|_| RwLock::new(HashMap::with_hasher(hasher.clone()))).collect();
        Self { hasher, shards }
    }
}

impl<K: Hash + Eq, V: Clone> Sharded<K, V> {
    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> &RwLock<HashMap<K, V, RandomState>> {
        // Bits from the middle: the map inside finds its place by the low ones, and tells entries apart by the top
        // seven before it looks at them.
        let index = (self.hasher.hash_one(key) >> 40) as usize % SHARDS;
        &self.shards[index]
    }

    /// A copy of the value.
    #[inline]
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.shard(key).read().get(key).cloned()
    }

    /// Put a value in, returning the one that was there.
    pub fn insert(&self, key: K, value: V) -> Option<V> {
        self.shard(&key).write().insert(key, value)
    }

    /// Take a value out.
    pub fn remove<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.shard(key).write().remove(key)
    }

    /// Take a value out if it is the one meant.
    pub fn remove_if<Q: Hash + Eq + ?Sized>(&self, key: &Q, is_it: impl Fn(&V) -> bool)
    where
        K: Borrow<Q>,
    {
        let mut shard = self.shard(key).write();
        if shard.get(key).is_some_and(is_it) {
            shard.remove(key);
        }
    }

    /// All values. For shutdown and statistics only: it walks everything.
    pub fn values(&self) -> Vec<V> {
        self.shards.iter().flat_map(|s| s.read().values().cloned().collect::<Vec<_>>()).collect()
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.read().len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_as_a_map() {
        let map = Sharded::<u64, u64>::default();
        for i in 0..1000 {
            assert_eq!(map.insert(i, i * 2), None);
        }
        assert_eq!((map.len(), map.get(&7)), (1000, Some(14)));
        map.remove_if(&7, |v| *v == 15);
        assert!(map.get(&7).is_some());
        map.remove_if(&7, |v| *v == 14);
        assert_eq!(map.get(&7), None);
    }
}
