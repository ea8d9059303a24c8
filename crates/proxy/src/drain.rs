//! When a Pod that is to go has been drained: a pure decision, and the task that waits for it and says so.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::backend::Pod;
use crate::model::Deletion;

/// Why a Pod counts as drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Nothing is in flight.
    Idle,
    /// Something is, but there is no more time.
    Deadline,
    /// It was never sent anything.
    NotRouted,
}

impl Reason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Idle => "Idle",
            Self::Deadline => "Deadline",
            Self::NotRouted => "NotRouted",
        }
    }
}

/// What to do about a Pod that is to go, and stands under its tombstone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Done(Reason),
    Wait(Duration),
}

pub(crate) fn step(now: Timestamp, deletion: &Deletion, routed: bool, in_flight: usize) -> Step {
    if !routed {
        return Step::Done(Reason::NotRouted);
    }
    if in_flight == 0 {
        return Step::Done(Reason::Idle);
    }
    // What comes after the deadline belongs to the container's own shutdown.
    let deadline = contract::drain::deadline(deletion.at, deletion.grace_seconds);
    match deadline.map(|deadline| Duration::try_from(deadline.duration_since(now))) {
        Some(Ok(left)) if !left.is_zero() => Step::Wait(left),
        _ => Step::Done(Reason::Deadline),
    }
}

/// Waits until the Pod, which is buried, is drained.
pub(crate) async fn drained(pod: &Arc<Pod>, deletion: &Deletion, routed: bool) -> Reason {
    loop {
        match step(Timestamp::now(), deletion, routed, pod.in_flight()) {
            Step::Done(reason) => return reason,
            Step::Wait(left) => {
                // Either end of the wait leads to another look.
                let _ = tokio::time::timeout(left, pod.emptied()).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn deletion(at: i64, grace_seconds: i64) -> Deletion {
        Deletion { at: Timestamp::from_second(at).unwrap(), grace_seconds }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_pod_is_waited_for_until_the_deadline() {
        assert_eq!(step(at(0), &deletion(1000, 0), true, 1), Step::Done(Reason::Deadline));
        assert_eq!(step(at(980), &deletion(1000, 30), true, 1), Step::Wait(Duration::from_secs(10)));
        assert_eq!(step(at(990), &deletion(1000, 30), true, 1), Step::Done(Reason::Deadline));
        assert_eq!(step(at(0), &deletion(1000, 30), false, 0), Step::Done(Reason::NotRouted));
    }

    proptest! {
        /// The protocol's promise, for all times and loads: a Pod that was sent something is called drained only
        /// when nothing is in flight or the time is over, and it is called so in the end.
        #[test]
        fn drained_means_idle_or_too_late(
            now in 0i64..2000, end in 0i64..2000, grace in 0i64..400, routed: bool, in_flight in 0usize..3,
        ) {
            let deletion = deletion(end, grace);
            match step(at(now), &deletion, routed, in_flight) {
                Step::Done(Reason::Idle) => prop_assert!(routed && in_flight == 0),
                Step::Done(Reason::NotRouted) => prop_assert!(!routed),
                Step::Done(Reason::Deadline) => {
                    let deadline = contract::drain::deadline(deletion.at, grace);
                    prop_assert!(in_flight > 0 && deadline.is_none_or(|deadline| at(now) >= deadline));
                }
                Step::Wait(left) => {
                    prop_assert!(in_flight > 0 && !left.is_zero());
                    let later = at(now) + jiff::SignedDuration::try_from(left).unwrap();
                    prop_assert_eq!(step(later, &deletion, routed, in_flight), Step::Done(Reason::Deadline));
                }
            }
        }
    }
}
