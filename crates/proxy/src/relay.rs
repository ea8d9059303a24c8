//! Bytes from one connection to another and back, with half-closes, until both ends are done.
//!
//! A backend is dialled at once, as protocols in which the server speaks first need it. While nobody has spoken the
//! backend's Pod has nothing to finish here: when it leaves, the connection moves to another.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use lifecycle::connections::Reason;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::backend::Flight;
use crate::buffer::{BUFFER_BYTES, Buffer};
use crate::io::{Clock, poll_fill, poll_write, reset, shutdown_write};
use crate::route::Route;
use crate::worker::{Held, Worker};

const BULK_BYTES: usize = 128 * 1024;
/// How often a backend may leave before anybody has spoken.
const REDIALS_MAX: usize = 8;

/// Who ends the silence of a new connection.
enum First {
    Client,
    Backend,
    /// The backend ended the connection without a word.
    BackendLeft,
    ClientLeft,
    Nobody,
}

/// Serves a connection whose bytes mean nothing to the proxy.
pub(crate) async fn serve(worker: &Worker, route: &Route, client: TcpStream, held: &Held) {
    let limits = &worker.shared.limits;
    let mut clock = Clock::new(limits.first_byte_timeout);
    let mut said = Buffer::default();
    for _ in 0..REDIALS_MAX {
        let Some((flight, upstream)) = worker.reach(route, true, true).await else { return reset(client) };
        let (backend, upstream) = (Arc::clone(&flight.backend), upstream.stream);
        drop(flight);
        let mut greeting = Buffer::default();
        match first(&client, &mut said, &upstream, &mut greeting, &mut clock).await {
            First::Nobody => return held.count_closed(Reason::FirstByte),
            First::ClientLeft => return,
            First::BackendLeft if !backend.pod.is_buried() => return,
            First::BackendLeft => continue,
            First::Client | First::Backend => {}
        }
        match Flight::begin(&backend) {
            Some(flight) => {
                let ends = Ends { client, upstream, said, greeting };
                return relayed(worker, held, flight, ends, limits.idle_timeout).await;
            }
            // It leaves; nothing of what it may have said has reached the client.
            None => continue,
        }
    }
    reset(client);
}

async fn first(
    client: &TcpStream,
    said: &mut Buffer,
    upstream: &TcpStream,
    greeting: &mut Buffer,
    clock: &mut Clock,
) -> First {
    if !said.is_empty() {
        return First::Client;
    }
    poll_fn(|context| {
        match poll_fill(upstream, greeting, BUFFER_BYTES, context) {
            Poll::Ready(Ok(count)) if count > 0 => return Poll::Ready(First::Backend),
            Poll::Ready(_) => return Poll::Ready(First::BackendLeft),
            Poll::Pending => greeting.rest(),
        }
        match poll_fill(client, said, BUFFER_BYTES, context) {
            // A client that only ends its direction may still be listening: the end is relayed.
            Poll::Ready(Ok(_)) => return Poll::Ready(First::Client),
            Poll::Ready(Err(_)) => return Poll::Ready(First::ClientLeft),
            Poll::Pending => said.rest(),
        }
        clock.poll(context).map(|()| First::Nobody)
    })
    .await
}

/// The two connections of a relay, and what was read from each already.
pub(crate) struct Ends {
    pub(crate) client: TcpStream,
    pub(crate) upstream: TcpStream,
    pub(crate) said: Buffer,
    pub(crate) greeting: Buffer,
}

/// Relays between connections on which nobody has spoken yet.
pub(crate) async fn begin(
    worker: &Worker,
    held: &Held,
    flight: Flight,
    client: TcpStream,
    upstream: TcpStream,
) {
    let ends = Ends { client, upstream, said: Buffer::default(), greeting: Buffer::default() };
    relayed(worker, held, flight, ends, worker.shared.limits.first_byte_timeout).await;
}

/// Relays with metrics; what was read already goes first, and must come within `first`. The flight lasts as long as the
/// connection.
pub(crate) async fn relayed(worker: &Worker, held: &Held, flight: Flight, ends: Ends, first: Duration) {
    let metrics = &flight.backend.metrics;
    let _shown = metrics.relaying();
    let (received, sent) = relay(ends, held, first, worker.shared.limits.idle_timeout).await;
    metrics.passed(received, sent);
}

struct Pump {
    buffer: Buffer,
    total: u64,
    ended: bool,
    done: bool,
}

impl Pump {
    fn new(buffer: Buffer) -> Self {
        Self { buffer, total: 0, ended: false, done: false }
    }

    /// Ready when the source has ended and everything is passed on.
    fn poll(&mut self, from: &TcpStream, to: &TcpStream, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.done {
            while !self.buffer.is_empty() {
                match poll_write(to, self.buffer.filled(), context) {
                    Poll::Ready(Ok(count)) => {
                        self.total += count as u64;
                        self.buffer.consume(count);
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            if self.ended {
                shutdown_write(to);
                self.done = true;
                break;
            }
            match poll_fill(from, &mut self.buffer, BUFFER_BYTES, context) {
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(count)) => {
                    if count == BUFFER_BYTES {
                        self.buffer_bulk(to);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.buffer.rest();
                    return Poll::Pending;
                }
            }
        }
        self.buffer.rest();
        Poll::Ready(Ok(()))
    }

    /// A full buffer means bulk: pass it on at once if it goes, then read in larger pieces.
    fn buffer_bulk(&mut self, to: &TcpStream) {
        if let Ok(count) = to.try_write(self.buffer.filled()) {
            self.total += count as u64;
            self.buffer.consume(count);
            self.buffer.grow(BULK_BYTES);
        }
    }
}

/// Relays until both directions have ended, one has failed (then both are reset) or nothing passed for `idle`, `first`
/// at the beginning. Returns how many bytes went each way.
async fn relay(ends: Ends, held: &Held, first: Duration, idle: Duration) -> (u64, u64) {
    let Ends { client, upstream, said, greeting } = ends;
    for stream in [&client, &upstream] {
        let keepalive = socket2::TcpKeepalive::new().with_time(Duration::from_secs(60));
        // Only notices dead peers sooner.
        let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive);
    }
    let (mut up, mut down) = (Pump::new(said), Pump::new(greeting));
    let mut clock = Clock::new(first);
    let mut passed = 0;
    let result = poll_fn(|context| {
        let sent = up.poll(&client, &upstream, context);
        let received = down.poll(&upstream, &client, context);
        match (sent, received) {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            _ => {
                if up.total + down.total != passed {
                    passed = up.total + down.total;
                    clock.set(Instant::now() + idle);
                    // Chosen to make room, it ends by itself.
                    held.busy();
                }
                clock.poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
        }
    })
    .await;
    if let Err(error) = result {
        if error.kind() == io::ErrorKind::TimedOut {
            held.count_closed(if passed == 0 { Reason::FirstByte } else { Reason::Idle });
        }
        reset(client);
        reset(upstream);
    }
    (up.total, down.total)
}
