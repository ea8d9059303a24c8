//! A Pod's own users: a user namespace that owns the Pod's network namespace (user_namespaces(7)).
//!
//! Nothing but the network namespace is kept: whoever has it finds its owner by `NS_GET_USERNS` (ioctl_ns(2)). The ids
//! follow from the Pod's address, so that no two Pods of a state folder share any.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::libc;
use nix::unistd::{ForkResult, Pid};

use crate::cidr::Cidr;

/// Users and groups that each Pod has.
pub(crate) const IDS: u32 = 1 << 16;

/// The host's id of the user 0 of the Pod with that address; `None` if the range is too large for ids of its own.
pub(crate) fn first_id(pods: Cidr, ip: Ipv4Addr) -> Option<u32> {
    let index = u32::from(ip).checked_sub(u32::from(pods.address()))?;
    // The last id of all is no id.
    index.checked_mul(IDS)?.checked_add(IDS).filter(|end| *end < u32::MAX)?.checked_sub(IDS)
}

/// Makes a network namespace that belongs to users of its own, and mounts it at `path`.
pub(crate) fn create(path: &Path, first: u32) -> io::Result<()> {
    File::options().create(true).append(true).open(path)?;
    let (made, say_made) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (end, say_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: the child makes plain system calls until it ends: it takes no lock and allocates nothing.
    match unsafe { nix::unistd::fork()? } {
        ForkResult::Child => {
            drop(say_end);
            live_in_namespaces(say_made.as_fd(), end.as_fd());
        }
        ForkResult::Parent { child } => {
            drop((say_made, end));
            let result = keep(child, &made, path, first);
            // It ends when nobody can tell it anything any more.
            drop(say_end);
            let waited = nix::sys::wait::waitpid(child, None);
            result.and(waited.map(drop).map_err(io::Error::from))
        }
    }
}

/// The child: only its namespaces are of interest.
fn live_in_namespaces(say_made: BorrowedFd<'_>, end: BorrowedFd<'_>) -> ! {
    // SAFETY: plain system calls on memory of this frame.
    unsafe {
        let said = if libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) == 0 {
            0
        } else {
            *libc::__errno_location()
        };
        let said = said.to_ne_bytes();
        libc::write(std::os::fd::AsRawFd::as_raw_fd(&say_made), said.as_ptr().cast(), said.len());
        let mut nothing = 0u8;
        libc::read(std::os::fd::AsRawFd::as_raw_fd(&end), (&raw mut nothing).cast(), 1);
        libc::_exit(0)
    }
}

fn keep(child: Pid, made: &OwnedFd, path: &Path, first: u32) -> io::Result<()> {
    let mut said = [0; 4];
    if rustix::io::read(made, &mut said)? != said.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match i32::from_ne_bytes(said) {
        0 => {}
        number => return Err(io::Error::from_raw_os_error(number)),
    }
    let process = Path::new("/proc").join(child.to_string());
    for map in ["uid_map", "gid_map"] {
        std::fs::write(process.join(map), format!("0 {first} {IDS}\n"))?;
    }
    Ok(rustix::mount::mount_bind(process.join("ns/net"), path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_pods_share_an_id_and_none_has_the_host_s() {
        let pods: Cidr = "10.244.0.0/16".parse().unwrap();
        let first = |text: &str| first_id(pods, text.parse().unwrap());
        assert_eq!(first("10.244.0.16"), Some(16 << 16));
        assert_eq!(first("10.244.0.17"), Some(17 << 16));
        assert_eq!(first("10.244.255.254"), Some(65534 << 16));
        assert_eq!(first_id("10.0.0.0/8".parse().unwrap(), Ipv4Addr::new(10, 1, 0, 1)), None);
    }
}
