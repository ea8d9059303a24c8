//! What writers have in common: work that is counted, and what each knows of its keys.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// A moment that does not come by then is a finding.
const SECONDS_MAX: u64 = 60;

/// Steps that all writers did, and refusals that they were given; a moment is a count, not a time.
#[derive(Default)]
pub(super) struct Work {
    counts: Mutex<Counts>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) steps: u64,
    /// Of the API server.
    pub(super) objects_refused: u64,
    /// Of the registry.
    pub(super) blobs_refused: u64,
}

impl Work {
    /// Counts a step; whether to go on.
    pub(super) fn step(&self) -> bool {
        self.count(|counts| counts.steps += 1);
        !self.stopped()
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    pub(super) fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until so much was done.
    pub(super) fn until(&self, what: &str, reached: impl Fn(&Counts) -> bool) -> Result<()> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = Duration::from_secs(SECONDS_MAX);
        let waited = self.changed.wait_timeout_while(counts, limit, |counts| !reached(counts));
        let timed_out = waited.unwrap_or_else(PoisonError::into_inner).1.timed_out();
        ensure!(!timed_out, "{what} did not come within {SECONDS_MAX} s");
        Ok(())
    }

    /// From here on nobody starts anything, and who gets no answer knows why.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// Looks again and again until it is so; an error of the look itself is one.
pub(in crate::accept) fn poll(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(SECONDS_MAX);
    while !is_so().with_context(|| what.to_owned())? {
        ensure!(Instant::now() < deadline, "{what} within {SECONDS_MAX} s");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The state of one key, which has one writer: what was acknowledged, and what of a write without an answer may be.
#[derive(Debug)]
pub(crate) struct Register<V> {
    acknowledged: Option<V>,
    in_flight: Option<Option<V>>,
}

impl<V> Default for Register<V> {
    fn default() -> Self {
        Self { acknowledged: None, in_flight: None }
    }
}

impl<V: PartialEq + std::fmt::Debug> Register<V> {
    pub(crate) fn get(&self) -> Option<&V> {
        self.acknowledged.as_ref()
    }

    /// A write starts; `None` is a deletion.
    pub(crate) fn begin(&mut self, next: Option<V>) {
        self.in_flight = Some(next);
    }

    /// The write was acknowledged.
    pub(crate) fn acknowledge(&mut self) {
        if let Some(next) = self.in_flight.take() {
            self.acknowledged = next;
        }
    }

    /// The write was answered as not done.
    pub(crate) fn refuse(&mut self) {
        self.in_flight = None;
    }

    /// Compares with what is there, which then is known; whether a write in flight had arrived.
    pub(crate) fn settle(&mut self, key: &str, actual: Option<V>) -> Result<bool> {
        let in_flight = self.in_flight.take();
        if actual == self.acknowledged {
            return Ok(false);
        }
        let Some(next) = in_flight else {
            anyhow::bail!("{key}: acknowledged {:?}, there is {actual:?}", self.acknowledged);
        };
        ensure!(
            actual == next,
            "{key}: acknowledged {:?}, in flight {next:?}, there is {actual:?}",
            self.acknowledged
        );
        self.acknowledged = actual;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_takes_the_old_or_the_new_and_nothing_else() {
        let mut one = Register::default();
        one.begin(Some(1));
        one.acknowledge();
        assert!(one.settle("k", None).is_err());
        assert!(one.settle("k", Some(2)).is_err());
        assert!(!one.settle("k", Some(1)).unwrap());
        one.begin(Some(2));
        assert!(one.settle("k", Some(2)).unwrap());
        one.begin(None);
        assert!(one.settle("k", Some(3)).is_err());
        one.begin(None);
        one.refuse();
        assert!(one.settle("k", None).is_err());
        one.begin(None);
        assert!(one.settle("k", None).unwrap());
        assert_eq!(one.get(), None);
    }
}
