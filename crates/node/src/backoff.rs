//! Restart and pull back-off as kubelet has it: 10 s, doubling, at most 5 min; forgotten after 10 min of peace.

use std::time::Duration;

use tokio::time::Instant;

/// The first wait.
pub const FIRST: Duration = Duration::from_secs(10);
/// The longest wait.
pub const LONGEST: Duration = Duration::from_secs(300);
/// A container that ran this long starts over with [`FIRST`].
pub const FORGIVEN: Duration = Duration::from_secs(600);

/// How often something failed in a row, and until when it is left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    length: Duration,
    until: Option<Instant>,
}

impl Backoff {
    /// A back-off that has seen `failures` before this process started.
    pub fn after(failures: u32) -> Self {
        Self { failures, ..Self::default() }
    }

    /// That of a run which ended while nobody looked on, after `failures` before it, having run for `ran`. A run whose end
    /// is not `known` went down with the node, by a power cut say: that is no failure of the program's, and everything
    /// starts over, as with a new kubelet.
    pub fn of_ended(now: Instant, failures: u32, ran: Duration, known: bool) -> Self {
        let mut backoff = Self::after(if known { failures } else { 0 });
        backoff.fail(now, ran);
        backoff
    }

    /// Notes a failure at `now` of something that had run for `ran`. The first one may be repeated at once (a
    /// container's first restart is immediate); each further one waits twice as long as the one before.
    pub fn fail(&mut self, now: Instant, ran: Duration) {
        if ran >= FORGIVEN {
            self.failures = 0;
        }
        self.until = None;
        if self.failures > 0 {
            self.wait(now);
        }
        self.failures = self.failures.saturating_add(1);
    }

    /// Like [`Backoff::fail`], but the first failure waits too (image pulls, volume mounts).
    pub fn fail_waiting(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.wait(now);
    }

    fn wait(&mut self, now: Instant) {
        let doublings = self.failures.saturating_sub(1).min(16);
        self.length = FIRST.saturating_mul(1 << doublings).min(LONGEST);
        self.until = Some(now + self.length);
    }

    /// Until when it has to wait, if that is after `now`.
    pub fn waiting(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    /// The length of the current wait, for messages.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_down_with_the_node_starts_at_once() {
        let now = Instant::now();
        let wait = |known, ran| Backoff::of_ended(now, 3, ran, known).waiting(now).map(|until| until - now);
        assert_eq!(wait(true, Duration::from_secs(1)), Some(FIRST * 4), "it failed by itself");
        assert_eq!(wait(true, FORGIVEN), None);
        assert_eq!(wait(false, Duration::from_secs(1)), None);
    }

    #[test]
    fn restarts_at_once_then_doubles_up_to_five_minutes() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            backoff.fail(now, Duration::from_secs(1));
            waits.push(backoff.waiting(now).map_or(0, |until| (until - now).as_secs()));
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ten_minutes_of_peace_start_over() {
        let now = Instant::now();
        let mut backoff = Backoff::after(6);
        backoff.fail(now, FORGIVEN);
        assert_eq!(backoff.waiting(now), None);
        backoff.fail(now, Duration::from_secs(1));
        assert_eq!(backoff.waiting(now), Some(now + FIRST));
        assert_eq!(backoff.length(), FIRST);
    }

    #[test]
    fn pulls_wait_from_the_first_failure_on() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        backoff.fail_waiting(now);
        assert_eq!(backoff.waiting(now), Some(now + FIRST));
        backoff.fail_waiting(now);
        assert_eq!(backoff.waiting(now), Some(now + FIRST * 2));
    }
}
