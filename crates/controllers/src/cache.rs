//! What the API server holds of a kind, kept current by one watch that every controller shares.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use lifecycle::Scope;
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, watch};

use crate::Error;

/// How long a controller waits until its own write comes back through the watch.
const BEHIND_MAX: Duration = Duration::from_secs(10);
/// Changes that a subscriber may lag behind before it has to look at everything again.
const CHANGES_MAX: usize = 4096;

/// Namespace (empty for the cluster's own) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub(crate) fn of<K: Resource>(object: &K) -> Self {
        Self::new(object.meta().namespace.clone().unwrap_or_default(), object.name_any())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// A change: the object before and after; either may be missing.
#[derive(Debug)]
pub(crate) struct Change<K> {
    pub(crate) before: Option<Arc<K>>,
    pub(crate) now: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The object as it is or, deleted, was.
    pub(crate) fn either(&self) -> impl Iterator<Item = &Arc<K>> {
        self.before.iter().chain(self.now.iter())
    }
}

/// One kind's objects.
pub(crate) struct Cache<K> {
    kind: &'static str,
    objects: Arc<RwLock<BTreeMap<Key, Arc<K>>>>,
    changes: broadcast::Sender<Arc<Change<K>>>,
    /// Highest revision that was seen, 0 until the first list is complete.
    revision: watch::Receiver<u64>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self {
            kind: self.kind,
            objects: Arc::clone(&self.objects),
            changes: self.changes.clone(),
            revision: self.revision.clone(),
        }
    }
}

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    fn start(kind: &'static str, client: &Client, scope: &Scope) -> Self {
        let (revision_sender, revision) = watch::channel(0);
        let cache =
            Self { kind, objects: Arc::default(), changes: broadcast::channel(CHANGES_MAX).0, revision };
        let writer = cache.clone();
        let api = Api::<K>::all(client.clone());
        scope.spawn(kind, async move { writer.follow(api, revision_sender).await });
        cache
    }

    async fn follow(&self, api: Api<K>, revision: watch::Sender<u64>) {
        let config = watcher::Config::default().streaming_lists();
        let mut events = std::pin::pin!(watcher(api, config).default_backoff());
        let mut listed: Option<BTreeMap<Key, Arc<K>>> = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed = Some(BTreeMap::new()),
                Ok(watcher::Event::InitApply(object)) => {
                    listed.get_or_insert_default().insert(Key::of(&object), Arc::new(slim(object)));
                }
                Ok(watcher::Event::InitDone) => {
                    let listed = listed.take().unwrap_or_default();
                    let seen = listed.values().map(|object| seen(object.as_ref())).max().unwrap_or(0).max(1);
                    self.replace(listed);
                    revision.send_modify(|revision| *revision = seen.max(*revision));
                }
                Ok(watcher::Event::Apply(object)) => {
                    let at = seen(&object);
                    let key = Key::of(&object);
                    let now = Arc::new(slim(object));
                    let before = self.write().insert(key, Arc::clone(&now));
                    self.tell(before, Some(now));
                    revision.send_modify(|revision| *revision = at.max(*revision));
                }
                Ok(watcher::Event::Delete(object)) => {
                    let at = seen(&object);
                    let before = self.write().remove(&Key::of(&object)).or(Some(Arc::new(object)));
                    self.tell(before, None);
                    revision.send_modify(|revision| *revision = at.max(*revision));
                }
                Err(error) => tracing::warn!(kind = self.kind, error = crate::error::chain(&error), "watch"),
            }
        }
    }

    fn replace(&self, listed: BTreeMap<Key, Arc<K>>) {
        let mut old = std::mem::replace(&mut *self.write(), listed.clone());
        for (key, now) in listed {
            let before = old.remove(&key);
            if before
                .as_ref()
                .is_none_or(|before| before.meta().resource_version != now.meta().resource_version)
            {
                self.tell(before, Some(now));
            }
        }
        for before in old.into_values() {
            self.tell(Some(before), None);
        }
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<Key, Arc<K>>> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, before: Option<Arc<K>>, now: Option<Arc<K>>) {
        // No subscriber yet: it will look at everything when it comes.
        let _ = self.changes.send(Arc::new(Change { before, now }));
    }

    /// The object of that key.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Every object of the namespace, by name; all namespaces' when it is empty.
    pub(crate) fn list(&self, namespace: &str) -> Vec<Arc<K>> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        if namespace.is_empty() {
            return objects.values().cloned().collect();
        }
        let from = Key::new(namespace, "");
        objects
            .range(from..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, o)| Arc::clone(o))
            .collect()
    }

    /// Changes from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<Change<K>>> {
        self.changes.subscribe()
    }

    /// Resolves when the first list is complete.
    pub(crate) async fn ready(&self) {
        let mut revision = self.revision.clone();
        // An error means that the watch's task has ended: so will the caller's.
        let _ = revision.wait_for(|seen| *seen > 0).await;
    }

    /// Resolves when the watch has delivered `object`'s revision, so that a plan never acts on state from before this
    /// controller's own write.
    pub(crate) async fn caught_up(&self, object: &impl Resource) -> Result<(), Error> {
        let wanted = revision_of(object.meta().resource_version.as_deref());
        let mut revision = self.revision.clone();
        let waited = tokio::time::timeout(BEHIND_MAX, revision.wait_for(|seen| *seen >= wanted)).await;
        match waited {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Behind { kind: self.kind, revision: wanted }),
        }
    }
}

fn seen(object: &impl Resource) -> u64 {
    revision_of(object.meta().resource_version.as_deref())
}

/// Since Kubernetes 1.35 resource versions are comparable numbers.
fn revision_of(version: Option<&str>) -> u64 {
    version.and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// Field ownership is most of a small object's size, and no controller reads it.
fn slim<K: Resource>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}

/// The caches that more than one controller reads.
#[derive(Clone)]
pub(crate) struct Caches {
    pub(crate) deployments: Cache<Deployment>,
    pub(crate) endpoint_slices: Cache<EndpointSlice>,
    pub(crate) namespaces: Cache<Namespace>,
    pub(crate) nodes: Cache<Node>,
    pub(crate) pods: Cache<Pod>,
    pub(crate) replica_sets: Cache<ReplicaSet>,
    pub(crate) service_accounts: Cache<ServiceAccount>,
    pub(crate) services: Cache<Service>,
}

impl Caches {
    pub(crate) fn start(client: &Client, scope: &Scope) -> Self {
        Self {
            deployments: Cache::start("deployments", client, scope),
            endpoint_slices: Cache::start("endpointslices", client, scope),
            namespaces: Cache::start("namespaces", client, scope),
            nodes: Cache::start("nodes", client, scope),
            pods: Cache::start("pods", client, scope),
            replica_sets: Cache::start("replicasets", client, scope),
            service_accounts: Cache::start("serviceaccounts", client, scope),
            services: Cache::start("services", client, scope),
        }
    }
}
