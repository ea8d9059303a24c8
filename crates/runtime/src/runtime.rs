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
use crate::protocol::{Reply, Request, VERSION};
use crate::rootfs;
use crate::spec::Spec;

/// A keeper that has not made its container by then is given up.
const CREATE_TIMEOUT: Duration = Duration::from_secs(30);
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
    exe: Option<OwnedFd>,
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
        let exe = seal(&config.exe)
            .inspect_err(|error| tracing::warn!(%error, exe = %config.exe.display(), "keepers run the binary unsealed"))
            .ok();
        Ok(Runtime { shared: Arc::new(Shared { config, layout, exe }) })
    }

    /// Makes a container, up to the point where its program could be started. When it fails, nothing is left.
    pub async fn create(&self, mut spec: Spec) -> Result<Container, Error> {
        complete(&mut spec)?;
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
    /// removed.
    pub async fn reattach(&self) -> io::Result<Vec<Container>> {
        let dir = index(&self.shared.config);
        let mut containers = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let link = entry?.path();
            let bundle = fs::read_link(&link)?;
            match Record::read(&bundle) {
                Ok(record) => {
                    let container = Container::new(self.shared.clone(), Arc::new(record), None, None);
                    container.repair().await?;
                    containers.push(container);
                }
                Err(error) => {
                    tracing::warn!(%error, bundle = %bundle.display(), "removing a container that was never made");
                    remove_files(&bundle, &link)?;
                }
            }
        }
        let kept: Vec<String> = containers.iter().map(|container| container.id().to_owned()).collect();
        self.shared.layout.sweep(&self.shared.config.instance, &kept)?;
        Ok(containers)
    }

    /// Ends and removes everything that carries this instance's mark.
    pub async fn destroy(&self) -> io::Result<()> {
        for container in self.reattach().await? {
            container.delete().await.map_err(io::Error::other)?;
        }
        self.shared.layout.destroy(&self.shared.config.instance)?;
        match fs::remove_dir(index(&self.shared.config)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
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
        let program = match &self.exe {
            Some(exe) => PathBuf::from(format!("/proc/self/fd/{}", exe.as_raw_fd())),
            None => self.config.exe.clone(),
        };
        let child = tokio::process::Command::new(program)
            .arg0("gantry")
            .args(["keeper", verb])
            .arg(bundle)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok((child, Connection::new(ours)?))
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
    rootfs::set_attributes(tree.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY)?;
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
    gone(fs::remove_dir_all(bundle))?;
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
