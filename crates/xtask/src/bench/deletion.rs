//! Deletion of a Pod with an idle program, DELETE → gone, after daemon and proxy died together again and again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::api::{Api, Connection, Watch};
use super::go::Hello;
use super::process::until;
use super::row::Bar;
use super::samples::Samples;
use super::{Figure, Row, Setting};
use crate::sandbox::Sandbox;

pub(crate) const FIGURE: Figure = Figure {
    name: "deletion",
    about: "Pod deletion, idle program, after 20 kills of daemon and proxy together",
    peer: super::NO_PEER,
    bar: "≤ 300 ms",
    run,
};

/// How often both are killed before anything is measured.
const KILLS: usize = 20;
const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const LIMIT: Duration = Duration::from_secs(60);

fn run(setting: &Setting) -> Result<Vec<Row>> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    let hello = Hello::copy(sandbox.work("hello")?)?;
    sandbox.ok(["daemon", "start"])?;
    let said = sandbox.ok(["build", hello.path()?, "--format", "json"])?;
    let facts: Value = serde_json::from_str(&said).context("read gantry build --format json")?;
    let image = facts["image"].as_str().context("gantry build names no image")?.to_owned();
    for _ in 0..KILLS {
        let (daemon, proxy) = (sandbox.daemon_pid()?, sandbox.proxy_pid()?);
        sandbox.kill(daemon)?;
        sandbox.kill(proxy)?;
        sandbox.ok(["daemon", "start"])?;
        until("a new proxy", LIMIT, || sandbox.proxy_pid().ok().filter(|pid| *pid != proxy))?;
    }
    let api = Api::of_kubeconfig(&sandbox.state().join("kubeconfig"))?;
    let mut client = api.connect()?;
    // The Pods are a Service's backends: the proxy has to say that it has drained them.
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "idle"},
        "spec": {"selector": {"app": "idle"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    client.ok("POST", SERVICES, "application/json", &service.to_string())?;
    let list = client.ok("GET", PODS, "", "")?;
    let version = list["metadata"]["resourceVersion"].as_str().context("a list without a version")?;
    let mut watch = api.connect()?.watch(&format!("{PODS}?watch=true&resourceVersion={version}"))?;
    let mut ours = Samples::default();
    for round in 0..setting.rounds {
        ours.push_milliseconds(one(&mut client, &mut watch, &format!("idle-{round}"), &image)?);
    }
    sandbox.end()?;
    let mut row = Row::compare(FIGURE.about, "ms", ours.median(), &Ok(f64::NAN), Bar::most(300.0));
    row.peer = super::NO_PEER.to_owned();
    Ok(vec![row])
}

/// Makes a Pod, waits until it is Ready, deletes it: from the request to the event that it is gone.
fn one(client: &mut Connection, watch: &mut Watch, name: &str, image: &str) -> Result<Duration> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "idle"}},
        "spec": {"containers": [{
            "name": "hello", "image": image, "imagePullPolicy": "IfNotPresent",
            "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
        }]},
    });
    client.ok("POST", PODS, "application/json", &pod.to_string())?;
    wait(watch, name, |event| {
        let conditions = event["object"]["status"]["conditions"].as_array();
        conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
    })?;
    let started = Instant::now();
    client.ok("DELETE", &format!("{PODS}/{name}"), "", "")?;
    wait(watch, name, |event| event["type"] == "DELETED")?;
    Ok(started.elapsed())
}

fn wait(watch: &mut Watch, name: &str, is_it: impl Fn(&Value) -> bool) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        let event = watch.next()?;
        if event["object"]["metadata"]["name"] == *name {
            if is_it(&event) {
                return Ok(());
            }
            ensure!(event["type"] != "DELETED", "pod {name} was deleted");
        }
    }
    anyhow::bail!("nothing of pod {name} within {} s", LIMIT.as_secs())
}
