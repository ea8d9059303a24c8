//! `gantry daemon install`: the daemon as a service of systemd, which starts it after a reboot.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::{
    context::Context,
    failure::{Failure, Result},
    launch,
};

/// There while systemd is the machine's manager (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// Where administrators' units are.
const UNITS: &str = "/etc/systemd/system";
/// Of the daemon over the system's state folder.
const UNIT: &str = "gantry.service";

/// The unit's name: that of another state folder carries its instance.
fn unit_name(context: &Context) -> String {
    let state_dir = &context.settings.state_dir;
    if context.settings.state_flag().is_empty() {
        return UNIT.to_owned();
    }
    let instance = std::fs::read_to_string(state_dir.join("instance")).unwrap_or_default();
    format!("gantry-{}.service", instance.trim())
}

fn unit_path(context: &Context) -> PathBuf {
    Path::new(UNITS).join(unit_name(context))
}

/// Installs the unit and has systemd run the daemon, which takes over from one that was started by hand.
pub async fn install(context: &Context) -> Result<ExitCode> {
    super::root(context, "install")?;
    booted()?;
    let state_dir = &context.settings.state_dir;
    if !context.settings.state_flag().is_empty() && !state_dir.join("instance").exists() {
        return Err(Failure::new(format!(
            "{} has no name yet, by which its service could be called",
            state_dir.display()
        ))
        .hint(format!("sudo gantry daemon start{}, then install again", context.settings.state_flag())));
    }
    durable::create_dir_all_with_mode(state_dir, 0o711)
        .map_err(|error| Failure::from_error(&error).context(format!("make {}", state_dir.display())))?;
    let binary = crate::access::installed_binary(state_dir);
    super::upgrade::copy(Path::new("/proc/self/exe"), &binary).map_err(|error| {
        Failure::from_error(&error).context(format!("copy gantry to {}", binary.display()))
    })?;
    let path = unit_path(context);
    let text = unit(&binary, state_dir)?;
    durable::write(&path, text.as_bytes())
        .map_err(|error| Failure::from_error(&error).context(format!("write {}", path.display())))?;
    systemctl(&["daemon-reload"])?;
    // One that was started by hand ends first; the proxy, programs and ports stay.
    context.printer.progress("handing the daemon to systemd");
    launch::stop(&context.settings, super::STOP_DEADLINE).await?;
    systemctl(&["enable", "--now", &unit_name(context)])?;
    context.printer.step("Installed", &path.display().to_string(), None);
    Ok(ExitCode::SUCCESS)
}

/// Removes the unit, if there is one. The daemon ends; the proxy and programs stay.
pub fn uninstall(context: &Context) -> Result<()> {
    let path = unit_path(context);
    if !path.exists() {
        return Ok(());
    }
    if Path::new(BOOTED).exists() {
        systemctl(&["disable", "--now", &unit_name(context)])?;
    }
    durable::remove(&path)
        .map_err(|error| Failure::from_error(&error).context(format!("remove {}", path.display())))?;
    if Path::new(BOOTED).exists() {
        systemctl(&["daemon-reload"])?;
    }
    context.printer.step("Removed", &path.display().to_string(), None);
    Ok(())
}

/// Has systemd start the daemon if that is its to start; `false`: it is not.
pub fn start(context: &Context) -> Result<bool> {
    if !Path::new(BOOTED).exists() || !unit_path(context).exists() {
        return Ok(false);
    }
    systemctl(&["start", &unit_name(context)])?;
    Ok(true)
}

fn booted() -> Result<()> {
    if Path::new(BOOTED).exists() {
        return Ok(());
    }
    Err(Failure::new("this machine is not run by systemd, so there is nobody to install a service with")
        .hint(
            "have its service manager run `gantry daemon run`, and keep the daemon's children when it stops"
                .to_owned(),
        ))
}

fn systemctl(arguments: &[&str]) -> Result<()> {
    let shown = || format!("systemctl {}", arguments.join(" "));
    let output = Command::new("systemctl").args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| Failure::from_error(&error).context(format!("run {}", shown())))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
    Err(Failure::new(format!("{}: {said}", shown()))
        .hint("see journalctl -u gantry, and systemctl status gantry".to_owned()))
}

/// The unit's text.
fn unit(binary: &Path, state_dir: &Path) -> Result<String> {
    let (binary, state_dir) = (word(binary)?, word(state_dir)?);
    let stored = crate::access::STORED_LISTENERS_MAX;
    Ok(format!(
        "# Written by `gantry daemon install`; removed by `gantry uninstall`.
[Unit]
Description=gantry: Go programs as running, balanced services
After=network.target local-fs.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=all
# Settings as variables, one a line: GANTRY_LOG=debug
EnvironmentFile=-/etc/default/gantry
ExecStart={binary} daemon run --state-dir {state_dir}
# Told to stop, the daemon ends and stays away; died, it comes back at once.
Restart=on-failure
RestartSec=50ms
TimeoutStartSec=120
TimeoutStopSec=30
# Containers, their keepers and the proxy outlive the daemon, and are in cgroups of their own.
KillMode=process
Delegate=yes
TasksMax=infinity
OOMPolicy=continue
LimitNOFILE=1048576
# Listening sockets stay open though daemon and proxy die together.
FileDescriptorStoreMax={stored}
UMask=0077

[Install]
WantedBy=multi-user.target
"
    ))
}

/// A path as one word of a unit's command line (systemd.service(5)).
fn word(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| !text.contains(['\n', '\r', '\0']));
    let text = text.ok_or_else(|| Failure::new(format!("{} cannot stand in a unit", path.display())))?;
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    Ok(if escaped.contains([' ', '\t', '\'', ';']) || escaped != text {
        format!("\"{escaped}\"")
    } else {
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_as_it_was_read_last() {
        let text = unit(Path::new("/var/lib/gantry/bin/gantry"), Path::new("/var/lib/gantry")).unwrap();
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_path_is_one_word() {
        assert_eq!(word(Path::new("/a b/50%$\"x")).unwrap(), "\"/a b/50%%$$\\\"x\"");
        assert_eq!(word(Path::new("/plain")).unwrap(), "/plain");
        assert!(word(Path::new("/a\nExecStart=/bin/sh")).is_err());
    }

    /// systemd's own reader has nothing to say about it, where the machine has systemd's tools.
    #[test]
    fn systemd_understands_the_unit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gantry.service");
        std::fs::write(&path, unit(Path::new("/bin/true"), Path::new("/var/lib/gantry")).unwrap()).unwrap();
        let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output();
        let output = match verified {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                assert!(std::env::var_os("CI").is_none(), "systemd-analyze is not there");
                return eprintln!("skipped: systemd-analyze is not there");
            }
            output => output.unwrap(),
        };
        let said = String::from_utf8_lossy(&output.stderr);
        let ours: Vec<&str> = said.lines().filter(|line| line.contains("gantry.service")).collect();
        assert!(output.status.success() && ours.is_empty(), "{said}");
    }
}
