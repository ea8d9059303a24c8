//! Questions in, answers out, over UDP and TCP.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use lifecycle::Scope;
use lifecycle::connections::{Limits, Reason, Slot, Table};
use network::Network;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::forward::{Forwarder, Transport};
use super::zone;
use crate::metrics;
use crate::model::Model;
use crate::source::Source;

/// Questions that wait for the host's servers, and connections of clients: a quarter of them for one client.
const IN_FLIGHT: Limits = Limits { total: 512, group: 128, peer: 128 };
const CONNECTIONS: Limits = Limits { total: 256, group: 64, peer: 64 };
const IDLE_MAX: Duration = Duration::from_secs(10);
/// What a client without EDNS takes over UDP (RFC 1035, 4.2.1), and what we send at most (RFC 9715).
const PLAIN_BYTES_MAX: usize = 512;
const UDP_BYTES_MAX: u16 = 1232;

/// What both transports share.
#[derive(Debug)]
pub(crate) struct Server {
    model: Arc<RwLock<Model>>,
    forwarder: Forwarder,
    in_flight: Table<Source, ()>,
    connections: Table<Source, ()>,
    scope: Scope,
}

impl Server {
    pub(crate) fn new(
        model: Arc<RwLock<Model>>,
        network: Option<Network>,
        resolv_conf: PathBuf,
        scope: Scope,
    ) -> Arc<Self> {
        Arc::new(Self {
            model,
            forwarder: Forwarder { network, resolv_conf },
            in_flight: Table::displacing_busy("proxy_dns_forwarded_questions", IN_FLIGHT),
            connections: Table::displacing_busy("proxy_dns_tcp_connections", CONNECTIONS),
            scope,
        })
    }

    /// The zone's answer at once, or the message to ask the host's servers. `None`: no question at all.
    fn look_up(&self, question: &[u8], transport: Transport) -> Option<Result<Vec<u8>, Message>> {
        let request = Message::from_vec(question).ok()?;
        if request.metadata.message_type != MessageType::Query {
            return None;
        }
        let model = self.model.read().unwrap_or_else(PoisonError::into_inner);
        Some(match zone::respond(&model, &request) {
            Some(response) => {
                metrics::count(&metrics::OWN.dns_own);
                Ok(encode(&response, &request, transport)?)
            }
            None => Err(request),
        })
    }

    async fn forward(&self, question: &[u8], request: &Message, transport: Transport) -> Option<Vec<u8>> {
        metrics::count(&metrics::OWN.dns_forwarded);
        if let Some(answer) = self.forwarder.ask(question, transport).await {
            return Some(answer);
        }
        metrics::count(&metrics::OWN.dns_failed);
        failure(request)
    }
}

/// The host's servers could not be asked.
fn failure(request: &Message) -> Option<Vec<u8>> {
    let metadata = &request.metadata;
    let mut response = Message::error_msg(metadata.id, metadata.op_code, ResponseCode::ServFail);
    response.metadata.recursion_desired = metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.queries.clone_from(&request.queries);
    response.to_vec().ok()
}

fn encode(response: &Message, request: &Message, transport: Transport) -> Option<Vec<u8>> {
    let bytes = response.to_vec().ok()?;
    let max = match (&request.edns, transport) {
        (_, Transport::Tcp) => usize::from(u16::MAX),
        (None, Transport::Udp) => PLAIN_BYTES_MAX,
        (Some(edns), Transport::Udp) => {
            usize::from(edns.max_payload().min(UDP_BYTES_MAX)).max(PLAIN_BYTES_MAX)
        }
    };
    if bytes.len() <= max { Some(bytes) } else { response.truncate().to_vec().ok() }
}

/// Answers datagrams until the scope ends.
pub(crate) async fn serve_udp(server: Arc<Server>, socket: OwnedFd) -> io::Result<()> {
    let socket = std::net::UdpSocket::from(socket);
    socket.set_nonblocking(true)?;
    let socket = Arc::new(UdpSocket::from_std(socket)?);
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let (count, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // A client that is gone shows as an error of the socket (ICMP).
            Err(error) => {
                tracing::debug!(%error, "receive a question");
                continue;
            }
        };
        match server.look_up(&buffer[..count], Transport::Udp) {
            None => {}
            Some(Ok(answer)) => answer_udp(&socket, &answer, client).await,
            Some(Err(request)) => {
                let Ok(held) = server.in_flight.admit(source(client), ()) else {
                    metrics::count(&metrics::OWN.dns_failed);
                    if let Some(answer) = failure(&request) {
                        answer_udp(&socket, &answer, client).await;
                    }
                    continue;
                };
                let question = buffer[..count].to_vec();
                held.busy();
                let (server, socket) = (Arc::clone(&server), Arc::clone(&socket));
                server.scope.clone().spawn("dns-forward", async move {
                    let answer = tokio::select! {
                        answer = server.forward(&question, &request, Transport::Udp) => answer,
                        () = held.displaced() => failure(&request),
                    };
                    if let Some(answer) = answer {
                        answer_udp(&socket, &answer, client).await;
                    }
                });
            }
        }
    }
}

async fn answer_udp(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(answer, client).await {
        tracing::debug!(%error, %client, "send an answer");
    }
}

/// Answers connections until the scope ends.
pub(crate) async fn serve_tcp(server: Arc<Server>, listener: OwnedFd) -> io::Result<()> {
    let listener = std::net::TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    loop {
        let Ok((stream, client)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let Ok(held) = server.connections.admit(source(client), ()) else { continue };
        let serving = Arc::clone(&server);
        server.scope.spawn("dns-connection", async move {
            let ended = tokio::select! {
                ended = converse(&serving, stream, &held) => ended,
                () = held.displaced() => Ok(()),
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "answer questions over TCP");
            }
        });
    }
}

/// The Pod that asks.
fn source(client: SocketAddr) -> Source {
    Source::Address(client.ip().to_canonical())
}

async fn converse(server: &Server, mut stream: TcpStream, held: &Slot<Source, ()>) -> io::Result<()> {
    loop {
        let length = match tokio::time::timeout(IDLE_MAX, stream.read_u16()).await {
            Ok(Ok(length)) => length,
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                held.count_closed(Reason::Idle);
                return Ok(());
            }
        };
        held.busy();
        let mut question = vec![0; usize::from(length)];
        tokio::time::timeout(IDLE_MAX, stream.read_exact(&mut question))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let answer = match server.look_up(&question, Transport::Tcp) {
            None => return Ok(()),
            Some(Ok(answer)) => Some(answer),
            Some(Err(request)) => server.forward(&question, &request, Transport::Tcp).await,
        };
        let Some(answer) = answer else { return Ok(()) };
        stream.write_u16(answer.len() as u16).await?;
        stream.write_all(&answer).await?;
        held.idle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{OpCode, Query};
    use hickory_proto::rr::{Name, RecordType};

    fn question(name: &str) -> Vec<u8> {
        let mut message = Message::new(99, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    async fn ask(at: SocketAddr, name: &str) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&question(name), at).await.unwrap();
        let mut buffer = [0; 1500];
        let received = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await;
        Message::from_vec(&buffer[..received.unwrap().unwrap()]).unwrap()
    }

    #[tokio::test]
    async fn own_names_are_answered_and_others_forwarded() {
        // The host's server: says back what it was asked, as an answer.
        let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let resolv_conf = folder.path().join("resolv.conf");
        std::fs::write(&resolv_conf, format!("nameserver {}\n", upstream.local_addr().unwrap())).unwrap();
        let scope = Scope::new("test");
        scope.spawn("upstream", async move {
            let mut buffer = [0; 1500];
            while let Ok((count, client)) = upstream.recv_from(&mut buffer).await {
                let mut message = Message::from_vec(&buffer[..count]).unwrap();
                message.metadata.message_type = MessageType::Response;
                upstream.send_to(&message.to_vec().unwrap(), client).await.unwrap();
            }
        });
        let server = Server::new(Arc::default(), None, resolv_conf.clone(), scope.clone());
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        let serving = Arc::clone(&server);
        scope.spawn("udp", async move {
            let _ = serve_udp(serving, socket.into()).await;
        });
        assert_eq!(ask(at, "x.cluster.local.").await.metadata.response_code, ResponseCode::NXDomain);
        let answer = ask(at, "example.com.").await;
        assert_eq!((answer.metadata.response_code, answer.metadata.id), (ResponseCode::NoError, 99));
        std::fs::write(&resolv_conf, "").unwrap();
        assert_eq!(ask(at, "example.com.").await.metadata.response_code, ResponseCode::ServFail);

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        scope.spawn("tcp", async move {
            let _ = serve_tcp(server, listener.into()).await;
        });
        let mut stream = TcpStream::connect(at).await.unwrap();
        let question = question("y.cluster.local.");
        stream.write_u16(question.len() as u16).await.unwrap();
        stream.write_all(&question).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        scope.shutdown(Duration::from_secs(5)).await;
    }
}
