//! The action that runs, and the fault that meets it.

use std::fs::File;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;
use rand::Rng;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::step::{Action, Fault, Step};
use super::world::{PROGRAM, World};
use crate::bench::process::until;
use crate::sandbox::Sandbox;

/// An action that takes longer hangs.
const ACTION: Duration = Duration::from_secs(150);
/// How long a process is stopped, in milliseconds: a stop has no other end than time.
const STOPPED_MS: std::ops::Range<u64> = 100..2000;
/// How long a disk is full: as long as the action takes, but not longer than this.
const FULL: Duration = Duration::from_secs(2);

/// A running action.
pub(super) struct Acting {
    command: Child,
    said: File,
}

/// What became of an action.
pub(super) struct Outcome {
    ok: bool,
    said: String,
}

impl Outcome {
    pub(super) fn is_ok(&self) -> bool {
        self.ok
    }

    pub(super) fn said(&self) -> String {
        let word = if self.ok { "acknowledged" } else { "not acknowledged" };
        format!("{word}: {}", self.said.trim())
    }
}

impl Acting {
    pub(super) fn start(world: &World, step: &mut Step) -> Result<Self> {
        let hello = crate::tidy::root()?.join("examples/hello");
        let hello = hello.to_str().context("the project's folder is no text")?.to_owned();
        let version = format!("VERSION={}", step.number);
        let arguments: Vec<String> = match step.action {
            Action::Up => ["up", &hello, "--name", PROGRAM, "--env", &version].map(str::to_owned).to_vec(),
            Action::Scale(replicas) => vec!["scale".into(), PROGRAM.into(), replicas.to_string()],
            Action::Rollback => ["rollback", PROGRAM].map(str::to_owned).to_vec(),
            Action::Down => ["down", PROGRAM].map(str::to_owned).to_vec(),
            Action::Delete => return Self::delete(world, step),
        };
        let said = tempfile::tempfile()?;
        let mut command = world.sandbox.command(arguments);
        command.stdout(Stdio::null()).stderr(said.try_clone()?);
        Ok(Self { command: command.spawn().context("start gantry")?, said })
    }

    /// Asks for a Pod's deletion as `kubectl delete` does, by a process of its own that can be killed.
    fn delete(world: &World, step: &mut Step) -> Result<Self> {
        let pod = world.pod(step.random.random_range(0..64))?.context("the program has no Pod")?;
        let said = tempfile::tempfile()?;
        let kubectl = crate::tools::kubernetes("kubectl")?;
        let mut command = std::process::Command::new(kubectl);
        command.arg("--kubeconfig").arg(world.sandbox.state().join("kubeconfig"));
        command.args(["delete", "pod", &pod, "--wait=false"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.try_clone()?);
        Ok(Self { command: command.spawn().context("start kubectl")?, said })
    }

    fn is_running(&mut self) -> Result<bool> {
        Ok(self.command.try_wait()?.is_none())
    }

    fn kill(&mut self) -> Result<()> {
        self.command.kill().context("kill the command")
    }

    /// Waits for its end.
    pub(super) fn end(mut self, world: &World) -> Result<Outcome> {
        let deadline = Instant::now() + ACTION;
        while self.is_running()? {
            if Instant::now() > deadline {
                self.kill()?;
                let daemon = world.sandbox.daemon_pid();
                anyhow::bail!("the command did not end within {} s; daemon: {daemon:?}", ACTION.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = self.command.wait()?;
        let mut said = String::new();
        std::io::Seek::rewind(&mut self.said)?;
        std::io::Read::read_to_string(&mut self.said, &mut said)?;
        Ok(Outcome { ok: status.success(), said: format!("{status}: {said}") })
    }
}

/// Lets the fault come, and end.
pub(super) fn strike(world: &World, step: &mut Step, acting: &mut Acting) -> Result<()> {
    let sandbox = world.sandbox;
    let stopped = Duration::from_millis(step.random.random_range(STOPPED_MS));
    match step.fault {
        Fault::Daemon => {
            sandbox.kill(sandbox.daemon_pid()?)?;
            sandbox.ok(["daemon", "start"]).map(drop)
        }
        Fault::Proxy => sandbox.kill(sandbox.proxy_pid()?),
        Fault::Keeper => match world.keeper(step.random.random_range(0..64))? {
            // It may end by itself in this very moment.
            Some(keeper) => sandbox.kill(Pid::from_raw(keeper)).or_else(|error| gone(keeper, error)),
            None => Ok(()),
        },
        Fault::Both => {
            let (daemon, proxy) = (sandbox.daemon_pid()?, sandbox.proxy_pid()?);
            sandbox.kill(daemon)?;
            sandbox.kill(proxy)?;
            sandbox.ok(["daemon", "start"]).map(drop)
        }
        Fault::Command => acting.kill(),
        Fault::Twice => twice(world),
        Fault::StopDaemon => stop(sandbox.daemon_pid()?, stopped),
        Fault::StopProxy => stop(sandbox.proxy_pid()?, stopped),
        Fault::HungProxy => hung(sandbox),
        Fault::FullDisk => {
            let disk = sandbox.disk()?;
            disk.fill()?;
            let until = Instant::now() + FULL;
            while Instant::now() < until && acting.is_running()? {
                std::thread::sleep(Duration::from_millis(5));
            }
            disk.free()
        }
    }
}

fn gone(pid: i32, error: anyhow::Error) -> Result<()> {
    if std::path::Path::new("/proc").join(pid.to_string()).exists() { Err(error) } else { Ok(()) }
}

/// The daemon dies, and the one after it while it starts.
fn twice(world: &World) -> Result<()> {
    let sandbox = world.sandbox;
    let first = sandbox.daemon_pid()?;
    sandbox.kill(first)?;
    let mut starting = sandbox.command(["daemon", "start"]);
    let mut starting =
        starting.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("start gantry")?;
    let deadline = Instant::now() + ACTION;
    let second = loop {
        match sandbox.daemon_pid() {
            Ok(pid) if pid != first => break pid,
            _ if Instant::now() > deadline => anyhow::bail!("no second daemon comes"),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    sandbox.kill(second)?;
    // It fails, or it had ended well by then.
    starting.wait()?;
    sandbox.ok(["daemon", "start"]).map(drop)
}

/// A proxy that nobody lets go on must not keep a daemon from starting.
fn hung(sandbox: &Sandbox) -> Result<()> {
    let (daemon, proxy) = (sandbox.daemon_pid()?, sandbox.proxy_pid()?);
    pidfd_send_signal(handle(proxy)?, Signal::STOP)?;
    sandbox.kill(daemon)?;
    sandbox.ok(["daemon", "start"])?;
    // It is noted once the daemon has started it, which nobody waits for.
    let other = || sandbox.proxy_pid().ok().filter(|pid| *pid != proxy);
    until("another proxy", ACTION, other).map(drop)
}

fn handle(pid: Pid) -> Result<std::os::fd::OwnedFd> {
    let process = rustix::process::Pid::from_raw(pid.as_raw()).context("no process id")?;
    pidfd_open(process, PidfdFlags::empty()).context("find the process")
}

fn stop(pid: Pid, how_long: Duration) -> Result<()> {
    let handle = handle(pid)?;
    pidfd_send_signal(&handle, Signal::STOP)?;
    std::thread::sleep(how_long);
    pidfd_send_signal(&handle, Signal::CONT)?;
    ensure!(std::path::Path::new("/proc").join(pid.to_string()).exists(), "it died while it was stopped");
    Ok(())
}
