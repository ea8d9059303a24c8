//! What of systemd the daemon speaks to, for where there is none: it takes descriptors into a store (sd_notify(3)), and
//! hands them to the next daemon (sd_listen_fds(3)).

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::sandbox::Sandbox;

/// As the unit's `RestartSec`.
const RESTART: Duration = Duration::from_millis(50);
/// How long a daemon may take to say that it is ready.
const READY: Duration = Duration::from_secs(120);
/// The first descriptor that a daemon is handed.
const FIRST: RawFd = 3;
/// Where duplicates are, until they get their numbers in the child.
const ASIDE: RawFd = 512;
const MESSAGE_BYTES_MAX: usize = 4096;

type Store = Arc<Mutex<BTreeMap<String, OwnedFd>>>;

/// Runs a sandbox's daemon.
pub(crate) struct Manager<'a> {
    sandbox: &'a Sandbox,
    daemon: Option<Child>,
    store: Store,
    ready: Receiver<()>,
}

impl<'a> Manager<'a> {
    /// Starts the daemon, and waits until it says that it is ready.
    pub(crate) fn start(sandbox: &'a Sandbox) -> Result<Self> {
        let socket = UnixDatagram::bind(sandbox.work("manager")?.join("notify"))
            .context("bind the manager's socket")?;
        let (sender, ready) = channel();
        let store = Store::default();
        let kept = Arc::clone(&store);
        std::thread::spawn(move || listen(&socket, &kept, &sender));
        let mut manager = Self { sandbox, daemon: None, store, ready };
        manager.run()?;
        Ok(manager)
    }

    /// How many descriptors it holds.
    pub(crate) fn held(&self) -> usize {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// SIGKILL to the daemon, and at once to these.
    pub(crate) fn kill_and(&mut self, others: &[nix::unistd::Pid]) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        daemon.kill()?;
        for pid in others {
            // One that ended with another is not there any more.
            let _ = nix::sys::signal::kill(*pid, nix::sys::signal::Signal::SIGKILL);
        }
        ensure!(!daemon.wait()?.success(), "the daemon ended by itself");
        Ok(())
    }

    /// Starts a daemon that has died, as systemd does; one that holds nothing does it at once.
    pub(crate) fn restart(&mut self, is_holding: bool) -> Result<()> {
        if is_holding {
            std::thread::sleep(RESTART);
        } else {
            self.store.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        self.run()
    }

    fn end(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let pid = nix::unistd::Pid::from_raw(daemon.id() as i32);
            // Not reaped yet, so the number is its own.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let _ = daemon.wait();
        }
    }

    fn run(&mut self) -> Result<()> {
        // What the daemon before said counts no more.
        while self.ready.try_recv().is_ok() {}
        let (mut names, mut aside) = (Vec::new(), Vec::new());
        for (name, descriptor) in &*self.store.lock().unwrap_or_else(PoisonError::into_inner) {
            names.push(name.clone());
            aside.push(rustix::io::fcntl_dupfd_cloexec(descriptor, ASIDE)?);
        }
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.sandbox.work("manager")?.join("log"))?;
        let mut command = Command::new("/bin/sh");
        // The number of the process that these are for is known only in it.
        command
            .args(["-c", "LISTEN_PID=$$ exec \"$0\" daemon run"])
            .arg(&self.sandbox.gantry)
            .env("GANTRY_STATE", self.sandbox.state())
            .env("NOTIFY_SOCKET", self.sandbox.work("manager")?.join("notify"))
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let numbers: Vec<RawFd> = aside.iter().map(AsRawFd::as_raw_fd).collect();
        // SAFETY: between fork and exec only dup2 is called; the descriptors are open until after spawn.
        unsafe {
            command.pre_exec(move || {
                for (to, from) in (FIRST..).zip(&numbers) {
                    if nix::libc::dup2(*from, to) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            })
        };
        self.daemon = Some(command.spawn().context("start the daemon")?);
        self.ready.recv_timeout(READY).context("the daemon did not say that it is ready")
    }
}

impl Drop for Manager<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Takes what is said until the process ends.
fn listen(socket: &UnixDatagram, store: &Store, ready: &Sender<()>) {
    loop {
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [IoSliceMut::new(&mut bytes)];
        // SAFETY: the socket is open as long as this function runs.
        let descriptor = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
        let Ok(got) = rustix::net::recvmsg(descriptor, &mut buffer, &mut control, RecvFlags::CMSG_CLOEXEC)
        else {
            return;
        };
        let received = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let text = String::from_utf8_lossy(&bytes[..got.bytes]).into_owned();
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or_default().to_owned();
        let says = |what: &str| text.lines().any(|line| line == what);
        let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
        if says("FDSTORE=1")
            && let Some(descriptor) = received
        {
            store.insert(name, descriptor);
        } else if says("FDSTOREREMOVE=1") {
            store.remove(&name);
        }
        if says("READY=1") {
            // Nobody may wait for it.
            let _ = ready.send(());
        }
    }
}
