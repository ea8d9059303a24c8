//! Which process holds something, named so that no other process of this machine is ever taken for it.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// A process: pid, start time, boot, and the pid namespace in which the pid counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Clock ticks from boot to its start (proc_pid_stat(5), field 22).
    pub start_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// The pid namespace, as `/proc/self/ns/pid` names it.
    pub pid_namespace: String,
}

/// What is known of a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is there; one that is stopped is.
    There,
    /// It has ended, and nothing can bring it back. A zombie has ended.
    Gone,
    /// It belongs to a pid namespace that is not ours: from here nobody can tell.
    Unknown,
}

impl Holder {
    /// This process.
    pub fn this() -> io::Result<Self> {
        let pid = std::process::id();
        let stat = Stat::read(pid)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pid, start_ticks: stat.start_ticks, boot_id: boot_id()?, pid_namespace: pid_namespace()? })
    }

    /// Whether that very process is still there. Ask again after a pidfd of [`Self::pid`] is held: only then is the pid
    /// sure to stay its own.
    pub fn presence(&self) -> io::Result<Presence> {
        if self.boot_id != boot_id()? {
            return Ok(Presence::Gone);
        }
        if self.pid_namespace != pid_namespace()? {
            return Ok(Presence::Unknown);
        }
        Ok(match Stat::read(self.pid)? {
            Some(stat) if stat.start_ticks == self.start_ticks && !stat.has_ended => Presence::There,
            _ => Presence::Gone,
        })
    }

    /// For an annotation.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What [`Self::to_json`] wrote; `None` if it is anything else.
    pub fn from_json(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

struct Stat {
    start_ticks: u64,
    has_ended: bool,
}

impl Stat {
    /// `None`: there is no such process.
    fn read(pid: u32) -> io::Result<Option<Self>> {
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(text) => Self::parse(&text).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // It ended between open and read (ESRCH).
            Err(error) if error.raw_os_error() == Some(3) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        // The name, field 2, may hold blanks and parentheses; what follows its last ')' is regular.
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let has_ended = matches!(fields.next()?, "Z" | "X" | "x");
        Some(Self { start_ticks: fields.nth(18)?.parse().ok()?, has_ended })
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn pid_namespace() -> io::Result<String> {
    Ok(fs::read_link("/proc/self/ns/pid")?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_holder_is_that_process_and_no_other() {
        let own = Holder::this().unwrap();
        assert_eq!(own.presence().unwrap(), Presence::There);
        assert_eq!(Holder::from_json(&own.to_json()), Some(own.clone()));
        let reused = Holder { start_ticks: own.start_ticks + 1, ..own.clone() };
        assert_eq!(reused.presence().unwrap(), Presence::Gone);
        let before_the_boot = Holder { boot_id: "another".to_owned(), ..own.clone() };
        assert_eq!(before_the_boot.presence().unwrap(), Presence::Gone);
        let elsewhere = Holder { pid_namespace: "pid:[1]".to_owned(), ..own };
        assert_eq!(elsewhere.presence().unwrap(), Presence::Unknown);
        assert_eq!(Holder::from_json("proxy-1"), None);
    }

    #[test]
    fn a_zombie_has_ended_and_a_stopped_process_has_not() {
        let mut child = Command::new("/bin/sh").args(["-c", "kill -STOP $$"]).spawn().unwrap();
        let stat = || Stat::read(child.id()).unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let state = |pid: u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            text.rsplit_once(')').unwrap().1.trim_start().chars().next().unwrap()
        };
        while state(child.id()) != 'T' && std::time::Instant::now() < until {
            std::thread::yield_now();
        }
        assert!(!stat().unwrap().has_ended);
        let holder = Holder {
            pid: child.id(),
            start_ticks: stat().unwrap().start_ticks,
            boot_id: boot_id().unwrap(),
            pid_namespace: pid_namespace().unwrap(),
        };
        assert_eq!(holder.presence().unwrap(), Presence::There);
        child.kill().unwrap();
        while state(child.id()) != 'Z' && std::time::Instant::now() < until {
            std::thread::yield_now();
        }
        assert_eq!(holder.presence().unwrap(), Presence::Gone, "a zombie");
        child.wait().unwrap();
        assert_eq!(holder.presence().unwrap(), Presence::Gone, "reaped");
    }

    #[test]
    fn odd_names_of_processes_are_read() {
        let stat = Stat::parse("7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 9").unwrap();
        assert_eq!((stat.start_ticks, stat.has_ended), (4711, false));
        assert!(Stat::parse("7 (x) Z 1").is_none());
    }
}
