//! Rung `kubectl`: kubectl, unmodified, of two releases, plays `tests/kubectl`; and `tests/replay` finds no difference.

mod play;
mod script;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use self::play::Stage;
use self::script::Script;
use super::{Seen, Setting};
use crate::sandbox::Sandbox;
use crate::{replay, tidy, tools};

/// What the rung is called.
pub(super) const NAME: &str = "kubectl";
/// The releases; built before the rung is cut off from the outside.
const RELEASES: &[&str] = &[tools::KUBERNETES_OLDEST, tools::KUBERNETES];
/// So many requests at least have to be replayed.
const REPLAYED_MIN: usize = 80;
/// Images that the steps name: their variable, and their folder below the project's.
const IMAGES: &[(&str, &str)] = &[
    ("CRASHES", "tests/programs/crashes"),
    ("ENDS", "tests/programs/ends"),
    ("HELLO", "examples/hello"),
    ("LINES", "tests/programs/lines"),
];

/// Gets the clients, which takes minutes the first time.
pub(super) fn fetch() -> Result<()> {
    RELEASES.iter().try_for_each(|release| tools::kubernetes_at(release, "kubectl").map(drop))
}

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let root = tidy::root()?;
    let scripts = script::read(&root.join("tests/kubectl"))?;
    let mut met = true;
    let mut figures = Vec::new();
    for release in RELEASES {
        let (steps, failed) = play_all(setting, &root, release, &scripts)?;
        met &= failed.is_empty() && steps > 0;
        let mut figure = format!("kubectl {release}: {} of {steps} steps", steps - failed.len());
        for name in &failed {
            figure.push_str(&format!("; {name}"));
        }
        figures.push(figure);
    }
    let found = super::runtime()?.block_on(replay::compare(&root.join("tests/replay"), None))?;
    for (step, lines) in &found.differing {
        crate::say(&format!("{step}\n    {}", lines.join("\n    ")));
    }
    met &= found.differing.is_empty() && found.steps >= REPLAYED_MIN && found.rows <= replay::ALLOWED_MAX;
    figures.push(format!(
        "replay: {} requests, {} differ, {} by {} allowed rows",
        found.steps,
        found.differing.len(),
        found.allowed,
        found.rows
    ));
    Ok(Seen::new(met, figures.join("; ")))
}

/// Every script against a fresh gantry: how many steps there are, and the names of those that failed.
fn play_all(
    setting: &Setting,
    root: &Path,
    release: &str,
    scripts: &[Script],
) -> Result<(usize, Vec<String>)> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    let stage = set(&sandbox, root, release)?;
    let (mut steps, mut failed) = (0, Vec::new());
    for script in scripts {
        let mut stage = stage.for_script(&script.name)?;
        let started = Instant::now();
        for (number, step) in script.steps.iter().enumerate() {
            steps += 1;
            if let Err(error) = stage.play(step) {
                failed.push(format!("{}/{}", script.name, number + 1));
                crate::say(&format!("{release} {}/{}: {}\n{error:#}\n", script.name, number + 1, step.run));
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        crate::say(&format!(
            "kubectl {release} {}: {} steps, {seconds:.1} s",
            script.name,
            script.steps.len()
        ));
    }
    sandbox.end()?;
    Ok((steps, failed))
}

/// A daemon with two services and the images that the steps name.
fn set(sandbox: &Sandbox, root: &Path, release: &str) -> Result<Stage> {
    sandbox.ok(["daemon", "start"])?;
    let mut variables = Vec::new();
    for (variable, folder) in IMAGES {
        let folder = root.join(folder);
        let folder = folder.to_str().context("the project's folder is no text")?;
        let built: serde_json::Value = serde_json::from_str(&sandbox.ok(["build", folder, "-o", "json"])?)
            .context("read what build says")?;
        let image = built["image"].as_str().with_context(|| format!("build names no image: {built}"))?;
        ensure!(image.contains("@sha256:"), "{image} is no digest");
        variables.push(((*variable).to_owned(), image.to_owned()));
        if matches!(*variable, "HELLO" | "LINES") {
            sandbox.ok(["up", folder, "--name", &variable.to_lowercase()])?;
        }
    }
    let kubectl = tools::kubernetes_at(release, "kubectl")?;
    Stage::new(sandbox.work("kubectl")?, &kubectl, &sandbox.state().join("kubeconfig"), root, variables)
}
