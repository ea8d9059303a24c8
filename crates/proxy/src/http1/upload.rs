//! A request's body on its way to the backend, while the response may already be coming.

use std::io;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::body::Body;
use crate::buffer::{BUFFER_BYTES, Buffer};
use crate::io::{Clock, fill, write_all};
use crate::worker::Held;

const BULK_BYTES: usize = 128 * 1024;

/// Why a body did not get through whole.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// The client is gone, or too slow.
    Client,
    /// The client broke the framing.
    Broken,
    /// The backend takes no more; it may still answer.
    Backend,
}

/// Sends the rest of the body; returns its bytes. What the client sent after it stays in the buffer.
pub(crate) async fn upload(
    client: &TcpStream,
    buffer: &mut Buffer,
    upstream: &TcpStream,
    mut body: Body,
    idle: std::time::Duration,
    held: &Held,
) -> Result<u64, Stopped> {
    let mut clock = Clock::new(idle);
    let mut total = 0;
    while !body.is_done() {
        let count =
            fill(client, buffer, BUFFER_BYTES, &mut clock).await.map_err(|_: io::Error| Stopped::Client)?;
        if count == 0 {
            return Err(Stopped::Client);
        }
        let taken = body.advance(buffer.filled()).map_err(|_| Stopped::Broken)?;
        write_all(upstream, &buffer.filled()[..taken], &mut clock).await.map_err(|_| Stopped::Backend)?;
        buffer.consume(taken);
        total += taken as u64;
        if count == BUFFER_BYTES {
            buffer.grow(BULK_BYTES);
        }
        clock.set(Instant::now() + idle);
        // Chosen to make room, it ends by itself.
        held.busy();
    }
    Ok(total)
}
