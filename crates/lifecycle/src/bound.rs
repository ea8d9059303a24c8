//! Named bounds: each queue, cache, body and retry has one, and `/metrics` shows how full it is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

static BOUNDS: Mutex<BTreeMap<&'static str, Arc<Bound>>> = Mutex::new(BTreeMap::new());

/// A limit with a name, and how much of it is used.
#[derive(Debug)]
pub struct Bound {
    name: &'static str,
    limit: AtomicU64,
    used: AtomicU64,
    refused: AtomicU64,
}

/// A part of a bound; dropping it gives it back.
#[derive(Debug)]
pub struct Permit {
    bound: Arc<Bound>,
    amount: u64,
}

impl Bound {
    /// The bound of that name (one a process); the last `limit` given holds. The unit is the name's last word.
    pub fn new(name: &'static str, limit: u64) -> Arc<Self> {
        let mut bounds = BOUNDS.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = bounds.entry(name).or_insert_with(|| {
            Arc::new(Self {
                name,
                limit: AtomicU64::new(limit),
                used: AtomicU64::new(0),
                refused: AtomicU64::new(0),
            })
        });
        bound.limit.store(limit, Ordering::Relaxed);
        Arc::clone(bound)
    }

    /// The bound's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The limit.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// What is used now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes `amount` if it fits.
    pub fn acquire(self: &Arc<Self>, amount: u64) -> Option<Permit> {
        let limit = self.limit();
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(amount).filter(|sum| *sum <= limit)
        });
        match taken {
            Ok(_) => Some(Permit { bound: Arc::clone(self), amount }),
            Err(_) => {
                self.refuse();
                None
            }
        }
    }

    /// Says how much is used, for owners that count themselves.
    pub fn set(&self, used: u64) {
        self.used.store(used, Ordering::Relaxed);
    }

    /// Counts one thing that did not fit.
    pub fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.bound.used.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

/// Writes every bound as `gantry_bound_limit`, `gantry_bound_used` and `gantry_bound_refused`.
#[derive(Debug)]
pub(crate) struct Bounds;

impl Collector for Bounds {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let bounds = BOUNDS.lock().unwrap_or_else(PoisonError::into_inner);
        type Read = fn(&Bound) -> u64;
        let families: [(&str, &str, Read); 3] = [
            ("gantry_bound_limit", "Limit of a queue, cache, body or retry", Bound::limit),
            ("gantry_bound_used", "How much of the limit is used", Bound::used),
            ("gantry_bound_refused", "How often something did not fit since the process started", |bound| {
                bound.refused.load(Ordering::Relaxed)
            }),
        ];
        for (name, help, read) in families {
            let mut family =
                encoder.encode_descriptor(name, help, None, prometheus_client::metrics::MetricType::Gauge)?;
            for bound in bounds.values() {
                let labels = [("bound", bound.name)];
                ConstGauge::new(read(bound) as i64).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_refuses_what_does_not_fit_and_shows_it() {
        let bound = Bound::new("test_things", 3);
        let two = bound.acquire(2).unwrap();
        assert!(bound.acquire(2).is_none());
        let text = crate::metrics::encode();
        assert!(text.contains("gantry_bound_used{bound=\"test_things\"} 2"), "{text}");
        assert!(text.contains("gantry_bound_refused{bound=\"test_things\"} 1"), "{text}");
        drop(two);
        assert_eq!(bound.used(), 0);
    }
}
