//! ReplicaSets: as many Pods as `spec.replicas` says.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::cache::{Change, Key};
use crate::control::{self, Next};
use crate::error::absent_is_fine;
use crate::event::Type;
use crate::owner::{controller_of, controller_ref, is_controlled_by, selects};
use crate::pods;
use crate::queue::Queue;
use crate::{CONTROLLERS_USER, Context, Controller, Error};

/// Pods that are made or ended in one look, so that a mistyped number does not fill the machine in one go.
const BURST_PODS: usize = 500;
/// Pods that have ended for good, as evicted ones have, and are kept of each ReplicaSet for whoever asks why. Kubernetes
/// keeps 12,500 of a cluster; on one machine they would only hide what runs.
const ENDED_PODS: usize = 5;

pub(crate) const CONTROLLER: Controller = Controller {
    name: "replicaset",
    user: CONTROLLERS_USER,
    about: "makes and ends Pods until there are as many as a ReplicaSet wants",
    run: |context| run(context).boxed(),
};

async fn run(context: Context) {
    let queue = Queue::new();
    control::feed(&context.scope, &queue, &context.caches.replica_sets, control::own);
    let sets = context.caches.replica_sets.clone();
    control::feed(&context.scope, &queue, &context.caches.pods, move |change: &Change<Pod>| {
        let mut keys = Vec::new();
        for pod in change.either() {
            match controller_of(&pod.metadata) {
                Some(owner) if owner.kind == "ReplicaSet" => {
                    keys.push(Key::new(pod.namespace().unwrap_or_default(), owner.name.clone()));
                }
                Some(_) => {}
                // An orphan may be adopted by any set that selects it.
                None => {
                    let namespace = pod.namespace().unwrap_or_default();
                    let near = sets.list(&namespace);
                    keys.extend(
                        near.iter()
                            .filter(|set| selects(&set.spec_selector(), &pod.metadata))
                            .map(|s| Key::of(s.as_ref())),
                    );
                }
            }
        }
        keys
    });
    context.caches.pods.ready().await;
    context.caches.replica_sets.ready().await;
    control::run(CONTROLLER.name, queue, |key| reconcile(&context, key)).await;
}

trait Selector {
    fn spec_selector(&self) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
}

impl Selector for ReplicaSet {
    fn spec_selector(&self) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector {
        self.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default()
    }
}

/// What there is to do for one ReplicaSet.
#[derive(Debug, Default)]
struct Plan {
    adopt: Vec<Arc<Pod>>,
    release: Vec<Arc<Pod>>,
    create: usize,
    delete: Vec<Arc<Pod>>,
    /// Ended ones that nobody needs any more.
    collect: Vec<Arc<Pod>>,
    status: ReplicaSetStatus,
    next: Option<Duration>,
}

fn plan(set: &ReplicaSet, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let selector = set.spec_selector();
    let ending = set.metadata.deletion_timestamp.is_some();
    let mut plan = Plan::default();
    let mut owned = Vec::new();
    for pod in pods {
        let matches = selects(&selector, &pod.metadata);
        if is_controlled_by(&pod.metadata, uid) {
            if matches {
                owned.push(Arc::clone(pod));
            } else if !ending {
                plan.release.push(Arc::clone(pod));
            }
        } else if matches && !ending && controller_of(&pod.metadata).is_none() && pods::is_active(pod) {
            plan.adopt.push(Arc::clone(pod));
            owned.push(Arc::clone(pod));
        }
    }
    let (active, rest): (Vec<_>, Vec<_>) = owned.into_iter().partition(|pod| pods::is_active(pod));
    let wanted = usize::try_from(set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)).unwrap_or(0);
    if !ending {
        plan.create = wanted.saturating_sub(active.len()).min(BURST_PODS);
        let surplus = active.len().saturating_sub(wanted).min(BURST_PODS);
        plan.delete = first_to_go(&active, surplus);
    }
    if !ending {
        plan.collect = oldest_ended(&rest);
    }
    let terminating = rest.iter().filter(|pod| !pods::is_terminal(pod)).count();
    (plan.status, plan.next) = status(set, &active, terminating, now);
    plan
}

/// The `count` Pods whose end costs least: unscheduled, pending, unready, lower deletion cost, younger.
fn first_to_go(active: &[Arc<Pod>], count: usize) -> Vec<Arc<Pod>> {
    let mut ranked: Vec<_> = active.to_vec();
    ranked.sort_by_cached_key(|pod| {
        let phase = match pods::phase(pod) {
            "Pending" => 0,
            "Unknown" => 1,
            _ => 2,
        };
        let cost: i32 = pod
            .annotations()
            .get("controller.kubernetes.io/pod-deletion-cost")
            .and_then(|cost| cost.parse().ok())
            .unwrap_or(0);
        let scheduled = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let ready_since = pods::condition(pod, "Ready")
            .filter(|ready| ready.status == "True")
            .and_then(|ready| ready.last_transition_time.as_ref().map(|time| time.0));
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (
            scheduled,
            phase,
            pods::is_ready(pod),
            cost,
            Reverse(ready_since),
            Reverse(pods::restarts(pod)),
            Reverse(created),
            pod.name_any(),
        )
    });
    ranked.truncate(count);
    ranked
}

/// Those that ended before the last [`ENDED_PODS`].
fn oldest_ended(pods: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
    let ended = pods.iter().filter(|pod| pods::is_terminal(pod) && pod.metadata.deletion_timestamp.is_none());
    let mut ended: Vec<_> = ended.cloned().collect();
    ended.sort_by_cached_key(|pod| (pods::ended_at(pod), pod.name_any()));
    ended.truncate(ended.len().saturating_sub(ENDED_PODS).min(BURST_PODS));
    ended
}

fn status(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: usize,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let spec = set.spec.clone().unwrap_or_default();
    let seconds_min = spec.min_ready_seconds.unwrap_or(0);
    let template =
        spec.template.and_then(|template| template.metadata).and_then(|meta| meta.labels).unwrap_or_default();
    let (mut labeled, mut ready, mut available, mut next) = (0, 0, 0, None::<Duration>);
    for pod in active {
        if template.iter().all(|(key, value)| pod.labels().get(key) == Some(value)) {
            labeled += 1;
        }
        if pods::is_ready(pod) {
            ready += 1;
        }
        match pods::availability(pod, seconds_min, now) {
            Ok(()) => available += 1,
            Err(Some(left)) => next = Some(next.map_or(left, |next| next.min(left))),
            Err(None) => {}
        }
    }
    let status = ReplicaSetStatus {
        replicas: active.len() as i32,
        fully_labeled_replicas: Some(labeled),
        ready_replicas: Some(ready),
        available_replicas: Some(available),
        terminating_replicas: Some(terminating as i32),
        observed_generation: set.metadata.generation,
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
    };
    (status, next)
}

async fn reconcile(context: &Context, key: Key) -> Result<Next, Error> {
    let Some(set) = context.caches.replica_sets.get(&key) else {
        return Ok(Next::Changed);
    };
    let plan = plan(&set, &context.caches.pods.list(&key.namespace), Timestamp::now());
    let api = Api::<Pod>::namespaced(context.client.clone(), &key.namespace);
    adopt_and_release(context, &api, &set, &plan).await?;
    let created = create(context, &api, &set, plan.create).await;
    delete(context, &api, &set, &plan.delete).await?;
    delete(context, &api, &set, &plan.collect).await?;
    write_status(context, &set, plan.status, created.as_ref().err()).await?;
    created?;
    Ok(plan.next.map_or(Next::Changed, Next::After))
}

async fn adopt_and_release(
    context: &Context,
    api: &Api<Pod>,
    set: &ReplicaSet,
    plan: &Plan,
) -> Result<(), Error> {
    for pod in &plan.adopt {
        let patch = json!({"metadata": {"uid": pod.uid(), "ownerReferences": [controller_ref(set)]}});
        let name = pod.name_any();
        let patched = api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        if let Some(pod) = absent_is_fine(patched.map_err(Error::api("patch", format!("pods/{name}"))))? {
            context.caches.pods.caught_up(&pod).await?;
        }
    }
    for pod in &plan.release {
        let uid = set.uid().unwrap_or_default();
        let patch =
            json!({"metadata": {"uid": pod.uid(), "ownerReferences": [{"$patch": "delete", "uid": uid}]}});
        let name = pod.name_any();
        let patched = api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        if let Some(pod) = absent_is_fine(patched.map_err(Error::api("patch", format!("pods/{name}"))))? {
            context.caches.pods.caught_up(&pod).await?;
        }
    }
    Ok(())
}

async fn create(context: &Context, api: &Api<Pod>, set: &ReplicaSet, count: usize) -> Result<(), Error> {
    let Some(template) = set.spec.as_ref().and_then(|spec| spec.template.as_ref()) else {
        return Ok(());
    };
    let meta = template.metadata.clone().unwrap_or_default();
    let pod = Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.name_any())),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_ref(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    };
    let mut last = None;
    let mut failure = None;
    for _ in 0..count {
        match api.create(&PostParams::default(), &pod).await {
            Ok(made) => {
                let message = format!("Created pod: {}", made.name_any());
                context.events.say(set, Type::Normal, "SuccessfulCreate", message);
                last = Some(made);
            }
            Err(error) => {
                let message = format!("Error creating: {}", crate::error::chain(&error));
                context.events.say(set, Type::Warning, "FailedCreate", message);
                failure = Some(Error::api("create", format!("pods of {}", set.name_any()))(error));
                break;
            }
        }
    }
    if let Some(made) = last {
        context.caches.pods.caught_up(&made).await?;
    }
    failure.map_or(Ok(()), Err)
}

async fn delete(context: &Context, api: &Api<Pod>, set: &ReplicaSet, pods: &[Arc<Pod>]) -> Result<(), Error> {
    for pod in pods {
        let name = pod.name_any();
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        let deleted = api.delete(&name, &params).await.map_err(Error::api("delete", format!("pods/{name}")));
        match absent_is_fine(deleted)? {
            Some(either::Either::Left(ending)) => context.caches.pods.caught_up(&ending).await?,
            Some(either::Either::Right(_)) | None => {}
        }
        context.events.say(set, Type::Normal, "SuccessfulDelete", format!("Deleted pod: {name}"));
    }
    Ok(())
}

async fn write_status(
    context: &Context,
    set: &ReplicaSet,
    mut status: ReplicaSetStatus,
    failure: Option<&Error>,
) -> Result<(), Error> {
    set_failure(&mut status, failure);
    if set.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let key = Key::of(set);
    let api = Api::<ReplicaSet>::namespaced(context.client.clone(), &key.namespace);
    // The resource version makes a write from old state a conflict.
    let mut changed = set.clone();
    changed.metadata.managed_fields = None;
    changed.status = Some(status);
    let written = api.replace_status(&key.name, &PostParams::default(), &changed).await;
    match absent_is_fine(written.map_err(Error::api("replace", format!("replicasets/{key}"))))? {
        Some(written) => context.caches.replica_sets.caught_up(&written).await,
        None => Ok(()),
    }
}

fn set_failure(status: &mut ReplicaSetStatus, failure: Option<&Error>) {
    let conditions = status.conditions.get_or_insert_default();
    let position = conditions.iter().position(|condition| condition.type_ == "ReplicaFailure");
    match (failure, position) {
        (None, Some(position)) => {
            conditions.remove(position);
        }
        (Some(error), None) => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some("FailedCreate".to_owned()),
            message: Some(crate::error::chain(error)),
            last_transition_time: Some(Time(Timestamp::now())),
        }),
        (Some(error), Some(position)) => conditions[position].message = Some(crate::error::chain(error)),
        (None, None) => {}
    }
    if conditions.is_empty() {
        status.conditions = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "d", "uid": "set", "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"a": "1"}},
                     "template": {"metadata": {"labels": {"a": "1"}}}}
        }))
        .unwrap()
    }

    fn pod(name: &str, owner: Option<&str>, label: &str, ready: bool, more: serde_json::Value) -> Arc<Pod> {
        let owners = owner.map(|uid| json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "s", "uid": uid, "controller": true}]));
        let mut value = json!({
            "metadata": {"name": name, "namespace": "d", "uid": name, "labels": {"a": label}, "ownerReferences": owners},
            "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": if ready {"True"} else {"False"}, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
        });
        json_patch::merge(&mut value, &more);
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<String> {
        pods.iter().map(|pod| pod.name_any()).collect()
    }

    #[test]
    fn missing_pods_are_made_and_surplus_ones_end_in_order_of_cost() {
        let now = Timestamp::now();
        let pods = [
            pod("old", Some("set"), "1", true, json!({})),
            pod("unready", Some("set"), "1", false, json!({})),
            pod("pending", Some("set"), "1", false, json!({"status": {"phase": "Pending"}})),
            pod("ended", Some("set"), "1", false, json!({"status": {"phase": "Failed"}})),
            pod(
                "ending",
                Some("set"),
                "1",
                true,
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            ),
            pod("other", Some("else"), "1", true, json!({})),
        ];
        let up = plan(&set(5), &pods, now);
        assert_eq!((up.create, up.delete.len()), (2, 0));
        assert_eq!(
            (up.status.replicas, up.status.ready_replicas, up.status.terminating_replicas),
            (3, Some(1), Some(1))
        );
        let down = plan(&set(1), &pods, now);
        assert_eq!((down.create, names(&down.delete)), (0, vec!["pending".to_owned(), "unready".to_owned()]));
    }

    #[test]
    fn of_pods_that_have_ended_the_last_few_are_kept() {
        let ended = |second: usize| {
            let state = json!({"terminated": {"exitCode": 1, "finishedAt": format!("2026-01-01T00:00:{second:02}Z")}});
            let more = json!({"status": {"phase": "Failed", "reason": "Evicted", "containerStatuses": [
                {"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}]}});
            pod(&format!("ended-{second:02}"), Some("set"), "1", false, more)
        };
        let mut pods: Vec<_> = (0..ENDED_PODS + 2).rev().map(ended).collect();
        // Evicted before it ran, and so the oldest: its creation counts.
        let unstarted =
            json!({"metadata": {"creationTimestamp": "2025-12-31T00:00:00Z"}, "status": {"phase": "Failed"}});
        pods.push(pod("unstarted", Some("set"), "1", false, unstarted));
        let going =
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Failed"}});
        pods.push(pod("going", Some("set"), "1", false, going));
        pods.push(pod("other", Some("else"), "1", false, json!({"status": {"phase": "Failed"}})));
        let plan = plan(&set(1), &pods, Timestamp::now());
        assert_eq!(names(&plan.collect), ["unstarted", "ended-00", "ended-01"]);
        assert_eq!((plan.create, plan.delete.len()), (1, 0));
        let mut ending = set(1);
        ending.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
        assert!(super::plan(&ending, &pods, Timestamp::now()).collect.is_empty());
    }

    #[test]
    fn orphans_are_adopted_and_strangers_released() {
        let pods =
            [pod("orphan", None, "1", true, json!({})), pod("stranger", Some("set"), "2", true, json!({}))];
        let plan = plan(&set(2), &pods, Timestamp::now());
        assert_eq!(names(&plan.adopt), ["orphan"]);
        assert_eq!(names(&plan.release), ["stranger"]);
        assert_eq!(plan.create, 1);
    }

    #[test]
    fn a_set_that_is_being_deleted_makes_and_ends_nothing() {
        let mut set = set(3);
        set.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
        let plan = plan(&set, &[pod("orphan", None, "1", true, json!({}))], Timestamp::now());
        assert_eq!((plan.create, plan.delete.len(), plan.adopt.len()), (0, 0, 0));
    }

    #[test]
    fn availability_by_time_names_when_to_look_again() {
        let mut set = set(1);
        set.spec.as_mut().unwrap().min_ready_seconds = Some(10);
        let now: Timestamp = "2026-01-01T00:00:04Z".parse().unwrap();
        let plan = plan(&set, &[pod("p", Some("set"), "1", true, json!({}))], now);
        assert_eq!((plan.status.available_replicas, plan.next), (Some(0), Some(Duration::from_secs(6))));
    }
}
