//! What may be dialled from the host's namespace on behalf of somebody else.
//!
//! **Invariant:** nobody reaches through here what is open to local clients alone: not the host's own addresses, nor
//! link-local ones (there the cloud's metadata service answers), unless a Pod's, a Service's or the daemon's allowance
//! says so; and never loopback, our own ranges, or more than one machine at a time. The address is the one that is
//! dialled, looked at when it is dialled: what a name resolved to before, or which addresses the host had, does not
//! matter.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use network::{Cidr, Destination, Network, Routes};

/// Lets a Pod, or a Service's endpoints, reach more: `host`, addresses and ranges, separated by commas.
pub(crate) const ALLOW: &str = "proxy.gantry.dev/allow-egress";

/// Why an address is not dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// This machine's loopback, or its "this network".
    Loopback,
    /// `169.254.0.0/16`
    LinkLocal,
    /// Another address of this machine.
    Host,
    /// A range of ours: what is in it is reached without leaving.
    Cluster,
    /// Many machines at a time, or a range that is reserved.
    Group,
    /// The connection came to the egress port itself.
    NoDestination,
    /// The kernel could not say whether the address is the host's.
    Unknown,
}

impl Refusal {
    pub(crate) const ALL: [Self; 7] = [
        Self::Loopback,
        Self::LinkLocal,
        Self::Host,
        Self::Cluster,
        Self::Group,
        Self::NoDestination,
        Self::Unknown,
    ];

    /// The label's value.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::LinkLocal => "link_local",
            Self::Host => "host",
            Self::Cluster => "cluster",
            Self::Group => "group",
            Self::NoDestination => "no_destination",
            Self::Unknown => "unknown",
        }
    }

    pub(crate) fn counter(self) -> &'static AtomicU64 {
        static COUNTS: [AtomicU64; Refusal::ALL.len()] = [const { AtomicU64::new(0) }; Refusal::ALL.len()];
        &COUNTS[self as usize]
    }

    /// Counts, and is the error of a dial that did not happen.
    pub(crate) fn refuse(self) -> io::Error {
        self.counter().fetch_add(1, Ordering::Relaxed);
        io::Error::new(io::ErrorKind::PermissionDenied, format!("refused by rule: {}", self.name()))
    }
}

/// What somebody may reach beside the world.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allowance {
    host: bool,
    ranges: Vec<Cidr>,
}

impl Allowance {
    /// Reads `host`, addresses and ranges, separated by commas; the second part is what could not be read.
    pub fn parse(text: &str) -> (Self, Vec<String>) {
        let (mut allowance, mut unread) = (Self::default(), Vec::new());
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let range = || word.parse::<Cidr>().ok().or_else(|| Some(Cidr::new(word.parse().ok()?, 32)));
            match word {
                "host" => allowance.host = true,
                _ => match range() {
                    Some(range) => allowance.ranges.push(range),
                    None => unread.push(word.to_owned()),
                },
            }
        }
        (allowance, unread)
    }

    /// Of one address.
    pub(crate) fn address(address: Ipv4Addr) -> Self {
        Self { host: false, ranges: vec![Cidr::new(address, 32)] }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.host && self.ranges.is_empty()
    }

    fn names(&self, address: Ipv4Addr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }
}

/// Decides what is dialled.
#[derive(Debug)]
pub(crate) struct Guard {
    services: Cidr,
    pods: Cidr,
    routes: Mutex<Routes>,
    /// The daemon's setting: for everybody.
    all: Allowance,
}

impl Guard {
    pub(crate) fn new(network: &Network, all: Allowance) -> io::Result<Self> {
        let (services, pods) = (network.service_cidr(), network.pod_cidr());
        Ok(Self { services, pods, routes: Mutex::new(network.routes()?), all })
    }

    /// Whether whoever has the allowance may reach the address.
    pub(crate) fn check(&self, to: IpAddr, allowance: &Allowance) -> Result<(), Refusal> {
        let allowed = [allowance, &self.all];
        let IpAddr::V4(to) = to.to_canonical() else { return Err(Refusal::Unknown) };
        if let Some(refusal) = by_range(to, self.services, self.pods, allowed) {
            return Err(refusal);
        }
        if allowed.iter().any(|allowance| allowance.host || allowance.names(to)) {
            return Ok(());
        }
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        match routes.destination(to) {
            Ok(Destination::Elsewhere) => Ok(()),
            Ok(Destination::Own) => Err(Refusal::Host),
            Ok(Destination::Many) => Err(Refusal::Group),
            Err(error) => {
                tracing::warn!(%error, %to, "ask whether an address is the host's own");
                Err(Refusal::Unknown)
            }
        }
    }
}

fn by_range(to: Ipv4Addr, services: Cidr, pods: Cidr, allowed: [&Allowance; 2]) -> Option<Refusal> {
    const RESERVED_FIRST: u8 = 240;
    if to.is_loopback() || to.octets()[0] == 0 {
        Some(Refusal::Loopback)
    } else if to.is_multicast() || to.octets()[0] >= RESERVED_FIRST {
        Some(Refusal::Group)
    } else if services.contains(to) || pods.contains(to) {
        Some(Refusal::Cluster)
    } else if to.is_link_local() && !allowed.iter().any(|allowance| allowance.names(to)) {
        Some(Refusal::LinkLocal)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(to: &str, pod: &str, all: &str) -> Option<Refusal> {
        let (pod, all) = (Allowance::parse(pod).0, Allowance::parse(all).0);
        let (services, pods) = ("10.96.0.0/16".parse().unwrap(), "10.244.0.0/16".parse().unwrap());
        let guard = Guard { services, pods, routes: Mutex::new(Routes::here().unwrap()), all };
        guard.check(to.parse().unwrap(), &pod).err()
    }

    #[test]
    fn what_only_local_clients_may_reach_is_refused() {
        for (to, why) in [
            ("127.0.0.1", Refusal::Loopback),
            ("127.8.9.1", Refusal::Loopback),
            ("::ffff:127.0.0.1", Refusal::Loopback),
            ("0.0.0.0", Refusal::Loopback),
            ("0.1.2.3", Refusal::Loopback),
            ("::1", Refusal::Unknown),
            ("10.96.0.1", Refusal::Cluster),
            ("10.244.0.1", Refusal::Cluster),
            ("::ffff:10.244.0.1", Refusal::Cluster),
            ("224.0.0.1", Refusal::Group),
            ("239.255.255.250", Refusal::Group),
            ("240.0.0.1", Refusal::Group),
            ("255.255.255.255", Refusal::Group),
            ("169.254.169.254", Refusal::LinkLocal),
            ("::ffff:169.254.169.254", Refusal::LinkLocal),
            ("169.254.0.1", Refusal::LinkLocal),
        ] {
            assert_eq!(refused(to, "", ""), Some(why), "{to}");
            // These stand beside the host's own addresses, which `host` means.
            assert_eq!(refused(to, "host", "host"), Some(why), "{to}");
        }
        assert_eq!(refused("203.0.113.7", "", ""), None);
    }

    #[test]
    fn an_allowance_lets_through_what_it_names_but_never_loopback_or_our_ranges() {
        assert_eq!(refused("169.254.169.254", "169.254.169.254", ""), None);
        assert_eq!(refused("169.254.169.254", "", "169.254.0.0/16"), None);
        assert_eq!(refused("169.254.169.253", "169.254.169.254/32", ""), Some(Refusal::LinkLocal));
        assert_eq!(refused("127.0.0.1", "127.0.0.0/8, 0.0.0.0/0", "host"), Some(Refusal::Loopback));
        assert_eq!(refused("10.96.0.1", "10.0.0.0/8", ""), Some(Refusal::Cluster));
        let (allowance, unread) = Allowance::parse("host,, 192.0.2.1 ,192.0.2.0/33,world");
        assert!(allowance.host && allowance.ranges.len() == 1 && !allowance.is_empty());
        assert_eq!(unread, ["192.0.2.0/33", "world"]);
    }
}
