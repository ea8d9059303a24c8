//! A container of a Pod in the runtime's terms.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, SeccompProfile};
use runtime::{
    Access, Capabilities, Log, Mount, MountKind, Namespace, Resources, Rlimit, Rootfs, Seccomp, Spec, Users,
};
use sha2::{Digest as _, Sha256};

use crate::ports::{Image, Sandbox};
use crate::{admission, env, limits, user, volumes};

/// A container's log file is rotated at this size.
pub const LOG_BYTES_MAX: u64 = 10 << 20;
/// As many files are kept, the one written to included.
pub const LOG_FILES_MAX: u32 = 5;
/// How many processes a container without a limit of its own may have.
const PIDS_MAX: u64 = 32_768;
/// How many files a process of a container may have open, as containerd gives it: enough for a program that knows of no
/// limit and walks all descriptors, and one that needs more (every Go program) raises its own. The daemon's own limit is
/// no measure. A lower limit of the machine stays.
const OPEN_FILES_SOFT: u64 = 1024;
const OPEN_FILES_HARD: u64 = 524_288;

/// Keys of a container's annotations: by these a node finds its own after a restart.
pub mod annotation {
    /// The Pod's UID.
    pub const UID: &str = "node.gantry.dev/pod-uid";
    /// The Pod's namespace.
    pub const NAMESPACE: &str = "node.gantry.dev/pod-namespace";
    /// The Pod's name.
    pub const POD: &str = "node.gantry.dev/pod-name";
    /// The container's name.
    pub const CONTAINER: &str = "node.gantry.dev/container";
    /// The run's number.
    pub const ATTEMPT: &str = "node.gantry.dev/attempt";
    /// `true` if the end of the first client's input is the end of stdin.
    pub const STDIN_ONCE: &str = "node.gantry.dev/stdin-once";
    /// The image with its digest.
    pub const IMAGE: &str = "node.gantry.dev/image";
    /// The Pod's grace period, for the day that its object is not there any more.
    pub const GRACE_S: &str = "node.gantry.dev/grace-seconds";
    /// The number of the signal that asks the program to end.
    pub const STOP_SIGNAL: &str = "node.gantry.dev/stop-signal";
}

/// Why a container cannot be described; it waits as `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its environment.
    #[error(transparent)]
    Env(#[from] env::Error),
    /// Its user.
    #[error(transparent)]
    User(#[from] user::Error),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] volumes::Error),
    /// A mount of a volume that the Pod does not have.
    #[error("volume mount {0} names no volume of the Pod")]
    NoVolume(String),
    /// A seccomp profile from a file.
    #[error("seccompProfile type {0} is not supported here; RuntimeDefault and Unconfined are")]
    Seccomp(String),
    /// Users of its own, on the host's network.
    #[error("hostUsers: false needs a network of the Pod's own; leave out hostNetwork: true")]
    HostUsers,
    /// Something that kubelet too would reject.
    #[error(transparent)]
    Rejected(#[from] admission::Rejection),
    /// Something that this node does not do.
    #[error(transparent)]
    Unsupported(#[from] admission::Unsupported),
    /// Nothing to run.
    #[error("no command specified: neither the container nor image {0} has one")]
    NoCommand(String),
    /// A signal that does not exist.
    #[error("unknown stop signal {0}")]
    Signal(String),
}

/// What goes into a container.
pub struct Input<'a> {
    /// Its Pod.
    pub pod: &'a Pod,
    /// Its spec.
    pub container: &'a Container,
    /// Which run.
    pub attempt: u32,
    /// Its image.
    pub image: &'a Image,
    /// The Pod's network.
    pub sandbox: &'a Sandbox,
    /// ConfigMaps, Secrets, Services, node facts.
    pub sources: &'a env::Sources,
    /// `<state>/pods/<uid>`.
    pub pod_dir: &'a Path,
    /// The container's folder of logs.
    pub log_dir: &'a Path,
    /// The machine's memory.
    pub memory_bytes: u64,
}

/// The id of a run: the same for the same run, so that nothing is ever made twice.
pub fn id(uid: &str, container: &str, attempt: u32) -> String {
    let digest = Sha256::digest(format!("{uid}/{container}/{attempt}"));
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Where the program may leave its last words.
pub fn termination_file(pod_dir: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_dir.join("containers").join(format!("{container}.{attempt}.termination"))
}

/// The log file of a run.
pub fn log_file(log_dir: &Path, attempt: u32) -> PathBuf {
    log_dir.join(format!("{attempt}.log"))
}

/// The container as the runtime is to make it.
pub fn of(input: &Input<'_>) -> Result<Spec, Error> {
    let Input { pod, container, image, .. } = input;
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    admission::admit(pod)?;
    admission::supported(spec, container)?;
    let users = match (spec.host_users, input.sandbox.first_id) {
        (Some(false), Some(first)) => Users::Own { first },
        (Some(false), None) => return Err(Error::HostUsers),
        _ => Users::Host,
    };
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let config = &image.config.config;
    let own = container.security_context.as_ref();
    let of_pod = spec.security_context.as_ref();
    let label = format!(
        "{}_{}({uid})",
        pod.metadata.name.as_deref().unwrap_or_default(),
        pod.metadata.namespace.as_deref().unwrap_or_default()
    );
    let names = user::Names::read(&image.tree);
    let user = user::resolve(&config.user, &names, of_pod, own, &label, &container.name)?;
    let resolved = env::resolve(pod, container, input.sources)?;
    let args = command(container, image, &resolved)?;
    let hostname = hostname(pod, spec);
    let env = environment(config, resolved, &hostname);
    let privileged = own.and_then(|own| own.privileged) == Some(true);
    let read_only = own.and_then(|own| own.read_only_root_filesystem) == Some(true);
    let id = id(&uid, &container.name, input.attempt);
    let cwd = container.working_dir.clone().filter(|dir| !dir.is_empty());
    Ok(Spec {
        bundle: input.pod_dir.join("containers").join(&id),
        rootfs: Rootfs {
            tree: image.tree.clone(),
            access: if read_only { Access::ReadOnly } else { Access::Overlay },
        },
        args,
        mounts: mounts(input, spec, &env)?,
        env,
        cwd: PathBuf::from(cwd.unwrap_or_else(|| config.working_dir.clone())),
        user,
        hostname: if spec.host_network == Some(true) { String::new() } else { hostname },
        resources: resources(container),
        capabilities: capabilities(container),
        no_new_privileges: own.and_then(|own| own.allow_privilege_escalation) == Some(false) && !privileged,
        seccomp: seccomp(
            own.and_then(|own| own.seccomp_profile.as_ref()),
            of_pod.and_then(|p| p.seccomp_profile.as_ref()),
        )?,
        privileged,
        netns: match &input.sandbox.netns {
            Some(path) => Namespace::Path(path.clone()),
            None => Namespace::Host,
        },
        users,
        stdin: container.stdin == Some(true),
        tty: container.tty == Some(true),
        log: Log {
            path: log_file(input.log_dir, input.attempt),
            max_bytes: LOG_BYTES_MAX,
            max_files: LOG_FILES_MAX,
        },
        oom_score_adj: Some(limits::oom_score_adj(pod, container, input.memory_bytes)),
        rlimits: vec![Rlimit {
            name: "RLIMIT_NOFILE".to_owned(),
            soft: OPEN_FILES_SOFT,
            hard: OPEN_FILES_HARD,
        }],
        sysctls: admission::sysctls(spec),
        annotations: annotations(pod, spec, container, input.attempt, image)?,
        id,
    })
}

fn annotations(
    pod: &Pod,
    spec: &PodSpec,
    container: &Container,
    attempt: u32,
    image: &Image,
) -> Result<BTreeMap<String, String>, Error> {
    let meta = &pod.metadata;
    let grace = spec.termination_grace_period_seconds.unwrap_or(30);
    Ok([
        (annotation::UID, meta.uid.clone().unwrap_or_default()),
        (annotation::NAMESPACE, meta.namespace.clone().unwrap_or_default()),
        (annotation::POD, meta.name.clone().unwrap_or_default()),
        (annotation::CONTAINER, container.name.clone()),
        (annotation::ATTEMPT, attempt.to_string()),
        (annotation::STDIN_ONCE, (container.stdin_once == Some(true)).to_string()),
        (annotation::IMAGE, image.id.clone()),
        (annotation::GRACE_S, grace.to_string()),
        (annotation::STOP_SIGNAL, stop_signal(container, &image.config.config.stop_signal)?.to_string()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect())
}

/// What the Pod's containers take for their host's name.
pub fn hostname(pod: &Pod, spec: &PodSpec) -> String {
    let name =
        spec.hostname_override.clone().or_else(|| spec.hostname.clone()).filter(|name| !name.is_empty());
    let mut name = name.unwrap_or_else(|| pod.metadata.name.clone().unwrap_or_default());
    // The kernel's limit, as kubelet applies it.
    name.truncate(63);
    name.trim_end_matches(['-', '.']).to_owned()
}

fn command(container: &Container, image: &Image, env: &[(String, String)]) -> Result<Vec<String>, Error> {
    let lookup = |name: &str| env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let expand = |list: &[String]| list.iter().map(|text| env::expand(text, lookup)).collect::<Vec<_>>();
    let config = &image.config.config;
    let own = container.command.as_deref().filter(|list| !list.is_empty());
    let own_args = container.args.as_deref().filter(|list| !list.is_empty());
    let mut args = own.map_or_else(|| config.entrypoint.clone(), expand);
    match (own, own_args) {
        (_, Some(list)) => args.extend(expand(list)),
        (None, None) => args.extend(config.cmd.iter().cloned()),
        // A command of one's own makes the image's arguments meaningless.
        (Some(_), None) => {}
    }
    if args.is_empty() {
        return Err(Error::NoCommand(image.id.clone()));
    }
    Ok(args)
}

fn environment(
    config: &oci::config::Execution,
    resolved: Vec<(String, String)>,
    hostname: &str,
) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: String| match env.iter_mut().find(|(key, _)| key == name) {
        Some(entry) => entry.1 = value,
        None => env.push((name.to_owned(), value)),
    };
    set("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    set("HOSTNAME", hostname.to_owned());
    for entry in &config.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        set(name, value.to_owned());
    }
    for (name, value) in resolved {
        set(&name, value);
    }
    env
}

fn resources(container: &Container) -> Resources {
    let limits = limits::of(container.resources.as_ref());
    let whole = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
    Resources {
        cpu_request_milli: whole(limits.cpu_request_milli),
        cpu_limit_milli: whole(limits.cpu_limit_milli),
        memory_limit_bytes: whole(limits.memory_limit_bytes),
        pids_limit: Some(PIDS_MAX),
    }
}

fn capabilities(container: &Container) -> Capabilities {
    let asked =
        container.security_context.as_ref().and_then(|own| own.capabilities.clone()).unwrap_or_default();
    Capabilities { add: asked.add.unwrap_or_default(), drop: asked.drop.unwrap_or_default() }
}

fn seccomp(own: Option<&SeccompProfile>, of_pod: Option<&SeccompProfile>) -> Result<Seccomp, Error> {
    match own.or(of_pod).map(|profile| profile.type_.as_str()) {
        None | Some("RuntimeDefault") => Ok(Seccomp::RuntimeDefault),
        Some("Unconfined") => Ok(Seccomp::Unconfined),
        Some(other) => Err(Error::Seccomp(other.to_owned())),
    }
}

/// A file or folder of ours: whatever is put there, it gives nobody anything on the host.
fn bind(source: PathBuf, target: &str, read_only: bool) -> Mount {
    let target = PathBuf::from(target);
    Mount { source, sub_path: None, target, read_only, inert: true, kind: MountKind::Bind }
}

fn mounts(input: &Input<'_>, spec: &PodSpec, env: &[(String, String)]) -> Result<Vec<Mount>, Error> {
    let mut mounts = Vec::new();
    let wanted = |target: &str| {
        let mut list = input.container.volume_mounts.iter().flatten();
        !list.any(|mount| mount.mount_path.trim_end_matches('/') == target)
    };
    for (file, target) in
        [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")]
    {
        if wanted(target) {
            mounts.push(bind(input.pod_dir.join("etc").join(file), target, false));
        }
    }
    let termination = input.container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    if !termination.is_empty() {
        let file = termination_file(input.pod_dir, &input.container.name, input.attempt);
        mounts.push(bind(file, termination, false));
    }
    for mount in input.container.volume_mounts.iter().flatten() {
        let volume = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name);
        let volume = volume.ok_or_else(|| Error::NoVolume(mount.name.clone()))?;
        let root = volumes::path(input.pod_dir, volume);
        let below = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) if !path.is_empty() => Some(path.clone()),
            (_, Some(text)) if !text.is_empty() => {
                let lookup =
                    |name: &str| env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
                Some(env::expand(text, lookup))
            }
            _ => None,
        };
        let below = match below {
            None => None,
            Some(path) => Some(volumes::sub_path(&path).map_err(|source| volumes::Error::SubPath {
                volume: volume.name.clone(),
                path,
                source,
            })?),
        };
        // What the API wrote is not the container's to change.
        let from_api = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.downward_api.is_some()
            || volume.projected.is_some();
        let read_only = from_api || mount.read_only == Some(true);
        mounts.push(Mount {
            sub_path: below,
            // The host's own files mean what they mean on the host.
            inert: volume.host_path.is_none(),
            ..bind(root, &mount.mount_path, read_only)
        });
    }
    Ok(mounts)
}

/// The signal that asks the program to end: the container's, else the image's, else SIGTERM.
pub fn stop_signal(container: &Container, image: &str) -> Result<i32, Error> {
    let own = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_deref());
    let name = own.filter(|name| !name.is_empty()).unwrap_or(image);
    if name.is_empty() {
        return Ok(15);
    }
    signal(name).ok_or_else(|| Error::Signal(name.to_owned()))
}

/// The number of a signal by its number or name, with or without `SIG`. x86-64 and arm64 agree on these.
fn signal(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = name.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse::<i32>().ok()? };
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('-')?.parse::<i32>().ok()? };
        return (0..=30).contains(&offset).then_some(64 - offset);
    }
    const NAMES: [(&str, i32); 31] = [
        ("ABRT", 6),
        ("ALRM", 14),
        ("BUS", 7),
        ("CHLD", 17),
        ("CONT", 18),
        ("FPE", 8),
        ("HUP", 1),
        ("ILL", 4),
        ("INT", 2),
        ("IO", 29),
        ("KILL", 9),
        ("PIPE", 13),
        ("POLL", 29),
        ("PROF", 27),
        ("PWR", 30),
        ("QUIT", 3),
        ("SEGV", 11),
        ("STKFLT", 16),
        ("STOP", 19),
        ("SYS", 31),
        ("TERM", 15),
        ("TRAP", 5),
        ("TSTP", 20),
        ("TTIN", 21),
        ("TTOU", 22),
        ("URG", 23),
        ("USR1", 10),
        ("USR2", 12),
        ("VTALRM", 26),
        ("WINCH", 28),
        ("XCPU", 24),
    ];
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
