//! Server-side apply of a ConfigMap over HTTPS, durable, by one client, beside kube-apiserver on etcd.

use std::time::Instant;

use anyhow::Result;
use serde_json::json;

use super::api::{APPLY, Api, Connection};
use super::peers::Kubernetes;
use super::row::Bar;
use super::samples::Samples;
use super::{Figure, Row, Setting};
use crate::sandbox::Sandbox;

pub(crate) const FIGURE: Figure = Figure {
    name: "apply",
    about: "apply of a ConfigMap over HTTPS, durable, 1 client",
    peer: "kube-apiserver on etcd",
    bar: "≤ 2, p99 10 ms; ≤ 0.7 ×",
    run,
};

/// Patches in all on either side; more when there are more rounds than usual.
const PATCHES_PER_ROUND: usize = 100;
/// Patches before the clock counts.
const WARM: usize = 50;

fn run(setting: &Setting) -> Result<Vec<Row>> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    sandbox.ok(["daemon", "start"])?;
    let mut peer = Kubernetes::start().and_then(|peer| {
        let mut client = peer.api().connect()?;
        patch(&mut client, 0, WARM, &mut Samples::default())?;
        Ok((peer, client))
    });
    // Only now: the peer takes its time, and a connection without requests is closed.
    let mut client = Api::of_kubeconfig(&sandbox.state().join("kubeconfig"))?.connect()?;
    patch(&mut client, 0, WARM, &mut Samples::default())?;
    let mut alive = peer.as_ref().map(drop).map_err(|error| anyhow::anyhow!("{error:#}"));
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for round in 0..setting.rounds {
        let from = WARM + round * PATCHES_PER_ROUND;
        patch(&mut client, from, PATCHES_PER_ROUND, &mut ours)?;
        if let (Ok((_, client)), Ok(())) = (&mut peer, &alive) {
            alive = patch(client, from, PATCHES_PER_ROUND, &mut theirs);
        }
    }
    drop(peer);
    sandbox.end()?;
    let about = format!(
        "apply of a ConfigMap over HTTPS, durable, 1 client ({} patches)",
        setting.rounds * PATCHES_PER_ROUND
    );
    let p99 = alive.as_ref().map(|()| theirs.p99()).map_err(|error| anyhow::anyhow!("{error:#}"));
    let median =
        Row::compare(&about, "ms", ours.median(), &alive.map(|()| theirs.median()), Bar::both(2.0, 0.7));
    Ok(vec![median.and("p99", Row::compare("", "ms", ours.p99(), &p99, Bar::both(10.0, 0.7)))])
}

/// Each patch changes the object, so that none can be answered without a write.
fn patch(client: &mut Connection, from: usize, count: usize, samples: &mut Samples) -> Result<()> {
    let path = "/api/v1/namespaces/default/configmaps/bench?fieldManager=bench&force=true";
    for number in from..from + count {
        let body = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "bench"},
            "data": {"number": number.to_string(), "text": "a line of text that stays as it is"},
        })
        .to_string();
        let started = Instant::now();
        client.ok("PATCH", path, APPLY, &body)?;
        samples.push_milliseconds(started.elapsed());
    }
    Ok(())
}
