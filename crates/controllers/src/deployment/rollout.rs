//! How many replicas each ReplicaSet gets: arithmetic, without objects.
//!
//! <https://kubernetes.io/docs/concepts/workloads/controllers/deployment/#rolling-update-deployment>

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What the arithmetic needs of a ReplicaSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Set {
    /// `spec.replicas`.
    pub(super) replicas: i32,
    /// `status.availableReplicas`.
    pub(super) available: i32,
}

/// How far a rolling update may stray from the wanted number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) replicas: i32,
    pub(super) surge: i32,
    pub(super) unavailable: i32,
}

impl Limits {
    /// Percentages are of `replicas`; surge rounds up, unavailable down; if both come to 0, one may be unavailable.
    pub(super) fn new(replicas: i32, surge: Option<&IntOrString>, unavailable: Option<&IntOrString>) -> Self {
        let surge = resolve(surge, replicas, true);
        let mut unavailable = resolve(unavailable, replicas, false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        Self { replicas, surge, unavailable: unavailable.min(replicas) }
    }

    /// The most that all sets together may have.
    pub(super) fn total_max(&self) -> i32 {
        self.replicas + self.surge
    }

    /// The fewest that must be available.
    pub(super) fn available_min(&self) -> i32 {
        self.replicas - self.unavailable
    }
}

fn resolve(value: Option<&IntOrString>, of: i32, up: bool) -> i32 {
    match value {
        Some(IntOrString::Int(number)) => (*number).max(0),
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent.max(0) * i64::from(of);
            (if up { (product + 99) / 100 } else { product / 100 }) as i32
        }
        // The API server's default of both: 25 %.
        None => resolve(Some(&IntOrString::String("25%".to_owned())), of, up),
    }
}

/// Replicas of the new set in a rolling update.
pub(super) fn grow(limits: Limits, new: Set, old: &[Set]) -> i32 {
    if new.replicas >= limits.replicas {
        return limits.replicas;
    }
    let total = new.replicas + old.iter().map(|set| set.replicas).sum::<i32>();
    let room = (limits.total_max() - total).max(0);
    new.replicas + room.min(limits.replicas - new.replicas)
}

/// Replicas of each old set (oldest first) in a rolling update: first those go that are not available anyway, then
/// as many as the new set has made good.
pub(super) fn shrink(limits: Limits, new: Set, old: &[Set]) -> Vec<i32> {
    let mut replicas: Vec<i32> = old.iter().map(|set| set.replicas).collect();
    let total = new.replicas + replicas.iter().sum::<i32>();
    let new_unavailable = (new.replicas - new.available).max(0);
    let mut may_go = total - limits.available_min() - new_unavailable;
    if may_go <= 0 {
        return replicas;
    }
    for (replicas, set) in replicas.iter_mut().zip(old) {
        let gone = (set.replicas - set.available).max(0).min(may_go);
        *replicas -= gone;
        may_go -= gone;
    }
    let available = new.available + old.iter().map(|set| set.available.min(set.replicas)).sum::<i32>();
    let mut surplus = (available - limits.available_min()).max(0).min(may_go.max(0));
    for replicas in &mut replicas {
        let gone = (*replicas).min(surplus);
        *replicas -= gone;
        surplus -= gone;
    }
    replicas
}

/// The Deployment was scaled in the middle of a rollout: the difference is shared out by size, the larger sets first,
/// what is left over goes to the first. `sets` are the sets that have replicas, largest first.
pub(super) fn proportional(limits: Limits, sets: &[i32], max_before: &[i32]) -> Vec<i32> {
    let total: i32 = sets.iter().sum();
    let allowed = if limits.replicas > 0 { limits.total_max() } else { 0 };
    let difference = allowed - total;
    let mut result = sets.to_vec();
    let mut left = difference;
    for (index, replicas) in sets.iter().enumerate() {
        if left == 0 {
            break;
        }
        let before = max_before.get(index).copied().filter(|max| *max > 0).unwrap_or(total.max(1));
        let share = (f64::from(*replicas) * f64::from(allowed) / f64::from(before)).round() as i32 - replicas;
        let share = if difference > 0 { share.clamp(0, left) } else { share.clamp(left, 0) };
        result[index] = (replicas + share).max(0);
        left -= result[index] - replicas;
    }
    if let Some(first) = result.first_mut() {
        *first = (*first + left).max(0);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(replicas: i32, surge: &str, unavailable: &str) -> Limits {
        let value = |text: &str| match text.parse() {
            Ok(number) => IntOrString::Int(number),
            Err(_) => IntOrString::String(text.to_owned()),
        };
        Limits::new(replicas, Some(&value(surge)), Some(&value(unavailable)))
    }

    fn set(replicas: i32, available: i32) -> Set {
        Set { replicas, available }
    }

    #[test]
    fn percentages_round_up_for_surge_and_down_for_unavailable() {
        assert_eq!(limits(10, "25%", "25%"), Limits { replicas: 10, surge: 3, unavailable: 2 });
        assert_eq!(limits(1, "25%", "25%"), Limits { replicas: 1, surge: 1, unavailable: 0 });
        assert_eq!(limits(3, "0", "0"), Limits { replicas: 3, surge: 0, unavailable: 1 });
        assert_eq!(limits(3, "0", "0%").available_min(), 2);
    }

    #[test]
    fn one_replica_is_replaced_only_after_the_new_one_is_available() {
        let limits = limits(1, "25%", "25%");
        assert_eq!(grow(limits, set(0, 0), &[set(1, 1)]), 1);
        assert_eq!(shrink(limits, set(1, 0), &[set(1, 1)]), [1]);
        assert_eq!(shrink(limits, set(1, 1), &[set(1, 1)]), [0]);
    }

    #[test]
    fn what_is_unavailable_goes_first() {
        let limits = limits(4, "1", "1");
        assert_eq!(shrink(limits, set(1, 1), &[set(2, 0), set(2, 2)]), [0, 2]);
    }

    #[test]
    fn any_walk_keeps_within_the_limits_and_ends() {
        // A seeded walk: sets become available in any order.
        let mut seed = 1u64;
        let mut random = move |below: i32| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % (below.max(1) as u64)) as i32
        };
        for _ in 0..2000 {
            let limits = limits(1 + random(12), &random(4).to_string(), &random(4).to_string());
            let mut old = vec![set(limits.replicas, limits.replicas)];
            let mut new = set(0, 0);
            for step in 0.. {
                assert!(step < 500, "the rollout does not end: {limits:?} {new:?} {old:?}");
                new.replicas = grow(limits, new, &old);
                assert!(new.replicas + old[0].replicas <= limits.total_max());
                let shrunk = shrink(limits, new, &old);
                old[0].replicas = shrunk[0];
                old[0].available = old[0].available.min(shrunk[0]);
                assert!(new.available + old[0].available >= limits.available_min().min(limits.replicas));
                if new.available == limits.replicas && old[0].replicas == 0 {
                    break;
                }
                new.available +=
                    random(1 + new.replicas - new.available).max(i32::from(new.available < new.replicas));
            }
        }
    }

    #[test]
    fn scaling_in_the_middle_is_shared_out() {
        let scaled = proportional(limits(20, "0", "1"), &[8, 2], &[10, 10]);
        assert_eq!(scaled, [16, 4]);
        assert_eq!(proportional(limits(0, "25%", "25%"), &[8, 2], &[10, 10]), [0, 0]);
        assert_eq!(proportional(limits(5, "0", "1"), &[8, 2], &[10, 10]).iter().sum::<i32>(), 5);
    }
}
