//! What the daemon and a service manager say to each other (sd_notify(3), sd_listen_fds(3)).
//!
//! Listening sockets are put into the manager's descriptor store under their hand-over names, so that no port is closed
//! when daemon and proxy die together. Without a manager all of this does nothing.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};

use crate::access::STORED_LISTENERS_MAX;

/// The first descriptor that a manager hands over.
const FIRST: i32 = 3;
/// Of a name in the store.
const NAME_BYTES_MAX: usize = 255;

/// Says something to the manager; nothing if there is none.
pub fn notify(text: &str) {
    if let Err(error) = send(text, None) {
        tracing::warn!(%error, text, "tell the service manager");
    }
}

/// Puts a listening socket into the manager's store, or takes it out.
pub fn store(name: &str, descriptor: Option<&OwnedFd>) {
    let Some(stored) = stored_name(name) else {
        return tracing::warn!(name, "this listener's name does not fit into the service manager's store");
    };
    let said = match descriptor {
        // A listener is never at its end: the manager need not look for that.
        Some(descriptor) => send(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={stored}"), Some(descriptor)),
        None => send(&format!("FDSTOREREMOVE=1\nFDNAME={stored}"), None),
    };
    if let Err(error) = said {
        tracing::warn!(%error, name, "have the service manager hold a listener");
    }
}

fn send(text: &str, descriptor: Option<&OwnedFd>) -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
        return Ok(());
    };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
        path => SocketAddrUnix::new(path)?,
    };
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(|descriptor| descriptor.as_fd());
    if let Some(descriptor) = &descriptors {
        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(descriptor)));
    }
    let text = [IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg_addr(&socket, &address, &text, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// What the manager held for this process, by hand-over name. Once a process, before it opens anything else.
pub fn stored() -> Vec<(String, OwnedFd)> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    if number("LISTEN_PID") != Some(std::process::id() as usize) {
        return Vec::new();
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let count = number("LISTEN_FDS").unwrap_or_default().min(STORED_LISTENERS_MAX);
    let mut found = Vec::new();
    for (descriptor, name) in (FIRST..).zip(names.split(':')).take(count) {
        // SAFETY: the number is only looked at; a descriptor that is not open is an error of fcntl.
        if rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(descriptor) }).is_err() {
            continue;
        }
        // SAFETY: the manager left it open for this process, and nothing else in it knows the number.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        if rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC).is_ok() {
            found.push((name.replace(';', ":"), descriptor));
        }
    }
    found
}

/// A name as the store takes it: without colons, which separate names there; `None` if it is too long.
fn stored_name(name: &str) -> Option<String> {
    let stored = name.replace(':', ";");
    (stored.len() <= NAME_BYTES_MAX && !stored.contains(|c: char| c.is_control() || !c.is_ascii()))
        .then_some(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_from_the_store() {
        for name in ["kubernetes", "host/tcp/127.0.0.1:8080", "host/udp/[::1]:53"] {
            let stored = stored_name(name).unwrap();
            assert!(!stored.contains(':'));
            assert_eq!(stored.replace(';', ":"), name);
        }
        assert_eq!(stored_name(&"x".repeat(256)), None);
        assert_eq!(stored_name("a\nb"), None);
    }
}
