//! Trying things as nobody.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::libc;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use super::super::doors::NOBODY;
use super::things::Thing;

/// A listener on loopback answers at once, or not at all.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How many attempts were made, and those that succeeded: what can be done to what.
pub(super) fn as_nobody(things: &BTreeSet<Thing>) -> Result<(usize, Vec<(&'static str, Thing)>)> {
    std::thread::scope(|scope| {
        let work = || {
            become_nobody()?;
            let mut tried = Tried::default();
            things.iter().for_each(|thing| tried.all(thing));
            Ok((tried.attempts, tried.reached))
        };
        match scope.spawn(work).join() {
            Ok(tried) => tried,
            Err(_) => bail!("trying as nobody panicked"),
        }
    })
}

/// Makes the calling thread, and no other, nobody's: the C library's calls would change them all.
fn become_nobody() -> Result<()> {
    let id = libc::c_long::from(NOBODY);
    let calls = [
        (libc::SYS_setgroups, [0, 0, 0], "setgroups"),
        (libc::SYS_setresgid, [id, id, id], "setresgid"),
        (libc::SYS_setresuid, [id, id, id], "setresuid"),
    ];
    for (number, [a, b, c], name) in calls {
        // SAFETY: these calls change the calling thread's credentials and read no memory (the list of groups is empty).
        if unsafe { libc::syscall(number, a, b, c) } != 0 {
            return Err(std::io::Error::last_os_error()).with_context(|| format!("{name} (root only)"));
        }
    }
    match File::open("/etc/shadow") {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        _ => bail!("as nobody the thread still reads /etc/shadow"),
    }
}

#[derive(Default)]
struct Tried {
    attempts: usize,
    reached: Vec<(&'static str, Thing)>,
}

impl Tried {
    fn one(&mut self, verb: &'static str, thing: &Thing, succeeded: bool) {
        self.attempts += 1;
        if succeeded {
            self.reached.push((verb, thing.clone()));
        }
    }

    fn all(&mut self, thing: &Thing) {
        match thing {
            Thing::Folder(path) => {
                self.one("enter", thing, path.join(".").symlink_metadata().is_ok());
                self.one("list", thing, std::fs::read_dir(path).is_ok());
                let made = path.join(".modes");
                let writes = File::options().write(true).create_new(true).open(&made);
                self.one("write", thing, writes.is_ok());
                if writes.is_ok() {
                    // It is ours; what is left is found by the next look.
                    let _ = std::fs::remove_file(made);
                }
            }
            Thing::File(path) => {
                let read = open(path, OpenOptions::new().read(true));
                self.one("read", thing, read.is_ok());
                let locks = read.is_ok_and(|file| file.try_lock().is_ok() || file.try_lock_shared().is_ok());
                self.one("lock", thing, locks);
                self.one("write", thing, open(path, OpenOptions::new().append(true)).is_ok());
            }
            Thing::Pipe(path) => {
                self.one("read", thing, open(path, OpenOptions::new().read(true)).is_ok());
                self.one("write", thing, open(path, OpenOptions::new().write(true)).is_ok());
            }
            Thing::Socket(path) => {
                let address = SocketAddrUnix::new(path);
                let long = |_| via_folder(path);
                let connects = address.or_else(long).is_ok_and(|address| connects(&address));
                self.one("connect", thing, connects);
            }
            Thing::Abstract(name) => {
                let address = SocketAddrUnix::new_abstract_name(name);
                self.one("connect", thing, address.is_ok_and(|address| connects(&address)));
            }
            Thing::Listener(address) => {
                self.one("connect", thing, TcpStream::connect_timeout(address, CONNECT_MAX).is_ok());
            }
            Thing::Process(path) => {
                self.one(
                    "read",
                    thing,
                    std::fs::read_dir(path).is_ok() || open(path, OpenOptions::new().read(true)).is_ok(),
                );
            }
            Thing::Cgroup(path) => {
                self.one("write", thing, open(path, OpenOptions::new().write(true)).is_ok());
            }
        }
    }
}

fn open(path: &Path, options: &mut OpenOptions) -> std::io::Result<File> {
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)
}

/// A path that is too long for a socket's address, by its folder's descriptor.
fn via_folder(path: &Path) -> rustix::io::Result<SocketAddrUnix> {
    let (folder, name) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
    let opened = rustix::fs::open(folder, flags, rustix::fs::Mode::empty())?;
    let short = format!(
        "/proc/thread-self/fd/{}/{}",
        std::os::fd::AsRawFd::as_raw_fd(&opened),
        name.to_string_lossy()
    );
    // Leaked for the short time of this rung: the address is a name, and the name needs the descriptor.
    std::mem::forget(opened);
    SocketAddrUnix::new(short)
}

/// Whether a socket of any kind connects.
fn connects(address: &SocketAddrUnix) -> bool {
    [SocketType::STREAM, SocketType::SEQPACKET, SocketType::DGRAM].into_iter().any(|kind| {
        let socket = rustix::net::socket(AddressFamily::UNIX, kind, None);
        socket.is_ok_and(|socket| rustix::net::connect(&socket, address).is_ok())
    })
}
