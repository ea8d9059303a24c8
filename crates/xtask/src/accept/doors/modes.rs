//! What another user of the machine finds in files.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::super::modes as walk;
use super::{Door, Stage};
use crate::sandbox::output;

pub(super) const DOORS: &[Door] = &[
    Door {
        name: "modes-build-folder",
        wanted: "a killed gantry up leaves a folder of its user's alone, and the user's next command removes it",
        short: true,
        attack: build_folder,
    },
    Door {
        name: "modes-lock-held-by-nobody",
        wanted: "nobody cannot hold a lock that a start of the daemon needs",
        short: true,
        attack: locks,
    },
    Door {
        name: "modes-repaired-at-start",
        wanted: "the state folder of a release that left it open is closed by the next start",
        short: true,
        attack: repaired,
    },
    Door {
        name: "modes-secrets-at-rest",
        wanted: "nobody finds no Secret, no environment and no log line below the state folder",
        short: true,
        attack: secrets,
    },
    Door {
        name: "modes-set-user-id",
        wanted: "a set-user-id program in a volume cannot be started by its path on the host",
        short: true,
        attack: set_user_id,
    },
    Door {
        name: "modes-state-folder-of-another",
        wanted: "the daemon writes no state below a folder that another user owns",
        short: true,
        attack: foreign,
    },
    Door {
        name: "modes-sudo-link",
        wanted: "a link in the home of the user behind sudo is refused, and what it leads to stays as it is",
        short: true,
        attack: sudo_link,
    },
];

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

fn build_folder(stage: &Stage) -> Result<String> {
    let sandbox = &stage.sandbox;
    let mut killed = walk::Building::start(sandbox)?;
    let folders = walk::build_folders(sandbox)?;
    let [left] = &folders[..] else { bail!("{} build folders: {folders:?}", folders.len()) };
    let mode = std::fs::metadata(left)?.permissions().mode() & 0o7777;
    ensure!(mode == 0o700, "{} has mode {mode:o}", left.display());
    killed.end()?;
    ensure!(left.exists(), "nothing was left to remove: the case says nothing");
    let mut living = walk::Building::start(sandbox)?;
    let now = walk::build_folders(sandbox)?;
    living.end()?;
    ensure!(!left.exists(), "{} is still there", left.display());
    ensure!(now.len() == 1, "beside the living build's folder: {now:?}");
    Ok("the killed one's folder went with the next command".to_owned())
}

fn locks(stage: &Stage) -> Result<String> {
    let run = stage.sandbox.state().join("run");
    let mut tried = 0;
    for name in ["netns.lock", "daemon.lock", "../blobs/lock", "../store/store.redb"] {
        let path = run.join(name);
        ensure!(path.exists(), "{} is not there: the case says nothing", path.display());
        let path = path.to_str().context("the state folder is no text")?;
        let held = stage.as_nobody("flock", ["--nonblock", "--shared", path, "true"])?;
        ensure!(!held.status.success(), "nobody held {path}");
        tried += 1;
    }
    Ok(format!("{tried} locks refused"))
}

fn repaired(stage: &Stage) -> Result<String> {
    let sandbox = &stage.sandbox;
    // As they were: everything for everybody to read, folders and files.
    let state = sandbox.state();
    let open = ["-R", "go+rX", state.to_str().context("the state folder is no text")?];
    let mut command = Command::new("chmod");
    command.args(open);
    // What containers have mounted there is theirs, and may refuse.
    output(command)?;
    let before = walk::look(sandbox)?.reached.len();
    sandbox.kill(sandbox.daemon_pid()?)?;
    sandbox.ok(["daemon", "start"])?;
    let after = walk::look(sandbox)?;
    let wanted = walk::committed()?;
    let reached: Vec<_> = after.reached.difference(&wanted).cloned().collect();
    ensure!(reached.is_empty(), "after the start nobody can {}", reached.join(", "));
    ensure!(before > wanted.len(), "nothing was open before: the case says nothing");
    Ok(format!("{before} ways in before the start, {} after", after.reached.len()))
}

fn set_user_id(stage: &Stage) -> Result<String> {
    let mut volumes = Vec::new();
    folders(&stage.sandbox.state().join("pods"), "tmp", &mut volumes);
    let [volume] = &volumes[..] else { bail!("{} volumes called tmp: {volumes:?}", volumes.len()) };
    let program = volume.join("become-root");
    std::fs::copy("/bin/true", &program)?;
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o4755))?;
    let path = program.to_str().context("the state folder is no text")?;
    match stage.as_nobody(path, [""; 0]) {
        Ok(_) => bail!("nobody started {path} as root"),
        Err(error) => Ok(format!("{:#}", error.root_cause())),
    }
}

fn foreign(stage: &Stage) -> Result<String> {
    let (state, target) = (stage.sandbox.work("theirs")?, stage.sandbox.work("target")?);
    std::os::unix::fs::lchown(&state, Some(super::NOBODY), Some(super::NOBODY))?;
    symlink(&target, state.join("logs"))?;
    let mut command = stage.sandbox.command(["daemon", "start", "--state-dir"]);
    command.arg(&state);
    refused(command, "belongs to user 65534")?;
    ensure!(std::fs::read_dir(&target)?.count() == 0, "root wrote through the link");
    Ok("refused, with a hint".to_owned())
}

/// A user whose home is in the sandbox is in `/etc/passwd` for this one command: it runs in a mount namespace of its own,
/// which ends with the daemon that does not start.
fn sudo_link(stage: &Stage) -> Result<String> {
    let home = stage.sandbox.work("home")?;
    let target = stage.sandbox.work("of-root")?;
    std::os::unix::fs::lchown(&home, Some(super::NOBODY), Some(super::NOBODY))?;
    symlink(&target, home.join(".config"))?;
    let passwd = stage.sandbox.folder().join("passwd");
    std::fs::write(
        &passwd,
        format!("root:x:0:0::/root:/bin/sh\nann:x:65534:65534::{}:/bin/sh\n", home.display()),
    )?;
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "sh",
        "-c",
        "mount --bind \"$1\" /etc/passwd && exec \"$0\" daemon start --state-dir \"$2\"",
    ]);
    command.arg(&stage.sandbox.gantry).arg(&passwd).arg(stage.sandbox.folder().join("other-state"));
    command.env("SUDO_UID", super::NOBODY.to_string());
    refused(command, "is a link")?;
    let found = std::fs::metadata(&target)?;
    ensure!(found.uid() == 0, "{} was given to the user", target.display());
    ensure!(std::fs::read_dir(&target)?.count() == 0, "root wrote through the link");
    Ok("refused, with a hint".to_owned())
}

/// Runs a command that has to fail with these words, and with a hint.
fn refused(command: Command, words: &str) -> Result<()> {
    let said = output(command)?;
    let text = String::from_utf8_lossy(&said.stderr);
    ensure!(!said.status.success(), "it succeeded: {text}");
    ensure!(text.contains(words) && text.contains("hint: "), "it said {text:?}");
    Ok(())
}

/// Every folder of this name, at any depth.
fn folders(below: &Path, name: &str, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(below).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name() == name {
            found.push(entry.path());
        } else {
            folders(&entry.path(), name, found);
        }
    }
}
