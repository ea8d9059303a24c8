//! The Listening gate: finds out on which ports a Pod's program listens, as soon as it does.
//!
//! The kernel sends no word of a new listening socket, so it is looked for: 5 ms after the start, then ever more
//! seldom. Ports that come later are found too, at the latest after [`LONGEST`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::observed::{Gate, Port};
use crate::ports::{Listening, Sandboxes, Side};

const FIRST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_secs(30);
/// How long a port may take to answer as HTTP does.
const ANSWER: Duration = Duration::from_millis(250);
/// Ports from here on are handed out by the kernel: a UDP socket there is a client's.
const EPHEMERAL_FIRST: u16 = 32_768;
/// Sockets of one Pod that are looked at; the lowest ports come first.
const SOCKETS_MAX: usize = 128;
/// What every HTTP/1.1 server answers itself, without the program's handlers seeing it (RFC 9110, 9.3.7).
const QUESTION: &[u8] =
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nUser-Agent: gantry\r\nConnection: close\r\n\r\n";

/// Reports every change of what listens, until dropped.
pub async fn watch(sandboxes: Arc<dyn Sandboxes>, uid: String, ip: IpAddr, changes: mpsc::Sender<Gate>) {
    let mut wait = FIRST;
    let mut seen: Vec<Listening> = Vec::new();
    loop {
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST);
        let Ok(mut found) = sandboxes.listening(&uid).await else { continue };
        found.retain(|socket| !socket.udp || socket.port < EPHEMERAL_FIRST);
        found.sort();
        found.dedup();
        // A program decides how many there are: each is asked, and told in the Pod's annotation.
        found.truncate(SOCKETS_MAX);
        if found == seen {
            continue;
        }
        let first = !seen.iter().any(|socket| !socket.address.is_loopback());
        seen = found;
        let gate = classify(&*sandboxes, ip, &seen).await;
        if first && matches!(gate, Gate::Open(_)) {
            // Programs open their ports one after the other: look again soon.
            wait = FIRST;
        }
        if changes.send(gate).await.is_err() {
            return;
        }
    }
}

async fn classify(sandboxes: &dyn Sandboxes, ip: IpAddr, sockets: &[Listening]) -> Gate {
    let ports = futures::future::join_all(sockets.iter().map(|socket| async move {
        let loopback = socket.address.is_loopback();
        let http = !loopback && !socket.udp && speaks_http(sandboxes, SocketAddr::new(ip, socket.port)).await;
        let protocol = if socket.udp { "UDP" } else { "TCP" }.to_owned();
        Port { port: socket.port, protocol, address: socket.address, http, loopback }
    }));
    of(ports.await)
}

/// The gate that these ports amount to: HTTP first, what nobody reaches last, the same port once.
fn of(mut ports: Vec<Port>) -> Gate {
    ports.sort_by_key(|port| (port.loopback, !port.http, port.protocol.clone(), port.port));
    let mut seen = std::collections::BTreeSet::new();
    ports.retain(|port| seen.insert((port.port, port.protocol.clone())));
    match ports.first() {
        None => Gate::Closed,
        Some(first) if first.loopback => Gate::LoopbackOnly(ports),
        Some(_) => Gate::Open(ports),
    }
}

async fn speaks_http(sandboxes: &dyn Sandboxes, address: SocketAddr) -> bool {
    let exchange = async {
        let mut stream = sandboxes.dial(Side::Router, address).await?;
        stream.write_all(QUESTION).await?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(&answer == b"HTTP/")
    };
    matches!(tokio::time::timeout(ANSWER, exchange).await, Ok(Ok(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(port: u16, http: bool, address: &str) -> Port {
        let address: IpAddr = address.parse().unwrap();
        Port { port, protocol: "TCP".to_owned(), address, http, loopback: address.is_loopback() }
    }

    #[test]
    fn http_comes_first_and_loopback_does_not_open() {
        let Gate::Open(ports) =
            of(vec![port(22, false, "::"), port(8080, true, "::"), port(6060, false, "127.0.0.1")])
        else {
            panic!("closed")
        };
        assert_eq!(ports.iter().map(|port| port.port).collect::<Vec<_>>(), [8080, 22, 6060]);
        assert!(matches!(of(vec![port(8080, false, "127.0.0.1")]), Gate::LoopbackOnly(_)));
        assert_eq!(of(Vec::new()), Gate::Closed);
    }

    #[test]
    fn the_annotation_is_what_the_contract_says() {
        let text = serde_json::to_string(&[port(8080, true, "::")]).unwrap();
        assert_eq!(text, r#"[{"port":8080,"protocol":"TCP","address":"::","http":true}]"#);
    }
}
