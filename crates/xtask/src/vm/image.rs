//! The machine's root file system and kernels, made from Debian packages once and kept among the tools.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::Digest;

use super::cpio::Archive;

/// What the machine's system consists of, beside `minbase`.
const PACKAGES: &str =
    "systemd,systemd-sysv,dbus,iproute2,busybox-static,kmod,procps,curl,ca-certificates,nftables,strace";
/// Debian's meta-packages of kernels, the oldest that is supported first.
const KERNELS: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-6.12-cloud-amd64"];
/// Needed before the root file system is there.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_console", "overlay"];
/// Units that would only cost time in a machine that lives for minutes and has no network.
const MASKED: [&str; 20] = [
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@.service",
    "serial-getty@.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-logind.service",
    "systemd-networkd.service",
    "systemd-pstore.service",
    "systemd-timesyncd.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
];
const INIT: &str = include_str!("guest/init");
const AGENT_UNIT: &str = include_str!("guest/vm-agent.service");
/// Room for the root file system; it is only read.
const ROOT_BYTES_MAX: &str = "768M";

/// What a machine is started from.
pub(super) struct Image {
    folder: PathBuf,
    pub(super) kernels: Vec<Kernel>,
}

pub(super) struct Kernel {
    pub(super) release: String,
    pub(super) image: PathBuf,
    pub(super) initrd: PathBuf,
}

impl Image {
    /// The root disk.
    pub(super) fn root(&self) -> PathBuf {
        self.folder.join("root.img")
    }

    /// The kernel whose release begins so; without a wish the oldest.
    pub(super) fn kernel(&self, wanted: Option<&str>) -> Result<&Kernel> {
        let found = self.kernels.iter().find(|kernel| kernel.release.starts_with(wanted.unwrap_or_default()));
        let there: Vec<_> = self.kernels.iter().map(|kernel| kernel.release.as_str()).collect();
        found.with_context(|| format!("there is no kernel {wanted:?} among {there:?}"))
    }

    /// Made, if it is not there yet.
    pub(super) fn open() -> Result<Self> {
        let recipe =
            sha2::Sha256::digest(format!("{PACKAGES}{KERNELS:?}{MODULES:?}{MASKED:?}{INIT}{AGENT_UNIT}"));
        let folder = crate::tools::folder()?.join(format!("vm-{}", &hex::encode(recipe)[..16]));
        if !folder.exists() {
            crate::say(
                "making the machine's root file system from Debian packages; this takes some minutes, once",
            );
            let making = tempfile::Builder::new().prefix("vm-making-").tempdir_in(crate::tools::folder()?)?;
            make(making.path())?;
            std::fs::rename(making.keep(), &folder).context("keep the machine's image")?;
        }
        let mut kernels = Vec::new();
        for line in std::fs::read_to_string(folder.join("kernels"))?.lines() {
            let file = |kind: &str| folder.join(format!("{kind}-{line}"));
            kernels.push(Kernel { release: line.to_owned(), image: file("vmlinuz"), initrd: file("initrd") });
        }
        ensure!(!kernels.is_empty(), "{} holds no kernel; remove it", folder.display());
        Ok(Self { folder, kernels })
    }
}

fn make(folder: &Path) -> Result<()> {
    let root = folder.join("root");
    let mut debootstrap = Command::new("mmdebstrap");
    debootstrap.args(["--quiet", "--variant=minbase", &format!("--include={PACKAGES}")]);
    run(debootstrap.arg(codename()?).arg(&root))?;
    std::fs::create_dir_all(root.join("lib/modules"))?;
    let mut releases = Vec::new();
    for package in KERNELS {
        let unpacked = folder.join(package);
        unpack(package, &unpacked)?;
        for entry in std::fs::read_dir(unpacked.join("lib/modules"))? {
            let release = entry?.file_name().to_string_lossy().into_owned();
            let name = format!("vmlinuz-{release}");
            std::fs::copy(unpacked.join("boot").join(&name), folder.join(&name))?;
            run(Command::new("cp")
                .arg("-a")
                .arg(unpacked.join("lib/modules").join(&release))
                .arg(root.join("lib/modules")))?;
            run(Command::new("chroot").arg(&root).args(["depmod", &release]))?;
            std::fs::write(folder.join(format!("initrd-{release}")), initrd(&root, &release)?)?;
            releases.push(release);
        }
        std::fs::remove_dir_all(&unpacked)?;
    }
    std::fs::write(folder.join("kernels"), releases.join("\n"))?;
    furnish(&root)?;
    let disk = folder.join("root.img");
    file_system(&root, &disk, ROOT_BYTES_MAX)?;
    std::fs::remove_dir_all(&root).context("remove what the disk was made of")
}

/// The Debian release of this machine, whose packages apt knows.
fn codename() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    line.map(str::to_owned).context("/etc/os-release names no VERSION_CODENAME: only Debian is known")
}

/// Fetches the kernel that a meta-package depends on, and unpacks it without installing it.
fn unpack(package: &str, into: &Path) -> Result<()> {
    let said = run(Command::new("apt-cache").args(["depends", package]))?;
    let image = said.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let image = image.with_context(|| format!("{package} depends on no kernel; run apt-get update"))?;
    std::fs::create_dir_all(into)?;
    run(Command::new("apt-get")
        .args(["-qq", "download", &format!("linux-image-{image}")])
        .current_dir(into))?;
    let file = std::fs::read_dir(into)?.flatten().next().context("apt-get downloaded nothing")?.path();
    run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(into)).map(drop)
}

fn initrd(root: &Path, release: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.folder("bin");
    archive.folder("modules");
    archive.program("bin/busybox", &std::fs::read(root.join("bin/busybox")).context("read busybox")?);
    let mut order: Vec<String> = Vec::new();
    for module in MODULES {
        let mut modprobe = Command::new("chroot");
        modprobe.arg(root).args(["modprobe", "-S", release, "--show-depends", module]);
        for path in run(&mut modprobe)?.lines().filter_map(|line| line.trim().strip_prefix("insmod ")) {
            let name = path.rsplit('/').next().unwrap_or_default().to_owned();
            if !order.contains(&name) {
                archive.program(&format!("modules/{name}"), &std::fs::read(root.join(&path[1..]))?);
                order.push(name);
            }
        }
    }
    archive.program("modules/order", order.join("\n").as_bytes());
    archive.program("init", INIT.as_bytes());
    Ok(archive.end())
}

/// What no package brings.
fn furnish(root: &Path) -> Result<()> {
    for folder in
        ["payload", "data", "opt/go", "var/lib/gantry", "root/.cache/go-build", "root/.cache/gantry/tools"]
    {
        std::fs::create_dir_all(root.join(folder))?;
    }
    // A known identity: systemd takes a machine without one for a new one, and presets every unit.
    std::fs::write(root.join("etc/machine-id"), "67616e7472790000000000000000766d\n")?;
    std::fs::write(root.join("etc/hostname"), "gantry-vm\n")?;
    std::fs::write(root.join("etc/hosts"), "127.0.0.1 localhost gantry-vm\n")?;
    let units = root.join("etc/systemd/system");
    for unit in MASKED {
        std::os::unix::fs::symlink("/dev/null", units.join(unit)).with_context(|| format!("mask {unit}"))?;
    }
    std::fs::write(units.join("vm-agent.service"), AGENT_UNIT)?;
    let wants = units.join("multi-user.target.wants");
    std::fs::create_dir_all(&wants)?;
    std::os::unix::fs::symlink("../vm-agent.service", wants.join("vm-agent.service"))?;
    std::os::unix::fs::symlink("/opt/go/go", root.join("usr/local/go")).context("link Go's folder")?;
    for unneeded in
        ["var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"]
    {
        let path = root.join(unneeded);
        if path.exists() {
            std::fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// An ext4 of a folder's content.
pub(super) fn file_system(folder: &Path, disk: &Path, size: &str) -> Result<()> {
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"]).arg(folder).arg(disk).arg(size);
    run(&mut mke2fs).map(drop)
}

/// An empty ext4 with a journal, in a sparse file.
pub(super) fn empty_file_system(disk: &Path, bytes: u64) -> Result<()> {
    std::fs::File::create(disk)?.set_len(bytes)?;
    run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-m", "0"]).arg(disk)).map(drop)
}

/// Runs a tool to its end; its standard output.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    // Of these tools some are in sbin, which a user's path may lack.
    let path = std::env::var("PATH").unwrap_or_default();
    let output = command.env("PATH", format!("{path}:/usr/sbin:/sbin")).output();
    let output = output.with_context(|| format!("start {name}: is it installed? run scripts/setup.sh vm"))?;
    if !output.status.success() {
        bail!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
