//! A connection's socket, watched for what its time-outs ask: whether anything came, and whether anything is read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use lifecycle::connections::{Activity, Reason, Slot};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::{Peer, Times};

/// What a connection's parts know of it. It lives as long as its socket, through an upgrade too.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) slot: Slot<(), Peer>,
    started: Instant,
    requests: std::sync::Mutex<usize>,
    spoke: AtomicBool,
    handshaken: AtomicBool,
    /// It carries HTTP/1: only there do bytes between two requests begin a head.
    pub(crate) heads: AtomicBool,
    upgraded: AtomicBool,
    /// Milliseconds since `started`, and one more: 0 is never.
    head_began: AtomicU64,
    write_stalled: AtomicU64,
}

impl State {
    pub(crate) fn new(slot: Slot<(), Peer>) -> Arc<Self> {
        Arc::new(Self {
            slot,
            started: Instant::now(),
            requests: std::sync::Mutex::new(0),
            spoke: AtomicBool::new(false),
            handshaken: AtomicBool::new(false),
            heads: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            head_began: AtomicU64::new(0),
            write_stalled: AtomicU64::new(0),
        })
    }

    fn mark(&self, at: &AtomicU64) {
        if at.load(Ordering::Relaxed) == 0 {
            at.store(self.started.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
        }
    }

    fn since(&self, at: &AtomicU64) -> Option<Duration> {
        let marked = at.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.started.elapsed().saturating_sub(Duration::from_millis(marked)))
    }

    pub(crate) fn handshaken(&self) {
        self.handshaken.store(true, Ordering::Relaxed);
    }

    pub(crate) fn upgraded(&self) {
        self.upgraded.store(true, Ordering::Relaxed);
    }

    /// A request begins; none if the connection gives way to another one.
    pub(crate) fn begin(self: &Arc<Self>) -> Option<Request> {
        let mut requests = self.requests.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *requests == 0 && !self.slot.busy() {
            return None;
        }
        *requests += 1;
        self.head_began.store(0, Ordering::Relaxed);
        Some(Request { state: Arc::clone(self) })
    }

    /// Why the connection has to be closed now, or when to ask again: what it does may change meanwhile, so that is
    /// never later than the shortest of its times.
    pub(crate) fn judge(&self, times: &Times) -> Result<Duration, Reason> {
        let limit = match self.slot.activity() {
            Activity::Displaced => None,
            Activity::Idle { served: false, since } => Some(if !self.spoke.load(Ordering::Relaxed) {
                (Reason::FirstByte, times.first_byte, since)
            } else if !self.handshaken.load(Ordering::Relaxed) {
                (Reason::Handshake, times.handshake, since)
            } else {
                (Reason::Head, times.head, since)
            }),
            Activity::Idle { served: true, since } => Some(match self.since(&self.head_began) {
                Some(began) => (Reason::Head, times.head, began),
                None => (Reason::Idle, times.idle, since),
            }),
            Activity::Busy if self.upgraded.load(Ordering::Relaxed) => None,
            Activity::Busy => {
                self.since(&self.write_stalled).map(|stalled| (Reason::Unread, times.unread, stalled))
            }
        };
        let shortest = times.shortest();
        match limit {
            Some((reason, limit, since)) if since >= limit => Err(reason),
            Some((_, limit, since)) => Ok(shortest.min(limit - since)),
            None => Ok(shortest),
        }
    }
}

/// A request in flight, until its answer has been sent.
#[derive(Debug)]
pub(crate) struct Request {
    state: Arc<State>,
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut requests = self.state.requests.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *requests -= 1;
        // What was upgraded works until its socket closes.
        if *requests == 0 && !self.state.upgraded.load(Ordering::Relaxed) {
            self.state.slot.idle();
        }
    }
}

/// The socket under TLS and HTTP.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) stream: TcpStream,
    pub(crate) state: Arc<State>,
}

impl Watched {
    fn written<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_pending() {
            self.state.mark(&self.state.write_stalled);
        } else if self.state.write_stalled.load(Ordering::Relaxed) != 0 {
            self.state.write_stalled.store(0, Ordering::Relaxed);
        }
        result
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            let state = &self.state;
            state.spoke.store(true, Ordering::Relaxed);
            if state.heads.load(Ordering::Relaxed) && matches!(state.slot.activity(), Activity::Idle { .. }) {
                state.mark(&state.head_began);
            }
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
