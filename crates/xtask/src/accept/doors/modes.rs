//! What another user of the machine finds in files.

use anyhow::{Context, Result, ensure};

use super::{Door, Stage};

pub(super) const DOORS: &[Door] = &[Door {
    name: "modes-secrets-at-rest",
    wanted: "nobody finds no Secret, no environment and no log line below the state folder",
    short: true,
    attack: secrets,
}];

/// A word that stands nowhere else.
const SECRET: &str = "correct-horse-battery-staple";

fn secrets(stage: &Stage) -> Result<String> {
    stage.apply(&format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: door\nstringData:\n  word: {SECRET}\n"
    ))?;
    let state = stage.sandbox.state();
    let state = state.to_str().context("the state folder is no text")?;
    let look = ["-r", "-a", "-l", "-e", SECRET, "-e", "VERSION=", state];
    let found = stage.as_nobody("grep", look)?;
    // 2 is grep's word for files that it could not read.
    let found = String::from_utf8_lossy(&found.stdout).trim().replace('\n', ", ");
    ensure!(found.is_empty(), "nobody read {found}");
    Ok("nobody read nothing".to_owned())
}
