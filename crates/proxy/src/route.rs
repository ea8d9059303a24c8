//! A Service port as the data path sees it.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::backend::Balancer;

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Speech {
    /// Whoever speaks first decides.
    #[default]
    Unknown,
    /// HTTP/1.1, by `appProtocol`.
    Http,
    /// Anything else: bytes are relayed.
    Opaque,
}

/// One port of one Service; every listener for it shares this.
#[derive(Debug, Default)]
pub(crate) struct Route {
    /// `namespace/service:port`
    pub(crate) name: String,
    speech: AtomicU8,
    pub(crate) balancer: Balancer,
}

impl Route {
    pub(crate) fn new(name: String) -> Self {
        Self { name, ..Self::default() }
    }

    pub(crate) fn speech(&self) -> Speech {
        match self.speech.load(Ordering::Relaxed) {
            1 => Speech::Http,
            2 => Speech::Opaque,
            _ => Speech::Unknown,
        }
    }

    pub(crate) fn set_speech(&self, speech: Speech) {
        let code = match speech {
            Speech::Unknown => 0,
            Speech::Http => 1,
            Speech::Opaque => 2,
        };
        self.speech.store(code, Ordering::Relaxed);
    }
}
