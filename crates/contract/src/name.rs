//! Names of conditions and annotations that one room writes and another reads.

/// The readiness gate and condition of a Pod that names no port: `True` once its program listens.
pub const LISTENING_CONDITION: &str = "node.gantry.dev/Listening";
/// The Pod annotation with what its containers listen on, as a JSON list.
pub const LISTENING_ANNOTATION: &str = "node.gantry.dev/listening";
/// The Service condition with which the proxy says whether the host listens for it.
pub const BOUND_CONDITION: &str = "proxy.gantry.dev/Bound";
/// The Service annotation that lets the proxy take the next free port of the host, if it says `auto`.
pub const HOST_PORT_ANNOTATION: &str = "proxy.gantry.dev/host-port";
/// The Service annotation with the host's address to listen on, beyond loopback.
pub const EXPOSE_ANNOTATION: &str = "proxy.gantry.dev/expose";
