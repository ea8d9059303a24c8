//! Daemon start → `/readyz`, empty and after `kill -9` with 5,000 objects, beside kube-apiserver on etcd.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::api::{self, Api};
use super::peers::Kubernetes;
use super::process::{Process, until};
use super::row::Bar;
use super::samples::Samples;
use super::{Figure, Row, Setting};
use crate::sandbox::Sandbox;

pub(crate) const FIGURE: Figure = Figure {
    name: "start",
    about: "daemon start → /readyz, empty and after kill -9 with 5,000 objects",
    peer: "kube-apiserver on etcd",
    bar: "≤ 0.3, 1 s; ≤ 0.2 ×",
    run,
};

/// Objects of about 1 kB in the second row.
const OBJECTS: usize = 5000;
const LIMIT: Duration = Duration::from_secs(60);

fn run(setting: &Setting) -> Result<Vec<Row>> {
    let mut ours = Samples::default();
    let mut theirs = Samples::default();
    let mut alive = Ok(());
    for _ in 0..setting.rounds {
        let sandbox = Sandbox::new(&setting.gantry)?;
        let (daemon, took) = start_daemon(&sandbox)?;
        ours.push_milliseconds(took);
        drop(daemon);
        sandbox.end()?;
        if alive.is_ok() {
            match empty_peer() {
                Ok(took) => theirs.push_milliseconds(took),
                Err(error) => alive = Err(error),
            }
        }
    }
    let about = "daemon start → /readyz, on an empty state folder";
    let empty =
        Row::compare(about, "ms", ours.median(), &alive.map(|()| theirs.median()), Bar::both(300.0, 0.2));
    Ok(vec![empty, full(setting)?])
}

fn full(setting: &Setting) -> Result<Row> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    let (mut daemon, _) = start_daemon(&sandbox)?;
    api::fill(&Api::of_kubeconfig(&sandbox.state().join("kubeconfig"))?, OBJECTS)?;
    let mut peer = Kubernetes::start().and_then(|peer| api::fill(&peer.api(), OBJECTS).map(|()| peer));
    let mut alive = peer.as_ref().map(drop).map_err(|error| anyhow::anyhow!("{error:#}"));
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for _ in 0..setting.rounds {
        daemon.kill()?;
        let took;
        (daemon, took) = start_daemon(&sandbox)?;
        ours.push_milliseconds(took);
        if let (Ok(peer), Ok(())) = (&mut peer, &alive) {
            match restart_peer(peer) {
                Ok(took) => theirs.push_milliseconds(took),
                Err(error) => alive = Err(error),
            }
        }
    }
    drop(peer);
    drop(daemon);
    sandbox.end()?;
    let about = "daemon start → /readyz, after kill -9 with 5,000 objects";
    Ok(Row::compare(about, "ms", ours.median(), &alive.map(|()| theirs.median()), Bar::both(1000.0, 0.2)))
}

/// `gantry daemon run` until it says on its API that it is ready.
fn start_daemon(sandbox: &Sandbox) -> Result<(Process, Duration)> {
    let logs = sandbox.work("daemon")?;
    let kubeconfig = sandbox.state().join("kubeconfig");
    let started = Instant::now();
    let mut daemon = Process::start("daemon", &logs, sandbox.command(["daemon", "run"]))?;
    let ready = until("the daemon", LIMIT, || match daemon.check() {
        Ok(()) => is_ready(&kubeconfig).then_some(Ok(())),
        Err(error) => Some(Err(error)),
    });
    let took = started.elapsed();
    let log = logs.join("daemon.log");
    ready.and_then(|ready| ready).with_context(|| super::peers::tail(&log))?;
    Ok((daemon, took))
}

/// The first start writes the kubeconfig on its way.
fn is_ready(kubeconfig: &Path) -> bool {
    Api::of_kubeconfig(kubeconfig).is_ok_and(|api| api.is_ready())
}

fn empty_peer() -> Result<Duration> {
    let mut peer = Kubernetes::etcd()?;
    let started = Instant::now();
    peer.start_server()?;
    Ok(started.elapsed())
}

fn restart_peer(peer: &mut Kubernetes) -> Result<Duration> {
    peer.kill_server()?;
    let started = Instant::now();
    peer.start_server()?;
    Ok(started.elapsed())
}
