//! The node: watches its Pods and gives each a worker.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client};
use lifecycle::Scope;
use tokio::sync::{mpsc, watch};

use crate::adapters::{
    ApiObjects, ApiPods, NetworkSandboxes, RuntimeContainer, RuntimeContainers, StoredImages,
};
use crate::events::Recorder;
use crate::machine::Machine;
use crate::ports::{self, Failure};
use crate::registration::Registration;
use crate::spec::annotation;
use crate::storage::{Eviction, Scanner};
use crate::worker::{self, Deps, Found, Handles, Phase, Update};
use crate::{fields, kubelet};

/// Workers that have ended and wait to be noticed.
const ENDED_MAX: usize = 64;
/// How long a container without a Pod gets to end, at most.
const ORPHAN_GRACE_LONGEST: Duration = Duration::from_secs(30);

/// What a node is made of.
pub struct Config {
    /// The API, as `system:node:<name>`.
    pub client: Client,
    /// The node's name: the host's, as a DNS label.
    pub node_name: String,
    /// The state folder.
    pub state_dir: PathBuf,
    /// Images of this machine.
    pub images: images::Store,
    /// Where other images come from.
    pub registries: registry::Config,
    /// Containers.
    pub runtime: runtime::Runtime,
    /// The Pods' network.
    pub network: network::Network,
    /// The port of the kubelet API, if it listens on one.
    pub kubelet_port: Option<u16>,
}

/// Why a node could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A folder in the state folder.
    #[error("make the folder {path}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The node agent. Clones are the same one.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    machine: Machine,
    pods: Registry,
    /// Whether the disk of the state folder is nearly full.
    disk_pressure: watch::Sender<bool>,
}

/// One Pod that has a worker.
#[derive(Clone)]
pub(crate) struct Entry {
    pub updates: watch::Sender<Update>,
    pub handles: Handles,
    /// Why it has to end, once it has.
    pub eviction: watch::Sender<Option<Eviction>>,
}

impl Entry {
    pub fn new(update: Update) -> Self {
        Self {
            updates: watch::Sender::new(update),
            handles: Handles::default(),
            eviction: watch::Sender::new(None),
        }
    }
}

/// The Pods of this node by UID, for the dispatcher and the HTTP API.
#[derive(Clone, Default)]
pub(crate) struct Registry(Arc<Mutex<BTreeMap<String, Entry>>>);

impl Registry {
    pub fn get(&self, namespace: &str, name: &str) -> Option<(Arc<Pod>, Entry)> {
        let pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = pods.values().map(|entry| (entry.updates.borrow().pod.clone(), entry.clone()));
        found.find(|(pod, _)| {
            pod.metadata.namespace.as_deref() == Some(namespace) && pod.metadata.name.as_deref() == Some(name)
        })
    }

    pub fn all(&self) -> Vec<(Arc<Pod>, Entry)> {
        let pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pods.values().map(|entry| (entry.updates.borrow().pod.clone(), entry.clone())).collect()
    }

    pub fn insert(&self, uid: String, entry: Entry) {
        self.with(|pods| drop(pods.insert(uid, entry)));
    }

    fn with<T>(&self, change: impl FnOnce(&mut BTreeMap<String, Entry>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Node {
    /// A node that does nothing yet.
    pub fn open(config: Config) -> Result<Self, OpenError> {
        for name in ["pods", "logs"] {
            let path = config.state_dir.join(name);
            std::fs::create_dir_all(&path).map_err(|source| OpenError::Folder { path, source })?;
        }
        let machine = Machine::look(&config.state_dir);
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                machine,
                pods: Registry::default(),
                disk_pressure: watch::Sender::new(false),
            }),
        })
    }

    /// Whether the disk of the state folder is nearly full: the moment to remove what nothing needs.
    pub fn disk_pressure(&self) -> watch::Receiver<bool> {
        self.inner.disk_pressure.subscribe()
    }

    /// Kubelet's HTTP API.
    pub fn router(&self) -> axum::Router {
        kubelet::router(
            self.inner.pods.clone(),
            kubelet::About {
                node_name: self.inner.config.node_name.clone(),
                state_dir: self.inner.config.state_dir.clone(),
            },
        )
    }

    /// Manifests of the images that Pods of this node use: these are not to be collected.
    pub fn images_in_use(&self) -> HashSet<oci::Digest> {
        let mut digests = HashSet::new();
        for (pod, entry) in self.inner.pods.all() {
            let statuses =
                pod.status.iter().flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses));
            let named = statuses.flatten().filter_map(|status| status.image_id.split_once('@'));
            digests.extend(named.filter_map(|(_, digest)| oci::Digest::parse(digest).ok()));
            let handles = entry.handles.lock().unwrap_or_else(PoisonError::into_inner);
            let specs = handles.values().filter_map(|handle| handle.spec());
            let images = specs.filter_map(|spec| spec.annotations.get(annotation::IMAGE)?.split_once('@'));
            digests.extend(images.filter_map(|(_, digest)| oci::Digest::parse(digest).ok()));
        }
        digests
    }

    /// Runs until the scope is told to stop. Containers go on running.
    pub async fn run(&self, scope: &Scope) {
        let config = &self.inner.config;
        let registration = Registration {
            client: config.client.clone(),
            name: config.node_name.clone(),
            machine: self.inner.machine.clone(),
            pod_cidr: Some(config.network.pod_cidr().to_string()),
            kubelet_port: config.kubelet_port.unwrap_or(0),
            disk_pressure: self.disk_pressure(),
        };
        let pressure = self.inner.disk_pressure.clone();
        let scanner = Scanner::new(self.inner.pods.clone(), config.state_dir.clone(), pressure);
        scope.spawn("storage", scanner.run());
        scope.spawn("registration", registration.run());
        let services = self.watch_services(scope);
        let proxies = self.watch_proxies(scope);
        let deps = Arc::new(self.deps(services, scope));
        let found = found(&config.runtime).await;
        let dispatcher = Dispatcher {
            deps,
            pods: self.inner.pods.clone(),
            proxies,
            scope: scope.clone(),
            found: Some(found),
            ended: mpsc::channel(ENDED_MAX),
            listing: None,
        };
        dispatcher.run(config.client.clone(), &config.node_name).await;
    }

    fn deps(&self, services: reflector::Store<Service>, scope: &Scope) -> Deps {
        let config = &self.inner.config;
        let machine = &self.inner.machine;
        Deps {
            containers: Arc::new(RuntimeContainers(config.runtime.clone())),
            sandboxes: Arc::new(NetworkSandboxes(config.network.clone())),
            images: Arc::new(StoredImages::new(
                config.images.clone(),
                config.registries.clone(),
                config.client.clone(),
            )),
            pods: Arc::new(ApiPods(config.client.clone())),
            objects: Arc::new(ApiObjects { client: config.client.clone(), services }),
            events: Recorder::start(config.client.clone(), &config.node_name, scope),
            state_dir: config.state_dir.clone(),
            node: fields::Node {
                host_ip: machine.address.to_string(),
                pod_ip: None,
                cpu_milli: machine.cpu_milli,
                memory_bytes: machine.memory_bytes,
                disk_bytes: machine.disk_bytes,
            },
            host_ip: machine.address,
            dns_ip: config.network.dns_ip().into(),
            wall: Timestamp::now,
        }
    }

    fn watch_services(&self, scope: &Scope) -> reflector::Store<Service> {
        let (reader, writer) = reflector::store();
        let api: Api<Service> = Api::all(self.inner.config.client.clone());
        let events = watcher(api, watcher::Config::default()).default_backoff().modify(|service| {
            // Links need the spec only.
            service.metadata.managed_fields = None;
            service.status = None;
        });
        let events = reflector::reflector(writer, events)
            .inspect_err(|error| tracing::debug!(%error, "watch Services"))
            .for_each(|_| std::future::ready(()));
        scope.spawn("services", events);
        reader
    }

    /// The names of the live proxies; `None` until they are known.
    fn watch_proxies(&self, scope: &Scope) -> watch::Receiver<Option<Arc<BTreeSet<String>>>> {
        let (sender, receiver) = watch::channel(None);
        let api: Api<Lease> = Api::namespaced(self.inner.config.client.clone(), contract::drain::NAMESPACE);
        let watched = watcher::Config::default().labels(&contract::drain::selector());
        let mut events = watcher(api, watched).default_backoff().boxed();
        scope.spawn("proxies", async move {
            let mut listing = BTreeSet::new();
            let mut known = BTreeSet::new();
            while let Some(event) = events.next().await {
                let name = |lease: Lease| lease.metadata.name.unwrap_or_default();
                match event {
                    Ok(watcher::Event::Init) => {
                        listing.clear();
                        continue;
                    }
                    Ok(watcher::Event::InitApply(lease)) => {
                        listing.insert(name(lease));
                        continue;
                    }
                    Ok(watcher::Event::InitDone) => known = std::mem::take(&mut listing),
                    Ok(watcher::Event::Apply(lease)) => {
                        known.insert(name(lease));
                    }
                    Ok(watcher::Event::Delete(lease)) => {
                        known.remove(&name(lease));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "watch the proxies' leases");
                        continue;
                    }
                }
                sender.send_if_modified(|now| {
                    let changed = now.as_deref() != Some(&known);
                    if changed {
                        *now = Some(Arc::new(known.clone()));
                    }
                    changed
                });
            }
        });
        receiver
    }
}

/// The containers that the runtime knows, by the UID of their Pod.
async fn found(runtime: &runtime::Runtime) -> BTreeMap<String, Vec<Found>> {
    let mut found: BTreeMap<String, Vec<Found>> = BTreeMap::new();
    let containers = match runtime.reattach().await {
        Ok(containers) => containers,
        Err(error) => {
            tracing::error!(%error, "find the containers that run");
            return found;
        }
    };
    for container in containers {
        let phase = match container.status().await {
            Ok(status) => match status.state {
                runtime::State::Created => Phase::Created,
                runtime::State::Running | runtime::State::Paused => {
                    Phase::Running(container.started_at().unwrap_or_else(std::time::SystemTime::now))
                }
                runtime::State::Exited(exit) => Phase::Exited(exit),
            },
            Err(error) => {
                tracing::warn!(container = container.id(), error = %Failure::of(&error), "ask a container what it does");
                continue;
            }
        };
        let annotations = container.annotations().clone();
        let handle: Arc<dyn ports::Container> = Arc::new(RuntimeContainer(container));
        if let Some((uid, container)) = Found::of(&annotations, phase, handle) {
            found.entry(uid).or_default().push(container);
        }
    }
    found
}

/// Starts and feeds the workers.
struct Dispatcher {
    deps: Arc<Deps>,
    pods: Registry,
    proxies: watch::Receiver<Option<Arc<BTreeSet<String>>>>,
    scope: Scope,
    /// What ran before; what no Pod claims after the first list is ended.
    found: Option<BTreeMap<String, Vec<Found>>>,
    ended: (mpsc::Sender<String>, mpsc::Receiver<String>),
    /// UIDs of a list that is coming in.
    listing: Option<BTreeSet<String>>,
}

impl Dispatcher {
    async fn run(mut self, client: Client, node_name: &str) {
        let api: Api<Pod> = Api::all(client);
        let mine = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
        let modify = |pod: &mut Pod| pod.metadata.managed_fields = None;
        let mut events = watcher(api, mine).default_backoff().modify(modify).boxed();
        loop {
            tokio::select! {
                () = self.scope.cancelled() => return,
                Some(uid) = self.ended.1.recv() => self.pods.with(|pods| drop(pods.remove(&uid))),
                event = events.next() => match event {
                    Some(Ok(event)) => self.apply(event),
                    Some(Err(error)) => tracing::debug!(%error, "watch this node's Pods"),
                    None => return,
                },
            }
        }
    }

    fn apply(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => self.listing = Some(BTreeSet::new()),
            watcher::Event::InitApply(pod) => {
                if let (Some(listing), Some(uid)) = (&mut self.listing, &pod.metadata.uid) {
                    listing.insert(uid.clone());
                }
                self.update(pod, false);
            }
            watcher::Event::InitDone => {
                let there = self.listing.take().unwrap_or_default();
                for (pod, _) in self.pods.all() {
                    if pod.metadata.uid.as_ref().is_some_and(|uid| !there.contains(uid)) {
                        self.update((*pod).clone(), true);
                    }
                }
                if let Some(left) = self.found.take() {
                    self.end_orphans(left);
                }
            }
            watcher::Event::Apply(pod) => self.update(pod, false),
            watcher::Event::Delete(pod) => self.update(pod, true),
        }
    }

    fn update(&mut self, pod: Pod, gone: bool) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let update = Update { pod: Arc::new(pod), gone };
        let known = self.pods.with(|pods| match pods.get(&uid) {
            Some(entry) => entry.updates.send(update.clone()).is_ok(),
            None => false,
        });
        if known || gone {
            return;
        }
        let entry = Entry::new(update);
        let (updates, evictions) = (entry.updates.subscribe(), entry.eviction.subscribe());
        let handles = entry.handles.clone();
        self.pods.insert(uid.clone(), entry);
        let found = self.found.as_mut().and_then(|found| found.remove(&uid)).unwrap_or_default();
        let start = worker::Start {
            deps: Arc::clone(&self.deps),
            updates,
            evictions,
            proxies: self.proxies.clone(),
            found,
            handles,
        };
        let scope = self.scope.child(&uid);
        let (name, ended) = (uid, self.ended.0.clone());
        let inner = scope.clone();
        scope.spawn_graceful("worker", async move {
            worker::run(start, inner.clone()).await;
            // Children of the scope go with it; a worker that was told to stop leaves its Pod known.
            if !inner.is_cancelled() {
                let _ = ended.send(name).await;
            }
            inner.cancel();
        });
    }

    /// Ends what runs for Pods that are no more, and removes what they left.
    fn end_orphans(&mut self, left: BTreeMap<String, Vec<Found>>) {
        let known: BTreeSet<String> = self.pods.with(|pods| pods.keys().cloned().collect());
        let deps = Arc::clone(&self.deps);
        self.scope.spawn("orphans", async move {
            let ends =
                left.into_iter().map(|(uid, containers)| end_orphan(Arc::clone(&deps), uid, containers));
            futures::future::join_all(ends).await;
            sweep(&deps, &known).await;
        });
    }
}

async fn end_orphan(deps: Arc<Deps>, uid: String, containers: Vec<Found>) {
    tracing::info!(uid, containers = containers.len(), "ending the containers of a Pod that is no more");
    let ends = containers.into_iter().map(|found| async move {
        let grace =
            found.handle.spec().and_then(|spec| spec.annotations.get(annotation::GRACE_S)?.parse().ok());
        let grace = Duration::from_secs(grace.unwrap_or(30)).min(ORPHAN_GRACE_LONGEST);
        if matches!(found.phase, Phase::Running(_)) && found.handle.signal(found.stop_signal).await.is_ok() {
            // Past the grace period it is killed by delete.
            let _ = tokio::time::timeout(grace, found.handle.wait()).await;
        }
        if let Err(failure) = found.handle.delete().await {
            tracing::warn!(container = found.handle.id(), %failure, "remove a container without a Pod");
        }
    });
    futures::future::join_all(ends).await;
    if let Err(failure) = deps.sandboxes.detach(&uid).await {
        tracing::warn!(uid, %failure, "remove the network of a Pod that is no more");
    }
}

/// Removes folders, mounts and networks of Pods that are no more.
async fn sweep(deps: &Arc<Deps>, known: &BTreeSet<String>) {
    let (state, known) = (deps.state_dir.clone(), known.clone());
    let swept = tokio::task::spawn_blocking(move || {
        let mut gone = Vec::new();
        for entry in std::fs::read_dir(state.join("pods"))? {
            let entry = entry?;
            let uid = entry.file_name().to_string_lossy().into_owned();
            if !known.contains(&uid) {
                crate::volumes::unmount_below(&entry.path())?;
                durable::remove_dir_all(&entry.path())?;
                gone.push(uid);
            }
        }
        for entry in std::fs::read_dir(state.join("logs"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // <namespace>_<pod>_<uid>: none of the three has an underscore.
            let uid = name.splitn(3, '_').nth(2);
            if uid.is_some_and(|uid| !known.contains(uid)) {
                durable::remove_dir_all(&entry.path())?;
            }
        }
        io::Result::Ok(gone)
    });
    match swept.await {
        Ok(Ok(gone)) => {
            for uid in gone {
                if let Err(failure) = deps.sandboxes.detach(&uid).await {
                    tracing::warn!(uid, %failure, "remove the network of a Pod that is no more");
                }
            }
        }
        Ok(Err(error)) => tracing::warn!(%error, "remove what Pods left that are no more"),
        Err(error) => tracing::debug!(%error, "the clean-up was cut short"),
    }
}
