//! One connection: handshake, HTTP/1.1 or h2, its time-outs, its end.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use lifecycle::connections::{Reason, Slot};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::watched::{self, State, Watched};
use crate::{App, Config, Connection, Peer};

/// Requests of one h2 connection at a time.
const STREAMS_MAX: u32 = 250;
/// How often an h2 client must show that it lives.
const PING: Duration = Duration::from_secs(30);

pub(crate) async fn serve(
    stream: TcpStream,
    slot: Slot<(), Peer>,
    mut connection: Connection,
    config: Arc<Config>,
    app: Arc<App>,
) {
    // Answers are written whole: they must not wait for one another.
    let _ = stream.set_nodelay(true);
    let state = State::new(slot);
    let (address, name) = (connection.address, config.name);
    let watched = Watched { stream, state: Arc::clone(&state) };
    let Some(tls) = config.tls.clone() else {
        state.handshaken();
        let router = app(connection.clone());
        return exchange(watched, state, connection, router, &config).await;
    };
    let mut handshake = pin!(TlsAcceptor::from(tls).accept(watched));
    let stream = match bounded(&state, &config, handshake.as_mut()).await {
        Some(Ok(stream)) => stream,
        Some(Err(error)) => return tracing::debug!(listener = name, %address, %error, "TLS handshake"),
        None => return,
    };
    state.handshaken();
    let certificates = stream.get_ref().1.peer_certificates();
    connection.certificates =
        certificates.map(|chain| chain.iter().map(|one| one.clone().into_owned()).collect());
    let router = app(connection.clone());
    exchange(stream, state, connection, router, &config).await;
}

/// Runs `work` until the connection has to be closed: for a time-out, or for another one.
async fn bounded<T>(state: &State, config: &Config, mut work: impl Future<Output = T> + Unpin) -> Option<T> {
    loop {
        let left = match state.judge(&config.times) {
            Ok(left) => left,
            Err(reason) => {
                state.slot.count_closed(reason);
                return None;
            }
        };
        tokio::select! {
            result = &mut work => return Some(result),
            () = state.slot.displaced() => return None,
            () = tokio::time::sleep(left) => {}
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    state: Arc<State>,
    connection: Connection,
    router: axum::Router,
    config: &Arc<Config>,
) {
    let service = {
        let (state, config) = (Arc::clone(&state), Arc::clone(config));
        service_fn(move |request| answer(router.clone(), request, Arc::clone(&state), config.times.body))
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Its own time-out for heads would close idle connections too, and is not counted: ours knows them apart.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(Some(PING));
    let mut serving = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = bounded(&state, config, serving.as_mut()) => result,
        () = connection.draining.cancelled() => {
            serving.as_mut().graceful_shutdown();
            bounded(&state, config, serving.as_mut()).await
        }
    };
    if let Some(Err(error)) = result {
        let address = connection.address;
        tracing::debug!(listener = config.name, %address, error = &*error, "connection");
    }
}

/// The connection gave way to another one before the request began: nothing of it was done.
#[derive(Debug)]
struct Displaced;

impl std::fmt::Display for Displaced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection gave way to another one")
    }
}

impl std::error::Error for Displaced {}

async fn answer(
    router: axum::Router,
    request: Request<Incoming>,
    state: Arc<State>,
    pause_max: Duration,
) -> Result<Response<Body>, Displaced> {
    state.heads.store(request.version() < Version::HTTP_2, Ordering::Relaxed);
    let in_flight = state.begin().ok_or(Displaced)?;
    let request = request.map(|body| {
        if body.is_end_stream() {
            Body::empty()
        } else {
            Body::new(Paced::new(body, state.clone(), pause_max))
        }
    });
    // A router's error is `Infallible`.
    let Ok(response) = router.oneshot(request).await;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        state.upgraded();
    }
    Ok(response.map(|body| Body::new(Sent { body, _in_flight: in_flight })))
}

/// A request's body that may not stand still for long.
struct Paced {
    body: Incoming,
    state: Arc<State>,
    pause_max: Duration,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    fn new(body: Incoming, state: Arc<State>, pause_max: Duration) -> Self {
        Self { body, state, pause_max, pause: None }
    }
}

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.pause = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let pause_max = self.pause_max;
        let pause =
            self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + pause_max)));
        if pause.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.state.slot.count_closed(Reason::Body);
        let why = format!("nothing of the body came for {} s", pause_max.as_secs());
        Poll::Ready(Some(Err(std::io::Error::new(std::io::ErrorKind::TimedOut, why).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body; the request is in flight until it is gone.
struct Sent {
    body: Body,
    _in_flight: watched::Request,
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
