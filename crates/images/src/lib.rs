//! The image store on disk: blobs by digest, names as files, and unpacked trees.
//!
//! Invariants:
//! - A file in `blobs/` is whole and is what its name says: it was hashed, synced, then renamed into place.
//! - A name or a manifest points only at blobs that were there when it was written.
//! - A tree is unpacked from verified layers only; what is refused leaves nothing behind.
//! - Nothing reachable from a name, a manifest in use, or an upload of the last hour is collected.
//!
//! `FORMAT.md` beside this crate describes the files. All functions block: call them off the event loop.

mod clone;
mod error;
mod export;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod garbage;
pub mod import;
mod ingest;
mod names;
mod room;
mod snapshot;
mod store;
mod tree;
mod unpack;

pub use error::{ARCHIVE_HINT, Error};
pub use ingest::{Feed, Ingest, Sealed};
pub use names::Revision;
pub use store::Store;
pub use tree::Tree;

/// The result of every operation here.
pub type Result<T, E = Error> = std::result::Result<T, E>;
