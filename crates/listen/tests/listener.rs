//! A listener under clients that leave things undone.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::routing::{get, post};
use lifecycle::CancellationToken;
use lifecycle::connections::Limits;
use listen::{Config, Times};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// An event that never comes fails the test, not the machine.
const DEADLINE: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(600);

/// No time-out that a test does not ask for.
const PATIENT: Times =
    Times { first_byte: LONG, handshake: LONG, head: LONG, idle: LONG, body: LONG, unread: LONG };

struct Running {
    address: SocketAddr,
    token: CancellationToken,
    pieces: Sender<Result<Bytes, std::io::Error>>,
    task: tokio::task::JoinHandle<()>,
}

type Pieces = std::sync::Arc<Mutex<Option<Receiver<Result<Bytes, std::io::Error>>>>>;

async fn start(name: &'static str, times: Times, peer: usize) -> Running {
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (pieces, receiver) = channel(4);
    let stream = async |State(pieces): State<Pieces>| {
        let receiver = pieces.lock().await.take().unwrap();
        Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver))
    };
    let router = axum::Router::new()
        .route("/", get(async || "ok"))
        .route("/stream", get(stream))
        .route("/body", post(async |body: Bytes| body.len().to_string()))
        .with_state(Pieces::new(Mutex::new(Some(receiver))));
    let config = Config { name, limits: Limits { total: 100, group: 100, peer }, times, tls: None };
    let token = CancellationToken::new();
    let task = tokio::spawn(listen::serve(socket, config, move |_| router.clone(), token.clone()));
    Running { address, token, pieces, task }
}

impl Running {
    async fn send(&self, text: &str) -> TcpStream {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        client.write_all(text.as_bytes()).await.unwrap();
        client
    }
}

async fn read_until(client: &mut TcpStream, wanted: &str) -> String {
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains(wanted) {
        let mut piece = [0; 1024];
        let count = tokio::time::timeout(DEADLINE, client.read(&mut piece)).await.unwrap().unwrap();
        assert_ne!(count, 0, "closed after {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&piece[..count]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Waits until the other side closes, and answers what it said before.
async fn closed(mut client: TcpStream) -> String {
    let mut text = Vec::new();
    // A reset is an end as well.
    let _ = tokio::time::timeout(DEADLINE, client.read_to_end(&mut text)).await.expect("it stays open");
    String::from_utf8_lossy(&text).into_owned()
}

const GET: &str = "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";

#[tokio::test]
async fn who_says_nothing_is_closed() {
    let running = start("test_silent", Times { first_byte: SHORT, ..PATIENT }, 10).await;
    assert_eq!(closed(running.send("").await).await, "");
}

#[tokio::test]
async fn a_head_half_sent_is_closed_the_first_and_a_later_one() {
    let running = start("test_head", Times { head: SHORT, ..PATIENT }, 10).await;
    assert_eq!(closed(running.send("GET / HT").await).await, "");
    assert_eq!(closed(running.send("PRI * HTTP/2.0\r\n\r\nS").await).await, "");
    let mut kept = running.send(GET).await;
    read_until(&mut kept, "ok").await;
    kept.write_all(b"GET /").await.unwrap();
    closed(kept).await;
}

#[tokio::test]
async fn a_connection_that_idles_between_requests_is_closed_later() {
    let running = start("test_idle", Times { idle: SHORT, ..PATIENT }, 10).await;
    assert!(closed(running.send(GET).await).await.ends_with("ok"));
}

#[tokio::test]
async fn a_body_that_stands_still_is_refused() {
    let running = start("test_body", Times { body: SHORT, ..PATIENT }, 10).await;
    let mut client =
        running.send("POST /body HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nhalf").await;
    assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 400"));
}

#[tokio::test]
async fn a_stream_outlasts_every_time_out() {
    let times = Times { first_byte: SHORT, head: SHORT, idle: SHORT, body: SHORT, ..PATIENT };
    let running = start("test_stream", times, 10).await;
    let mut client = running.send("GET /stream HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    running.pieces.send(Ok(Bytes::from_static(b"first"))).await.unwrap();
    read_until(&mut client, "first").await;
    // By then each time-out has passed, and more than once.
    for _ in 0..3 {
        closed(running.send("").await).await;
    }
    running.pieces.send(Ok(Bytes::from_static(b"second"))).await.unwrap();
    read_until(&mut client, "second").await;
}

#[tokio::test]
async fn a_user_at_its_share_is_refused_and_gets_a_place_back() {
    let running = start("test_user", PATIENT, 2).await;
    let first = running.send("").await;
    let mut stream = running.send("GET /stream HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    running.pieces.send(Ok(Bytes::from_static(b"first"))).await.unwrap();
    read_until(&mut stream, "first").await;
    assert_eq!(closed(running.send(GET).await).await, "", "both places are taken");
    drop(first);
    let served = async {
        while !closed(running.send(&GET.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n")).await)
            .await
            .ends_with("ok")
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, served).await.unwrap();
    running.pieces.send(Ok(Bytes::from_static(b"second"))).await.unwrap();
    read_until(&mut stream, "second").await;
    let metrics = lifecycle::metrics::encode();
    assert!(metrics.contains("listener=\"test_user\",reason=\"peer_share\""), "{metrics}");
}

#[tokio::test]
async fn at_the_end_requests_in_flight_end_first() {
    let running = start("test_end", PATIENT, 10).await;
    let mut client = running.send("GET /stream HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    running.pieces.send(Ok(Bytes::from_static(b"first"))).await.unwrap();
    read_until(&mut client, "first").await;
    let idle = running.send("").await;
    running.token.cancel();
    closed(idle).await;
    running.pieces.send(Ok(Bytes::from_static(b"last"))).await.unwrap();
    read_until(&mut client, "last").await;
    drop(running.pieces);
    tokio::time::timeout(DEADLINE, running.task).await.unwrap().unwrap();
    assert!(TcpStream::connect(running.address).await.is_err());
}
