//! What this machine has: for the Node object and the downward API.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;

/// Facts about the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Thousandths of cores.
    pub cpu_milli: i64,
    /// Memory.
    pub memory_bytes: i64,
    /// The file system that holds the state folder.
    pub disk_bytes: i64,
    /// The address by which others reach the machine; loopback if it has no other.
    pub address: IpAddr,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The firmware's id of the machine.
    pub system_uuid: String,
    /// Changes with each boot.
    pub boot_id: String,
    /// As `uname -r`.
    pub kernel: String,
    /// The distribution's pretty name.
    pub os_image: String,
    /// As Go names it.
    pub architecture: &'static str,
}

impl Machine {
    /// Looks at the machine.
    pub fn look(state_dir: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let disk =
            rustix::fs::statvfs(state_dir).map_or(0, |stat| stat.f_blocks.saturating_mul(stat.f_frsize));
        Self {
            cpu_milli: i64::try_from(cpus).unwrap_or(1) * 1000,
            memory_bytes: memory(&text("/proc/meminfo")).unwrap_or(0),
            disk_bytes: i64::try_from(disk).unwrap_or(i64::MAX),
            address: address(),
            machine_id: text("/etc/machine-id"),
            system_uuid: text("/sys/class/dmi/id/product_uuid"),
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            kernel: text("/proc/sys/kernel/osrelease"),
            os_image: pretty_name(&text("/etc/os-release")).unwrap_or_else(|| "Linux".to_owned()),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
        }
    }
}

fn memory(meminfo: &str) -> Option<i64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()?.checked_mul(1024)
}

fn pretty_name(os_release: &str) -> Option<String> {
    let line = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(line.trim_matches('"').to_owned())
}

/// The source address that the machine's default route would use. Connecting a UDP socket sends nothing.
fn address() -> IpAddr {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) else { return loopback };
    // TEST-NET-1 (RFC 5737): nobody is there, and nobody is asked.
    match socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).and_then(|()| socket.local_addr()) {
        Ok(local) if !local.ip().is_unspecified() => local.ip(),
        _ => loopback,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        assert_eq!(memory("MemTotal:       24689924 kB\nMemFree: 1 kB\n"), Some(24_689_924 * 1024));
        assert_eq!(pretty_name("NAME=\"x\"\nPRETTY_NAME=\"Debian 12\"\n").as_deref(), Some("Debian 12"));
        assert!(Machine::look(Path::new("/")).memory_bytes > 0);
    }
}
