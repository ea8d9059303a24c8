//! The data path against backends in this process, on loopback.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lifecycle::CancellationToken;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::backend::{Backend, Pod};
use crate::destination::Allowance;
use crate::route::{AppProtocol, Route};
use crate::worker::{Shared, Target, Workers};
use crate::{Limits, metrics};

const WITHIN: Duration = Duration::from_secs(20);

struct Proxy {
    workers: Workers,
    route: Arc<Route>,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Proxy {
    fn start(protocol: AppProtocol) -> Self {
        Self::with(protocol, Limits { patience: Duration::from_millis(500), ..Limits::default() })
    }

    fn with(protocol: AppProtocol, limits: Limits) -> Self {
        let workers = Workers::start(Shared::new(None, limits, Allowance::default()).unwrap(), 2).unwrap();
        let route = Arc::new(Route::new("default/test:80".to_owned()));
        route.set_app_protocol(protocol);
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        workers.accept(listener, Target::Route(Arc::clone(&route)), stop.clone());
        Self { workers, route, address, stop }
    }

    fn set(&self, backends: &[&Server]) -> Vec<Arc<Backend>> {
        let backends: Vec<_> = backends
            .iter()
            .map(|server| {
                let pod = Arc::clone(&server.pod);
                Backend::new(server.address, true, Allowance::default(), pod, Arc::default())
            })
            .collect();
        self.route.balancer.set(backends.clone());
        backends
    }

    async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// One exchange on a connection of its own; the answer up to the connection's end.
    async fn say(&self, text: &str) -> String {
        let mut stream = self.dial().await;
        stream.write_all(text.replace('\n', "\r\n").as_bytes()).await.unwrap();
        read_to_end(&mut stream).await
    }
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(WITHIN, stream.read_to_end(&mut answer)).await;
    read.expect("the answer ends in time").expect("the connection ends well");
    String::from_utf8(answer).unwrap()
}

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(end) {
        let read = tokio::time::timeout(WITHIN, stream.read(&mut buffer)).await;
        let count = read.expect("it comes in time").unwrap();
        assert!(count > 0, "the connection ended after {text:?}");
        text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
    text
}

/// A backend: what it does with each connection is up to `serve`.
struct Server {
    address: SocketAddr,
    pod: Arc<Pod>,
    accepted: Arc<AtomicUsize>,
}

impl Server {
    async fn start<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted: Arc<AtomicUsize> = Arc::default();
        let count = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream));
            }
        });
        Self { address, pod: Arc::default(), accepted }
    }

    /// Answers each request head with its own text; a body is echoed by its bytes as they came.
    async fn http(name: &'static str) -> Self {
        Self::start(move |mut stream| async move {
            let mut text = Vec::new();
            loop {
                while let Some(end) = text.windows(4).position(|window| window == b"\r\n\r\n") {
                    let head: Vec<u8> = text.drain(..end + 4).collect();
                    let body = format!("{name} got: {}", String::from_utf8(head).unwrap());
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
                if stream.read_buf(&mut text).await.unwrap_or(0) == 0 {
                    return;
                }
            }
        })
        .await
    }
}

#[tokio::test]
async fn requests_share_backend_connections_and_carry_the_client_s_address() {
    let proxy = Proxy::start(AppProtocol::Http);
    let server = Server::http("a").await;
    proxy.set(&[&server]);
    let mut stream = proxy.dial().await;
    for path in ["/one", "/two", "/three"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let text = read_until(&mut stream, "X-Forwarded-Proto: http\r\n\r\n").await;
        assert!(text.contains(&format!("a got: GET {path} HTTP/1.1")) && text.contains("X-Forwarded-For"));
    }
    let other = proxy.say("GET /last HTTP/1.1\nHost: x\nConnection: close\n\n").await;
    assert!(other.contains("Connection: close") && other.contains("GET /last"));
    assert!(server.accepted.load(Ordering::SeqCst) <= 2);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let proxy = Proxy::start(AppProtocol::Http);
    let server = Server::http("a").await;
    proxy.set(&[&server]);
    let text = proxy
        .say("GET /1 HTTP/1.1\nHost: x\n\nGET /2 HTTP/1.1\nHost: x\n\nGET /3 HTTP/1.1\nHost: x\nConnection: close\n\n")
        .await;
    let places: Vec<usize> = ["GET /1", "GET /2", "GET /3"].map(|line| text.find(line).unwrap()).to_vec();
    assert!(places.is_sorted());
}

#[tokio::test]
async fn malformed_requests_get_400_and_reach_nobody() {
    let proxy = Proxy::start(AppProtocol::Http);
    let server = Server::http("a").await;
    proxy.set(&[&server]);
    for text in [
        "POST / HTTP/1.1\nHost: x\nContent-Length: 4\nTransfer-Encoding: chunked\n\n0\n\n",
        "GET / HTTP/1.1\nHost: x\nX : y\n\n",
        "POST / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\nzz\n",
    ] {
        let answer = proxy.say(text).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert_eq!(server.accepted.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let proxy = Proxy::start(AppProtocol::Http);
    // Answers before it has the body, then echoes each piece as a chunk.
    let server = Server::start(|mut stream| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await;
        assert!(head.contains("Expect: 100-continue"));
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        let body = read_until(&mut stream, "0\r\n\r\n").await;
        stream.write_all(body.as_bytes()).await.unwrap();
    })
    .await;
    proxy.set(&[&server]);
    let mut stream = proxy.dial().await;
    let head = "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let text = read_until(&mut stream, "chunked\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"));
    stream.write_all(b"5\r\nhello\r\n").await.unwrap();
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(read_until(&mut stream, "0\r\n\r\n").await, "5\r\nhello\r\n0\r\n\r\n");
}

#[tokio::test]
async fn large_bodies_pass_whole() {
    const SIZE: usize = 3_000_000;
    let proxy = Proxy::start(AppProtocol::Http);
    let server = Server::start(|mut stream| async move {
        let mut got = Vec::new();
        let mut buffer = vec![0; 65536];
        while got.len() < SIZE {
            let count = stream.read(&mut buffer).await.unwrap();
            got.extend_from_slice(&buffer[..count]);
            if let Some(end) = got.windows(4).position(|window| window == b"\r\n\r\n") {
                while got.len() < end + 4 + SIZE {
                    let count = stream.read(&mut buffer).await.unwrap();
                    got.extend_from_slice(&buffer[..count]);
                }
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\nConnection: close\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(&got[end + 4..]).await.unwrap();
            }
        }
    })
    .await;
    proxy.set(&[&server]);
    let body: String = (0..SIZE).map(|index| char::from(b'a' + (index % 23) as u8)).collect();
    let request =
        format!("PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {SIZE}\r\n\r\n{body}");
    let mut stream = proxy.dial().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = read_to_end(&mut stream).await;
    assert!(answer.ends_with(&body));
}

#[tokio::test]
async fn an_upgrade_becomes_a_relay() {
    let proxy = Proxy::start(AppProtocol::Http);
    let server = Server::start(|mut stream| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await;
        assert!(head.contains("Upgrade: websocket\r\n") && head.contains("Connection: Upgrade\r\n"));
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut byte = [0; 4];
        stream.read_exact(&mut byte).await.unwrap();
        stream.write_all(&byte).await.unwrap();
    })
    .await;
    let backends = proxy.set(&[&server]);
    let mut stream = proxy.dial().await;
    let request = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let text = read_until(&mut stream, "hello").await;
    assert!(text.contains("101 Switching") && text.contains("Connection: Upgrade"));
    assert_eq!(backends[0].pod.in_flight(), 1);
    stream.write_all(b"ping").await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, "ping");
    drop(stream);
    backends[0].pod.bury();
    tokio::time::timeout(WITHIN, backends[0].pod.emptied()).await.unwrap();
}

#[tokio::test]
async fn bytes_are_relayed_whoever_speaks_first() {
    let proxy = Proxy::start(AppProtocol::Opaque);
    let server = Server::start(|mut stream| async move {
        stream.write_all(b"220 welcome\r\n").await.unwrap();
        let line = read_until(&mut stream, "\n").await;
        stream.write_all(line.as_bytes()).await.unwrap();
    })
    .await;
    proxy.set(&[&server]);
    let mut stream = proxy.dial().await;
    assert_eq!(read_until(&mut stream, "\n").await, "220 welcome\r\n");
    stream.write_all(b"GET is not http\n").await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, "GET is not http\n");

    // A client that speaks first, but no HTTP.
    let echo = Server::start(|mut stream| async move {
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    })
    .await;
    proxy.set(&[&echo]);
    let mut stream = proxy.dial().await;
    stream.write_all(b"HELLO").await.unwrap();
    assert_eq!(read_until(&mut stream, "HELLO").await, "HELLO");
    stream.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, "");
}

#[tokio::test]
async fn a_refused_connection_is_tried_elsewhere() {
    let proxy = Proxy::start(AppProtocol::Http);
    let server = Server::http("b").await;
    let nobody = {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        Server { address: listener.local_addr().unwrap(), pod: Arc::default(), accepted: Arc::default() }
    };
    proxy.set(&[&nobody, &server]);
    for _ in 0..10 {
        let answer = proxy.say("POST / HTTP/1.1\nHost: x\nConnection: close\nContent-Length: 0\n\n").await;
        assert!(answer.contains("b got: POST"), "{answer}");
    }
    proxy.set(&[&nobody]);
    let answer = proxy.say("GET / HTTP/1.1\nHost: x\n\n").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

#[tokio::test]
async fn an_idle_connection_that_died_is_replaced() {
    let proxy = Proxy::start(AppProtocol::Http);
    // Says that it keeps the connection, and closes it.
    let server = Server::start(|mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    proxy.set(&[&server]);
    let mut stream = proxy.dial().await;
    for _ in 0..20 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(read_until(&mut stream, "ok").await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn a_backend_that_breaks_off_is_not_asked_twice() {
    let proxy = Proxy::start(AppProtocol::Http);
    let server = Server::start(|mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
    })
    .await;
    proxy.set(&[&server]);
    let answer = proxy.say("POST / HTTP/1.1\nHost: x\nContent-Length: 0\n\n").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(server.accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_buried_pod_gets_nothing_new_and_finishes_what_it_has() {
    let proxy = Proxy::start(AppProtocol::Http);
    let (started, begun) = tokio::sync::mpsc::channel::<()>(1);
    let mut begun = begun;
    let (go, _) = tokio::sync::broadcast::channel::<()>(1);
    let gate = go.clone();
    let slow = Server::start(move |mut stream| {
        let (started, mut gate) = (started.clone(), gate.subscribe());
        async move {
            if stream.readable().await.is_err() {
                return;
            }
            let mut head = [0; 1024];
            if stream.read(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
            started.send(()).await.unwrap();
            gate.recv().await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow").await.unwrap();
        }
    })
    .await;
    let other = Server::http("other").await;
    proxy.set(&[&slow]);
    let mut first = proxy.dial().await;
    first.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    begun.recv().await.unwrap();
    assert_eq!(slow.pod.in_flight(), 1);

    // The Pod is to go; a late slice still names it.
    slow.pod.bury();
    proxy.set(&[&slow, &other]);
    for _ in 0..10 {
        let answer = proxy.say("GET / HTTP/1.1\nHost: x\nConnection: close\n\n").await;
        assert!(answer.contains("other got"), "{answer}");
    }
    let pod = Arc::clone(&slow.pod);
    let emptied = tokio::spawn(async move { pod.emptied().await });
    tokio::task::yield_now().await;
    assert!(!emptied.is_finished());
    go.send(()).unwrap();
    assert!(read_until(&mut first, "slow").await.starts_with("HTTP/1.1 200"));
    tokio::time::timeout(WITHIN, emptied).await.unwrap().unwrap();
    // The client's own connection goes on, to another Pod.
    first.write_all(b"GET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(read_to_end(&mut first).await.contains("other got: GET /next"));
}

#[tokio::test]
async fn silent_connections_move_when_their_pod_leaves() {
    let proxy = Proxy::start(AppProtocol::Opaque);
    let (close, _) = tokio::sync::broadcast::channel::<()>(1);
    let gate = close.clone();
    // Ends its connections when told, as a program does that exits at SIGTERM.
    let old = Server::start(move |stream| {
        let mut gate = gate.subscribe();
        async move {
            gate.recv().await.unwrap();
            drop(stream);
        }
    })
    .await;
    let new = Server::http("new").await;
    proxy.set(&[&old]);
    let mut stream = proxy.dial().await;
    let dialled = async {
        while old.accepted.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WITHIN, dialled).await.unwrap();
    old.pod.bury();
    proxy.set(&[&new]);
    tokio::time::timeout(WITHIN, old.pod.emptied()).await.unwrap();
    close.send(()).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    read_until(&mut stream, "new got: GET /").await;
}

#[tokio::test]
async fn a_process_that_hands_over_says_close_and_becomes_idle() {
    let proxy = Proxy::start(AppProtocol::Http);
    let server = Server::http("a").await;
    proxy.set(&[&server]);
    let mut stream = proxy.dial().await;
    stream.write_all(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    read_until(&mut stream, "X-Forwarded-Proto: http\r\n\r\n").await;
    proxy.stop.cancel();
    proxy.workers.shared.draining.cancel();
    stream.write_all(b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(read_to_end(&mut stream).await.contains("Connection: close"));
    drop(stream);
    tokio::time::timeout(WITHIN, proxy.workers.shared.idle()).await.unwrap();
}

#[tokio::test]
async fn on_a_port_for_http_nothing_passes_the_parser_by() {
    let proxy = Proxy::start(AppProtocol::Http);
    let server = Server::http("a").await;
    proxy.set(&[&server]);
    // What used to choose the relay: a slow first byte, a method that nobody knows, another protocol.
    let mut slow = proxy.dial().await;
    let forged = "BREW /pot HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n\
                  Forwarded: for=203.0.113.9\r\nX_Forwarded_For: 203.0.113.9\r\nX-Real-IP: 203.0.113.9\r\n\
                  Connection: close\r\n\r\n";
    for byte in forged.as_bytes() {
        slow.write_all(&[*byte]).await.unwrap();
        if *byte == b'\n' {
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    }
    let text = read_to_end(&mut slow).await;
    let seen = text.split_once("a got: ").unwrap().1;
    assert!(seen.starts_with("BREW /pot HTTP/1.1\r\n"), "{seen}");
    assert!(
        seen.contains("X-Forwarded-For: 203.0.113.9, 127.0.0.1\r\nX-Forwarded-Proto: http\r\n"),
        "{seen}"
    );
    assert_eq!(seen.matches("203.0.113.9").count(), 1, "{seen}");
    // No line end is waited for.
    for bytes in [
        &b"\x16\x03\x01\x02"[..],
        b"SSH-2.0-x\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET(",
        &[b'A'; 99],
    ] {
        let mut stream = proxy.dial().await;
        stream.write_all(bytes).await.unwrap();
        let answer = read_to_end(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.1 505 "), "{answer}");
    }
}

#[tokio::test]
async fn a_proxy_of_the_user_s_own_may_say_who_its_client_is() {
    let proxy = Proxy::start(AppProtocol::Http);
    let server = Server::http("a").await;
    proxy.set(&[&server]);
    proxy.route.set_trusts_forwarded(true);
    let text = proxy
        .say("GET / HTTP/1.1\nHost: x\nX-Forwarded-Proto: https\nForwarded: for=b\nConnection: close\n\n")
        .await;
    assert!(text.contains("Forwarded: for=b\r\n") && text.contains("X-Forwarded-Proto: https\r\n"), "{text}");
    assert_eq!(text.matches("X-Forwarded-Proto").count(), 1, "{text}");
}

/// A backend that says more than it was asked, as one does that answers HEAD with a body.
#[tokio::test]
async fn bytes_after_an_answer_reach_nobody() {
    let proxy = Proxy::start(AppProtocol::Http);
    let arrived = Arc::new(tokio::sync::Notify::new());
    let answered = Arc::clone(&arrived);
    let server = Server::start(move |mut stream| {
        let answered = Arc::clone(&answered);
        async move {
            let mut number = 0;
            loop {
                let head = read_until_end(&mut stream, "\r\n\r\n").await;
                let Some(head) = head else { return };
                number += 1;
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let stray =
                    if path == "/stray" { "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison" } else { "" };
                let body = format!("{path} {number}");
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
                // The proxy has read the answer: this comes when the connection is idle already, or is about to be.
                answered.notified().await;
                if stream.write_all(stray.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let backends = proxy.set(&[&server]);
    let mut stream = proxy.dial().await;
    let mut ask = async |path: &str, end: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, end).await;
        arrived.notify_one();
        answer
    };
    assert!(ask("/one", "/one 1").await.contains("/one 1"));
    assert!(ask("/stray", "/stray 2").await.contains("/stray 2"), "a connection is used again");
    // It stands there; no reactor of the proxy has to have seen it.
    let standing = async {
        while proxy.workers.unread() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WITHIN, standing).await.expect("the stray bytes arrive");
    for path in ["/after", "/again", "/later"] {
        let answer = ask(path, &format!("{path} 1")).await;
        assert!(!answer.contains("poison"), "{answer}");
        assert!(backends[0].is_distrusted());
    }
    assert_eq!(server.accepted.load(Ordering::SeqCst), 4, "each request has a connection of its own now");
}

async fn read_until_end(stream: &mut TcpStream, end: &str) -> Option<String> {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        if stream.read_buf(&mut text).await.unwrap_or(0) == 0 {
            return None;
        }
    }
    String::from_utf8(text).ok()
}

#[tokio::test]
async fn a_client_that_ends_its_direction_spoils_no_connection_for_the_next() {
    let proxy = Proxy::start(AppProtocol::Http);
    // Answers once more after the end of its input, as a server may that writes later.
    let server = Server::start(|mut stream| async move {
        let mut kept = Vec::new();
        while let Some(head) = read_until_end(&mut stream, "\r\n\r\n").await {
            // The first client ends its direction, and that passes through before there is an answer.
            if head.starts_with("GET ") {
                assert_eq!(stream.peek(&mut [0]).await.unwrap(), 0);
            }
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.is_err() {
                return;
            }
        }
        kept.push(stream);
        std::future::pending::<()>().await;
    })
    .await;
    proxy.set(&[&server]);
    let mut first = proxy.dial().await;
    first.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    first.shutdown().await.unwrap();
    assert!(read_to_end(&mut first).await.ends_with("ok"));
    // It cannot be sent twice, so a connection that takes nothing more shows.
    let answer = proxy.say("POST / HTTP/1.1\nHost: x\nContent-Length: 0\nConnection: close\n\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(server.accepted.load(Ordering::SeqCst), 2);
}

/// As after a time without a processor: the backlog is full of one user's connections, and half of the clients have given up.
#[tokio::test]
async fn who_waited_out_a_stall_is_served_at_once() {
    const CLIENTS: usize = 120;
    let shares = crate::worker::shares(CLIENTS * 4 / 3);
    assert!(shares.peer >= CLIENTS);
    let limits = Limits { connections_max: CLIENTS * 4 / 3, ..Limits::default() };
    let proxy = Proxy::with(AppProtocol::Http, limits);
    let server = Server::http("a").await;
    proxy.set(&[&server]);
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    for number in 0..CLIENTS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        if number % 2 == 0 {
            waiting.push(stream);
        }
    }
    let (route, stop) = (Arc::clone(&proxy.route), CancellationToken::new());
    proxy.workers.accept(listener, Target::Route(route), stop);
    for mut stream in waiting {
        assert!(read_to_end(&mut stream).await.starts_with("HTTP/1.1 200"));
    }
    drop(proxy.stop);
    tokio::time::timeout(WITHIN, proxy.workers.shared.idle()).await.expect("nothing is left of the others");
}

#[tokio::test]
async fn silence_is_bounded_and_a_flood_of_it_closes_its_own() {
    let limits = Limits {
        connections_max: 32,
        first_byte_timeout: Duration::from_millis(1500),
        patience: Duration::from_millis(500),
        ..Limits::default()
    };
    for protocol in [AppProtocol::Http, AppProtocol::Opaque] {
        let proxy = Proxy::with(protocol, limits.clone());
        let server = Server::http("a").await;
        proxy.set(&[&server]);
        let other = Arc::new(Route::new("default/other:80".to_owned()));
        other.set_app_protocol(AppProtocol::Http);
        let pod = Arc::clone(&server.pod);
        let backend = Backend::new(server.address, true, Allowance::default(), pod, Arc::default());
        other.balancer.set(vec![backend]);
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let other_address = listener.local_addr().unwrap();
        proxy.workers.accept(listener, Target::Route(other), CancellationToken::new());

        let mut silent = Vec::new();
        for _ in 0..100 {
            // One that is refused may be so before it knows that it was connected.
            silent.extend(TcpStream::connect(proxy.address).await);
        }
        // One user has them all: another route is served nevertheless, and so is this one once they are idle.
        let mut stream = TcpStream::connect(other_address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        assert!(read_to_end(&mut stream).await.starts_with("HTTP/1.1 200"));
        // Refused or too long silent, in the end each is closed.
        for mut stream in silent {
            let ended = tokio::time::timeout(WITHIN, stream.read(&mut [0])).await.expect("it is closed");
            assert!(!matches!(ended, Ok(count) if count > 0));
        }
        let mut stream = proxy.dial().await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(read_until(&mut stream, "a got: GET / ").await.starts_with("HTTP/1.1 200"));
    }
    let text = lifecycle::metrics::encode();
    for reason in ["first_byte", "peer_share"] {
        let line =
            format!("gantry_connections_closed_total{{listener=\"proxy_connections\",reason=\"{reason}\"}}");
        assert!(text.contains(&line), "{line} in:\n{text}");
    }
}

/// Not a test: a proxy to point a load generator at. `PROXY_LISTEN=127.0.0.1:8000 PROXY_BACKENDS=host:port,…`,
/// with `-- --ignored`; it ends when standard input does.
#[test]
#[ignore = "serves until standard input ends, for measurements"]
fn serve_for_measurements() {
    let backends = std::env::var("PROXY_BACKENDS").expect("PROXY_BACKENDS is set");
    let listen = std::env::var("PROXY_LISTEN").expect("PROXY_LISTEN is set");
    let count = std::env::var("PROXY_WORKERS").map_or(2, |count| count.parse().expect("a number"));
    let workers =
        Workers::start(Shared::new(None, Limits::default(), Allowance::default()).unwrap(), count).unwrap();
    let route = Arc::new(Route::new("default/measured:80".to_owned()));
    let backends = backends.split(',').map(|address| {
        let metrics = metrics::Backend::new(vec![("backend", address.to_owned())]);
        let address = address.parse().expect("an address");
        Backend::new(address, true, Allowance::default(), Arc::default(), metrics)
    });
    route.balancer.set(backends.collect());
    let listener = StdListener::bind(listen).unwrap();
    workers.accept(listener, Target::Route(route), CancellationToken::new());
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).is_ok_and(|count| count > 0) {
        line.clear();
    }
    let _ = std::io::stderr().write_all(lifecycle::metrics::encode().as_bytes());
}
