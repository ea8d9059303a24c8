//! The daemon: API server, controllers, node agent and registry in one process.
//!
//! Opened in this order, because each needs the one before: state folder (whose lock makes this the only daemon) →
//! network, stores, authority → API server, certificates → controllers, node, registry → proxy. What needs not the
//! other is opened beside it: a start is mostly waiting for the disk. Ended in the opposite one. Containers, the
//! proxy and its sockets stay when the daemon goes, whichever way it goes.

mod console;
mod garbage;
mod kubeconfig;
mod leases;
mod listeners;
mod log;
mod pki;
mod proxy;
mod state;
mod teardown;
mod user;

pub use proxy::main as proxy_main;
pub use teardown::remove_outside;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use lifecycle::Scope;
use tokio::signal::unix::{SignalKind, signal};

use crate::access::Endpoints;
use listeners::Listeners;
use pki::Authority;
use state::State;

/// How long tasks may take to end when the daemon is told to stop.
const STOP_SECONDS: u64 = 10;

/// Runs the daemon until SIGTERM or SIGINT. `ready` is called once, when everything answers.
pub fn run(state_dir: &Path, ready: &mut dyn FnMut()) -> Result<()> {
    let state = State::open(state_dir)?;
    log::start(&crate::access::log_path(&state.dir)).context("open the daemon's log")?;
    let _lock =
        durable::Lock::acquire(&state.lock_path()).context("another daemon owns this state folder")?;
    state.sweep()?;
    if let Err(error) = listen::raise_descriptors() {
        tracing::warn!(%error, "raise the limit of open descriptors");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads())
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(serve(state, ready));
    // What still runs on the blocking pool has no one left who waits for it.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn worker_threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8)
}

async fn serve(state: State, ready: &mut dyn FnMut()) -> Result<()> {
    tracing::info!(state = %state.dir.display(), instance = state.instance, "daemon starts");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let scope = Scope::new("daemon");
    start(&state, &scope).await?;
    tracing::info!("ready");
    ready();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("daemon stops; containers go on");
    let unfinished = scope.shutdown(Duration::from_secs(STOP_SECONDS)).await;
    if !unfinished.is_empty() {
        tracing::warn!(?unfinished, "tasks were cut off");
    }
    Ok(())
}

async fn start(state: &State, scope: &Scope) -> Result<()> {
    let (network, authority, images, objects, runtime, kept) = tokio::try_join!(
        beside(state, |state| {
            let config = network::Config { state_dir: state.dir, instance: state.instance };
            network::Network::open(config).context("open the network")
        }),
        beside(state, |state| {
            Authority::open(&state.dir.join("ca")).map(Arc::new).context("open the certificate authority")
        }),
        beside(state, |state| images::Store::open(&state.dir).context("open the image store")),
        beside(state, |state| {
            store::Store::open(&state.dir.join("store"), store::Options::default())
                .context("open the object store")
        }),
        beside(state, open_runtime),
        async { Ok(proxy::Kept::take(state, scope).await) },
    )?;
    let listeners = Listeners::open(state, &kept)?;
    let pod_facing = SocketAddr::from((network.router_ip(), API_PORT_IN_ROUTER));
    let service_cidr = network.service_cidr();
    let server = apiserver::Server::open(apiserver::Config {
        service_cidr: (service_cidr.address(), service_cidr.prefix()),
        advertise: Some(pod_facing),
        ..apiserver::Config::new(objects)
    });
    let server = async { server.await.context("open the API server") };
    let (server, tls, ()) = tokio::try_join!(
        server,
        certify(state, &authority, &network),
        issue(state, &authority, listeners.endpoints()?)
    )?;

    serve_api(&server, &tls, &network, &listeners, pod_facing, scope)?;
    listeners::serve(&listeners, "registry", registry_router(state, &images)?, scope)?;

    // Before the node looks whom it has to wait for.
    let leases = leases::Leases::new(server.client(apiserver::Identity::admin()), state);
    leases.release_gone().await;
    leases.keep(scope);
    let node = start_node(state, &server, &network, images.clone(), runtime, scope)?;
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
    proxy::hold(state, kept, listeners.named(), scope)
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

/// Writes the addresses and the kubeconfigs: root's, the proxy's, and that of the user behind sudo.
async fn issue(state: &State, authority: &Arc<Authority>, endpoints: Endpoints) -> Result<()> {
    let server = endpoints.kubernetes.clone();
    let kubeconfig = |user: &'static str, group: &'static str, path: PathBuf| {
        let (authority, server) = (Arc::clone(authority), server.clone());
        beside(state, move |_| {
            let issued = authority.client(user, Some(group))?;
            kubeconfig::write(&path, &server, &authority, user, &issued)
        })
    };
    let (inner, kubernetes) = (Arc::clone(authority), server.clone());
    tokio::try_join!(
        kubeconfig("admin", "system:masters", state.dir.join("kubeconfig")),
        kubeconfig("system:gantry:proxy", "system:gantry", state.run("proxy.kubeconfig")),
        beside(state, move |state| state::write_endpoints(&state.dir, &endpoints)),
        beside(state, move |state| user::issue(&kubernetes, &inner, &state.registry_token()?)),
    )?;
    Ok(())
}

/// The API server's side of TLS.
async fn certify(
    state: &State,
    authority: &Arc<Authority>,
    network: &network::Network,
) -> Result<Arc<rustls::ServerConfig>> {
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
    beside(state, move |_| {
        authority.server_config(&names, &addresses).context("make the API server's certificate")
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
    let auth = registry::server::Auth::Tokens(vec![state.registry_token()?]);
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
