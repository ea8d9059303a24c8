//! The end of everything that outlives a daemon: containers with their keepers, the proxy, the network.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::state::State;

/// SIGTERM's signal number.
const TERMINATE: i32 = 15;
/// How long programs get to end by themselves.
const GRACE: Duration = Duration::from_secs(10);

/// Ends what runs without the daemon, which must not run, and removes what stands outside the state folder. Says what
/// it ended. Safe to repeat; only what carries the state folder's mark is touched.
pub fn remove_outside(state_dir: &Path) -> Result<Vec<String>> {
    let Some(state) = State::existing(state_dir)? else {
        return Ok(Vec::new());
    };
    let _lock = durable::Lock::acquire(&state.lock_path()).context("the daemon still runs")?;
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut ended = containers(&state).await?;
            ended.extend(proxy(&state).await?);
            network::Network::remove(&state.dir).context("remove the network")?;
            Ok(ended)
        })
    };
    // The command that asks has a runtime already, and one cannot be started inside another.
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(ended) => ended,
        Err(_) => bail!("the removal panicked"),
    })
}

async fn containers(state: &State) -> Result<Vec<String>> {
    let runtime = runtime::Runtime::open(runtime::Config {
        state_dir: state.dir.clone(),
        instance: state.instance.clone(),
        exe: std::env::current_exe().context("find the gantry binary")?,
    })
    .context("open the container runtime")?;
    let containers = runtime.reattach().await.context("find the containers")?;
    let mut ended = Vec::new();
    for container in &containers {
        // One that has ended already cannot be told; it is removed below like the others.
        if container.signal(TERMINATE).await.is_ok() {
            ended.push(format!("container {}", container.id()));
        }
    }
    let all = futures::future::join_all(containers.iter().map(|container| container.wait()));
    // Those that do not end by then are killed by `destroy`.
    let _ = tokio::time::timeout(GRACE, all).await;
    runtime.destroy().await.context("remove the containers")?;
    Ok(ended)
}

async fn proxy(state: &State) -> Result<Vec<String>> {
    let scope = lifecycle::Scope::new("teardown");
    let holder = ::proxy::handover::Holder::new("teardown", "");
    // The process behind the state folder's own socket is ours; a number in a file might be anybody's by now.
    let Some(link) =
        ::proxy::handover::connect(&state.dir, &holder, &scope).await.context("find the proxy")?
    else {
        return Ok(Vec::new());
    };
    let mut process = ::proxy::spawn::Process::attach(link.pid()).context("find the proxy")?;
    process.kill().context("end the proxy")?;
    if tokio::time::timeout(GRACE, process.exited()).await.is_err() {
        bail!("the proxy (process {}) did not end", process.pid());
    }
    Ok(vec![format!("proxy {}", process.pid())])
}
