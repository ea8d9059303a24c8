//! Power on to first answer: a unit that starts before the daemon asks until the program answers.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::daemon;

/// Where the program answered before the power went.
const ADDRESS: &str = "/data/address";
/// Milliseconds after the kernel's start at which it answered.
const ANSWERED: &str = "/run/first-answer";
const UNIT: &str = "\
[Unit]
Description=Asks until the program answers
Before=gantry.service
[Service]
Type=exec
ExecStart=/payload/bin/xtask vm inside first
";

/// Installs the unit.
pub(super) fn install(address: SocketAddr) -> Result<()> {
    std::fs::write(ADDRESS, address.to_string())?;
    std::fs::write("/etc/systemd/system/first-answer.service", UNIT)?;
    let wants = Path::new("/etc/systemd/system/multi-user.target.wants/first-answer.service");
    if !wants.exists() {
        std::os::unix::fs::symlink("../first-answer.service", wants)
            .context("enable first-answer.service")?;
    }
    Ok(())
}

pub(super) fn wait() -> Result<()> {
    let address: SocketAddr = std::fs::read_to_string(ADDRESS)?.parse()?;
    daemon::wait("the first answer", || daemon::ask(address, Duration::from_secs(10)))?;
    note(monotonic_ms())
}

fn note(milliseconds: u64) -> Result<()> {
    std::fs::write(ANSWERED, milliseconds.to_string()).context("note the first answer")
}

fn monotonic_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Prints milliseconds: from the kernel's start to the answer, and of these since the daemon's start.
pub(super) fn tell() -> Result<()> {
    let answered: u64 = daemon::wait("the first answer", || Ok(std::fs::read_to_string(ANSWERED)?.parse()?))?;
    let mut show = Command::new("systemctl");
    show.args(["show", daemon::UNIT, "--value", "--property", "ExecMainStartTimestampMonotonic"]);
    let started: u64 = daemon::run(&mut show)?.trim().parse().context("when did the unit start?")?;
    crate::print(&format!("{answered} {}", answered.saturating_sub(started / 1000)));
    Ok(())
}
