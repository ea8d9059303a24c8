//! What is asked of a container, in the runtime's own terms; [`crate::bundle`] turns it into an OCI spec.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A container to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Unique within the state folder: 1 to 64 of `a-z A-Z 0-9 . _ -`.
    pub id: String,
    /// Folder that holds what belongs to this container; made if missing, removed by delete.
    pub bundle: PathBuf,
    pub rootfs: Rootfs,
    /// The program and its arguments; a program without `/` is looked up in the container's PATH.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Absolute; empty means `/`. Made in an overlay root if it is missing.
    pub cwd: PathBuf,
    pub user: User,
    /// Empty: the container's id.
    pub hostname: String,
    pub mounts: Vec<Mount>,
    pub resources: Resources,
    pub capabilities: Capabilities,
    pub no_new_privileges: bool,
    pub seccomp: Seccomp,
    /// All capabilities, all devices, no masked paths, no seccomp.
    pub privileged: bool,
    pub netns: Namespace,
    #[serde(default)]
    pub users: Users,
    /// Without it, stdin is `/dev/null`.
    pub stdin: bool,
    pub tty: bool,
    pub log: Log,
    /// Best effort: lowering it may be refused, which is logged and no error.
    pub oom_score_adj: Option<i32>,
    /// Best effort, as `oom_score_adj`.
    pub rlimits: Vec<Rlimit>,
    /// Kernel parameters of the container's own namespaces, by name; whoever asks has checked that they are.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// The owner's notes (Pod uid, container name, attempt), given back by reattach.
    pub annotations: BTreeMap<String, String>,
}

/// Where the container's root comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rootfs {
    /// An unpacked image; never written to.
    pub tree: PathBuf,
    pub access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// The root is the tree itself, read-only; mount points that it lacks are laid over it.
    ReadOnly,
    /// Writes go to a folder in the bundle and vanish with it.
    Overlay,
}

/// Numeric ids only: names are the image's business, and resolved before.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// On the host, for a bind; ignored otherwise. Nothing inside a container may be able to change this path.
    pub source: PathBuf,
    /// Below `source`, for a bind: links are followed inside `source` only, and folders that are missing are made with
    /// the mode of `source`. Without `..`, not absolute.
    #[serde(default)]
    pub sub_path: Option<PathBuf>,
    /// Absolute, in the container; links in the image are resolved inside its root.
    pub target: PathBuf,
    pub read_only: bool,
    /// Set-user-id bits and device nodes do nothing there (nosuid, nodev), as on every tmpfs.
    #[serde(default)]
    pub inert: bool,
    pub kind: MountKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// The file or folder `source`, with what is mounted below it.
    Bind,
    /// Memory; `size_bytes` 0 means the kernel's default (half of the machine's).
    Tmpfs { size_bytes: u64, mode: u32 },
}

/// Limits and weights; `None` means no limit of its own.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Resources {
    /// Weight under contention, thousandths of a CPU.
    pub cpu_request_milli: Option<u64>,
    /// Hard limit, thousandths of a CPU.
    pub cpu_limit_milli: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
    pub pids_limit: Option<u64>,
}

/// Changes to containerd's default set; names with or without `CAP_`; `ALL` is understood.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Capabilities {
    pub add: Vec<String>,
    pub drop: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    RuntimeDefault,
    Unconfined,
}

/// Whose users the container's are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Users {
    /// The machine's own: root is root, with fewer capabilities.
    #[default]
    Host,
    /// Those of the user namespace that owns [`Spec::netns`], a [`Namespace::Path`]. Its user 0 is `first` on the
    /// machine. What is mounted is mapped, so that files belong to the same ids inside as on disk.
    Own { first: u32 },
}

impl Users {
    /// A container's user or group as the machine knows it.
    pub(crate) fn on_host(self, id: u32) -> u32 {
        match self {
            Users::Host => id,
            Users::Own { first } => first.saturating_add(id),
        }
    }
}

/// The network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Namespace {
    /// Join the one that this file is.
    Path(PathBuf),
    /// The machine's own.
    Host,
    /// A new, empty one.
    New,
}

impl From<PathBuf> for Namespace {
    fn from(path: PathBuf) -> Self {
        Namespace::Path(path)
    }
}

/// CRI log: `path` is the newest, `path.1` the one before, up to `path.<max_files - 1>`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Log {
    pub path: PathBuf,
    pub max_bytes: u64,
    pub max_files: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rlimit {
    /// As in setrlimit(2): `RLIMIT_NOFILE` …
    pub name: String,
    pub soft: u64,
    pub hard: u64,
}
