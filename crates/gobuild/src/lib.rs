//! From Go source to an OCI image: the caller's own Go toolchain compiles, this crate lays out the image and
//! streams it into a [`Sink`].
//!
//! Invariant: an image depends on the source, the toolchain version and the options; never on the folder, the
//! host, the number of cores, the date or the VCS state.

mod base;
pub mod buildinfo;
pub mod compile;
pub mod files;
mod folder;
pub mod go;
pub mod image;
pub mod layout;
pub mod plan;
mod sink;
mod target;

pub use compile::Binary;
pub use plan::{Options, Plan};
pub use sink::{Sink, Source};
pub use target::Target;
