//! The node agent: makes Pods real on this machine, and serves kubelet's HTTP API.
//!
//! ```text
//! watch of Pods ──> Node ──> one worker a Pod UID ──> plan (pure) ──> actions ──> runtime, network, images
//!                                   │    ^                                │
//!                 pods/status <─────┘    └──── exits, probes, Listening ──┘
//! ```
//!
//! **Invariants.** Only a Pod's worker touches what belongs to it. Nothing is decided by an event, only by what is:
//! the object, and what the runtime, the network and probes say now. A restart of the daemon restarts no container,
//! and no exit code is invented. A container whose Pod is being deleted gets its stop signal only after every live
//! proxy has said that it has drained it, or at the drain deadline.

pub mod adapters;
pub mod admission;
pub mod backoff;
pub mod drain;
pub mod env;
mod etc;
mod events;
pub mod fields;
mod gate;
mod kubelet;
pub mod limits;
pub mod logs;
mod machine;
mod node;
pub mod observed;
pub mod plan;
pub mod ports;
pub mod probe;
mod quantity;
mod registration;
pub mod spec;
pub mod status;
pub mod storage;
mod text;
pub mod user;
pub mod volumes;
pub mod worker;

pub use node::{Config, Node, OpenError};
