//! Memory of an idle daemon and its proxy, empty and with 5,000 objects, beside the four processes that they stand for.

use std::time::Duration;

use anyhow::Result;

use super::api::{self, Api};
use super::peers::Kubernetes;
use super::process::pss_mebibytes;
use super::row::Bar;
use super::samples::Samples;
use super::{Figure, Row, Setting};
use crate::sandbox::Sandbox;

pub(crate) const FIGURE: Figure = Figure {
    name: "memory",
    about: "idle PSS, daemon + proxy, empty and with 5,000 objects",
    peer: "etcd + kube-apiserver + controller-manager + scheduler",
    bar: "≤ 40, 80 MiB; ≤ 0.15 ×",
    run,
};

const OBJECTS: usize = 5000;
/// Idle is what a process is after some seconds without work.
const SETTLE: Duration = Duration::from_secs(5);
const BETWEEN: Duration = Duration::from_millis(500);

fn run(setting: &Setting) -> Result<Vec<Row>> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    sandbox.ok(["daemon", "start"])?;
    let mut peer = Kubernetes::start().and_then(|mut peer| peer.start_controllers().map(|()| peer));
    let mut rows = Vec::new();
    for (objects, most) in [(0, 40.0), (OBJECTS, 80.0)] {
        if objects > 0 {
            api::fill(&Api::of_kubeconfig(&sandbox.state().join("kubeconfig"))?, objects)?;
            peer = peer.and_then(|peer| api::fill(&peer.api(), objects).map(|()| peer));
        }
        std::thread::sleep(SETTLE);
        let (ours, theirs) = sample(setting, &sandbox, &mut peer)?;
        let state = if objects == 0 { "empty".to_owned() } else { format!("{objects} objects") };
        let about = format!("idle PSS, daemon + proxy, {state}");
        rows.push(Row::compare(&about, "MiB", ours.median(), &theirs, Bar::both(most, 0.15)));
    }
    drop(peer);
    sandbox.end()?;
    Ok(rows)
}

fn sample(
    setting: &Setting,
    sandbox: &Sandbox,
    peer: &mut Result<Kubernetes>,
) -> Result<(Samples, Result<f64>)> {
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    let own = [sandbox.daemon_pid()?, sandbox.proxy_pid()?];
    let mut alive = match peer {
        Ok(peer) => peer.check(),
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    };
    for _ in 0..setting.rounds {
        let pids: Vec<_> = own.iter().map(|pid| pid.as_raw() as u32).collect();
        ours.push(sum(&pids)?);
        if let (Ok(peer), Ok(())) = (&mut *peer, &alive) {
            match peer.check().and_then(|()| sum(&peer.pids())) {
                Ok(size) => theirs.push(size),
                Err(error) => alive = Err(error),
            }
        }
        std::thread::sleep(BETWEEN);
    }
    Ok((ours, alive.map(|()| theirs.median())))
}

fn sum(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| pss_mebibytes(*pid)).sum()
}
