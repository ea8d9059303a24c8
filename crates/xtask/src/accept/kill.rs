//! Rung `kill`: the daemon and the proxy are killed at seeded moments, under load.

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Seen, Setting, fixtures};
use crate::load::{Load, Report, until};
use crate::sandbox::Sandbox;

/// Operations between two kills, at least and at most: the moment is counted in work done, not in time.
const BETWEEN: std::ops::Range<u64> = 200..1500;

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    fixtures::up(&sandbox, 1)?;
    let targets = fixtures::targets(&sandbox)?;
    let mut random = StdRng::seed_from_u64(setting.seed);
    let times = setting.times(20, 3);
    let runtime = super::runtime()?;
    runtime.block_on(async {
        let load = Load::start(&targets);
        for _ in 0..times {
            work(&load, &mut random).await?;
            let pid = sandbox.daemon_pid()?;
            sandbox.kill(pid)?;
            work(&load, &mut random).await?;
            sandbox.ok(["daemon", "start"])?;
        }
        work(&load, &mut random).await?;
        let daemon = load.stop().await;
        let load = Load::start(&targets);
        for _ in 0..times {
            work(&load, &mut random).await?;
            let pid = sandbox.proxy_pid()?;
            sandbox.kill(pid)?;
            let back = until(30, || async { sandbox.proxy_pid().is_ok_and(|new| new != pid) }).await;
            ensure!(back, "no new proxy within 30 s");
        }
        work(&load, &mut random).await?;
        let proxy = load.stop().await;
        let refused = refused(&proxy);
        let met = daemon.lost() == 0 && refused == 0;
        let figure = format!(
            "daemon killed {times} times: {}; proxy killed {times} times: {} operations, {refused} refused, {} cut",
            daemon.words(),
            proxy.done,
            proxy.lost() - refused,
        );
        Ok(Seen::new(met, figure))
    })
}

/// A proxy takes its open connections with it when it is killed; new ones wait in the socket that the daemon holds.
fn refused(report: &Report) -> u64 {
    report.lost.iter().filter(|(reason, _)| reason.contains("connect:")).map(|(_, count)| count).sum()
}

/// Waits until the load has done a seeded amount of work.
async fn work(load: &Load, random: &mut StdRng) -> Result<()> {
    let ended = || load.done() + load.lost();
    let goal = ended() + random.random_range(BETWEEN);
    until(60, || async { ended() >= goal }).await.then_some(()).context("the load stands still")
}
