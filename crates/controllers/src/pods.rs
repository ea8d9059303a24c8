//! What controllers ask of a Pod.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition};

/// The Pod's phase, `Pending` until it is set.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Neither ended nor being deleted.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Ended for good.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// When the Pod's last container ended; when the Pod was made, if none ran.
pub(crate) fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ends = statuses.filter_map(|status| status.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    ends.map(|time| time.0).max().or(pod.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

/// A condition of the Pod.
pub(crate) fn condition<'a>(pod: &'a Pod, name: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == name)
}

/// Whether the condition Ready is True.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// `Ok` if the Pod has been ready for `seconds_min`; else the time until it will be, if it stays ready.
pub(crate) fn availability(pod: &Pod, seconds_min: i32, now: Timestamp) -> Result<(), Option<Duration>> {
    let Some(ready) = condition(pod, "Ready").filter(|ready| ready.status == "True") else {
        return Err(None);
    };
    if seconds_min <= 0 {
        return Ok(());
    }
    let Some(since) = &ready.last_transition_time else {
        return Err(None);
    };
    let until = since.0 + SignedDuration::from_secs(i64::from(seconds_min));
    match Duration::try_from(now.duration_until(until)) {
        Ok(left) if !left.is_zero() => Err(Some(left)),
        _ => Ok(()),
    }
}

/// Restarts of the Pod's containers, added up.
pub(crate) fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.map(|status| status.restart_count).sum()
}
