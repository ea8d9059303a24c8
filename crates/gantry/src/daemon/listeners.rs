//! The daemon's listening sockets, and how each takes connections.

use anyhow::{Context, Result};
use lifecycle::Scope;
use lifecycle::connections::Limits;

use super::proxy;
use super::state::{self, LISTENERS, Listener, POD_CONNECTIONS, State};
use crate::access::Endpoints;

/// The daemon's listening sockets, as the standard library's: duplicates go to the proxy.
pub(super) struct Listeners {
    sockets: Vec<(&'static Listener, std::net::TcpListener)>,
}

impl Listeners {
    /// Takes each from the proxy, if that holds it from an earlier daemon, or binds it.
    pub(super) fn open(state: &State, kept: &proxy::Kept) -> Result<Self> {
        let known = Endpoints::read(&state.dir)
            .map_err(|failure| anyhow::anyhow!("{failure}"))
            .context("read the addresses of an earlier start")?
            .unwrap_or_default();
        let mut sockets = Vec::new();
        for listener in LISTENERS {
            let socket = match kept.listener(listener.name) {
                Some(socket) => socket,
                None => state::bind(listener, state::known_port(&known, listener.name))?,
            };
            socket.set_nonblocking(true)?;
            sockets.push((listener, socket));
        }
        Ok(Self { sockets })
    }

    fn get(&self, name: &str) -> Result<&std::net::TcpListener> {
        let found = self.sockets.iter().find(|(listener, _)| listener.name == name);
        found.map(|(_, socket)| socket).with_context(|| format!("there is no listener {name}"))
    }

    pub(super) fn tokio(&self, name: &str) -> Result<tokio::net::TcpListener> {
        Ok(tokio::net::TcpListener::from_std(self.get(name)?.try_clone()?)?)
    }

    /// How a listener takes connections: plain HTTP.
    pub(super) fn config(&self, name: &str) -> Result<listen::Config> {
        let found = self.sockets.iter().find(|(listener, _)| listener.name == name);
        let (listener, _) = found.with_context(|| format!("there is no listener {name}"))?;
        Ok(config(listener.bound, listener.connections))
    }

    /// Duplicates with their names, for the proxy to hold.
    pub(super) fn named(&self) -> Vec<(&'static str, std::net::TcpListener)> {
        let duplicates = self
            .sockets
            .iter()
            .filter_map(|(listener, socket)| Some((listener.name, socket.try_clone().ok()?)));
        duplicates.collect()
    }

    pub(super) fn endpoints(&self) -> Result<Endpoints> {
        let address = |name: &str| -> Result<String> {
            let found = self.sockets.iter().find(|(listener, _)| listener.name == name);
            let (listener, socket) = found.with_context(|| format!("there is no listener {name}"))?;
            Ok(format!("{}://{}", listener.scheme, socket.local_addr()?))
        };
        Ok(Endpoints {
            kubernetes: address("kubernetes")?,
            registry: address("registry")?,
            console: address("console")?,
            version: crate::version::VERSION.to_owned(),
        })
    }
}

/// Serves plain HTTP on a listener until the scope ends.
pub(super) fn serve(
    listeners: &Listeners,
    name: &'static str,
    router: axum::Router,
    scope: &Scope,
) -> Result<()> {
    let (socket, config) = (listeners.tokio(name)?, listeners.config(name)?);
    let token = scope.token();
    scope.spawn_graceful(name, listen::serve(socket, config, move |_| router.clone(), token));
    Ok(())
}

/// How a listener with that bound takes connections: as many as its row says, fewer where the process may open few
/// descriptors.
pub(super) fn config(bound: &'static str, limits: Limits) -> listen::Config {
    let wanted =
        LISTENERS.iter().map(|listener| listener.connections.total).sum::<usize>() + POD_CONNECTIONS.total;
    let limits = scaled(limits, wanted, listen::descriptors());
    listen::Config { name: bound, limits, times: listen::Times::default(), tls: None }
}

/// A part of `limits`, so that all of them, `wanted` together, fit into `there`.
fn scaled(limits: Limits, wanted: usize, there: usize) -> Limits {
    let part = |count: usize| (count * there.min(wanted) / wanted).max(1);
    Limits { total: part(limits.total), group: part(limits.group), peer: part(limits.peer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_share_the_descriptors_that_there_are() {
        let limits = Limits { total: 2048, group: 2048, peer: 512 };
        assert_eq!(scaled(limits, 5376, 15_000), limits);
        assert_eq!(scaled(limits, 5376, 768), Limits { total: 292, group: 292, peer: 73 });
        assert!(scaled(limits, 5376, 0).total > 0);
    }
}
