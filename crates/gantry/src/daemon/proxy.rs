//! The proxy seen from the daemon: found or started, its listeners held, replaced when it dies.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use ::proxy::handover::{self, Holder, Link};
use ::proxy::spawn::{self, Process};
use anyhow::{Context, Result};
use lifecycle::Scope;

use super::state::State;

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

/// First wait before a proxy that died before it took connections is started again; doubled by each further one.
const RESTART_MIN: Duration = Duration::from_millis(20);
const RESTART_MAX: Duration = Duration::from_secs(5);

/// What a proxy that outlived the last daemon holds for this one.
pub struct Kept {
    holder: Holder,
    link: Option<Link>,
}

impl Kept {
    /// Links to the proxy of this state folder, if one runs.
    pub async fn take(state: &State, scope: &Scope) -> Self {
        let holder = Holder::new("daemon");
        let link = match handover::connect(&state.dir, &holder, scope).await {
            Ok(link) => link,
            Err(error) => {
                tracing::warn!(error = %anyhow::Error::from(error), "the running proxy does not answer");
                None
            }
        };
        Self { holder, link }
    }

    /// A listener of the last daemon, still open.
    pub fn listener(&self, name: &str) -> Option<TcpListener> {
        self.holder.take_back(name).map(TcpListener::from)
    }
}

/// Gives the proxy this daemon's listeners, and sees to it that there is one until the scope ends.
pub fn hold(state: &State, kept: Kept, own: Vec<(&'static str, TcpListener)>, scope: &Scope) -> Result<()> {
    for (name, listener) in own {
        kept.holder.own(name, listener).with_context(|| format!("hold the listener {name}"))?;
    }
    kept.holder.drop_returned();
    let exe = std::env::current_exe().context("find the gantry binary")?;
    let (state, inner) = (state.clone(), scope.clone());
    scope.spawn("proxy", async move { keep(&state, &exe, kept, &inner).await });
    Ok(())
}

async fn keep(state: &State, exe: &Path, kept: Kept, scope: &Scope) {
    let Kept { holder, mut link } = kept;
    let mut wait = RESTART_MIN;
    loop {
        let mut has_served = false;
        let was_running = link.is_some();
        let taken = match link.take() {
            Some(link) => {
                Process::attach(link.pid()).map(|process| (process, link)).context("find the running proxy")
            }
            None => start(state, exe, &holder, scope).await,
        };
        match taken {
            Ok((mut process, link)) => {
                tracing::info!(pid = process.pid(), lease = link.name(), "proxy");
                note(state, process.pid());
                if let Err(error) = process.exited().await {
                    tracing::error!(%error, "wait for the proxy");
                }
                // One that an earlier daemon started has served, whatever it says to this one.
                has_served = was_running || link.is_ready();
                tracing::warn!(pid = process.pid(), has_served, "the proxy ended");
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "start the proxy"),
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

async fn start(state: &State, exe: &Path, holder: &Holder, scope: &Scope) -> Result<(Process, Link)> {
    let path = state.dir.join("logs/proxy.log");
    let log = OpenOptions::new().append(true).create(true).open(&path);
    let log = log.with_context(|| format!("open {}", path.display()))?;
    let folder = state.dir.to_str().context("the state folder's path is no text")?;
    let (process, end): (Process, OwnedFd) =
        spawn::start(exe, &["proxy", "--state-dir", folder], log).context("start the proxy")?;
    let link = Link::establish(end, holder, scope).await.context("hand listeners to the proxy")?;
    Ok((process, link))
}

/// The process's number, for people and scripts; the daemon itself goes by the process's descriptor.
fn note(state: &State, pid: u32) {
    if let Err(error) = durable::write(&state.run("proxy.pid"), pid.to_string().as_bytes()) {
        tracing::warn!(%error, "note the proxy's process id");
    }
}
