//! Daemon and proxy die at the same moment, again and again, while a client opens new connections all the time.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::daemon;

/// Between two new connections.
const PACE: Duration = Duration::from_millis(5);
/// An exchange that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[arg(long)]
    times: u32,
}

/// What became of new connections.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) answered: u64,
    pub(super) refused: u64,
    /// Those that were connected and then cut.
    pub(super) cut: u64,
    longest: Duration,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let address = daemon::answers()?;
    let counts = while_connecting(address, || {
        (0..arguments.times).try_for_each(|round| kill().with_context(|| format!("death {round}")))
    })?;
    crate::print(&format!(
        "{} deaths of daemon and proxy together: {} new connections answered, {} refused, {} cut, longest wait {} ms",
        arguments.times,
        counts.answered,
        counts.refused,
        counts.cut,
        counts.longest.as_millis()
    ));
    ensure!(counts.answered > 0 && counts.refused == 0, "{} connections were refused", counts.refused);
    daemon::settled()
}

/// Does the work while a client makes one new connection after the other.
pub(super) fn while_connecting(address: SocketAddr, work: impl FnOnce() -> Result<()>) -> Result<Counts> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| connect(address, &stop));
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let counts = client.join().map_err(|_| anyhow::anyhow!("the client panicked"));
        done.and(counts)
    })
}

fn connect(address: SocketAddr, stop: &AtomicBool) -> Counts {
    let mut counts = Counts::default();
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        match daemon::ask(address, PATIENCE) {
            Ok(()) => {
                counts.answered += 1;
                counts.longest = counts.longest.max(started.elapsed());
            }
            Err(error) if format!("{error:#}").starts_with("connect") => counts.refused += 1,
            Err(_) => counts.cut += 1,
        }
        std::thread::sleep(PACE);
    }
    counts
}

/// Kills both, and waits until others serve.
fn kill() -> Result<()> {
    let proxy = Path::new(daemon::STATE).join("run/proxy.pid");
    let proxy_pid = || -> Result<i32> {
        Ok(std::fs::read_to_string(&proxy).context("read the proxy's process id")?.trim().parse()?)
    };
    let (old_daemon, old_proxy) = (main_pid()?, proxy_pid()?);
    let handle = |pid: i32| -> Result<_> {
        let pid = Pid::from_raw(pid).context("no process id")?;
        pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("find process {pid:?}"))
    };
    let both = [handle(old_daemon)?, handle(old_proxy)?];
    for one in &both {
        pidfd_send_signal(one, Signal::KILL)?;
    }
    daemon::wait("another daemon and another proxy", || {
        let (daemon, proxy) = (main_pid()?, proxy_pid()?);
        ensure!(daemon != 0 && daemon != old_daemon && proxy != old_proxy, "there are none yet");
        Ok(())
    })?;
    daemon::ready()?;
    daemon::answers().map(drop)
}

/// The daemon as systemd knows it.
pub(super) fn main_pid() -> Result<i32> {
    let mut show = Command::new("systemctl");
    show.args(["show", daemon::UNIT, "--value", "--property", "MainPID"]);
    Ok(daemon::run(&mut show)?.trim().parse()?)
}
