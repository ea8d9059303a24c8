//! Why a container could not be made.

use std::io;
use std::path::PathBuf;

use crate::protocol::Step;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("container id {0:?} is not 1 to 64 of a-z, A-Z, 0-9, '.', '_', '-'")]
    Id(String),
    #[error("folder {0} for a container is outside of the state folder")]
    Bundle(PathBuf),
    #[error("container {0} exists already")]
    Exists(String),
    #[error("container {0} has no program to run")]
    NoArgs(String),
    #[error("{what} of container {id} contains a NUL byte")]
    Nul { id: String, what: &'static str },
    #[error(transparent)]
    Capability(#[from] crate::UnknownCapability),
    #[error("unknown resource limit {0:?}")]
    Rlimit(String),
    #[error("mount target {0} is not an absolute path inside the container")]
    MountTarget(PathBuf),
    #[error("look at what is to be mounted, {path}")]
    Source { path: PathBuf, source: io::Error },
    #[error("the image has something else where {target} is to be mounted: {found}")]
    MountPoint { target: PathBuf, found: PathBuf },
    #[error("{step} {path}")]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("start a keeper for container {id}")]
    Spawn { id: String, source: io::Error },
    #[error("the keeper of container {id} ended before it had made the container")]
    KeeperGone { id: String, source: io::Error },
    #[error("the keeper of container {0} did not answer in time")]
    KeeperSilent(String),
    #[error("container {id}: {reason}")]
    Refused { id: String, step: Step, reason: String },
}

impl Error {
    pub(crate) fn io(step: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Error {
        Error::Io { step, path: path.into(), source }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::MountPoint { target, .. } if crate::bundle::default_targets().any(|own| own == target) => {
                Some(format!("make {} an empty folder in the image, or leave it out", target.display()))
            }
            Error::MountPoint { target, .. } => {
                Some(format!("mount over another path than {}, or change the image", target.display()))
            }
            Error::Capability(unknown) => Some(unknown.hint()),
            _ => None,
        }
    }
}

/// The kernel's number of a limit (setrlimit(2)).
pub(crate) fn rlimit(name: &str) -> Option<nix::libc::__rlimit_resource_t> {
    use nix::libc;
    Some(match name {
        "RLIMIT_AS" => libc::RLIMIT_AS,
        "RLIMIT_CORE" => libc::RLIMIT_CORE,
        "RLIMIT_CPU" => libc::RLIMIT_CPU,
        "RLIMIT_DATA" => libc::RLIMIT_DATA,
        "RLIMIT_FSIZE" => libc::RLIMIT_FSIZE,
        "RLIMIT_LOCKS" => libc::RLIMIT_LOCKS,
        "RLIMIT_MEMLOCK" => libc::RLIMIT_MEMLOCK,
        "RLIMIT_MSGQUEUE" => libc::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => libc::RLIMIT_NICE,
        "RLIMIT_NOFILE" => libc::RLIMIT_NOFILE,
        "RLIMIT_NPROC" => libc::RLIMIT_NPROC,
        "RLIMIT_RSS" => libc::RLIMIT_RSS,
        "RLIMIT_RTPRIO" => libc::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => libc::RLIMIT_RTTIME,
        "RLIMIT_SIGPENDING" => libc::RLIMIT_SIGPENDING,
        "RLIMIT_STACK" => libc::RLIMIT_STACK,
        _ => return None,
    })
}
