//! From the end of `go build` to the digest in the registry, beside ko's whole time less `go build`.

use anyhow::{Context, Result};
use serde_json::Value;

use super::go::Hello;
use super::peers::Registry;
use super::row::Bar;
use super::samples::Samples;
use super::{Figure, Row, Setting};
use crate::sandbox::Sandbox;

pub(crate) const FIGURE: Figure = Figure {
    name: "push",
    about: "end of go build → digest in the registry",
    peer: "ko's whole time less go build",
    bar: "≤ 60 ms; ≤ 0.4 ×",
    run,
};

fn run(setting: &Setting) -> Result<Vec<Row>> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    let ours = Hello::copy(sandbox.work("hello")?)?;
    let bare = Hello::copy(sandbox.work("bare")?)?;
    let theirs = Hello::copy(sandbox.work("ko")?)?;
    // The same flags for Go's linker on both sides.
    std::fs::write(theirs.folder.join(".ko.yaml"), "builds:\n- id: hello\n  ldflags: [\"-s\", \"-w\"]\n")?;
    sandbox.ok(["daemon", "start"])?;
    sandbox.ok(["build", ours.path()?])?;
    bare.build()?;
    let registry = Registry::start();
    let mut alive = match &registry {
        Ok(registry) => registry.ko(&theirs.folder),
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    };
    let (mut push, mut ko, mut build) = (Samples::default(), Samples::default(), Samples::default());
    let size = std::fs::metadata(bare.binary())?.len();
    for round in 0..setting.rounds {
        ours.edit(&format!("ours {round}"))?;
        push.push(image_milliseconds(&sandbox, ours.path()?)?);
        bare.edit(&format!("bare {round}"))?;
        build.push_milliseconds(bare.build()?);
        if let (Ok(registry), Ok(())) = (&registry, &alive) {
            theirs.edit(&format!("ko {round}"))?;
            let started = std::time::Instant::now();
            alive = registry.ko(&theirs.folder);
            ko.push_milliseconds(started.elapsed());
        }
    }
    drop(registry);
    sandbox.end()?;
    let about = format!(
        "end of go build → digest in the registry ({:.1} MB), beside ko less go build",
        size as f64 / 1e6
    );
    let peer = alive.map(|()| ko.median() - build.median());
    Ok(vec![Row::compare(&about, "ms", push.median(), &peer, Bar::both(60.0, 0.4))])
}

/// What gantry says that the step after Go's end took.
fn image_milliseconds(sandbox: &Sandbox, folder: &str) -> Result<f64> {
    let said = sandbox.ok(["build", folder, "--format", "json"])?;
    let facts: Value = serde_json::from_str(&said).context("read gantry build --format json")?;
    let seconds = facts["seconds"]["image"].as_f64();
    Ok(seconds.context("gantry build does not say how long the image took")? * 1000.0)
}
