//! Following a Deployment until its new Pods serve, by watches only.
//!
//! [`Observed`] is what the watches have told; [`Observed::assess`] is pure and says where the rollout stands.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{Pod, Service},
};
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{watcher, watcher::Event},
};

use super::{
    APP_LABEL, REVISION,
    ports::{self, Listening},
    trouble::{self, Trouble},
};
use crate::{
    failure::{Failure, Result},
    follow,
};

/// What the watches have told.
#[derive(Debug, Default)]
pub struct Observed {
    pub deployment: Option<Deployment>,
    pub service: Option<Service>,
    replica_sets: BTreeMap<String, ReplicaSet>,
    pods: BTreeMap<String, Pod>,
    /// Kinds whose first list is complete.
    complete: u8,
    /// Since when something stands that may pass by itself.
    /// Since when something lasts that may pass, and for how long it may.
    passing: Option<(Instant, Duration)>,
}

/// A change in one of the watched kinds.
enum Change {
    Deployment(Event<Deployment>),
    ReplicaSet(Event<ReplicaSet>),
    Pod(Box<Event<Pod>>),
    Service(Event<Service>),
}

/// Where a rollout stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Waiting { ready: i32, wanted: i32, doing: String },
    Ready { ready: i32, wanted: i32, revision: String },
    Failed(Trouble),
}

/// The watches of one program's objects.
pub struct Follower {
    changes: BoxStream<'static, Result<Change>>,
    pub observed: Observed,
}

impl Follower {
    /// Starts watching; nothing is asked for until [`Self::next`].
    pub fn new(client: &Client, namespace: &str, name: &str) -> Self {
        let named = || watcher::Config::default().fields(&format!("metadata.name={name}"));
        let labelled = || watcher::Config::default().labels(&format!("{APP_LABEL}={name}"));
        let changes: [BoxStream<'static, _>; 4] = [
            follow::watch(Api::namespaced(client.clone(), namespace), named())
                .map_ok(Change::Deployment)
                .boxed(),
            follow::watch(Api::namespaced(client.clone(), namespace), labelled())
                .map_ok(Change::ReplicaSet)
                .boxed(),
            follow::watch(Api::namespaced(client.clone(), namespace), labelled())
                .map_ok(|event| Change::Pod(Box::new(event)))
                .boxed(),
            follow::watch(Api::namespaced(client.clone(), namespace), named())
                .map_ok(Change::Service)
                .boxed(),
        ];
        Self { changes: futures::stream::select_all(changes).boxed(), observed: Observed::default() }
    }

    /// Waits for the next change.
    pub async fn next(&mut self) -> Result<()> {
        match self.changes.next().await {
            Some(change) => {
                self.observed.take(change?);
                Ok(())
            }
            None => Err(Failure::new("the watch on the rollout ended")),
        }
    }
}

impl Observed {
    fn take(&mut self, change: Change) {
        match change {
            Change::Deployment(event) => one(&mut self.deployment, event, &mut self.complete),
            Change::Service(event) => one(&mut self.service, event, &mut self.complete),
            Change::ReplicaSet(event) => many(&mut self.replica_sets, event, &mut self.complete),
            Change::Pod(event) => many(&mut self.pods, *event, &mut self.complete),
        }
    }

    /// Whether every watch has listed what there is.
    pub fn is_complete(&self) -> bool {
        self.complete >= 4
    }

    /// The ReplicaSet of the Deployment's present template.
    fn newest<'a>(&'a self, deployment: &'a Deployment) -> Option<&'a ReplicaSet> {
        let revision = deployment.annotations().get(REVISION)?;
        self.owned(deployment).find(|set| set.annotations().get(REVISION) == Some(revision))
    }

    fn owned<'a>(&'a self, deployment: &'a Deployment) -> impl Iterator<Item = &'a ReplicaSet> {
        self.replica_sets
            .values()
            .filter(move |set| is_owned_by(&set.metadata, deployment.metadata.uid.as_deref()))
    }

    fn pods_of<'a>(&'a self, set: &'a ReplicaSet) -> impl Iterator<Item = &'a Pod> {
        self.pods.values().filter(move |pod| is_owned_by(&pod.metadata, set.metadata.uid.as_deref()))
    }

    /// The Pods of the present template, once the controller has seen the generation that was applied.
    fn new_pods(&self, generation: i64) -> Option<Vec<&Pod>> {
        let deployment = self.deployment.as_ref()?;
        let seen = deployment.status.as_ref().and_then(|status| status.observed_generation);
        if seen < Some(generation) {
            return None;
        }
        Some(
            self.pods_of(self.newest(deployment)?)
                .filter(|pod| pod.metadata.deletion_timestamp.is_none())
                .collect(),
        )
    }

    /// What the new Pods listen on, as soon as one of them does.
    pub fn listening(&self, generation: i64) -> Option<Vec<Listening>> {
        let pods = self.new_pods(generation)?;
        pods.into_iter().map(ports::listening).find(|listening| !listening.is_empty())
    }

    /// Pods of earlier templates that serve.
    fn old_ready(&self) -> usize {
        let Some(deployment) = &self.deployment else { return 0 };
        let newest = self.newest(deployment).and_then(|set| set.metadata.uid.clone());
        self.owned(deployment)
            .filter(|set| set.metadata.uid != newest)
            .flat_map(|set| self.pods_of(set))
            .filter(|pod| pod.metadata.deletion_timestamp.is_none() && trouble::is_ready(pod))
            .count()
    }

    /// Whether an earlier version goes on serving.
    pub fn old_serves(&self) -> bool {
        self.old_ready() > 0
    }

    /// Says where the rollout of a generation stands.
    pub fn assess(&mut self, generation: i64, now: Instant) -> Verdict {
        let waiting =
            |ready, wanted, doing: &str| Verdict::Waiting { ready, wanted, doing: doing.to_owned() };
        let Some(deployment) = self.deployment.as_ref() else {
            return waiting(0, 1, "waiting for the Deployment");
        };
        let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let Some(pods) = self.new_pods(generation) else { return waiting(0, wanted, "creating") };
        let revision = deployment.annotations().get(REVISION).cloned().unwrap_or_default();
        let ready =
            i32::try_from(pods.iter().filter(|pod| trouble::is_ready(pod)).count()).unwrap_or(i32::MAX);
        let mut passing = None;
        if ready < wanted {
            for pod in &pods {
                if let Some(found) = trouble::of_pod(pod) {
                    let Some(within) = found.passes_within else { return Verdict::Failed(found) };
                    passing = passing.or(Some((found, within)));
                }
            }
            if let Some(found) = trouble::of_deployment(deployment) {
                return Verdict::Failed(found);
            }
        }
        let doing = pods.iter().find(|pod| !trouble::is_ready(pod)).map(|pod| trouble::doing(pod));
        let old = self.old_ready();
        match passing {
            None => self.passing = None,
            Some((found, within)) => {
                let since = self.passing.map_or(now, |(since, _)| since);
                self.passing = Some((since, within));
                if now.duration_since(since) >= within {
                    return Verdict::Failed(found);
                }
            }
        }
        if ready >= wanted && old == 0 {
            return Verdict::Ready { ready, wanted, revision };
        }
        let doing = doing
            .unwrap_or_else(|| if ready >= wanted { "old version ends".into() } else { "creating".into() });
        Verdict::Waiting { ready, wanted, doing }
    }

    /// When a state that may pass has lasted too long; the wait for changes ends then.
    pub fn deadline(&self) -> Option<Instant> {
        self.passing.map(|(since, within)| since + within)
    }
}

fn is_owned_by(metadata: &kube::api::ObjectMeta, uid: Option<&str>) -> bool {
    uid.is_some() && metadata.owner_references.iter().flatten().any(|owner| Some(owner.uid.as_str()) == uid)
}

fn one<K>(slot: &mut Option<K>, event: Event<K>, complete: &mut u8) {
    match event {
        Event::Apply(object) | Event::InitApply(object) => *slot = Some(object),
        Event::Delete(_) => *slot = None,
        Event::Init => {}
        Event::InitDone => *complete = complete.saturating_add(1),
    }
}

fn many<K: kube::Resource>(map: &mut BTreeMap<String, K>, event: Event<K>, complete: &mut u8) {
    let key = |object: &K| object.meta().name.clone().unwrap_or_default();
    match event {
        Event::Apply(object) | Event::InitApply(object) => drop(map.insert(key(&object), object)),
        Event::Delete(object) => drop(map.remove(&key(&object))),
        // A new list replaces what was known; what it lacks is gone.
        Event::Init => map.clear(),
        Event::InitDone => *complete = complete.saturating_add(1),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn observed(generation: i64, pods: &[(&str, &str, Value)]) -> Observed {
        let set = |name: &str, revision: &str| -> ReplicaSet {
            serde_json::from_value(json!({ "metadata": { "name": name, "uid": name,
                "annotations": { REVISION: revision }, "ownerReferences": [{ "uid": "d", "apiVersion": "v", "kind": "k", "name": "n" }] } }))
            .unwrap()
        };
        let deployment = json!({ "metadata": { "name": "x", "uid": "d", "annotations": { REVISION: "2" } },
            "spec": { "replicas": 1, "selector": {}, "template": {} }, "status": { "observedGeneration": generation } });
        let pod = |(name, owner, status): &(&str, &str, Value)| -> (String, Pod) {
            let pod = json!({ "metadata": { "name": name, "ownerReferences": [{ "uid": owner, "apiVersion": "v", "kind": "k", "name": "n" }] },
                "status": status });
            ((*name).to_owned(), serde_json::from_value(pod).unwrap())
        };
        Observed {
            deployment: Some(serde_json::from_value(deployment).unwrap()),
            replica_sets: BTreeMap::from([("old".into(), set("old", "1")), ("new".into(), set("new", "2"))]),
            pods: pods.iter().map(pod).collect(),
            ..Observed::default()
        }
    }

    fn ready() -> Value {
        json!({ "conditions": [{ "type": "Ready", "status": "True" }] })
    }

    fn terminated(code: i32) -> Value {
        json!({ "containerStatuses": [{ "name": "x", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "terminated": { "exitCode": code, "reason": "Error" } } }] })
    }

    #[test]
    fn a_rollout_is_done_when_the_new_pods_serve_and_the_old_go() {
        let now = Instant::now();
        let old_too = observed(2, &[("a", "new", ready()), ("b", "old", ready())]).assess(2, now);
        assert!(matches!(old_too, Verdict::Waiting { ready: 1, .. }), "{old_too:?}");
        let done = observed(2, &[("a", "new", ready())]).assess(2, now);
        assert_eq!(done, Verdict::Ready { ready: 1, wanted: 1, revision: "2".into() });
        // What the controller has not seen yet says nothing.
        let unseen = observed(1, &[("a", "new", ready())]).assess(2, now);
        assert!(matches!(unseen, Verdict::Waiting { ready: 0, .. }), "{unseen:?}");
    }

    #[test]
    fn a_program_that_ended_well_is_no_service() {
        let mut observed = observed(2, &[("a", "new", terminated(0)), ("b", "old", ready())]);
        let Verdict::Failed(trouble) = observed.assess(2, Instant::now()) else { panic!() };
        assert!(trouble.message.contains("ended with 0"), "{trouble:?}");
        assert!(observed.old_serves());
    }

    #[test]
    fn what_may_pass_gets_a_moment() {
        let loopback = json!({ "conditions": [{ "type": super::super::LISTENING_GATE, "status": "False",
            "reason": "LoopbackOnly", "message": "listens on 127.0.0.1:8080 only" }] });
        let mut observed = observed(2, &[("a", "new", loopback)]);
        let start = Instant::now();
        assert!(matches!(observed.assess(2, start), Verdict::Waiting { .. }));
        assert_eq!(observed.deadline(), Some(start + trouble::PASSING));
        let Verdict::Failed(trouble) = observed.assess(2, start + trouble::PASSING) else { panic!() };
        assert!(trouble.message.contains("127.0.0.1:8080"), "{trouble:?}");
    }
}
