//! What there is to do for one Deployment, in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::rollout::{self, Limits, Set};
use super::{DESIRED_REPLICAS, MAX_REPLICAS, REVISION, REVISION_HISTORY, progress};
use crate::owner::{TEMPLATE_HASH, controller_ref, same_template, template_hash};

/// Annotations of a Deployment that its ReplicaSets do not inherit.
const OWN_ANNOTATIONS: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];
/// Old sets that are kept for rollback when the Deployment does not say.
const HISTORY_DEFAULT: i32 = 10;

/// One write.
#[derive(Debug)]
pub(super) enum Action {
    /// A new version's ReplicaSet.
    Create(Box<ReplicaSet>),
    /// Replicas (from, to) or annotations of a set.
    Change { set: Arc<ReplicaSet>, patch: Value, replicas: Option<(i32, i32)> },
    /// A version beyond the history limit.
    Delete(Arc<ReplicaSet>),
    /// The Deployment's own revision annotation.
    Revision(i64),
    /// The Deployment's status.
    Status(Box<DeploymentStatus>),
}

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) actions: Vec<Action>,
    pub(super) next: Option<Duration>,
}

/// `sets` are the Deployment's own, oldest first.
pub(super) fn plan(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> Result<Plan, serde_json::Error> {
    let spec = deployment.spec.clone().unwrap_or_default();
    let view = View::new(deployment, &spec, sets);
    let (status, next) = progress::status(deployment, view.limits, view.new.as_ref(), sets, now);
    let mut actions = Vec::new();
    if deployment.metadata.deletion_timestamp.is_none() {
        let paused = spec.paused == Some(true);
        if view.scaled() {
            view.share_out(&mut actions);
        } else if !paused {
            view.roll(&mut actions)?;
        }
        if !paused && view.complete() {
            view.clean_up(&mut actions);
        }
    }
    if deployment.status.as_ref() != Some(&status) {
        actions.push(Action::Status(Box::new(status)));
    }
    Ok(Plan { actions, next })
}

struct View<'a> {
    deployment: &'a Deployment,
    spec: &'a DeploymentSpec,
    limits: Limits,
    new: Option<Arc<ReplicaSet>>,
    old: Vec<Arc<ReplicaSet>>,
}

impl<'a> View<'a> {
    fn new(deployment: &'a Deployment, spec: &'a DeploymentSpec, sets: &[Arc<ReplicaSet>]) -> Self {
        let rolling = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let mut limits = Limits::new(
            spec.replicas.unwrap_or(1),
            rolling.and_then(|rolling| rolling.max_surge.as_ref()),
            rolling.and_then(|rolling| rolling.max_unavailable.as_ref()),
        );
        if recreates(spec) {
            limits = Limits { surge: 0, unavailable: 0, ..limits };
        }
        let template =
            |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
        let new = sets.iter().find(|set| same_template(&template(set), &spec.template)).cloned();
        let old = sets
            .iter()
            .filter(|set| new.as_ref().is_none_or(|new| !Arc::ptr_eq(new, set)))
            .cloned()
            .collect();
        Self { deployment, spec, limits, new, old }
    }

    fn active(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.new.iter().chain(&self.old).filter(|set| replicas(set) > 0)
    }

    /// Whether `spec.replicas` changed since the sets were last scaled.
    fn scaled(&self) -> bool {
        self.active().any(|set| {
            number(set.as_ref(), DESIRED_REPLICAS)
                .is_some_and(|desired| desired != i64::from(self.limits.replicas))
        })
    }

    fn share_out(&self, actions: &mut Vec<Action>) {
        let mut active: Vec<_> = self.active().cloned().collect();
        let rolling = !recreates(self.spec);
        if active.len() <= 1 || !rolling {
            let target = self.new.clone().filter(|new| replicas(new) > 0).or_else(|| active.pop());
            actions.extend(target.and_then(|set| self.scale(&set, self.limits.replicas)));
            return;
        }
        active.sort_by_key(|set| std::cmp::Reverse(replicas(set)));
        let sizes: Vec<_> = active.iter().map(|set| replicas(set)).collect();
        let before: Vec<_> =
            active.iter().map(|set| number(set.as_ref(), MAX_REPLICAS).unwrap_or(0) as i32).collect();
        let shared = rollout::proportional(self.limits, &sizes, &before);
        actions.extend(active.iter().zip(shared).filter_map(|(set, replicas)| self.scale(set, replicas)));
    }

    fn roll(&self, actions: &mut Vec<Action>) -> Result<(), serde_json::Error> {
        let revision =
            1 + self.old.iter().filter_map(|set| number(set.as_ref(), REVISION)).max().unwrap_or(0);
        let old: Vec<_> = self.old.iter().map(numbers).collect();
        if recreates(self.spec) {
            let running: i32 = self
                .old
                .iter()
                .filter_map(|set| set.status.as_ref())
                .map(|status| status.replicas + status.terminating_replicas.unwrap_or(0))
                .sum();
            actions.extend(self.old.iter().filter_map(|set| self.scale(set, 0)));
            if running > 0 || self.old.iter().any(|set| replicas(set) > 0) {
                return Ok(());
            }
        }
        let Some(new) = &self.new else {
            let size = if recreates(self.spec) {
                self.limits.replicas
            } else {
                rollout::grow(self.limits, Set { replicas: 0, available: 0 }, &old)
            };
            actions.push(Action::Create(Box::new(self.new_set(revision, size)?)));
            actions.push(Action::Revision(revision));
            return Ok(());
        };
        let revision = revision.max(number(new.as_ref(), REVISION).unwrap_or(0));
        let size = if recreates(self.spec) {
            self.limits.replicas
        } else {
            rollout::grow(self.limits, numbers(new), &old)
        };
        let grown = self.change(new, Some(revision), size);
        let waits =
            grown.as_ref().is_some_and(|action| matches!(action, Action::Change { replicas: Some(_), .. }));
        actions.extend(grown);
        if number(self.deployment, REVISION) != Some(revision) {
            actions.push(Action::Revision(revision));
        }
        // Down only from counts that the last step up is part of.
        if !waits && !recreates(self.spec) {
            let shrunk = rollout::shrink(self.limits, numbers(new), &old);
            actions
                .extend(self.old.iter().zip(shrunk).filter_map(|(set, replicas)| self.scale(set, replicas)));
        }
        Ok(())
    }

    fn complete(&self) -> bool {
        self.new.as_ref().is_some_and(|new| numbers(new).available == self.limits.replicas)
            && self.old.iter().all(|set| replicas(set) == 0)
    }

    /// Deletes the oldest sets beyond the history limit.
    fn clean_up(&self, actions: &mut Vec<Action>) {
        let keep = usize::try_from(self.spec.revision_history_limit.unwrap_or(HISTORY_DEFAULT)).unwrap_or(0);
        let mut idle: Vec<_> = self
            .old
            .iter()
            .filter(|set| {
                let status = set.status.clone().unwrap_or_default();
                status.replicas == 0
                    && replicas(set) == 0
                    && status.observed_generation >= set.metadata.generation
                    && set.metadata.deletion_timestamp.is_none()
            })
            .collect();
        idle.sort_by_key(|set| number(set.as_ref(), REVISION).unwrap_or(0));
        let surplus = idle.len().saturating_sub(keep);
        actions.extend(idle.into_iter().take(surplus).map(|set| Action::Delete(Arc::clone(set))));
    }

    fn scale(&self, set: &Arc<ReplicaSet>, to: i32) -> Option<Action> {
        self.change(set, None, to)
    }

    /// The patch that gives `set` its replicas and annotations, if it does not have them.
    fn change(&self, set: &Arc<ReplicaSet>, revision: Option<i64>, to: i32) -> Option<Action> {
        let known = set.annotations();
        let mut annotations = BTreeMap::new();
        if to > 0 || revision.is_some() {
            annotations.extend(self.scale_annotations());
        }
        let mut minimum = None;
        if let Some(revision) = revision {
            annotations.extend(self.inherited());
            let text = revision.to_string();
            if let Some(old) = known.get(REVISION).filter(|old| **old != text) {
                let history = known.get(REVISION_HISTORY);
                let history = history.map_or_else(|| old.clone(), |history| format!("{history},{old}"));
                annotations.insert(REVISION_HISTORY.to_owned(), history);
            }
            annotations.insert(REVISION.to_owned(), text);
            let wanted = self.spec.min_ready_seconds.unwrap_or(0);
            let has = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
            minimum = (wanted != has).then_some(wanted);
        }
        annotations.retain(|key, value| known.get(key) != Some(value));
        let from = replicas(set);
        if annotations.is_empty() && from == to && minimum.is_none() {
            return None;
        }
        let mut patch = json!({"metadata": {"uid": set.uid(), "resourceVersion": set.resource_version()}});
        if !annotations.is_empty() {
            patch["metadata"]["annotations"] = json!(annotations);
        }
        if from != to {
            patch["spec"]["replicas"] = json!(to);
        }
        if let Some(minimum) = minimum {
            patch["spec"]["minReadySeconds"] = json!(minimum);
        }
        Some(Action::Change { set: Arc::clone(set), patch, replicas: (from != to).then_some((from, to)) })
    }

    fn scale_annotations(&self) -> [(String, String); 2] {
        [
            (DESIRED_REPLICAS.to_owned(), self.limits.replicas.to_string()),
            (MAX_REPLICAS.to_owned(), self.limits.total_max().to_string()),
        ]
    }

    fn inherited(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let annotations = self.deployment.annotations().iter();
        annotations
            .filter(|(key, _)| !OWN_ANNOTATIONS.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
    }

    fn new_set(&self, revision: i64, replicas: i32) -> Result<ReplicaSet, serde_json::Error> {
        let collisions =
            self.deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        let hash = template_hash(&self.spec.template, collisions)?;
        let mut template = self.spec.template.clone();
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(TEMPLATE_HASH.to_owned(), hash.clone());
        let labels = labels.clone();
        let mut selector = self.spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(TEMPLATE_HASH.to_owned(), hash.clone());
        let mut annotations: BTreeMap<_, _> = self.inherited().chain(self.scale_annotations()).collect();
        annotations.insert(REVISION.to_owned(), revision.to_string());
        Ok(ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", self.deployment.name_any())),
                namespace: self.deployment.namespace(),
                labels: Some(labels),
                annotations: Some(annotations),
                owner_references: Some(vec![controller_ref(self.deployment)]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(replicas),
                min_ready_seconds: self.spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        })
    }
}

fn recreates(spec: &DeploymentSpec) -> bool {
    spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn numbers(set: &Arc<ReplicaSet>) -> Set {
    let available = set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0);
    Set { replicas: replicas(set), available }
}

fn number(object: &impl ResourceExt, annotation: &str) -> Option<i64> {
    object.annotations().get(annotation)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(image: &str, more: Value) -> Deployment {
        let mut value = json!({
            "metadata": {"name": "d", "namespace": "n", "uid": "dep", "generation": 1, "annotations": {"note": "1"}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "1"}}, "progressDeadlineSeconds": 600,
                     "template": template(image)}});
        json_patch::merge(&mut value, &more);
        serde_json::from_value(value).unwrap()
    }

    fn template(image: &str) -> Value {
        json!({"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
    }

    fn set(image: &str, revision: i64, replicas: i32, available: i32) -> Arc<ReplicaSet> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": format!("d-{image}"), "namespace": "n", "uid": image, "generation": 1,
                    "annotations": {REVISION: revision.to_string(), DESIRED_REPLICAS: "2", MAX_REPLICAS: "3", "note": "1"}},
                "spec": {"replicas": replicas, "selector": {}, "template": template(image)},
                "status": {"replicas": replicas, "availableReplicas": available, "readyReplicas": available, "observedGeneration": 1}
            }))
            .unwrap(),
        )
    }

    fn told(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Vec<String> {
        let plan = plan(deployment, sets, "2026-01-01T00:00:00Z".parse().unwrap()).unwrap();
        let lines = plan.actions.iter().filter_map(|action| match action {
            Action::Create(set) => Some(format!("create {}", set.spec.as_ref().unwrap().replicas.unwrap())),
            Action::Change { set, replicas: Some((from, to)), .. } => {
                Some(format!("{} {from}->{to}", set.name_any()))
            }
            Action::Change { set, patch, .. } => {
                Some(format!("{} {}", set.name_any(), patch["metadata"]["annotations"]))
            }
            Action::Delete(set) => Some(format!("delete {}", set.name_any())),
            Action::Revision(revision) => Some(format!("revision {revision}")),
            Action::Status(_) => None,
        });
        lines.collect()
    }

    #[test]
    fn a_first_version_is_made_whole() {
        assert_eq!(told(&deployment("v1", json!({})), &[]), ["create 2", "revision 1"]);
    }

    #[test]
    fn a_second_version_grows_by_the_surge_then_the_first_shrinks() {
        let new = deployment("v2", json!({"metadata": {"annotations": {REVISION: "2"}}}));
        assert_eq!(told(&new, &[set("v1", 1, 2, 2)]), ["create 1", "revision 2"]);
        assert!(told(&new, &[set("v1", 1, 2, 2), set("v2", 2, 1, 0)]).is_empty());
        assert_eq!(told(&new, &[set("v1", 1, 2, 2), set("v2", 2, 1, 1)]), ["d-v1 2->1"]);
        assert_eq!(told(&new, &[set("v1", 1, 1, 1), set("v2", 2, 1, 1)]), ["d-v2 1->2"]);
        assert_eq!(told(&new, &[set("v1", 1, 1, 1), set("v2", 2, 2, 2)]), ["d-v1 1->0"]);
    }

    #[test]
    fn rolling_back_gives_the_old_set_a_new_revision() {
        let back = deployment("v1", json!({"metadata": {"annotations": {REVISION: "2"}}}));
        let lines = told(&back, &[set("v1", 1, 0, 0), set("v2", 2, 2, 2)]);
        assert_eq!(lines, ["d-v1 0->1", "revision 3"]);
    }

    #[test]
    fn recreate_ends_the_old_before_it_starts_the_new() {
        let new = deployment("v2", json!({"spec": {"strategy": {"type": "Recreate"}}}));
        assert_eq!(told(&new, &[set("v1", 1, 2, 2)]), ["d-v1 2->0"]);
        assert_eq!(told(&new, &[set("v1", 1, 0, 0)]), ["create 2", "revision 2"]);
    }

    #[test]
    fn a_change_of_replicas_scales_and_a_paused_deployment_does_not_roll() {
        let scaled = deployment("v1", json!({"spec": {"replicas": 5}}));
        assert_eq!(told(&scaled, &[set("v1", 1, 2, 2)]), ["d-v1 2->5"]);
        let paused = deployment("v2", json!({"spec": {"paused": true}}));
        assert!(told(&paused, &[set("v1", 1, 2, 2)]).is_empty());
    }

    #[test]
    fn history_beyond_the_limit_goes_oldest_first() {
        let done = deployment(
            "v4",
            json!({"metadata": {"annotations": {REVISION: "4"}}, "spec": {"revisionHistoryLimit": 1}}),
        );
        let sets = [set("v1", 1, 0, 0), set("v2", 2, 0, 0), set("v3", 3, 0, 0), set("v4", 4, 2, 2)];
        assert_eq!(told(&done, &sets), ["delete d-v1", "delete d-v2"]);
    }

    fn condition(deployment: &Deployment, sets: &[Arc<ReplicaSet>], now: &str) -> (String, String) {
        let plan = plan(deployment, sets, now.parse().unwrap()).unwrap();
        let status = plan.actions.into_iter().find_map(|action| match action {
            Action::Status(status) => Some(status),
            _ => None,
        });
        let conditions =
            status.map_or_else(|| deployment.status.clone().unwrap().conditions, |s| s.conditions);
        let progressing = conditions.unwrap().into_iter().find(|one| one.type_ == "Progressing").unwrap();
        (progressing.status, progressing.reason.unwrap())
    }

    #[test]
    fn the_progress_deadline_passes_only_without_progress() {
        let status = |reason: &str, time: &str| {
            json!({"status": {"observedGeneration": 1, "replicas": 3, "updatedReplicas": 1, "readyReplicas": 2, "availableReplicas": 2,
                "conditions": [{"type": "Progressing", "status": "True", "reason": reason, "lastUpdateTime": time}]}})
        };
        let sets = [set("v1", 1, 2, 2), set("v2", 2, 1, 0)];
        let waiting = deployment("v2", status("ReplicaSetUpdated", "2026-01-01T00:00:00Z"));
        assert_eq!(condition(&waiting, &sets, "2026-01-01T00:09:00Z").1, "ReplicaSetUpdated");
        let late = condition(&waiting, &sets, "2026-01-01T00:10:01Z");
        assert_eq!(late, ("False".to_owned(), "ProgressDeadlineExceeded".to_owned()));
        let grown = [set("v1", 1, 2, 2), set("v2", 2, 1, 1)];
        assert_eq!(condition(&waiting, &grown, "2026-01-01T00:10:01Z").1, "ReplicaSetUpdated");
        let whole = [set("v1", 1, 0, 0), set("v2", 2, 2, 2)];
        assert_eq!(condition(&waiting, &whole, "2026-01-01T00:10:01Z").1, "NewReplicaSetAvailable");
    }
}
