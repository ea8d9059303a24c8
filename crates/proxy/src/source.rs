//! Whose a connection is: the unit in which places are shared out.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use network::{Network, Owners};

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// A Pod, or another machine; IPv6 by its /64, of which one machine has all.
    Address(IpAddr),
    /// A user of this machine.
    User(u32),
    /// A process of this machine that has left the connection to the kernel; all of these share.
    Left,
}

/// Tells whose connections are.
#[derive(Debug)]
pub(crate) struct Sources {
    owners: Mutex<Owners>,
}

impl Sources {
    pub(crate) fn new(network: Option<&Network>) -> io::Result<Self> {
        let owners = network.map_or_else(Owners::open, Network::owners)?;
        Ok(Self { owners: Mutex::new(owners) })
    }

    /// The source of a connection from `peer` to a listener at `local`.
    pub(crate) fn of(&self, peer: SocketAddr, local: SocketAddr) -> Source {
        let ip = peer.ip().to_canonical();
        if !ip.is_loopback() && ip != local.ip() {
            return Source::Address(network_of(ip));
        }
        // Who listens on all addresses was reached on the one that a local client dials itself from.
        let reached = if local.ip().is_unspecified() { SocketAddr::new(ip, local.port()) } else { local };
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        match owners.uid(peer, reached) {
            Ok(Some(user)) => Source::User(user),
            Ok(None) => Source::Left,
            Err(error) => {
                tracing::warn!(%error, %peer, "ask whose a connection is");
                Source::Left
            }
        }
    }
}

fn network_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_clients_are_users_and_others_are_addresses() {
        let sources = Sources::new(None).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(local).unwrap();
        let (_server, peer) = listener.accept().unwrap();
        let user = rustix::process::geteuid().as_raw();
        assert_eq!(sources.of(peer, local), Source::User(user));
        let everywhere = SocketAddr::from(([0, 0, 0, 0], local.port()));
        assert_eq!(sources.of(peer, everywhere), Source::User(user));
        drop(client);
        assert_eq!(sources.of(peer, local), Source::Left);
        let at = |ip: &str| sources.of(SocketAddr::new(ip.parse().unwrap(), 9), local);
        assert_eq!(at("192.0.2.1"), Source::Address("192.0.2.1".parse().unwrap()));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:2"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
    }
}
