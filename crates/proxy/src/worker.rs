//! The threads that carry traffic: each has its own reactor and its own idle connections, and lives in the router
//! namespace, so that a connection to a Pod is one system call away.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lifecycle::CancellationToken;
use lifecycle::connections::{self, Slot, Table};
use network::{Network, Place};
use rustix::net::SocketFlags;
use socket2::{Domain, Type};
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::backend::{Backend, Flight};
use crate::destination::{Allowance, Guard};
use crate::pool::{IDLE_MAX, Pool};
use crate::route::{AppProtocol, Route};
use crate::source::{Source, Sources};
use crate::{Limits, egress, http1, metrics, relay};

/// How many backends a request or connection tries before it starts over.
const TRIES_MAX: usize = 4;
const START_OVER_FIRST: Duration = Duration::from_millis(10);

/// A connection's place among all: whose it is, and for which route.
pub(crate) type Held = Slot<Source, u64>;

/// What all threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// `None` in tests: everything is in one namespace.
    pub(crate) network: Option<Network>,
    pub(crate) limits: Limits,
    /// Cancelled when this process hands over: connections end after what they carry.
    pub(crate) draining: CancellationToken,
    /// What may be dialled outside; `None` in tests: everything.
    guard: Option<Guard>,
    /// By source and route: a client can keep each of its connections at work for as long as it likes.
    connections: Table<Source, u64>,
    /// Clients of UDP Services.
    pub(crate) sessions: Table<Source, u64>,
    sources: Sources,
    carried: AtomicUsize,
    emptied: Notify,
}

impl Shared {
    /// `allowance`: what everybody may reach outside.
    pub(crate) fn new(
        network: Option<Network>,
        limits: Limits,
        allowance: Allowance,
    ) -> io::Result<Arc<Self>> {
        let guard = network.as_ref().map(|network| Guard::new(network, allowance)).transpose()?;
        let sources = Sources::new(network.as_ref())?;
        Ok(Arc::new(Self {
            guard,
            sources,
            network,
            draining: CancellationToken::new(),
            connections: Table::displacing_busy("proxy_connections", shares(limits.connections_max)),
            sessions: Table::new("proxy_udp_sessions", shares(limits.connections_max / 2)),
            carried: AtomicUsize::new(0),
            emptied: Notify::new(),
            limits,
        }))
    }

    /// Waits until every connection has ended. Only once nothing accepts any more.
    pub(crate) async fn idle(&self) {
        loop {
            let emptied = self.emptied.notified();
            let mut emptied = std::pin::pin!(emptied);
            emptied.as_mut().enable();
            if self.carried.load(Ordering::SeqCst) == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// Whether the guard lets somebody with the allowance reach the address from the host's namespace.
    pub(crate) fn check(&self, address: SocketAddr, allowance: &Allowance) -> io::Result<()> {
        match &self.guard {
            Some(guard) => guard.check(address.ip(), allowance).map_err(|refusal| refusal.refuse()),
            None => Ok(()),
        }
    }

    /// Connects to `address`, from this thread's namespace or, as far as the allowance goes, from the host's.
    pub(crate) async fn dial(
        &self,
        address: SocketAddr,
        from_here: bool,
        allowance: &Allowance,
    ) -> io::Result<TcpStream> {
        let domain = Domain::for_address(address);
        let socket = match &self.network {
            Some(network) if !from_here => {
                self.check(address, allowance)?;
                network.socket(&Place::Host, domain, Type::STREAM)?
            }
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

/// Of so many places a source may hold seven eighths, and three quarters for one route: what is left is there for others
/// without a wait, and for the rest they displace. A machine with one user is not to lose much by it: its share for one
/// route is above a listener's backlog, so that all who waited while this process had no processor find room at once.
pub(crate) fn shares(total: usize) -> connections::Limits {
    connections::Limits { total, group: (total - total / 8).max(1), peer: (total - total / 4).max(1) }
}

/// One thread.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    handle: Handle,
    carried: AtomicUsize,
    pub(crate) pool: Pool,
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
        if !fresh && let Some(stream) = self.pool.take(backend, once) {
            return Ok(Upstream { stream, reused: true });
        }
        let stream = self.shared.dial(backend.address, backend.inside, &backend.allowance).await?;
        backend.connected();
        backend.metrics.connected();
        Ok(Upstream { stream, reused: false })
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

    async fn serve(self: Arc<Self>, descriptor: OwnedFd, peer: IpAddr, target: Target, held: &Held) {
        let stream = std::net::TcpStream::from(descriptor);
        // Both ends are ours to pace: small writes must not wait for one another.
        let _ = stream.set_nodelay(true);
        let Ok(client) = TcpStream::from_std(stream) else { return };
        match target {
            Target::Egress(egress) => egress::serve(&self, client, peer, &egress, held).await,
            Target::Route(route) => match route.app_protocol() {
                AppProtocol::Http => http1::exchange::serve(&self, &route, client, peer, held).await,
                AppProtocol::Opaque => relay::serve(&self, &route, client, held).await,
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

impl Target {
    fn route(&self) -> u64 {
        match self {
            Self::Route(route) => route.id,
            Self::Egress(_) => 0,
        }
    }
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
        let all = (0..count.max(1))
            .map(|index| start(&shared, index, count.max(1), &stop))
            .collect::<io::Result<Vec<_>>>()?;
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
        self.all.iter().for_each(|worker| worker.pool.forget(backends));
    }

    /// Bytes that stand unread on idle connections to backends.
    #[cfg(test)]
    pub(crate) fn unread(&self) -> u64 {
        self.all.iter().map(|worker| worker.pool.unread()).sum()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn start(
    shared: &Arc<Shared>,
    index: usize,
    count: usize,
    stop: &CancellationToken,
) -> io::Result<Arc<Worker>> {
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
        // See `run`: so many descriptors are there for idle connections.
        let pool = Pool::new((shared.limits.connections_max / 2).div_ceil(count));
        let handle = runtime.handle().clone();
        let worker = Arc::new(Worker { shared, handle, carried: AtomicUsize::new(0), pool });
        if started.send(Ok(Arc::clone(&worker))).is_err() {
            return;
        }
        runtime.block_on(stop.run_until_cancelled(async {
            let mut tick = tokio::time::interval(IDLE_MAX / 2);
            loop {
                tick.tick().await;
                worker.pool.sweep();
            }
        }));
        // Idle connections belong to the reactor: they go first.
        worker.pool.clear();
    })?;
    result.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
}

async fn accept(listener: TcpListener, target: Target, shared: &Shared, all: &[Arc<Worker>], own: usize) {
    let watch = || {
        let local = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        Ok::<_, io::Error>((local, crate::io::watched(listener)?))
    };
    let (local, listener) = match watch() {
        Ok(watched) => watched,
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
        let source = shared.sources.of(peer, local);
        let held = match shared.connections.admit(source, target.route()) {
            Ok(held) => held,
            Err(reason) => {
                tracing::debug!(?source, %peer, reason = reason.name(), "no place for a connection");
                crate::io::refuse(descriptor);
                continue;
            }
        };
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
        shared.carried.fetch_add(1, Ordering::SeqCst);
        let carried = Carried { worker: Arc::clone(&worker) };
        let target = target.clone();
        // The thread owns the task, as above.
        handle.spawn(async move {
            let _carried = carried;
            tokio::select! {
                biased;
                () = held.displaced() => {}
                () = worker.serve(descriptor, peer.ip(), target, &held) => {}
            }
        });
    }
}

/// A connection that the thread carries.
struct Carried {
    worker: Arc<Worker>,
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.worker.carried.fetch_sub(1, Ordering::Relaxed);
        let shared = &self.worker.shared;
        if shared.carried.fetch_sub(1, Ordering::SeqCst) == 1 {
            shared.emptied.notify_waiters();
        }
    }
}

async fn accept_one(listener: &AsyncFd<TcpListener>) -> io::Result<(OwnedFd, SocketAddr)> {
    loop {
        let mut ready = listener.readable().await?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match rustix::net::acceptfrom_with(listener.get_ref(), flags) {
            Ok((descriptor, peer)) => {
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                return Ok((descriptor, peer.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)))));
            }
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            // The client left while it waited.
            Err(rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
