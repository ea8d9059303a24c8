//! Where images go.

use std::{future::Future, path::PathBuf};

use bytes::Bytes;
use oci::{Descriptor, Digest};

/// The bytes of a blob.
#[derive(Clone, Debug)]
pub enum Source {
    Bytes(Bytes),
    /// A file that lives until the sink has returned.
    File(PathBuf),
}

/// A place that keeps blobs and manifests: a registry, an image layout, an image store.
pub trait Sink: Sync {
    type Error: std::error::Error + Send + Sync + 'static;

    /// Whether a blob is there already, so that it need not be made and sent.
    fn has_blob(&self, digest: &Digest) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Keeps a blob, whole and verified, before it returns.
    fn put_blob(
        &self,
        descriptor: &Descriptor,
        source: Source,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Keeps a manifest whose blobs have been put.
    fn put_manifest(
        &self,
        descriptor: &Descriptor,
        bytes: Bytes,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}
