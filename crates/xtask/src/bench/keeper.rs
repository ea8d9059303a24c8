//! Memory of a keeper, the process that every container has.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::process::{find, pss_mebibytes};
use super::row::Bar;
use super::samples::Samples;
use super::{Figure, Row, Setting};
use crate::sandbox::Sandbox;

pub(crate) const FIGURE: Figure =
    Figure { name: "keeper", about: "keeper PSS", peer: "none", bar: "≤ 1.5 MiB", run };

const REPLICAS: usize = 3;
const BETWEEN: Duration = Duration::from_millis(200);

fn run(setting: &Setting) -> Result<Vec<Row>> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    let hello = super::go::Hello::copy(sandbox.work("hello")?)?;
    sandbox.ok(["up", hello.path()?, "--name", "hello", "--replicas", &REPLICAS.to_string()])?;
    let state = sandbox.state();
    let keepers = find("keeper", state.to_str().context("the temporary folder is no text")?)?;
    ensure!(keepers.len() == REPLICAS, "{REPLICAS} containers have {} keepers", keepers.len());
    let mut samples = Samples::default();
    for _ in 0..setting.rounds {
        for pid in &keepers {
            samples.push(pss_mebibytes(*pid)?);
        }
        std::thread::sleep(BETWEEN);
    }
    sandbox.end()?;
    let mut row = Row::compare("keeper PSS", "MiB", samples.median(), &Ok(f64::NAN), Bar::most(1.5));
    row.peer = "–".to_owned();
    Ok(vec![row])
}
