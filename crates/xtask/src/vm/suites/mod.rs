//! The suites that need a machine of their own.

mod lab;
mod survival;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::machine::pass_on;
use super::payload::Payload;
use super::{COMMAND, with_scratch};

/// How a suite is run.
pub(crate) struct Trial {
    pub(crate) gantry: PathBuf,
    /// The beginning of the kernel's release; the oldest when there is no wish.
    pub(crate) kernel: Option<String>,
    /// In place of the suite's own number of repetitions.
    pub(crate) times: Option<usize>,
    pub(crate) short: bool,
    pub(crate) seed: u64,
}

impl Trial {
    /// `full` repetitions, or `short` in the short form, or as many as were asked for.
    fn times(&self, full: usize, short: usize) -> usize {
        self.times.unwrap_or(if self.short { short } else { full })
    }
}

pub(crate) struct Suite {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// What was seen; an error when it is not as it has to be.
    pub(crate) run: fn(&Trial) -> Result<String>,
}

/// Every suite.
pub(crate) const SUITES: &[Suite] = &[
    Suite { name: "crates", about: "root tests of runtime, node and network on pure cgroup v2", run: crates },
    Suite {
        name: "ladder",
        about: "the ladder's rungs path, kill and store, in their short form",
        run: ladder,
    },
    Suite {
        name: "unit",
        about: "the unit under systemd: install, upgrade, restart, stop, uninstall",
        run: survival::unit,
    },
    Suite {
        name: "reboot",
        about: "reboots under writes: the unit starts, the program serves",
        run: survival::reboot,
    },
    Suite {
        name: "power",
        about: "power cuts at seeded moments, with a disk that loses its cache",
        run: survival::power,
    },
    Suite { name: "errors", about: "a disk that fails at seeded writes", run: survival::errors },
    Suite { name: "clock", about: "a clock that steps", run: survival::clock },
    Suite {
        name: "figures",
        about: "power on to first answer; daemon and proxy die together",
        run: survival::figures,
    },
];

/// Crates whose tests make containers, Pods and networks.
const CRATES: [&str; 3] = ["runtime", "node", "network"];

/// Tests whose figure is for a machine that hardware executes. (The harness of `runtime` knows no such flag.)
const SKIPPED: &[&str] = &["--skip=attaching_is_quick"];

/// Crates' test binaries, built here.
fn test_binaries() -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--no-run", "--message-format", "json-render-diagnostics"]);
    for name in CRATES {
        cargo.args(["-p", name]);
    }
    let output = cargo.current_dir(crate::tidy::root()?).stderr(std::process::Stdio::inherit()).output()?;
    ensure!(output.status.success(), "cargo test --no-run: {}", output.status);
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("read cargo's messages")?;
        let is_test = message["profile"]["test"] == true;
        if let (true, Some(path)) = (is_test, message["executable"].as_str()) {
            let target = message["target"]["name"].as_str().unwrap_or_default();
            found.push((format!("test-{target}"), PathBuf::from(path)));
        }
    }
    ensure!(found.len() > CRATES.len(), "cargo names only {} test binaries", found.len());
    Ok(found)
}

fn crates(trial: &Trial) -> Result<String> {
    let payload = Payload::new(&trial.gantry)?;
    let binaries = test_binaries()?;
    for (name, path) in &binaries {
        payload.program(name, path)?;
    }
    with_scratch(trial.kernel.as_deref(), &payload, |machine| {
        let (mut passed, mut failed) = (0, Vec::new());
        for (name, _) in &binaries {
            crate::say(&format!("{name} on {}", machine.release));
            let mut said = Vec::new();
            let command = [&[name.as_str()], SKIPPED].concat();
            let code = machine.run(&command, COMMAND, |bytes| {
                pass_on(bytes);
                said.extend_from_slice(bytes);
            })?;
            let said = String::from_utf8_lossy(&said);
            passed +=
                said.lines().filter(|line| line.starts_with("test ") && line.contains(" ... ok")).count();
            if code != 0 {
                failed.push(format!("{name}: exit code {code}"));
            }
        }
        ensure!(failed.is_empty(), "on {}: {passed} tests passed; {}", machine.release, failed.join(", "));
        Ok(format!("{passed} tests passed on {} and pure cgroup v2", machine.release))
    })
}

fn ladder(trial: &Trial) -> Result<String> {
    let payload = Payload::new(&trial.gantry)?;
    payload.project()?;
    payload.tools()?;
    with_scratch(trial.kernel.as_deref(), &payload, |machine| {
        let mut said = Vec::new();
        let mut collect = |bytes: &[u8]| {
            pass_on(bytes);
            said.extend_from_slice(bytes);
        };
        let code = machine.run(
            &["xtask", "accept", "--short", "--binary", "/payload/bin/gantry", "path", "kill", "store"],
            COMMAND,
            &mut collect,
        )?;
        ensure!(code == 0, "on {}: {}", machine.release, String::from_utf8_lossy(&said).trim());
        Ok(format!("path, kill and store met on {} and pure cgroup v2", machine.release))
    })
}
