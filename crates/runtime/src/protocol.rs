//! What daemon and keeper say to each other: packets on a unix `SOCK_SEQPACKET` socket.
//!
//! A packet is one kind byte and a body. `q` asks and answers in JSON; `i`, `o`, `e` carry bytes of stdin, stdout
//! and stderr of an attached connection. Requests carry [`VERSION`], since a daemon meets keepers that an older
//! release started: a field may be added, a meaning never changed. A connection has one request under way at a time; `attach`
//! and `wait` are answered again, by `exited`, when the container ends.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::SystemTime;

use rustix::net::{RecvFlags, SendFlags};
use serde::{Deserialize, Serialize};

/// Of the requests and of the record in the bundle.
pub const VERSION: u32 = 1;
/// The oldest record that is read, and so the oldest keeper that is spoken to.
pub const OLDEST: u32 = 1;
/// A packet's body never exceeds this.
pub const MAX_BODY_BYTES: usize = 32 * 1024;

/// Kind bytes.
pub mod kind {
    pub const MESSAGE: u8 = b'q';
    pub const STDIN: u8 = b'i';
    pub const STDOUT: u8 = b'o';
    pub const STDERR: u8 = b'e';
}

/// A request with its protocol version.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
    pub version: u32,
    #[serde(flatten)]
    pub request: Request,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Answered `created` or `failed` as soon as that is known.
    Created,
    /// Answered `done` once the program runs (execve succeeded).
    Start,
    Signal {
        signal: i32,
    },
    /// Answered `exited`, at once or when it happens.
    Wait,
    Status,
    /// Answered `done`; then output packets follow, and `exited`.
    Attach,
    CloseStdin,
    Resize {
        rows: u16,
        columns: u16,
    },
    Pause,
    Resume,
    /// Kills what still runs, removes the cgroups, answers `done`, and the keeper ends.
    Delete,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Reply {
    Done,
    Created { pid: i32 },
    Status { pid: Option<i32>, phase: Phase, exit: Option<Exit> },
    Exited { exit: Exit },
    Failed { step: Step, reason: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Creating,
    Created,
    Running,
    Paused,
    Exited,
}

/// What failed in the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The request itself: unknown, or of a version that this keeper does not know.
    Request,
    /// Namespaces, mounts, cgroups, user: before the program.
    Create,
    /// The program could not be executed.
    Exec,
    Signal,
    Freeze,
    Stdin,
    Resize,
    Cleanup,
}

/// How a container ended. Neither code nor signal: unknown, because nobody was there to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The kernel killed something in the container for want of memory, and the container did not end well.
    pub oom_killed: bool,
    /// `None`: the program never ran.
    pub started_at: Option<SystemTime>,
    pub finished_at: SystemTime,
}

impl Exit {
    /// From a wait(2) status; `None` is unknown.
    pub(crate) fn from_status(status: Option<i32>, started_at: Option<SystemTime>) -> Exit {
        use nix::libc;
        let (mut code, mut signal) = (None, None);
        if let Some(status) = status {
            if libc::WIFEXITED(status) {
                code = Some(libc::WEXITSTATUS(status));
            } else if libc::WIFSIGNALED(status) {
                signal = Some(libc::WTERMSIG(status));
            }
        }
        Exit { code, signal, oom_killed: false, started_at, finished_at: SystemTime::now() }
    }

    /// Whether how it ended is known.
    pub fn is_known(&self) -> bool {
        self.code.is_some() || self.signal.is_some()
    }
}

/// Sends one packet; `WouldBlock` means nothing was sent.
pub(crate) fn send(socket: BorrowedFd<'_>, kind: u8, body: &[u8]) -> io::Result<()> {
    debug_assert!(body.len() <= MAX_BODY_BYTES);
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let parts = [io::IoSlice::new(std::slice::from_ref(&kind)), io::IoSlice::new(body)];
    let mut control = rustix::net::SendAncillaryBuffer::default();
    rustix::net::sendmsg(socket, &parts, &mut control, flags)?;
    Ok(())
}

/// Receives one packet into `buffer`: kind and body; `None` is the end.
pub(crate) fn receive<'b>(
    socket: BorrowedFd<'_>,
    buffer: &'b mut [u8],
) -> io::Result<Option<(u8, &'b [u8])>> {
    let (read, _) = rustix::net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT)?;
    Ok(if read == 0 { None } else { Some((buffer[0], &buffer[1..read])) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a keeper of the first format was asked and answered, as it was recorded.
    const RECORDED: &str = include_str!("../../../tests/formats/1/keeper.exchange");

    #[test]
    fn a_keeper_of_the_first_format_is_asked_and_understood() {
        let mut answers = 0;
        for line in RECORDED.lines() {
            if let Some(asked) = line.strip_prefix("> ") {
                // What that keeper refused was asked on purpose, to record the refusal.
                let Ok(envelope) = serde_json::from_str::<Envelope>(asked) else {
                    assert!(asked.contains("no-such"), "{asked}");
                    continue;
                };
                assert_eq!(serde_json::to_string(&envelope).unwrap(), asked, "asked in the same words");
            } else if let Some(answer) = line.strip_prefix("< ") {
                serde_json::from_str::<Reply>(answer).unwrap();
                answers += 1;
            }
        }
        assert_eq!(answers, 10);
        let last = RECORDED.lines().last().and_then(|line| line.strip_prefix("< ")).unwrap();
        let Reply::Exited { exit } = serde_json::from_str(last).unwrap() else { panic!("{last}") };
        assert_eq!((exit.code, exit.signal), (Some(2), None));
    }
}
