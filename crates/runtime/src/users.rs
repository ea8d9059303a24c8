//! Users of a container's own: a user namespace (user_namespaces(7)) that owns the Pod's network namespace.
//!
//! Whoever made the network namespace made it from inside the user namespace, so the one leads to the other, and
//! nothing else has to be kept. The container's IPC, UTS, mount and pid namespaces are made after it has been joined,
//! so it owns them too.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::libc;

use crate::spec::{Namespace, Spec, Users};

/// `_IO(0xb7, 0x1)`, ioctl_ns(2)
const NS_GET_USERNS: libc::Ioctl = 0xb701;

/// The namespaces that are joined, open until the container's first process has done so.
pub struct Joined {
    pub users: OwnedFd,
    pub network: OwnedFd,
}

/// `None`: the container's users are the machine's.
pub fn open(spec: &Spec) -> io::Result<Option<Joined>> {
    let Users::Own { .. } = spec.users else { return Ok(None) };
    let Namespace::Path(path) = &spec.netns else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it has no network namespace of its own"));
    };
    let network = OwnedFd::from(File::open(path)?);
    // SAFETY: the request takes no argument, and answers with a new descriptor.
    let users = unsafe { libc::ioctl(network.as_raw_fd(), NS_GET_USERNS) };
    if users < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made for us.
    let users = unsafe { OwnedFd::from_raw_fd(users) };
    let is_machines = rustix::fs::fstat(&users)?.st_ino == rustix::fs::stat("/proc/self/ns/user")?.st_ino;
    if is_machines {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "its network namespace is the machine's users'",
        ));
    }
    Ok(Some(Joined { users, network }))
}
