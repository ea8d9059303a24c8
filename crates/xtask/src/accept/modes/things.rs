//! What there is of a running gantry, found as root.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::sandbox::Sandbox;

/// Something that can be tried.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Thing {
    Folder(PathBuf),
    File(PathBuf),
    Pipe(PathBuf),
    Socket(PathBuf),
    Abstract(Vec<u8>),
    Listener(SocketAddr),
    /// A file of the kernel about a process: opened to be read.
    Process(PathBuf),
    /// A file of the kernel about a cgroup: opened to be written.
    Cgroup(PathBuf),
}

/// Entries of `/proc/PID` that show what a process holds; the kernel gives them to who may trace it (proc(5)).
const PROCESS: &[&str] = &[
    "auxv",
    "cwd/.",
    "environ",
    "exe",
    "fd",
    "fdinfo",
    "io",
    "map_files",
    "maps",
    "mem",
    "ns/cgroup",
    "ns/ipc",
    "ns/mnt",
    "ns/net",
    "ns/pid",
    "ns/user",
    "ns/uts",
    "pagemap",
    "personality",
    "root/.",
    "smaps",
    "stack",
    "syscall",
];

/// Everything of this sandbox.
pub(super) fn of(sandbox: &Sandbox) -> Result<BTreeSet<Thing>> {
    let mut things = BTreeSet::new();
    below(&sandbox.state(), &mut things)?;
    for folder in super::build_folders(sandbox)? {
        below(&folder, &mut things)?;
    }
    for pid in processes(sandbox)? {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        things.extend(PROCESS.iter().map(|name| Thing::Process(folder.join(name))));
        // A process that ends meanwhile has nothing open.
        for entry in std::fs::read_dir(folder.join("fd")).into_iter().flatten().flatten() {
            let Ok(path) = std::fs::read_link(entry.path()) else { continue };
            if path.is_absolute() && !path.starts_with("/proc") && !path.starts_with("/sys") && path.is_file()
            {
                things.insert(Thing::File(path));
            }
        }
    }
    sockets(&mut things)?;
    let instance = std::fs::read_to_string(sandbox.state().join("instance"))?;
    cgroups(Path::new("/sys/fs/cgroup"), instance.trim(), false, 0, &mut things);
    Ok(things)
}

/// A folder and all below it; links are not followed.
fn below(path: &Path, things: &mut BTreeSet<Thing>) -> Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        // What a container or a request made, and took away.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("look at {}", path.display())),
    };
    let path = path.to_owned();
    if kind.is_dir() {
        // A folder that goes meanwhile is empty.
        for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
            below(&entry.path(), things)?;
        }
        things.insert(Thing::Folder(path));
    } else if kind.is_socket() {
        things.insert(Thing::Socket(path));
    } else if kind.is_fifo() {
        things.insert(Thing::Pipe(path));
    } else if !kind.is_symlink() {
        things.insert(Thing::File(path));
    }
    Ok(())
}

/// Daemon, proxy, and all that descend from them or carry the state folder in their command line: keepers, containers.
fn processes(sandbox: &Sandbox) -> Result<BTreeSet<i32>> {
    let state = sandbox.state();
    let state = state.as_os_str().as_encoded_bytes();
    let mut parents = Vec::new();
    let mut ours = BTreeSet::from([sandbox.daemon_pid()?.as_raw(), sandbox.proxy_pid()?.as_raw()]);
    for entry in std::fs::read_dir("/proc").context("read /proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.starts_with(b"gantry\0") && line.windows(state.len()).any(|part| part == state) {
            ours.insert(pid);
        }
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name before it may hold anything, parentheses too (proc(5)).
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<i32>().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    loop {
        let before = ours.len();
        for (pid, parent) in &parents {
            if ours.contains(parent) {
                ours.insert(*pid);
            }
        }
        if ours.len() == before {
            return Ok(ours);
        }
    }
}

/// Abstract sockets and listeners of this network namespace, which is this rung's own.
fn sockets(things: &mut BTreeSet<Thing>) -> Result<()> {
    let unix = std::fs::read_to_string("/proc/thread-self/net/unix").context("read /proc/net/unix")?;
    for name in unix.lines().skip(1).filter_map(|line| line.split_whitespace().nth(7)) {
        if let Some(name) = name.strip_prefix('@') {
            things.insert(Thing::Abstract(name.as_bytes().to_vec()));
        }
    }
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{table}"))?;
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            // 0A is TCP_LISTEN. Whatever the address, it is reached by loopback here.
            if let [_, local, _, "0A", ..] = words[..]
                && let Some((_, port)) = local.rsplit_once(':')
            {
                let port = u16::from_str_radix(port, 16).with_context(|| format!("port {port}"))?;
                let loopback = match table {
                    "tcp" => std::net::Ipv4Addr::LOCALHOST.into(),
                    _ => std::net::IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
                };
                things.insert(Thing::Listener(SocketAddr::new(loopback, port)));
            }
        }
    }
    Ok(())
}

fn cgroups(folder: &Path, instance: &str, ours: bool, depth: usize, things: &mut BTreeSet<Thing>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir && depth < 8 {
            let ours = ours || entry.file_name().to_string_lossy().contains(instance);
            cgroups(&path, instance, ours, depth + 1, things);
        } else if ours {
            things.insert(Thing::Cgroup(path));
        }
    }
}

/// What differs from run to run has a name in the list.
pub(super) struct Names {
    state: PathBuf,
    ports: Vec<(u16, String)>,
}

impl Names {
    pub(super) fn of(sandbox: &Sandbox) -> Result<Self> {
        let mut ports = Vec::new();
        for listener in ["console", "kubernetes", "registry"] {
            let address = sandbox.endpoint(listener)?;
            let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
            ports.push((port.with_context(|| format!("{address} has no port"))?, listener.to_owned()));
        }
        ports.push((sandbox.address("hello")?.port(), "service hello".to_owned()));
        let service = sandbox.get("/api/v1/namespaces/default/services/hello")?;
        let node_port =
            service["spec"]["ports"][0]["nodePort"].as_u64().and_then(|port| port.try_into().ok());
        ports.push((node_port.context("hello has no node port")?, "service hello, node port".to_owned()));
        Ok(Self { state: sandbox.state(), ports })
    }

    pub(super) fn shown(&self, thing: &Thing) -> String {
        match thing {
            Thing::Abstract(name) => format!("@{}", String::from_utf8_lossy(name)),
            Thing::Listener(address) => {
                let name = self.ports.iter().find(|(port, _)| *port == address.port());
                let family = if address.is_ipv4() { "tcp" } else { "tcp6" };
                name.map_or_else(
                    || format!("{family} {}", address.port()),
                    |(_, name)| format!("{family} {name}"),
                )
            }
            Thing::Folder(path)
            | Thing::File(path)
            | Thing::Pipe(path)
            | Thing::Socket(path)
            | Thing::Process(path)
            | Thing::Cgroup(path) => match path.strip_prefix(&self.state) {
                Ok(inner) if inner.as_os_str().is_empty() => "STATE".to_owned(),
                Ok(inner) => format!("STATE/{}", inner.display()),
                Err(_) => path.display().to_string(),
            },
        }
    }
}
