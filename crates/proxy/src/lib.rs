//! Services as sockets: balancing, draining, DNS and egress, in a process of its own that outlives the daemon.
//!
//! ```text
//! API ── watch ──> control ──> routes (backends by Service port)        status, Lease ──> API
//!                     └──────> sockets ──> workers: accept → http1 | relay ──> Pods
//!                                          dns, udp, egress
//! ```
//!
//! **Invariant:** a Pod that is to go gets nothing new from the moment that this process hears of it, and the node hears
//! from here when nothing is in flight to it any more.

mod backend;
mod buffer;
mod client;
mod control;
mod destination;
mod dns;
mod drain;
mod egress;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod handover;
mod http1;
mod io;
mod metrics;
mod model;
#[cfg(test)]
mod namespace_tests;
mod pool;
mod ports;
mod relay;
mod route;
mod run;
mod sockets;
mod source;
pub mod spawn;
mod status;
#[cfg(test)]
mod tests;
mod udp;
mod watch;
mod worker;

pub use client::{Error as ClientError, from_kubeconfig};
pub use destination::Allowance;
pub use run::{Config, Error, run};

use std::time::Duration;

/// The bounds of the data path.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Threads that carry traffic; 0: one for each processor, at most 8.
    pub workers: usize,
    /// Connections from clients at a time; beyond them the idlest of whoever holds most gives way.
    pub connections_max: usize,
    /// How long a connection to a backend may take to be made.
    pub connect_timeout: Duration,
    /// How long a request or connection waits for a backend.
    pub patience: Duration,
    /// How long a new connection may be silent.
    pub first_byte_timeout: Duration,
    /// How long a request's head may take to arrive.
    pub head_timeout: Duration,
    /// How long a client's connection is kept without a request.
    pub keepalive_timeout: Duration,
    /// How long a request or a relayed connection may carry nothing.
    pub idle_timeout: Duration,
    /// How long an idle client keeps its connection to a process that hands over.
    pub drain_idle: Duration,
    /// How long a process that is told to end finishes what it carries.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            workers: 0,
            connections_max: 8192,
            connect_timeout: Duration::from_secs(2),
            patience: Duration::from_secs(3),
            first_byte_timeout: Duration::from_secs(60),
            head_timeout: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(75),
            idle_timeout: Duration::from_secs(3600),
            drain_idle: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(10),
        }
    }
}
