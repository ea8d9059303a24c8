//! Rung `replace`: versions are replaced and rolled back under load; one of them never becomes ready.

use anyhow::{Context, Result, ensure};

use super::{Seen, Setting, fixtures};
use crate::load::Load;
use crate::sandbox::Sandbox;

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    fixtures::up(&sandbox, 0)?;
    let targets = fixtures::targets(&sandbox)?;
    let times = setting.times(100, 4);
    let runtime = super::runtime()?;
    runtime.block_on(async {
        let load = Load::start(&targets);
        for round in 1..=times {
            for fixture in fixtures::FIXTURES {
                if round % 2 == 0 {
                    sandbox.ok(["rollback", fixture.name])?;
                } else {
                    fixtures::up_one(&sandbox, fixture, round)?;
                }
            }
        }
        let reason = never_ready(&sandbox)?;
        let report = load.stop().await;
        let figure = format!("{times} rollouts and rollbacks of each fixture: {}; {reason}", report.words());
        Ok(Seen::new(report.lost() == 0, figure))
    })
}

/// A version that only listens on its own loopback: it must not replace the old one, and the reason must be said.
fn never_ready(sandbox: &Sandbox) -> Result<String> {
    let folder = crate::tidy::root()?.join("tests/programs/loopback");
    let folder = folder.to_str().context("the project's folder is no text")?;
    let output = sandbox.run(["up", folder, "--name", "hello"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "a version that never gets ready was taken for ready");
    ensure!(said.contains("loopback"), "the reason was not said: {said}");
    Ok("a version that never got ready left the old one serving and said why".to_owned())
}
