//! Whether an address is this machine's own, by the kernel's word at the moment when it is asked (`man 7 rtnetlink`,
//! `RTM_GETROUTE`).

use std::io;
use std::net::Ipv4Addr;

use crate::netlink::{Family, Message, Socket};

const AF_INET: u8 = 2;

const GET_ROUTE: u16 = 26;
const ROUTE_DESTINATION: u16 = 1;

/// Where a packet would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To this machine itself.
    Own,
    /// To everybody on a link, or in a group.
    Many,
    /// Elsewhere, or nowhere.
    Elsewhere,
}

/// Looks up routes in the namespace in which it was opened.
#[derive(Debug)]
pub struct Routes {
    socket: Socket,
}

impl Routes {
    /// For the calling thread's namespace.
    pub fn here() -> io::Result<Self> {
        Ok(Self { socket: Socket::open(Family::Route)? })
    }

    /// What the kernel would do with a packet to that address now.
    pub fn destination(&mut self, to: Ipv4Addr) -> io::Result<Destination> {
        const LOCAL: u8 = 2;
        const BROADCAST: u8 = 3;
        const MULTICAST: u8 = 5;
        // `struct rtmsg`
        let mut header = [0; 12];
        (header[0], header[1]) = (AF_INET, 32);
        let mut message = Message::new(GET_ROUTE, 0, &header);
        message.attribute(ROUTE_DESTINATION, &to.octets());
        match self.socket.get(message, |payload| payload.get(7).copied()) {
            Ok(Some(LOCAL)) => Ok(Destination::Own),
            Ok(Some(BROADCAST | MULTICAST)) => Ok(Destination::Many),
            Ok(Some(_)) => Ok(Destination::Elsewhere),
            Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if is_unreachable(&error) => Ok(Destination::Elsewhere),
            Err(error) => Err(error),
        }
    }
}

/// No route leads there, or one that forbids it: then nothing leads to this machine either.
fn is_unreachable(error: &io::Error) -> bool {
    use io::ErrorKind::{HostUnreachable, InvalidInput, NetworkUnreachable, PermissionDenied};
    matches!(error.kind(), HostUnreachable | NetworkUnreachable | PermissionDenied | InvalidInput)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_told_from_others() {
        let mut routes = Routes::here().unwrap();
        let mut to = |text: &str| routes.destination(text.parse().unwrap()).unwrap();
        assert_eq!(to("127.0.0.1"), Destination::Own);
        assert_eq!(to("127.9.8.7"), Destination::Own);
        // RFC 5737: nobody's.
        assert_eq!(to("203.0.113.77"), Destination::Elsewhere);
    }
}
