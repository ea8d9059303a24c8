//! What an attack finds: a gantry of its own that serves a program, and somebody who uses it all the while.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

use super::super::{Setting, fixtures, runtime};
use super::Door;
use crate::load::{Load, Protocol, Target, until};
use crate::sandbox::{Sandbox, output};

/// Requests a second beside the attack.
const BESIDE_PER_SECOND: u64 = 50;
/// Requests that have to be answered after the attack, so that a short one is not played beside nobody.
const AFTER: u64 = 25;
/// Longest wait for them, in seconds.
const AFTER_SECONDS_MAX: u64 = 60;
/// `nobody`, who owns nothing.
pub(crate) const NOBODY: u32 = 65534;

/// A running daemon with the program `hello` as a Service.
pub(crate) struct Stage<'a> {
    pub(crate) setting: &'a Setting,
    pub(crate) sandbox: Sandbox,
}

impl<'a> Stage<'a> {
    /// Starts the daemon and deploys `hello`.
    pub(super) fn set(setting: &'a Setting) -> Result<Self> {
        let sandbox = Sandbox::new(&setting.gantry)?;
        fixtures::up_one(&sandbox, &fixtures::FIXTURES[0], 1)?;
        Ok(Self { setting, sandbox })
    }

    /// Plays an attack while requests to `hello` come in; an error when the door is open or a request was lost.
    pub(super) fn play(self, door: &Door) -> Result<String> {
        let runtime = runtime()?;
        let address = self.sandbox.address(fixtures::FIXTURES[0].name)?;
        let target = Target { protocol: Protocol::Get, address, per_second: BESIDE_PER_SECOND };
        let load = runtime.block_on(async { Load::start(&[target]) });
        let seen = (door.attack)(&self);
        let report = runtime.block_on(async {
            let before = load.done();
            until(AFTER_SECONDS_MAX, || async { load.done() >= before + AFTER }).await;
            load.stop().await
        });
        let seen = seen?;
        ensure!(report.lost() == 0 && report.done >= AFTER, "beside it: {}", report.words());
        self.sandbox.end()?;
        Ok(format!("{seen}; beside it {}", report.words()))
    }

    /// Runs a command as `nobody`, to its end.
    pub(crate) fn as_nobody<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Output> {
        let mut command = Command::new(program);
        command.args(arguments).uid(NOBODY).gid(NOBODY).current_dir("/").env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        output(command).with_context(|| format!("run {program} as nobody"))
    }

    /// Applies a manifest.
    pub(crate) fn apply(&self, manifest: &str) -> Result<()> {
        let path = self.manifest(manifest)?;
        self.sandbox.kubectl(["apply".as_ref(), "-f".as_ref(), path.as_os_str()]).map(drop)
    }

    /// A manifest as a file.
    pub(crate) fn manifest(&self, manifest: &str) -> Result<PathBuf> {
        let path = self.sandbox.work("manifests")?.join("manifest.yaml");
        std::fs::write(&path, manifest).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}
