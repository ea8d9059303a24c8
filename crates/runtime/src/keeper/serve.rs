//! Requests to a keeper, and stdin.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::time::SystemTime;

use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::clients::Awaits;
use super::{Keeper, Token};
use crate::bundle;
use crate::protocol::{self, Envelope, MAX_BODY_BYTES, Phase, Reply, Request, Step, VERSION, kind};

impl Keeper {
    /// One packet of a client.
    pub(super) fn serve(&mut self, index: usize) -> io::Result<()> {
        let mut buffer = [0; MAX_BODY_BYTES + 1];
        let Some(client) = self.clients.get(index) else { return Ok(()) };
        match protocol::receive(client.socket.as_fd(), &mut buffer) {
            Ok(Some((kind::MESSAGE, body))) => match serde_json::from_slice::<Envelope>(body) {
                Ok(Envelope { version, request }) if version <= VERSION => self.request(index, request),
                Ok(Envelope { version, .. }) => self.fail(
                    index,
                    Step::Request,
                    format!("protocol version {version}, this keeper knows {VERSION}"),
                ),
                Err(error) => self.fail(index, Step::Request, error.to_string()),
            },
            Ok(Some((kind::STDIN, body))) => {
                if self.stdin.is_some() && !self.stdin_ended {
                    self.stdin_pending.extend_from_slice(body);
                    return self.feed_stdin();
                }
                Ok(())
            }
            Ok(Some(_)) => self.fail(index, Step::Request, "unknown packet".into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Ok(None) | Err(_) => {
                self.clients.remove(&self.epoll, index);
                self.read_outputs(true)
            }
        }
    }

    fn request(&mut self, index: usize, request: Request) -> io::Result<()> {
        match request {
            Request::Created => {
                self.await_(index, Awaits::Created);
                if self.phase != Phase::Creating {
                    self.tell_created();
                }
                Ok(())
            }
            Request::Start => self.start(index),
            Request::Signal { signal } => self.signal(index, signal),
            Request::Wait => {
                self.await_(index, Awaits::Exit);
                self.tell_exit();
                Ok(())
            }
            Request::Status => {
                let pid = self.identity.as_ref().map(|identity| identity.pid);
                self.reply(index, &Reply::Status { pid, phase: self.phase, exit: self.exit })
            }
            Request::Attach => {
                self.reply(index, &Reply::Done)?;
                if let Some(client) = self.clients.get(index) {
                    client.attached = true;
                }
                self.await_(index, Awaits::Exit);
                self.tell_exit();
                Ok(())
            }
            Request::CloseStdin => {
                self.stdin_ended = true;
                self.feed_stdin()?;
                self.reply(index, &Reply::Done)
            }
            Request::Resize { rows, columns } => self.resize(index, rows, columns),
            Request::Pause => self.freeze(index, true),
            Request::Resume => self.freeze(index, false),
            Request::Delete => {
                self.await_(index, Awaits::Delete);
                self.deleting = true;
                self.delete()
            }
        }
    }

    fn reply(&mut self, index: usize, reply: &Reply) -> io::Result<()> {
        self.clients.reply(&self.epoll, index, reply);
        Ok(())
    }

    fn fail(&mut self, index: usize, step: Step, reason: String) -> io::Result<()> {
        self.reply(index, &Reply::Failed { step, reason })
    }

    fn await_(&mut self, index: usize, what: Awaits) {
        self.clients.awaits(index, what);
    }

    pub(super) fn tell_created(&mut self) {
        let reply = match (&self.identity, &self.failure) {
            (Some(identity), _) => Reply::Created { pid: identity.pid },
            (None, reason) => Reply::Failed {
                step: Step::Create,
                reason: reason.clone().unwrap_or_else(|| "unknown".into()),
            },
        };
        self.clients.answer(&self.epoll, Awaits::Created, &reply);
    }

    fn tell_exit(&mut self) {
        if let Some(exit) = self.exit {
            self.clients.answer(&self.epoll, Awaits::Exit, &Reply::Exited { exit });
        }
    }

    /// libcontainer's init waits on a socket of its own; it closes ours for reading "executed" by executing.
    fn start(&mut self, index: usize) -> io::Result<()> {
        if self.phase != Phase::Created || self.starting {
            let phase = self.phase;
            return self.fail(
                index,
                Step::Request,
                format!("a container that is {phase:?} cannot be started"),
            );
        }
        let now = SystemTime::now();
        let woken = fs::write(bundle::STARTED, "").and_then(|()| {
            let flags = SocketFlags::CLOEXEC;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            let path = format!("{}/{}/notify.sock", bundle::OCI, bundle::OCI_ID);
            rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
            Ok(())
        });
        if let Err(error) = woken {
            let _ = fs::remove_file(bundle::STARTED);
            return self.fail(index, Step::Exec, format!("wake the container's first process: {error}"));
        }
        self.started_at = Some(now);
        self.reap();
        match &self.executed {
            Some(pipe) => {
                self.starting = true;
                epoll::add(&self.epoll, pipe, Token::Executed.data(), epoll::EventFlags::IN)?;
                self.await_(index, Awaits::Start);
                Ok(())
            }
            // A keeper that took over before the start has no pipe: the exit will tell.
            None => {
                self.phase = Phase::Running;
                self.reply(index, &Reply::Done)
            }
        }
    }

    fn signal(&mut self, index: usize, signal: i32) -> io::Result<()> {
        match self.kill(signal) {
            Ok(()) => self.reply(index, &Reply::Done),
            Err(error) => self.fail(index, Step::Signal, error.to_string()),
        }
    }

    fn kill(&mut self, signal: i32) -> io::Result<()> {
        let gone = || io::Error::from_raw_os_error(nix::libc::ESRCH);
        if self.pidfd.is_none() {
            return Err(gone());
        }
        if signal == nix::libc::SIGKILL {
            if self.phase == Phase::Paused {
                // A frozen process on v1 does not even die.
                self.record.cgroup.freeze(false)?;
                self.phase = Phase::Running;
            }
            self.begin_ending();
        }
        let signal = rustix::process::Signal::from_named_raw(signal)
            .or_else(|| {
                // SAFETY: the number is checked to be a real-time signal's.
                (34..=64)
                    .contains(&signal)
                    .then(|| unsafe { rustix::process::Signal::from_raw_unchecked(signal) })
            })
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let pidfd = self.pidfd.as_ref().ok_or_else(gone)?;
        Ok(rustix::process::pidfd_send_signal(pidfd, signal)?)
    }

    fn freeze(&mut self, index: usize, frozen: bool) -> io::Result<()> {
        let (from, to) =
            if frozen { (Phase::Running, Phase::Paused) } else { (Phase::Paused, Phase::Running) };
        if self.phase != from {
            let phase = self.phase;
            return self.fail(index, Step::Freeze, format!("the container is {phase:?}"));
        }
        match self.record.cgroup.freeze(frozen) {
            Ok(()) => {
                self.phase = to;
                self.reply(index, &Reply::Done)
            }
            Err(error) => self.fail(index, Step::Freeze, error.to_string()),
        }
    }

    fn resize(&mut self, index: usize, rows: u16, columns: u16) -> io::Result<()> {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        match &self.outputs[0] {
            Some(terminal) if self.record.spec.tty => match rustix::termios::tcsetwinsize(terminal, size) {
                Ok(()) => self.reply(index, &Reply::Done),
                Err(error) => self.fail(index, Step::Resize, error.to_string()),
            },
            _ => self.fail(index, Step::Resize, "the container has no terminal".into()),
        }
    }

    /// Writes what waits; while something does, nothing more is taken from clients.
    pub(super) fn feed_stdin(&mut self) -> io::Result<()> {
        let Some(stdin) = &self.stdin else {
            self.stdin_pending.clear();
            self.clients.mute(&self.epoll, false);
            return Ok(());
        };
        while !self.stdin_pending.is_empty() {
            match rustix::io::write(stdin, &self.stdin_pending) {
                Ok(written) => drop(self.stdin_pending.drain(..written)),
                Err(rustix::io::Errno::AGAIN) => {
                    let flags = epoll::EventFlags::OUT | epoll::EventFlags::ONESHOT;
                    if epoll::add(&self.epoll, stdin, Token::Stdin.data(), flags).is_err() {
                        epoll::modify(&self.epoll, stdin, Token::Stdin.data(), flags)?;
                    }
                    self.clients.mute(&self.epoll, true);
                    return Ok(());
                }
                Err(_) => self.stdin_pending.clear(),
            }
        }
        if self.stdin_ended {
            self.stdin = None;
        }
        self.clients.mute(&self.epoll, false);
        Ok(())
    }

    /// Goes on with a deletion as far as it can: kill, wait for the end, clean up, answer, leave.
    pub(super) fn delete(&mut self) -> io::Result<()> {
        if self.phase == Phase::Creating {
            return Ok(());
        }
        if self.phase != Phase::Exited {
            let _ = self.kill(nix::libc::SIGKILL);
            return Ok(());
        }
        match self.record.cgroup.remove() {
            Ok(()) => {
                self.clients.answer(&self.epoll, Awaits::Delete, &Reply::Done);
                self.done = true;
            }
            Err(error) => {
                self.deleting = false;
                let reply = Reply::Failed { step: Step::Cleanup, reason: error.to_string() };
                self.clients.answer(&self.epoll, Awaits::Delete, &reply);
            }
        }
        Ok(())
    }
}
