//! What passed, by Service and backend: atomics that connections count in, and the text made from them.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::destination::Refusal;

/// Upper edges of the duration histogram, in microseconds.
const EDGES: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Counts of one backend of a Service port.
#[derive(Debug, Default)]
pub(crate) struct Backend {
    labels: Vec<(&'static str, String)>,
    classes: [AtomicU64; 5],
    failures: AtomicU64,
    buckets: [AtomicU64; EDGES.len() + 1],
    microseconds: AtomicU64,
    connections: AtomicU64,
    active: AtomicI64,
    received: AtomicU64,
    sent: AtomicU64,
    refusals: AtomicU64,
    ejections: AtomicU64,
    unsolicited: AtomicU64,
}

impl Backend {
    /// Counts for those labels, shown for as long as somebody holds them.
    pub(crate) fn new(labels: Vec<(&'static str, String)>) -> Arc<Self> {
        let backend = Arc::new(Self { labels, ..Self::default() });
        let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
        shown.retain(|other| other.strong_count() > 0);
        shown.push(Arc::downgrade(&backend));
        backend
    }

    /// A request got a response.
    pub(crate) fn answered(&self, status: u16, took: Duration) {
        let class = usize::from(status / 100).clamp(1, CLASSES.len()) - 1;
        self.classes[class].fetch_add(1, Ordering::Relaxed);
        let took = took.as_micros() as u64;
        let bucket = EDGES.partition_point(|edge| *edge < took);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.microseconds.fetch_add(took, Ordering::Relaxed);
    }

    /// A request got none.
    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn ejected(&self) {
        self.ejections.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes came that nobody had asked for.
    pub(crate) fn unsolicited(&self) {
        self.unsolicited.fetch_add(1, Ordering::Relaxed);
    }

    /// `received` from clients, `sent` to them, in bytes.
    pub(crate) fn passed(&self, received: u64, sent: u64) {
        self.received.fetch_add(received, Ordering::Relaxed);
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }

    /// Shows a connection that is relayed for as long as the answer is held.
    pub(crate) fn relaying(self: &Arc<Self>) -> Relaying {
        self.active.fetch_add(1, Ordering::Relaxed);
        Relaying(Arc::clone(self))
    }
}

/// A connection that is relayed.
#[derive(Debug)]
pub(crate) struct Relaying(Arc<Backend>);

impl Drop for Relaying {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What clients got from the proxy itself.
#[derive(Debug, Default)]
pub(crate) struct Own {
    /// Requests refused as malformed.
    pub(crate) malformed: AtomicU64,
    /// Requests and connections for which there was no backend.
    pub(crate) no_backend: AtomicU64,
    /// Requests sent again to another backend, or on another connection.
    pub(crate) retries: AtomicU64,
    /// Names answered from the cluster's zone, and names passed to the host's servers.
    pub(crate) dns_own: AtomicU64,
    pub(crate) dns_forwarded: AtomicU64,
    pub(crate) dns_failed: AtomicU64,
}

/// The process's counts of its own.
pub(crate) static OWN: Own = Own {
    malformed: AtomicU64::new(0),
    no_backend: AtomicU64::new(0),
    retries: AtomicU64::new(0),
    dns_own: AtomicU64::new(0),
    dns_forwarded: AtomicU64::new(0),
    dns_failed: AtomicU64::new(0),
};

static SHOWN: Mutex<Vec<Weak<Backend>>> = Mutex::new(Vec::new());

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Puts everything here into the process's registry. Once a process.
pub(crate) fn register() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        lifecycle::metrics::with(|registry| registry.register_collector(Box::new(Shown)));
    });
}

#[derive(Debug)]
struct Shown;

type Read = fn(&Backend) -> u64;

const COUNTERS: [(&str, &str, Read); 7] = [
    ("gantry_proxy_connections", "Connections made to the backend", |b| {
        b.connections.load(Ordering::Relaxed)
    }),
    ("gantry_proxy_request_failures", "Requests that the backend gave no response to", |b| {
        b.failures.load(Ordering::Relaxed)
    }),
    ("gantry_proxy_received_bytes", "Bytes from clients to the backend", |b| {
        b.received.load(Ordering::Relaxed)
    }),
    ("gantry_proxy_sent_bytes", "Bytes from the backend to clients", |b| b.sent.load(Ordering::Relaxed)),
    ("gantry_proxy_connect_failures", "Connections that the backend refused", |b| {
        b.refusals.load(Ordering::Relaxed)
    }),
    ("gantry_proxy_ejections", "Times the backend was left out after a refusal", |b| {
        b.ejections.load(Ordering::Relaxed)
    }),
    ("gantry_proxy_unsolicited_answers", "Times the backend sent bytes that no request had asked for", |b| {
        b.unsolicited.load(Ordering::Relaxed)
    }),
];

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let shown: Vec<Arc<Backend>> = {
            let shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
            shown.iter().filter_map(Weak::upgrade).collect()
        };
        for (name, help, read) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for backend in &shown {
                let metric = family.encode_family(&backend.labels)?;
                ConstCounter::new(read(backend)).encode(metric)?;
            }
        }
        let help = "Responses of the backend by class of status";
        let mut family =
            encoder.encode_descriptor("gantry_proxy_responses", help, None, MetricType::Counter)?;
        for backend in &shown {
            for (class, count) in CLASSES.iter().zip(&backend.classes) {
                let mut labels = backend.labels.clone();
                labels.push(("code", (*class).to_owned()));
                ConstCounter::new(count.load(Ordering::Relaxed)).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Time from a request's head to the end of its response";
        let mut family = encoder.encode_descriptor(
            "gantry_proxy_request_duration_seconds",
            help,
            None,
            MetricType::Histogram,
        )?;
        for backend in &shown {
            encode_durations(backend, family.encode_family(&backend.labels)?)?;
        }
        let help = "Connections that are relayed now";
        let mut family =
            encoder.encode_descriptor("gantry_proxy_active_connections", help, None, MetricType::Gauge)?;
        for backend in &shown {
            let active = backend.active.load(Ordering::Relaxed);
            ConstGauge::new(active).encode(family.encode_family(&backend.labels)?)?;
        }
        let own: [(&str, &str, &AtomicU64); 6] = [
            ("gantry_proxy_malformed_requests", "Requests refused as malformed", &OWN.malformed),
            ("gantry_proxy_no_backend", "Requests and connections without a backend", &OWN.no_backend),
            ("gantry_proxy_retries", "Requests that were sent again", &OWN.retries),
            ("gantry_proxy_dns_own_answers", "Names answered from the cluster's zone", &OWN.dns_own),
            ("gantry_proxy_dns_forwarded", "Names asked of the host's servers", &OWN.dns_forwarded),
            ("gantry_proxy_dns_failures", "Names that no server of the host answered", &OWN.dns_failed),
        ];
        for (name, help, counter) in own {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(counter.load(Ordering::Relaxed)).encode(metric)?;
        }
        let help = "Connections to outside that were refused by rule";
        let mut family =
            encoder.encode_descriptor("gantry_proxy_egress_refused", help, None, MetricType::Counter)?;
        for refusal in Refusal::ALL {
            let count = ConstCounter::new(refusal.counter().load(Ordering::Relaxed));
            count.encode(family.encode_family(&[("reason", refusal.name())])?)?;
        }
        Ok(())
    }
}

fn encode_durations(backend: &Backend, mut metric: MetricEncoder<'_>) -> fmt::Result {
    let counts: Vec<u64> = backend.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
    let edges = EDGES.iter().map(|edge| *edge as f64 / 1e6).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = edges.zip(counts.iter().copied()).collect();
    let sum = backend.microseconds.load(Ordering::Relaxed) as f64 / 1e6;
    metric.encode_histogram::<[(&str, &str); 0]>(sum, counts.iter().sum(), &buckets, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_shown_by_backend() {
        register();
        let backend = Backend::new(vec![("service", "default/shown".to_owned())]);
        backend.answered(204, Duration::from_micros(700));
        backend.answered(503, Duration::from_secs(60));
        backend.passed(3, 4);
        let text = lifecycle::metrics::encode();
        for line in [
            r#"gantry_proxy_responses_total{service="default/shown",code="2xx"} 1"#,
            r#"gantry_proxy_responses_total{service="default/shown",code="5xx"} 1"#,
            r#"gantry_proxy_request_duration_seconds_bucket{le="0.001",service="default/shown"} 1"#,
            r#"gantry_proxy_request_duration_seconds_bucket{le="+Inf",service="default/shown"} 2"#,
            r#"gantry_proxy_sent_bytes_total{service="default/shown"} 4"#,
        ] {
            assert!(text.contains(line), "{line} in:\n{text}");
        }
        drop(backend);
        assert!(!lifecycle::metrics::encode().contains("default/shown"));
    }
}
