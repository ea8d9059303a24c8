//! Draining, as `node`, `proxy` and the daemon agree on it: which Leases count, what a proxy says of a Pod, and until
//! when `node` waits for it.
//!
//! A proxy that takes part has a Lease with [`LABEL`] in [`NAMESPACE`]. For each Pod that is deleted it applies
//! [`condition`] as its own field [`manager`], once nothing is in flight or at the [`deadline`]. `node` sends the stop
//! signal when every such proxy has said so, or at the same deadline.

use jiff::{SignedDuration, Timestamp};

/// Where the proxies' Leases are.
pub const NAMESPACE: &str = "gantry-system";
/// The label of a Lease whose holder takes part in draining; its value is [`LABEL_VALUE`].
pub const LABEL: &str = "proxy.gantry.dev/drain";
/// The value of [`LABEL`].
pub const LABEL_VALUE: &str = "true";
/// The Lease's annotation that says which process holds it: a [`crate::Holder`] as JSON.
pub const HOLDER: &str = "proxy.gantry.dev/holder";
/// The least that a program gets for its own shutdown, in seconds.
const RESERVE_LEAST_S: i64 = 2;

/// The label selector of the Leases that count.
pub fn selector() -> String {
    format!("{LABEL}={LABEL_VALUE}")
}

/// The condition with which the proxy `name` says that it has drained a Pod.
pub fn condition(name: &str) -> String {
    format!("{}/Drained", manager(name))
}

/// The field manager of the proxy `name`.
pub fn manager(name: &str) -> String {
    format!("{name}.proxy.gantry.dev")
}

/// Until when a Pod that is deleted may be drained: its deletion deadline less max(2 s, a third of its grace period).
/// A third of a second that does not come out even goes to the program. `None`, without a grace period: not at all.
pub fn deadline(deletion: Timestamp, grace_s: i64) -> Option<Timestamp> {
    if grace_s <= 0 {
        return None;
    }
    let third = grace_s / 3 + i64::from(grace_s % 3 != 0);
    let reserve = SignedDuration::from_secs(third.max(RESERVE_LEAST_S));
    Some(deletion.saturating_sub(reserve).unwrap_or(Timestamp::MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_leaves_a_third_of_the_grace_but_two_seconds_at_least() {
        let deletion = Timestamp::from_second(1_000_000).unwrap();
        let reserve = |grace| deadline(deletion, grace).map(|at| (deletion.as_second() - at.as_second(), at));
        for (grace, expected) in [
            (i64::MIN, None),
            (-1, None),
            (0, None),
            (1, Some(2)),
            (2, Some(2)),
            (5, Some(2)),
            (6, Some(2)),
            (7, Some(3)),
            (8, Some(3)),
            (9, Some(3)),
            (10, Some(4)),
            (29, Some(10)),
            (30, Some(10)),
            (31, Some(11)),
            (3600, Some(1200)),
        ] {
            let found = reserve(grace);
            assert_eq!(found.map(|(reserve, _)| reserve), expected, "{grace}");
            assert!(found.is_none_or(|(_, at)| at.subsec_nanosecond() == 0), "{grace}");
        }
        // A grace period beyond all times does not wrap round.
        assert_eq!(deadline(deletion, i64::MAX), Some(Timestamp::MIN));
        assert_eq!(deadline(Timestamp::MIN, 30), Some(Timestamp::MIN));
    }

    #[test]
    fn a_proxy_speaks_under_its_own_name() {
        assert_eq!(condition("proxy-1"), "proxy-1.proxy.gantry.dev/Drained");
        assert_eq!(manager("proxy-1"), "proxy-1.proxy.gantry.dev");
        assert_eq!(selector(), "proxy.gantry.dev/drain=true");
    }
}
