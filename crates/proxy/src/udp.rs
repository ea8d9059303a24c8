//! UDP Services: each client gets a backend, and keeps it until it has been silent for a while or its Pod leaves.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lifecycle::Scope;
use lifecycle::bound::Bound;
use network::Place;
use socket2::{Domain, Type};
use tokio::net::UdpSocket;

use crate::backend::Backend;
use crate::metrics;
use crate::route::Route;
use crate::worker::Shared;

const SESSIONS_MAX: u64 = 8192;
const SILENT_MAX: Duration = Duration::from_secs(30);
const DATAGRAM_BYTES_MAX: usize = 65_535;

struct Session {
    upstream: Arc<UdpSocket>,
    backend: Arc<Backend>,
    ended: Arc<AtomicBool>,
}

impl Session {
    fn is_over(&self) -> bool {
        self.ended.load(Ordering::Relaxed) || self.backend.pod.is_buried()
    }
}

/// Passes datagrams until the task is cancelled.
pub(crate) async fn serve(
    socket: OwnedFd,
    route: Arc<Route>,
    shared: Arc<Shared>,
    scope: Scope,
) -> io::Result<()> {
    let socket = std::net::UdpSocket::from(socket);
    socket.set_nonblocking(true)?;
    let socket = Arc::new(UdpSocket::from_std(socket)?);
    let bound = Bound::new("proxy_udp_sessions", SESSIONS_MAX);
    let mut sessions: HashMap<SocketAddr, Session> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error is an ICMP message about an earlier answer: that client is gone.
        let Ok((count, client)) = socket.recv_from(&mut buffer).await else { continue };
        if sessions.get(&client).is_none_or(Session::is_over) {
            sessions.retain(|_, session| !session.is_over());
            let Some(permit) = bound.acquire(1) else { continue };
            let Some(flight) = route.balancer.pick(&[]) else {
                metrics::count(&metrics::OWN.no_backend);
                continue;
            };
            let backend = Arc::clone(&flight.backend);
            let upstream = match connect(&shared, &backend) {
                Ok(upstream) => Arc::new(upstream),
                Err(error) => {
                    tracing::debug!(%error, route = route.name, "open a socket for datagrams");
                    continue;
                }
            };
            backend.metrics.connected();
            let ended = Arc::new(AtomicBool::new(false));
            let (from, to, over) = (Arc::clone(&upstream), Arc::clone(&socket), Arc::clone(&ended));
            let counted = Arc::clone(&backend);
            scope.spawn("udp-session", async move {
                let _permit = permit;
                answers(&from, &to, client, &counted).await;
                over.store(true, Ordering::Relaxed);
            });
            sessions.insert(client, Session { upstream, backend, ended });
        }
        if let Some(session) = sessions.get(&client) {
            session.backend.metrics.passed(count as u64, 0);
            // A backend that is not there shows as an error of the next datagram: as lost as any.
            let _ = session.upstream.send(&buffer[..count]).await;
        }
    }
}

fn connect(shared: &Shared, backend: &Backend) -> io::Result<UdpSocket> {
    let place = if backend.inside { Place::Router } else { Place::Host };
    let domain = Domain::for_address(backend.address);
    let socket = match &shared.network {
        Some(network) => network.socket(&place, domain, Type::DGRAM)?,
        None => socket2::Socket::new(domain, Type::DGRAM, None)?,
    };
    socket.set_nonblocking(true)?;
    socket.connect(&backend.address.into())?;
    UdpSocket::from_std(socket.into())
}

async fn answers(from: &UdpSocket, to: &UdpSocket, client: SocketAddr, backend: &Backend) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    while let Ok(Ok(count)) = tokio::time::timeout(SILENT_MAX, from.recv(&mut buffer)).await {
        backend.metrics.passed(0, count as u64);
        let _ = to.send_to(&buffer[..count], client).await;
    }
}
