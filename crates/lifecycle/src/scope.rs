//! The owner of tasks.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Owns tasks and child scopes. Clones are the same scope; when the last one is dropped its tasks are cancelled.
#[derive(Clone, Debug)]
pub struct Scope {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    token: CancellationToken,
    tracker: TaskTracker,
    running: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    next: u64,
    tasks: BTreeMap<u64, (String, AbortHandle)>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

impl Scope {
    /// A scope with no parent.
    pub fn new(name: impl Into<String>) -> Self {
        Self::with_token(name.into(), CancellationToken::new())
    }

    /// A scope that is cancelled when this one is, but can be shut down by itself.
    pub fn child(&self, name: &str) -> Self {
        let child = Self::with_token(format!("{}/{name}", self.inner.name), self.inner.token.child_token());
        // The parent's shutdown waits for the child's tasks too.
        let tracker = child.inner.tracker.clone();
        let token = child.inner.token.clone();
        self.track(&child.inner.name.clone(), async move {
            token.cancelled().await;
            tracker.close();
            tracker.wait().await;
        });
        child
    }

    fn with_token(name: String, token: CancellationToken) -> Self {
        let inner = Inner { name, token, tracker: TaskTracker::new(), running: Arc::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Cancelled when the scope is shut down, or dropped.
    pub fn token(&self) -> CancellationToken {
        self.inner.token.clone()
    }

    /// Whether the scope was told to stop.
    pub fn is_cancelled(&self) -> bool {
        self.inner.token.is_cancelled()
    }

    /// Resolves when the scope is told to stop.
    pub async fn cancelled(&self) {
        self.inner.token.cancelled().await;
    }

    /// Tells tasks and children to stop; does not wait.
    pub fn cancel(&self) {
        self.inner.token.cancel();
    }

    /// Runs `future` until it ends or the scope is cancelled, whichever comes first. A task that has to clean up
    /// takes [`Scope::token`] and is started by [`Scope::spawn_graceful`].
    pub fn spawn(&self, name: &str, future: impl Future<Output = ()> + Send + 'static) {
        let token = self.token();
        self.track(name, async move {
            token.run_until_cancelled(future).await;
        });
    }

    /// Runs `future` to its end; it watches [`Scope::token`] itself.
    pub fn spawn_graceful(&self, name: &str, future: impl Future<Output = ()> + Send + 'static) {
        self.track(name, future);
    }

    fn track(&self, name: &str, future: impl Future<Output = ()> + Send + 'static) {
        let done = Arc::clone(&self.inner.running);
        // Held across the spawn, so that the task cannot take its name off before it is on.
        let mut running = lock(&self.inner.running);
        running.next += 1;
        let id = running.next;
        let handle = self.inner.tracker.spawn(async move {
            let _remove = Remove { id, running: done };
            future.await;
        });
        running.tasks.insert(id, (name.to_owned(), handle.abort_handle()));
    }

    /// Tells every task to stop and waits for them, at most `deadline`. What has not ended by then is aborted, and
    /// named in the answer.
    pub async fn shutdown(&self, deadline: Duration) -> Vec<String> {
        self.inner.token.cancel();
        self.inner.tracker.close();
        if tokio::time::timeout(deadline, self.inner.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        let running = lock(&self.inner.running);
        let mut names = Vec::new();
        for (name, handle) in running.tasks.values() {
            if !handle.is_finished() {
                handle.abort();
                names.push(name.clone());
            }
        }
        tracing::warn!(scope = self.inner.name, tasks = ?names, "tasks did not end in time");
        names
    }
}

struct Remove {
    id: u64,
    running: Arc<Mutex<Running>>,
}

impl Drop for Remove {
    fn drop(&mut self) {
        lock(&self.running).tasks.remove(&self.id);
    }
}

fn lock(running: &Mutex<Running>) -> std::sync::MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shutdown_stops_tasks_of_the_scope_and_its_children() {
        let scope = Scope::new("test");
        let child = scope.child("inner");
        child.spawn("waits", std::future::pending());
        scope.spawn("waits too", std::future::pending());
        assert!(scope.shutdown(Duration::from_secs(5)).await.is_empty());
        assert!(child.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_stop_is_named() {
        let scope = Scope::new("test");
        scope.spawn_graceful("stubborn", std::future::pending());
        assert_eq!(scope.shutdown(Duration::from_secs(5)).await, ["stubborn"]);
    }

    #[tokio::test]
    async fn a_dropped_scope_cancels_its_tasks() {
        let scope = Scope::new("test");
        let token = scope.token();
        scope.spawn("waits", std::future::pending());
        drop(scope);
        token.cancelled().await;
    }
}
