//! When a probe asks next, and what its answers amount to.
//!
//! Ticks are `initialDelaySeconds + n × periodSeconds` after the start, and only an attempt at a tick counts as a
//! failure. Until its first success a startup or readiness probe also asks between ticks, from 5 ms on and ever more
//! seldom, so that a program is seen as soon as it listens.

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;
use tokio::time::Instant;

use super::Purpose;

const FAST_FIRST: Duration = Duration::from_millis(5);
const FAST_LONGEST: Duration = Duration::from_secs(1);

/// A probe's numbers, with Kubernetes' defaults filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From the container's start to the first attempt.
    pub initial_delay: Duration,
    /// Between ticks.
    pub period: Duration,
    /// Of one attempt.
    pub timeout: Duration,
    /// Successes in a row that make a success.
    pub success_threshold: u32,
    /// Failures in a row that make a failure.
    pub failure_threshold: u32,
}

impl Timing {
    /// The timing of a probe spec.
    pub fn of(probe: &Probe) -> Self {
        let at_least_1 = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
        };
        let seconds = |value, default| Duration::from_secs(u64::from(at_least_1(value, default)));
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            success_threshold: at_least_1(probe.success_threshold, 1),
            failure_threshold: at_least_1(probe.failure_threshold, 3),
        }
    }
}

/// One probe of one running container.
#[derive(Clone, Debug)]
pub struct Machine {
    timing: Timing,
    next: Instant,
    tick: Instant,
    /// The wait before the next attempt between ticks; `None` once it had a success, or for liveness.
    fast: Option<Duration>,
    successes: u32,
    failures: u32,
    result: Option<bool>,
}

/// What an attempt amounted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The probe's new result, if it changed.
    pub changed: Option<bool>,
    /// Whether the attempt was one of the ticks.
    pub counted: bool,
}

impl Machine {
    /// A probe of a container that started at `begun`.
    pub fn new(purpose: Purpose, timing: Timing, begun: Instant) -> Self {
        let first = begun + timing.initial_delay;
        Self {
            timing,
            next: first,
            tick: first,
            fast: (purpose != Purpose::Liveness).then_some(FAST_FIRST),
            successes: 0,
            failures: 0,
            result: None,
        }
    }

    /// When to ask next.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Takes the answer of the attempt that was due at [`Machine::next`] and ended at `now`.
    pub fn report(&mut self, now: Instant, success: bool) -> Step {
        let counted = self.next >= self.tick;
        while self.tick <= now {
            self.tick += self.timing.period;
        }
        if success {
            self.fast = None;
            self.successes += 1;
            self.failures = 0;
        } else if counted {
            self.failures += 1;
            self.successes = 0;
        }
        self.next = match &mut self.fast {
            Some(wait) => {
                let next = self.tick.min(now + *wait);
                *wait = (*wait * 2).min(FAST_LONGEST);
                next
            }
            None => self.tick,
        };
        let result = if success && self.successes >= self.timing.success_threshold {
            Some(true)
        } else if !success && counted && self.failures >= self.timing.failure_threshold {
            Some(false)
        } else {
            None
        };
        let changed = result.filter(|result| self.result != Some(*result));
        if changed.is_some() {
            self.result = changed;
        }
        Step { changed, counted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing() -> Timing {
        Timing {
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            success_threshold: 1,
            failure_threshold: 3,
        }
    }

    /// Runs a machine against `up`, and tells when its result changed, in ms.
    fn run(
        purpose: Purpose,
        timing: Timing,
        up: impl Fn(u64) -> bool,
        until_ms: u64,
    ) -> (Vec<(u64, bool)>, usize) {
        let begun = Instant::now();
        let mut machine = Machine::new(purpose, timing, begun);
        let mut changes = Vec::new();
        let mut attempts = 0;
        loop {
            let now = machine.next();
            let at = (now - begun).as_millis() as u64;
            if at > until_ms {
                return (changes, attempts);
            }
            attempts += 1;
            if let Some(changed) = machine.report(now, up(at)).changed {
                changes.push((at, changed));
            }
        }
    }

    #[test]
    fn a_program_that_comes_up_is_seen_at_once() {
        let (changes, attempts) = run(Purpose::Readiness, timing(), |at| at >= 30, 60_000);
        assert_eq!(changes, [(35, true)]);
        assert!(attempts < 20);
    }

    #[test]
    fn only_ticks_count_as_failures() {
        let (changes, attempts) = run(Purpose::Startup, timing(), |_| false, 25_000);
        assert_eq!(changes, [(20_000, false)]);
        assert!((20..60).contains(&attempts), "{attempts}");
    }

    #[test]
    fn liveness_asks_at_ticks_only() {
        let (changes, attempts) = run(Purpose::Liveness, timing(), |at| at < 15_000, 45_000);
        assert_eq!(changes, [(0, true), (40_000, false)]);
        assert_eq!(attempts, 5);
    }

    #[test]
    fn nothing_is_asked_before_the_initial_delay() {
        let timing = Timing { initial_delay: Duration::from_secs(5), ..timing() };
        assert_eq!(run(Purpose::Readiness, timing, |_| true, 10_000).0, [(5000, true)]);
    }

    #[test]
    fn readiness_is_lost_after_the_threshold_and_comes_back() {
        let timing =
            Timing { period: Duration::from_secs(1), failure_threshold: 2, success_threshold: 2, ..timing() };
        let (changes, _) = run(Purpose::Readiness, timing, |at| !(5_000..8_000).contains(&at), 12_000);
        assert_eq!(changes, [(1000, true), (6000, false), (9000, true)]);
    }
}
