//! What Pods write, kept in bounds: limits of emptyDirs, containers and Pods, and the disk of the state folder.
//!
//! ```text
//! every 2 s: statvfs ──> Pressure ──> Node's DiskPressure, its taint, images that nothing needs
//!            Walks of Pods with limits (under pressure: of all) ──> limit::exceeded, pressure::victim ──> Eviction
//! ```
//!
//! **Invariant:** one scanner counts for all Pods, and a round has a budget: a Pod that makes millions of files slows its
//! own count down, nobody else's. A count that is not through yet is compared nevertheless: it only ever grows.
//! What a program removed while it holds it open is not seen.

pub mod limit;
pub mod pressure;
mod scan;
pub mod usage;

pub(crate) use scan::Scanner;

/// Why a Pod has to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// For `status.message` and the event.
    pub message: String,
    /// Whether the node needs the space, rather than the Pod having gone beyond its own limit.
    pub pressure: bool,
}
