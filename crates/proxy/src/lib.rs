//! Services as sockets: balancing, draining, DNS and egress, in a process of its own that outlives the daemon.

mod backend;
mod buffer;
mod egress;
mod http1;
mod io;
mod metrics;
mod relay;
mod route;
mod sniff;
mod worker;

use std::time::Duration;

/// The bounds of the data path.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections from clients at a time; more wait in the listeners' backlogs.
    pub connections_max: usize,
    /// How long a connection to a backend may take to be made.
    pub connect_timeout: Duration,
    /// How long a request or connection waits for a backend.
    pub patience: Duration,
    /// How long a request's head may take to arrive.
    pub head_timeout: Duration,
    /// How long a client's connection is kept without a request.
    pub keepalive_timeout: Duration,
    /// How long a request or a relayed connection may carry nothing.
    pub idle_timeout: Duration,
    /// How long an idle client keeps its connection to a process that hands over.
    pub drain_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 8192,
            connect_timeout: Duration::from_secs(2),
            patience: Duration::from_secs(3),
            head_timeout: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(75),
            idle_timeout: Duration::from_secs(3600),
            drain_idle: Duration::from_secs(1),
        }
    }
}
