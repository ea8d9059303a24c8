//! The threads that carry traffic: each has its own reactor and its own idle connections, and lives in the router
//! namespace, so that a connection to a Pod is one system call away.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lifecycle::CancellationToken;
use lifecycle::bound::Bound;
use network::{Network, Place};
use rustix::net::SocketFlags;
use socket2::{Domain, Type};
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::backend::{Backend, Flight};
use crate::route::{Route, Speech};
use crate::{Limits, egress, http1, metrics, relay, sniff};

/// Idle connections to backends: how long they are kept, and how many for each backend and thread.
const IDLE_MAX: Duration = Duration::from_secs(4);
const IDLE_FOR_ONCE_MAX: Duration = Duration::from_secs(1);
const IDLE_COUNT_MAX: usize = 256;
/// How many backends a request or connection tries before it starts over.
const TRIES_MAX: usize = 4;
const START_OVER_FIRST: Duration = Duration::from_millis(10);

/// What all threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// `None` in tests: everything is in one namespace.
    pub(crate) network: Option<Network>,
    pub(crate) limits: Limits,
    /// Cancelled when this process hands over: connections end after what they carry.
    pub(crate) draining: CancellationToken,
    connections: Arc<Semaphore>,
    bound: Arc<Bound>,
}

impl Shared {
    pub(crate) fn new(network: Option<Network>, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            network,
            draining: CancellationToken::new(),
            connections: Arc::new(Semaphore::new(limits.connections_max)),
            bound: Bound::new("proxy_connections", limits.connections_max as u64),
            limits,
        })
    }

    /// Takes a place for a connection; waits while all are taken, and what comes after it waits in the backlog.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if self.connections.available_permits() == 0 {
            self.bound.refuse();
        }
        let permit = Arc::clone(&self.connections).acquire_owned().await.ok()?;
        let used = self.limits.connections_max - self.connections.available_permits();
        self.bound.set(used as u64);
        Some(permit)
    }

    /// Waits until every connection has ended. Only once nothing accepts any more.
    pub(crate) async fn idle(&self) {
        let all = u32::try_from(self.limits.connections_max).unwrap_or(u32::MAX);
        // An error means that the semaphore is closed, and nobody closes it.
        let _ = self.connections.acquire_many(all).await;
    }

    /// Connects to `address`, from this thread's namespace or from the host's.
    pub(crate) async fn dial(&self, address: SocketAddr, from_here: bool) -> io::Result<TcpStream> {
        let domain = Domain::for_address(address);
        let socket = match &self.network {
            Some(network) if !from_here => network.socket(&Place::Host, domain, Type::STREAM)?,
            _ => socket2::Socket::new(domain, Type::STREAM, None)?,
        };
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        let connect = TcpSocket::from_std_stream(socket.into()).connect(address);
        match tokio::time::timeout(self.limits.connect_timeout, connect).await {
            Ok(connected) => connected,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// One thread.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    handle: Handle,
    carried: AtomicUsize,
    idle: Mutex<HashMap<u64, Vec<(Instant, TcpStream)>>>,
}

/// A connection to a backend that is in use.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) stream: TcpStream,
    /// It carried something before, so it may have died unnoticed.
    pub(crate) reused: bool,
}

impl Worker {
    /// An idle connection, or a new one. `once`: what is to be sent cannot be sent twice, so an idle connection
    /// must be young.
    pub(crate) async fn connect(&self, backend: &Backend, once: bool, fresh: bool) -> io::Result<Upstream> {
        let age_max = if once { IDLE_FOR_ONCE_MAX } else { IDLE_MAX };
        if !fresh && let Some(stream) = self.take_idle(backend.id, age_max) {
            return Ok(Upstream { stream, reused: true });
        }
        let stream = self.shared.dial(backend.address, backend.inside).await?;
        backend.connected();
        backend.metrics.connected();
        Ok(Upstream { stream, reused: false })
    }

    fn take_idle(&self, id: u64, age_max: Duration) -> Option<TcpStream> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = idle.get_mut(&id)?;
        while let Some((since, stream)) = connections.pop() {
            // The youngest comes first: when it is too old, so are the others.
            if since.elapsed() > age_max {
                return None;
            }
            // Only looks at what the reactor knows already: an idle backend says nothing but goodbye.
            let mut byte = [0];
            if matches!(stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                return Some(stream);
            }
        }
        None
    }

    /// Keeps a connection for the next request, unless its Pod leaves.
    pub(crate) fn keep_idle(&self, backend: &Backend, stream: TcpStream) {
        if backend.pod.is_buried() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = idle.entry(backend.id).or_default();
        if connections.len() < IDLE_COUNT_MAX {
            connections.push((Instant::now(), stream));
        }
    }

    fn sweep(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        for connections in idle.values_mut() {
            connections.retain(|(since, _)| since.elapsed() <= IDLE_MAX);
        }
        idle.retain(|_, connections| !connections.is_empty());
    }

    /// Closes idle connections to those backends.
    fn forget(&self, backends: &[u64]) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|id, _| !backends.contains(id));
    }

    /// A backend of the route and a connection to it. Refusals are tried elsewhere, then again, for as long as
    /// the limits' patience lasts.
    pub(crate) async fn reach(&self, route: &Route, once: bool, fresh: bool) -> Option<(Flight, Upstream)> {
        if let Some(flight) = route.balancer.pick(&[])
            && let Ok(upstream) = self.connect(&flight.backend, once, fresh).await
        {
            return Some((flight, upstream));
        }
        // Once more, with patience, counting what fails.
        let deadline = Instant::now() + self.shared.limits.patience;
        let mut pause = START_OVER_FIRST;
        let mut tried = Vec::new();
        loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            let flight = route.balancer.pick_patiently(&tried, patience).await;
            let refused = !tried.is_empty();
            let Some(flight) = flight else {
                if !refused || Instant::now() + pause > deadline {
                    metrics::count(&metrics::OWN.no_backend);
                    return None;
                }
                tried.clear();
                tokio::time::sleep(pause).await;
                pause *= 2;
                continue;
            };
            match self.connect(&flight.backend, once, fresh).await {
                Ok(upstream) => return Some((flight, upstream)),
                Err(error) => {
                    let backend = &flight.backend;
                    tracing::debug!(route = route.name, address = %backend.address, %error, "connect");
                    backend.metrics.refused();
                    route.balancer.refused(backend);
                    metrics::count(&metrics::OWN.retries);
                    tried.push(backend.id);
                    if tried.len() >= TRIES_MAX {
                        tried.truncate(TRIES_MAX);
                        tried.extend(route.balancer.backends().iter().map(|backend| backend.id));
                    }
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, descriptor: OwnedFd, peer: IpAddr, target: Target) {
        let stream = std::net::TcpStream::from(descriptor);
        // Both ends are ours to pace: small writes must not wait for one another.
        let _ = stream.set_nodelay(true);
        let Ok(client) = TcpStream::from_std(stream) else { return };
        match target {
            Target::Egress(egress) => egress::serve(&self, client, &egress).await,
            Target::Route(route) => match route.speech() {
                Speech::Http => http1::exchange::serve(&self, &route, client, peer, Default::default()).await,
                Speech::Opaque => relay::serve(&self, &route, client).await,
                Speech::Unknown => sniff::serve(&self, &route, client, peer).await,
            },
        }
    }
}

/// What accepted connections are for.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Route(Arc<Route>),
    Egress(Arc<egress::Egress>),
}

/// All threads. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Workers {
    pub(crate) shared: Arc<Shared>,
    all: Arc<[Arc<Worker>]>,
    next: AtomicUsize,
    stop: CancellationToken,
}

impl Workers {
    /// Starts `count` threads.
    pub(crate) fn start(shared: Arc<Shared>, count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let all =
            (0..count.max(1)).map(|index| start(&shared, index, &stop)).collect::<io::Result<Vec<_>>>()?;
        Ok(Self { shared, all: all.into(), next: AtomicUsize::new(0), stop })
    }

    /// Accepts from the listener until `stop`; the connections that were accepted stay.
    pub(crate) fn accept(&self, listener: TcpListener, target: Target, stop: CancellationToken) {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.all.len();
        let (all, shared) = (Arc::clone(&self.all), Arc::clone(&self.shared));
        // The thread owns the task: it ends with the thread's runtime, or at `stop`.
        self.all[index].handle.spawn(async move {
            stop.run_until_cancelled(accept(listener, target, &shared, &all, index)).await;
        });
    }

    /// Closes idle connections to backends that are gone or leaving.
    pub(crate) fn forget(&self, backends: &[u64]) {
        self.all.iter().for_each(|worker| worker.forget(backends));
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn start(shared: &Arc<Shared>, index: usize, stop: &CancellationToken) -> io::Result<Arc<Worker>> {
    let (started, result) = std::sync::mpsc::channel();
    let (shared, stop) = (Arc::clone(shared), stop.clone());
    std::thread::Builder::new().name(format!("proxy-{index}")).spawn(move || {
        let prepare = || {
            if let Some(network) = &shared.network {
                network.enter_router()?;
            }
            tokio::runtime::Builder::new_current_thread().enable_all().build()
        };
        let runtime = match prepare() {
            Ok(runtime) => runtime,
            Err(error) => return drop(started.send(Err(error))),
        };
        let worker = Arc::new(Worker {
            shared,
            handle: runtime.handle().clone(),
            carried: AtomicUsize::new(0),
            idle: Mutex::new(HashMap::new()),
        });
        if started.send(Ok(Arc::clone(&worker))).is_err() {
            return;
        }
        runtime.block_on(stop.run_until_cancelled(async {
            let mut tick = tokio::time::interval(IDLE_MAX / 2);
            loop {
                tick.tick().await;
                worker.sweep();
            }
        }));
        // Idle connections belong to the reactor: they go first.
        worker.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    })?;
    result.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
}

async fn accept(listener: TcpListener, target: Target, shared: &Shared, all: &[Arc<Worker>], own: usize) {
    let listener = match listener.set_nonblocking(true).and_then(|()| crate::io::watched(listener)) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "watch a listener"),
    };
    loop {
        let (descriptor, peer) = match accept_one(&listener).await {
            Ok(accepted) => accepted,
            // Shut down: the Service is gone, and soon this task.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) => {
                // Out of descriptors or memory: what is open must end first. The backlog waits.
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let Some(permit) = shared.place().await else { return };
        let carried = |worker: &Worker| worker.carried.load(Ordering::Relaxed);
        let mut index = own;
        for (other, worker) in all.iter().enumerate() {
            if carried(worker) < carried(&all[index]) {
                index = other;
            }
        }
        let worker = Arc::clone(&all[index]);
        worker.carried.fetch_add(1, Ordering::Relaxed);
        let handle = worker.handle.clone();
        let carried = Carried { worker: Arc::clone(&worker), _permit: permit };
        let target = target.clone();
        // The thread owns the task, as above.
        handle.spawn(async move {
            let _carried = carried;
            worker.serve(descriptor, peer, target).await;
        });
    }
}

/// A connection that the thread carries, and its place among all.
struct Carried {
    worker: Arc<Worker>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.worker.carried.fetch_sub(1, Ordering::Relaxed);
        let shared = &self.worker.shared;
        let used = shared.limits.connections_max - shared.connections.available_permits();
        shared.bound.set(used.saturating_sub(1) as u64);
    }
}

async fn accept_one(listener: &AsyncFd<TcpListener>) -> io::Result<(OwnedFd, IpAddr)> {
    loop {
        let mut ready = listener.readable().await?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match rustix::net::acceptfrom_with(listener.get_ref(), flags) {
            Ok((descriptor, peer)) => {
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                let peer = peer.map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.ip().to_canonical());
                return Ok((descriptor, peer));
            }
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            // The client left while it waited.
            Err(rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
