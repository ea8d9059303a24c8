//! rtnetlink: links, addresses and routes (`man 7 rtnetlink`).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use crate::cidr::Cidr;
use crate::netlink::{Family, Message, Socket, attributes, flag};

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u16 = 10;

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const SET_LINK: u16 = 19;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;

const LINK_NAME: u16 = 3;
const LINK_INFO: u16 = 18;
const LINK_AF_SPEC: u16 = 26;
const LINK_NETNS_FD: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;
const INET6_ADDRESS_GENERATION: u16 = 8;
const ADDRESS_GENERATION_NONE: u8 = 1;
const UP: u32 = 1;

const ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;

const ROUTE_DESTINATION: u16 = 1;
const ROUTE_LINK: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;
const ROUTE_SOURCE: u16 = 7;
const PROTOCOL_STATIC: u8 = 4;
const TABLE_MAIN: u8 = 254;
const TABLE_LOCAL: u8 = 255;

/// The index of the loopback link, in every namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// What a route does, and where it is looked up.
#[derive(Clone, Copy)]
pub(crate) enum Route {
    /// The whole range is this namespace's own: consulted before everything else.
    Local,
    /// Own, but only for what no other route of the main table fits better.
    LocalLast,
    /// A neighbour on the link; packets to it carry `source`, if given.
    Link { source: Option<Ipv4Addr> },
    /// Behind a neighbour.
    Gateway(Ipv4Addr),
}

/// The rtnetlink socket of one namespace. Every operation can be repeated.
#[derive(Debug)]
pub(crate) struct Router {
    socket: Socket,
}

impl Router {
    /// For the calling thread's namespace.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open(Family::Route)? })
    }

    /// The link's index, if there is such a link.
    pub(crate) fn link(&self, name: &str) -> io::Result<Option<u32>> {
        match rustix::net::netdevice::name_to_index(self.socket.as_fd(), name) {
            Ok(index) => Ok(Some(index)),
            Err(rustix::io::Errno::NODEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a veth pair: one end here, the other in `peer_namespace`.
    pub(crate) fn create_veth(
        &mut self,
        name: &str,
        peer: &str,
        peer_namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut message = Message::new(NEW_LINK, flag::CREATE | flag::EXCLUSIVE, &link_header(0, 0));
        message.string(LINK_NAME, name);
        message.nest(LINK_INFO, |info| {
            info.string(INFO_KIND, "veth");
            info.nest(INFO_DATA, |data| {
                data.nest(VETH_PEER, |link| {
                    link.raw(&link_header(0, 0));
                    link.string(LINK_NAME, peer);
                    link.number(LINK_NETNS_FD, peer_namespace.as_raw_fd() as u32);
                });
            });
        });
        self.socket.call_one(message)
    }

    /// Deletes the link, and with a veth its peer. One that is not there is no error.
    pub(crate) fn delete_link(&mut self, index: u32) -> io::Result<()> {
        let message = Message::new(DELETE_LINK, 0, &link_header(index, 0));
        match self.socket.call_one(message) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(()),
            other => other,
        }
    }

    /// Brings the link up, first with no IPv6 address of its own (there is nothing it could reach), then gives
    /// it `address` and the routes: one message to the kernel for all.
    pub(crate) fn configure(
        &mut self,
        index: u32,
        address: Option<Ipv4Addr>,
        routes: &[(Cidr, Route)],
    ) -> io::Result<()> {
        let mut messages = Vec::with_capacity(routes.len() + 3);
        if index != LOOPBACK {
            let mut no_ipv6 = Message::new(SET_LINK, 0, &link_header(index, 0));
            no_ipv6.nest(LINK_AF_SPEC, |families| {
                families.nest(AF_INET6, |ipv6| {
                    ipv6.attribute(INET6_ADDRESS_GENERATION, &[ADDRESS_GENERATION_NONE]);
                });
            });
            messages.push(no_ipv6);
        }
        messages.push(Message::new(SET_LINK, 0, &link_header(index, UP)));
        messages.extend(address.map(|address| address_message(index, address)));
        messages.extend(routes.iter().map(|(range, route)| route_message(index, range, *route)));
        let first_may_fail = usize::from(index != LOOPBACK);
        for (place, result) in self.socket.call(&mut messages)?.into_iter().enumerate() {
            // A kernel without IPv6 refuses the first: just as well.
            if place >= first_may_fail {
                result?;
            }
        }
        Ok(())
    }

    /// The ranges that this namespace has routes to, but for the default route and loopback.
    pub(crate) fn ranges(&mut self) -> io::Result<Vec<Cidr>> {
        let mut header = [0; 12];
        header[0] = AF_INET;
        let mut ranges = Vec::new();
        self.socket.dump(Message::new(GET_ROUTE, 0, &header), |payload| {
            ranges.extend(destination(payload));
        })?;
        ranges.retain(|range| range.prefix() > 0 && !range.address().is_loopback());
        Ok(ranges)
    }
}

fn destination(payload: &[u8]) -> Option<Cidr> {
    let (header, rest) = payload.split_first_chunk::<12>()?;
    let address = attributes(rest).into_iter().find(|(kind, _)| *kind == ROUTE_DESTINATION)?.1;
    (header[0] == AF_INET).then_some(())?;
    let octets: [u8; 4] = address.try_into().ok()?;
    Some(Cidr::new(Ipv4Addr::from(octets), header[1]))
}

/// `struct ifinfomsg`
fn link_header(index: u32, up: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = AF_UNSPEC;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&up.to_ne_bytes());
    header[12..16].copy_from_slice(&up.to_ne_bytes());
    header
}

/// `struct ifaddrmsg`
fn address_message(index: u32, address: Ipv4Addr) -> Message {
    let mut header = [AF_INET, 32, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(NEW_ADDRESS, flag::CREATE | flag::REPLACE, &header);
    message.attribute(ADDRESS_LOCAL, &address.octets());
    message.attribute(ADDRESS, &address.octets());
    message
}

/// `struct rtmsg`
fn route_message(index: u32, range: &Cidr, route: Route) -> Message {
    const UNICAST: u8 = 1;
    const LOCAL: u8 = 2;
    const SCOPE_UNIVERSE: u8 = 0;
    const SCOPE_LINK: u8 = 253;
    const SCOPE_HOST: u8 = 254;
    let (table, scope, kind) = match route {
        Route::Local => (TABLE_LOCAL, SCOPE_HOST, LOCAL),
        Route::LocalLast => (TABLE_MAIN, SCOPE_HOST, LOCAL),
        Route::Link { .. } => (TABLE_MAIN, SCOPE_LINK, UNICAST),
        Route::Gateway(_) => (TABLE_MAIN, SCOPE_UNIVERSE, UNICAST),
    };
    let header = [AF_INET, range.prefix(), 0, 0, table, PROTOCOL_STATIC, scope, kind, 0, 0, 0, 0];
    let mut message = Message::new(NEW_ROUTE, flag::CREATE | flag::REPLACE, &header);
    if range.prefix() > 0 {
        message.attribute(ROUTE_DESTINATION, &range.address().octets());
    }
    message.number(ROUTE_LINK, index);
    match route {
        Route::Gateway(gateway) => message.attribute(ROUTE_GATEWAY, &gateway.octets()),
        Route::Link { source: Some(source) } => message.attribute(ROUTE_SOURCE, &source.octets()),
        Route::Link { source: None } | Route::Local | Route::LocalLast => {}
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_s_destination_is_read_back() {
        let mut payload = vec![AF_INET, 24, 0, 0, TABLE_MAIN, 0, 0, 1, 0, 0, 0, 0];
        payload.extend_from_slice(&[8, 0, 1, 0, 10, 1, 2, 0]);
        assert_eq!(destination(&payload), Some("10.1.2.0/24".parse().unwrap()));
        assert_eq!(destination(&payload[..12]), None);
        assert_eq!(link_header(7, UP)[4..8], 7u32.to_ne_bytes());
    }
}
