//! What one kill is: what is done to the program, what dies meanwhile, and when. All of it follows from the seed and
//! the kill's number, so that one kill can be repeated alone.

use std::fmt;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Requests to the program beside it that are answered before the fault: the moment, counted in work.
const REQUESTS: std::ops::Range<u64> = 0..60;
/// Replicas that are asked for.
const REPLICAS: std::ops::RangeInclusive<u32> = 1..=3;

/// What is done to the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Up,
    Scale(u32),
    Rollback,
    Down,
    /// Of one of its Pods.
    Delete,
}

/// What happens meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Daemon,
    Proxy,
    Keeper,
    /// Daemon and proxy at once.
    Both,
    /// What the user called.
    Command,
    /// The daemon, and the next one while it starts.
    Twice,
    /// The daemon is stopped and goes on later.
    StopDaemon,
    StopProxy,
    /// The proxy is stopped for good, and the daemon dies.
    HungProxy,
    FullDisk,
}

impl Fault {
    const ALL: [Self; 10] = [
        Self::Daemon,
        Self::Proxy,
        Self::Keeper,
        Self::Both,
        Self::Command,
        Self::Twice,
        Self::StopDaemon,
        Self::StopProxy,
        Self::HungProxy,
        Self::FullDisk,
    ];

    /// Whether every request to a program that nobody touches has to be answered.
    pub(super) fn loses_nothing(self) -> bool {
        !matches!(self, Self::Proxy | Self::Both | Self::StopProxy | Self::HungProxy)
    }
}

pub(super) struct Step {
    seed: u64,
    pub(super) number: usize,
    pub(super) action: Action,
    pub(super) fault: Fault,
    pub(super) requests: u64,
    pub(super) random: StdRng,
}

impl Step {
    /// `is_there`: whether there is a program; without one it is deployed.
    pub(super) fn new(seed: u64, number: usize, is_there: bool) -> Self {
        let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
        let drawn = match random.random_range(0..8) {
            0..=2 => Action::Up,
            3 | 4 => Action::Scale(random.random_range(REPLICAS)),
            5 => Action::Rollback,
            6 => Action::Delete,
            _ => Action::Down,
        };
        let fault = Fault::ALL[random.random_range(0..Fault::ALL.len())];
        let requests = random.random_range(REQUESTS);
        Self { seed, number, action: if is_there { drawn } else { Action::Up }, fault, requests, random }
    }

    /// As `--only` knows it.
    pub(super) fn name(number: usize) -> String {
        format!("kill-{number:03}")
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (name, seed) = (Self::name(self.number), self.seed);
        write!(
            f,
            "{name} of seed {seed}: {:?} and {:?} after {} requests",
            self.action, self.fault, self.requests
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_step_follows_from_its_seed_and_number_and_all_sorts_come() {
        let text = |seed, number| Step::new(seed, number, true).to_string();
        assert_eq!(text(1, 17), text(1, 17));
        assert_ne!(text(1, 17), text(2, 17));
        let all: Vec<_> = (0..500).map(|number| Step::new(1, number, true)).collect();
        let faults: BTreeSet<_> = all.iter().map(|step| format!("{:?}", step.fault)).collect();
        let actions: BTreeSet<_> = all.iter().map(|step| format!("{:?}", step.action)).collect();
        assert_eq!((faults.len(), actions.len()), (Fault::ALL.len(), 7));
        assert_eq!(Step::new(1, 17, false).action, Action::Up);
    }
}
