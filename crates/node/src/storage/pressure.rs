//! When the disk of the state folder counts as nearly full, and whom that costs. Pure.
//!
//! As kubelet's hard threshold `nodefs.available<10%`, but never more than [`THRESHOLD_BYTES_MAX`]: on a large disk of a
//! person's own machine a tenth is a lot of space that is meant to be used.

use std::cmp::Reverse;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

/// The share of the disk that stays available, in percent.
const THRESHOLD_PERCENT: u64 = 10;
/// No more than this has to be available.
pub const THRESHOLD_BYTES_MAX: u64 = 1 << 30;
/// Pressure lasts this long after the disk has space again: a node that wavers takes Pods and evicts them in turn.
const TRANSITION: Duration = Duration::from_secs(10);
/// A Pod that holds less than this share of the threshold frees nothing: it is not evicted for the disk's sake.
const SHARE_LEAST: u64 = 100;

/// A file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// For those who are not root, in bytes.
    pub available: u64,
    /// In bytes.
    pub total: u64,
}

impl Disk {
    /// The file system that holds a folder.
    pub fn look(folder: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statvfs(folder)?;
        Ok(Self {
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }

    /// What has to be available.
    pub fn threshold(self) -> u64 {
        (self.total / 100 * THRESHOLD_PERCENT).min(THRESHOLD_BYTES_MAX)
    }

    /// Whether less is.
    pub fn is_short(self) -> bool {
        self.total > 0 && self.available < self.threshold()
    }
}

/// Whether the node is under pressure, from one look to the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pressure {
    short_at: Option<Instant>,
}

impl Pressure {
    /// Takes a look into account; whether there is pressure.
    pub fn look(&mut self, disk: Disk, now: Instant) -> bool {
        if disk.is_short() {
            self.short_at = Some(now);
        } else if self.short_at.is_some_and(|at| now.duration_since(at) >= TRANSITION) {
            self.short_at = None;
        }
        self.short_at.is_some()
    }
}

/// A Pod that could go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its UID.
    pub uid: String,
    /// What it holds on disk.
    pub used: u64,
    /// What it asked for.
    pub request: u64,
    /// `spec.priority`.
    pub priority: i32,
}

/// Who goes first, as kubelet ranks: who uses more than it asked for, lower priority, more beyond what it asked for.
pub fn victim(candidates: Vec<Candidate>, disk: Disk) -> Option<Candidate> {
    let least = disk.threshold() / SHARE_LEAST;
    let ranked = candidates.into_iter().filter(|candidate| candidate.used > least);
    ranked.min_by_key(|candidate| {
        let beyond = i128::from(candidate.used) - i128::from(candidate.request);
        (Reverse(beyond > 0), candidate.priority, Reverse(beyond), candidate.uid.clone())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_stays_available_but_a_gibibyte_at_most() {
        let disk = |available, total| Disk { available, total };
        assert!(disk(9 << 20, 100 << 20).is_short() && !disk(11 << 20, 100 << 20).is_short());
        assert!(!disk(2 << 30, 1 << 40).is_short() && disk(1 << 29, 1 << 40).is_short());
        assert!(!disk(0, 0).is_short(), "a disk that nobody could ask");
    }

    #[test]
    fn pressure_begins_at_once_and_ends_after_a_while() {
        let (short, fine) = (Disk { available: 1, total: 1000 }, Disk { available: 500, total: 1000 });
        let (mut pressure, now) = (Pressure::default(), Instant::now());
        assert!(!pressure.look(fine, now));
        assert!(pressure.look(short, now));
        assert!(pressure.look(fine, now + TRANSITION / 2));
        assert!(!pressure.look(fine, now + TRANSITION));
    }

    #[test]
    fn who_uses_more_than_it_asked_for_goes_first() {
        let disk = Disk { available: 0, total: 1 << 30 };
        let one = |uid: &str, used: u64, request: u64, priority| Candidate {
            uid: uid.to_owned(),
            used: used << 20,
            request: request << 20,
            priority,
        };
        let first = |list: &[Candidate]| victim(list.to_vec(), disk).map(|candidate| candidate.uid);
        let (modest, greedy) = (one("modest", 400, 500, 0), one("greedy", 100, 50, 0));
        assert_eq!(first(&[modest.clone(), greedy.clone()]).as_deref(), Some("greedy"));
        let important = one("important", 300, 0, 1000);
        assert_eq!(first(&[important.clone(), greedy.clone()]).as_deref(), Some("greedy"));
        assert_eq!(first(&[one("more", 200, 0, 0), greedy]).as_deref(), Some("more"));
        // What holds nothing frees nothing.
        assert_eq!(first(&[one("idle", 1, 0, 0)]), None);
    }
}
