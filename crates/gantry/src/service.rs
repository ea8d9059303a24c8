//! systemd, as far as it runs the daemon.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{
    failure::{Failure, Result},
    settings::Settings,
};

/// There while systemd is the machine's manager (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// Where administrators' units are.
const UNITS: &str = "/etc/systemd/system";

/// The unit's name: that of another state folder than the system's carries its instance.
pub fn unit_name(settings: &Settings) -> String {
    if settings.state_flag().is_empty() {
        return "gantry.service".to_owned();
    }
    let instance = std::fs::read_to_string(settings.state_dir.join("instance")).unwrap_or_default();
    format!("gantry-{}.service", instance.trim())
}

/// Where the unit is, when it is installed.
pub fn unit_path(settings: &Settings) -> PathBuf {
    Path::new(UNITS).join(unit_name(settings))
}

/// An error when the machine is not run by systemd.
pub fn booted() -> Result<()> {
    if Path::new(BOOTED).exists() {
        return Ok(());
    }
    let what = "this machine is not run by systemd, so there is nobody to install a service with";
    let hint =
        "have its service manager run `gantry daemon run`, and keep the daemon's children when it stops";
    Err(Failure::new(what).hint(hint.to_owned()))
}

/// Has systemd start the daemon, and waits until it serves; `false`: it is not systemd's to start.
pub fn start(settings: &Settings) -> Result<bool> {
    if booted().is_err() || !unit_path(settings).exists() {
        return Ok(false);
    }
    systemctl(&["start", &unit_name(settings)])?;
    Ok(true)
}

/// Has systemd stop the daemon, and not start it again; `false`: it has no unit. Before systemd has done what there is to
/// do, this returns only with [`Wait::No`].
pub fn stop(settings: &Settings, wait: Wait) -> Result<bool> {
    if booted().is_err() || !unit_path(settings).exists() {
        return Ok(false);
    }
    let unit = unit_name(settings);
    match wait {
        Wait::No => systemctl(&["stop", "--no-block", &unit])?,
        Wait::Yes => systemctl(&["stop", &unit])?,
    }
    Ok(true)
}

/// Whether to wait for systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    No,
    Yes,
}

/// Runs systemctl.
pub fn systemctl(arguments: &[&str]) -> Result<()> {
    let shown = || format!("systemctl {}", arguments.join(" "));
    let output = Command::new("systemctl").args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| Failure::from_error(&error).context(format!("run {}", shown())))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
    let hint = "see systemctl status gantry, and journalctl -u gantry";
    Err(Failure::new(format!("{}: {said}", shown())).hint(hint.to_owned()))
}
