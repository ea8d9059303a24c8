//! What several processes or crates agree on: names in objects, the drain deadline, who holds a Lease.
//!
//! **Invariant:** each is defined here and nowhere else. Two definitions of one thing agree until someone changes one.

pub mod drain;
pub mod holder;
pub mod name;

pub use holder::Holder;
