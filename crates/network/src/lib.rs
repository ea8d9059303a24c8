//! The network of Pods: a router namespace per state folder, a veth for each Pod, a redirect of what leaves.
//!
//! **Invariant:** nothing here adds a link, an address, a route, a rule or a sysctl to the host's namespace. The router
//! namespace has no way out but the proxy's sockets. No Pod sends with another's address.
//!
//! ```text
//! host namespace                     router namespace  <state>/run/netns/router
//!   proxy's host sockets               lo: router_ip, local SERVICE_CIDR, local default
//!   API server, registry               proxy's ClusterIP, DNS and egress sockets
//!   (no link of ours)                  g<instance>0102 ── veth ── eth0 of the Pod 10.244.1.2
//! ```
//!
//! Pods are IPv4; of IPv6 they have `::1`. Everything is kept by bind mounts and the kernel, so it outlives the
//! process; [`Network::open`] and [`Network::attach`] complete what a crash left half done.

mod cidr;
mod diag;
mod host;
mod namespace;
mod netlink;
mod nft;
mod pods;
mod route;
mod settings;
mod users;

pub use cidr::{Cidr, NotACidr};
pub use diag::{Holder, Listening, Owners, Protocol, holder};
pub use host::{Destination, Routes};

use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use namespace::Resident;
use route::{LOOPBACK, Route, Router};

/// The port on [`Network::router_ip`] that outgoing TCP of Pods is redirected to.
pub const EGRESS_PORT: u16 = 15001;

/// How long daemon and proxy wait for each other while one of them opens the network, which takes milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Whose network it is.
#[derive(Clone, Debug)]
pub struct Config {
    pub state_dir: PathBuf,
    /// 8 lower-case hexadecimal characters; part of the names of our links.
    pub instance: String,
}

/// A network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The one that the process was started in.
    Host,
    /// The one between Pods and host.
    Router,
    /// The one of the Pod with that UID.
    Pod(String),
}

/// Where a Pod is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    pub ip: Ipv4Addr,
    /// The Pod's network namespace, as a file.
    pub netns: PathBuf,
    /// The host's id of the Pod's user 0, if it has users of its own.
    pub first_id: Option<u32>,
}

/// Why the network could not be opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: use the network folder")]
    Folder { path: PathBuf, source: io::Error },
    #[error("another process opens the network, and has not finished")]
    Locked(#[source] durable::lock::Error),
    #[error("{path}: read the address ranges")]
    Settings { path: PathBuf, source: settings::Broken },
    #[error("every private address range overlaps a route of this host")]
    NoFreeRange,
    #[error("make the router's network namespace")]
    Router { source: io::Error },
    #[error("redirect what Pods send to the world")]
    Egress { source: io::Error },
    #[error("pod {uid:?}: no UID that can name a namespace")]
    Uid { uid: String },
    #[error("pod {uid}: the range {range} has no free address")]
    Full { uid: String, range: Cidr },
    #[error(
        "pod {uid}: the range {range} is too large for each Pod to have users of its own; /16 is the largest"
    )]
    Users { uid: String, range: Cidr },
    #[error("pod {uid}: {step}")]
    Pod { uid: String, step: &'static str, source: io::Error },
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let refused = |source: &io::Error| source.kind() == io::ErrorKind::PermissionDenied;
        match self {
            Self::Router { source } | Self::Egress { source } | Self::Pod { source, .. }
                if refused(source) =>
            {
                Some("start the daemon as root: it makes network namespaces".to_owned())
            }
            Self::Egress { .. } => {
                Some("the kernel needs nf_tables with nat (modules nf_tables, nft_nat)".into())
            }
            Self::NoFreeRange => Some(
                "write two free ranges to network.json in the state folder: \
                 {\"version\":1,\"serviceCidr\":\"10.96.0.0/16\",\"podCidr\":\"10.244.0.0/16\"}"
                    .to_owned(),
            ),
            Self::Settings { path, .. } => Some(format!("correct or remove {}", path.display())),
            _ => None,
        }
    }
}

/// The network of one state folder. Clones are the same network.
#[derive(Clone, Debug)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    instance: String,
    services: Cidr,
    pods: Cidr,
    host: Resident,
    router: Resident,
    /// Moves into Pods' namespaces, and back to the router's after each job, so that it keeps no Pod's alive.
    visitor: Resident,
    /// The router namespace's links and routes; its lock makes attaching and detaching one at a time.
    state: Mutex<pods::State>,
}

impl Network {
    /// Makes what is missing: ranges, router namespace, rules. The daemon and the proxy both call it; only the
    /// daemon may then attach and detach.
    pub fn open(config: Config) -> Result<Self, Error> {
        let folder = config.state_dir.join("run/netns");
        let at = |source| Error::Folder { path: folder.clone(), source };
        let private = durable::DIR_MODE;
        std::fs::DirBuilder::new().recursive(true).mode(private).create(&folder).map_err(at)?;
        // Only who may write the file can hold this lock, and nobody is waited for without end.
        let _lock = durable::Lock::acquire_within(&folder.with_extension("lock"), LOCK_PATIENCE)
            .map_err(Error::Locked)?;

        let host = Resident::start("netns-host", || Ok(())).map_err(|source| Error::Router { source })?;
        let settings = settings::load_or_choose(&config.state_dir.join("network.json"))?;
        let (router, links) = open_router(&folder, &settings).map_err(|source| Error::Router { source })?;
        let to = (settings.pods.nth(1), EGRESS_PORT);
        router
            .run(move || nft::redirect_egress(settings.services, settings.pods, to))
            .and_then(|result| result)
            .map_err(|source| Error::Egress { source })?;
        let home = folder.join("router");
        let visitor = Resident::start("netns-visitor", move || namespace::enter(&home))
            .map_err(|source| Error::Router { source })?;
        let state = pods::State::load(&folder, links).map_err(at)?;
        let inner = Inner {
            folder,
            instance: config.instance,
            services: settings.services,
            pods: settings.pods,
            host,
            router,
            visitor,
            state: Mutex::new(state),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The range that ClusterIPs come from.
    pub fn service_cidr(&self) -> Cidr {
        self.inner.services
    }

    /// The range that Pod addresses come from.
    pub fn pod_cidr(&self) -> Cidr {
        self.inner.pods
    }

    /// The router namespace's own address, and the source of what the proxy sends to Pods.
    pub fn router_ip(&self) -> Ipv4Addr {
        self.inner.pods.nth(1)
    }

    /// The cluster's DNS server: the tenth address for Services.
    pub fn dns_ip(&self) -> Ipv4Addr {
        self.inner.services.nth(10)
    }

    /// The ClusterIP of `kubernetes.default.svc`: the first address for Services.
    pub fn api_ip(&self) -> Ipv4Addr {
        self.inner.services.nth(1)
    }

    /// The file of a Pod's network namespace, whether it is there or not.
    pub fn netns(&self, uid: &str) -> PathBuf {
        self.inner.folder.join(uid)
    }

    /// Makes a socket (close-on-exec, blocking) in that namespace; it can be used anywhere.
    pub fn socket(
        &self,
        place: &Place,
        domain: socket2::Domain,
        kind: socket2::Type,
    ) -> io::Result<socket2::Socket> {
        self.run_in(place, move || socket2::Socket::new(domain, kind, None))?
    }

    /// Tells whose the other end of a connection on the host's loopback is.
    pub fn owners(&self) -> io::Result<Owners> {
        self.run_in(&Place::Host, Owners::open)?
    }

    /// Tells where the host would send something.
    pub fn routes(&self) -> io::Result<Routes> {
        self.run_in(&Place::Host, Routes::here)?
    }

    /// Runs a short job on a thread in that namespace, and waits for it.
    pub fn run_in<T: Send + 'static>(
        &self,
        place: &Place,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        match place {
            Place::Host => self.inner.host.run(job),
            Place::Router => self.inner.router.run(job),
            Place::Pod(uid) => self.inner.visit(uid, job)?,
        }
    }

    /// Moves the calling thread into the router namespace for good: sockets that it makes are the router's.
    pub fn enter_router(&self) -> io::Result<()> {
        namespace::enter(&self.inner.folder.join("router"))
    }

    /// What listens in the Pod.
    pub fn listening(&self, uid: &str) -> io::Result<Vec<Listening>> {
        self.run_in(&Place::Pod(uid.to_owned()), diag::listening)?
    }

    /// Gives the Pod a namespace with an address, or completes what is there. Blocks for a few milliseconds.
    pub fn attach(&self, uid: &str) -> Result<PodNetwork, Error> {
        pods::attach(&self.inner, uid, false)
    }

    /// The same with users of its own, who own the namespace: 65,536 that no other Pod has.
    pub fn attach_with_users(&self, uid: &str) -> Result<PodNetwork, Error> {
        pods::attach(&self.inner, uid, true)
    }

    /// Takes the Pod's namespace and address away. Nothing there is no error. Blocks for some milliseconds.
    pub fn detach(&self, uid: &str) -> Result<(), Error> {
        pods::detach(&self.inner, uid)
    }

    /// The Pods that are attached, with their addresses.
    pub fn attached(&self) -> Vec<(String, Ipv4Addr)> {
        let state = self.inner.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.attached(&self.inner.folder)
    }

    /// Removes every namespace of ours. Processes inside keep theirs until they end.
    pub fn destroy(&self) -> Result<(), Error> {
        let uids: Vec<String> = self.attached().into_iter().map(|(uid, _)| uid).collect();
        for uid in uids {
            self.detach(&uid)?;
        }
        remove_all(&self.inner.folder)
    }

    /// Removes what a network of this state folder left behind, without opening it.
    pub fn remove(state_dir: &Path) -> Result<(), Error> {
        remove_all(&state_dir.join("run/netns"))
    }
}

impl Inner {
    fn visit<T: Send + 'static>(
        &self,
        uid: &str,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<io::Result<T>> {
        let (pod, home) = (self.folder.join(uid), self.folder.join("router"));
        self.visitor.run(move || {
            if !namespace::is_mounted(&pod) {
                return Err(io::ErrorKind::NotFound.into());
            }
            namespace::enter(&pod)?;
            let result = job();
            namespace::enter(&home)?;
            Ok(result)
        })
    }
}

/// The router's thread and its rtnetlink socket, in a namespace that has what it needs.
fn open_router(folder: &Path, settings: &settings::Settings) -> io::Result<(Resident, Router)> {
    let path = folder.join("router");
    let router = Resident::start("netns-router", move || {
        if namespace::is_mounted(&path) { namespace::enter(&path) } else { namespace::create(&path) }
    })?;
    let (services, pods) = (settings.services, settings.pods);
    let links = router.run(move || -> io::Result<Router> {
        // Pods reach one another through here, and nothing else does: every other address is local.
        namespace::sysctl("ipv4/ip_forward", "1");
        // No Pod sends with another's address, whatever it may write to a raw socket: what arrives on a veth has to
        // be from where that veth leads (RFC 3704, strict).
        namespace::set_sysctl("ipv4/conf/all/rp_filter", "1")?;
        namespace::sysctl("ipv4/ip_local_port_range", "16384 65535");
        namespace::sysctl("ipv4/tcp_tw_reuse", "1");
        let mut links = Router::open()?;
        let everything = Cidr::new(Ipv4Addr::UNSPECIFIED, 0);
        let routes = [(services, Route::Local), (everything, Route::LocalLast)];
        links.configure(LOOPBACK, Some(pods.nth(1)), &routes)?;
        Ok(links)
    })??;
    Ok((router, links))
}

fn remove_all(folder: &Path) -> Result<(), Error> {
    let at = |source| Error::Folder { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(at(source)),
    };
    for entry in entries {
        namespace::remove(&entry.map_err(at)?.path()).map_err(at)?;
    }
    std::fs::remove_dir(folder).map_err(at)?;
    let lock = folder.with_extension("lock");
    match std::fs::remove_file(&lock) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Folder { path: lock, source }),
        _ => Ok(()),
    }
}
