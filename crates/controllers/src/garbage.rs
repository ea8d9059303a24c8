//! Garbage collection by owner references.
//!
//! A graph of who owns whom, kept by a metadata watch of every kind: small, and rebuilt at each start.
//! <https://kubernetes.io/docs/concepts/architecture/garbage-collection/>

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{FutureExt, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::{ApiResource, GroupVersionKind, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use resources::{KINDS, Kind, Scope as KindScope};
use serde_json::json;
use tokio::sync::watch;

use crate::cache::Key;
use crate::control::{self, Next};
use crate::error::absent_is_fine;
use crate::queue::Queue;
use crate::{CONTROLLERS_USER, Context, Controller, Error};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

pub(crate) const CONTROLLER: Controller = Controller {
    name: "garbagecollector",
    user: CONTROLLERS_USER,
    about: "deletes what has lost its owner",
    run: |context| run(context).boxed(),
};

/// What the graph knows of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    kind: usize,
    key: Key,
    /// Owner's uid, and whether it waits for this object in a foreground deletion.
    owners: Vec<(String, bool)>,
    deleting: bool,
    finalizers: Vec<&'static str>,
}

#[derive(Debug, Default)]
struct Graph {
    entries: HashMap<String, Entry>,
    dependents: HashMap<String, BTreeSet<String>>,
}

impl Graph {
    /// Returns the uids to look at.
    fn put(&mut self, uid: String, entry: Entry) -> Vec<String> {
        let mut keys = self.unlink(&uid);
        for (owner, _) in &entry.owners {
            self.dependents.entry(owner.clone()).or_default().insert(uid.clone());
            keys.push(owner.clone());
        }
        self.entries.insert(uid.clone(), entry);
        keys.push(uid);
        keys
    }

    fn remove(&mut self, uid: &str) -> Vec<String> {
        let mut keys = self.unlink(uid);
        self.entries.remove(uid);
        keys.extend(self.dependents.get(uid).into_iter().flatten().cloned());
        keys
    }

    fn unlink(&mut self, uid: &str) -> Vec<String> {
        let owners: Vec<_> = self
            .entries
            .get(uid)
            .iter()
            .flat_map(|entry| entry.owners.iter().map(|(owner, _)| owner.clone()))
            .collect();
        for owner in &owners {
            if let Some(dependents) = self.dependents.get_mut(owner) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(owner);
                }
            }
        }
        owners
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Action {
    /// Every owner is gone.
    Delete,
    /// The owner is being deleted in the foreground and waits for this one.
    DeleteDependents(Vec<String>),
    /// The owner's finalizer is taken off: its dependents are gone, or orphaned.
    Release(&'static str),
    /// References to this owner are taken off its dependents.
    Orphan(Vec<String>),
    Nothing,
}

/// What there is to do for one object. Only called when every kind is listed, so what is not there is gone.
fn plan(graph: &Graph, uid: &str) -> Action {
    let Some(entry) = graph.entries.get(uid) else {
        return Action::Nothing;
    };
    let dependents = || graph.dependents.get(uid).into_iter().flatten();
    if entry.deleting {
        if entry.finalizers.contains(&ORPHAN) {
            let owned: Vec<_> = dependents().cloned().collect();
            return if owned.is_empty() { Action::Release(ORPHAN) } else { Action::Orphan(owned) };
        }
        if entry.finalizers.contains(&FOREGROUND) {
            let blocking: Vec<_> = dependents()
                .filter(|one| {
                    graph.entries[*one].owners.iter().any(|(owner, blocks)| owner == uid && *blocks)
                })
                .collect();
            if blocking.is_empty() {
                return Action::Release(FOREGROUND);
            }
            let alive = dependents().filter(|one| !graph.entries[*one].deleting).cloned().collect();
            return Action::DeleteDependents(alive);
        }
        return Action::Nothing;
    }
    let has_owner = entry.owners.iter().any(|(owner, _)| graph.entries.contains_key(owner));
    if entry.owners.is_empty() || has_owner { Action::Nothing } else { Action::Delete }
}

#[derive(Clone)]
struct Collector {
    client: Client,
    graph: Arc<Mutex<Graph>>,
}

impl Collector {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self, kind: usize, namespace: &str) -> Api<DynamicObject> {
        let resource = resource(KINDS[kind]);
        match KINDS[kind].scope {
            KindScope::Namespaced => Api::namespaced_with(self.client.clone(), namespace, &resource),
            KindScope::Cluster => Api::all_with(self.client.clone(), &resource),
        }
    }

    async fn follow(self, kind: usize, queue: Queue<Key>, listed: watch::Sender<bool>) {
        let api =
            Api::<PartialObjectMeta<DynamicObject>>::all_with(self.client.clone(), &resource(KINDS[kind]));
        let config = watcher::Config::default();
        let mut events = std::pin::pin!(watcher(api, config).default_backoff());
        let mut seen: Option<BTreeSet<String>> = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => seen = Some(BTreeSet::new()),
                Ok(watcher::Event::InitApply(object)) => {
                    seen.get_or_insert_default().insert(object.uid().unwrap_or_default());
                    self.take(kind, &object, &queue);
                }
                Ok(watcher::Event::Apply(object)) => self.take(kind, &object, &queue),
                Ok(watcher::Event::Delete(object)) => {
                    let keys = self.graph().remove(&object.uid().unwrap_or_default());
                    add(&queue, keys);
                }
                Ok(watcher::Event::InitDone) => {
                    let seen = seen.take().unwrap_or_default();
                    let mut graph = self.graph();
                    let known = graph
                        .entries
                        .iter()
                        .filter(|(uid, entry)| entry.kind == kind && !seen.contains(*uid));
                    let gone: Vec<_> = known.map(|(uid, _)| uid.clone()).collect();
                    gone.iter().for_each(|uid| add(&queue, graph.remove(uid)));
                    drop(graph);
                    listed.send_replace(true);
                }
                Err(error) => {
                    tracing::warn!(
                        kind = KINDS[kind].plural,
                        error = crate::error::chain(&error),
                        "watch metadata"
                    );
                }
            }
        }
    }

    fn take(&self, kind: usize, object: &PartialObjectMeta<DynamicObject>, queue: &Queue<Key>) {
        let uid = object.uid().unwrap_or_default();
        let entry = entry(kind, &object.metadata);
        let mut graph = self.graph();
        if graph.entries.get(&uid) != Some(&entry) {
            let keys = graph.put(uid, entry);
            add(queue, keys);
        }
    }

    async fn reconcile(&self, uid: &str) -> Result<Next, Error> {
        let (action, entry) = {
            let graph = self.graph();
            (plan(&graph, uid), graph.entries.get(uid).cloned())
        };
        let Some(entry) = entry else {
            return Ok(Next::Changed);
        };
        match action {
            Action::Nothing => {}
            Action::Delete => {
                if self.owners_are_gone(&entry).await? {
                    let policy = if entry.finalizers.contains(&ORPHAN) {
                        PropagationPolicy::Orphan
                    } else if entry.finalizers.contains(&FOREGROUND) {
                        PropagationPolicy::Foreground
                    } else {
                        PropagationPolicy::Background
                    };
                    self.delete(uid, &entry, policy).await?;
                }
            }
            Action::DeleteDependents(dependents) => {
                for dependent in dependents {
                    let Some(entry) = self.graph().entries.get(&dependent).cloned() else {
                        continue;
                    };
                    self.delete(&dependent, &entry, PropagationPolicy::Foreground).await?;
                }
            }
            Action::Orphan(dependents) => {
                for dependent in dependents {
                    let Some(entry) = self.graph().entries.get(&dependent).cloned() else {
                        continue;
                    };
                    let patch = json!({"metadata": {"ownerReferences": [{"$patch": "delete", "uid": uid}], "uid": dependent}});
                    self.patch(&entry, patch).await?;
                }
            }
            Action::Release(finalizer) => {
                let patch =
                    json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [finalizer], "uid": uid}});
                self.patch(&entry, patch).await?;
            }
        }
        Ok(Next::Changed)
    }

    /// The graph may lack an owner of a kind that it does not watch, or one that was made a moment ago: the API server
    /// is asked before anything is deleted.
    async fn owners_are_gone(&self, entry: &Entry) -> Result<bool, Error> {
        let api = self.api(entry.kind, &entry.key.namespace);
        let object = format!("{}/{}", KINDS[entry.kind].plural, entry.key);
        let current = api.get_metadata(&entry.key.name).await.map_err(Error::api("get", object));
        let Some(current) = absent_is_fine(current)? else {
            return Ok(false);
        };
        for owner in current.owner_references() {
            let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
            let Some(kind) = KINDS
                .iter()
                .position(|one| one.group == group && one.version == version && one.kind == owner.kind)
            else {
                // Nobody here can say that an owner of an unknown kind is gone.
                return Ok(false);
            };
            let found = self.api(kind, &entry.key.namespace).get_metadata(&owner.name).await;
            let found = found.map_err(Error::api("get", format!("{}/{}", KINDS[kind].plural, owner.name)));
            if absent_is_fine(found)?.is_some_and(|found| found.uid().as_ref() == Some(&owner.uid)) {
                return Ok(false);
            }
        }
        Ok(!current.owner_references().is_empty())
    }

    async fn delete(&self, uid: &str, entry: &Entry, policy: PropagationPolicy) -> Result<(), Error> {
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        let object = format!("{}/{}", KINDS[entry.kind].plural, entry.key);
        let deleted = self.api(entry.kind, &entry.key.namespace).delete(&entry.key.name, &params).await;
        match absent_is_fine(deleted.map_err(Error::api("delete", object))) {
            // Another object has the name by now.
            Err(error) if error.code() == Some(409) => Ok(()),
            other => other.map(drop),
        }
    }

    async fn patch(&self, entry: &Entry, patch: serde_json::Value) -> Result<(), Error> {
        let object = format!("{}/{}", KINDS[entry.kind].plural, entry.key);
        let api = self.api(entry.kind, &entry.key.namespace);
        let patched = api.patch(&entry.key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        absent_is_fine(patched.map_err(Error::api("patch", object))).map(drop)
    }
}

fn add(queue: &Queue<Key>, uids: Vec<String>) {
    uids.into_iter().for_each(|uid| queue.add(Key::new("", uid)));
}

fn resource(kind: &Kind) -> ApiResource {
    let gvk = GroupVersionKind::gvk(kind.group, kind.version, kind.kind);
    ApiResource::from_gvk_with_plural(&gvk, kind.plural)
}

fn entry(kind: usize, meta: &ObjectMeta) -> Entry {
    let owners = meta.owner_references.iter().flatten();
    let finalizers = [FOREGROUND, ORPHAN]
        .into_iter()
        .filter(|finalizer| meta.finalizers.iter().flatten().any(|one| one == finalizer));
    Entry {
        kind,
        key: Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default()),
        owners: owners.map(|owner| (owner.uid.clone(), owner.block_owner_deletion == Some(true))).collect(),
        deleting: meta.deletion_timestamp.is_some(),
        finalizers: finalizers.collect(),
    }
}

async fn run(context: Context) {
    let queue = Queue::new();
    let collector = Collector { client: context.client.clone(), graph: Arc::default() };
    let mut listed = BTreeMap::new();
    for (kind, row) in KINDS.iter().enumerate() {
        let (sender, receiver) = watch::channel(false);
        listed.insert(kind, receiver);
        context.scope.spawn(row.plural, collector.clone().follow(kind, queue.clone(), sender));
    }
    for receiver in listed.values_mut() {
        // An error means that the watch's task has ended, and with it this one.
        let _ = receiver.wait_for(|listed| *listed).await;
    }
    control::run(CONTROLLER.name, queue, |key| {
        let collector = collector.clone();
        async move { collector.reconcile(&key.name).await }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(owners: &[(&str, bool)], deleting: bool, finalizers: &[&'static str]) -> Entry {
        Entry {
            kind: 0,
            key: Key::new("n", "x"),
            owners: owners.iter().map(|(uid, blocks)| ((*uid).to_owned(), *blocks)).collect(),
            deleting,
            finalizers: finalizers.to_vec(),
        }
    }

    fn graph(entries: &[(&str, Entry)]) -> Graph {
        let mut graph = Graph::default();
        for (uid, entry) in entries {
            graph.put((*uid).to_owned(), entry.clone());
        }
        graph
    }

    #[test]
    fn what_has_lost_every_owner_is_deleted() {
        let mut graph = graph(&[
            ("owner", entry(&[], false, &[])),
            ("child", entry(&[("owner", true)], false, &[])),
            ("shared", entry(&[("owner", true), ("gone", true)], false, &[])),
        ]);
        assert_eq!(plan(&graph, "child"), Action::Nothing);
        let look_at = graph.remove("owner");
        assert!(look_at.contains(&"child".to_owned()) && look_at.contains(&"shared".to_owned()));
        assert_eq!(plan(&graph, "child"), Action::Delete);
        assert_eq!(plan(&graph, "shared"), Action::Delete);
        assert_eq!(plan(&graph, "owner"), Action::Nothing);
    }

    #[test]
    fn foreground_waits_for_blocking_dependents() {
        let mut graph = graph(&[
            ("owner", entry(&[], true, &[FOREGROUND])),
            ("child", entry(&[("owner", true)], false, &[])),
            ("loose", entry(&[("owner", false)], false, &[])),
        ]);
        assert_eq!(
            plan(&graph, "owner"),
            Action::DeleteDependents(vec!["child".to_owned(), "loose".to_owned()])
        );
        assert!(graph.remove("child").contains(&"owner".to_owned()));
        assert_eq!(plan(&graph, "owner"), Action::Release(FOREGROUND));
    }

    #[test]
    fn orphaning_takes_references_off_first() {
        let mut graph = graph(&[
            ("owner", entry(&[], true, &[ORPHAN])),
            ("child", entry(&[("owner", true)], false, &[])),
        ]);
        assert_eq!(plan(&graph, "owner"), Action::Orphan(vec!["child".to_owned()]));
        assert!(graph.put("child".to_owned(), entry(&[], false, &[])).contains(&"owner".to_owned()));
        assert_eq!(plan(&graph, "owner"), Action::Release(ORPHAN));
    }
}
