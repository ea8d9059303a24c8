//! Rung `upgrade`: another binary takes over daemon and proxy and gives them back, under load, and binaries that cannot
//! take over do not.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Seen, Setting, fixtures};
use crate::load::{Load, until};
use crate::sandbox::Sandbox;

/// What the other build says that it is.
const OTHER_VERSION: &str = "99.0.0";
/// Names a binary that is used as the other build.
const OTHER_VARIABLE: &str = "GANTRY_OTHER_BINARY";
/// Operations before the first upgrade and after each.
const BETWEEN: u64 = 1000;
/// The disk of the upgrade that finds none left: enough for one binary beside what a daemon has.
const DISK_BYTES: u64 = 1 << 30;

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let other = other()?;
    let taken = upgrades(&setting.gantry, &other, setting.times(20, 2))?;
    let failures = failures(&setting.gantry, &other)?;
    let full = full_disk(&setting.gantry, &other)?;
    let met = taken.lost == 0 && taken.restarts == 0;
    let figure = format!("{}; {failures}; {full}", taken.words);
    Ok(Seen::new(met, figure))
}

/// What was seen of upgrades under load.
pub(crate) struct Taken {
    pub(crate) lost: u64,
    /// Containers that were started again.
    pub(crate) restarts: u64,
    /// How long operations took, in microseconds, before the first and from then on.
    pub(crate) before_us: Vec<u64>,
    pub(crate) during_us: Vec<u64>,
    pub(crate) words: String,
}

/// The build with another version.
pub(crate) fn other() -> Result<PathBuf> {
    match std::env::var_os(OTHER_VARIABLE) {
        Some(path) => PathBuf::from(path).canonicalize().context(OTHER_VARIABLE),
        None => crate::tools::gantry_of(OTHER_VERSION),
    }
}

/// Upgrades `times` times under load, to the other binary and back in turn. Writes that one release was told are there
/// for the other.
pub(crate) fn upgrades(gantry: &Path, other: &Path, times: usize) -> Result<Taken> {
    let sandbox = Sandbox::new(gantry)?;
    fixtures::up(&sandbox, 1)?;
    let targets = fixtures::targets(&sandbox)?;
    let programs = containers(&sandbox)?;
    let runtime = super::runtime()?;
    runtime.block_on(async {
        let load = Load::start(&targets);
        work(&load).await?;
        // Connections that are made for the first time are not what is compared.
        load.take_times_us();
        work(&load).await?;
        work(&load).await?;
        let before_us = load.take_times_us();
        for number in 0..times {
            let binary = if number % 2 == 0 { other } else { gantry };
            let proxy = sandbox.proxy_pid()?;
            sandbox.ok(["daemon".as_ref(), "upgrade".as_ref(), binary.as_os_str()])?;
            let wanted = version_of(binary)?;
            let runs = running_version(&sandbox)?;
            ensure!(runs == wanted, "gantry {wanted} was to take over, and {runs} runs");
            ensure!(sandbox.proxy_pid()? != proxy, "the proxy was not replaced");
            let name = format!("write-{number}");
            sandbox.kubectl(["create", "configmap", &name, &format!("--from-literal=by={wanted}")])?;
            if let Some(before) = number.checked_sub(1) {
                sandbox.kubectl(["get", "configmap", &format!("write-{before}")])?;
            }
            work(&load).await?;
        }
        let during_us = load.take_times_us();
        let report = load.stop().await;
        let restarts =
            programs.iter().filter(|one| !containers(&sandbox).is_ok_and(|now| now.contains(one))).count();
        let (before, during) = (p99_ms(&before_us), p99_ms(&during_us));
        let words = format!(
            "{times} upgrades: {}, {restarts} programs started again, p99 {before:.1} ms before and {during:.1} ms from then on",
            report.words()
        );
        Ok(Taken { lost: report.lost(), restarts: restarts as u64, before_us, during_us, words })
    })
}

/// Binaries that cannot take over: afterwards the old daemon serves, with all that was written, and no request was lost.
fn failures(gantry: &Path, other: &Path) -> Result<String> {
    let sandbox = Sandbox::new(gantry)?;
    fixtures::up_one(&sandbox, &fixtures::FIXTURES[0], 1)?;
    sandbox.kubectl(["create", "configmap", "kept", "--from-literal=word=kept"])?;
    let folder = sandbox.work("binaries")?;
    let real = other.to_str().context("the other binary's path is no text")?;
    let store = sandbox.state().join("store/store.redb");
    let store = store.to_str().context("the state folder is no text")?;
    // Each says what the other build says, and then does something else.
    let says = format!("#!/bin/sh\n[ \"$1\" = version ] && exec {real} version -o json\n");
    let cases = [
        ("crashes at start", format!("{says}echo boom >&2\nexit 7\n"), "boom"),
        ("never serves", format!("{says}exec sleep 600\n"), "did not serve"),
        ("cannot open the store", format!("{says}exec flock {store} {real} \"$@\"\n"), "store"),
        ("says nothing", "#!/bin/sh\nexit 0\n".to_owned(), "no gantry"),
        ("is no program", "touch me\n".to_owned(), "no program"),
        (
            "is of the first release",
            "#!/bin/sh\necho '{\"version\":\"0.1.0\"}'\n".to_owned(),
            "cannot take over",
        ),
    ];
    let targets = &fixtures::targets_of(&sandbox, &fixtures::FIXTURES[..1])?;
    let runtime = super::runtime()?;
    runtime.block_on(async {
        let load = Load::start(targets);
        work(&load).await?;
        let before = running_version(&sandbox)?;
        for (number, (what, text, word)) in cases.iter().enumerate() {
            let binary = folder.join(format!("binary-{number}"));
            std::fs::write(&binary, text)?;
            std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755))?;
            let arguments =
                ["daemon".as_ref(), "upgrade".as_ref(), binary.as_os_str(), "--within=3s".as_ref()];
            let output = sandbox.run(arguments)?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(!output.status.success(), "a binary that {what} took over: {said}");
            let named = said.contains("error: ") && said.contains("hint: ") && said.contains(word);
            ensure!(named, "a binary that {what}: it was said: {}", said.trim());
            let runs = running_version(&sandbox)?;
            ensure!(runs == before, "after a binary that {what}, gantry {runs} runs and not {before}");
            let kept = sandbox.get("/api/v1/namespaces/default/configmaps/kept")?;
            ensure!(kept["data"]["word"] == "kept", "after a binary that {what}, a write is not there");
            work(&load).await?;
        }
        let report = load.stop().await;
        ensure!(report.lost() == 0, "beside binaries that cannot take over: {}", report.words());
        Ok(format!("{} binaries that cannot: went back, {}", cases.len(), report.words()))
    })
}

/// No room for the new binary: nothing is begun.
fn full_disk(gantry: &Path, other: &Path) -> Result<String> {
    let sandbox = Sandbox::on_disk(gantry, DISK_BYTES)?;
    sandbox.ok(["daemon", "start"])?;
    let pid = sandbox.daemon_pid()?;
    sandbox.disk()?.fill()?;
    let output = sandbox.run(["daemon".as_ref(), "upgrade".as_ref(), other.as_os_str()])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("hint: free space"), "on a full disk: {}", said.trim());
    ensure!(sandbox.daemon_pid()? == pid, "on a full disk the daemon was ended");
    running_version(&sandbox)?;
    sandbox.disk()?.free()?;
    sandbox.ok(["daemon".as_ref(), "upgrade".as_ref(), other.as_os_str()])?;
    sandbox.end()?;
    Ok("a full disk: refused before anything ended".to_owned())
}

fn version_of(binary: &Path) -> Result<String> {
    let mut command = std::process::Command::new(binary);
    command.args(["version", "-o", "json"]);
    let output = crate::sandbox::output(command)?;
    let said: Value = serde_json::from_slice(&output.stdout).context("read the binary's version")?;
    Ok(said["version"].as_str().context("the binary says no version")?.to_owned())
}

fn running_version(sandbox: &Sandbox) -> Result<String> {
    let status: Value = serde_json::from_str(&sandbox.ok(["daemon", "status", "-o", "json"])?)?;
    Ok(status["version"].as_str().context("the daemon says no version")?.to_owned())
}

/// Each program's container, by its id: another one means that it was started again.
fn containers(sandbox: &Sandbox) -> Result<Vec<String>> {
    let pods = sandbox.get("/api/v1/namespaces/default/pods")?;
    let mut found = Vec::new();
    for pod in pods["items"].as_array().context("no list of Pods")? {
        let status = &pod["status"]["containerStatuses"][0];
        let (id, restarts) = (&status["containerID"], &status["restartCount"]);
        found.push(format!("{} {id} {restarts}", pod["metadata"]["name"]));
    }
    Ok(found)
}

/// What 99 of 100 do not exceed; NaN when nothing was measured.
pub(crate) fn p99_ms(times_us: &[u64]) -> f64 {
    let mut sorted = times_us.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * 99).div_ceil(100);
    rank.checked_sub(1).map_or(f64::NAN, |index| sorted[index] as f64 / 1000.0)
}

/// Waits until the load has done some work.
async fn work(load: &Load) -> Result<()> {
    let ended = || load.done() + load.lost();
    let goal = ended() + BETWEEN;
    until(120, || async { ended() >= goal }).await.then_some(()).context("the load stands still")
}
