//! The life of the unit under systemd: upgraded, restarted, stopped in the middle of an upgrade, uninstalled while the
//! daemon does not react. After each, systemd's view is the truth, and programs were served where they have to be.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::daemon::{self, GANTRY, STATE, UNIT, run, wait};
use super::deaths::{Counts, main_pid, while_connecting};

/// A gantry by what it says, and none that serves.
const BROKEN: &str =
    "#!/bin/sh\n[ \"$1\" = version ] && exec /payload/bin/gantry \"$@\"\necho broken >&2\nexit 7\n";
/// What systemd says of a main process that it does not follow as its own child.
const NOT_FOLLOWED: [&str; 4] = ["not our child", "remains running", "SIGKILL", "Found left-over"];
const FROZEN: &str = "/sys/fs/cgroup/system.slice/gantry.service/cgroup.freeze";

pub(super) fn life() -> Result<()> {
    let address = daemon::answers()?;
    let stored = property("NFileDescriptorStore")?;
    ensure!(
        stored.parse::<u32>()? >= 4,
        "systemd holds {stored} listeners: the daemon's three and the Service's"
    );
    say("upgrade", &upgrade(address, &stored)?);
    say("upgrade to a broken binary", &goes_back(address)?);
    say("restart", &restart(address)?);
    say("stop while it is upgraded", &stop_meanwhile(address)?);
    say("uninstall with a daemon that does not react", &uninstall_frozen(address)?);
    say("install again, uninstall", &install_again()?);
    Ok(())
}

fn say(step: &str, seen: &str) {
    crate::print(&format!("{step}: {seen}"));
}

fn upgrade(address: SocketAddr, stored: &str) -> Result<String> {
    let before = main_pid()?;
    let counts = while_connecting(address, || {
        run(Command::new(GANTRY).args(["daemon", "upgrade", GANTRY, "--within", "15m"])).map(drop)
    })?;
    none_lost(&counts)?;
    ensure!(main_pid()? != before, "systemd still follows the daemon before");
    followed()?;
    ensure!(property("NFileDescriptorStore")? == stored, "not the {stored} listeners that were held before");
    Ok(format!("{} new connections answered, none refused or cut; systemd follows", counts.answered))
}

fn goes_back(address: SocketAddr) -> Result<String> {
    let broken = Path::new("/data/tmp/broken");
    std::fs::write(broken, BROKEN)?;
    std::fs::set_permissions(broken, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let counts = while_connecting(address, || {
        let output = Command::new(GANTRY).args(["daemon", "upgrade"]).arg(broken).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains("serves again"), "{}: {said}", output.status);
        ensure!(said.contains("broken"), "why is not said: {said}");
        Ok(())
    })?;
    none_lost(&counts)?;
    followed()?;
    Ok(format!("the one before serves; {} new connections answered", counts.answered))
}

/// By the daemon that an upgrade started, which has to end in order.
fn restart(address: SocketAddr) -> Result<String> {
    let ends = || -> Result<usize> {
        let log = std::fs::read_to_string(Path::new(STATE).join("logs/daemon.log"))?;
        Ok(log.matches("daemon stops; containers go on").count())
    };
    let (before, ended) = (main_pid()?, ends()?);
    let counts =
        while_connecting(address, || run(Command::new("systemctl").args(["restart", UNIT])).map(drop))?;
    none_lost(&counts)?;
    ensure!(ends()? == ended + 1, "the daemon before was not ended in order");
    ensure!(main_pid()? != before, "it is the daemon before");
    followed()?;
    Ok(format!("ended in order; {} new connections answered", counts.answered))
}

/// systemd is told to stop the unit while the old daemon has ended and the new one does not serve yet.
fn stop_meanwhile(address: SocketAddr) -> Result<String> {
    let main = main_pid()?;
    let mut upgrade = spawn(&["daemon", "upgrade", GANTRY, "--within", "15m"])?;
    wait("the takeover", || {
        let words = std::fs::read(format!("/proc/{main}/cmdline"))?;
        ensure!(String::from_utf8_lossy(&words).contains("takeover"), "it has not begun");
        Ok(())
    })?;
    run(Command::new("systemctl").args(["stop", UNIT]))?;
    // Whatever it says: it is told that the new daemon serves, or is cut off.
    upgrade.wait()?;
    ensure!(daemons()?.is_empty(), "daemons run that systemd has stopped: {:?}", daemons()?);
    daemon::ask(address, Duration::from_secs(60)).context("the program, without a daemon")?;
    run(Command::new(GANTRY).args(["daemon", "start"]))?;
    followed()?;
    daemon::settled()?;
    Ok("no daemon was left, the program served, and the unit started again".to_owned())
}

/// A daemon whose processes the kernel holds: no signal but SIGKILL reaches it.
fn uninstall_frozen(address: SocketAddr) -> Result<String> {
    std::fs::write(FROZEN, "1").with_context(|| format!("write {FROZEN}"))?;
    let output = Command::new(GANTRY).args(["uninstall", "--timeout", "5s"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", output.status);
    nothing_runs()?;
    ensure!(daemon::ask(address, Duration::from_secs(5)).is_err(), "the program's port still answers");
    Ok("the unit is gone, and nothing of it runs".to_owned())
}

/// (Not `--purge`: the state folder of this machine is a mount, which stays its owner's.)
fn install_again() -> Result<String> {
    run(Command::new(GANTRY).args(["daemon", "install"]))?;
    followed()?;
    // The objects are there: the unit's daemon runs them.
    daemon::answers()?;
    run(Command::new(GANTRY).arg("uninstall"))?;
    nothing_runs()?;
    Ok("the program served again; nothing of it runs".to_owned())
}

/// systemd follows the daemon that holds the state folder, as its own child, and has said nothing else.
fn followed() -> Result<()> {
    let main = main_pid()?;
    let holder = std::fs::read_to_string(Path::new(STATE).join("run/daemon.lock"))?;
    ensure!(holder.trim() == main.to_string(), "systemd follows {main}, and {} is the daemon", holder.trim());
    ensure!(property("ActiveState")? == "active", "the unit is {}", property("ActiveState")?);
    let status = std::fs::read_to_string(format!("/proc/{main}/status"))?;
    ensure!(status.lines().any(|line| line == "PPid:\t1"), "the daemon is not a child of systemd: {status}");
    let journal = run(Command::new("journalctl").args(["--no-pager", "-o", "cat", "-u", UNIT]))?;
    let found: Vec<_> =
        journal.lines().filter(|line| NOT_FOLLOWED.iter().any(|text| line.contains(text))).collect();
    ensure!(found.is_empty(), "systemd says {found:?}");
    Ok(())
}

fn nothing_runs() -> Result<()> {
    let unit = Path::new("/etc/systemd/system").join(UNIT);
    ensure!(!unit.exists(), "{} is still there", unit.display());
    ensure!(property("ActiveState")? == "inactive", "the unit is {}", property("ActiveState")?);
    let mut running = daemons()?;
    running.extend(processes("keeper")?);
    running.extend(processes("proxy")?);
    ensure!(running.is_empty(), "still there: {running:?}");
    for entry in std::fs::read_dir("/sys/fs/cgroup")? {
        let name = entry?.file_name();
        ensure!(!name.to_string_lossy().starts_with("gantry-"), "the cgroup {name:?} is still there");
    }
    Ok(())
}

fn daemons() -> Result<Vec<String>> {
    let mut found = processes("daemon\0run")?;
    found.extend(processes("takeover")?);
    Ok(found)
}

/// Processes of the state folder with these words in their command line.
fn processes(words: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        // One that has just ended has none.
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains(&format!("\0{words}\0")) && line.contains(STATE) {
            found.push(format!("{:?}: {}", entry.file_name(), line.replace('\0', " ")));
        }
    }
    Ok(found)
}

fn none_lost(counts: &Counts) -> Result<()> {
    ensure!(counts.answered > 0, "nobody was answered");
    ensure!(counts.refused == 0 && counts.cut == 0, "{} refused, {} cut", counts.refused, counts.cut);
    Ok(())
}

fn property(name: &str) -> Result<String> {
    let said = run(Command::new("systemctl").args(["show", UNIT, "--value", "--property", name]))?;
    Ok(said.trim().to_owned())
}

fn spawn(arguments: &[&str]) -> Result<Child> {
    let mut command = Command::new(GANTRY);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("start gantry")
}
