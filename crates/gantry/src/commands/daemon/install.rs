//! `gantry daemon install`: the daemon as a service of systemd, which starts it after a reboot.

use std::path::Path;
use std::process::ExitCode;

use crate::{
    context::Context,
    failure::{Failure, Result},
    launch,
    service::{self, systemctl},
};

/// Installs the unit and has systemd run the daemon, which takes over from one that was started by hand.
pub async fn install(context: &Context) -> Result<ExitCode> {
    super::root(context, "install")?;
    service::booted()?;
    let state_dir = &context.settings.state_dir;
    if !context.settings.state_flag().is_empty() && !state_dir.join("instance").exists() {
        return Err(Failure::new(format!(
            "{} has no name yet, by which its service could be called",
            state_dir.display()
        ))
        .hint(format!("sudo gantry daemon start{}, then install again", context.settings.state_flag())));
    }
    crate::modes::make(state_dir).map_err(|error| Failure::from_error(&error).hint(error.hint()))?;
    let binary = crate::access::installed_binary(state_dir);
    super::upgrade::copy(Path::new("/proc/self/exe"), &binary).map_err(|error| {
        Failure::from_error(&error).context(format!("copy gantry to {}", binary.display()))
    })?;
    let path = service::unit_path(&context.settings);
    let text = unit(&binary, state_dir)?;
    // Units are for everybody to read.
    durable::write_with_mode(&path, text.as_bytes(), 0o644)
        .map_err(|error| Failure::from_error(&error).context(format!("write {}", path.display())))?;
    systemctl(&["daemon-reload"])?;
    // One that was started by hand ends first; the proxy, programs and ports stay.
    context.printer.progress("handing the daemon to systemd");
    launch::stop(&context.settings, super::STOP_DEADLINE).await?;
    systemctl(&["enable", "--now", &service::unit_name(&context.settings)])?;
    context.printer.step("Installed", &path.display().to_string(), None);
    Ok(ExitCode::SUCCESS)
}

/// Removes the unit, if there is one. The daemon ends; the proxy and programs stay.
pub fn uninstall(context: &Context) -> Result<()> {
    let path = service::unit_path(&context.settings);
    if !path.exists() {
        return Ok(());
    }
    let is_booted = service::booted().is_ok();
    if is_booted {
        systemctl(&["disable", "--now", &service::unit_name(&context.settings)])?;
    }
    durable::remove(&path)
        .map_err(|error| Failure::from_error(&error).context(format!("remove {}", path.display())))?;
    if is_booted {
        systemctl(&["daemon-reload"])?;
    }
    context.printer.step("Removed", &path.display().to_string(), None);
    Ok(())
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
# Less than `gantry daemon stop` waits.
TimeoutStopSec=25
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

    /// systemd's own reader (of Debian's package systemd) has nothing to say about it.
    #[test]
    fn systemd_understands_the_unit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gantry.service");
        std::fs::write(&path, unit(Path::new("/bin/true"), Path::new("/var/lib/gantry")).unwrap()).unwrap();
        let mut command = std::process::Command::new("systemd-analyze");
        let output = command.args(["verify", "--man=no"]).arg(&path).output().expect("systemd-analyze runs");
        let said = String::from_utf8_lossy(&output.stderr);
        let ours: Vec<&str> = said.lines().filter(|line| line.contains("gantry.service")).collect();
        assert!(output.status.success() && ours.is_empty(), "{said}");
    }
}
