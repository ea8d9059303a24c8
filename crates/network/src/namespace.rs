//! Network namespaces as files (`man 7 network_namespaces`), and threads that live in them.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

const OWN: &str = "/proc/thread-self/ns/net";
/// `NSFS_MAGIC` of `linux/magic.h`
const NAMESPACE_FILE_SYSTEM: i64 = 0x6e73_6673;

/// Whether `path` is a namespace that is mounted there.
pub(crate) fn is_mounted(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type == NAMESPACE_FILE_SYSTEM)
}

/// Moves the calling thread into the namespace at `path`.
pub(crate) fn enter(path: &Path) -> io::Result<()> {
    let namespace = File::open(path)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// Moves the calling thread into a new namespace and mounts it at `path`, so that it outlives the thread.
pub(crate) fn create(path: &Path) -> io::Result<()> {
    File::options().create(true).append(true).open(path)?;
    // SAFETY: only the network namespace is left; no memory or descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    mount_bind(OWN, path)?;
    Ok(())
}

/// Unmounts the namespace and removes its file. One that is not there is no error.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    while is_mounted(path) {
        unmount(path, UnmountFlags::DETACH)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread that stays in one namespace and runs short jobs there.
#[derive(Debug)]
pub(crate) struct Resident {
    jobs: Sender<Job>,
}

impl Resident {
    /// Starts the thread; `move_in` puts it where it belongs.
    pub(crate) fn start(
        name: &str,
        move_in: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, inbox) = channel::<Job>();
        let (moved, result) = channel();
        std::thread::Builder::new().name(name.to_owned()).stack_size(128 * 1024).spawn(move || {
            let arrived = move_in();
            let stay = arrived.is_ok();
            if moved.send(arrived).is_ok() && stay {
                inbox.into_iter().for_each(|job| job());
            }
        })?;
        result.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self { jobs })
    }

    /// Runs the job there and waits for it. Each caller has at most one job waiting, so the queue needs no limit.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (done, result) = channel();
        let job = move || {
            // Who asked may have gone; nobody else wants the answer.
            let _ = done.send(job());
        };
        self.jobs.send(Box::new(job)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        result.recv().map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Sets a sysctl of the calling thread's namespace, such as `ipv4/ip_forward`.
pub(crate) fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    // `/proc/sys/net` shows the namespace of the thread that opens it.
    std::fs::write(Path::new("/proc/sys/net").join(name), value)
        .map_err(|error| io::Error::new(error.kind(), format!("set net/{name} to {value}: {error}")))
}

/// The same for one that only makes things better.
pub(crate) fn sysctl(name: &str, value: &str) {
    if let Err(error) = set_sysctl(name, value) {
        tracing::warn!(%error, name, value, "set a sysctl inside our own network namespace");
    }
}
