//! Who listens where: `sock_diag` (`man 7 sock_diag`), and `/proc` for the process behind a socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::netlink::{Family, Message, Socket, attributes, u32_at};

const BY_FAMILY: u16 = 20;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const STATE_UNCONNECTED: u32 = 1 << 7;
const STATE_LISTEN: u32 = 1 << 10;
const V6_ONLY: u16 = 11;
const DIAG_LEN: usize = 72;

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// As the Kubernetes API writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// A socket that waits for connections or, with UDP, for datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listening {
    pub protocol: Protocol,
    pub addr: IpAddr,
    pub port: u16,
    /// An IPv6 socket that takes no IPv4 connections.
    pub v6_only: bool,
}

impl Listening {
    /// Whether nobody outside the namespace can reach it over IPv4.
    pub fn loopback_only(&self) -> bool {
        self.addr.is_loopback() || self.v6_only
    }
}

struct Found {
    listening: Listening,
    inode: u32,
}

/// What listens in the calling thread's namespace; sorted.
pub(crate) fn listening() -> io::Result<Vec<Listening>> {
    let mut found: Vec<Listening> = sockets()?.into_iter().map(|found| found.listening).collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn sockets() -> io::Result<Vec<Found>> {
    let mut socket = Socket::open(Family::SockDiag)?;
    let mut found = Vec::new();
    for (protocol, number, state) in
        [(Protocol::Tcp, 6, STATE_LISTEN), (Protocol::Udp, 17, STATE_UNCONNECTED)]
    {
        for family in [AF_INET, AF_INET6] {
            // `struct inet_diag_req_v2`
            let mut request = [0; 56];
            request[0] = family;
            request[1] = number;
            request[4..8].copy_from_slice(&state.to_ne_bytes());
            socket.dump(Message::new(BY_FAMILY, 0, &request), |payload| {
                found.extend(parse(payload, protocol));
            })?;
        }
    }
    Ok(found)
}

/// `struct inet_diag_msg`
fn parse(payload: &[u8], protocol: Protocol) -> Option<Found> {
    let (message, rest) = payload.split_first_chunk::<DIAG_LEN>()?;
    let port = u16::from_be_bytes([message[4], message[5]]);
    let source: &[u8; 16] = message[8..24].first_chunk()?;
    let addr = match message[0] {
        AF_INET => IpAddr::V4(Ipv4Addr::new(source[0], source[1], source[2], source[3])),
        _ => IpAddr::V6(Ipv6Addr::from(*source)),
    };
    let v6_only = message[0] == AF_INET6
        && attributes(rest).iter().any(|(kind, value)| *kind == V6_ONLY && value.first() == Some(&1));
    let listening = Listening { protocol, addr, port, v6_only };
    Some(Found { listening, inode: u32_at(message, 68) })
}

/// A process that listens on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub pid: u32,
    /// The program's short name, as `ps` shows it.
    pub name: String,
}

/// Who listens on `port` in the calling thread's namespace. `None` if nobody does, or nobody whose `/proc` can be
/// read.
pub fn holder(protocol: Protocol, port: u16) -> io::Result<Option<Holder>> {
    let found = sockets()?;
    let held = found.iter().find(|found| {
        found.listening.port == port && found.listening.protocol == protocol && found.inode != 0
    });
    let Some(held) = held else { return Ok(None) };
    let link = format!("socket:[{}]", held.inode);
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if has_descriptor(&entry.path().join("fd"), &link) {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Ok(Some(Holder { pid, name: name.trim_end().to_owned() }));
        }
    }
    Ok(None)
}

/// Tells whose socket the other end of a local connection is, one question a connection.
#[derive(Debug)]
pub struct Owners {
    socket: Socket,
}

impl Owners {
    /// For connections of the calling thread's namespace.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open(Family::SockDiag)? })
    }

    /// The user of the TCP socket at `local` that is connected to `remote`. `None` if there is none, or nobody holds
    /// it open any more: the kernel would call it root's.
    pub fn uid(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
        // `struct inet_diag_req_v2` with a whole `struct inet_diag_sockid`
        let mut request = [0; 56];
        request[0] = if local.is_ipv4() { AF_INET } else { AF_INET6 };
        request[1] = 6;
        request[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        request[8..10].copy_from_slice(&local.port().to_be_bytes());
        request[10..12].copy_from_slice(&remote.port().to_be_bytes());
        for (at, address) in [(12, local.ip()), (28, remote.ip())] {
            match address {
                IpAddr::V4(address) => request[at..at + 4].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => request[at..at + 16].copy_from_slice(&address.octets()),
            }
        }
        // INET_DIAG_NOCOOKIE
        request[48..56].copy_from_slice(&[0xff; 8]);
        let answer = self.socket.get(Message::new(BY_FAMILY, 0, &request), |payload| {
            let message = payload.first_chunk::<DIAG_LEN>()?;
            (u32_at(message, 68) != 0).then(|| u32_at(message, 64))
        });
        match answer {
            Ok(uid) => Ok(uid),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn has_descriptor(folder: &Path, link: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries
        .flatten()
        .any(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == link))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_with_its_process() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = listening().unwrap();
        let ours = found.iter().find(|found| found.port == port).unwrap();
        assert_eq!(ours.protocol, Protocol::Tcp);
        assert!(ours.loopback_only());
        let holder = holder(Protocol::Tcp, port).unwrap().unwrap();
        assert_eq!(holder.pid, std::process::id());
    }

    #[test]
    fn the_other_end_of_a_connection_is_its_users() {
        let mut owners = Owners::open().unwrap();
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(any) else { continue };
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (ours, theirs) = (client.peer_addr().unwrap(), client.local_addr().unwrap());
            assert_eq!(owners.uid(theirs, ours).unwrap(), Some(rustix::process::getuid().as_raw()));
            let (_accepted, _) = listener.accept().unwrap();
            drop(client);
            assert_eq!(owners.uid(theirs, ours).unwrap(), None, "it is nobody's now");
        }
    }

    #[test]
    fn a_socket_for_both_families_is_not_loopback_only() {
        let listener = std::net::TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = listening().unwrap();
        let ours = found.iter().find(|found| found.port == port).unwrap();
        assert!(!ours.v6_only && !ours.loopback_only());
    }
}
