//! One daemon takes over from another.
//!
//! The daemon that is to go ends its tasks and closes its stores as it does at SIGTERM, and then becomes (execve) the
//! hidden command `gantry takeover`: the same process, holding the lock of the state folder, with nothing else open. It
//! has a child start the new binary with the lock ([`start`]); if that daemon does not serve it is ended, and the old
//! binary, which these processes still run, is started again. The lock is held all the time, so no command starts a
//! daemon in between; connections wait in the listeners that the proxy holds.
//!
//! The child says how it went and ends, and the daemon that it started goes to the parent of orphans. Only then does the
//! service manager hear of it: systemd waits for the end of its own children alone, and kills what is not one at once
//! when it is to stop. A SIGTERM that comes while this goes on is for the daemon that then serves.
//!
//! ```text
//! bin/gantry        what a service manager starts (0700): the binary of the last start that was installed or upgraded
//! bin/gantry.new    staged by `gantry daemon upgrade`; renamed once its daemon serves
//! ```

mod start;

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use durable::Lock;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};

use super::control::Replacement;
use super::state::State;
use super::systemd;
use crate::control::{Answer, write_line};
use crate::launch::READY_VARIABLE;
use start::{Takeover, keep_open};

/// Names the descriptor that holds the state folder's lock, for a process that is given it.
const LOCK_VARIABLE: &str = "GANTRY_LOCK_FD";
/// Names the descriptor on which the command waits that asked for the replacement.
const ASKER_VARIABLE: &str = "GANTRY_ASKER_FD";
/// Names the descriptor on which the child says how it went.
const OUTCOME_VARIABLE: &str = "GANTRY_OUTCOME_FD";
/// What a new daemon is given at least, and what the old one is given to start again.
const DEADLINE_MIN: Duration = Duration::from_secs(1);
const BACK_WITHIN: Duration = Duration::from_secs(120);
/// Of the line that a daemon says about its start.
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// How long a command may take to read how it went.
const TELL_WITHIN: Duration = Duration::from_secs(5);
/// How long a daemon may take to end that is told to as soon as it serves.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// What the child says.
#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    answer: Answer,
    /// The daemon that serves.
    daemon: Option<u32>,
}

/// Takes the state folder's lock, or takes it over from the daemon before. The answer's second part says which.
pub fn lock(state: &State) -> Result<(Lock, bool)> {
    let path = state.lock_path();
    match inherited(LOCK_VARIABLE) {
        Some(descriptor) => {
            let lock = Lock::inherit(descriptor, &path).context("take over the state folder")?;
            Ok((lock, true))
        }
        None => {
            let lock = Lock::acquire(&path).context("another daemon owns this state folder")?;
            Ok((lock, false))
        }
    }
}

/// Ends this daemon in favour of another. Its tasks have ended and its stores are closed. Returns only if it fails.
pub fn hand_over(state: &State, lock: &Lock, replacement: Replacement) -> anyhow::Error {
    let run = || -> Result<io::Error> {
        let lock = lock.pass_on().context("pass the lock on")?;
        let asker = OwnedFd::from(replacement.asker);
        for descriptor in [&lock, &asker] {
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("gantry")
            .arg("takeover")
            .arg(&state.dir)
            .arg(&replacement.binary)
            .arg(replacement.within.as_millis().to_string())
            .env(LOCK_VARIABLE, lock.as_raw_fd().to_string())
            .env(ASKER_VARIABLE, asker.as_raw_fd().to_string())
            .env_remove(READY_VARIABLE);
        stops().thread_block().context("hold stops back")?;
        Ok(command.exec())
    };
    match run() {
        Ok(error) => anyhow::Error::from(error).context("start the takeover"),
        Err(error) => error,
    }
}

/// The hidden command `gantry takeover STATE BINARY MILLISECONDS`.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(dir), Some(binary), Some(within)) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return ExitCode::from(2);
    };
    let (Some(lock), asker) = (inherited(LOCK_VARIABLE), inherited(ASKER_VARIABLE)) else {
        return ExitCode::from(2);
    };
    let Some(within) = within.to_str().and_then(|text| text.parse().ok()).map(Duration::from_millis) else {
        return ExitCode::from(2);
    };
    let dir = PathBuf::from(dir);
    let _ = super::log::start(&crate::access::log_path(&dir));
    let takeover = Takeover { dir, lock, within: within.max(DEADLINE_MIN) };
    let binary = Path::new(&binary);
    if let Some(outcome) = inherited(OUTCOME_VARIABLE) {
        let (answer, daemon) = takeover.run(binary);
        let said = write_line(&mut std::fs::File::from(outcome), &Outcome { answer, daemon });
        return if said.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let Outcome { answer, daemon } = delegate(&takeover, binary).unwrap_or_else(|error| Outcome {
        answer: Answer::Down { error: format!("{error:#}") },
        daemon: None,
    });
    tracing::info!(?answer, "the daemon was replaced, or was to be");
    if let Some(pid) = daemon {
        systemd::notify(&format!("MAINPID={pid}\nREADY=1"));
    }
    if let Some(asker) = asker {
        let mut asker = UnixStream::from(asker);
        let told = asker.set_write_timeout(Some(TELL_WITHIN)).and_then(|()| write_line(&mut asker, &answer));
        if let Err(error) = told {
            tracing::info!(%error, "the command that asked is gone");
        }
    }
    match daemon {
        Some(pid) if stop_came() => {
            tracing::info!(pid, "a stop came meanwhile");
            stop(pid).map_or_else(
                |error| {
                    tracing::error!(%error, pid, "stop the daemon");
                    ExitCode::FAILURE
                },
                |()| ExitCode::SUCCESS,
            )
        }
        Some(_) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    }
}

/// Has a child start the daemon. When it returns the child has ended, and the daemon is no descendant of this process.
fn delegate(takeover: &Takeover, binary: &Path) -> Result<Outcome> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("make a pipe")?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("gantry")
        .arg("takeover")
        .arg(&takeover.dir)
        .arg(binary)
        .arg(takeover.within.as_millis().to_string())
        .env(LOCK_VARIABLE, takeover.lock.as_raw_fd().to_string())
        .env(OUTCOME_VARIABLE, write.as_raw_fd().to_string())
        .env_remove(ASKER_VARIABLE)
        .stdin(Stdio::null());
    // SAFETY: between fork and exec one system call is made, and nothing is allocated.
    unsafe { command.pre_exec(|| stops().thread_unblock().map_err(io::Error::from)) };
    keep_open(&mut command, [takeover.lock.as_raw_fd(), write.as_raw_fd()]);
    let mut child = command.spawn().context("start what starts the daemon")?;
    drop(write);
    let mut said = Vec::new();
    std::fs::File::from(read).take(LINE_BYTES_MAX).read_to_end(&mut said).context("hear how it went")?;
    let status = child.wait().context("wait for what starts the daemon")?;
    serde_json::from_slice(&said).with_context(|| format!("what starts the daemon ended ({status})"))
}

/// The signals by which a service manager stops the daemon.
fn stops() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals
}

/// Whether one of them was held back.
fn stop_came() -> bool {
    let held = SignalFd::with_flags(&stops(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
    held.and_then(|held| held.read_signal()).is_ok_and(|signal| signal.is_some())
}

/// Ends the daemon in order, and waits for it.
fn stop(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    rustix::process::pidfd_send_signal(&process, rustix::process::Signal::TERM)?;
    let timeout = Timespec::try_from(STOP_WITHIN).map_err(io::Error::other)?;
    let mut wanted = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
    match rustix::event::poll(&mut wanted, Some(&timeout))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// The descriptor that a variable names, if it is open.
fn inherited(variable: &str) -> Option<OwnedFd> {
    let number: i32 = std::env::var(variable).ok()?.parse().ok()?;
    if number < 3 {
        return None;
    }
    // SAFETY: the number is only looked at; a descriptor that is not open is an error of fcntl.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }).ok()?;
    // SAFETY: whoever started this process left it open for it, and nothing else in it knows the number.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, FdFlags::CLOEXEC).ok()?;
    Some(descriptor)
}
