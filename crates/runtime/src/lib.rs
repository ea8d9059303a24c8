//! Containers on one machine: OCI spec, root file system, cgroups, seccomp, and a keeper for each.
//!
//! The daemon holds a [`Runtime`]; each container has a keeper, a small process of its own ([`keeper_main`]) that
//! made the container, holds its output and its exit code, and outlives the daemon. What they say to each other
//! is in [`protocol`]; what a bundle holds on disk is in [`bundle`].
//!
//! **Invariants.** An exit code is the kernel's, or unknown; never a guess. Neither the daemon's death nor the
//! keeper's ends a container. Everything outside the state folder carries the instance's mark, and nothing else
//! is ever removed. No mount is made in the machine's own mount namespace.

pub mod bench;
pub mod bundle;
mod capability;
pub mod cgroup;
mod container;
pub mod create;
mod explain;
mod keeper;
mod mounts;
mod process;
pub mod protocol;
mod rootfs;
mod runtime;
mod seccomp;
mod spec;
mod users;

pub use capability::UnknownCapability;
pub use container::{Attach, Attached, Container, Error, Input, Output, State, Status};
pub use explain::{Unrunnable, explain};
pub use keeper::keeper_main;
pub use protocol::Exit;
pub use runtime::{Config, OpenError, Runtime};
pub use spec::{
    Access, Capabilities, Log, Mount, MountKind, Namespace, Resources, Rlimit, Rootfs, Seccomp, Spec, User,
    Users,
};
