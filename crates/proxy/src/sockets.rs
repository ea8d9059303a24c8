//! The proxy's listening sockets: taken back from the daemon, or bound where they belong.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use network::{Network, Place, Protocol};
use socket2::{Domain, Socket, Type};

use crate::handover::Holder;

const BACKLOG: i32 = 4096;

/// Where a socket listens; also its name in the hand-over.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Spot {
    /// In the router namespace, not in the host's.
    pub(crate) inside: bool,
    pub(crate) protocol: Protocol,
    pub(crate) address: SocketAddr,
}

impl Spot {
    pub(crate) fn name(&self) -> String {
        let place = if self.inside { "router" } else { "host" };
        format!("{place}/{}/{}", self.protocol.name().to_ascii_lowercase(), self.address)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Sockets {
    pub(crate) network: Option<Network>,
    pub(crate) holder: Holder,
}

impl Sockets {
    /// A listening socket, of which the daemon gets a duplicate. One that is open already is used on.
    pub(crate) fn open(&self, spot: &Spot) -> io::Result<OwnedFd> {
        let name = spot.name();
        if let Some(socket) = self.holder.owned(&name) {
            return Ok(socket);
        }
        let socket = match self.holder.take_back(&name) {
            Some(socket) => socket,
            None => self.bind(spot)?,
        };
        self.holder.own(&name, &socket)?;
        Ok(socket)
    }

    /// The spot is given up, by the daemon too. It is free at once, whoever still holds a duplicate.
    pub(crate) fn close(&self, spot: &Spot) {
        if spot.protocol == Protocol::Tcp
            && let Some(socket) = self.holder.owned(&spot.name())
        {
            // A listener that is shut down listens no more: who connects is refused and not left waiting.
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        }
        self.holder.disown(&spot.name());
    }

    fn bind(&self, spot: &Spot) -> io::Result<OwnedFd> {
        let (address, protocol) = (spot.address, spot.protocol);
        match &self.network {
            Some(network) => {
                let place = if spot.inside { Place::Router } else { Place::Host };
                network.run_in(&place, move || bind(address, protocol))?
            }
            None => bind(address, protocol),
        }
    }
}

fn bind(address: SocketAddr, protocol: Protocol) -> io::Result<OwnedFd> {
    let kind = match protocol {
        Protocol::Tcp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if protocol == Protocol::Tcp {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    if protocol == Protocol::Tcp {
        socket.listen(BACKLOG)?;
    }
    Ok(socket.into())
}
