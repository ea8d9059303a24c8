//! How a container ends, whatever is inside: its children are reaped, its threads let go, its processes killed.
//!
//! The keeper is the parent of the container's first process, so a thread of it that calls `PTRACE_TRACEME` makes the
//! keeper its tracer: it stops at each signal until its tracer lets it go, and stays a zombie, its process with it, until
//! its tracer has waited for it. The keeper wants no tracees: it detaches from every one that stops, and reaps every one
//! that ends.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::epoll;

use super::clients::Awaits;
use super::{Keeper, Token};
use crate::process;
use crate::protocol::{Phase, Reply, Step};

/// Children that are seen to in one go, and how long nothing is seen to after one of them had stopped: a thread that
/// makes the keeper its tracer again and again takes no more of its time.
const REAP_MAX: u32 = 256;
const STOPS_APART: Duration = Duration::from_millis(10);
/// A first process that was killed and is still there after this is killed again, with its whole cgroup.
const KILL_AGAIN: Duration = Duration::from_millis(500);
/// A container that resists longer than this is said to: less than the daemon waits for an answer.
const RESIST_MAX: Duration = Duration::from_secs(15);

/// A container that was sent SIGKILL.
pub struct Ending {
    since: Instant,
    next: Instant,
}

/// Tells of children. Ignored by whoever started the daemon, the signal would make the kernel reap them for us.
pub fn children(epoll: &OwnedFd) -> io::Result<SignalFd> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    // SAFETY: the default disposition runs no code.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl)? };
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None)?;
    let children = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    epoll::add(epoll, &children, Token::Children.data(), epoll::EventFlags::IN)?;
    Ok(children)
}

impl Keeper {
    /// Something has happened to a child.
    pub(super) fn on_children(&mut self) -> io::Result<()> {
        // One entry for any number of children.
        while let Ok(Some(_)) = self.children.read_signal() {}
        self.reap();
        if self.status.is_some() { self.ended() } else { Ok(()) }
    }

    /// Reaps what has ended, lets go what has stopped. Keeps the status of the container's own first process.
    pub(super) fn reap(&mut self) {
        if self.making.is_some() {
            // Its own status is for `Making`, which waits for it.
            return;
        }
        let own = self.identity.as_ref().map_or(0, |identity| identity.pid);
        let mut had_stopped = false;
        for _ in 0..REAP_MAX {
            let mut status = 0;
            // SAFETY: `status` is writable and lives across the call. Without __WALL, threads would be left out.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) };
            if pid <= 0 {
                break;
            }
            if libc::WIFSTOPPED(status) {
                had_stopped = true;
                let_go(pid, libc::WSTOPSIG(status));
            } else if pid == own {
                self.status = Some(status);
            }
        }
        if had_stopped && self.calm_until.is_none() {
            self.calm_until = Some(Instant::now() + STOPS_APART);
            let _ = epoll::delete(&self.epoll, &self.children);
        }
    }

    /// The container's first process has ended, and with it, by the kernel's rule for pid namespaces, all others.
    pub(super) fn ended(&mut self) -> io::Result<()> {
        if self.is_parent {
            self.reap();
        }
        let (Some(pidfd), Some(identity)) = (&self.pidfd, &self.identity) else { return Ok(()) };
        if let Some(status) = self.status.take() {
            return self.finish(Some(status));
        }
        if self.is_parent {
            if is_child(identity.pid) {
                return Ok(());
            }
            self.is_parent = false;
        }
        if !process::has_ended(pidfd) {
            return Ok(());
        }
        if let Some(status) = process::reaped_status(pidfd) {
            return self.finish(Some(status));
        }
        match self.reap_until {
            None => {
                self.reap_until = Some(Instant::now() + super::REAP_WAIT);
                // It stays readable: ask on time, not in a loop.
                let _ = epoll::delete(&self.epoll, pidfd);
                Ok(())
            }
            Some(until) if Instant::now() < until => Ok(()),
            Some(_) => self.finish(None),
        }
    }

    /// From now on it is killed until it is gone.
    pub(super) fn begin_ending(&mut self) {
        let now = Instant::now();
        self.ending.get_or_insert(Ending { since: now, next: now + KILL_AGAIN });
    }

    /// When [`Keeper::on_time`] has to look after this.
    pub(super) fn next_ending(&self) -> Option<Instant> {
        let ending = self.ending.as_ref().map(|ending| ending.next);
        ending.into_iter().chain(self.calm_until).min()
    }

    pub(super) fn on_time_of_ending(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if self.calm_until.is_some_and(|until| now >= until) {
            self.calm_until = None;
            epoll::add(&self.epoll, &self.children, Token::Children.data(), epoll::EventFlags::IN)?;
        }
        let Some(ending) = self.ending.as_mut().filter(|ending| now >= ending.next) else { return Ok(()) };
        if self.phase == Phase::Exited {
            self.ending = None;
            return Ok(());
        }
        ending.next = now + KILL_AGAIN;
        if now.duration_since(ending.since) >= RESIST_MAX {
            // Only the kernel can hold it now. The next request begins anew, and its end is still waited for.
            self.ending = None;
            self.deleting = false;
            let reason = format!("killed, and still there: {}", self.record.cgroup.describe());
            let reply = Reply::Failed { step: Step::Cleanup, reason };
            self.clients.answer(&self.epoll, Awaits::Delete, &reply);
            return Ok(());
        }
        self.record.cgroup.kill();
        if let Some(pidfd) = &self.pidfd {
            let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
        }
        Ok(())
    }
}

/// Whether `pid` is still ours to wait for.
fn is_child(pid: i32) -> bool {
    // SAFETY: the call only writes to a local, for which all zero is a valid value.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, flags) == 0
    }
}

/// Detaches from a thread that made us its tracer; it goes on with the signal that stopped it. A trap is for tracers
/// only (execve sends one).
fn let_go(pid: i32, signal: i32) {
    let signal = if signal & 0x7f == libc::SIGTRAP { 0 } else { signal };
    // SAFETY: plain numbers; the request reads no memory.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, 0, libc::c_long::from(signal)) };
}
