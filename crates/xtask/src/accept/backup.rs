//! Rung `backup`: a backup that is taken while programs run and objects are written makes them again on an empty machine.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context, Result, ensure};

use super::{Seen, Setting, fixtures};
use crate::load::{Load, until};
use crate::sandbox::{Sandbox, output};

/// Longest that the program may take to serve again, in seconds.
const BACK_SECONDS_MAX: u64 = 120;

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let first = Sandbox::new(&setting.gantry)?;
    fixtures::up_one(&first, &fixtures::FIXTURES[0], 1)?;
    first.kubectl(["create", "configmap", "kept", "--from-literal=word=kept"])?;
    first.kubectl(["create", "secret", "generic", "kept", "--from-literal=word=secret"])?;
    let targets = fixtures::targets_of(&first, &fixtures::FIXTURES[..1])?;
    let place = tempfile::tempdir().context("make a folder")?;
    let file = place.path().join("all.gantry");
    let runtime = super::runtime()?;
    let load = runtime.block_on(async { Load::start(&targets) });
    first.ok(["daemon".as_ref(), "backup".as_ref(), file.as_os_str()])?;
    let report = runtime.block_on(load.stop());
    let mode = std::fs::metadata(&file)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the backup has mode {mode:o}");
    let over = first.run(["daemon".as_ref(), "restore".as_ref(), file.as_os_str()])?;
    let said = String::from_utf8_lossy(&over.stderr).into_owned();
    ensure!(!over.status.success() && said.contains("not empty"), "over a state folder: {}", said.trim());
    let address = targets[0].address;
    first.end()?;

    let second = Sandbox::new(&setting.gantry)?;
    // Half a file is no backup, and leaves nothing.
    let half = place.path().join("half.gantry");
    let bytes = std::fs::read(&file)?;
    std::fs::write(&half, &bytes[..bytes.len() / 2])?;
    let broken = second.run(["daemon".as_ref(), "restore".as_ref(), half.as_os_str()])?;
    ensure!(!broken.status.success() && !second.state().exists(), "half a backup was restored");
    second.ok(["daemon".as_ref(), "restore".as_ref(), file.as_os_str()])?;
    second.ok(["daemon", "start"])?;
    let serves = runtime.block_on(until(BACK_SECONDS_MAX, || async {
        let mut command = std::process::Command::new("curl");
        command.args(["-s", "-f", "-m", "5", &format!("http://{address}/")]);
        output(command).is_ok_and(|answer| answer.status.success())
    }));
    ensure!(serves, "the program does not serve at {address} after the restore");
    for (kind, word) in [("configmaps", "kept"), ("secrets", "c2VjcmV0")] {
        let object = second.get(&format!("/api/v1/namespaces/default/{kind}/kept"))?;
        ensure!(object["data"]["word"] == word, "{kind}/kept is not as it was");
    }
    second.end()?;
    let figure = format!(
        "{} bytes, restored and serving at the same address; beside it {}",
        bytes.len(),
        report.words()
    );
    Ok(Seen::new(report.lost() == 0, figure))
}
