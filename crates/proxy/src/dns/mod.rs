//! The cluster's DNS server: Services under `cluster.local`, everything else from the host's servers.

mod forward;
mod server;
mod zone;

pub(crate) use server::{Server, serve_tcp, serve_udp};
#[cfg(feature = "fuzzing")]
pub(crate) use zone::respond;
