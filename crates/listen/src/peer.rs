//! Who is at the other end: on loopback the user whose socket it is, elsewhere the address.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Whose share a connection counts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A user of this machine.
    User(u32),
    /// A local client whose user the kernel does not tell: all of them share one share.
    Local,
    /// A client elsewhere.
    Address(IpAddr),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::User(uid) => write!(f, "user {uid}"),
            Peer::Local => f.write_str("a local client"),
            Peer::Address(address) => address.fmt(f),
        }
    }
}

/// Asks the kernel who holds the other end of a connection.
pub(crate) struct Peers {
    owners: Option<network::Owners>,
}

impl Peers {
    pub(crate) fn new() -> Self {
        let owners = network::Owners::open();
        if let Err(error) = &owners {
            tracing::warn!(%error, "the kernel does not tell users of connections: local clients share one share");
        }
        Self { owners: owners.ok() }
    }

    pub(crate) fn of(&mut self, stream: &std::net::TcpStream, address: SocketAddr) -> Peer {
        let ip = address.ip().to_canonical();
        if !ip.is_loopback() {
            return Peer::Address(ip);
        }
        let owner = self.owners.as_mut().zip(stream.local_addr().ok());
        // A client that has closed its socket already has no user any more.
        match owner.and_then(|(owners, ours)| owners.uid(address, ours).ok().flatten()) {
            Some(uid) => Peer::User(uid),
            None => Peer::Local,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_local_client_is_its_user() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, address) = listener.accept().await.unwrap();
        let stream = stream.into_std().unwrap();
        let mut peers = Peers::new();
        assert_eq!(peers.of(&stream, address), Peer::User(rustix::process::getuid().as_raw()));
        let elsewhere: SocketAddr = "192.0.2.1:9".parse().unwrap();
        assert_eq!(peers.of(&stream, elsewhere), Peer::Address(elsewhere.ip()));
        drop(client);
        assert_eq!(peers.of(&stream, address), Peer::Local, "who has left is nobody, and not root");
    }
}
