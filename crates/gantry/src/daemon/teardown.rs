//! The end of everything that outlives a daemon: containers with their keepers, the proxy, the network.
//!
//! **Invariant:** it ends, whatever a container does: each wait has a deadline, and what resists is named.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use ::proxy::handover::Found;
use ::proxy::spawn::Process;
use anyhow::{Context, Result, bail};
use futures::future::join_all;
use tokio::time::timeout;

use super::state::State;
use crate::context::Removed;

/// SIGTERM's signal number.
const TERMINATE: i32 = 15;
/// How long programs get to end by themselves.
const GRACE: Duration = Duration::from_secs(10);
/// How long a keeper may take to answer, and a container to be killed and taken away.
const CONTAINER_DEADLINE: Duration = Duration::from_secs(10);
/// How long the runtime may take to look at all containers, and to remove what is empty.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(30);
/// How long all of it may take: the sum of the above, and some for the kernel, which can block us where no deadline
/// holds.
const DEADLINE: Duration = Duration::from_secs(120);

/// What is being done, for who gives up waiting for it.
type Step = Arc<Mutex<&'static str>>;

/// Ends what runs without the daemon, which must not run, and removes what stands outside the state folder. Safe to
/// repeat; only what carries the state folder's mark is touched.
pub fn remove_outside(state_dir: &Path) -> Result<Removed> {
    let Some(state) = State::existing(state_dir)? else {
        return Ok(Removed::default());
    };
    let step = Step::default();
    let (done, removed) = mpsc::channel();
    // The command that asks has a runtime already, and one cannot be started inside another. A thread that the kernel
    // holds is left behind: the process ends without it.
    let (doing, instance) = (step.clone(), state.clone());
    let run = move || drop(done.send(remove(&instance, &doing)));
    std::thread::Builder::new().name("teardown".to_owned()).spawn(run).context("start a thread")?;
    match removed.recv_timeout(DEADLINE) {
        Ok(removed) => removed,
        Err(mpsc::RecvTimeoutError::Timeout) => {
            let step = *step.lock().unwrap_or_else(PoisonError::into_inner);
            bail!("{step} has not come to its end after {} s", DEADLINE.as_secs())
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the removal panicked"),
    }
}

fn remove(state: &State, step: &Step) -> Result<Removed> {
    let doing = |what| *step.lock().unwrap_or_else(PoisonError::into_inner) = what;
    doing("taking the state folder's lock");
    let _lock = durable::Lock::acquire(&state.lock_path()).context("the daemon still runs")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let removed = runtime.block_on(async {
        let mut removed = Removed::default();
        doing("ending the containers");
        if let Err(error) = containers(state, &mut removed).await {
            removed.resisted.push(format!("containers: {error:#}"));
        }
        doing("ending the proxy");
        match proxy(state).await {
            Ok(ended) => removed.ended.extend(ended),
            Err(error) => removed.resisted.push(format!("{error:#}")),
        }
        doing("removing the network");
        if let Err(error) = network::Network::remove(&state.dir) {
            removed.resisted.push(format!("network: {:#}", anyhow::Error::from(error)));
        }
        removed
    });
    // What blocks in the kernel is not waited for.
    runtime.shutdown_background();
    Ok(removed)
}

async fn containers(state: &State, removed: &mut Removed) -> Result<()> {
    let runtime = runtime::Runtime::open(runtime::Config {
        state_dir: state.dir.clone(),
        instance: state.instance.clone(),
        exe: std::env::current_exe().context("find the gantry binary")?,
    })
    .context("open the container runtime")?;
    let found = timeout(RUNTIME_DEADLINE, runtime.reattach()).await.context("look for them")?;
    let containers = found.context("look for them")?;
    let told = containers.iter().map(|container| timeout(CONTAINER_DEADLINE, container.signal(TERMINATE)));
    for (container, told) in containers.iter().zip(join_all(told).await) {
        // One that has ended already cannot be told; it is removed below like the others.
        if matches!(told, Ok(Ok(_))) {
            removed.ended.push(format!("container {}", container.id()));
        }
    }
    let all = join_all(containers.iter().map(|container| container.wait()));
    // Those that do not end by then are killed.
    let _ = timeout(GRACE, all).await;
    let before = removed.resisted.len();
    let deleted = containers.iter().map(|container| timeout(CONTAINER_DEADLINE, container.delete()));
    for (container, deleted) in containers.iter().zip(join_all(deleted).await) {
        let why = match deleted {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => format!("{:#}", anyhow::Error::from(error)),
            Err(_) => format!("does not end, {} s after it was killed", CONTAINER_DEADLINE.as_secs()),
        };
        removed.resisted.push(format!("container {}: {why}", container.id()));
    }
    if removed.resisted.len() > before {
        return Ok(());
    }
    let destroyed = timeout(RUNTIME_DEADLINE, runtime.destroy()).await.context("remove what they left")?;
    destroyed.context("remove what they left")
}

async fn proxy(state: &State) -> Result<Option<String>> {
    let scope = lifecycle::Scope::new("teardown");
    let holder = ::proxy::handover::Holder::new("teardown", "");
    // The process behind the state folder's own socket is ours; a number in a file might be anybody's by now.
    let found = ::proxy::handover::connect(&state.dir, &holder, &scope).await.context("find the proxy")?;
    let process = match found {
        Found::Nobody => return Ok(None),
        Found::Linked(link) => Process::attach(link.pid()).context("find the proxy")?,
        // Stopped, or stuck.
        Found::Unlinked { process, .. } => process,
    };
    let pid = process.pid();
    if !super::proxy::end(process).await {
        bail!("the proxy (process {pid}) did not end");
    }
    Ok(Some(format!("proxy {pid}")))
}
