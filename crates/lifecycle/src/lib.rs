//! Tasks with an owner, and bounds that can be seen.
//!
//! **Invariant:** a task belongs to a [`Scope`]; when the scope is shut down or dropped, the task is told to stop,
//! and who waits for it waits no longer than a deadline. A queue, cache or retry has a [`bound::Bound`], which is a
//! metric too.

pub mod bound;
pub mod connections;
pub mod metrics;
mod scope;

pub use scope::Scope;
pub use tokio_util::sync::CancellationToken;
