//! Idle connections to backends, of one thread: taken for the next request, dropped when they are old or their backend
//! leaves.
//!
//! **Invariant:** a connection on which bytes have come that no request asked for carries no further request.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::backend::Backend;
use crate::io::Idle;

/// How long an idle connection is kept.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(4);
/// The same, for a request that cannot be sent twice.
const IDLE_FOR_ONCE_MAX: Duration = Duration::from_secs(1);
/// How many are kept for each backend.
const IDLE_COUNT_MAX: usize = 256;

#[derive(Debug)]
pub(crate) struct Pool {
    /// How many are kept in all.
    max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    count: usize,
    by_backend: HashMap<u64, Vec<(Instant, TcpStream)>>,
}

impl Pool {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to the backend. `once`: what is to be sent cannot be sent twice, so it must be young.
    pub(crate) fn take(&self, backend: &Backend, once: bool) -> Option<TcpStream> {
        let age_max = if once { IDLE_FOR_ONCE_MAX } else { IDLE_MAX };
        let mut state = self.lock();
        let State { count, by_backend } = &mut *state;
        let connections = by_backend.get_mut(&backend.id)?;
        while let Some((since, stream)) = connections.pop() {
            *count -= 1;
            // The youngest comes first: when it is too old, so are the others.
            if since.elapsed() > age_max {
                return None;
            }
            match crate::io::look(&stream) {
                Idle::Quiet => return Some(stream),
                Idle::Ended => {}
                Idle::Spoke => {
                    *count -= connections.len();
                    connections.clear();
                    drop(state);
                    backend.distrust();
                    return None;
                }
            }
        }
        None
    }

    /// Keeps a connection for the next request, unless its Pod leaves, or is known to speak unasked.
    pub(crate) fn keep(&self, backend: &Backend, stream: TcpStream) {
        if backend.pod.is_buried() || backend.is_distrusted() {
            return;
        }
        let mut state = self.lock();
        if state.count >= self.max {
            return;
        }
        let connections = state.by_backend.entry(backend.id).or_default();
        if connections.len() < IDLE_COUNT_MAX {
            connections.push((Instant::now(), stream));
            state.count += 1;
        }
    }

    /// Closes those that are too old.
    pub(crate) fn sweep(&self) {
        let mut state = self.lock();
        for connections in state.by_backend.values_mut() {
            connections.retain(|(since, _)| since.elapsed() <= IDLE_MAX);
        }
        state.keep_if(|_, connections| !connections.is_empty());
    }

    /// Closes those to these backends.
    pub(crate) fn forget(&self, backends: &[u64]) {
        self.lock().keep_if(|id, _| !backends.contains(id));
    }

    /// Bytes that stand unread on idle connections, by the kernel's word.
    #[cfg(test)]
    pub(crate) fn unread(&self) -> u64 {
        let state = self.lock();
        let connections = state.by_backend.values().flatten();
        connections.map(|(_, stream)| rustix::io::ioctl_fionread(stream).unwrap()).sum()
    }

    /// Closes all.
    pub(crate) fn clear(&self) {
        self.lock().keep_if(|_, _| false);
    }
}

impl State {
    fn keep_if(&mut self, keep: impl Fn(&u64, &Vec<(Instant, TcpStream)>) -> bool) {
        self.by_backend.retain(|id, connections| keep(id, connections));
        self.count = self.by_backend.values().map(Vec::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::Allowance;
    use std::sync::Arc;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    async fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (ours, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_connection_that_spoke_unasked_is_not_used_nor_are_its_backend_s_others() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let backend = Backend::new(address, true, Allowance::default(), Arc::default(), Arc::default());
        let pool = Pool::new(2);
        let mut theirs = Vec::new();
        for _ in 0..3 {
            let (ours, other) = pair(&listener).await;
            pool.keep(&backend, ours);
            theirs.push(other);
        }
        assert_eq!(pool.lock().count, 2, "no more than there may be");
        theirs[1].write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        // Nothing here lets the reactor run: what counts is what has arrived.
        assert!(pool.take(&backend, false).is_none());
        assert!(backend.is_distrusted() && pool.lock().count == 0);
        let (ours, _other) = pair(&listener).await;
        pool.keep(&backend, ours);
        assert_eq!(pool.lock().count, 0);
    }

    #[tokio::test]
    async fn one_that_ended_is_passed_over() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let backend = Backend::new(address, true, Allowance::default(), Arc::default(), Arc::default());
        let pool = Pool::new(9);
        let (first, _open) = pair(&listener).await;
        let (second, closed) = pair(&listener).await;
        pool.keep(&backend, first);
        pool.keep(&backend, second);
        drop(closed);
        assert!(pool.take(&backend, true).is_some());
        assert!(pool.take(&backend, true).is_none() && !backend.is_distrusted());
        pool.sweep();
        assert_eq!(pool.lock().count, 0);
    }
}
