//! A Pod whose image is present, POST → Ready by the client's clock, beside `docker run --detach` to the first answer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::api::{Api, Connection, Watch};
use super::go::{self, Hello};
use super::peers::Docker;
use super::row::Bar;
use super::samples::Samples;
use super::{Figure, Row, Setting};
use crate::sandbox::Sandbox;

pub(crate) const FIGURE: Figure = Figure {
    name: "pod",
    about: "Pod with its image present, POST → Ready",
    peer: "docker run --detach to the first answer",
    bar: "≤ 150, p99 500 ms; ≤ 0.6 ×",
    run,
};

/// Pods a round: the p99 needs more than a median does.
const PODS_PER_ROUND: usize = 5;
/// Runs of docker a round.
const RUNS_PER_ROUND: usize = 2;
const PODS: &str = "/api/v1/namespaces/default/pods";
const DOCKER_PORT: u16 = 18080;
const LIMIT: Duration = Duration::from_secs(60);

fn run(setting: &Setting) -> Result<Vec<Row>> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    let hello = Hello::copy(sandbox.work("hello")?)?;
    hello.build()?;
    let docker = docker(&hello);
    sandbox.ok(["daemon", "start"])?;
    let said = sandbox.ok(["build", hello.path()?, "--format", "json"])?;
    let facts: Value = serde_json::from_str(&said).context("read gantry build --format json")?;
    let image = facts["image"].as_str().context("gantry build names no image")?.to_owned();
    let api = Api::of_kubeconfig(&sandbox.state().join("kubeconfig"))?;
    let mut client = api.connect()?;
    let list = client.ok("GET", PODS, "", "")?;
    let version = list["metadata"]["resourceVersion"].as_str().context("a list without a version")?;
    let mut watch = api.connect()?.watch(&format!("{PODS}?watch=true&resourceVersion={version}"))?;
    // The first one unpacks the image.
    one(&mut client, &mut watch, "bench-first", &image)?;
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    let mut alive = docker.as_ref().map(drop).map_err(|error| anyhow::anyhow!("{error:#}"));
    for round in 0..setting.rounds {
        for number in 0..PODS_PER_ROUND {
            let name = format!("bench-{round}-{number}");
            ours.push_milliseconds(one(&mut client, &mut watch, &name, &image)?);
        }
        for _ in 0..RUNS_PER_ROUND {
            if let (Ok(docker), Ok(())) = (&docker, &alive) {
                match docker_run(docker) {
                    Ok(took) => theirs.push_milliseconds(took),
                    Err(error) => alive = Err(error),
                }
            }
        }
    }
    drop(docker);
    sandbox.end()?;
    let about =
        format!("Pod with its image present, POST → Ready ({} Pods)", setting.rounds * PODS_PER_ROUND);
    let p99 = alive.as_ref().map(|()| theirs.p99()).map_err(|error| anyhow::anyhow!("{error:#}"));
    let median =
        Row::compare(&about, "ms", ours.median(), &alive.map(|()| theirs.median()), Bar::both(150.0, 0.6));
    Ok(vec![median.and("p99", Row::compare("", "ms", ours.p99(), &p99, Bar::most(500.0)))])
}

/// Makes a Pod, waits until it is Ready, then removes it and waits until it is gone.
fn one(client: &mut Connection, watch: &mut Watch, name: &str, image: &str) -> Result<Duration> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "hello", "image": image, "imagePullPolicy": "IfNotPresent",
                "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
            }],
        },
    });
    let started = Instant::now();
    client.ok("POST", PODS, "application/json", &pod.to_string())?;
    wait(watch, name, |event| {
        let conditions = event["object"]["status"]["conditions"].as_array();
        conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
    })?;
    let took = started.elapsed();
    client.ok("DELETE", &format!("{PODS}/{name}"), "", "")?;
    wait(watch, name, |event| event["type"] == "DELETED")?;
    Ok(took)
}

fn wait(watch: &mut Watch, name: &str, is_it: impl Fn(&Value) -> bool) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let mut last = Value::Null;
    while Instant::now() < deadline {
        let event =
            watch.next().with_context(|| format!("pod {name}, last seen: {}", last["object"]["status"]))?;
        if event["object"]["metadata"]["name"] == *name {
            if is_it(&event) {
                return Ok(());
            }
            ensure!(event["type"] != "DELETED", "pod {name} was deleted");
            last = event;
        }
    }
    anyhow::bail!("pod {name} is not there after {} s: {}", LIMIT.as_secs(), last["object"]["status"])
}

fn docker(hello: &Hello) -> Result<Docker> {
    go::dockerfile(&hello.folder)?;
    let docker = Docker::start()?;
    docker.build(&hello.folder, "hello")?;
    docker_run(&docker)?;
    Ok(docker)
}

fn docker_run(docker: &Docker) -> Result<Duration> {
    let started = Instant::now();
    let publish = format!("{DOCKER_PORT}:8080");
    docker.run(["run", "--detach", "--name", "hello", "--publish", &publish, "hello"])?;
    go::serves(SocketAddr::from(([127, 0, 0, 1], DOCKER_PORT)), "Hello, World!", LIMIT)?;
    let took = started.elapsed();
    docker.run(["rm", "--force", "hello"])?;
    Ok(took)
}
