//! Backends of a Service port, which of them gets the next request, and what is in flight to each Pod.
//!
//! **Invariant:** once a Pod's tombstone stands and its count of what is in flight has been 0, nothing is sent to it
//! again: [`Flight::begin`] counts first and looks at the tombstone second, [`Pod::bury`] the other way round.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::destination::Allowance;
use crate::metrics;

/// How long a backend rests after it refused a connection; doubled each time in a row.
const EJECTED_FIRST: Duration = Duration::from_millis(500);
const EJECTED_MAX: Duration = Duration::from_secs(30);
/// How long connections to a backend carry one request each, after it sent what nobody had asked for.
const DISTRUSTED: Duration = Duration::from_secs(60);

/// A Pod as a receiver of traffic.
#[derive(Debug, Default)]
pub(crate) struct Pod {
    in_flight: AtomicUsize,
    buried: AtomicBool,
    emptied: Notify,
}

impl Pod {
    /// Sets the tombstone: nothing new is sent to the Pod, for ever.
    pub(crate) fn bury(&self) {
        self.buried.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_buried(&self) -> bool {
        self.buried.load(Ordering::SeqCst)
    }

    /// How many requests and connections the Pod has to finish.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Resolves when nothing is in flight. Only meaningful once the Pod is buried.
    pub(crate) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            let mut emptied = std::pin::pin!(emptied);
            emptied.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn begin(&self) -> bool {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        if self.is_buried() {
            self.end();
            return false;
        }
        true
    }

    fn end(&self) {
        if self.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 && self.is_buried() {
            self.emptied.notify_waiters();
        }
    }
}

/// One address behind a Service port.
#[derive(Debug)]
pub(crate) struct Backend {
    /// Unique in the process.
    pub(crate) id: u64,
    pub(crate) address: SocketAddr,
    /// Reached from the router namespace, not from the host's.
    pub(crate) inside: bool,
    /// What may be dialled for it, if it is not inside.
    pub(crate) allowance: Allowance,
    pub(crate) pod: Arc<Pod>,
    pub(crate) metrics: Arc<metrics::Backend>,
    active: AtomicUsize,
    refusals: AtomicU32,
    /// Milliseconds since the process started.
    ejected_until: AtomicU64,
    distrusted_until: AtomicU64,
}

impl Backend {
    pub(crate) fn new(
        address: SocketAddr,
        inside: bool,
        allowance: Allowance,
        pod: Arc<Pod>,
        metrics: Arc<metrics::Backend>,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            address,
            inside,
            allowance,
            pod,
            metrics,
            active: AtomicUsize::new(0),
            refusals: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            distrusted_until: AtomicU64::new(0),
        })
    }

    fn is_ejected(&self, now: u64) -> bool {
        self.ejected_until.load(Ordering::Relaxed) > now
    }

    /// It sent bytes that no request had asked for: what it sends next on a connection may be the answer to something
    /// else, so for a while no connection to it is used twice.
    pub(crate) fn distrust(&self) {
        tracing::warn!(backend = %self.address, "the backend sent bytes that nobody had asked for");
        self.distrusted_until.store(milliseconds() + DISTRUSTED.as_millis() as u64, Ordering::Relaxed);
        self.metrics.unsolicited();
    }

    /// Whether connections to it carry one request each.
    pub(crate) fn is_distrusted(&self) -> bool {
        let until = self.distrusted_until.load(Ordering::Relaxed);
        until != 0 && until > milliseconds()
    }

    /// A connection was made.
    pub(crate) fn connected(&self) {
        if self.refusals.load(Ordering::Relaxed) != 0 {
            self.refusals.store(0, Ordering::Relaxed);
            self.ejected_until.store(0, Ordering::Relaxed);
        }
    }
}

/// Something in flight to a backend; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) backend: Arc<Backend>,
}

impl Flight {
    /// Counts; `None` when the Pod may get nothing any more.
    pub(crate) fn begin(backend: &Arc<Backend>) -> Option<Self> {
        if !backend.pod.begin() {
            return None;
        }
        backend.active.fetch_add(1, Ordering::Relaxed);
        Some(Self { backend: Arc::clone(backend) })
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.backend.active.fetch_sub(1, Ordering::Relaxed);
        self.backend.pod.end();
    }
}

/// The backends of one Service port.
#[derive(Debug, Default)]
pub(crate) struct Balancer {
    backends: RwLock<Arc<[Arc<Backend>]>>,
    changed: Notify,
}

impl Balancer {
    /// Replaces the backends; who waits for one tries again.
    pub(crate) fn set(&self, backends: Vec<Arc<Backend>>) {
        *self.backends.write().unwrap_or_else(PoisonError::into_inner) = backends.into();
        self.changed.notify_waiters();
    }

    pub(crate) fn backends(&self) -> Arc<[Arc<Backend>]> {
        Arc::clone(&self.backends.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The less busy of two, but none of `tried`, and none that rests if there is another.
    pub(crate) fn pick(&self, tried: &[u64]) -> Option<Flight> {
        let backends = self.backends();
        let now = milliseconds();
        for resting_too in [false, true] {
            loop {
                let usable = |backend: &Backend| {
                    (resting_too || !backend.is_ejected(now))
                        && !tried.contains(&backend.id)
                        && !backend.pod.is_buried()
                };
                let Some(chosen) = less_busy_of_two(&backends, usable) else { break };
                // None: its Pod was buried between the two looks; look again.
                if let Some(flight) = Flight::begin(chosen) {
                    return Some(flight);
                }
            }
        }
        None
    }

    /// [`Balancer::pick`], waiting at most `patience` for a first backend: while one Pod leaves and the next has not
    /// yet been announced, requests are held and not refused.
    pub(crate) async fn pick_patiently(&self, tried: &[u64], patience: Duration) -> Option<Flight> {
        if let Some(flight) = self.pick(tried) {
            return Some(flight);
        }
        if !tried.is_empty() {
            return None;
        }
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if let Some(flight) = self.pick(tried) {
                return Some(flight);
            }
            tokio::time::timeout_at(deadline, changed).await.ok()?;
        }
    }

    /// A connection to the backend failed: it rests for a while, unless more than half of them would.
    pub(crate) fn refused(&self, backend: &Backend) {
        let backends = self.backends();
        let now = milliseconds();
        let resting = backends.iter().filter(|other| other.is_ejected(now) && other.id != backend.id).count();
        if (resting + 1) * 2 > backends.len() {
            return;
        }
        let times = backend.refusals.fetch_add(1, Ordering::Relaxed).min(10);
        let rest = (EJECTED_FIRST * 2u32.pow(times)).min(EJECTED_MAX);
        backend.ejected_until.store(now + rest.as_millis() as u64, Ordering::Relaxed);
        backend.metrics.ejected();
    }
}

fn less_busy_of_two(backends: &[Arc<Backend>], usable: impl Fn(&Backend) -> bool) -> Option<&Arc<Backend>> {
    if let [only] = backends {
        return usable(only).then_some(only);
    }
    let from = |start: usize, not: Option<u64>| {
        let (before, after) = backends.split_at(start);
        after.iter().chain(before).find(|backend| Some(backend.id) != not && usable(backend))
    };
    let random = random();
    let count = backends.len().max(1);
    let first = from(random as usize % count, None)?;
    let Some(second) = from((random >> 32) as usize % count, Some(first.id)) else { return Some(first) };
    let busy = |backend: &Backend| backend.active.load(Ordering::Relaxed);
    Some(if busy(second) < busy(first) { second } else { first })
}

fn milliseconds() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_millis() as u64 + 1
}

/// Quick, and random enough to spread load (xorshift64*).
fn random() -> u64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(rand::random::<u64>() | 1);
    }
    STATE.with(|state| {
        let mut x = state.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        state.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backend() -> Arc<Backend> {
        let address = SocketAddr::from(([192, 0, 2, 1], 80));
        Backend::new(address, true, Allowance::default(), Arc::default(), Arc::default())
    }

    fn balancer(backends: &[Arc<Backend>]) -> Balancer {
        let balancer = Balancer::default();
        balancer.set(backends.to_vec());
        balancer
    }

    #[test]
    fn load_evens_out() {
        let backends: Vec<_> = (0..4).map(|_| backend()).collect();
        let balancer = balancer(&backends);
        let _flights: Vec<_> = (0..400).map(|_| balancer.pick(&[]).unwrap()).collect();
        for backend in &backends {
            let active = backend.active.load(Ordering::Relaxed);
            assert!((90..=110).contains(&active), "{active}");
        }
    }

    #[test]
    fn a_backend_that_refuses_rests_unless_most_do() {
        let backends: Vec<_> = (0..3).map(|_| backend()).collect();
        let balancer = balancer(&backends);
        balancer.refused(&backends[0]);
        for _ in 0..50 {
            assert_ne!(balancer.pick(&[]).unwrap().backend.id, backends[0].id);
        }
        balancer.refused(&backends[1]);
        assert!(!backends[1].is_ejected(milliseconds()), "two of three would be too many");
        // Better one that rests than none.
        let flight = balancer.pick(&[backends[1].id, backends[2].id]).unwrap();
        assert_eq!(flight.backend.id, backends[0].id);
        backends[0].connected();
        assert!(!backends[0].is_ejected(milliseconds()));
        assert!(balancer.pick(&backends.iter().map(|backend| backend.id).collect::<Vec<_>>()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_backend_waits_for_one() {
        let balancer = Arc::new(balancer(&[]));
        assert!(balancer.pick_patiently(&[], Duration::from_secs(1)).await.is_none());
        let waiting = Arc::clone(&balancer);
        let task =
            tokio::spawn(async move { waiting.pick_patiently(&[], Duration::from_secs(5)).await.is_some() });
        tokio::task::yield_now().await;
        balancer.set(vec![backend()]);
        assert!(task.await.unwrap());
    }

    #[tokio::test]
    async fn a_buried_pod_is_empty_when_the_last_flight_ends() {
        let backend = backend();
        let flight = Flight::begin(&backend).unwrap();
        backend.pod.bury();
        assert!(Flight::begin(&backend).is_none());
        let pod = Arc::clone(&backend.pod);
        let waiting = tokio::spawn(async move { pod.emptied().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(flight);
        waiting.await.unwrap();
    }

    #[test]
    fn no_flight_begins_after_a_buried_pod_was_seen_empty() {
        for _ in 0..200 {
            let backend = backend();
            let pod = Arc::clone(&backend.pod);
            let flier = std::thread::spawn(move || {
                let mut after = Vec::new();
                while let Some(flight) = Flight::begin(&backend) {
                    after.push(flight);
                    after.clear();
                }
            });
            pod.bury();
            let empty = pod.in_flight() == 0;
            if empty {
                assert!(pod.is_buried());
            }
            flier.join().unwrap();
            assert_eq!(pod.in_flight(), 0);
        }
    }

    proptest! {
        #[test]
        fn the_count_is_what_is_held(steps in prop::collection::vec(0u8..4, 0..60)) {
            let backend = backend();
            let (mut flights, mut buried) = (Vec::new(), false);
            for step in steps {
                match step {
                    0 | 1 => {
                        let flight = Flight::begin(&backend);
                        prop_assert_eq!(flight.is_some(), !buried);
                        flights.extend(flight);
                    }
                    2 => drop(flights.pop()),
                    _ => {
                        backend.pod.bury();
                        buried = true;
                    }
                }
                prop_assert_eq!(backend.pod.in_flight(), flights.len());
                prop_assert_eq!(backend.active.load(Ordering::Relaxed), flights.len());
            }
        }
    }
}
