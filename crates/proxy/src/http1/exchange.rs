//! One client connection: request after request, each to the backend that the balancer picks.
//!
//! **Invariant:** a request is sent a second time only when the backend cannot have seen it (its connection was
//! refused), or when it is idempotent and an idle connection died before any byte of the response.

use std::future::{Future as _, poll_fn};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use lifecycle::CancellationToken;
use lifecycle::connections::Reason;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::body::{Body, Framing};
use super::head::{self, Bad, Client, Field, HEAD_BYTES_MAX, Request};
use super::upload::{Stopped, upload};
use crate::backend::Flight;
use crate::buffer::{BUFFER_BYTES, Buffer};
use crate::io::{Clock, close_gently, fill, poll_fill, reset, shutdown_write, write_all};
use crate::metrics;
use crate::relay::{self, Ends};
use crate::route::Route;
use crate::worker::{Held, Upstream, Worker};

const BULK_BYTES: usize = 128 * 1024;
/// The most interim responses (1xx) to one request.
const INTERIM_MAX: usize = 64;

/// Serves a client of a port on which HTTP/1 is spoken, and nothing else.
pub(crate) async fn serve(
    worker: &Arc<Worker>,
    route: &Arc<Route>,
    client: TcpStream,
    peer: IpAddr,
    held: &Held,
) {
    let session = Session {
        worker,
        route,
        held,
        clock: Clock::new(worker.shared.limits.first_byte_timeout),
        client,
        peer: peer.to_canonical().to_string(),
        has_asked: false,
        buffer: Buffer::default(),
        answer: Buffer::default(),
        out: Vec::new(),
        fields: Vec::new(),
    };
    session.run().await;
}

struct Session<'w> {
    worker: &'w Arc<Worker>,
    route: &'w Arc<Route>,
    held: &'w Held,
    clock: Clock,
    client: TcpStream,
    peer: String,
    /// Whether there was a request on this connection.
    has_asked: bool,
    /// From the client.
    buffer: Buffer,
    /// From the backend.
    answer: Buffer,
    /// The head on its way out.
    out: Vec<u8>,
    fields: Vec<Field>,
}

/// What the client's connection does after a request.
enum Next {
    Request,
    /// Everything was said.
    Close,
    /// The response broke off: the client must not take it for whole.
    Break,
    /// Answer with this status, then close.
    Refuse(u16, &'static str),
    Relay(Flight, TcpStream),
}

enum Head {
    Request(usize),
    End,
    Refuse(u16, &'static str),
}

impl Session<'_> {
    async fn run(mut self) {
        let draining = self.worker.shared.draining.clone();
        let mut drained = pin!(draining.cancelled());
        loop {
            let next = match self.read_head(&draining, drained.as_mut()).await {
                Head::Request(length) => self.exchange(length).await,
                Head::End => return,
                Head::Refuse(status, reason) => Next::Refuse(status, reason),
            };
            match next {
                Next::Request => self.held.idle(),
                Next::Close => return close_gently(&self.client, &mut self.buffer).await,
                Next::Break => return reset(self.client),
                Next::Refuse(status, reason) => return self.refuse(status, reason).await,
                Next::Relay(flight, upstream) => {
                    let Self { worker, held, client, buffer: said, answer: greeting, .. } = self;
                    let ends = Ends { client, upstream, said, greeting };
                    let idle = worker.shared.limits.idle_timeout;
                    return relay::relayed(worker, held, flight, ends, idle).await;
                }
            }
        }
    }

    /// The length of the next head, once it is whole.
    async fn read_head(
        &mut self,
        draining: &CancellationToken,
        mut drained: Pin<&mut impl Future<Output = ()>>,
    ) -> Head {
        let limits = &self.worker.shared.limits;
        let mut seen = 0;
        let mut idle = self.buffer.is_empty();
        let patience = match (idle, self.has_asked) {
            (true, false) => limits.first_byte_timeout,
            (true, true) => limits.keepalive_timeout,
            (false, _) => limits.head_timeout,
        };
        self.clock.set(Instant::now() + patience);
        loop {
            // Robustness that RFC 9112, 2.2 asks for: an empty line before the request line.
            while seen == 0 && self.buffer.filled().starts_with(b"\r\n") {
                self.buffer.consume(2);
            }
            if let Some(length) = head::end(self.buffer.filled(), seen) {
                return Head::Request(length);
            }
            if let Some(bad) = head::hopeless_request(self.buffer.filled()) {
                return malformed(bad);
            }
            seen = self.buffer.filled().len();
            if seen == 0 {
                self.buffer.rest();
            } else if idle {
                idle = false;
                self.clock.set(Instant::now() + limits.head_timeout);
            }
            let (client, buffer, clock) = (&self.client, &mut self.buffer, &mut self.clock);
            let drained = &mut drained;
            let filled = poll_fn(|context| match poll_fill(client, buffer, HEAD_BYTES_MAX, context) {
                Poll::Ready(result) => Poll::Ready(Some(result)),
                Poll::Pending => {
                    if buffer.is_empty() {
                        buffer.rest();
                    }
                    // An idle client of a process that hands over is told so with its next answer, or goes soon.
                    if idle && !draining.is_cancelled() && drained.as_mut().poll(context).is_ready() {
                        clock.set(Instant::now() + limits.drain_idle);
                    }
                    clock.poll(context).map(|()| None)
                }
            })
            .await;
            match filled {
                Some(Ok(count)) if count > 0 => {}
                Some(_) => return Head::End,
                None if self.buffer.is_empty() => {
                    // Who hands over ends idle connections: that is no time-out.
                    if !draining.is_cancelled() {
                        self.held.count_closed(if self.has_asked { Reason::Idle } else { Reason::FirstByte });
                    }
                    return Head::End;
                }
                None => {
                    self.held.count_closed(Reason::Head);
                    return Head::Refuse(408, "the request's head did not arrive in time");
                }
            }
        }
    }

    async fn refuse(mut self, status: u16, reason: &'static str) {
        let text = head::refusal(status, reason);
        self.clock.set(Instant::now() + self.worker.shared.limits.head_timeout);
        if write_all(&self.client, &text, &mut self.clock).await.is_ok() {
            close_gently(&self.client, &mut self.buffer).await;
        }
    }

    async fn exchange(&mut self, length: usize) -> Next {
        let started = Instant::now();
        if !self.held.busy() {
            // It gives way to another: what it carries must not be begun.
            return Next::Close;
        }
        self.has_asked = true;
        let head = &self.buffer.filled()[..length];
        let request = match head::request(head, &mut self.fields) {
            Ok(request) => request,
            Err(bad) => return refusal(bad),
        };
        self.out.clear();
        let client = Client { address: &self.peer, trusted: self.route.trusts_forwarded() };
        head::forward_request(head, &request, &self.fields, client, &mut self.out);
        self.buffer.consume(length);
        let mut body = Body::new(request.framing);
        if request.framing != Framing::Empty {
            let Ok(taken) = body.advance(self.buffer.filled()) else {
                return Next::Refuse(400, "the body breaks its chunks");
            };
            self.out.extend_from_slice(&self.buffer.filled()[..taken]);
            self.buffer.consume(taken);
        }
        let whole = body.is_done();
        let again = whole && request.idempotent;
        let mut fresh = false;
        loop {
            self.clock.set(started + self.worker.shared.limits.idle_timeout);
            let reached = self.worker.reach(self.route, !again, fresh).await;
            let Some((flight, upstream)) = reached else {
                return Next::Refuse(503, "the service has no backend that answers");
            };
            let sent = write_all(&upstream.stream, &self.out, &mut self.clock).await;
            let result = match sent {
                Err(_) => Err(Failure::Nothing),
                Ok(()) if whole => self.respond(&upstream.stream, &request).await,
                Ok(()) => self.upload_and_respond(&upstream.stream, &request, body).await,
            };
            match result {
                Err(Failure::Nothing) if upstream.reused && again => {
                    metrics::count(&metrics::OWN.retries);
                    self.answer = Buffer::default();
                    fresh = true;
                }
                Err(failure) => return self.failed(failure, &flight),
                Ok(answer) => return self.finish(answer, flight, upstream, &request, started),
            }
        }
    }

    fn failed(&mut self, failure: Failure, flight: &Flight) -> Next {
        self.answer = Buffer::default();
        flight.backend.metrics.failed();
        match failure {
            Failure::Nothing => Next::Refuse(502, "the backend ended the connection without a response"),
            Failure::Malformed => Next::Refuse(502, "the backend's response is not HTTP/1.1"),
            Failure::Request => Next::Refuse(400, "the body breaks its chunks"),
            Failure::Late => Next::Refuse(504, "the backend did not answer in time"),
            Failure::Torn | Failure::Client => Next::Break,
        }
    }

    fn finish(
        &mut self,
        answer: Answer,
        flight: Flight,
        upstream: Upstream,
        request: &Request,
        started: Instant,
    ) -> Next {
        let metrics = &flight.backend.metrics;
        metrics.answered(answer.status, started.elapsed());
        metrics.passed(self.out.len() as u64 + answer.uploaded, answer.sent);
        if answer.status == 101 && request.upgrade {
            return Next::Relay(flight, upstream.stream);
        }
        let clean = self.answer.is_empty();
        self.answer = Buffer::default();
        if answer.backend_stays && !clean {
            flight.backend.distrust();
        } else if answer.backend_stays {
            self.worker.pool.keep(&flight.backend, upstream.stream);
        }
        if answer.client_stays { Next::Request } else { Next::Close }
    }

    /// What passes the response on, and the buffer into which the client's next request comes meanwhile.
    fn response<'s>(
        &'s mut self,
        upstream: &'s TcpStream,
        request: &'s Request,
        begun: &'s AtomicBool,
    ) -> (Response<'s>, &'s mut Buffer) {
        let Self { client, buffer, answer, fields, clock, worker, held, .. } = self;
        let response = Response {
            client,
            upstream,
            answer,
            fields,
            clock,
            request,
            shared: &worker.shared,
            held,
            begun,
            half_closed: false,
            out: Vec::new(),
        };
        (response, buffer)
    }

    /// The response to a request that was sent whole. While there is none, the client's leaving is passed on.
    async fn respond(&mut self, upstream: &TcpStream, request: &Request) -> Result<Answer, Failure> {
        let begun = AtomicBool::new(false);
        let (mut response, buffer) = self.response(upstream, request, &begun);
        response.run(Some(buffer), 0).await
    }

    async fn upload_and_respond(
        &mut self,
        upstream: &TcpStream,
        request: &Request,
        body: Body,
    ) -> Result<Answer, Failure> {
        let begun = AtomicBool::new(false);
        let (mut response, buffer) = self.response(upstream, request, &begun);
        let Response { client, shared, held, .. } = response;
        let mut uploading = pin!(upload(client, buffer, upstream, body, shared.limits.idle_timeout, held));
        let mut responding = pin!(response.run(None, 0));
        let mut uploaded = None;
        let answer = poll_fn(|context| {
            if uploaded.is_none() {
                match uploading.as_mut().poll(context) {
                    Poll::Ready(Err(Stopped::Client)) => return Poll::Ready(Err(Failure::Client)),
                    Poll::Ready(Err(Stopped::Broken)) => return Poll::Ready(Err(Failure::Request)),
                    Poll::Ready(Err(Stopped::Backend)) => uploaded = Some(None),
                    Poll::Ready(Ok(count)) => uploaded = Some(Some(count)),
                    Poll::Pending => {}
                }
            }
            responding.as_mut().poll(context)
        })
        .await;
        let mut answer = match answer {
            // A broken body after the response has begun cannot be answered any more.
            Err(Failure::Request) if begun.load(Ordering::Relaxed) => return Err(Failure::Torn),
            other => other?,
        };
        match uploaded {
            Some(Some(count)) => answer.uploaded = count,
            // The answer came early: what is left of the body has no receiver.
            _ => (answer.client_stays, answer.backend_stays) = (false, false),
        }
        Ok(answer)
    }
}

fn malformed(bad: Bad) -> Head {
    metrics::count(&metrics::OWN.malformed);
    Head::Refuse(bad.status(), "the request's head is malformed")
}

fn refusal(bad: Bad) -> Next {
    metrics::count(&metrics::OWN.malformed);
    let reason = match bad {
        Bad::TwoLengths => "both Content-Length and Transfer-Encoding",
        Bad::Host => "there must be one Host field that names a host",
        Bad::TwoHosts => "the target names another host than the Host field",
        Bad::Underscore => "a field that frames the message has an underscore in its name",
        Bad::Folded => "a field is folded over two lines",
        Bad::LineEnd => "a line does not end with CRLF",
        Bad::Length => "Content-Length is not one number",
        Bad::TransferCoding => "the only transfer coding is chunked",
        Bad::Method => "this is no forward proxy",
        Bad::Upgrade => "a WebSocket's handshake has one Sec-WebSocket-Key of 24 bytes",
        Bad::Version => "only HTTP/1.0 and HTTP/1.1",
        Bad::TooManyFields | Bad::TooLong => "the head is too large",
        Bad::StartLine | Bad::FieldName | Bad::FieldValue | Bad::Connection => {
            "the request's head is malformed"
        }
    };
    Next::Refuse(bad.status(), reason)
}

/// A response that was passed on whole.
struct Answer {
    status: u16,
    client_stays: bool,
    backend_stays: bool,
    /// Bytes to the client.
    sent: u64,
    /// Bytes of the body that were sent after the head.
    uploaded: u64,
}

#[derive(Clone, Copy)]
enum Failure {
    /// The backend ended before any byte of a response.
    Nothing,
    /// What the backend sent is no response; the client has got nothing of it.
    Malformed,
    /// The client's body is malformed; the client has got nothing yet.
    Request,
    Late,
    /// The response broke off.
    Torn,
    Client,
}

struct Response<'s> {
    client: &'s TcpStream,
    upstream: &'s TcpStream,
    answer: &'s mut Buffer,
    fields: &'s mut Vec<Field>,
    clock: &'s mut Clock,
    request: &'s Request,
    shared: &'s crate::worker::Shared,
    held: &'s Held,
    /// Whether the client has got a part of a response.
    begun: &'s AtomicBool,
    /// Our direction of the backend's connection has ended.
    half_closed: bool,
    out: Vec<u8>,
}

impl Response<'_> {
    /// Passes interim responses and the response. `pipelined` takes what the client sends meanwhile.
    async fn run(&mut self, mut pipelined: Option<&mut Buffer>, mut sent: u64) -> Result<Answer, Failure> {
        for _ in 0..=INTERIM_MAX {
            let length = self.read_head(&mut pipelined, sent > 0).await?;
            let bytes = self.answer.filled();
            let response = head::response(&bytes[..length], self.request.is_head, self.fields)
                .map_err(|_| if sent > 0 { Failure::Torn } else { Failure::Malformed })?;
            let switching = response.status == 101;
            if switching && !self.request.upgrade {
                return Err(if sent > 0 { Failure::Torn } else { Failure::Malformed });
            }
            if response.status < 200 && !switching {
                // An HTTP/1.0 client knows no interim responses.
                if !self.request.old {
                    self.begun.store(true, Ordering::Relaxed);
                    self.out.clear();
                    head::forward_response(&bytes[..length], &response, self.fields, false, &mut self.out);
                    write_all(self.client, &self.out, self.clock).await.map_err(|_| Failure::Client)?;
                    sent += self.out.len() as u64;
                }
                self.answer.consume(length);
                continue;
            }
            let ends = response.framing == Framing::UntilClose && !switching;
            let last = !switching && (self.request.close || ends || self.shared.draining.is_cancelled());
            let mut body = Body::new(response.framing);
            let here = body.advance(&bytes[length..]).map_err(|_| Failure::Malformed)?;
            self.begun.store(true, Ordering::Relaxed);
            if head::unchanged(&response, last) {
                let piece = &self.answer.filled()[..length + here];
                write_all(self.client, piece, self.clock).await.map_err(|_| Failure::Client)?;
                sent += piece.len() as u64;
            } else {
                self.out.clear();
                head::forward_response(&bytes[..length], &response, self.fields, last, &mut self.out);
                self.out.extend_from_slice(&bytes[length..length + here]);
                write_all(self.client, &self.out, self.clock).await.map_err(|_| Failure::Client)?;
                sent += self.out.len() as u64;
            }
            self.answer.consume(length + here);
            sent += self.rest(body, switching).await?;
            return Ok(Answer {
                status: response.status,
                client_stays: !last,
                backend_stays: !response.close && !self.request.old && !self.half_closed,
                sent,
                uploaded: 0,
            });
        }
        Err(if sent > 0 { Failure::Torn } else { Failure::Malformed })
    }

    async fn read_head(
        &mut self,
        pipelined: &mut Option<&mut Buffer>,
        begun: bool,
    ) -> Result<usize, Failure> {
        let mut seen = 0;
        loop {
            if let Some(length) = head::end(self.answer.filled(), seen) {
                return Ok(length);
            }
            if head::hopeless(self.answer.filled()).is_some() {
                return Err(if begun { Failure::Torn } else { Failure::Malformed });
            }
            seen = self.answer.filled().len();
            let filled = poll_fn(|context| self.poll_head(pipelined, context)).await?;
            if filled == 0 {
                return Err(match (begun, seen) {
                    (true, _) => Failure::Torn,
                    (false, 0) => Failure::Nothing,
                    (false, _) => Failure::Malformed,
                });
            }
        }
    }

    fn poll_head(
        &mut self,
        pipelined: &mut Option<&mut Buffer>,
        context: &mut Context<'_>,
    ) -> Poll<Result<usize, Failure>> {
        match poll_fill(self.upstream, self.answer, HEAD_BYTES_MAX, context) {
            Poll::Ready(result) => return Poll::Ready(Ok(result.unwrap_or(0))),
            Poll::Pending => self.answer.rest(),
        }
        while let Some(buffer) = pipelined {
            if buffer.space(BUFFER_BYTES).is_empty() {
                break;
            }
            match poll_fill(self.client, buffer, BUFFER_BYTES, context) {
                Poll::Ready(Ok(0)) => {
                    // The backend learns, as it would without a proxy, that the client has said its last word. Nothing
                    // more can be asked on this connection.
                    shutdown_write(self.upstream);
                    self.half_closed = true;
                    *pipelined = None;
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Failure::Client)),
                Poll::Pending => {
                    buffer.rest();
                    break;
                }
            }
        }
        self.clock.poll(context).map(|()| Err(Failure::Late))
    }

    /// Passes the rest of the body.
    async fn rest(&mut self, mut body: Body, switching: bool) -> Result<u64, Failure> {
        let mut sent = 0;
        while !body.is_done() && !switching {
            let count = fill(self.upstream, self.answer, BUFFER_BYTES, self.clock)
                .await
                .map_err(|_| Failure::Torn)?;
            if count == 0 {
                return if body.ends_with_connection() { Ok(sent) } else { Err(Failure::Torn) };
            }
            let taken = body.advance(self.answer.filled()).map_err(|_| Failure::Torn)?;
            let piece = &self.answer.filled()[..taken];
            write_all(self.client, piece, self.clock).await.map_err(|_| Failure::Client)?;
            sent += taken as u64;
            self.answer.consume(taken);
            if count >= BUFFER_BYTES && body.remaining() > BUFFER_BYTES as u64 {
                self.answer.grow(BULK_BYTES);
            }
            self.clock.set(Instant::now() + self.shared.limits.idle_timeout);
            // Chosen to make room, it ends by itself.
            self.held.busy();
        }
        Ok(sent)
    }
}
