//! A connection of which it is not known what is spoken: a backend is dialled at once, and whoever speaks first
//! decides. HTTP/1 requests go through [`crate::http1`]; everything else is relayed to that backend.

use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::backend::Flight;
use crate::buffer::{BUFFER_BYTES, Buffer};
use crate::io::{Clock, fill, poll_fill, reset};
use crate::route::Route;
use crate::worker::Worker;
use crate::{http1, relay};

/// How long the rest of a request line may take, before its beginning counts as something else.
const UNDECIDED_MAX: Duration = Duration::from_millis(50);
/// How often a backend may leave before anybody has spoken.
const REDIALS_MAX: usize = 8;

enum First {
    Client,
    Backend,
    /// The backend ended the connection without a word.
    BackendLeft,
    Nobody,
}

pub(crate) async fn serve(worker: &Arc<Worker>, route: &Arc<Route>, client: TcpStream, peer: IpAddr) {
    let mut buffer = Buffer::default();
    if spoke_already(&client, &mut buffer).await {
        if is_http(&client, &mut buffer).await {
            return http1::exchange::serve(worker, route, client, peer, buffer).await;
        }
        return match worker.reach(route, true, true).await {
            Some((flight, upstream)) => {
                relay::relayed(worker, flight, client, upstream.stream, buffer, Buffer::default()).await;
            }
            None => reset(client),
        };
    }
    let mut clock = Clock::new(worker.shared.limits.idle_timeout);
    for _ in 0..REDIALS_MAX {
        let Some((flight, upstream)) = worker.reach(route, true, true).await else { return reset(client) };
        // Nothing was sent: while nobody speaks the Pod has nothing to finish here.
        let (backend, upstream) = (Arc::clone(&flight.backend), upstream.stream);
        drop(flight);
        let mut greeting = Buffer::default();
        let first = wait(&client, &mut buffer, &upstream, &mut greeting, &mut clock).await;
        match first {
            First::Nobody => return,
            First::BackendLeft if !backend.pod.is_buried() => return,
            First::BackendLeft => continue,
            First::Client if is_http(&client, &mut buffer).await => {
                worker.keep_idle(&backend, upstream);
                return http1::exchange::serve(worker, route, client, peer, buffer).await;
            }
            First::Client | First::Backend => {}
        }
        match Flight::begin(&backend) {
            Some(flight) => {
                return relay::relayed(worker, flight, client, upstream, buffer, greeting).await;
            }
            // It leaves; nothing of what it may have said has reached the client.
            None => continue,
        }
    }
    reset(client);
}

/// Most clients that speak first have spoken by the time they are accepted: then no backend has to be guessed.
async fn spoke_already(client: &TcpStream, buffer: &mut Buffer) -> bool {
    for _ in 0..2 {
        // The reactor has to look at the new connection once.
        tokio::task::yield_now().await;
        match client.try_read(buffer.space(BUFFER_BYTES)) {
            Ok(count) if count > 0 => {
                buffer.produced(count);
                return true;
            }
            _ => {}
        }
    }
    buffer.rest();
    false
}

/// Reads on until the first bytes show whether they are an HTTP/1 request.
async fn is_http(client: &TcpStream, buffer: &mut Buffer) -> bool {
    let mut clock = Clock::new(UNDECIDED_MAX);
    loop {
        if let Some(decided) = http1::head::looks_like_request(buffer.filled()) {
            return decided;
        }
        match fill(client, buffer, BUFFER_BYTES, &mut clock).await {
            Ok(count) if count > 0 => {}
            _ => return false,
        }
    }
}

async fn wait(
    client: &TcpStream,
    from_client: &mut Buffer,
    upstream: &TcpStream,
    from_upstream: &mut Buffer,
    clock: &mut Clock,
) -> First {
    if !from_client.is_empty() {
        return First::Client;
    }
    poll_fn(|context| {
        match poll_fill(upstream, from_upstream, BUFFER_BYTES, context) {
            Poll::Ready(Ok(count)) if count > 0 => return Poll::Ready(First::Backend),
            Poll::Ready(_) => return Poll::Ready(First::BackendLeft),
            Poll::Pending => from_upstream.rest(),
        }
        match poll_fill(client, from_client, BUFFER_BYTES, context) {
            Poll::Ready(Ok(count)) if count > 0 => return Poll::Ready(First::Client),
            // A client that only ends its direction may still be listening: relay the end.
            Poll::Ready(Ok(_)) => return Poll::Ready(First::Client),
            Poll::Ready(Err(_)) => return Poll::Ready(First::Nobody),
            Poll::Pending => from_client.rest(),
        }
        clock.poll(context).map(|()| First::Nobody)
    })
    .await
}
