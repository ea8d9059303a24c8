//! The process's one metrics registry, in OpenMetrics text.

use std::sync::{LazyLock, Mutex, PoisonError};

pub use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::family::{Family, MetricConstructor};
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
pub use prometheus_client::registry::{Metric, Registry};

/// The media type of [`encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(|| {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(crate::bound::Bounds));
    Mutex::new(registry)
});

/// Registers a metric under `name`. Counters get the suffix `_total` when they are written.
pub fn register(name: &str, help: &str, metric: impl Metric) {
    with(|registry| registry.register(name, help.trim_end_matches('.'), metric));
}

/// Gives `change` the registry, for collectors and sub-registries.
pub fn with<T>(change: impl FnOnce(&mut Registry) -> T) -> T {
    change(&mut REGISTRY.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Every metric of the process, as text.
pub fn encode() -> String {
    let mut text = String::new();
    let registry = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => text,
        // A String takes everything that is written to it, so only a metric's own encoder can fail.
        Err(error) => {
            tracing::error!(%error, "encode metrics");
            String::new()
        }
    }
}
