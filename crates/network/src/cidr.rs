//! Ranges of IPv4 addresses, and the choice of ones that the host does not use.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A range of IPv4 addresses, as `10.96.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    address: Ipv4Addr,
    prefix: u8,
}

/// Why a text is no range.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no IPv4 range such as 10.96.0.0/16")]
pub struct NotACidr(String);

impl Cidr {
    /// The range that `address` lies in; host bits are cleared, a prefix above 32 is 32.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { address: Ipv4Addr::from(u32::from(address) & mask(prefix)), prefix }
    }

    /// The first address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The number of leading bits that all addresses share.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The bits that all addresses share, as a netmask.
    pub fn netmask(&self) -> Ipv4Addr {
        Ipv4Addr::from(mask(self.prefix))
    }

    /// Whether the address lies in the range.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == u32::from(self.address)
    }

    /// Whether the two share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        let prefix = self.prefix.min(other.prefix);
        u32::from(self.address) & mask(prefix) == u32::from(other.address) & mask(prefix)
    }

    /// How many addresses there are.
    pub fn size(&self) -> u64 {
        1 << (32 - u32::from(self.prefix))
    }

    /// The address at that place, counted from 0; wraps within the range.
    pub fn nth(&self, index: u64) -> Ipv4Addr {
        let offset = (index % self.size()) as u32;
        Ipv4Addr::from(u32::from(self.address) | offset)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = NotACidr;

    fn from_str(text: &str) -> Result<Self, NotACidr> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let (address, prefix) = (address.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok()?);
            (prefix <= 32 && Cidr::new(address, prefix).address == address)
                .then(|| Cidr::new(address, prefix))
        };
        parse().ok_or_else(|| NotACidr(text.to_owned()))
    }
}

/// Service and Pod ranges that overlap none of `taken`, the host's routes. Kubernetes' customary ranges come first.
pub(crate) fn choose(taken: &[Cidr]) -> Option<(Cidr, Cidr)> {
    let free = |range: &Cidr| !taken.iter().any(|other| other.overlaps(range));
    let of = |first: u8, seconds: &mut dyn Iterator<Item = u8>| {
        seconds.map(|second| Cidr::new(Ipv4Addr::new(first, second, 0, 0), 16)).find(free)
    };
    let services = of(10, &mut (96..128).chain(128..240)).or_else(|| of(172, &mut (16..24)))?;
    let pods = of(10, &mut (244..=255).chain((0..96).rev())).or_else(|| of(172, &mut (24..32)))?;
    Some((services, pods))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_contain_and_overlap() {
        let range = cidr("10.96.0.0/16");
        assert!(range.contains(Ipv4Addr::new(10, 96, 255, 1)));
        assert!(!range.contains(Ipv4Addr::new(10, 97, 0, 0)));
        assert!(range.overlaps(&cidr("10.96.4.0/24")) && range.overlaps(&cidr("0.0.0.0/0")));
        assert!(!range.overlaps(&cidr("10.97.0.0/16")));
        assert_eq!(range.nth(10), Ipv4Addr::new(10, 96, 0, 10));
        assert_eq!(range.to_string(), "10.96.0.0/16");
        assert!("10.96.0.1/16".parse::<Cidr>().is_err() && "10.0.0.0/33".parse::<Cidr>().is_err());
    }

    #[test]
    fn a_choice_avoids_what_the_host_routes() {
        assert_eq!(choose(&[]), Some((cidr("10.96.0.0/16"), cidr("10.244.0.0/16"))));
        let taken = [cidr("10.96.0.0/12"), cidr("10.244.7.0/24")];
        assert_eq!(choose(&taken), Some((cidr("10.112.0.0/16"), cidr("10.245.0.0/16"))));
        let taken = [cidr("10.0.0.0/8")];
        assert_eq!(choose(&taken), Some((cidr("172.16.0.0/16"), cidr("172.24.0.0/16"))));
        assert_eq!(choose(&[cidr("0.0.0.0/0")]), None);
    }
}
