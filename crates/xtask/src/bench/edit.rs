//! Edit one line → the new version serves, beside a bare `go build` of such an edit and beside the Docker path.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::go::{self, Hello};
use super::peers::Docker;
use super::row::Bar;
use super::samples::Samples;
use super::{Figure, Row, Setting};
use crate::sandbox::Sandbox;

pub(crate) const FIGURE: Figure = Figure {
    name: "edit",
    about: "edit one line → new version serving, examples/hello",
    peer: "go build; go build, docker build, rm, run",
    bar: "≤ 0.25 s above go build; ≤ 0.6 × Docker",
    run,
};

/// How long a version may take to serve.
const LIMIT: Duration = Duration::from_secs(60);
const DOCKER_PORT: u16 = 18080;

fn run(setting: &Setting) -> Result<Vec<Row>> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    let ours = Hello::copy(sandbox.work("hello")?)?;
    let bare = Hello::copy(sandbox.work("bare")?)?;
    let docker = Docked::start(Hello::copy(sandbox.work("docker")?)?);
    sandbox.ok(["up", ours.path()?, "--name", "hello"])?;
    let address = sandbox.address("hello")?;
    bare.build()?;
    let (mut up, mut build, mut dock) = (Samples::default(), Samples::default(), Samples::default());
    let mut docked = docker.as_ref().map(drop).map_err(|error| anyhow::anyhow!("{error:#}"));
    for round in 0..setting.rounds {
        up.push_milliseconds(one_up(&sandbox, &ours, address, &format!("ours {round}"))?);
        bare.edit(&format!("bare {round}"))?;
        build.push_milliseconds(bare.build()?);
        if let (Ok(docker), Ok(())) = (&docker, &docked) {
            match docker.replace(&format!("docker {round}")) {
                Ok(took) => dock.push_milliseconds(took),
                Err(error) => docked = Err(error),
            }
        }
    }
    drop(docker);
    sandbox.end()?;
    let above = Row::compare(
        "edit one line → new version serving, above a bare go build of the same edit",
        "ms",
        up.median() - build.median(),
        &Ok(build.median()),
        Bar::most(250.0),
    );
    let beside = Row::compare(
        "edit one line → new version serving, beside go build, docker build, rm, run, first answer",
        "ms",
        up.median(),
        &docked.map(|()| dock.median()),
        Bar::ratio(0.6),
    );
    Ok(vec![above, beside])
}

/// From the edit to the first answer of the new version, seen by a client that asks all the time.
fn one_up(sandbox: &Sandbox, hello: &Hello, address: SocketAddr, text: &str) -> Result<Duration> {
    std::thread::scope(|scope| {
        let started = Instant::now();
        hello.edit(text)?;
        let client = scope.spawn(move || go::serves(address, text, LIMIT).map(|()| started.elapsed()));
        sandbox.ok(["up", hello.path()?, "--name", "hello"])?;
        client.join().ok().context("the client panicked")?
    })
}

/// The hello program under Docker.
struct Docked {
    docker: Docker,
    hello: Hello,
}

impl Docked {
    fn start(hello: Hello) -> Result<Self> {
        go::dockerfile(&hello.folder)?;
        let docked = Self { docker: Docker::start()?, hello };
        docked.replace("docker first")?;
        Ok(docked)
    }

    fn replace(&self, text: &str) -> Result<Duration> {
        let started = Instant::now();
        self.hello.edit(text)?;
        self.hello.build()?;
        self.docker.build(&self.hello.folder, "hello")?;
        // The first time there is none.
        let _ = self.docker.run(["rm", "--force", "hello"]);
        let publish = format!("{DOCKER_PORT}:8080");
        self.docker.run(["run", "--detach", "--name", "hello", "--publish", &publish, "hello"])?;
        go::serves(SocketAddr::from(([127, 0, 0, 1], DOCKER_PORT)), text, LIMIT)?;
        Ok(started.elapsed())
    }
}
