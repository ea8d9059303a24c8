//! From what the API says to routes, listeners and tombstones. One task owns all of it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};

use kube::Client;
use lifecycle::{CancellationToken, Scope};
use network::{Cidr, Protocol};

use crate::backend::{self, Backend};
use crate::egress::Allowances;
use crate::model::{Behind, Key, Kind, Model, Pod, Service, Slice};
use crate::route::Route;
use crate::sockets::{Sockets, Spot};
use crate::watch::{Change, Event};
use crate::worker::{Target, Workers};
use crate::{drain, metrics, ports, status, udp};

/// A Service port: Service, name, protocol.
type PortKey = (Key, String, Protocol);

pub(crate) struct Control {
    pub(crate) name: String,
    pub(crate) client: Client,
    pub(crate) sockets: Sockets,
    pub(crate) workers: Arc<Workers>,
    pub(crate) model: Arc<RwLock<Model>>,
    pub(crate) scope: Scope,
    /// Addresses that are reached from the router namespace; `None` in tests.
    pub(crate) pods_range: Option<Cidr>,
    pub(crate) services_range: Option<Cidr>,
    /// What Pods' annotations let them reach.
    pub(crate) allowances: Allowances,
    pub(crate) routes: BTreeMap<PortKey, Routed>,
    pub(crate) open: BTreeMap<Key, Vec<Opened>>,
    /// All of `open`'s.
    pub(crate) spots: HashSet<Spot>,
    /// Services of which a port of the host is taken by somebody else.
    pub(crate) waiting: BTreeSet<Key>,
    pods: Pods,
    seen: [HashSet<Key>; 3],
    synced: [bool; 3],
    dirty: BTreeSet<Key>,
    accepting: bool,
    /// Another proxy has the sockets: they are opened, closed and reported no more.
    handed_over: bool,
}

pub(crate) struct Routed {
    pub(crate) route: Arc<Route>,
    backends: BTreeMap<Behind, Arc<Backend>>,
}

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Cluster,
    Node,
    /// For the host port of the Service port at that place.
    Balancer(usize),
}

#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) spot: Spot,
    pub(crate) purpose: Purpose,
    pub(crate) port: (String, Protocol),
    pub(crate) stop: CancellationToken,
}

#[derive(Default)]
struct Pods {
    by_uid: HashMap<String, Tracked>,
    uids: HashMap<Key, String>,
    /// Deleted, but an EndpointSlice still names them: the tombstone stays.
    gone: HashSet<String>,
}

#[derive(Default)]
struct Tracked {
    pod: Arc<backend::Pod>,
    routed: bool,
    drain: Option<CancellationToken>,
    /// Wants to be drained as soon as everything was heard.
    pending: Option<Pod>,
}

impl Control {
    #[expect(clippy::too_many_arguments, reason = "the parts of the process, put together once")]
    pub(crate) fn new(
        name: String,
        client: Client,
        sockets: Sockets,
        workers: Arc<Workers>,
        model: Arc<RwLock<Model>>,
        scope: Scope,
        pods_range: Option<Cidr>,
        services_range: Option<Cidr>,
        allowances: Allowances,
    ) -> Self {
        Self {
            name,
            client,
            sockets,
            workers,
            model,
            scope,
            pods_range,
            services_range,
            allowances,
            routes: BTreeMap::new(),
            open: BTreeMap::new(),
            spots: HashSet::new(),
            waiting: BTreeSet::new(),
            pods: Pods::default(),
            seen: Default::default(),
            synced: [false; 3],
            dirty: BTreeSet::new(),
            accepting: false,
            handed_over: false,
        }
    }

    /// Whether everything that there is was heard once.
    pub(crate) fn is_synced(&self) -> bool {
        self.synced == [true; 3]
    }

    pub(crate) fn hear(&mut self, event: Event) {
        let kind = event.index();
        match event {
            Event::Service(change) => self.hear_of(kind, change, Self::set_service),
            Event::Slice(change) => self.hear_of(kind, change, Self::set_slice),
            Event::Pod(change) => self.hear_of(kind, change, Self::set_pod),
        }
    }

    fn hear_of<T>(&mut self, kind: usize, change: Change<T>, set: fn(&mut Self, Key, Option<T>)) {
        match change {
            Change::Restart => self.seen[kind].clear(),
            Change::Listed(key, value) => {
                self.seen[kind].insert(key.clone());
                set(self, key, Some(value));
            }
            Change::Synced => {
                let known: Vec<Key> = match kind {
                    0 => self.read(|model| model.services.keys().cloned().collect()),
                    1 => self.read(Model::slice_keys),
                    _ => self.pods.uids.keys().cloned().collect(),
                };
                let seen = std::mem::take(&mut self.seen[kind]);
                for key in known.into_iter().filter(|key| !seen.contains(key)) {
                    set(self, key, None);
                }
                self.synced[kind] = true;
            }
            Change::Put(key, value) => set(self, key, Some(value)),
            Change::Removed(key) => set(self, key, None),
        }
    }

    fn read<T>(&self, look: impl FnOnce(&Model) -> T) -> T {
        look(&self.model.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_service(&mut self, key: Key, service: Option<Service>) {
        let mut model = self.model.write().unwrap_or_else(PoisonError::into_inner);
        match service {
            Some(service) => model.services.insert(key.clone(), service),
            None => model.services.remove(&key),
        };
        self.dirty.insert(key);
    }

    fn set_slice(&mut self, key: Key, slice: Option<Option<Slice>>) {
        let changed = {
            let mut model = self.model.write().unwrap_or_else(PoisonError::into_inner);
            model.set_slice(key, slice.flatten())
        };
        self.dirty.extend(changed);
        if !self.pods.gone.is_empty() {
            let gone = std::mem::take(&mut self.pods.gone);
            for uid in gone {
                self.bury_for_good(uid);
            }
        }
    }

    fn set_pod(&mut self, key: Key, pod: Option<Pod>) {
        let uid = pod.as_ref().map(|pod| pod.uid.clone());
        if let Some(old) = self.pods.uids.get(&key)
            && uid.as_ref() != Some(old)
        {
            let old = old.clone();
            self.pods.uids.remove(&key);
            self.allowances.remove(&old);
            self.set_facts(&old, None);
            self.bury_for_good(old);
        }
        let Some(pod) = pod else { return };
        self.set_facts(&pod.uid, Some(pod.clone()));
        if let Some(address) = pod.address
            && !pod.on_host
        {
            self.allowances.set(address, &pod.uid, &pod.allowance);
        }
        self.pods.uids.insert(key, pod.uid.clone());
        if pod.deletion.is_none() {
            return;
        }
        let tracked = self.pods.by_uid.entry(pod.uid.clone()).or_default();
        if tracked.drain.is_none() {
            tracked.pod.bury();
            tracked.pending = Some(pod);
            if self.accepting {
                self.start_drains();
            }
        }
    }

    fn set_facts(&mut self, uid: &str, pod: Option<Pod>) {
        let changed = self.model.write().unwrap_or_else(PoisonError::into_inner).set_pod(uid, pod);
        self.dirty.extend(changed);
    }

    /// The Pod is gone; its tombstone is kept for as long as anybody names it.
    fn bury_for_good(&mut self, uid: String) {
        if let Some(tracked) = self.pods.by_uid.get_mut(&uid) {
            tracked.pod.bury();
            tracked.pending = None;
            if let Some(drain) = tracked.drain.take() {
                drain.cancel();
            }
        }
        if self.read(|model| model.names_pod(&uid)) {
            self.pods.by_uid.entry(uid.clone()).or_default().pod.bury();
            self.pods.gone.insert(uid);
        } else {
            self.pods.by_uid.remove(&uid);
        }
    }

    fn start_drains(&mut self) {
        let mut leaving = Vec::new();
        for tracked in self.pods.by_uid.values_mut() {
            let Some(pod) = tracked.pending.take() else { continue };
            let Some(deletion) = pod.deletion else { continue };
            let stop = self.scope.token().child_token();
            tracked.drain = Some(stop.clone());
            leaving.push(Arc::clone(&tracked.pod));
            let (client, name) = (self.client.clone(), self.name.clone());
            let (buried, routed) = (Arc::clone(&tracked.pod), tracked.routed);
            self.scope.spawn("drain", async move {
                let draining = async {
                    let reason = drain::drained(&buried, &deletion, routed).await;
                    tracing::info!(pod = pod.name, uid = pod.uid, reason = reason.name(), "drained");
                    status::say_drained(&client, &name, &pod, reason).await;
                };
                stop.run_until_cancelled(draining).await;
            });
        }
        if leaving.is_empty() {
            return;
        }
        let of_leaving = |backend: &&Arc<Backend>| leaving.iter().any(|pod| Arc::ptr_eq(pod, &backend.pod));
        let ids: Vec<u64> = self
            .routes
            .values()
            .flat_map(|routed| routed.backends.values())
            .filter(of_leaving)
            .map(|backend| backend.id)
            .collect();
        self.workers.forget(&ids);
    }

    /// From now on listeners accept, and Pods that leave are drained.
    pub(crate) fn start_accepting(&mut self) {
        self.accepting = true;
        self.settle();
        self.start_drains();
    }

    /// Makes real what was heard since the last time.
    pub(crate) fn settle(&mut self) {
        if !self.accepting {
            return;
        }
        for key in std::mem::take(&mut self.dirty) {
            self.settle_service(&key);
        }
    }

    /// Looks again at ports that were taken.
    pub(crate) fn retry(&mut self) {
        let waiting: Vec<Key> = self.waiting.iter().cloned().collect();
        waiting.iter().for_each(|key| self.settle_service(key));
    }

    fn settle_service(&mut self, key: &Key) {
        let service = self.read(|model| model.services.get(key).cloned());
        let ports: Vec<(String, Protocol)> = match &service {
            Some(service) if service.kind != Kind::ExternalName => {
                service.ports.iter().map(|port| (port.name.clone(), port.protocol)).collect()
            }
            _ => Vec::new(),
        };
        if let Some(service) = &service {
            for port in service.ports.iter().filter(|_| !ports.is_empty()) {
                let route = Arc::clone(&self.route(key, &port.name, port.protocol, port.port).route);
                let (behind, protocol) = self.read(|model| {
                    (model.behind(service, port), model.app_protocol(service, port, route.app_protocol()))
                });
                route.set_app_protocol(protocol);
                route.set_trusts_forwarded(service.trusts_forwarded);
                self.set_backends((key.clone(), port.name.clone(), port.protocol), behind);
            }
        }
        let stale: Vec<PortKey> = self
            .routes
            .range((key.clone(), String::new(), Protocol::Tcp)..)
            .take_while(|((service, ..), _)| service == key)
            .filter(|((_, name, protocol), _)| !ports.contains(&(name.clone(), *protocol)))
            .map(|(port, _)| port.clone())
            .collect();
        for port in stale {
            if let Some(routed) = self.routes.remove(&port) {
                routed.route.balancer.set(Vec::new());
            }
        }
        match service {
            _ if self.handed_over => {}
            Some(service) => ports::settle(self, &service),
            None => ports::close_all(self, key),
        }
    }

    fn route(&mut self, key: &Key, name: &str, protocol: Protocol, number: u16) -> &mut Routed {
        self.routes.entry((key.clone(), name.to_owned(), protocol)).or_insert_with(|| Routed {
            route: Arc::new(Route::new(format!("{key}:{number}"))),
            backends: BTreeMap::new(),
        })
    }

    fn set_backends(&mut self, port: PortKey, behind: Vec<Behind>) {
        let Some(mut routed) = self.routes.remove(&port) else { return };
        let mut old = std::mem::take(&mut routed.backends);
        for behind in behind {
            let pod = match &behind.pod {
                Some((uid, _)) => {
                    let tracked = self.pods.by_uid.entry(uid.clone()).or_default();
                    // A late slice does not bring a Pod back.
                    if tracked.pod.is_buried() {
                        continue;
                    }
                    tracked.routed = true;
                    Arc::clone(&tracked.pod)
                }
                None => Arc::default(),
            };
            let backend = old.remove(&behind).unwrap_or_else(|| {
                let inside = match (self.pods_range, behind.address) {
                    (Some(range), SocketAddr::V4(address)) => range.contains(*address.ip()),
                    _ => true,
                };
                let name = behind.pod.as_ref().map_or_else(String::new, |(_, name)| name.clone());
                let labels = vec![
                    ("namespace", port.0.split('/').next().unwrap_or_default().to_owned()),
                    ("service", port.0.split('/').nth(1).unwrap_or_default().to_owned()),
                    ("port", port.1.clone()),
                    ("pod", name),
                    ("backend", behind.address.to_string()),
                ];
                let (address, allowance) = (behind.address, behind.allowance.clone());
                Backend::new(address, inside, allowance, pod, metrics::Backend::new(labels))
            });
            routed.backends.insert(behind, backend);
        }
        routed.route.balancer.set(routed.backends.values().cloned().collect());
        let gone: Vec<u64> = old.values().map(|backend| backend.id).collect();
        if !gone.is_empty() {
            self.workers.forget(&gone);
        }
        self.routes.insert(port, routed);
    }

    /// A listening socket for a Service port; a spot belongs to one of them.
    pub(crate) fn listen(&self, spot: &Spot) -> io::Result<OwnedFd> {
        if self.spots.contains(spot) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        self.sockets.open(spot)
    }

    /// Starts to serve a listener of a Service port.
    pub(crate) fn serve(
        &mut self,
        key: &Key,
        spot: Spot,
        purpose: Purpose,
        port: (String, Protocol),
        socket: OwnedFd,
    ) {
        let Some(routed) = self.routes.get(&(key.clone(), port.0.clone(), port.1)) else { return };
        let route = Arc::clone(&routed.route);
        let stop = self.scope.token().child_token();
        match spot.protocol {
            Protocol::Tcp => {
                self.workers.accept(socket.into(), Target::Route(route), stop.clone());
            }
            Protocol::Udp => {
                let (shared, scope, end) =
                    (Arc::clone(&self.workers.shared), self.scope.clone(), stop.clone());
                self.scope.spawn("udp", async move {
                    let name = route.name.clone();
                    let served = end.run_until_cancelled(udp::serve(socket, route, shared, scope)).await;
                    if let Some(Err(error)) = served {
                        tracing::error!(%error, route = name, "serve datagrams");
                    }
                });
            }
        }
        self.spots.insert(spot.clone());
        self.open.entry(key.clone()).or_default().push(Opened { spot, purpose, port, stop });
    }

    /// Stops accepting everywhere; the sockets stay open at the daemon.
    pub(crate) fn stop_accepting(&mut self) {
        self.handed_over = true;
        self.open.values().flatten().for_each(|opened| opened.stop.cancel());
    }
}
