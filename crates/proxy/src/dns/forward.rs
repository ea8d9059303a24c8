//! Questions that are not ours, to the host's servers, from the host's namespace.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use network::{Network, Place};
use socket2::{Domain, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, UdpSocket};

const SERVERS_MAX: usize = 3;
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: usize = 65_535;

/// How the question came, and so how it is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

#[derive(Debug)]
pub(crate) struct Forwarder {
    /// `None` in tests: everything is in one namespace.
    pub(crate) network: Option<Network>,
    /// `/etc/resolv.conf`
    pub(crate) resolv_conf: PathBuf,
}

impl Forwarder {
    /// The first server's answer. `question` is a whole message; the answer has its identifier.
    pub(crate) async fn ask(&self, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        for server in servers(&std::fs::read_to_string(&self.resolv_conf).ok()?) {
            let asked = async {
                match transport {
                    Transport::Udp => self.ask_udp(server, question).await,
                    Transport::Tcp => self.ask_tcp(server, question).await,
                }
            };
            match tokio::time::timeout(ANSWER_WITHIN, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "ask the host's name server"),
                Err(_) => tracing::debug!(%server, "the host's name server did not answer in time"),
            }
        }
        None
    }

    fn socket(&self, server: SocketAddr, kind: Type) -> io::Result<socket2::Socket> {
        let domain = Domain::for_address(server);
        let socket = match &self.network {
            Some(network) => network.socket(&Place::Host, domain, kind)?,
            None => socket2::Socket::new(domain, kind, None)?,
        };
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// A socket of its own, and so a port of its own, for each question: an answer is hard to forge.
    async fn ask_udp(&self, server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let socket = self.socket(server, Type::DGRAM)?;
        socket.connect(&server.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        socket.send(question).await?;
        let mut answer = vec![0; ANSWER_BYTES_MAX];
        loop {
            let count = socket.recv(&mut answer).await?;
            if answer[..count].get(..2) == question.get(..2) && count >= 12 {
                answer.truncate(count);
                return Ok(answer);
            }
        }
    }

    async fn ask_tcp(&self, server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let socket = self.socket(server, Type::STREAM)?;
        let mut stream = TcpSocket::from_std_stream(socket.into()).connect(server).await?;
        stream.write_u16(question.len() as u16).await?;
        stream.write_all(question).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }
}

/// The `nameserver` lines (`man 5 resolv.conf`).
fn servers(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let found = (words.next() == Some("nameserver")).then(|| words.next())??;
        // Tests name a port; resolv.conf has none.
        found.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)).or_else(|_| found.parse()).ok()
    };
    text.lines().filter_map(address).take(SERVERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_from_resolv_conf() {
        let text =
            "# nameserver 1.1.1.1\nsearch x\nnameserver 192.0.2.1\nnameserver\t2001:db8::1 \nnameserver x\n";
        let found: Vec<String> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[2001:db8::1]:53"]);
    }
}
