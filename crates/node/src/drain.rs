//! When a container that is to end may get its signal: once every live proxy has said that it sends it nothing and
//! that what was in flight has ended, or at the drain deadline.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

/// Longer than this is for ever.
const PERIOD_LONGEST: Duration = Duration::from_secs(i32::MAX as u64);

/// The proxies that have not said so yet.
pub fn missing<'a>(pod: &Pod, proxies: &'a BTreeSet<String>) -> Vec<&'a str> {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let drained = |name: &str| {
        let wanted = contract::drain::condition(name);
        conditions.iter().any(|condition| condition.type_ == wanted && condition.status == "True")
    };
    proxies.iter().map(String::as_str).filter(|name| !drained(name)).collect()
}

/// The grace period of a Pod that is being deleted.
pub fn grace(pod: &Pod) -> Duration {
    let spec = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let seconds = pod.metadata.deletion_grace_period_seconds.or(spec).unwrap_or(30);
    seconds_of(seconds)
}

/// A period as an object has it. What is negative is none, and what is longer than a lifetime is one: added to a clock, an
/// `int64` of seconds overflows it.
pub fn seconds_of(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).min(PERIOD_LONGEST)
}

/// Until when to wait for the proxies. `None`: not at all.
pub fn deadline(pod: &Pod) -> Option<Timestamp> {
    let grace = i64::try_from(grace(pod).as_secs()).unwrap_or(i64::MAX);
    contract::drain::deadline(pod.metadata.deletion_timestamp.as_ref()?.0, grace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn deadlines_leave_time_to_end() {
        for (grace, expected) in [
            (30, Some("00:00:20Z")),
            (3, Some("00:00:28Z")),
            (1, Some("00:00:28Z")),
            (10, Some("00:00:26Z")),
            (0, None),
        ] {
            let pod: Pod = serde_json::from_value(json!({"metadata": {
                "deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": grace}}))
            .unwrap();
            let expected = expected.map(|time| format!("2026-01-01T{time}").parse().unwrap());
            assert_eq!(deadline(&pod), expected, "{grace}");
        }
    }

    #[test]
    fn no_period_overflows_a_clock() {
        assert_eq!(seconds_of(-1), Duration::ZERO);
        assert_eq!(seconds_of(30), Duration::from_secs(30));
        let _ = tokio::time::Instant::now() + seconds_of(i64::MAX);
    }

    #[test]
    fn every_live_proxy_is_waited_for() {
        let pod: Pod = serde_json::from_value(json!({"status": {"conditions": [
            {"type": "a.proxy.gantry.dev/Drained", "status": "True", "reason": "Idle"},
            {"type": "b.proxy.gantry.dev/Drained", "status": "False"}]}}))
        .unwrap();
        let proxies: BTreeSet<String> = ["a".to_owned(), "b".to_owned()].into();
        assert_eq!(missing(&pod, &proxies), ["b"]);
        assert!(missing(&pod, &BTreeSet::new()).is_empty());
    }
}
