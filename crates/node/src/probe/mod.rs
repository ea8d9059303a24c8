//! Startup, readiness and liveness probes.
//!
//! When to probe and what an answer means is [`machine::Machine`], which knows no clock and no network; how to ask
//! is [`action`]; this module runs the two against a container and reports to its Pod's worker.

pub mod action;
mod grpc;
mod http;
pub mod machine;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Container;
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use action::Action;
use machine::{Machine, Timing};

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Whether the program has come up; the others wait for it.
    Startup,
    /// Whether it may get requests.
    Readiness,
    /// Whether it has to be restarted.
    Liveness,
}

impl Purpose {
    /// The word that events use.
    pub fn name(self) -> &'static str {
        match self {
            Purpose::Startup => "Startup",
            Purpose::Readiness => "Readiness",
            Purpose::Liveness => "Liveness",
        }
    }
}

/// Asks a container once; the error is what an event says after "probe failed: ".
pub trait Ask: Send + Sync + 'static {
    /// One attempt, at most `timeout` long.
    fn ask<'a>(&'a self, action: &'a Action, timeout: Duration) -> BoxFuture<'a, Result<(), String>>;
}

/// What a probe found, for the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The container's name.
    pub container: String,
    /// Which start of it.
    pub attempt: u32,
    /// Which probe.
    pub purpose: Purpose,
    /// The new result, if the thresholds were reached.
    pub result: Option<bool>,
    /// Why a counted attempt failed, for the event.
    pub failure: Option<String>,
}

/// A probe of a container as its spec has it.
#[derive(Clone, Debug)]
pub struct Probe {
    purpose: Purpose,
    timing: Timing,
    action: Action,
}

/// The probes of `container`, and what cannot be asked here, in words.
pub fn of(container: &Container) -> (Vec<Probe>, Vec<String>) {
    let mut probes = Vec::new();
    let mut refused = Vec::new();
    for (purpose, spec) in [
        (Purpose::Startup, &container.startup_probe),
        (Purpose::Readiness, &container.readiness_probe),
        (Purpose::Liveness, &container.liveness_probe),
    ] {
        let Some(spec) = spec else { continue };
        match Action::of_probe(spec, container) {
            Ok(action) => probes.push(Probe { purpose, timing: Timing::of(spec), action }),
            Err(reason) => refused.push(format!("{} probe: {reason}", purpose.name())),
        }
    }
    (probes, refused)
}

/// Whether `container` has a probe for that purpose.
pub fn has(container: &Container, purpose: Purpose) -> bool {
    match purpose {
        Purpose::Startup => container.startup_probe.is_some(),
        Purpose::Readiness => container.readiness_probe.is_some(),
        Purpose::Liveness => container.liveness_probe.is_some(),
    }
}

/// The grace period that a failed startup or liveness probe gives its container.
pub fn grace_s(container: &Container) -> Option<i64> {
    let of = |probe: &Option<k8s_openapi::api::core::v1::Probe>| {
        probe.as_ref().and_then(|probe| probe.termination_grace_period_seconds)
    };
    of(&container.liveness_probe).or_else(|| of(&container.startup_probe))
}

/// Probes a container until it is dropped: the startup probe alone first, then the others side by side.
pub async fn run(
    container: String,
    attempt: u32,
    probes: Vec<Probe>,
    begun: Instant,
    started: bool,
    ask: Arc<dyn Ask>,
    reports: mpsc::Sender<Report>,
) {
    let (startup, others): (Vec<_>, Vec<_>) =
        probes.into_iter().partition(|probe| probe.purpose == Purpose::Startup);
    let tell = |purpose, result, failure| {
        let report = Report { container: container.clone(), attempt, purpose, result, failure };
        reports.send(report)
    };
    for probe in startup {
        if started {
            break;
        }
        let mut machine = Machine::new(probe.purpose, probe.timing, begun);
        loop {
            tokio::time::sleep_until(machine.next()).await;
            let answer = ask.ask(&probe.action, probe.timing.timeout).await;
            let step = machine.report(Instant::now(), answer.is_ok());
            let failure = answer.err().filter(|_| step.counted);
            if (step.changed.is_some() || failure.is_some())
                && tell(probe.purpose, step.changed, failure).await.is_err()
            {
                return;
            }
            match step.changed {
                Some(true) => break,
                // The worker ends the container.
                Some(false) => return,
                None => {}
            }
        }
    }
    let loops = others.into_iter().map(|probe| {
        let (ask, tell) = (&ask, &tell);
        async move {
            let mut machine = Machine::new(probe.purpose, probe.timing, begun);
            loop {
                tokio::time::sleep_until(machine.next()).await;
                let answer = ask.ask(&probe.action, probe.timing.timeout).await;
                let step = machine.report(Instant::now(), answer.is_ok());
                let failure = answer.err().filter(|_| step.counted);
                if (step.changed.is_some() || failure.is_some())
                    && tell(probe.purpose, step.changed, failure).await.is_err()
                {
                    return;
                }
            }
        }
    });
    futures::future::join_all(loops).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Mutex;

    struct After(Instant, Duration);

    impl Ask for After {
        fn ask<'a>(&'a self, _: &'a Action, _: Duration) -> BoxFuture<'a, Result<(), String>> {
            let up = Instant::now() >= self.0 + self.1;
            Box::pin(async move { if up { Ok(()) } else { Err("connection refused".to_owned()) } })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_follows_startup_within_milliseconds() {
        let container: Container = serde_json::from_value(json!({"name": "c",
            "startupProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 10},
            "readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 10}}))
        .unwrap();
        let (probes, refused) = of(&container);
        assert!(refused.is_empty());
        let begun = Instant::now();
        let (sender, mut reports) = mpsc::channel(16);
        let ask = Arc::new(After(begun, Duration::from_millis(40)));
        let task = tokio::spawn(run("c".to_owned(), 0, probes, begun, false, ask, sender));
        let seen = Mutex::new(Vec::new());
        while let Some(report) = reports.recv().await {
            seen.lock().unwrap().push((report.purpose, report.result));
            if report.purpose == Purpose::Readiness {
                break;
            }
        }
        task.abort();
        assert!(begun.elapsed() < Duration::from_millis(90), "{:?}", begun.elapsed());
        let expected =
            [(Purpose::Startup, None), (Purpose::Startup, Some(true)), (Purpose::Readiness, Some(true))];
        assert_eq!(*seen.lock().unwrap(), expected);
    }
}
