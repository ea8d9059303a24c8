//! The keys that a controller has to look at: each at most once in the queue, at most once at work.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// First wait after a failure; doubled by each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(5);
/// Longest wait after a failure.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// A queue of keys; clones are the same queue. It is bounded by the number of objects, as keys are unique.
pub(crate) struct Queue<Key> {
    inner: Arc<Inner<Key>>,
}

impl<Key> Clone for Queue<Key> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

struct Inner<Key> {
    state: Mutex<State<Key>>,
    changed: Notify,
}

struct State<Key> {
    ready: BTreeSet<Key>,
    later: BTreeMap<(Instant, u64), Key>,
    failures: HashMap<Key, u32>,
    sequence: u64,
}

impl<Key: Clone + Ord + Hash> Queue<Key> {
    pub(crate) fn new() -> Self {
        let state =
            State { ready: BTreeSet::new(), later: BTreeMap::new(), failures: HashMap::new(), sequence: 0 };
        Self { inner: Arc::new(Inner { state: Mutex::new(state), changed: Notify::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, State<Key>> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key is to be looked at now.
    pub(crate) fn add(&self, key: Key) {
        self.state().ready.insert(key);
        self.inner.changed.notify_one();
    }

    /// The key is to be looked at in `delay`, because something is due then.
    pub(crate) fn add_after(&self, key: Key, delay: Duration) {
        let mut state = self.state();
        state.sequence += 1;
        let due = (Instant::now() + delay, state.sequence);
        state.later.insert(due, key);
        drop(state);
        self.inner.changed.notify_one();
    }

    /// The key failed: it comes again after a back-off.
    pub(crate) fn failed(&self, key: Key) {
        let failures = {
            let mut state = self.state();
            let failures = state.failures.entry(key.clone()).or_default();
            *failures = failures.saturating_add(1);
            *failures
        };
        self.add_after(key, backoff(failures));
    }

    /// The key was brought to its desired state: its next failure starts at the shortest back-off.
    pub(crate) fn succeeded(&self, key: &Key) {
        self.state().failures.remove(key);
    }

    /// The next key, when there is one.
    pub(crate) async fn next(&self) -> Key {
        loop {
            let due = {
                let mut state = self.state();
                let now = Instant::now();
                while let Some(first) = state.later.first_entry().filter(|first| first.key().0 <= now) {
                    let key = first.remove();
                    state.ready.insert(key);
                }
                if let Some(key) = state.ready.pop_first() {
                    return key;
                }
                state.later.keys().next().map(|(due, _)| *due)
            };
            match due {
                None => self.inner.changed.notified().await,
                Some(due) => {
                    let _ = tokio::time::timeout_at(due, self.inner.changed.notified()).await;
                }
            }
        }
    }
}

fn backoff(failures: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn keys_are_unique_and_failures_back_off() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        for milliseconds in [5, 10, 20] {
            queue.failed("a");
            let before = Instant::now();
            assert_eq!(queue.next().await, "a");
            assert_eq!(before.elapsed().as_millis(), milliseconds);
        }
        queue.succeeded(&"a");
        queue.add_after("b", Duration::from_secs(1));
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        assert_eq!(queue.next().await, "b");
        assert_eq!(backoff(100), BACKOFF_MAX);
    }
}
