//! Rung `path`: the walk-through, from a clean clone in the long form; the tutorial's manifest answers on its port.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Seen, Setting};
use crate::sandbox::{Sandbox, output};

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
    redirected(setting)?;
    tutorial(setting)?;
    let figure = "the walk-through ran; gantry run kept input, both outputs and exit code; the tutorial's Service answered on port 80";
    Ok(Seen::new(true, figure))
}

/// Lines that a program gets as its input: more than every buffer on the way holds.
const LINES: usize = 100_000;

/// `gantry run` in a shell's line: each stream goes where it is redirected to, whole.
fn redirected(setting: &Setting) -> Result<()> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    let input: String = (0..LINES).map(|number| format!("line {number}\n")).collect();
    let path = sandbox.work("input")?.join("lines");
    std::fs::write(&path, &input)?;
    let cat = root_folder("tests/programs/cat")?;
    let mut command = sandbox.command(["--quiet", "run", &cat]);
    command.stdin(std::fs::File::open(&path)?);
    let ran = output(command)?;
    ensure!(ran.stdout == input.as_bytes(), "{} of {} bytes came back", ran.stdout.len(), input.len());
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(said == format!("{} bytes <nil>\n", input.len()), "standard error is {said:?}");
    ensure!(ran.status.code() == Some(3), "the exit code is {:?}", ran.status.code());
    sandbox.end()
}

fn root_folder(name: &str) -> Result<String> {
    let folder = crate::tidy::root()?.join(name);
    folder.to_str().map(str::to_owned).context("the project's folder is no text")
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
