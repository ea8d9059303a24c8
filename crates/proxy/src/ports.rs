//! Which sockets a Service listens on, and what a LoadBalancer's status says about them.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use network::Protocol;

use crate::control::{Control, Purpose};
use crate::model::{Key, Kind, Port, Service};
use crate::sockets::Spot;
use crate::status::{self, Bound};

/// How many ports above its own an automatic LoadBalancer tries.
const AUTO_TRIES: u16 = 200;

/// Opens what the Service needs and is not open, closes what it does not need, says how the host's ports went.
pub(crate) fn settle(control: &mut Control, service: &Service) {
    let key = service.key();
    let mut wanted: Vec<(Spot, Purpose, (String, Protocol))> = Vec::new();
    for port in service.ports.iter().filter(|_| service.kind != Kind::ExternalName) {
        let of_port = (port.name.clone(), port.protocol);
        if let Some(ip) = service.cluster_ip
            && control.services_range.is_none_or(|range| range.contains(ip))
        {
            let address = SocketAddr::from((ip, port.port));
            let spot = Spot { inside: true, protocol: port.protocol, address };
            wanted.push((spot, Purpose::Cluster, of_port.clone()));
        }
        if matches!(service.kind, Kind::NodePort | Kind::LoadBalancer) && port.node_port != 0 {
            for spot in host_spots(service, port.protocol, port.node_port) {
                wanted.push((spot, Purpose::Node, of_port.clone()));
            }
        }
    }
    close_unwanted(control, service, &key, &wanted);
    let waited = control.waiting.remove(&key);
    for (spot, purpose, of_port) in wanted {
        let is_open = control.open.get(&key).is_some_and(|open| open.iter().any(|one| one.spot == spot));
        if is_open {
            continue;
        }
        match control.listen(&spot) {
            Ok(socket) => control.serve(&key, spot, purpose, of_port, socket),
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && spot.address.is_ipv6() => {}
            // Somebody inside may serve that address itself, as the daemon does for the API.
            Err(error) => {
                if !waited {
                    tracing::warn!(%error, service = key, socket = spot.name(), "listen; it is tried again");
                }
                control.waiting.insert(key.clone());
            }
        }
    }
    if service.kind == Kind::LoadBalancer && !service.ports.is_empty() {
        settle_balancer(control, service, &key);
    }
}

/// The Service is gone.
pub(crate) fn close_all(control: &mut Control, key: &Key) {
    control.waiting.remove(key);
    for opened in control.open.remove(key).unwrap_or_default() {
        opened.stop.cancel();
        control.spots.remove(&opened.spot);
        control.sockets.close(&opened.spot);
    }
}

fn close_unwanted(
    control: &mut Control,
    service: &Service,
    key: &Key,
    wanted: &[(Spot, Purpose, (String, Protocol))],
) {
    let Some(open) = control.open.get_mut(key) else { return };
    let keep = |opened: &crate::control::Opened| match opened.purpose {
        Purpose::Balancer(index) => {
            let port = service.ports.get(index);
            service.kind == Kind::LoadBalancer
                && port.is_some_and(|port| {
                    let number = opened.spot.address.port();
                    let same = (port.name.as_str(), port.protocol) == (opened.port.0.as_str(), opened.port.1);
                    let near = number == port.port || (service.auto_port && number > port.port);
                    same && near && host_spots(service, port.protocol, number).contains(&opened.spot)
                })
        }
        _ => wanted.iter().any(|(spot, _, port)| *spot == opened.spot && *port == opened.port),
    };
    let (kept, closed): (Vec<_>, Vec<_>) = std::mem::take(open).into_iter().partition(keep);
    *open = kept;
    for opened in closed {
        opened.stop.cancel();
        control.spots.remove(&opened.spot);
        // Under another name of the port the same socket goes on.
        if !wanted.iter().any(|(spot, ..)| *spot == opened.spot) {
            control.sockets.close(&opened.spot);
        }
    }
}

/// The host's addresses for a port: IPv4 first, which must work; IPv6 where there is any.
fn host_spots(service: &Service, protocol: Protocol, port: u16) -> Vec<Spot> {
    let first = service.expose.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let second = match first {
        IpAddr::V4(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    [first, second].map(|ip| Spot { inside: false, protocol, address: SocketAddr::new(ip, port) }).to_vec()
}

enum Refused {
    Taken(String),
    Failed(io::Error),
}

fn settle_balancer(control: &mut Control, service: &Service, key: &Key) {
    let (mut ports, mut troubles, mut moved) = (Vec::new(), Vec::new(), Vec::new());
    for (index, port) in service.ports.iter().enumerate() {
        let open = control.open.get(key).into_iter().flatten();
        let already = open
            .filter(|opened| opened.purpose == Purpose::Balancer(index))
            .map(|opened| opened.spot.address.port())
            .next();
        if let Some(number) = already {
            ports.push((number, port.protocol));
            continue;
        }
        match open_host_port(control, service, key, index, port) {
            Ok((number, taken)) => {
                ports.push((number, port.protocol));
                moved.extend(taken);
            }
            Err(Refused::Taken(by)) => {
                troubles.push(("PortTaken", format!("port {} is taken by {by}", port.port)))
            }
            Err(Refused::Failed(error)) => {
                troubles.push(("ListenFailed", format!("port {}: {error}", port.port)));
            }
        }
    }
    let condition = match troubles.first() {
        None => ("True".to_owned(), "Listening".to_owned(), moved.join("; ")),
        Some((reason, _)) => {
            let messages: Vec<String> = troubles.iter().map(|(_, message)| message.clone()).collect();
            ("False".to_owned(), (*reason).to_owned(), messages.join("; "))
        }
    };
    if !troubles.is_empty() {
        control.waiting.insert(key.clone());
    }
    // A message says how the port was chosen; it is not renewed when the socket is merely still there.
    let ip = service.expose.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)).to_string();
    let bound = Bound { ip, ports, condition };
    let said = service.bound.as_ref().is_some_and(|(status, reason, message)| {
        let (now, why, text) = &bound.condition;
        status == now && reason == why && (now == "True" || message == text)
    });
    if !said || service.ingress != bound.ports {
        let (client, service) = (control.client.clone(), service.clone());
        control.scope.spawn("bound", async move { status::say_bound(&client, &service, &bound).await });
    }
}

/// The port that was opened, and, if it is not the one that was asked for, why.
fn open_host_port(
    control: &mut Control,
    service: &Service,
    key: &Key,
    index: usize,
    port: &Port,
) -> Result<(u16, Option<String>), Refused> {
    let before = service.ingress.get(index).filter(|(_, protocol)| *protocol == port.protocol);
    let before = before.map(|(number, _)| *number).filter(|_| service.auto_port);
    let mut candidates: Vec<u16> = before.into_iter().chain([port.port]).collect();
    if service.auto_port {
        candidates.extend((1..=AUTO_TRIES).filter_map(|step| port.port.checked_add(step)));
    }
    let mut refused = None;
    let mut tried = BTreeSet::new();
    for number in candidates.into_iter().filter(|number| tried.insert(*number)) {
        match open_spots(control, &host_spots(service, port.protocol, number)) {
            Ok(sockets) => {
                for (spot, socket) in sockets {
                    let of_port = (port.name.clone(), port.protocol);
                    control.serve(key, spot, Purpose::Balancer(index), of_port, socket);
                }
                let why = (number != port.port)
                    .then(|| format!("port {} is taken; listening on {number}", port.port));
                return Ok((number, why));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if number == port.port {
                    refused = Some(Refused::Taken(holder(control, port.protocol, number)));
                }
            }
            Err(error) => return Err(Refused::Failed(error)),
        }
    }
    Err(refused.unwrap_or_else(|| Refused::Taken("another program".to_owned())))
}

/// All of them or none; only IPv6 may be missing, if the host has none.
fn open_spots(control: &Control, spots: &[Spot]) -> io::Result<Vec<(Spot, OwnedFd)>> {
    let mut sockets: Vec<(Spot, OwnedFd)> = Vec::new();
    for (place, spot) in spots.iter().enumerate() {
        match control.listen(spot) {
            Ok(socket) => sockets.push((spot.clone(), socket)),
            Err(error) if place > 0 && error.kind() != io::ErrorKind::AddrInUse => {}
            Err(error) => {
                sockets.iter().for_each(|(spot, _)| control.sockets.close(spot));
                return Err(error);
            }
        }
    }
    Ok(sockets)
}

/// Who listens on the host's port.
fn holder(control: &Control, protocol: Protocol, number: u16) -> String {
    for (key, open) in &control.open {
        let ours = |one: &crate::control::Opened| {
            !one.spot.inside && one.spot.protocol == protocol && one.spot.address.port() == number
        };
        if open.iter().any(ours) {
            return format!("service {key}");
        }
    }
    let found = match &control.sockets.network {
        Some(network) => network.run_in(&network::Place::Host, move || network::holder(protocol, number)),
        None => Ok(network::holder(protocol, number)),
    };
    match found {
        Ok(Ok(Some(holder))) => format!("{} (process {})", holder.name, holder.pid),
        _ => "another program".to_owned(),
    }
}
