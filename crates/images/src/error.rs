//! Why an operation on the store failed.

use std::{
    io,
    path::{Path, PathBuf},
};

use oci::{Digest, Platform};

/// What to do about an archive that is refused, whichever part of it lies.
pub const ARCHIVE_HINT: &str =
    "nothing was changed; make the archive again with `docker save` or `skopeo copy`";

/// Errors of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{step} {}", path.display())]
    Io {
        /// What was being done, such as "writing".
        step: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("another process uses the image store")]
    Locked(#[source] durable::lock::Error),
    #[error("too many uploads at once: {0} are under way")]
    Busy(u64),
    #[error("blob {0} is not in the store")]
    BlobMissing(Digest),
    #[error("blob {0} is used by an image")]
    BlobUsed(Digest),
    #[error("content is {actual}, but was announced as {expected}")]
    WrongDigest { expected: Digest, actual: Digest },
    #[error("blob {digest} has {actual} bytes, but was announced with {expected}")]
    WrongSize { digest: Digest, expected: u64, actual: u64 },
    #[error("content is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("manifest {digest}")]
    Manifest { digest: Digest, source: oci::manifest::Error },
    #[error("manifest is refused")]
    InvalidManifest(#[source] oci::manifest::Error),
    #[error("image configuration {digest} is no valid JSON of its type")]
    Config { digest: Digest, source: serde_json::Error },
    #[error("layer {digest} is refused")]
    Layer { digest: Digest, source: oci::layer::Error },
    #[error("there is no room for layer {digest}: {bytes} bytes are free beyond what is kept")]
    NoRoom { digest: Digest, bytes: u64 },
    #[error("index {digest} has no image for {platform}")]
    NoPlatform { digest: Digest, platform: Box<Platform> },
    #[error("image {0} is not in the store")]
    NameUnknown(String),
    #[error("{} has a format that this version does not read", path.display())]
    Format { path: PathBuf },
    #[error("image archive cannot be read")]
    Archive(#[source] oci::layer::Error),
    #[error("image archive is refused: {0}")]
    ArchiveRefused(crate::import::Refused),
    #[error("writing the image archive failed")]
    Export(#[source] io::Error),
}

impl Error {
    /// Wraps an I/O error with what was being done to which path.
    pub(crate) fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { step, path, source }
    }

    /// Is the disk full (or the quota used up)?
    pub fn is_disk_full(&self) -> bool {
        if matches!(self, Error::NoRoom { .. }) {
            return true;
        }
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            if let Some(io) = error.downcast_ref::<io::Error>()
                && matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            {
                return true;
            }
            next = error.source();
        }
        false
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        if self.is_disk_full() {
            return Some("free space there; `gantry image rm NAME` gives up an image, and the daemon what it alone needed".into());
        }
        match self {
            Error::NameUnknown(_) => Some("`gantry image ls` lists the images that are here".into()),
            Error::Busy(_) => Some("try again when an upload has ended".into()),
            Error::BlobUsed(_) => Some("delete the image's manifest first".into()),
            Error::ArchiveRefused(crate::import::Refused::Unnamed) => {
                Some("save it by name: docker save NAME:TAG -o FILE".into())
            }
            Error::Archive(_) | Error::ArchiveRefused(_) | Error::Layer { .. } => Some(ARCHIVE_HINT.into()),
            _ => None,
        }
    }
}
