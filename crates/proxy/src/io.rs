//! Reading and writing with a deadline, one poll at a time.

use std::future::{Future as _, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::buffer::Buffer;

/// A descriptor that the reactor watches.
pub(crate) fn watched<T: AsRawFd + Into<OwnedFd>>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: what turns into an OwnedFd owns its one descriptor: it stays open, and the same, until the AsyncFd,
    // which never gives out a mutable reference here, is dropped.
    Ok(unsafe { AsyncFd::register(owner) }?)
}

/// A deadline that moves often and passes seldom: the timer is armed anew only when it fires early.
#[derive(Debug)]
pub(crate) struct Clock {
    sleep: Pin<Box<Sleep>>,
    deadline: Instant,
}

impl Clock {
    pub(crate) fn new(after: Duration) -> Self {
        let deadline = Instant::now() + after;
        Self { sleep: Box::pin(tokio::time::sleep_until(deadline)), deadline }
    }

    pub(crate) fn set(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.deadline < self.sleep.deadline() {
            self.sleep.as_mut().reset(self.deadline);
        }
        while self.sleep.as_mut().poll(context).is_ready() {
            if Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(self.deadline);
        }
        Poll::Pending
    }
}

fn too_late() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

/// What the other end of an idle connection has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    Quiet,
    Spoke,
    Ended,
}

/// Looks at what has arrived by now, not at what the reactor has heard of: that may be later.
pub(crate) fn look(stream: &TcpStream) -> Idle {
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    match rustix::net::recv(stream, &mut [0], flags) {
        Err(rustix::io::Errno::AGAIN) => Idle::Quiet,
        Ok((_, count)) if count > 0 => Idle::Spoke,
        _ => Idle::Ended,
    }
}

/// Reads what is there into the buffer's free space; 0 is the end. Waits for readability.
pub(crate) fn poll_fill(
    stream: &TcpStream,
    buffer: &mut Buffer,
    max: usize,
    context: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    loop {
        match stream.poll_read_ready(context) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        }
        let space = buffer.space(max);
        let room = space.len();
        match stream.try_read(space) {
            Ok(count) => {
                buffer.produced(count);
                if count < room {
                    drained(stream);
                }
                return Poll::Ready(Ok(count));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// A short read has taken everything: says so to the reactor, which saves the read that would find nothing.
///
/// The reactor of a worker runs on the worker's own thread, so what arrives after the read shows as an event of its
/// own; the end of the stream is never forgotten.
fn drained(stream: &TcpStream) {
    let _ = stream.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
}

/// [`poll_fill`], not longer than the clock says.
pub(crate) async fn fill(
    stream: &TcpStream,
    buffer: &mut Buffer,
    max: usize,
    clock: &mut Clock,
) -> io::Result<usize> {
    poll_fn(|context| match poll_fill(stream, buffer, max, context) {
        Poll::Pending => clock.poll(context).map(|()| Err(too_late())),
        ready => ready,
    })
    .await
}

/// Writes some of the bytes; waits for writability.
pub(crate) fn poll_write(
    stream: &TcpStream,
    bytes: &[u8],
    context: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    loop {
        match stream.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return Poll::Ready(other),
        }
        match stream.poll_write_ready(context) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        }
    }
}

/// Writes all of the bytes, not longer than the clock says.
pub(crate) async fn write_all(stream: &TcpStream, mut bytes: &[u8], clock: &mut Clock) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = poll_fn(|context| match poll_write(stream, bytes, context) {
            Poll::Pending => clock.poll(context).map(|()| Err(too_late())),
            ready => ready,
        })
        .await?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[count..];
    }
    Ok(())
}

/// Ends our direction of the connection.
pub(crate) fn shutdown_write(stream: &TcpStream) {
    // The peer may be gone already.
    let _ = socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write);
}

/// Makes the close a reset, so that the peer does not take the end for a regular one.
pub(crate) fn reset(stream: TcpStream) {
    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

/// Ends a connection for which there is no place, so that the kernel keeps nothing of it.
pub(crate) fn refuse(connection: OwnedFd) {
    let _ = socket2::SockRef::from(&connection).set_linger(Some(Duration::ZERO));
}

/// Closes so that the peer reads our last bytes even while it still sends: its bytes are read and dropped for a
/// moment (RFC 9112, 9.6).
pub(crate) async fn close_gently(stream: &TcpStream, buffer: &mut Buffer) {
    const READ_MAX: usize = 256 * 1024;
    shutdown_write(stream);
    let mut clock = Clock::new(Duration::from_secs(1));
    let mut read = 0;
    while read < READ_MAX {
        buffer.consume(usize::MAX);
        match fill(stream, buffer, crate::buffer::BUFFER_BYTES, &mut clock).await {
            Ok(count) if count > 0 => read += count,
            _ => return,
        }
    }
}
