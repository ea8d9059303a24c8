//! Starting the proxy from the daemon, and noticing its end.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use crate::handover;

/// The variable that tells a proxy which descriptor is its end of the link to the daemon.
pub const LINK_VARIABLE: &str = "GANTRY_PROXY_LINK";

/// A proxy process, ours or one that an earlier daemon started.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    child: Option<Child>,
}

impl Process {
    /// A process that runs already, by the number that its link gives.
    pub fn attach(pid: u32) -> io::Result<Self> {
        Self::new(pid, None)
    }

    fn new(pid: u32, child: Option<Child>) -> io::Result<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = crate::io::watched(pidfd_open(number, PidfdFlags::NONBLOCK)?)?;
        Ok(Self { pid, pidfd, child })
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end. It can be awaited again.
    pub async fn exited(&mut self) -> io::Result<()> {
        // A pidfd stays readable from the end on.
        self.pidfd.readable().await?.retain_ready();
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// Sends it SIGTERM: it finishes what is in flight and ends.
    pub fn terminate(&self) -> io::Result<()> {
        pidfd_send_signal(&self.pidfd, Signal::TERM).map_err(Into::into)
    }

    /// Ends it at once.
    pub fn kill(&self) -> io::Result<()> {
        pidfd_send_signal(&self.pidfd, Signal::KILL).map_err(Into::into)
    }
}

/// Starts `exe` with `arguments` (the hidden command and the state folder) in a session of its own, writing to `log`.
/// The answer's second part is the daemon's end of the link: [`handover::Link::establish`] takes it.
pub fn start(exe: &Path, arguments: &[&str], log: File) -> io::Result<(Process, OwnedFd)> {
    let (ours, theirs) = handover::pair()?;
    let mut command = Command::new(exe);
    command
        .arg0("gantry")
        .args(arguments)
        .env(LINK_VARIABLE, theirs.as_raw_fd().to_string())
        // What a service manager gave the daemon is the daemon's (sd_listen_fds(3), sd_notify(3)).
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_FDNAMES")
        .env_remove("LISTEN_PID")
        .env_remove("NOTIFY_SOCKET")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let end = theirs.as_raw_fd();
    // SAFETY: between fork and exec only setsid and fcntl are called, which are async-signal-safe and allocate
    // nothing; the descriptor is open until after spawn, and keeps its number in the child.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            rustix::io::fcntl_setfd(BorrowedFd::borrow_raw(end), rustix::io::FdFlags::empty())?;
            Ok(())
        });
    }
    let child = command.spawn()?;
    drop(theirs);
    let process = Process::new(child.id(), Some(child))?;
    Ok((process, ours))
}

/// The descriptor that [`start`] left for this process, if it was started that way. Once a process.
pub fn inherited() -> Option<OwnedFd> {
    let number: i32 = std::env::var(LINK_VARIABLE).ok()?.parse().ok()?;
    // SAFETY: the number is only looked at; a descriptor that is not open is an error of fcntl.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }).ok()?;
    // SAFETY: `start` left it open for this process, and nothing else in it knows the number.
    let end = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&end, rustix::io::FdFlags::CLOEXEC).ok()?;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::{Error, Holder, Link};
    use lifecycle::Scope;
    use std::time::Duration;

    const WITHIN: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_process_s_end_is_noticed_by_its_parent_and_by_others() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let script = "echo link is $GANTRY_PROXY_LINK; test -S /proc/self/fd/$GANTRY_PROXY_LINK && echo open; read end";
        let (mut process, end) = start(Path::new("/bin/sh"), &["-c", script], log.reopen().unwrap()).unwrap();
        let scope = Scope::new("test");
        // It is no proxy: it ends without a word.
        let ended =
            tokio::time::timeout(WITHIN, Link::establish(end, &Holder::new("daemon", "1"), &scope)).await;
        assert!(matches!(ended.unwrap(), Err(Error::Ended | Error::Pass(_))));
        let mut other = Process::attach(process.pid()).unwrap();
        tokio::time::timeout(WITHIN, other.exited()).await.unwrap().unwrap();
        tokio::time::timeout(WITHIN, process.exited()).await.unwrap().unwrap();
        assert!(Process::attach(process.pid()).is_err(), "it has been reaped");
        let text = std::fs::read_to_string(log.path()).unwrap();
        assert!(text.contains("open"), "{text}");
    }
}
