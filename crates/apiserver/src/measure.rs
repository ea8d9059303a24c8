//! What the server says about itself at `/metrics`, with kube-apiserver's names.

use std::sync::LazyLock;
use std::time::Duration;

use http::StatusCode;
use lifecycle::metrics::{self, Counter, EncodeLabelSet, Family, Histogram};

use crate::path::Route;

/// Labels of a request; all from fixed sets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Labels {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    scope: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    scope: &'static str,
    code: u16,
}

type Durations = Family<Labels, Histogram, fn() -> Histogram>;

static DURATIONS: LazyLock<Durations> = LazyLock::new(|| {
    let buckets = || {
        Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0])
    };
    let family = Durations::new_with_constructor(buckets);
    let help = "Seconds that requests took, watches and streams aside";
    metrics::register("apiserver_request_duration_seconds", help, family.clone());
    family
});

static REQUESTS: LazyLock<Family<Answered, Counter>> = LazyLock::new(|| {
    let family = Family::<Answered, Counter>::default();
    metrics::register("apiserver_request", "Requests by verb, resource and code", family.clone());
    family
});

impl Labels {
    pub(crate) fn new(verb: &'static str, route: &Route) -> Self {
        let none = Labels { verb, group: "", version: "", resource: "", subresource: "", scope: "" };
        match route {
            Route::Objects(place) => Labels {
                group: place.kind.group,
                version: place.kind.version,
                resource: place.kind.plural,
                subresource: place.subresource_name(),
                scope: match (place.name.is_empty(), place.namespace.is_empty()) {
                    (false, _) => "resource",
                    (true, false) => "namespace",
                    (true, true) => "cluster",
                },
                ..none
            },
            Route::Review(review) => Labels {
                group: review.group,
                version: review.version,
                resource: review.plural,
                scope: "cluster",
                ..none
            },
            _ => none,
        }
    }
}

pub(crate) fn request(labels: Labels, code: StatusCode, took: Duration, long_running: bool) {
    let Labels { verb, group, version, resource, subresource, scope } = labels.clone();
    let answered = Answered { verb, group, version, resource, subresource, scope, code: code.as_u16() };
    REQUESTS.get_or_create(&answered).inc();
    if !long_running {
        DURATIONS.get_or_create(&labels).observe(took.as_secs_f64());
    }
}
