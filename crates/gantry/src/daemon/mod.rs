//! The daemon: API server, controllers, node agent and registry in one process.
//!
//! Opened in this order, because each needs the one before: state folder (whose lock makes this the only daemon) →
//! network, stores, authority → API server, certificates → controllers, node, registry → proxy. What needs not the
//! other is opened beside it: a start is mostly waiting for the disk. Ended in the opposite one. Containers, the
//! proxy and its sockets stay when the daemon goes, whichever way it goes.

mod backup;
mod certificates;
mod console;
mod control;
mod garbage;
mod issued;
mod kubeconfig;
mod leases;
mod listeners;
mod log;
mod memory;
mod pki;
mod proxy;
mod state;
mod systemd;
mod takeover;
mod teardown;
mod user;

pub use proxy::main as proxy_main;
pub use takeover::main as takeover_main;
pub use teardown::remove_outside;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use lifecycle::Scope;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::format;
use crate::version::VERSION;
use certificates::Certificates;
use control::Replacement;
use listeners::Listeners;
use pki::Authority;
use state::State;

/// How long tasks may take to end when the daemon is told to stop.
const STOP_SECONDS: u64 = 10;

/// Runs the daemon until SIGTERM or SIGINT, or until another takes over: then the process goes on as that one's parent
/// and does not return. `ready` is called once, when everything answers.
pub fn run(state_dir: &Path, ready: &mut dyn FnMut()) -> Result<()> {
    crate::modes::private_process();
    let state = State::open(state_dir)?;
    log::start(&crate::access::log_path(&state.dir)).context("open the daemon's log")?;
    let (lock, takes_over) = takeover::lock(&state)?;
    crate::modes::repair(&state.dir)?;
    state.sweep()?;
    memory::configure();
    if let Err(error) = listen::raise_descriptors() {
        tracing::warn!(%error, "raise the limit of open descriptors");
    }
    let now = jiff::Timestamp::now();
    let format = format::agree(&state.dir, format::STEPS, VERSION, now).context("open the state folder")?;
    let start = Start { stored: systemd::stored(), takes_over, format };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads())
        .enable_all()
        .build()
        .context("start the runtime")?;
    let ended = runtime.block_on(serve(state.clone(), start, ready));
    // What still runs on the blocking pool has no one left who waits for it.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ended? {
        End::Stopped => Ok(()),
        End::Replaced(replacement) => Err(takeover::hand_over(&state, &lock, replacement)),
    }
}

/// What this daemon was given.
struct Start {
    /// Listeners that the service manager held.
    stored: Vec<(String, std::os::fd::OwnedFd)>,
    /// From another daemon, whose proxy is to be replaced too.
    takes_over: bool,
    format: format::Agreed,
}

/// Why the daemon ends.
enum End {
    Stopped,
    Replaced(Replacement),
}

/// What the user can do about a daemon that failed so.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        let full = |cause: &std::io::Error| cause.kind() == std::io::ErrorKind::StorageFull;
        if cause.downcast_ref().is_some_and(full) {
            return Some("free space there, or name another folder with --state-dir".to_owned());
        }
        let modes = cause.downcast_ref().and_then(crate::modes::Error::hint);
        let user = cause.downcast_ref().and_then(user::Error::hint);
        modes.or(user).or_else(|| cause.downcast_ref().and_then(network::Error::hint))
    })
}

fn worker_threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8)
}

async fn serve(state: State, given: Start, ready: &mut dyn FnMut()) -> Result<End> {
    tracing::info!(state = %state.dir.display(), instance = state.instance, version = VERSION, "daemon starts");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let scope = Scope::new("daemon");
    let takes_over = given.takes_over;
    let (replace, mut replaced) = mpsc::channel(1);
    let started = start(&state, given, replace, &scope).await?;
    if takes_over {
        // The one before is there until this is so.
        started.proxy.await.context("the proxy was given up")?.context("replace the proxy")?;
    }
    tracing::info!("ready");
    ready();
    systemd::notify("READY=1");
    let end = tokio::select! {
        _ = terminate.recv() => End::Stopped,
        _ = interrupt.recv() => End::Stopped,
        Some(replacement) = replaced.recv() => End::Replaced(replacement),
    };
    match &end {
        End::Stopped => systemd::notify("STOPPING=1"),
        End::Replaced(by) => tracing::info!(binary = %by.binary.display(), "another daemon takes over"),
    }
    tracing::info!("daemon stops; containers go on");
    let unfinished = scope.shutdown(Duration::from_secs(STOP_SECONDS)).await;
    if !unfinished.is_empty() {
        tracing::warn!(?unfinished, "tasks were cut off");
    }
    // Writes that are queued are on disk before the next daemon opens the store.
    started.objects.close().await;
    Ok(end)
}

/// What of a started daemon is still needed.
struct Started {
    /// Told once a proxy of this release takes connections.
    proxy: tokio::sync::oneshot::Receiver<Result<()>>,
    objects: store::Store,
}

async fn start(
    state: &State,
    given: Start,
    replace: mpsc::Sender<Replacement>,
    scope: &Scope,
) -> Result<Started> {
    let Start { stored, takes_over, format } = given;
    // Taken before anybody knows of this process.
    let hangup = certificates::hangup()?;
    let (network, authority, images, objects, runtime, kept) = tokio::try_join!(
        beside(state, |state| {
            let config = network::Config { state_dir: state.dir, instance: state.instance };
            network::Network::open(config).context("open the network")
        }),
        beside(state, |state| {
            let clock = Arc::new(jiff::Timestamp::now);
            Authority::open(&state.dir.join("ca"), clock)
                .map(Arc::new)
                .context("open the certificate authority")
        }),
        beside(state, |state| images::Store::open(&state.dir).context("open the image store")),
        beside(state, |state| {
            store::Store::open(&state.dir.join("store"), store::Options::default())
                .context("open the object store")
        }),
        beside(state, open_runtime),
        async { Ok(proxy::Kept::take(state, stored, scope).await) },
    )?;
    memory::give_back(objects.clone(), scope);
    let listeners = Listeners::open(state, &kept)?;
    let pod_facing = SocketAddr::from((network.router_ip(), API_PORT_IN_ROUTER));
    let service_cidr = network.service_cidr();
    let server = apiserver::Server::open(apiserver::Config {
        service_cidr: (service_cidr.address(), service_cidr.prefix()),
        advertise: Some(pod_facing),
        ..apiserver::Config::new(objects.clone())
    });
    let server = async { server.await.context("open the API server") };
    let endpoints = listeners.endpoints()?;
    let (server, certificates) =
        tokio::try_join!(server, certify(state, &authority, &network, endpoints.kubernetes.clone()))?;
    let certificates = beside(state, move |state| {
        certificates.start()?;
        state::write_endpoints(&state.dir, &endpoints)?;
        Ok(certificates)
    })
    .await?;

    serve_api(&server, &certificates.served.config(), &network, &listeners, pod_facing, scope)?;
    listeners::serve(&listeners, "registry", registry_router(state, &images)?, scope)?;

    // Before the node looks whom it has to wait for.
    let leases = leases::Leases::new(server.client(apiserver::Identity::admin()), state);
    leases.release_gone().await;
    leases.keep(scope);
    let node = start_node(state, &server, &network, images.clone(), runtime.clone(), scope)?;
    let snapshots = backup::Snapshots::new(state, objects.clone(), images.clone())?;
    control::serve(control::Doors { state: state.clone(), format, snapshots, replace }, scope)?;
    scope.spawn("certificates", certificates.run(hangup));
    let client = server.client(apiserver::Identity::admin());
    let collector = garbage::Collector { images, node: node.clone(), client };
    scope.spawn("image garbage", collector.run(state.dir.clone()));
    listeners::serve(&listeners, "console", console::router(), scope)?;
    server.set_kubelet(node.router());
    let identities = server.clone();
    let client_for = move |user: &str| {
        let identity = match user {
            controllers::SCHEDULER_USER => apiserver::Identity::scheduler(),
            _ => apiserver::Identity::controllers(),
        };
        identities.client(identity)
    };
    controllers::start(client_for, scope);
    let hold = proxy::Hold { runtime, takes_over };
    let proxy = proxy::hold(state, kept, listeners.named(), hold, scope)?;
    Ok(Started { proxy, objects })
}

/// Runs what waits for the disk on a thread for it.
async fn beside<T: Send + 'static>(
    state: &State,
    work: impl FnOnce(State) -> Result<T> + Send + 'static,
) -> Result<T> {
    let state = state.clone();
    tokio::task::spawn_blocking(move || work(state)).await?
}

/// Where Pods find the API server: the router's address and the port that `kubernetes.default.svc` leads to.
const API_PORT_IN_ROUTER: u16 = 6443;

/// The API server's certificate, and what its clients are issued.
async fn certify(
    state: &State,
    authority: &Arc<Authority>,
    network: &network::Network,
    server: String,
) -> Result<Certificates> {
    let mut names: Vec<String> = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .into_iter()
        .map(str::to_owned)
        .collect();
    names.push("kubernetes.default.svc.cluster.local".to_owned());
    let addresses: Vec<IpAddr> = vec![
        Ipv4Addr::LOCALHOST.into(),
        std::net::Ipv6Addr::LOCALHOST.into(),
        network.api_ip().into(),
        network.router_ip().into(),
    ];
    let authority = Arc::clone(authority);
    beside(state, move |state| {
        let served = authority.serve(names, addresses).context("make the API server's certificate")?;
        Ok(Certificates { state, authority, served, server })
    })
    .await
}

fn serve_api(
    server: &apiserver::Server,
    tls: &Arc<rustls::ServerConfig>,
    network: &network::Network,
    listeners: &Listeners,
    pod_facing: SocketAddr,
    scope: &Scope,
) -> Result<()> {
    let inside = network
        .run_in(&network::Place::Router, move || std::net::TcpListener::bind(pod_facing))
        .context("enter the router's namespace")?
        .with_context(|| format!("listen on {pod_facing} for Pods"))?;
    inside.set_nonblocking(true)?;
    let inside = tokio::net::TcpListener::from_std(inside)?;
    for (listener, config) in [
        (listeners.tokio("kubernetes")?, listeners.config("kubernetes")?),
        (inside, listeners::config("kubernetes_pod_connections", state::POD_CONNECTIONS)),
    ] {
        let (server, inner) = (server.clone(), scope.clone());
        let config = listen::Config { tls: Some(Arc::clone(tls)), ..config };
        scope.spawn_graceful("kubernetes api", async move { server.serve(listener, config, &inner).await });
    }
    Ok(())
}

fn registry_router(state: &State, images: &images::Store) -> Result<axum::Router> {
    let tokens = vec![state.registry_token()?];
    let auth = match crate::reads::Reads::load(&state.dir)? {
        crate::reads::Reads::Open => registry::server::Auth::Writes(tokens),
        crate::reads::Reads::Login => registry::server::Auth::Everything(tokens),
    };
    let router = registry::server::router(images.clone(), auth);
    Ok(router.layer(axum::middleware::from_fn(console::own_host_only)))
}

fn open_runtime(state: State) -> Result<runtime::Runtime> {
    let exe = std::env::current_exe().context("find the gantry binary")?;
    let config = runtime::Config { state_dir: state.dir, instance: state.instance, exe };
    runtime::Runtime::open(config).context("open the container runtime")
}

fn start_node(
    state: &State,
    server: &apiserver::Server,
    network: &network::Network,
    images: images::Store,
    runtime: runtime::Runtime,
    scope: &Scope,
) -> Result<node::Node> {
    let name = node_name();
    let node = node::Node::open(node::Config {
        client: server.client(apiserver::Identity::node(&name)),
        node_name: name,
        state_dir: state.dir.clone(),
        images,
        registries: registry::Config::default(),
        runtime,
        network: network.clone(),
        kubelet_port: None,
    })
    .context("open the node agent")?;
    let (agent, inner) = (node.clone(), scope.clone());
    scope.spawn_graceful("node", async move { agent.run(&inner).await });
    Ok(node)
}

/// The host's name as a DNS label.
fn node_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let label: String = name
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .take(63)
        .collect();
    let label = label.trim_matches(['-', '.']).to_owned();
    if label.is_empty() { "gantry".to_owned() } else { label }
}
