//! What can become of a write.

use std::sync::Arc;

use crate::Entry;

/// Why a write was refused or failed; the store is as it was.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("the key {0:?} has no /group/plural/name")]
    Key(String),
    #[error("the key exists already")]
    Exists(Entry),
    #[error("the key was changed meanwhile, at revision {}", .0.revision)]
    Changed(Entry),
    #[error("the key does not exist")]
    Missing,
    #[error("the disk of the store is full")]
    Full(#[source] Arc<redb::Error>),
    #[error("the store could not be written")]
    Disk(#[source] Arc<redb::Error>),
    #[error("exceeded quota: the store holds {used} of at most {limit} bytes, and this needs {wanted} more")]
    Quota { used: u64, wanted: u64, limit: u64 },
    #[error("the store is closed")]
    Closed,
}

impl Error {
    /// A remedy, where there is one.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Full(_) => "free space on the file system of the state folder; nothing was changed",
            Error::Quota { .. } => "delete objects that nobody needs; nothing was changed",
            _ => return None,
        };
        Some(hint.into())
    }

    /// The disk is full, and what is left is for deletions.
    pub(crate) fn short() -> Self {
        Error::from_disk(redb::Error::Io(std::io::ErrorKind::StorageFull.into()))
    }

    pub(crate) fn from_disk(source: redb::Error) -> Self {
        let full = match &source {
            redb::Error::Io(error) => matches!(
                error.kind(),
                std::io::ErrorKind::StorageFull
                    | std::io::ErrorKind::QuotaExceeded
                    | std::io::ErrorKind::FileTooLarge
            ),
            _ => false,
        };
        if full { Error::Full(Arc::new(source)) } else { Error::Disk(Arc::new(source)) }
    }
}
