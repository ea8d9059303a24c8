//! A process that is surely the one meant: pid, start time and boot id; and what the kernel remembers of its end.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

/// Names one process for ever, across reuse of its pid and across reboots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// Clock ticks since boot (proc_pid_stat(5), field 22).
    pub start_time: u64,
    pub boot_id: String,
}

impl Identity {
    pub fn of(pid: i32) -> io::Result<Identity> {
        Ok(Identity { pid, start_time: start_time(pid)?, boot_id: boot_id()? })
    }

    /// A pidfd, if that very process is still there (a zombie is).
    pub fn open(&self) -> Option<OwnedFd> {
        if boot_id().ok()? != self.boot_id {
            return None;
        }
        let pidfd = open(self.pid).ok()?;
        // Checked after the pidfd is held: from now on the pid cannot become another process unnoticed.
        (start_time(self.pid).ok()? == self.start_time).then_some(pidfd)
    }
}

pub fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, field 2, may hold spaces and parentheses; what follows its last ')' is regular.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// A process as an error names it: pid, name, state.
pub fn describe(pid: i32) -> String {
    match name_and_state(pid) {
        Some((name, state)) => format!("process {pid} ({}, state {state})", name.escape_debug()),
        None => format!("process {pid}"),
    }
}

/// Whether it runs no more until somebody lets it: stopped by a signal, or by a tracer.
pub fn is_stopped(pid: i32) -> bool {
    name_and_state(pid).is_some_and(|(_, state)| matches!(state, 'T' | 't'))
}

/// proc_pid_stat(5), fields 2 and 3.
fn name_and_state(pid: i32) -> Option<(String, char)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (before, after) = stat.rsplit_once(')')?;
    Some((before.split_once('(')?.1.to_owned(), after.trim_start().chars().next()?))
}

pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Whether the process has ended (a zombie has).
pub fn has_ended(pidfd: impl AsFd) -> bool {
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
    matches!(poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
}

/// The kernel's `struct pidfd_info`, first published size (64 bytes; linux/pidfd.h).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    pids_and_ids: [u32; 11],
    exit_code: i32,
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xFF, 11, struct pidfd_info)`
const PIDFD_GET_INFO: libc::Ioctl =
    (0xC000_0000_u32 | ((size_of::<PidfdInfo>() as u32) << 16) | 0xFF0B) as libc::Ioctl;

/// The wait(2) status of a process that was reaped by anyone: from Linux 6.15 on, and only by a pidfd from before.
/// `None`: not reaped yet, or the kernel cannot tell.
pub fn reaped_status(pidfd: &OwnedFd) -> Option<i32> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request carries the size of `info`, which lives across the call and is writable.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &mut info) };
    (result == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_opens_its_process_and_no_other() {
        let own = Identity::of(std::process::id() as i32).unwrap();
        assert!(own.open().is_some());
        assert!(Identity { start_time: own.start_time + 1, ..own.clone() }.open().is_none());
        assert!(Identity { boot_id: "another".into(), ..own }.open().is_none());
    }

    #[test]
    fn a_reaped_process_leaves_its_status_with_whoever_held_a_pidfd() {
        let mut child = std::process::Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().unwrap();
        let pidfd = open(child.id() as i32).unwrap();
        child.wait().unwrap();
        assert!(has_ended(&pidfd));
        // Older kernels cannot tell: then it is unknown, never something else.
        assert!(matches!(reaped_status(&pidfd), Some(0x0700) | None));
    }
}
