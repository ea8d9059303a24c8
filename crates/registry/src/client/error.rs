//! Why a registry could not do what was asked.

use std::{error::Error as StdError, fmt, path::PathBuf};

use http::StatusCode;
use oci::{Digest, Platform, Reference};

/// What a request was about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Registry(String),
    Manifest(Reference),
    Blob(Reference, Digest),
    Tags(Reference),
    Token(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Registry(domain) => write!(f, "registry {domain}"),
            Subject::Manifest(reference) => write!(f, "image {}", reference.familiar()),
            Subject::Blob(reference, digest) => write!(f, "blob {} of {}", digest.short(), reference.name()),
            Subject::Tags(reference) => write!(f, "tags of {}", reference.name()),
            Subject::Token(domain) => write!(f, "token service of {domain}"),
        }
    }
}

/// Errors of the client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the certificates of the extra authority cannot be read")]
    ExtraCa(#[source] Box<dyn StdError + Send + Sync>),
    #[error("registry {registry} cannot be reached")]
    Connect { registry: String, source: Box<dyn StdError + Send + Sync> },
    #[error("registry {registry} did not answer within {seconds} s")]
    Timeout { registry: String, seconds: u64 },
    #[error("registry {registry} has an address that cannot be used: {url:?}")]
    Address { registry: String, url: String },
    #[error("{0} is not in the registry")]
    NotFound(Subject),
    #[error("registry {registry} does not let us: {message}")]
    Denied { registry: String, message: String },
    #[error("{what}: the registry answers {status}: {message}")]
    Status { what: Subject, status: StatusCode, message: String },
    #[error("{what}: too many redirects, or one that leaves TLS")]
    Redirect { what: Subject },
    #[error("{what}: the answer was cut short or is too long")]
    Body { what: Subject, source: Box<dyn StdError + Send + Sync> },
    #[error("{what}: the answer cannot be read")]
    Answer { what: Subject, source: serde_json::Error },
    #[error("{what}: the registry named no upload location")]
    NoLocation { what: Subject },
    #[error("{what}: the registry forgot the upload before its end")]
    UploadLost { what: Subject },
    #[error("{} is served with digest {actual}", reference.familiar())]
    WrongDigest { reference: Reference, actual: Digest },
    #[error("{}: manifest is refused", reference.familiar())]
    Manifest { reference: Reference, source: oci::manifest::Error },
    #[error("{}: {media_type:?} is no media type", reference.familiar())]
    MediaType { reference: Reference, media_type: String },
    #[error("{} is not made for {platform}; it has {available}", reference.familiar())]
    NoPlatform { reference: Reference, platform: Platform, available: String },
    #[error("reading {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] images::Error),
    #[error(transparent)]
    Credentials(#[from] crate::credentials::Error),
    #[error("the download was ended")]
    Ended,
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Denied { registry, .. } => Some(format!("log in: `gantry registry login {registry}`")),
            Error::Connect { registry, .. } => Some(format!("check the name, and that {registry} is up")),
            Error::NotFound(Subject::Manifest(reference)) if reference.is_embedded() => {
                Some("`gantry image ls` lists the images that are here".into())
            }
            Error::NotFound(Subject::Manifest(reference)) => Some(format!(
                "check the name and the tag; a private image needs `gantry registry login {}`",
                reference.domain()
            )),
            Error::Status { status: StatusCode::INSUFFICIENT_STORAGE, .. } => {
                Some("free space on the registry's disk; `gantry image rm NAME` gives up an image".into())
            }
            Error::UploadLost { .. } => Some("run the command again when the registry is up".into()),
            Error::Store(error) => error.hint(),
            Error::Credentials(error) => error.hint(),
            _ => None,
        }
    }
}
