//! The Deployment's status: counts, and the conditions Available, Progressing and ReplicaFailure.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::rollout::Limits;

/// What the API server's default means "no deadline".
const NO_DEADLINE: i32 = i32::MAX;

/// The status as it should be, and when to look again for the progress deadline.
pub(super) fn status(
    deployment: &Deployment,
    limits: Limits,
    new: Option<&Arc<ReplicaSet>>,
    sets: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    let before = deployment.status.clone().unwrap_or_default();
    let sum = |read: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
        sets.iter().filter_map(|set| set.status.as_ref()).map(read).sum()
    };
    let replicas = sum(|status| status.replicas);
    let available = sum(|status| status.available_replicas.unwrap_or(0));
    let updated = new.and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas);
    let status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: nonzero(replicas),
        updated_replicas: nonzero(updated),
        ready_replicas: nonzero(sum(|status| status.ready_replicas.unwrap_or(0))),
        available_replicas: nonzero(available),
        unavailable_replicas: nonzero((limits.replicas.max(replicas) - available).max(0)),
        terminating_replicas: nonzero(sum(|status| status.terminating_replicas.unwrap_or(0))),
        collision_count: before.collision_count,
        conditions: before.conditions.clone(),
    };
    let mut conditions = Conditions { list: before.conditions.clone().unwrap_or_default(), now };
    if available >= limits.available_min() {
        conditions.set("Available", true, "MinimumReplicasAvailable", "Deployment has minimum availability.");
    } else {
        let message = "Deployment does not have minimum availability.";
        conditions.set("Available", false, "MinimumReplicasUnavailable", message);
    }
    let next = progressing(deployment, limits, new, &before, &status, &mut conditions);
    let failure = sets
        .iter()
        .flat_map(|set| set.status.iter().flat_map(|status| status.conditions.iter().flatten()))
        .find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True");
    match failure {
        Some(failure) => conditions.set(
            "ReplicaFailure",
            true,
            failure.reason.as_deref().unwrap_or_default(),
            failure.message.as_deref().unwrap_or_default(),
        ),
        None => conditions.list.retain(|condition| condition.type_ != "ReplicaFailure"),
    }
    (DeploymentStatus { conditions: Some(conditions.list), ..status }, next)
}

fn nonzero(number: i32) -> Option<i32> {
    (number != 0).then_some(number)
}

fn progressing(
    deployment: &Deployment,
    limits: Limits,
    new: Option<&Arc<ReplicaSet>>,
    before: &DeploymentStatus,
    status: &DeploymentStatus,
    conditions: &mut Conditions,
) -> Option<Duration> {
    let spec = deployment.spec.as_ref()?;
    let deadline = spec.progress_deadline_seconds.filter(|seconds| *seconds != NO_DEADLINE)?;
    let known = conditions.get("Progressing").cloned();
    let reason = known.as_ref().and_then(|known| known.reason.clone()).unwrap_or_default();
    if spec.paused == Some(true) {
        if reason != "DeploymentPaused" {
            conditions.set_unknown("Progressing", "DeploymentPaused", "Deployment is paused");
        }
        return None;
    }
    if reason == "DeploymentPaused" {
        conditions.set_unknown("Progressing", "DeploymentResumed", "Deployment is resumed");
    }
    let count = |value: Option<i32>| value.unwrap_or(0);
    let name = new.map(|set| set.name_any()).unwrap_or_else(|| deployment.name_any());
    let what = if new.is_some() { "ReplicaSet" } else { "Deployment" };
    let complete = count(status.updated_replicas) == limits.replicas
        && count(status.replicas) == limits.replicas
        && count(status.available_replicas) == limits.replicas
        && new.is_some();
    if complete {
        let message = format!("{what} \"{name}\" has successfully progressed.");
        conditions.set("Progressing", true, "NewReplicaSetAvailable", &message);
        return None;
    }
    if reason == "NewReplicaSetAvailable"
        && count(status.replicas) == count(status.updated_replicas)
        && new.is_some()
    {
        // A rollout that is over stays over, whatever its Pods do later.
        return None;
    }
    let old = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    let progressed = count(status.updated_replicas) > count(before.updated_replicas)
        || old(status) < old(before)
        || count(status.ready_replicas) > count(before.ready_replicas)
        || count(status.available_replicas) > count(before.available_replicas);
    let new_version = before.observed_generation != deployment.metadata.generation
        && known.as_ref().is_some_and(|known| known.reason.as_deref() == Some("ProgressDeadlineExceeded"))
        && count(status.updated_replicas) == 0;
    if progressed || known.is_none() || new_version || reason == "NewReplicaSetAvailable" {
        let message = format!("{what} \"{name}\" is progressing.");
        conditions.renew("Progressing", "ReplicaSetUpdated", &message);
        return Some(Duration::from_secs(u64::try_from(deadline).unwrap_or(0) + 1));
    }
    let since = known.and_then(|known| known.last_update_time).map_or(conditions.now, |time| time.0);
    let left = conditions.now.duration_until(since + SignedDuration::from_secs(i64::from(deadline)));
    match Duration::try_from(left) {
        Ok(left) if !left.is_zero() => Some(left + Duration::from_secs(1)),
        _ => {
            let message = format!("{what} \"{name}\" has timed out progressing.");
            conditions.set("Progressing", false, "ProgressDeadlineExceeded", &message);
            None
        }
    }
}

struct Conditions {
    list: Vec<DeploymentCondition>,
    now: Timestamp,
}

impl Conditions {
    fn get(&self, kind: &str) -> Option<&DeploymentCondition> {
        self.list.iter().find(|condition| condition.type_ == kind)
    }

    /// Sets the condition; times move only when status, or reason, change.
    fn set(&mut self, kind: &str, status: bool, reason: &str, message: &str) {
        let status = if status { "True" } else { "False" };
        let same = self
            .get(kind)
            .is_some_and(|known| known.status == status && known.reason.as_deref() == Some(reason));
        if !same {
            self.put(kind, status, reason, message);
        }
    }

    fn set_unknown(&mut self, kind: &str, reason: &str, message: &str) {
        self.put(kind, "Unknown", reason, message);
    }

    /// Like set, True, but the update time moves always: the progress deadline counts from it.
    fn renew(&mut self, kind: &str, reason: &str, message: &str) {
        self.put(kind, "True", reason, message);
    }

    fn put(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        let known = self.get(kind).filter(|known| known.status == status);
        let transition = known.and_then(|known| known.last_transition_time.clone()).unwrap_or(Time(self.now));
        let condition = DeploymentCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_update_time: Some(Time(self.now)),
            last_transition_time: Some(transition),
        };
        match self.list.iter_mut().find(|known| known.type_ == kind) {
            Some(known) => *known = condition,
            None => self.list.push(condition),
        }
    }
}
