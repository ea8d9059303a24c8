//! Rung 1: the walk-through, from a clean clone in the long form; the tutorial's manifest answers on its port.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Seen, Setting};
use crate::sandbox::Sandbox;

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let root = crate::tidy::root()?;
    if setting.short {
        crate::demo::run()?;
    } else {
        let folder = tempfile::tempdir()?;
        let clone = folder.path().join("gantry");
        let status = Command::new("git").args(["clone", "--quiet"]).arg(&root).arg(&clone).status()?;
        ensure!(status.success(), "git clone: {status}");
        let status = Command::new("make").arg("demo").current_dir(&clone).status()?;
        ensure!(status.success(), "make demo in a clean clone: {status}");
    }
    tutorial(setting)?;
    Ok(Seen::new(true, "the walk-through ran; the tutorial's Service answered on port 80"))
}

/// The manifest that the tutorial ends with, applied as it stands, in front of a program that it selects.
fn tutorial(setting: &Setting) -> Result<()> {
    let root = crate::tidy::root()?;
    let sandbox = Sandbox::new(&setting.gantry)?;
    let hello = root.join("examples/hello");
    sandbox.ok(["daemon", "start"])?;
    let manifest = root.join("tests/fixtures/go-service.yaml");
    sandbox.kubectl(["apply", "-f", manifest.to_str().context("the project's folder is no text")?])?;
    sandbox.ok(["up", hello.to_str().context("the project's folder is no text")?, "--name", "go-app"])?;
    let answer = crate::demo::get("127.0.0.1:80").context("the tutorial's Service")?;
    ensure!(answer.contains("Hello, World!"), "the tutorial's Service answered {answer:?}");
    sandbox.end()
}
