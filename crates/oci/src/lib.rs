//! The Open Container Initiative's formats, without any input or output of their own: references, digests,
//! descriptors, manifests, configurations, and layers as deterministic tar streams.
//!
//! Invariant: what is addressed by a digest is never re-encoded. Parsed types are views for reading; the bytes that
//! were received are what is stored, hashed and sent on.

pub mod config;
pub mod descriptor;
pub mod digest;
pub mod layer;
pub mod manifest;
pub mod media_type;
pub mod platform;
pub mod reference;

pub use config::ImageConfig;
pub use descriptor::Descriptor;
pub use digest::Digest;
pub use manifest::{Document, Index, Manifest};
pub use platform::Platform;
pub use reference::Reference;

/// Reads JSON `null` as the default: Docker writes `null` where OCI leaves a field out.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + serde::Deserialize<'de>,
{
    use serde::Deserialize;
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
