//! The proxy seen from the daemon: found or started, its listeners held, replaced when it dies or is of another release.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ::proxy::handover::{self, Found, Holder, Link};
use ::proxy::spawn::{self, Process};
use anyhow::{Context, Result, bail};
use lifecycle::Scope;
use tokio::sync::oneshot;

use super::state::State;
use super::systemd;
use crate::version::VERSION;

/// The hidden command `gantry proxy --state-dir DIR`: the proxy's process.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(flag), Some(dir)) = (arguments.next(), arguments.next()) else {
        return ExitCode::from(2);
    };
    if flag != "--state-dir" {
        return ExitCode::from(2);
    }
    // What goes wrong is the daemon's to see: standard error is the proxy's log.
    let filter = tracing_subscriber::EnvFilter::try_from_env("GANTRY_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        // A full disk must not end what logs: see `super::log`.
        .log_internal_errors(false)
        .try_init();
    match run(Path::new(&dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the proxy ends");
            ExitCode::FAILURE
        }
    }
}

fn run(dir: &Path) -> Result<()> {
    let link = spawn::inherited();
    let state = State::existing(dir)?.context("there is no such state folder")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let config = ::proxy::Config {
            kubeconfig: state.run("proxy.kubeconfig"),
            state_dir: state.dir,
            instance: state.instance,
            link,
            limits: ::proxy::Limits::default(),
            allowance: allowance(),
            program: VERSION.to_owned(),
        };
        ::proxy::run(config, Scope::new("proxy")).await.context("run the proxy")
    })
}

/// What every Pod may reach beside the world.
const ALLOW_EGRESS: &str = "GANTRY_ALLOW_EGRESS";

fn allowance() -> ::proxy::Allowance {
    let text = std::env::var(ALLOW_EGRESS).unwrap_or_default();
    let (allowance, unread) = ::proxy::Allowance::parse(&text);
    if !unread.is_empty() {
        tracing::warn!(?unread, "{ALLOW_EGRESS} names what is neither `host` nor an IPv4 range");
    }
    allowance
}

/// The cgroup of the proxy: what ends the daemon's leaves it alone.
const CGROUP: &str = "proxy";
/// First wait before a proxy that died before it took connections is started again; doubled by each further one.
const RESTART_MIN: Duration = Duration::from_millis(20);
const RESTART_MAX: Duration = Duration::from_secs(5);
/// How long a proxy may take to hear everything and accept, before one that takes over is given up.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long the proxy before may take to finish what it carries; long streams are cut then.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);
/// And how much longer to end.
const END_WITHIN: Duration = Duration::from_secs(5);

/// What a proxy that outlived the last daemon holds for this one, or else the service manager.
pub struct Kept {
    holder: Holder,
    link: Option<Link>,
}

impl Kept {
    /// Links to the proxy of this state folder, if one runs.
    pub async fn take(state: &State, stored: Vec<(String, OwnedFd)>, scope: &Scope) -> Self {
        let holder = Holder::new("daemon", VERSION);
        let link = match handover::connect(&state.dir, &holder, scope).await {
            Ok(Found::Nobody) => None,
            Ok(Found::Linked(link)) => Some(link),
            // Whatever it holds nobody else can have: the API's port, say.
            Ok(Found::Unlinked { process, error }) => {
                let (pid, error) = (process.pid(), format!("{:#}", anyhow::Error::from(error)));
                tracing::warn!(
                    pid,
                    error,
                    "the running proxy does not answer: it is ended and another one started"
                );
                if !end(process).await {
                    tracing::error!(pid, "the proxy does not end, and keeps its listeners");
                }
                None
            }
            Err(error) => {
                tracing::warn!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "look for a running proxy"
                );
                None
            }
        };
        let returned = holder.returned();
        for (name, descriptor) in stored {
            let is_ours = super::state::LISTENERS.iter().any(|listener| listener.name == name);
            match (is_ours, &link) {
                (true, _) if !returned.contains(&name) => holder.give_back(&name, descriptor),
                (false, None) => holder.keep(&name, descriptor),
                // The proxy has said what it listens on; what is wanted is stored again below.
                _ => systemd::store(&name, None),
            }
        }
        holder.watch(systemd::store);
        Self { holder, link }
    }

    /// A listener of the last daemon, still open.
    pub fn listener(&self, name: &str) -> Option<TcpListener> {
        self.holder.take_back(name).map(TcpListener::from)
    }
}

/// How the proxy is held.
pub struct Hold {
    /// Which knows the instance's cgroups.
    pub runtime: runtime::Runtime,
    /// This daemon takes over from another: the proxy is replaced whatever its release.
    pub takes_over: bool,
}

/// Gives the proxy this daemon's listeners, and sees to it that there is one until the scope ends. The answer is told
/// once a proxy of this release takes connections, or why none does.
pub fn hold(
    state: &State,
    kept: Kept,
    own: Vec<(&'static str, TcpListener)>,
    hold: Hold,
    scope: &Scope,
) -> Result<oneshot::Receiver<Result<()>>> {
    for (name, listener) in own {
        kept.holder.own(name, listener).with_context(|| format!("hold the listener {name}"))?;
    }
    kept.holder.drop_returned();
    let (tell, told) = oneshot::channel();
    let Kept { holder, link } = kept;
    let mut keeping = Keeping { state: state.clone(), holder, hold, scope: scope.clone(), tell: Some(tell) };
    scope.spawn("proxy", async move { keeping.run(link).await });
    Ok(told)
}

struct Keeping {
    state: State,
    holder: Holder,
    hold: Hold,
    scope: Scope,
    tell: Option<oneshot::Sender<Result<()>>>,
}

struct Running {
    process: Process,
    link: Link,
}

impl Running {
    /// Waits until it takes connections.
    async fn up(&mut self) -> Result<()> {
        let up = async {
            tokio::select! {
                true = self.link.ready() => Ok(()),
                _ = self.process.exited() => bail!("the proxy ended before it took connections"),
            }
        };
        match tokio::time::timeout(READY_WITHIN, up).await {
            Ok(up) => up,
            Err(_) => bail!("the proxy took no connections within {} s", READY_WITHIN.as_secs()),
        }
    }
}

impl Keeping {
    async fn run(&mut self, link: Option<Link>) {
        let mut found = None;
        if let Some(link) = link {
            match Process::attach(link.pid()) {
                Ok(process) => found = Some(Running { process, link }),
                Err(error) => tracing::error!(%error, "find the running proxy"),
            }
        }
        if let Some(old) = found.take() {
            let same = old.link.program() == VERSION && !self.hold.takes_over;
            found = Some(if same { old } else { self.replace(old).await });
            self.say(Ok(()));
        }
        let mut wait = RESTART_MIN;
        loop {
            let mut has_served = false;
            // One that an earlier daemon started has served, whatever it says to this one.
            let was_running = found.is_some();
            let taken = match found.take() {
                Some(running) => Ok(running),
                None => self.start().await,
            };
            match taken {
                Ok(mut running) => {
                    tracing::info!(pid = running.process.pid(), lease = running.link.name(), "proxy");
                    note(&self.state, running.process.pid());
                    if self.tell.is_some() {
                        let up = running.up().await;
                        self.say(up);
                    }
                    if let Err(error) = running.process.exited().await {
                        tracing::error!(%error, "wait for the proxy");
                    }
                    has_served = was_running || running.link.is_ready();
                    tracing::warn!(pid = running.process.pid(), has_served, "the proxy ended");
                }
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "start the proxy");
                    self.say(Err(error));
                }
            }
            // Connections wait for the next one: it is started at once, unless none can start.
            if has_served {
                wait = RESTART_MIN;
            } else {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RESTART_MAX);
            }
        }
    }

    /// Tells once how it went.
    fn say(&mut self, result: Result<()>) {
        if let Some(tell) = self.tell.take() {
            // Nobody may wait for it.
            let _ = tell.send(result);
        }
    }

    /// A new proxy in the place of one that runs: that goes on until the new one takes connections, then accepts no
    /// more and finishes what it carries. If none comes up the old one stays.
    async fn replace(&mut self, old: Running) -> Running {
        tracing::info!(
            old = old.link.program(),
            new = VERSION,
            pid = old.process.pid(),
            "replacing the proxy"
        );
        let mut new = match self.start().await {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "start a new proxy; the old one goes on");
                self.say(Err(error));
                return old;
            }
        };
        if let Err(error) = new.up().await {
            tracing::error!(error = format!("{error:#}"), "the old proxy goes on");
            let _ = new.process.kill();
            let _ = new.process.exited().await;
            self.say(Err(error));
            return old;
        }
        old.link.drain(DRAIN_WITHIN);
        self.scope.spawn("proxy that finishes", leave(old));
        new
    }

    async fn start(&self) -> Result<Running> {
        let path = self.state.dir.join("logs/proxy.log");
        let log = OpenOptions::new().append(true).create(true).mode(durable::FILE_MODE).open(&path);
        let log = log.with_context(|| format!("open {}", path.display()))?;
        let folder = self.state.dir.to_str().context("the state folder's path is no text")?;
        let arguments = ["proxy", "--state-dir", folder];
        let (process, end): (Process, OwnedFd) =
            spawn::start(&own_binary(), &arguments, log).context("start the proxy")?;
        if let Err(error) = self.hold.runtime.house(CGROUP, process.pid()) {
            tracing::warn!(%error, "give the proxy a cgroup of its own");
        }
        let link = Link::establish(end, &self.holder, &self.scope).await;
        let link = link.context("hand listeners to the proxy")?;
        Ok(Running { process, link })
    }
}

/// What this process runs, whatever has become of the file's name since.
fn own_binary() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

/// Sees a proxy that was told to finish to its end.
async fn leave(mut old: Running) {
    if tokio::time::timeout(DRAIN_WITHIN + END_WITHIN, old.process.exited()).await.is_err() {
        tracing::warn!(pid = old.process.pid(), "the old proxy did not end in time, and is ended");
        end(old.process).await;
    }
}

/// Ends a proxy at once, stopped or not; whether it has ended.
pub(super) async fn end(mut process: Process) -> bool {
    if let Err(error) = process.kill() {
        // As when it has ended already.
        tracing::debug!(%error, pid = process.pid(), "kill a proxy");
    }
    matches!(tokio::time::timeout(END_WITHIN, process.exited()).await, Ok(Ok(())))
}

/// The process's number, for people and scripts; the daemon itself goes by the process's descriptor.
fn note(state: &State, pid: u32) {
    let (path, text) = (state.run("proxy.pid"), pid.to_string());
    if std::fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
        return;
    }
    // On a full disk the block that the old file has is the only one.
    let written = durable::write(&path, text.as_bytes())
        .or_else(|_| OpenOptions::new().write(true).open(&path)?.write_all(format!("{text}\n").as_bytes()));
    if let Err(error) = written {
        tracing::warn!(%error, "note the proxy's process id");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stopped_process_is_ended_too() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        assert!(end(Process::attach(child.id()).unwrap()).await);
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
        assert!(Process::attach(child.id()).is_err(), "it has been reaped");
    }
}
