//! Pods' namespaces and addresses.
//!
//! `<folder>/<uid>` is the namespace, `<folder>/<uid>.ip` the address as text: written first, so that an address is
//! never given out twice, and kept over a reboot. Only files with both names are ours.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use crate::cidr::Cidr;
use crate::route::{LOOPBACK, Route, Router};
use crate::{Error, Inner, PodNetwork, namespace, users};

const UID_LEN_MAX: usize = 128;
/// Network, router, and a few to spare.
const FIRST_POD: u64 = 16;

#[derive(Debug)]
pub(crate) struct State {
    links: Router,
    by_uid: BTreeMap<String, Ipv4Addr>,
    by_ip: BTreeMap<Ipv4Addr, String>,
    /// Addresses are given out in turn, so that a late packet for one does not soon meet another Pod.
    next: u64,
}

impl State {
    pub(crate) fn load(folder: &Path, links: Router) -> io::Result<Self> {
        let mut state = Self { links, by_uid: BTreeMap::new(), by_ip: BTreeMap::new(), next: 0 };
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(uid) = name.to_str().and_then(|name| name.strip_suffix(".ip")) else { continue };
            // A file that a crash left empty was not yet used.
            if let Ok(ip) = std::fs::read_to_string(entry.path())?.parse() {
                state.insert(uid, ip);
            }
        }
        state.next = state.by_ip.keys().next_back().map_or(0, |last| u64::from(u32::from(*last) & 0xffff));
        Ok(state)
    }

    pub(crate) fn attached(&self, folder: &Path) -> Vec<(String, Ipv4Addr)> {
        let mounted = |uid: &str| namespace::is_mounted(&folder.join(uid));
        self.by_uid.iter().filter(|(uid, _)| mounted(uid)).map(|(uid, ip)| (uid.clone(), *ip)).collect()
    }

    fn insert(&mut self, uid: &str, ip: Ipv4Addr) {
        self.by_uid.insert(uid.to_owned(), ip);
        self.by_ip.insert(ip, uid.to_owned());
    }

    fn forget(&mut self, uid: &str) {
        if let Some(ip) = self.by_uid.remove(uid) {
            self.by_ip.remove(&ip);
        }
    }

    fn free_address(&mut self, range: Cidr) -> Option<Ipv4Addr> {
        let (first, last) = (FIRST_POD, range.size() - 1);
        for _ in first..last {
            self.next = if (first..last - 1).contains(&self.next) { self.next + 1 } else { first };
            let ip = range.nth(self.next);
            if !self.by_ip.contains_key(&ip) {
                return Some(ip);
            }
        }
        None
    }
}

/// The name of the router's end: our mark, and the address within the range.
fn link_name(instance: &str, ip: Ipv4Addr) -> String {
    let [_, _, third, fourth] = ip.octets();
    let instance = &instance[..instance.len().min(10)];
    format!("g{instance}{third:02x}{fourth:02x}")
}

fn check_uid(uid: &str) -> Result<(), Error> {
    let plain = uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if plain && !uid.is_empty() && uid.len() <= UID_LEN_MAX && uid != "router" {
        Ok(())
    } else {
        Err(Error::Uid { uid: uid.to_owned() })
    }
}

pub(crate) fn attach(inner: &Inner, uid: &str, own_users: bool) -> Result<PodNetwork, Error> {
    check_uid(uid)?;
    let failed = |step| move |source| Error::Pod { uid: uid.to_owned(), step, source };
    let netns = inner.folder.join(uid);
    let mut state = inner.state.lock().unwrap_or_else(PoisonError::into_inner);
    let ip = match state.by_uid.get(uid) {
        Some(ip) => *ip,
        None => {
            let ip = state
                .free_address(inner.pods)
                .ok_or_else(|| Error::Full { uid: uid.to_owned(), range: inner.pods })?;
            keep_address(&inner.folder, uid, ip).map_err(failed("keep its address"))?;
            state.insert(uid, ip);
            ip
        }
    };
    let first_id = match own_users.then(|| users::first_id(inner.pods, ip)) {
        Some(None) => return Err(Error::Users { uid: uid.to_owned(), range: inner.pods }),
        first_id => first_id.flatten(),
    };
    let mut pod = pod_links(inner, &netns, first_id).map_err(failed("make its network namespace"))?;
    let links = &mut state.links;
    let name = link_name(&inner.instance, ip);
    let (here, there) =
        connect(links, &mut pod, &name, &netns).map_err(failed("connect its network namespace"))?;
    let router = Cidr::new(inner.pods.nth(1), 32);
    let everything = Cidr::new(Ipv4Addr::UNSPECIFIED, 0);
    let source = Some(router.address());
    links
        .configure(here, None, &[(Cidr::new(ip, 32), Route::Link { source })])
        .and_then(|()| pod.configure(LOOPBACK, None, &[]))
        .and_then(|()| {
            let routes =
                [(router, Route::Link { source: None }), (everything, Route::Gateway(router.address()))];
            pod.configure(there, Some(ip), &routes)
        })
        .map_err(failed("set its addresses and routes"))?;
    Ok(PodNetwork { ip, netns, first_id })
}

/// Writes the address under its name whole; it need not outlive a power cut, as the namespace does not.
fn keep_address(folder: &Path, uid: &str, ip: Ipv4Addr) -> io::Result<()> {
    let staged = folder.join(format!("{uid}.new"));
    std::fs::write(&staged, ip.to_string())?;
    std::fs::rename(staged, address_file(folder, uid))
}

fn address_file(folder: &Path, uid: &str) -> PathBuf {
    folder.join(format!("{uid}.ip"))
}

/// The rtnetlink socket of the Pod's namespace, which is made if it is missing.
fn pod_links(inner: &Inner, netns: &Path, first_id: Option<u32>) -> io::Result<Router> {
    let (path, home) = (netns.to_owned(), inner.folder.join("router"));
    inner.visitor.run(move || {
        let opened = if namespace::is_mounted(&path) {
            namespace::enter(&path).and_then(|()| Router::open())
        } else {
            let made = match first_id {
                Some(first) => users::create(&path, first).and_then(|()| namespace::enter(&path)),
                None => namespace::create(&path),
            };
            made.and_then(|()| {
                // As container engines do: a program need not be root to listen on port 80, or to ping.
                namespace::sysctl("ipv4/ip_unprivileged_port_start", "0");
                namespace::sysctl("ipv4/ping_group_range", "0 2147483647");
                Router::open()
            })
        };
        namespace::enter(&home)?;
        opened
    })?
}

/// The indexes of the two ends of the veth pair, which is made unless both are there.
fn connect(links: &mut Router, pod: &mut Router, name: &str, netns: &Path) -> io::Result<(u32, u32)> {
    const INSIDE: &str = "eth0";
    let (mut here, mut there) = (links.link(name)?, pod.link(INSIDE)?);
    if here.is_none() || there.is_none() {
        if let Some(half) = here {
            links.delete_link(half)?;
        }
        if let Some(half) = there {
            pod.delete_link(half)?;
        }
        let namespace = std::fs::File::open(netns)?;
        links.create_veth(name, INSIDE, namespace.as_fd())?;
        (here, there) = (links.link(name)?, pod.link(INSIDE)?);
    }
    here.zip(there).ok_or_else(|| io::ErrorKind::NotFound.into())
}

pub(crate) fn detach(inner: &Inner, uid: &str) -> Result<(), Error> {
    check_uid(uid)?;
    let failed = |step| move |source| Error::Pod { uid: uid.to_owned(), step, source };
    let mut state = inner.state.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(ip) = state.by_uid.get(uid).copied() {
        let links = &mut state.links;
        links
            .link(&link_name(&inner.instance, ip))
            .and_then(|index| index.map_or(Ok(()), |index| links.delete_link(index)))
            .map_err(failed("disconnect its network namespace"))?;
    }
    namespace::remove(&inner.folder.join(uid)).map_err(failed("remove its network namespace"))?;
    match std::fs::remove_file(address_file(&inner.folder, uid)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("free its address")(error));
        }
        _ => {}
    }
    state.forget(uid);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_uids_name_a_namespace() {
        assert!(check_uid("6b1c1c0e-0000-4a5b-8e0c-0242ac120002").is_ok());
        for bad in ["", "router", "../x", "a/b", "a.ip", &"x".repeat(200)] {
            assert!(check_uid(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn link_names_carry_the_mark_and_fit() {
        let name = link_name("0123abcd", Ipv4Addr::new(10, 244, 1, 255));
        assert_eq!(name, "g0123abcd01ff");
        assert!(name.len() <= 15);
    }
}
