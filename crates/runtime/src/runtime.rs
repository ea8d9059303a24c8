//! The daemon's side: makes containers, finds those of an earlier daemon again, removes everything.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::CWD;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::bundle::{self, Record};
use crate::capability::Set;
use crate::cgroup::Layout;
use crate::container::{Connection, Container};
use crate::create::Error;
use crate::mounts::{self, Reach};
use crate::protocol::{Reply, Request, VERSION};
use crate::rootfs;
use crate::spec::Spec;

/// A keeper that has not made its container by then is given up.
const CREATE_TIMEOUT: Duration = Duration::from_secs(30);
/// Containers that are ended at the same time.
const DELETIONS_MAX: usize = 32;
/// What a container gets that has none; as Docker.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where and as what the runtime works.
#[derive(Clone, Debug)]
pub struct Config {
    pub state_dir: PathBuf,
    /// The state folder's mark: 8 lower-case hexadecimal digits.
    pub instance: String,
    /// The binary whose hidden command `keeper` is [`crate::keeper_main`].
    pub exe: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0:?} is not an instance: 8 lower-case hexadecimal digits")]
    Instance(String),
    #[error("make cgroups for instance {instance}")]
    Cgroups { instance: String, source: io::Error },
    #[error("mount {path} read-only for the keepers")]
    Seal { path: PathBuf, source: io::Error },
    #[error("make {path}")]
    Index { path: PathBuf, source: io::Error },
}

impl OpenError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            OpenError::Cgroups { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run the daemon as root".into())
            }
            OpenError::Cgroups { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => Some(
                "mount /sys/fs/cgroup read-write for the daemon (in a container: run it privileged)".into(),
            ),
            OpenError::Seal { .. } => Some(
                "run the daemon as root on Linux 5.12 or newer (mount_setattr), with CAP_SYS_ADMIN".into(),
            ),
            _ => None,
        }
    }
}

/// All containers of one state folder. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    config: Config,
    layout: Layout,
    /// The binary through a read-only mount that is attached nowhere: a container that opens a keeper's or its own
    /// `/proc/…/exe` cannot write to the file (CVE-2019-5736).
    exe: OwnedFd,
}

impl Runtime {
    /// Makes the instance's cgroups. Safe to repeat.
    pub fn open(config: Config) -> Result<Runtime, OpenError> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if config.instance.len() != 8 || !config.instance.bytes().all(is_hex) {
            return Err(OpenError::Instance(config.instance));
        }
        let cgroups = |source| OpenError::Cgroups { instance: config.instance.clone(), source };
        let layout = Layout::detect().map_err(cgroups)?;
        layout.prepare(&config.instance).map_err(cgroups)?;
        let index = index(&config);
        durable::create_dir_all(&index).map_err(|source| OpenError::Index { path: index.clone(), source })?;
        let exe = seal(&config.exe).map_err(|source| OpenError::Seal { path: config.exe.clone(), source })?;
        Ok(Runtime { shared: Arc::new(Shared { config, layout, exe }) })
    }

    /// Moves a process that is to outlive the daemon, as keepers do, to a cgroup of this instance called `folder`.
    pub fn house(&self, folder: &str, pid: u32) -> io::Result<()> {
        self.shared.layout.house(&self.shared.config.instance, folder, pid)
    }

    /// Makes a container, up to the point where its program could be started. When it fails, nothing is left.
    pub async fn create(&self, mut spec: Spec) -> Result<Container, Error> {
        complete(&mut spec)?;
        if !is_below(&spec.bundle, &self.shared.config.state_dir) {
            return Err(Error::Bundle(spec.bundle));
        }
        let mut capabilities = Set::resolve(&spec.capabilities, spec.privileged)?;
        let cgroup = self.shared.layout.container(&self.shared.config.instance, &spec.id);
        if !spec.privileged && !cgroup.controls_devices() {
            // A node that was made could be opened.
            capabilities = capabilities.without("MKNOD");
        }
        let keepers = self.shared.layout.keepers_dirs(&self.shared.config.instance);
        let record = Record { version: VERSION, spec, cgroup, keepers, capabilities, skeleton: false };
        let index = self.shared.link(&record.spec.id);
        let record = blocking(move || lay_out(record, &index)).await?;
        let id = record.spec.id.clone();
        let made = self.spawn_and_make(&record).await;
        match made {
            Ok((pid, connection)) => {
                Ok(Container::new(self.shared.clone(), Arc::new(record), Some(pid), Some(connection)))
            }
            Err(error) => {
                let link = self.shared.link(&id);
                let removed = blocking(move || {
                    record
                        .cgroup
                        .remove()
                        .map_err(|source| Error::io("remove the cgroups of", &record.spec.bundle, source))?;
                    remove_files(&record.spec.bundle, &link)
                        .map_err(|source| Error::io("remove", &record.spec.bundle, source))
                })
                .await;
                if let Err(left) = removed {
                    tracing::warn!(error = %left, container = %id, "a container that could not be made left something behind");
                }
                Err(error)
            }
        }
    }

    async fn spawn_and_make(&self, record: &Record) -> Result<(i32, Connection), Error> {
        let id = || record.spec.id.clone();
        let (mut keeper, connection) = self
            .shared
            .spawn("make", &record.spec.bundle)
            .map_err(|source| Error::Spawn { id: id(), source })?;
        let reply = tokio::time::timeout(CREATE_TIMEOUT, connection.call(Request::Created)).await;
        let error = match reply {
            Ok(Ok(Reply::Created { pid })) => return Ok((pid, connection)),
            Ok(Ok(Reply::Failed { step, reason })) => Error::Refused { id: id(), step, reason },
            Ok(Ok(other)) => Error::Refused {
                id: id(),
                step: crate::protocol::Step::Request,
                reason: format!("unexpected answer {other:?}"),
            },
            Ok(Err(source)) => Error::KeeperGone { id: id(), source },
            Err(_) => Error::KeeperSilent(id()),
        };
        let _ = keeper.kill().await;
        Err(error)
    }

    /// Every container of this state folder, with a living keeper or a known end. What a crash left half-made is
    /// removed; what does not look like ours is left alone, and said.
    pub async fn reattach(&self) -> io::Result<Vec<Container>> {
        let dir = index(&self.shared.config);
        let (mut containers, mut newer) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&dir)? {
            let link = entry?.path();
            match self.look(&link) {
                Ok(Entry::Newer) => {
                    tracing::warn!(entry = %link.display(), "a newer release made this container: left as it is");
                    newer.extend(link.file_name().and_then(|name| name.to_str()).map(str::to_owned));
                }
                Ok(Entry::Container(record)) => {
                    let container = Container::new(self.shared.clone(), record, None, None);
                    if let Err(error) = container.repair().await {
                        // One that resists keeps none of the others waiting; its own requests say why.
                        tracing::warn!(%error, container = container.id(), "no keeper could take this container over");
                    }
                    containers.push(container);
                }
                Ok(Entry::HalfMade(bundle)) => {
                    tracing::warn!(bundle = %bundle.display(), "removing a container that was never made");
                    remove_files(&bundle, &link)?;
                }
                Err(error) => {
                    tracing::warn!(%error, entry = %link.display(), "this is no container of ours: left as it is");
                }
            }
        }
        let known = containers.iter().map(|container| container.id().to_owned());
        let kept: Vec<String> = known.chain(newer).collect();
        self.shared.layout.sweep(&self.shared.config.instance, &kept)?;
        Ok(containers)
    }

    /// What an entry of the index is. Nothing is removed by what a file merely says: a bundle is where its record was
    /// found, below the state folder, and its cgroups carry the instance's mark and its id.
    fn look(&self, link: &Path) -> io::Result<Entry> {
        let bundle = fs::read_link(link)?;
        let foreign =
            |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", bundle.display()));
        if !is_below(&bundle, &self.shared.config.state_dir) {
            return Err(foreign("outside of the state folder"));
        }
        let record = Record::read(&bundle);
        if let Err(error) = &record
            && error.kind() == io::ErrorKind::Unsupported
        {
            return Ok(Entry::Newer);
        }
        let Ok(record) = record else {
            return match bundle::holds_only_ours(&bundle)? {
                true => Ok(Entry::HalfMade(bundle)),
                false => Err(foreign("has no record, and files that no container has")),
            };
        };
        let id = &record.spec.id;
        if record.spec.bundle != bundle || link.file_name() != Some(id.as_ref()) {
            return Err(foreign("its record is another container's"));
        }
        if !record.cgroup.is_of(&self.shared.config.instance, id) {
            return Err(foreign("its record names cgroups that are not its own"));
        }
        Ok(Entry::Container(Arc::new(record)))
    }

    /// Ends and removes everything that carries this instance's mark. What resists keeps nothing else: it is said at
    /// the end.
    pub async fn destroy(&self) -> io::Result<()> {
        let mut deletions = tokio::task::JoinSet::new();
        let mut failed = Vec::new();
        for container in self.reattach().await? {
            if deletions.len() >= DELETIONS_MAX {
                failed.extend(deletions.join_next().await.and_then(failure));
            }
            deletions.spawn(async move { container.delete().await });
        }
        while let Some(deleted) = deletions.join_next().await {
            failed.extend(failure(deleted));
        }
        failed.extend(
            self.shared.layout.destroy(&self.shared.config.instance).err().map(|error| error.to_string()),
        );
        if !failed.is_empty() {
            return Err(io::Error::other(failed.join("; ")));
        }
        match fs::remove_dir(index(&self.shared.config)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// What stands in the index.
enum Entry {
    Container(Arc<Record>),
    HalfMade(PathBuf),
    /// A newer release made it: it runs on, and that release knows it.
    Newer,
}

fn failure(deleted: Result<Result<(), crate::Error>, tokio::task::JoinError>) -> Option<String> {
    let error = match deleted {
        Ok(Ok(())) => return None,
        Ok(Err(error)) => error,
        Err(error) => return Some(error.to_string()),
    };
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    Some(format!("{error}{}", cause.unwrap_or_default()))
}

/// Whether `path` is surely inside `dir`, by its name alone.
fn is_below(path: &Path, dir: &Path) -> bool {
    path.strip_prefix(dir).is_ok_and(|rest| {
        let mut parts = rest.components().peekable();
        parts.peek().is_some() && parts.all(|part| matches!(part, std::path::Component::Normal(_)))
    })
}

impl Shared {
    /// Starts a keeper with a connection to it as its descriptor 0.
    pub(crate) fn spawn(&self, verb: &str, bundle: &Path) -> io::Result<(tokio::process::Child, Connection)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        let program = PathBuf::from(format!("/proc/self/fd/{}", self.exe.as_raw_fd()));
        let child = tokio::process::Command::new(program)
            .arg0("gantry")
            .args(["keeper", verb])
            .arg(bundle)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok((child, Connection::new(ours, VERSION)?))
    }

    /// The container's entry in the index: a link to its bundle.
    pub(crate) fn link(&self, id: &str) -> PathBuf {
        index(&self.config).join(id)
    }
}

fn index(config: &Config) -> PathBuf {
    config.state_dir.join("run").join("containers")
}

/// See [`Shared::exe`].
fn seal(exe: &Path) -> io::Result<OwnedFd> {
    let tree = open_tree(CWD, exe, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    mounts::set_attributes(tree.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, Reach::Mount)?;
    Ok(tree)
}

/// Checks what a keeper could only refuse, and fills in what every program expects.
fn complete(spec: &mut Spec) -> Result<(), Error> {
    let is_id = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let id = &spec.id;
    if id.is_empty() || id.len() > 64 || id.starts_with('.') || !id.bytes().all(is_id) {
        return Err(Error::Id(id.clone()));
    }
    if spec.args.first().is_none_or(String::is_empty) {
        return Err(Error::NoArgs(id.clone()));
    }
    let nul = |what| Error::Nul { id: id.clone(), what };
    if spec.args.iter().any(|arg| arg.contains('\0')) {
        return Err(nul("an argument"));
    }
    if spec.env.iter().any(|(name, value)| name.contains('\0') || value.contains('\0')) {
        return Err(nul("an environment variable"));
    }
    if let Some(limit) = spec.rlimits.iter().find(|limit| crate::create::rlimit(&limit.name).is_none()) {
        return Err(Error::Rlimit(limit.name.clone()));
    }
    if !spec.env.iter().any(|(name, _)| name == "PATH") {
        spec.env.push(("PATH".into(), DEFAULT_PATH.into()));
    }
    // Else libcontainer would look it up with the C library, which loads code from the image to do so.
    if !spec.env.iter().any(|(name, value)| name == "HOME" && !value.is_empty()) {
        spec.env.retain(|(name, _)| name != "HOME");
        let home = home(&spec.rootfs.tree, spec.user.uid);
        spec.env.push(("HOME".into(), home));
    }
    Ok(())
}

/// The user's folder by the image's `/etc/passwd`, else `/`.
fn home(tree: &Path, uid: u32) -> String {
    /// No sane one is longer; an image may hold anything.
    const MAX_BYTES: u64 = 1 << 20;
    let path = rootfs::resolve(tree, Path::new("/etc/passwd")).map(|path| tree.join(path));
    let text = path.and_then(|path| {
        use io::Read;
        let mut text = String::new();
        if fs::symlink_metadata(&path)?.is_file() {
            fs::File::open(path)?.take(MAX_BYTES).read_to_string(&mut text)?;
        }
        Ok(text)
    });
    let text = text.unwrap_or_default();
    let of = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2)?.parse() == Ok(uid)).then(|| fields.get(5).copied().unwrap_or_default().to_owned())
    };
    text.lines().find_map(of).filter(|home| home.starts_with('/')).unwrap_or_else(|| "/".into())
}

/// Everything on disk, before the keeper starts.
fn lay_out(mut record: Record, link: &Path) -> Result<Record, Error> {
    let spec = &record.spec;
    let bundle = spec.bundle.clone();
    if link.symlink_metadata().is_ok() || bundle.join(bundle::RECORD).exists() {
        return Err(Error::Exists(spec.id.clone()));
    }
    let mut builder = fs::DirBuilder::new();
    // Not 0700: overlay's upper folder is below, and a container's own user must pass.
    builder.recursive(true).mode(0o711);
    builder.create(&bundle).map_err(|source| Error::io("make folder", &bundle, source))?;
    if let Some(dir) = spec.log.path.parent() {
        fs::create_dir_all(dir).map_err(|source| Error::io("make folder", dir, source))?;
    }
    std::os::unix::fs::symlink(&bundle, link).map_err(|source| Error::io("make link", link, source))?;
    let result = rootfs::prepare(spec).and_then(|skeleton| {
        record.skeleton = skeleton;
        record.write(&bundle).map_err(|source| Error::io("write", bundle.join(bundle::RECORD), source))
    });
    if let Err(error) = result {
        let _ = remove_files(&bundle, link);
        return Err(error);
    }
    Ok(record)
}

/// The bundle, then its entry in the index.
pub(crate) fn remove_files(bundle: &Path, link: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    };
    gone(durable::remove_dir_all(bundle))?;
    gone(fs::remove_file(link))
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Only a panic of `work` ends up here: the runtime is never shut down while it is awaited.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
