//! The process: take over listeners, hear everything once, take the Lease, accept; later hand over and finish.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use lifecycle::{CancellationToken, Scope};
use network::{EGRESS_PORT, Network, Protocol};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::control::Control;
use crate::destination::Allowance;
use crate::egress::{Allowances, Egress};
use crate::handover::{self, Holder, Link};
use crate::model::Model;
use crate::sockets::{Sockets, Spot};
use crate::worker::{Shared, Target, Workers};
use crate::{Limits, client, dns, metrics, status, watch};

/// How often a port of the host that is taken is tried again.
const PORT_RETRY: Duration = Duration::from_secs(2);
const EVENTS_AT_ONCE: usize = 256;
const DNS_PORT: u16 = 53;
const WORKERS_MAX: usize = 8;
/// How long the first connections wait for the Lease.
const LEASE_WITHIN: Duration = Duration::from_secs(10);

/// What a proxy is started with.
#[derive(Debug)]
pub struct Config {
    pub state_dir: PathBuf,
    pub instance: String,
    /// How to reach the API, as `system:gantry:proxy`.
    pub kubeconfig: PathBuf,
    /// The link to the daemon, if that started it: [`crate::spawn::inherited`].
    pub link: Option<OwnedFd>,
    pub limits: Limits,
    /// What every Pod may reach beside the world.
    pub allowance: Allowance,
    /// The binary's release: a daemon of another one replaces this process.
    pub program: String,
}

/// Why the proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open the network")]
    Network(#[from] network::Error),
    #[error("reach the API")]
    Client(#[from] client::Error),
    #[error("hand listeners over")]
    Handover(#[from] handover::Error),
    #[error("start the threads that carry traffic")]
    Workers(#[source] io::Error),
    #[error("listen on {socket}")]
    Listen { socket: String, source: io::Error },
    #[error("{path}: listen for metrics")]
    Metrics { path: PathBuf, source: io::Error },
}

/// Runs until the scope is cancelled, or a newer proxy has taken over; both ways it finishes what it carries.
pub async fn run(config: Config, scope: Scope) -> Result<(), Error> {
    let Config { state_dir, instance, kubeconfig, link, mut limits, allowance, program } = config;
    limits.connections_max = limits.connections_max.min(connections_possible());
    metrics::register();
    let name = format!("proxy-{:08x}", rand::random::<u32>());
    let holder = Holder::new(&name, program);
    let (said, mut told) = mpsc::channel(4);
    let network = Network::open(network::Config { state_dir: state_dir.clone(), instance })?;
    let client = client::from_kubeconfig(&kubeconfig).await?;
    let link = match link {
        Some(end) => Some(Link::establish(end, &holder, &scope).await?),
        None => None,
    };
    if let Some(link) = &link {
        obey(link.clone(), said.clone(), &scope);
    }

    let count = match limits.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX),
        count => count,
    };
    let shared = Shared::new(Some(network.clone()), limits.clone(), allowance).map_err(Error::Workers)?;
    let workers = Arc::new(Workers::start(Arc::clone(&shared), count).map_err(Error::Workers)?);
    let model: Arc<RwLock<Model>> = Arc::default();
    let sockets = Sockets { network: Some(network.clone()), holder: holder.clone() };
    let (accepting, allowances) = (CancellationToken::new(), Allowances::default());
    let mut control = Control::new(
        name.clone(),
        client.clone(),
        sockets.clone(),
        Arc::clone(&workers),
        Arc::clone(&model),
        scope.clone(),
        Some(network.pod_cidr()),
        Some(network.service_cidr()),
        allowances.clone(),
    );
    let mut events = watch::start(&client, &scope);
    while !control.is_synced() {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => control.hear(event),
                None => return Ok(()),
            },
            // Whoever started this process is gone and will never answer; the next daemon starts its own.
            () = ended(link.as_ref()) => return Ok(()),
            () = scope.cancelled() => return Ok(()),
        }
    }
    take_lease(&client, &name, &scope).await;
    start_dns(&network, &sockets, model, &scope)?;
    start_egress(&network, &sockets, &workers, allowances, &accepting)?;
    control.start_accepting();
    // What is wanted has been taken back by now.
    holder.drop_returned();
    serve_metrics(&state_dir, &scope)?;
    let listener = handover::listen(&state_dir)?;
    welcome(listener, holder, said, &scope);
    if let Some(link) = &link {
        link.say_ready();
    }
    tracing::info!(name, workers = count, "proxying");

    let drain = follow(&mut control, &mut events, &mut told, &scope, limits.drain_timeout).await;
    control.stop_accepting();
    accepting.cancel();
    shared.draining.cancel();
    // Pods that leave meanwhile are still drained, and said to be.
    let finish = async {
        tokio::select! {
            () = shared.idle() => {}
            () = async {
                while let Some(event) = events.recv().await {
                    control.hear(event);
                    control.settle();
                }
                std::future::pending().await
            } => {}
        }
    };
    if tokio::time::timeout(drain, finish).await.is_err() {
        tracing::warn!("connections were cut at the deadline");
    }
    let within = Duration::from_secs(2);
    if tokio::time::timeout(within, status::give_up_lease(&client, &name)).await.is_err() {
        tracing::warn!(lease = name, "the API did not answer; the lease stays until the daemon deletes it");
    }
    Ok(())
}

async fn ended(link: Option<&Link>) {
    match link {
        Some(link) => link.ended().await,
        None => std::future::pending().await,
    }
}

/// Follows the API until this process has to end; returns how long it may take to finish.
async fn follow(
    control: &mut Control,
    events: &mut mpsc::Receiver<watch::Event>,
    told: &mut mpsc::Receiver<Duration>,
    scope: &Scope,
    drain_timeout: Duration,
) -> Duration {
    let mut retry = tokio::time::interval(PORT_RETRY);
    let mut batch = Vec::with_capacity(EVENTS_AT_ONCE);
    loop {
        tokio::select! {
            count = events.recv_many(&mut batch, EVENTS_AT_ONCE) => {
                if count == 0 {
                    return drain_timeout;
                }
                batch.drain(..).for_each(|event| control.hear(event));
                control.settle();
            }
            _ = retry.tick() => control.retry(),
            Some(within) = told.recv() => return within,
            () = scope.cancelled() => return drain_timeout,
        }
    }
}

/// How many connections the descriptors of this process are enough for: each needs two, half as many again may be idle and
/// half as many carry datagrams, and an eighth is kept back for listeners and for ourselves.
fn connections_possible() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const OTHERS: u64 = 512;
    const EACH: u64 = 3;
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "raise the limit of open files");
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let kept_back = (files / 8).max(OTHERS);
    usize::try_from(files.saturating_sub(kept_back) / EACH).unwrap_or(usize::MAX).max(16)
}

async fn take_lease(client: &kube::Client, name: &str, scope: &Scope) {
    if tokio::time::timeout(LEASE_WITHIN, status::take_lease(client, name)).await.is_err() {
        tracing::error!(lease = name, "no lease yet: pods may be stopped before they are drained");
        let (client, name) = (client.clone(), name.to_owned());
        scope.spawn("lease", async move { status::take_lease(&client, &name).await });
    }
}

fn open(sockets: &Sockets, protocol: Protocol, address: SocketAddr) -> Result<OwnedFd, Error> {
    let spot = Spot { inside: true, protocol, address };
    sockets.open(&spot).map_err(|source| Error::Listen { socket: spot.name(), source })
}

fn start_dns(
    network: &Network,
    sockets: &Sockets,
    model: Arc<RwLock<Model>>,
    scope: &Scope,
) -> Result<(), Error> {
    let at = SocketAddr::from((network.dns_ip(), DNS_PORT));
    let (udp, tcp) = (open(sockets, Protocol::Udp, at)?, open(sockets, Protocol::Tcp, at)?);
    let resolv_conf = PathBuf::from("/etc/resolv.conf");
    let server = dns::Server::new(model, Some(network.clone()), resolv_conf, scope.clone());
    let other = Arc::clone(&server);
    scope.spawn("dns-udp", async move {
        if let Err(error) = dns::serve_udp(other, udp).await {
            tracing::error!(%error, "serve DNS over UDP");
        }
    });
    scope.spawn("dns-tcp", async move {
        if let Err(error) = dns::serve_tcp(server, tcp).await {
            tracing::error!(%error, "serve DNS over TCP");
        }
    });
    Ok(())
}

fn start_egress(
    network: &Network,
    sockets: &Sockets,
    workers: &Workers,
    allowances: Allowances,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let socket = open(sockets, Protocol::Tcp, SocketAddr::from((network.router_ip(), EGRESS_PORT)))?;
    workers.accept(socket.into(), Target::Egress(Egress::new(allowances)), stop.clone());
    Ok(())
}

/// Passes on what the other side tells this process to do.
fn obey(link: Link, said: mpsc::Sender<Duration>, scope: &Scope) {
    scope.spawn("handover-obey", async move {
        if let Some(within) = link.told_to_drain().await {
            // Told twice is told.
            let _ = said.try_send(within);
        }
    });
}

/// Links daemons that start later.
fn welcome(
    listener: tokio::io::unix::AsyncFd<OwnedFd>,
    holder: Holder,
    said: mpsc::Sender<Duration>,
    scope: &Scope,
) {
    let inner = scope.clone();
    scope.spawn("handover-listen", async move {
        loop {
            let linked = match handover::accept(&listener).await {
                Ok(socket) => Link::establish(socket, &holder, &inner).await,
                Err(error) => Err(handover::Error::Pass(error)),
            };
            match linked {
                Ok(link) => {
                    tracing::info!(pid = link.pid(), "a daemon linked");
                    link.say_ready();
                    obey(link, said.clone(), &inner);
                }
                Err(error) => tracing::warn!(%error, "link a daemon"),
            }
        }
    });
}

/// Serves `/metrics` (any path) on `run/proxy-metrics.sock`, mode 0600.
fn serve_metrics(state_dir: &Path, scope: &Scope) -> Result<(), Error> {
    let path = state_dir.join("run/proxy-metrics.sock");
    let staged = path.with_extension(format!("{}.new", std::process::id()));
    let bind = || -> io::Result<UnixListener> {
        let (_open, short) = crate::handover::short(&staged)?;
        let listener = UnixListener::bind(&short)?;
        std::fs::set_permissions(&staged, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        std::fs::rename(&staged, &path)?;
        Ok(listener)
    };
    let listener = bind().map_err(|source| Error::Metrics { path: path.clone(), source })?;
    scope.spawn("metrics", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answered = tokio::time::timeout(Duration::from_secs(5), answer_metrics(stream)).await;
            if let Ok(Err(error)) = answered {
                tracing::debug!(%error, "answer a scrape");
            }
        }
    });
    Ok(())
}

async fn answer_metrics(mut stream: UnixStream) -> io::Result<()> {
    const HEAD_BYTES_MAX: usize = 8 * 1024;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let text = lifecycle::metrics::encode();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        lifecycle::metrics::CONTENT_TYPE,
        text.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}
