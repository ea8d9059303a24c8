//! The Kubernetes API over HTTP.
//!
//! **Invariant:** nothing is answered as written before the store has it on disk.
//! **Invariant:** objects are JSON that a schema describes; they are stored, listed and watched as the bytes
//! that they were encoded to once.
//! **Invariant:** every kind takes the same path; what is particular to a kind stands in its row of
//! [`resources::KINDS`].
//!
//! A request's way: [`handle`] (identity, limits, authorisation, route) → the verb's module ([`read`],
//! [`watch`], [`create`], [`update`], [`patch`], [`delete`]) → [`respond`].

mod access;
mod allocate;
mod bootstrap;
mod client;
mod create;
mod decode;
mod delete;
mod discovery;
mod expire;
mod handle;
mod health;
mod identity;
mod impersonate;
mod list;
mod listing;
mod measure;
mod meta;
mod namespace;
mod negotiate;
mod object;
mod openapi;
mod patch;
mod path;
mod pods;
mod query;
mod read;
mod respond;
mod reviews;
mod scale;
mod select;
mod serve;
mod update;
mod watch;

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, OnceLock};

use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use store::Store;

pub use identity::Identity;

/// The emulated minor version of Kubernetes 1.
pub const EMULATED_MINOR: u32 = 36;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What the server is made of.
#[derive(Clone)]
pub struct Config {
    /// The open store.
    pub store: Store,
    /// Where Service addresses come from: network and prefix length.
    pub service_cidr: (Ipv4Addr, u8),
    /// Where node ports come from.
    pub node_ports: RangeInclusive<u16>,
    /// Where Pods reach this server: the endpoint of the Service `kubernetes`.
    pub advertise: Option<SocketAddr>,
    /// Kubelet's HTTP API, for logs, exec, attach; it can be given later by [`Server::set_kubelet`].
    pub kubelet: Option<axum::Router>,
    /// Tells the time.
    pub clock: Clock,
    /// Where random names and uids come from; none is the system's entropy.
    pub seed: Option<u64>,
    /// The bounds.
    pub limits: Limits,
}

/// The bounds of a server.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Requests that run at a time, watches and streams aside.
    pub in_flight: usize,
    /// Watches and streams at a time.
    pub long_running: usize,
    /// Seconds that a request may take, watches and streams aside.
    pub request_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { body_bytes: 3 << 20, in_flight: 600, long_running: 4000, request_seconds: 60 }
    }
}

impl Config {
    /// The usual configuration on a store.
    pub fn new(store: Store) -> Self {
        Config {
            store,
            service_cidr: (Ipv4Addr::new(10, 96, 0, 0), 16),
            node_ports: 30000..=32767,
            advertise: None,
            kubelet: None,
            clock: Arc::new(Timestamp::now),
            seed: None,
            limits: Limits::default(),
        }
    }
}

/// Why a server cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the service network {0}/{1} is not usable")]
    ServiceCidr(Ipv4Addr, u8),
    #[error("{object} could not be created at first start")]
    Bootstrap {
        object: String,
        #[source]
        source: Box<resources::status::Status>,
    },
}

/// The API server; a clone is another handle on the same one.
#[derive(Clone)]
pub struct Server {
    api: Arc<Api>,
}

/// What every request needs.
pub(crate) struct Api {
    pub(crate) store: Store,
    pub(crate) service_cidr: (Ipv4Addr, u8),
    pub(crate) node_ports: RangeInclusive<u16>,
    pub(crate) kubelet: OnceLock<axum::Router>,
    pub(crate) limits: Limits,
    pub(crate) bounds: handle::Bounds,
    pub(crate) discovery: discovery::Documents,
    pub(crate) openapi: openapi::Documents,
    /// Held while an object that takes addresses or ports is written, so that none is given twice.
    pub(crate) allocation: tokio::sync::Mutex<()>,
    clock: Clock,
    random: Mutex<StdRng>,
}

impl Api {
    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// A new uid.
    pub(crate) fn uid(&self) -> String {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }

    /// The suffix of a generated name: letters and digits that make no words.
    pub(crate) fn name_suffix(&self) -> String {
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut bytes = [0; 5];
        self.fill(&mut bytes);
        bytes.iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect()
    }

    /// A random number.
    pub(crate) fn number(&self) -> u64 {
        self.random.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).next_u64()
    }

    fn fill(&self, bytes: &mut [u8]) {
        self.random.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).fill_bytes(bytes);
    }
}

impl Server {
    /// Opens the server on its store and makes the objects that every cluster has.
    pub async fn open(config: Config) -> Result<Server, Error> {
        let (network, prefix) = config.service_cidr;
        if !(8..=28).contains(&prefix) {
            return Err(Error::ServiceCidr(network, prefix));
        }
        let random = match config.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => StdRng::from_os_rng(),
        };
        let kubelet = OnceLock::new();
        if let Some(router) = config.kubelet {
            let _ = kubelet.set(router);
        }
        let api = Arc::new(Api {
            store: config.store,
            service_cidr: config.service_cidr,
            node_ports: config.node_ports,
            kubelet,
            bounds: handle::Bounds::new(&config.limits),
            limits: config.limits,
            discovery: discovery::Documents::new(config.advertise),
            openapi: openapi::Documents::new(),
            allocation: tokio::sync::Mutex::default(),
            clock: config.clock,
            random: Mutex::new(random),
        });
        bootstrap::run(&api, config.advertise).await?;
        Ok(Server { api })
    }

    /// Gives the server kubelet's HTTP API once it is there; the first one stays.
    pub fn set_kubelet(&self, router: axum::Router) {
        let _ = self.api.kubelet.set(router);
    }

    /// The service for requests that carry their [`Identity`] as an extension; without one they are anonymous.
    pub fn router(&self) -> axum::Router {
        handle::router(self.api.clone())
    }

    /// The store's revision, for tests and figures.
    pub fn revision(&self) -> u64 {
        self.api.store.revision().0
    }
}
