//! A container's cgroups: one folder in each hierarchy that we need, on v1, hybrid and v2 machines.
//!
//! libcgroups would do it inside libcontainer, but touches twelve controllers and their mount table each time; we
//! need six, and their files again for statistics, freezing, the OOM counter and removal.
//!
//! **Invariant:** only folders below `gantry-<instance>` are made, written to or removed.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::spec::Resources;

/// Period of the hard CPU limit, as kubelet's default.
const CPU_PERIOD_US: u64 = 100_000;
/// A millisecond apart.
const FREEZE_ATTEMPTS: u32 = 1000;
/// How often a cgroup that is still in use is tried to be removed, after 1 ms, 2 ms, 4 ms …: 4 s in all.
const REMOVE_ATTEMPTS: u32 = 12;
/// Processes that are named when they resist.
const DESCRIBED_MAX: usize = 5;
/// The folder that keepers are in.
const KEEPERS: &str = "keepers";

/// Controllers that are used on v1. `cpuset` and `blkio` are left alone: nothing here limits by them.
const V1: [&str; 6] = ["cpu", "cpuacct", "memory", "devices", "freezer", "pids"];

/// How this machine has its cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Controller and mount point; and hierarchies that only track processes (systemd's, and a hybrid's v2).
    V1 {
        controllers: Vec<(String, PathBuf)>,
        tracking: Vec<PathBuf>,
    },
    V2 {
        root: PathBuf,
    },
}

impl Layout {
    /// Reads the machine's mounts.
    pub fn detect() -> io::Result<Layout> {
        Layout::parse(&fs::read_to_string("/proc/self/mountinfo")?)
    }

    /// See proc_pid_mountinfo(5).
    fn parse(mountinfo: &str) -> io::Result<Layout> {
        let (mut controllers, mut tracking, mut v2) = (Vec::new(), Vec::new(), None);
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            let (Some(&root), Some(&mount), Some(&kind)) = (left.get(3), left.get(4), right.first()) else {
                continue;
            };
            if root != "/" {
                continue;
            }
            let mount = PathBuf::from(mount);
            if kind == "cgroup2" {
                v2.get_or_insert(mount);
            } else if kind == "cgroup" {
                for option in right.last().unwrap_or(&"").split(',') {
                    if option == "name=systemd" {
                        tracking.push(mount.clone());
                    } else if V1.contains(&option)
                        && !controllers.iter().any(|(known, _): &(String, PathBuf)| known == option)
                    {
                        controllers.push((option.to_owned(), mount.clone()));
                    }
                }
            }
        }
        match (controllers.is_empty(), v2) {
            (true, Some(root)) => Ok(Layout::V2 { root }),
            (true, None) => Err(io::Error::new(io::ErrorKind::NotFound, "no cgroup hierarchy is mounted")),
            (false, v2) => {
                tracking.extend(v2);
                Ok(Layout::V1 { controllers, tracking })
            }
        }
    }

    /// The instance's own folder in each hierarchy.
    fn instance_dirs(&self, instance: &str) -> Vec<PathBuf> {
        let name = format!("gantry-{instance}");
        let mut dirs: Vec<PathBuf> = match self {
            Layout::V1 { controllers, tracking } => controllers
                .iter()
                .map(|(_, mount)| mount)
                .chain(tracking)
                .map(|mount| mount.join(&name))
                .collect(),
            Layout::V2 { root } => vec![root.join(&name)],
        };
        dirs.sort();
        dirs.dedup();
        dirs
    }

    /// Makes the instance's folders, and on v2 passes the controllers down to them.
    pub fn prepare(&self, instance: &str) -> io::Result<()> {
        for dir in self.instance_dirs(instance) {
            make(&dir)?;
        }
        if let Layout::V2 { root } = self {
            let own = root.join(format!("gantry-{instance}"));
            for dir in [root, &own] {
                for controller in ["+cpu", "+memory", "+pids"] {
                    // A controller that the machine lacks is missed when a limit needs it.
                    let _ = fs::write(dir.join("cgroup.subtree_control"), controller);
                }
            }
        }
        for dir in self.keepers_dirs(instance) {
            make(&dir)?;
        }
        Ok(())
    }

    /// Where a keeper puts itself: away from the daemon wherever processes are killed or counted by cgroup.
    pub fn keepers_dirs(&self, instance: &str) -> Vec<PathBuf> {
        self.own_dirs(instance, KEEPERS)
    }

    /// Moves a process of the daemon's own that is to outlive it into a folder of the instance.
    pub fn house(&self, instance: &str, folder: &str, pid: u32) -> io::Result<()> {
        for dir in self.own_dirs(instance, folder) {
            make(&dir)?;
            write(&dir.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    fn own_dirs(&self, instance: &str, folder: &str) -> Vec<PathBuf> {
        let name = format!("gantry-{instance}");
        let hierarchies = match self {
            Layout::V1 { tracking, .. } => tracking.clone(),
            Layout::V2 { root } => vec![root.clone()],
        };
        hierarchies.iter().map(|mount| mount.join(&name).join(folder)).collect()
    }

    /// A container's folders; nothing is made yet.
    pub fn container(&self, instance: &str, id: &str) -> Cgroup {
        // The container's own name space of ids must not meet `keepers`.
        let leaf = Path::new(&format!("gantry-{instance}")).join(format!("c-{id}"));
        match self {
            Layout::V1 { controllers, .. } => Cgroup::V1(
                controllers.iter().map(|(name, mount)| (name.clone(), mount.join(&leaf))).collect(),
            ),
            Layout::V2 { root } => Cgroup::V2(root.join(leaf)),
        }
    }

    /// Removes the containers' folders whose id is not in `kept`: what a crash left.
    pub fn sweep(&self, instance: &str, kept: &[String]) -> io::Result<()> {
        let mut first_failure = Ok(());
        for dir in self.instance_dirs(instance) {
            let entries = match fs::read_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(|error| at(&dir, error))?,
            };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let id = name.to_str().and_then(|name| name.strip_prefix("c-"));
                if let Some(id) = id.filter(|id| !kept.iter().any(|kept| kept == id)) {
                    let removed = self.container(instance, id).remove();
                    first_failure = first_failure.and(removed);
                }
            }
        }
        first_failure
    }

    /// Removes the instance's folders in every hierarchy, with whatever still runs in them.
    pub fn destroy(&self, instance: &str) -> io::Result<()> {
        self.sweep(instance, &[])?;
        self.instance_dirs(instance).iter().try_for_each(|dir| remove_tree(dir))
    }
}

/// One container's folders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cgroup {
    /// Controller and folder.
    V1(Vec<(String, PathBuf)>),
    V2(PathBuf),
}

/// Use of resources, from the cgroup's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time used so far.
    pub cpu_usage_ns: u64,
    pub memory_usage_bytes: u64,
    /// Usage less inactive file pages, as kubelet computes it.
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    /// 0: no limit.
    pub memory_limit_bytes: u64,
    pub pids: u64,
}

impl Cgroup {
    fn dir(&self, controller: &str) -> Option<&Path> {
        match self {
            Cgroup::V1(dirs) => {
                dirs.iter().find(|(name, _)| name == controller).map(|(_, dir)| dir.as_path())
            }
            Cgroup::V2(dir) => Some(dir),
        }
    }

    /// Whether every folder is the one that this instance gives a container of this id.
    pub fn is_of(&self, instance: &str, id: &str) -> bool {
        let leaf = Path::new(&format!("gantry-{instance}")).join(format!("c-{id}"));
        let dirs = self.dirs();
        !dirs.is_empty() && dirs.iter().all(|dir| dir.is_absolute() && dir.ends_with(&leaf))
    }

    /// Each folder once: controllers may share a mount.
    fn dirs(&self) -> Vec<&Path> {
        let mut dirs: Vec<&Path> = match self {
            Cgroup::V1(dirs) => dirs.iter().map(|(_, dir)| dir.as_path()).collect(),
            Cgroup::V2(dir) => vec![dir],
        };
        dirs.sort_unstable();
        dirs.dedup();
        dirs
    }

    /// Name below `/sys/fs/cgroup` and host folder of what the container is shown of itself on v1.
    pub fn shown(&self) -> Vec<(String, PathBuf)> {
        match self {
            Cgroup::V1(dirs) => {
                dirs.iter().filter(|(name, _)| name != "devices" && name != "freezer").cloned().collect()
            }
            Cgroup::V2(_) => Vec::new(),
        }
    }

    /// Makes the folders and sets the limits.
    pub fn create(&self, resources: &Resources, privileged: bool) -> io::Result<()> {
        for dir in self.dirs() {
            make(dir)?;
        }
        match self {
            Cgroup::V1(_) => self.limit_v1(resources, privileged),
            Cgroup::V2(dir) => limit_v2(dir, resources),
        }
    }

    fn limit_v1(&self, resources: &Resources, privileged: bool) -> io::Result<()> {
        let set = |controller: &str, file: &str, value: String| match self.dir(controller) {
            Some(dir) => write(&dir.join(file), &value),
            None => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("this machine has no {controller} cgroup controller to limit by"),
            )),
        };
        if let Some(milli) = resources.cpu_request_milli {
            set("cpu", "cpu.shares", shares(milli).to_string())?;
        }
        if let Some(milli) = resources.cpu_limit_milli.filter(|milli| *milli > 0) {
            set("cpu", "cpu.cfs_period_us", CPU_PERIOD_US.to_string())?;
            set("cpu", "cpu.cfs_quota_us", quota_us(milli).to_string())?;
        }
        if let Some(bytes) = resources.memory_limit_bytes.filter(|bytes| *bytes > 0) {
            set("memory", "memory.limit_in_bytes", bytes.to_string())?;
            // Swap accounting may be off; then there is nothing to limit.
            let _ = set("memory", "memory.memsw.limit_in_bytes", bytes.to_string());
        }
        if let Some(pids) = resources.pids_limit.filter(|pids| *pids > 0) {
            set("pids", "pids.max", pids.to_string())?;
        }
        if !privileged && self.dir("devices").is_some() {
            set("devices", "devices.deny", "a".into())?;
            for rule in DEVICES {
                set("devices", "devices.allow", rule.into())?;
            }
        }
        Ok(())
    }

    /// Whether opening of device nodes is controlled: not on v2, where that takes a BPF program.
    pub fn controls_devices(&self) -> bool {
        matches!(self, Cgroup::V1(_)) && self.dir("devices").is_some()
    }

    /// Moves the calling process, which has one thread, in.
    pub fn join(&self) -> io::Result<()> {
        self.dirs().into_iter().try_for_each(join)
    }

    /// How many processes the kernel killed here for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let Some(dir) = self.dir("memory") else { return 0 };
        let file = match self {
            Cgroup::V1(_) => "memory.oom_control",
            Cgroup::V2(_) => "memory.events",
        };
        field(&dir.join(file), "oom_kill").unwrap_or(0)
    }

    /// Stops or resumes every process; returns when it is so.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        let (file, value, is_done): (_, _, Box<dyn Fn() -> bool>) = match self {
            Cgroup::V1(_) => {
                let file = self.dir("freezer").ok_or(io::ErrorKind::Unsupported)?.join("freezer.state");
                let value = if frozen { "FROZEN" } else { "THAWED" };
                let state = file.clone();
                (
                    file,
                    value,
                    Box::new(move || fs::read_to_string(&state).is_ok_and(|state| state.trim() == value)),
                )
            }
            Cgroup::V2(dir) => {
                let (events, wanted) = (dir.join("cgroup.events"), u64::from(frozen));
                let value = if frozen { "1" } else { "0" };
                (dir.join("cgroup.freeze"), value, Box::new(move || field(&events, "frozen") == Some(wanted)))
            }
        };
        // A process that is just being made escapes v1's freezer until it is told again.
        for _ in 0..FREEZE_ATTEMPTS {
            write(&file, value)?;
            if is_done() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(at(&file, io::Error::new(io::ErrorKind::TimedOut, format!("not {value} in time"))))
    }

    pub fn stats(&self) -> io::Result<Stats> {
        match self {
            Cgroup::V1(_) => {
                let dir =
                    |controller| self.dir(controller).ok_or(io::Error::from(io::ErrorKind::Unsupported));
                let memory = dir("memory")?;
                let usage = number(&memory.join("memory.usage_in_bytes"))?;
                let stat = fs::read_to_string(memory.join("memory.stat"))?;
                let inactive = field_of(&stat, "total_inactive_file").unwrap_or(0);
                // Without a limit the file holds a number near 2^63.
                let limit =
                    number(&memory.join("memory.limit_in_bytes")).ok().filter(|bytes| *bytes < 1 << 60);
                Ok(Stats {
                    cpu_usage_ns: number(&dir("cpuacct")?.join("cpuacct.usage"))?,
                    memory_usage_bytes: usage,
                    memory_working_set_bytes: usage.saturating_sub(inactive),
                    memory_rss_bytes: field_of(&stat, "total_rss").unwrap_or(0),
                    memory_limit_bytes: limit.unwrap_or(0),
                    pids: dir("pids").and_then(|dir| number(&dir.join("pids.current"))).unwrap_or(0),
                })
            }
            Cgroup::V2(dir) => {
                let usage = number(&dir.join("memory.current")).unwrap_or(0);
                let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
                Ok(Stats {
                    cpu_usage_ns: field(&dir.join("cpu.stat"), "usage_usec").unwrap_or(0) * 1000,
                    memory_usage_bytes: usage,
                    memory_working_set_bytes: usage
                        .saturating_sub(field_of(&stat, "inactive_file").unwrap_or(0)),
                    memory_rss_bytes: field_of(&stat, "anon").unwrap_or(0),
                    memory_limit_bytes: number(&dir.join("memory.max")).unwrap_or(0),
                    pids: number(&dir.join("pids.current")).unwrap_or(0),
                })
            }
        }
    }

    /// Sends SIGKILL to every process. Frozen, none can make another meanwhile; on v1 it dies when it is thawed, and
    /// it is thawed even if it was frozen before.
    pub fn kill(&self) {
        let Some(dir) = self.dir("freezer") else { return };
        if let Cgroup::V2(dir) = self
            && write(&dir.join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        let (file, frozen, thawed) = match self {
            Cgroup::V1(_) => ("freezer.state", "FROZEN", "THAWED"),
            Cgroup::V2(_) => ("cgroup.freeze", "1", "0"),
        };
        let _ = write(&dir.join(file), frozen);
        for pid in processes(dir) {
            kill(pid);
        }
        for dir in tree(dir) {
            let _ = write(&dir.join(file), thawed);
        }
    }

    /// The processes that are there, and what the kernel has them do.
    pub fn describe(&self) -> String {
        self.dir("freezer").map_or_else(|| "unknown processes".into(), describe)
    }

    /// Removes the folders, with whatever still runs in them.
    pub fn remove(&self) -> io::Result<()> {
        if self.has_processes() {
            self.kill();
        }
        self.dirs().into_iter().try_for_each(remove_tree)
    }

    fn has_processes(&self) -> bool {
        self.dir("freezer").is_some_and(|dir| {
            fs::read_to_string(dir.join("cgroup.procs")).is_ok_and(|processes| !processes.is_empty())
        })
    }
}

/// Moves the calling process, which has one thread, to a cgroup. By v1's `tasks` and the number 0 the kernel needs
/// no lock against threads; by `cgroup.procs` it waits for a grace period of RCU, which takes milliseconds.
pub fn join(dir: &Path) -> io::Result<()> {
    match write(&dir.join("tasks"), "0") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => write(&dir.join("cgroup.procs"), "0"),
        result => result,
    }
}

/// Whether the folder is in a v2 hierarchy.
pub fn is_v2(dir: &Path) -> bool {
    !dir.join("tasks").exists()
}

/// As runc's defaults: the harmless character devices, terminals, and the right to make nodes (not to open them).
const DEVICES: [&str; 11] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

fn limit_v2(dir: &Path, resources: &Resources) -> io::Result<()> {
    if let Some(milli) = resources.cpu_request_milli {
        write(&dir.join("cpu.weight"), &weight(shares(milli)).to_string())?;
    }
    if let Some(milli) = resources.cpu_limit_milli.filter(|milli| *milli > 0) {
        write(&dir.join("cpu.max"), &format!("{} {CPU_PERIOD_US}", quota_us(milli)))?;
    }
    if let Some(bytes) = resources.memory_limit_bytes.filter(|bytes| *bytes > 0) {
        write(&dir.join("memory.max"), &bytes.to_string())?;
        // Absent without swap accounting.
        let _ = write(&dir.join("memory.swap.max"), "0");
        // As kubelet: a container without one of its processes is no container.
        let _ = write(&dir.join("memory.oom.group"), "1");
    }
    if let Some(pids) = resources.pids_limit.filter(|pids| *pids > 0) {
        write(&dir.join("pids.max"), &pids.to_string())?;
    }
    Ok(())
}

/// As kubelet's MilliCPUToShares.
fn shares(milli: u64) -> u64 {
    (milli * 1024 / 1000).clamp(2, 262_144)
}

/// As runc maps v1 shares [2, 262144] to v2 weights [1, 10000].
fn weight(shares: u64) -> u64 {
    1 + (shares - 2) * 9999 / 262_142
}

/// Never below the kernel's least, 1 ms.
fn quota_us(milli: u64) -> u64 {
    (milli * CPU_PERIOD_US / 1000).max(1000)
}

fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // The container's user reads its own limits there (Go's GOMAXPROCS does), whatever our umask.
        result => result
            .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o755)))
            .map_err(|error| at(dir, error)),
    }
}

fn write(file: &Path, value: &str) -> io::Result<()> {
    use io::Write;
    let opened = fs::OpenOptions::new().write(true).open(file);
    opened.and_then(|mut opened| opened.write_all(value.as_bytes())).map_err(|error| at(file, error))
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn number(file: &Path) -> io::Result<u64> {
    fs::read_to_string(file)?.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

fn field(file: &Path, name: &str) -> Option<u64> {
    field_of(&fs::read_to_string(file).ok()?, name)
}

fn field_of(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.split_once(' ').filter(|(key, _)| *key == name)?.1.trim().parse().ok())
}

/// Removes a cgroup and those below it, killing what is inside. Leaves nothing, or says what stayed.
fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    // A dying process leaves its cgroup a moment after its parent has seen it end.
    for attempt in 0..REMOVE_ATTEMPTS {
        for entry in fs::read_dir(dir)?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&entry.path())?;
            }
        }
        processes_of(dir).into_iter().for_each(kill);
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) => std::thread::sleep(Duration::from_millis(1 << attempt)),
        }
    }
    let held = |error: io::Error| io::Error::new(error.kind(), format!("{error}: {}", describe(dir)));
    fs::remove_dir(dir).map_err(|error| at(dir, held(error)))
}

/// A cgroup and those below it.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut dirs = vec![dir.to_owned()];
    let mut next = 0;
    while let Some(dir) = dirs.get(next) {
        let below = fs::read_dir(dir).into_iter().flatten().flatten();
        let below: Vec<PathBuf> = below
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        dirs.extend(below);
        next += 1;
    }
    dirs
}

fn processes(dir: &Path) -> Vec<i32> {
    tree(dir).iter().flat_map(|dir| processes_of(dir)).collect()
}

fn processes_of(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    // 0 is a process of another pid namespace: none of ours.
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn describe(dir: &Path) -> String {
    let mut pids = processes(dir);
    let more = pids.len().saturating_sub(DESCRIBED_MAX);
    pids.truncate(DESCRIBED_MAX);
    let mut text = pids.into_iter().map(crate::process::describe).collect::<Vec<_>>().join(", ");
    if text.is_empty() {
        text = "no process in its cgroup".into();
    }
    if more > 0 { format!("{text} and {more} more") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw shared:5 - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
35 30 0:30 /elsewhere /bound rw - cgroup2 cgroup2 rw";

    #[test]
    fn a_hybrid_machine_is_v1_that_also_tracks() {
        let layout = Layout::parse(HYBRID).unwrap();
        let cgroup = layout.container("0123abcd", "web");
        assert_eq!(cgroup.dir("cpuacct").unwrap(), Path::new("/sys/fs/cgroup/cpu/gantry-0123abcd/c-web"));
        assert_eq!(cgroup.dirs().len(), 2, "controllers that share a mount share a folder");
        assert_eq!(
            layout.keepers_dirs("0123abcd"),
            ["systemd", "unified"]
                .map(|name| Path::new("/sys/fs/cgroup").join(name).join("gantry-0123abcd/keepers"))
        );
    }

    #[test]
    fn a_pure_v2_machine_has_one_folder() {
        let layout = Layout::parse("29 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw").unwrap();
        assert_eq!(
            layout.container("0123abcd", "web"),
            Cgroup::V2("/sys/fs/cgroup/gantry-0123abcd/c-web".into())
        );
        assert!(Layout::parse("").is_err());
    }

    #[test]
    fn numbers_are_kubelets_and_runcs() {
        assert_eq!((shares(0), shares(1000), shares(100)), (2, 1024, 102));
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 39, 10000));
        assert_eq!((quota_us(1500), quota_us(1)), (150_000, 1000));
    }
}
