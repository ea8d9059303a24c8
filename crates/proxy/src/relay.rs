//! Bytes from one connection to another and back, with half-closes, until both ends are done.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::backend::Flight;
use crate::buffer::{BUFFER_BYTES, Buffer};
use crate::io::{Clock, poll_fill, poll_write, reset, shutdown_write};
use crate::route::Route;
use crate::worker::Worker;

const BULK_BYTES: usize = 128 * 1024;

/// Serves a connection whose bytes mean nothing to the proxy.
pub(crate) async fn serve(worker: &Worker, route: &Route, client: TcpStream) {
    match worker.reach(route, true, true).await {
        Some((flight, upstream)) => {
            relayed(worker, flight, client, upstream.stream, Buffer::default(), Buffer::default()).await;
        }
        None => reset(client),
    }
}

/// Relays with metrics; what was read already goes first. The flight lasts as long as the connection.
pub(crate) async fn relayed(
    worker: &Worker,
    flight: Flight,
    client: TcpStream,
    upstream: TcpStream,
    from_client: Buffer,
    from_upstream: Buffer,
) {
    let metrics = &flight.backend.metrics;
    let _shown = metrics.relaying();
    let idle = worker.shared.limits.idle_timeout;
    let (received, sent) = relay(client, upstream, from_client, from_upstream, idle).await;
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

/// Relays until both directions have ended, one has failed (then both are reset) or nothing passed for `idle`.
/// Returns how many bytes went each way.
pub(crate) async fn relay(
    client: TcpStream,
    upstream: TcpStream,
    from_client: Buffer,
    from_upstream: Buffer,
    idle: Duration,
) -> (u64, u64) {
    for stream in [&client, &upstream] {
        let keepalive = socket2::TcpKeepalive::new().with_time(Duration::from_secs(60));
        // Only notices dead peers sooner.
        let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive);
    }
    let (mut up, mut down) = (Pump::new(from_client), Pump::new(from_upstream));
    let mut clock = Clock::new(idle);
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
                }
                clock.poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
        }
    })
    .await;
    if result.is_err() {
        reset(client);
        reset(upstream);
    }
    (up.total, down.total)
}
