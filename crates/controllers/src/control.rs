//! What runs around every controller: keys from changes, one at a time, with back-off.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kube::Resource;
use lifecycle::Scope;
use lifecycle::metrics::{Counter, Family};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast::error::RecvError;

use crate::Error;
use crate::cache::{Cache, Change, Key};
use crate::queue::Queue;

/// When to look at a key again although nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// When something changes.
    Changed,
    /// When this time has passed: something becomes true by time alone.
    After(Duration),
}

/// Controller and result.
type Labels = [(&'static str, &'static str); 2];

/// Feeds the queue with `keys(change)` for each change of a kind, and with every object once it is listed.
pub(crate) fn feed<K>(
    scope: &Scope,
    queue: &Queue<Key>,
    cache: &Cache<K>,
    keys: impl Fn(&Change<K>) -> Vec<Key> + Send + Sync + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let (queue, cache) = (queue.clone(), cache.clone());
    scope.spawn("feed", async move {
        let mut changes = cache.subscribe();
        let all = |queue: &Queue<Key>| {
            for now in cache.list("") {
                keys(&Change { before: None, now: Some(now) }).into_iter().for_each(|key| queue.add(key));
            }
        };
        cache.ready().await;
        all(&queue);
        loop {
            match changes.recv().await {
                Ok(change) => keys(&change).into_iter().for_each(|key| queue.add(key)),
                // What was missed is in the cache; what was deleted meanwhile is looked at by its owner's key.
                Err(RecvError::Lagged(_)) => all(&queue),
                Err(RecvError::Closed) => return,
            }
        }
    });
}

/// The change's own key.
pub(crate) fn own<K: Resource>(change: &Change<K>) -> Vec<Key> {
    change.either().take(1).map(|object| Key::of(object.as_ref())).collect()
}

/// Reconciles one key after the other until the task is cancelled.
pub(crate) async fn run<F, Fut>(name: &'static str, queue: Queue<Key>, reconcile: F)
where
    F: Fn(Key) -> Fut,
    Fut: Future<Output = Result<Next, Error>>,
{
    let results = results();
    loop {
        let key = queue.next().await;
        let result = match reconcile(key.clone()).await {
            Ok(next) => {
                queue.succeeded(&key);
                if let Next::After(delay) = next {
                    queue.add_after(key, delay);
                }
                "success"
            }
            Err(error) => {
                // A conflict is the normal answer to a race; the next look sees the winner.
                if matches!(error.code(), Some(409)) {
                    tracing::debug!(controller = name, %key, error = crate::error::chain(&error), "conflict");
                } else {
                    tracing::warn!(controller = name, %key, error = crate::error::chain(&error), "reconcile");
                }
                queue.failed(key);
                "error"
            }
        };
        results.get_or_create(&[("controller", name), ("result", result)]).inc();
    }
}

fn results() -> Arc<Family<Labels, Counter>> {
    static RESULTS: std::sync::LazyLock<Arc<Family<Labels, Counter>>> = std::sync::LazyLock::new(|| {
        let family = Family::<Labels, Counter>::default();
        lifecycle::metrics::register(
            "controller_reconciles",
            "Keys looked at by a controller",
            family.clone(),
        );
        Arc::new(family)
    });
    Arc::clone(&RESULTS)
}
