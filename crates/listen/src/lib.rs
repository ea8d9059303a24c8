//! The accept loop of every listener of the daemon.
//!
//! **Invariant:** whoever connects, however often and however slowly, others are served. A peer (a user, on loopback; an
//! address, elsewhere) has a share of the listener; the idlest connection of whoever holds most gives way when there is
//! no room; nothing that a client leaves undone (first byte, handshake, head, body, reading the answer) holds a
//! connection for ever; and descriptors are kept back for the daemon itself.
//!
//! What carries a request or a stream (a watch, `logs -f`, attach) is never closed for another one.

mod connection;
mod peer;
mod watched;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lifecycle::CancellationToken;
use lifecycle::connections::{Limits, Table};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

pub use peer::Peer;

/// What waits to be accepted; the kernel's own bound (`net.core.somaxconn`) may be lower.
const BACKLOG: i32 = 4096;
/// Connections accepted one after the other before other tasks of the thread have their turn.
const STREAK_MAX: u32 = 64;
/// Out of descriptors or memory: how long until the next try.
const PAUSE: Duration = Duration::from_millis(50);
/// What runs when the listener closes may end within this.
const DRAIN: Duration = Duration::from_secs(5);

/// How a listener is served.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of its bound, and the label `listener` of what is closed.
    pub name: &'static str,
    pub limits: Limits,
    pub times: Times,
    /// None: plain HTTP.
    pub tls: Option<Arc<ServerConfig>>,
}

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// From the connection to its first byte.
    pub first_byte: Duration,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the head of a request: of the first one from the connection on, of later ones from their first byte on.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// Between two pieces of a request's body.
    pub body: Duration,
    /// Until the client reads what it was sent. Streams of an upgraded connection are not bound by it.
    pub unread: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            idle: Duration::from_secs(120),
            body: Duration::from_secs(30),
            unread: Duration::from_secs(300),
        }
    }
}

impl Times {
    fn shortest(&self) -> Duration {
        let Self { first_byte, handshake, head, idle, body, unread } = *self;
        first_byte.min(handshake).min(head).min(idle).min(body).min(unread)
    }
}

/// Who a connection comes from, for the application.
#[derive(Clone, Debug)]
pub struct Connection {
    pub address: SocketAddr,
    pub peer: Peer,
    /// The client's verified certificates, its own first.
    pub certificates: Option<Vec<CertificateDer<'static>>>,
    /// Cancelled when the listener closes: what runs long ends then.
    pub draining: CancellationToken,
}

type App = dyn Fn(Connection) -> axum::Router + Send + Sync;

/// Serves on `socket` until `token` is cancelled; then requests in flight may end, for a while. `app` makes the service
/// of each connection.
pub async fn serve(
    socket: TcpListener,
    config: Config,
    app: impl Fn(Connection) -> axum::Router + Send + Sync + 'static,
    token: CancellationToken,
) {
    accept_all(socket, config, Arc::new(app), token).await;
}

async fn accept_all(socket: TcpListener, mut config: Config, app: Arc<App>, token: CancellationToken) {
    if let Some(tls) = &mut config.tls {
        Arc::make_mut(tls).alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    // Again, as the socket may come from another process with a backlog of its own.
    if let Err(error) = rustix::net::listen(&socket, BACKLOG) {
        tracing::warn!(listener = config.name, %error, "set the backlog");
    }
    let table = Table::new(config.name, config.limits);
    let mut peers = peer::Peers::new();
    let (cut, tasks) = (CancellationToken::new(), TaskTracker::new());
    let config = Arc::new(config);
    let mut socket = match Arrivals::new(socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::error!(listener = config.name, %error, "listen"),
    };
    loop {
        let accepted = tokio::select! {
            () = token.cancelled() => break,
            accepted = socket.next() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(listener = config.name, %error, "accept");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let peer = peers.of(&stream, address);
        let slot = match table.admit((), peer) {
            Ok(slot) => slot,
            Err(reason) => {
                tracing::debug!(listener = config.name, %peer, reason = reason.name(), "connection refused");
                refuse(&stream);
                continue;
            }
        };
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(listener = config.name, %error, "register a connection");
                continue;
            }
        };
        let connection = Connection { address, peer, certificates: None, draining: token.clone() };
        let serving = connection::serve(stream, slot, connection, Arc::clone(&config), Arc::clone(&app));
        let cut = cut.clone();
        tasks.spawn(async move {
            cut.run_until_cancelled(serving).await;
        });
    }
    drop(socket);
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        cut.cancel();
        tasks.wait().await;
    }
}

/// A listening socket that hands out connections before the reactor knows them: of a flood most are refused, and what is
/// refused is not to cost its registration and the end of it.
struct Arrivals {
    socket: AsyncFd<std::net::TcpListener>,
    /// Accepted without a pause for other tasks.
    streak: u32,
}

impl Arrivals {
    fn new(socket: TcpListener) -> io::Result<Self> {
        // SAFETY: the AsyncFd owns the socket, and never gives it away or replaces it.
        let socket = unsafe { AsyncFd::register_with_interest(socket.into_std()?, Interest::READABLE)? };
        Ok(Self { socket, streak: 0 })
    }

    /// The next connection, which does not block. Dropping the future loses none.
    async fn next(&mut self) -> io::Result<(std::net::TcpStream, SocketAddr)> {
        if self.streak == STREAK_MAX {
            tokio::task::yield_now().await;
            self.streak = 0;
        }
        loop {
            let mut ready = self.socket.readable().await?;
            let Ok(accepted) = ready.try_io(|socket| accept(socket.get_ref())) else {
                self.streak = 0;
                continue;
            };
            self.streak += 1;
            return accepted;
        }
    }
}

fn accept(socket: &std::net::TcpListener) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    use rustix::net::SocketFlags;
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::acceptfrom_with(socket, flags) {
            Ok((stream, address)) => {
                let address = address.and_then(|address| SocketAddr::try_from(address).ok());
                let address = address.ok_or_else(|| io::Error::other("a peer without an address"))?;
                return Ok((stream.into(), address));
            }
            // Who has left meanwhile is no trouble of the listener's.
            Err(rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Closes with a reset: the client learns it at once, and nothing of the connection stays.
fn refuse(stream: &std::net::TcpStream) {
    // Without it the connection is closed as well, only slower.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// How many descriptors listeners may use together, of those that the process may open: a quarter is kept back for
/// the daemon itself.
pub fn descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    limit - limit / 4
}

/// Lets the process open as many descriptors as it may.
pub fn raise_descriptors() -> std::io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    /// More would only slow programs down that walk all descriptors.
    const ENOUGH: u64 = 1 << 16;
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(ENOUGH, |maximum| maximum.min(ENOUGH));
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })?)
}
