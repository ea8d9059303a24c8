//! Rung `modes`: what another user of the machine reaches of a running gantry. Every file, folder, pipe and socket below
//! the state folder, every file that one of its processes has open, every entry of those processes in `/proc`, every
//! listener and abstract socket is tried as `nobody`, by its path and not by what the folders show. What succeeds has to
//! stand in `tests/modes/reachable.txt`, and all that stands there has to succeed.
//!
//! Not tried: what the kernel shows everyone of any process (its command line, its state), and the content of listeners,
//! which the rungs `doors` and `kubectl` ask.

mod attempt;
mod things;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result, bail, ensure};

use super::{Seen, Setting, fixtures};
use crate::sandbox::Sandbox;

/// A Secret mounted and in the environment, every kind of volume, and a log, with the image of `hello`.
const MANIFEST: &str = include_str!("pod.yaml");

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    fixtures::up_one(&sandbox, &fixtures::FIXTURES[0], 1)?;
    pod(&sandbox)?;
    let mut command = Building::start(&sandbox)?;
    let seen = look(&sandbox);
    let ended = command.end();
    let seen = seen?;
    ended?;
    let wanted = committed()?;
    let mut findings: Vec<String> =
        seen.reached.difference(&wanted).map(|found| format!("nobody can {found}")).collect();
    findings
        .extend(wanted.difference(&seen.reached).map(|line| format!("{line:?} is in the list, and not so")));
    findings.extend(control(&sandbox)?);
    sandbox.end()?;
    let figure = match findings.as_slice() {
        [] => format!(
            "{} attempts on {} things as nobody; {} succeed, all in the list; 5 opened on purpose were found",
            seen.attempts,
            seen.things,
            wanted.len()
        ),
        some => format!("{} findings: {}", some.len(), some.join("; ")),
    };
    Ok(Seen::new(findings.is_empty(), figure))
}

/// What nobody reached, in the words of the list.
pub(super) struct Looked {
    pub(super) reached: BTreeSet<String>,
    pub(super) attempts: usize,
    pub(super) things: usize,
}

/// Finds everything of this sandbox as root, and tries it as nobody.
pub(super) fn look(sandbox: &Sandbox) -> Result<Looked> {
    let things = things::of(sandbox)?;
    let names = things::Names::of(sandbox)?;
    let (attempts, reached) = attempt::as_nobody(&things)?;
    let reached = reached.iter().map(|(verb, thing)| format!("{verb} {}", names.shown(thing))).collect();
    Ok(Looked { reached, attempts, things: things.len() })
}

/// The lines of `tests/modes/reachable.txt`, without its comments.
pub(super) fn committed() -> Result<BTreeSet<String>> {
    let path = crate::tidy::root()?.join("tests/modes/reachable.txt");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    Ok(lines.filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Opens doors on purpose, each of another kind; one that is not found is a finding.
fn control(sandbox: &Sandbox) -> Result<Vec<String>> {
    let state = sandbox.state();
    let mut missed = Vec::new();
    let mut opened = |changes: &[(PathBuf, u32)], expected: &str| -> Result<()> {
        let before =
            changes.iter().map(|(path, mode)| replace_mode(path, *mode)).collect::<Result<Vec<_>>>()?;
        let found = look(sandbox);
        for ((path, _), mode) in changes.iter().zip(before) {
            replace_mode(path, mode)?;
        }
        if !found?.reached.contains(expected) {
            missed.push(format!("{expected:?} was made possible on purpose, and not found"));
        }
        Ok(())
    };
    let (store, run) = (state.join("store"), state.join("run"));
    opened(&[(store.clone(), 0o711), (store.join("store.redb"), 0o644)], "read STATE/store/store.redb")?;
    opened(&[(run.clone(), 0o711), (run.join("netns.lock"), 0o644)], "lock STATE/run/netns.lock")?;
    opened(&[(run.clone(), 0o711), (run.join("proxy.sock"), 0o666)], "connect STATE/run/proxy.sock")?;
    opened(&[(state.join("logs"), 0o755)], "list STATE/logs")?;
    let name = rustix::net::SocketAddrUnix::new_abstract_name(b"gantry-modes-control")?;
    let kind = rustix::net::SocketType::STREAM;
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, kind, None)?;
    rustix::net::bind(&socket, &name)?;
    rustix::net::listen(&socket, 1)?;
    opened(&[], "connect @gantry-modes-control")?;
    Ok(missed)
}

/// Sets a mode; gives the one before.
fn replace_mode(path: &Path, mode: u32) -> Result<u32> {
    let at = || format!("the mode of {}", path.display());
    let before = std::fs::metadata(path).with_context(at)?.permissions().mode() & 0o7777;
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).with_context(at)?;
    Ok(before)
}

/// Runs a Pod with everything that is written for a container.
fn pod(sandbox: &Sandbox) -> Result<()> {
    let deployment = sandbox.get("/apis/apps/v1/namespaces/default/deployments/hello")?;
    let image =
        deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().context("no image")?;
    let path = sandbox.work("manifests")?.join("pod.yaml");
    std::fs::write(&path, MANIFEST.replace("IMAGE", image))?;
    sandbox.kubectl(["apply".as_ref(), "-f".as_ref(), path.as_os_str()])?;
    sandbox.kubectl(["wait", "--for=condition=Ready", "--timeout=60s", "pod/full"]).map(drop)
}

/// A `gantry up` that is compiling: its Go waits until it is told to go on.
pub(super) struct Building {
    child: Child,
    gate: PathBuf,
}

impl Building {
    /// Starts it, and waits until Go has been asked to build.
    pub(super) fn start(sandbox: &Sandbox) -> Result<Self> {
        let folder = sandbox.work("building")?;
        let (bin, gate, begun) = (folder.join("bin"), folder.join("gate"), folder.join("begun"));
        std::fs::create_dir_all(&bin)?;
        for pipe in [&gate, &begun] {
            let _ = std::fs::remove_file(pipe);
            nix::unistd::mkfifo(pipe, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = build ]; then echo begun > {}; read line < {}; exit 1; fi\nPATH={path} exec go \"$@\"\n",
            begun.display(),
            gate.display()
        );
        std::fs::write(bin.join("go"), script)?;
        std::fs::set_permissions(bin.join("go"), PermissionsExt::from_mode(0o755))?;
        let temporary = temporary(sandbox)?;
        let mut command: Command = sandbox.command(["up"]);
        command.arg(crate::tidy::root()?.join("examples/hello")).args(["--name", "other"]);
        command.env("PATH", format!("{}:{path}", bin.display())).env("TMPDIR", temporary);
        let child = command.stderr(std::process::Stdio::null()).spawn().context("start gantry up")?;
        let building = Self { child, gate };
        // Opened to read it waits for who writes: the build.
        let said = std::fs::read_to_string(&begun).context("wait for the build")?;
        ensure!(said.trim() == "begun", "the build said {said:?}");
        Ok(building)
    }

    /// Kills the command, as nothing can be told to it, and lets its Go end.
    pub(super) fn end(&mut self) -> Result<()> {
        self.child.kill().context("kill gantry up")?;
        self.child.wait()?;
        // Its reader may be gone with it.
        let gate = std::fs::File::options().read(true).write(true).open(&self.gate);
        std::io::Write::write_all(&mut gate.context("open the gate")?, b"on\n").context("let Go end")
    }
}

/// Where that command makes its folders.
pub(super) fn temporary(sandbox: &Sandbox) -> Result<PathBuf> {
    sandbox.work("temporary")
}

/// The folders of builds.
pub(super) fn build_folders(sandbox: &Sandbox) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(temporary(sandbox)?)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"gantry-build-")) {
            folders.push(path);
        }
    }
    if folders.len() > 9 {
        bail!("{} build folders", folders.len());
    }
    Ok(folders)
}
