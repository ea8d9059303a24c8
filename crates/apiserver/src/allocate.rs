//! Service addresses and node ports. What is in use is read from the stored objects each time; one lock makes
//! reading, choosing and writing a single step, so nothing is given twice and nothing can leak.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use resources::kind::{AllocateError, Allocator, Kind};
use resources::status::Status;
use serde_json::Value;

use crate::{Api, create, object};

/// Held until the object is written.
pub(crate) type Guard<'a> = Option<tokio::sync::MutexGuard<'a, ()>>;

/// Fills the allocated fields of an object, if its kind has any.
pub(crate) async fn run<'a>(
    api: &'a Api,
    kind: &Kind,
    key: &str,
    new: &mut Value,
    old: Option<&Value>,
) -> Result<Guard<'a>, Status> {
    let Some(allocate) = kind.allocate else { return Ok(None) };
    let guard = api.allocation.lock().await;
    let mut pool = Pool::of(api, kind, key)?;
    if let Err(error) = allocate(new, old, &mut pool) {
        create::refuse_invalid(kind, object::name(new), &[error])?;
    }
    Ok(Some(guard))
}

/// What is free, seen from one object.
struct Pool {
    network: u32,
    prefix: u8,
    addresses: HashSet<u32>,
    ports: HashSet<u16>,
    /// Given to the object at hand; one port may serve two protocols of it.
    own_ports: HashSet<(u16, String)>,
    node_ports: std::ops::RangeInclusive<u16>,
    seed: u64,
}

impl Pool {
    fn of(api: &Api, kind: &Kind, own: &str) -> Result<Self, Status> {
        let (network, prefix) = api.service_cidr;
        let mut pool = Pool {
            network: u32::from(network),
            prefix,
            addresses: HashSet::new(),
            ports: HashSet::new(),
            own_ports: HashSet::new(),
            node_ports: api.node_ports.clone(),
            seed: api.number(),
        };
        let snapshot = api.store.snapshot();
        for (key, entry) in snapshot.range(&object::prefix(kind, ""), None) {
            if **key != *own {
                pool.take(&object::decode(kind, &entry.value)?);
            }
        }
        Ok(pool)
    }

    fn take(&mut self, service: &Value) {
        let spec = &service["spec"];
        let list = spec["clusterIPs"].as_array().into_iter().flatten();
        for address in list.chain(std::iter::once(&spec["clusterIP"])) {
            if let Some(address) = address.as_str().and_then(|text| text.parse::<Ipv4Addr>().ok()) {
                self.addresses.insert(address.into());
            }
        }
        let ports = spec["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]);
        for port in ports.chain(std::iter::once(&spec["healthCheckNodePort"])) {
            if let Some(port) = port.as_u64().and_then(|port| u16::try_from(port).ok()) {
                self.ports.insert(port);
            }
        }
    }

    /// Addresses that can be given: neither the network's nor its last.
    fn size(&self) -> u32 {
        (1_u32 << (32 - u32::from(self.prefix))) - 2
    }

    fn cidr(&self) -> String {
        format!("{}/{}", Ipv4Addr::from(self.network), self.prefix)
    }
}

impl Allocator for Pool {
    fn cluster_ip(&mut self, requested: Option<IpAddr>) -> Result<IpAddr, AllocateError> {
        let size = self.size();
        if let Some(requested) = requested {
            let out = AllocateError::OutOfRange { what: "IP", range: self.cidr() };
            let IpAddr::V4(address) = requested else { return Err(out) };
            let offset = u32::from(address).wrapping_sub(self.network);
            if offset == 0 || offset > size {
                return Err(out);
            }
            return if self.addresses.insert(address.into()) {
                Ok(requested)
            } else {
                Err(AllocateError::Taken("IP"))
            };
        }
        // The low end is left to those who ask for an address of their own.
        let low = (size / 16).clamp(16, 256).min(size / 2);
        let start = u32::try_from(self.seed % u64::from(size - low)).unwrap_or(0);
        let high = (0..size - low).map(|step| low + 1 + (start + step) % (size - low));
        for offset in high.chain(1..=low) {
            let address = self.network + offset;
            if self.addresses.insert(address) {
                return Ok(IpAddr::V4(address.into()));
            }
        }
        Err(AllocateError::Full)
    }

    fn node_port(&mut self, requested: Option<u16>, protocol: &str) -> Result<u16, AllocateError> {
        let (first, last) = (*self.node_ports.start(), *self.node_ports.end());
        if let Some(port) = requested {
            if !self.node_ports.contains(&port) {
                let range = format!("{first}-{last}");
                return Err(AllocateError::OutOfRange { what: "port", range });
            }
            let own = self.own_ports.insert((port, protocol.to_owned()));
            return if self.ports.contains(&port) || !own {
                Err(AllocateError::Taken("port"))
            } else {
                Ok(port)
            };
        }
        let count = u64::from(last - first) + 1;
        for step in 0..count {
            let offset = (self.seed % count + step) % count;
            let port = first + u16::try_from(offset).unwrap_or(0);
            let own = self.own_ports.iter().any(|(taken, _)| *taken == port);
            if !own && !self.ports.contains(&port) {
                self.own_ports.insert((port, protocol.to_owned()));
                return Ok(port);
            }
        }
        Err(AllocateError::Full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool {
            network: Ipv4Addr::new(10, 96, 0, 0).into(),
            prefix: 28,
            addresses: HashSet::new(),
            ports: HashSet::new(),
            own_ports: HashSet::new(),
            node_ports: 30000..=30002,
            seed: 5,
        }
    }

    #[test]
    fn every_address_is_given_once() {
        let mut pool = pool();
        let mut given = HashSet::new();
        while let Ok(address) = pool.cluster_ip(None) {
            assert!(given.insert(address));
        }
        assert_eq!(given.len(), 14);
        assert_eq!(
            pool.cluster_ip(Some("10.97.0.1".parse().unwrap())).unwrap_err().to_string(),
            "the provided IP is not in the valid range. The range of valid IPs is 10.96.0.0/28"
        );
    }

    #[test]
    fn a_port_serves_two_protocols_of_one_service() {
        let mut pool = pool();
        assert_eq!(pool.node_port(Some(30001), "TCP"), Ok(30001));
        assert_eq!(pool.node_port(Some(30001), "UDP"), Ok(30001));
        assert_eq!(pool.node_port(Some(30001), "TCP"), Err(AllocateError::Taken("port")));
        assert_ne!(pool.node_port(None, "TCP"), Ok(30001));
    }
}
