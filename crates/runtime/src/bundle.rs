//! A container's folder on disk.
//!
//! ```text
//! container.json   what the keeper needs, and the owner's notes: version, then Record
//! config.json      the OCI runtime spec that libcontainer reads
//! process.json     which process the container is, once it is created: Identity
//! started          empty; its time of change is when the program was started
//! exit             how it ended: durable::record, version 1, Exit as JSON
//! keeper.sock      the keeper's socket
//! keeper.lock      held (fcntl) by the one keeper
//! stdin stdout stderr   FIFOs; the container itself holds the outputs open for reading and writing
//! rootfs           mount point, in the container's own mount namespace only
//! skeleton         mount points that the image lacks; upper, work: what the container wrote
//! oci              libcontainer's state
//! ```
//!
//! Only `exit` is fsynced: everything else is about processes that a power cut ends anyway. A folder whose
//! `container.json` cannot be read never had a container in it: it is written whole before the keeper starts.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::capability::Set;
use crate::cgroup::Cgroup;
use crate::process::Identity;
use crate::protocol::{Exit, OLDEST, VERSION};
use crate::spec::{Access, Namespace, Spec};
use crate::users::Joined;

pub const RECORD: &str = "container.json";
pub const PROCESS: &str = "process.json";
pub const EXIT: &str = "exit";
/// Its time of change is when the program was started.
pub const STARTED: &str = "started";
pub const SOCKET: &str = "keeper.sock";
pub const LOCK: &str = "keeper.lock";
pub const ROOTFS: &str = "rootfs";
pub const SKELETON: &str = "skeleton";
pub const OCI: &str = "oci";
/// The container's name to libcontainer, which only names a folder by it.
pub const OCI_ID: &str = "c";

const EXIT_VERSION: u8 = 1;

/// What every version of the record has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// What stands in `container.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub version: u32,
    pub spec: Spec,
    pub cgroup: Cgroup,
    /// Folders that the keeper itself moves to.
    pub keepers: Vec<PathBuf>,
    pub capabilities: Set,
    /// Whether the root is an overlay of skeleton and tree; else it is the tree itself (or the writable overlay).
    pub skeleton: bool,
}

impl Record {
    /// `Unsupported`: another release wrote it, whose container may well run.
    pub fn read(bundle: &Path) -> io::Result<Record> {
        let text = fs::read(bundle.join(RECORD))?;
        let Versioned { version } = serde_json::from_slice(&text)?;
        if !(OLDEST..=VERSION).contains(&version) {
            let what = format!("record version {version}, and this release reads {OLDEST} to {VERSION}");
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        Ok(serde_json::from_slice(&text)?)
    }

    /// Whole or absent; not fsynced.
    pub fn write(&self, bundle: &Path) -> io::Result<()> {
        write_json(bundle, RECORD, self)
    }
}

pub(crate) fn write_json<T: Serialize>(bundle: &Path, name: &str, value: &T) -> io::Result<()> {
    let staged = bundle.join(format!(".{name}"));
    // Environments stand in these files, and Secrets in environments.
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(durable::FILE_MODE).open(&staged)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    fs::rename(staged, bundle.join(name))
}

pub(crate) fn read_process(bundle: &Path) -> Option<Identity> {
    serde_json::from_slice(&fs::read(bundle.join(PROCESS)).ok()?).ok()
}

/// Durable before it is told to anyone.
pub(crate) fn write_exit(bundle: &Path, exit: &Exit) -> Result<(), durable::record::Error> {
    let payload = serde_json::to_vec(exit).unwrap_or_default();
    durable::record::write(&bundle.join(EXIT), EXIT_VERSION, &payload)
}

/// `None`: there is none, or it is torn, which is the same as unknown.
pub(crate) fn read_exit(bundle: &Path) -> Option<Exit> {
    let payload = durable::record::read(&bundle.join(EXIT), EXIT_VERSION).ok()??;
    serde_json::from_slice(&payload).ok()
}

/// When the program was started; `None`: it was not.
pub(crate) fn started_at(bundle: &Path) -> Option<SystemTime> {
    fs::metadata(bundle.join(STARTED)).ok()?.modified().ok()
}

/// Whether nothing is in the folder but what a container's has: it may be removed.
pub(crate) fn holds_only_ours(bundle: &Path) -> io::Result<bool> {
    const MORE: [&str; 7] = ["config.json", "stdin", "stdout", "stderr", "upper", "work", ROOTFS];
    const NAMES: [&str; 8] = [RECORD, PROCESS, EXIT, STARTED, SOCKET, LOCK, SKELETON, OCI];
    let entries = match fs::read_dir(bundle) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        // What is staged has a name that begins with a dot and the file's own.
        let is_ours = |known: &&str| {
            *known == name || name.strip_prefix('.').is_some_and(|rest| rest.starts_with(*known))
        };
        if !NAMES.iter().chain(&MORE).any(is_ours) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A unix socket's path has 108 bytes; through the folder's descriptor it is always short enough.
pub(crate) fn short_path(dir: &impl std::os::fd::AsRawFd, name: &str) -> PathBuf {
    fd_path(dir).join(name)
}

fn fd_path(file: &impl std::os::fd::AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The OCI runtime spec (config.md, config-linux.md). What libcontainer aborts on when the machine refuses it
/// (oom_score_adj, rlimits), what it does slowly (cgroups) or needs a C library for (seccomp), and capabilities,
/// which seccomp must precede, are left out: the keeper's child does them itself.
pub(crate) fn config(record: &Record, root: &Path, users: Option<&Joined>) -> Value {
    let spec = &record.spec;
    let args: &[String] = &spec.args;
    let env: Vec<String> = spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut process = json!({
        "terminal": false,
        "user": { "uid": spec.user.uid, "gid": spec.user.gid, "additionalGids": spec.user.groups },
        "args": args,
        "env": env,
        // The working folder may be in a mount that is not there yet: ours to enter.
        "cwd": "/",
    });
    if spec.no_new_privileges {
        process["noNewPrivileges"] = json!(true);
    }
    let mut linux = json!({
        "namespaces": namespaces(&spec.netns, users),
        // Ours already; libcontainer finds no hierarchy to put it in.
        "cgroupsPath": "/",
    });
    if !spec.sysctls.is_empty() {
        linux["sysctl"] = json!(spec.sysctls);
    }
    if !spec.privileged {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
    }
    json!({
        "ociVersion": "1.2.0",
        "root": { "path": root, "readonly": spec.rootfs.access == Access::ReadOnly },
        "hostname": if spec.hostname.is_empty() { &spec.id } else { &spec.hostname },
        "process": process,
        "mounts": mounts(spec),
        "linux": linux,
    })
}

fn namespaces(netns: &Namespace, users: Option<&Joined>) -> Value {
    let mut list = vec![
        json!({ "type": "pid" }),
        json!({ "type": "ipc" }),
        json!({ "type": "uts" }),
        json!({ "type": "mount" }),
        json!({ "type": "cgroup" }),
    ];
    if let Some(users) = users {
        // The process that joins them cannot pass the folders in which their files are.
        list.push(json!({ "type": "user", "path": fd_path(&users.users) }));
        list.push(json!({ "type": "network", "path": fd_path(&users.network) }));
        return Value::Array(list);
    }
    match netns {
        Namespace::Path(path) => list.push(json!({ "type": "network", "path": path })),
        Namespace::New => list.push(json!({ "type": "network" })),
        Namespace::Host => {}
    }
    Value::Array(list)
}

/// Default mounts, in the order in which they must be made: target, type, source, options.
const DEFAULT_MOUNTS: [(&str, &str, &str, &[&str]); 6] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    ),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
];

/// As containerd and Docker.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What libcontainer mounts, parents first.
pub(crate) fn default_targets() -> impl Iterator<Item = &'static Path> {
    DEFAULT_MOUNTS.iter().map(|(target, ..)| Path::new(*target))
}

/// The default ones only: what a user asks for is laid over them by descriptor ([`crate::mounts`]).
fn mounts(spec: &Spec) -> Vec<Value> {
    let mount = |(target, kind, source, options): &(&str, &str, &str, &[&str])| {
        let options: Vec<&str> =
            options.iter().copied().filter(|option| !(spec.privileged && *option == "ro")).collect();
        json!({ "destination": target, "type": kind, "source": source, "options": options })
    };
    DEFAULT_MOUNTS.iter().map(mount).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The folder of a container as the first format's release left it.
    fn first() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/formats/1")
    }

    #[test]
    fn a_container_of_the_first_format_is_known() {
        let record = Record::read(&first()).unwrap();
        assert_eq!((record.version, record.spec.args.as_slice()), (1, ["/app/hello".to_owned()].as_slice()));
        assert_eq!(record.spec.mounts.len(), 5);
        assert!(read_process(&first()).is_some());
        let exit = read_exit(&first()).unwrap();
        assert_eq!((exit.code, exit.signal), (Some(2), None));
    }

    #[test]
    fn a_record_of_a_newer_release_is_no_half_made_container() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(RECORD), r#"{"version":99,"new":true}"#).unwrap();
        assert_eq!(Record::read(dir.path()).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
