//! UDP Services: each client gets a backend, and keeps it until it has been silent for a while, its Pod leaves, or
//! sessions are short and it holds most.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lifecycle::Scope;
use network::Place;
use socket2::{Domain, Type};
use tokio::net::UdpSocket;

use crate::backend::Backend;
use crate::metrics;
use crate::route::Route;
use crate::source::Source;
use crate::worker::{Held, Shared};

const SILENT_MAX: Duration = Duration::from_secs(30);
const SWEEP_MIN: usize = 64;
const DATAGRAM_BYTES_MAX: usize = 65_535;

struct Session {
    upstream: Arc<UdpSocket>,
    backend: Arc<Backend>,
    held: Arc<Held>,
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
    let mut sessions: HashMap<SocketAddr, Session> = HashMap::new();
    // Those that are over are looked for when the map has doubled, not for each newcomer.
    let mut sweep_at = SWEEP_MIN;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error is an ICMP message about an earlier answer: that client is gone.
        let Ok((count, client)) = socket.recv_from(&mut buffer).await else { continue };
        if sessions.get(&client).is_none_or(Session::is_over) {
            if sessions.len() >= sweep_at {
                sessions.retain(|_, session| !session.is_over());
                sweep_at = (sessions.len() * 2).max(SWEEP_MIN);
            }
            // A datagram's sender is an address: no socket is connected, so no user can be told.
            let source = Source::Address(client.ip().to_canonical());
            let Ok(held) = shared.sessions.admit(source, route.id) else { continue };
            let held = Arc::new(held);
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
            let (counted, place) = (Arc::clone(&backend), Arc::clone(&held));
            scope.spawn("udp-session", async move {
                tokio::select! {
                    () = place.displaced() => {}
                    () = answers(&from, &to, client, &counted, &place) => {}
                }
                over.store(true, Ordering::Relaxed);
            });
            sessions.insert(client, Session { upstream, backend, held, ended });
        }
        if let Some(session) = sessions.get(&client) {
            session.backend.metrics.passed(count as u64, 0);
            session.held.idle();
            // A backend that is not there shows as an error of the next datagram: as lost as any.
            let _ = session.upstream.send(&buffer[..count]).await;
        }
    }
}

fn connect(shared: &Shared, backend: &Backend) -> io::Result<UdpSocket> {
    let place = if backend.inside { Place::Router } else { Place::Host };
    if !backend.inside {
        shared.check(backend.address, &backend.allowance)?;
    }
    let domain = Domain::for_address(backend.address);
    let socket = match &shared.network {
        Some(network) => network.socket(&place, domain, Type::DGRAM)?,
        None => socket2::Socket::new(domain, Type::DGRAM, None)?,
    };
    socket.set_nonblocking(true)?;
    socket.connect(&backend.address.into())?;
    UdpSocket::from_std(socket.into())
}

async fn answers(from: &UdpSocket, to: &UdpSocket, client: SocketAddr, backend: &Backend, held: &Held) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    while let Ok(Ok(count)) = tokio::time::timeout(SILENT_MAX, from.recv(&mut buffer)).await {
        backend.metrics.passed(0, count as u64);
        held.idle();
        let _ = to.send_to(&buffer[..count], client).await;
    }
}
