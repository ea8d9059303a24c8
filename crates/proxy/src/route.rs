//! A Service port as the data path sees it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::backend::Balancer;

/// What is spoken on a port. It is decided for the port and never for a connection, so no client can choose to pass the
/// HTTP parser by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum AppProtocol {
    /// HTTP/1.1: each request gets a backend; what is not HTTP is refused.
    Http,
    /// Anything else: bytes are relayed, and a connection gets a backend.
    #[default]
    Opaque,
}

/// One port of one Service; every listener for it shares this.
#[derive(Debug, Default)]
pub(crate) struct Route {
    /// Unique in the process; 0 is what leaves for the world.
    pub(crate) id: u64,
    /// `namespace/service:port`
    pub(crate) name: String,
    http: AtomicBool,
    trusts_forwarded: AtomicBool,
    pub(crate) balancer: Balancer,
}

impl Route {
    pub(crate) fn new(name: String) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), name, ..Self::default() }
    }

    pub(crate) fn app_protocol(&self) -> AppProtocol {
        if self.http.load(Ordering::Relaxed) { AppProtocol::Http } else { AppProtocol::Opaque }
    }

    /// Holds for connections that come from now on.
    pub(crate) fn set_app_protocol(&self, protocol: AppProtocol) {
        self.http.store(protocol == AppProtocol::Http, Ordering::Relaxed);
    }

    /// Whether clients of this port are proxies of the user's own, whose `Forwarded` fields are passed on.
    pub(crate) fn trusts_forwarded(&self) -> bool {
        self.trusts_forwarded.load(Ordering::Relaxed)
    }

    pub(crate) fn set_trusts_forwarded(&self, trusts: bool) {
        self.trusts_forwarded.store(trusts, Ordering::Relaxed);
    }
}
