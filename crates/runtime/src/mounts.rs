//! A container's own mounts, by descriptor: what is mounted, and on what, is resolved once.
//!
//! Something inside a container can change a path of a volume, or of a folder that several mount, at any moment
//! (CVE-2021-25741, CVE-2024-45310). So a source is followed inside its volume only (openat2(2), `RESOLVE_IN_ROOT`), and
//! what was found is cloned to a mount that is attached nowhere ([`detach`], in the keeper's child, which still sees
//! the machine). The container's first process moves it, inside its own root, onto a target that is again a
//! descriptor ([`Detached::attach`]). Neither passes through libcontainer, which opens both by path.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Component, Path, PathBuf};

use nix::libc;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::spec::{Mount, MountKind};

/// What openat2(2) asks its caller to do when a path's folders move while it is resolved: an attacker can make it so
/// again and again.
const RESOLVE_ATTEMPTS: u32 = 64;
/// Mode of a folder that is made as a mount point, and of a file.
const POINT_MODE: (u32, u32) = (0o755, 0o644);
/// The only files of procfs that something may be mounted on: what lxcfs shows instead of the machine's.
const PROC_POINTS: [&str; 9] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/net/dev",
];

/// A mount that is attached nowhere yet; the descriptor is inherited by the container's first process.
#[derive(Clone, Debug)]
pub struct Detached {
    tree: RawFd,
    target: PathBuf,
    is_dir: bool,
    is_proc: bool,
}

/// What a mount's source is: what its mount point must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
}

/// Looks at a mount's source, and makes its `sub_path`. What the answer is taken for may have changed when the mount
/// is made: then that fails.
pub fn look(mount: &Mount) -> io::Result<Kind> {
    if mount.kind != MountKind::Bind {
        return Ok(Kind::Folder);
    }
    kind(&source(mount)?)
}

/// Every mount of the spec, shallow targets first, so that one does not hide another.
pub fn ordered(mounts: &[Mount]) -> Vec<&Mount> {
    let mut ordered: Vec<&Mount> = mounts.iter().collect();
    ordered.sort_by_key(|mount| mount.target.components().count());
    ordered
}

/// Clones what is to be mounted, in the caller's mount namespace; in the order in which it must be attached.
/// With `users` of its own, files belong inside to the same ids as on disk.
pub fn detach(mounts: &[Mount], users: Option<BorrowedFd<'_>>) -> Result<Vec<Detached>, String> {
    let detach = |mount: &&Mount| {
        let tree = match mount.kind {
            MountKind::Bind => bind(mount, users),
            MountKind::Tmpfs { size_bytes, mode } => {
                tmpfs(size_bytes, mode, mount.read_only, users).map(|tree| (tree, Kind::Folder))
            }
        };
        let (tree, kind) = tree.map_err(|error| format!("mount {}: {error}", named(mount)))?;
        let is_proc = on_proc(&tree);
        let detached = Detached {
            tree: tree.as_raw_fd(),
            target: mount.target.clone(),
            is_dir: kind == Kind::Folder,
            is_proc,
        };
        // The container's first process, a descendant, inherits it, and execve closes it.
        std::mem::forget(tree);
        Ok(detached)
    };
    ordered(mounts).iter().map(detach).collect()
}

fn named(mount: &Mount) -> String {
    match (mount.kind, &mount.sub_path) {
        (MountKind::Tmpfs { .. }, _) => "a tmpfs".to_owned(),
        (_, Some(below)) => format!("{below:?} of {}", mount.source.display()),
        (_, None) => mount.source.display().to_string(),
    }
}

fn bind(mount: &Mount, users: Option<BorrowedFd<'_>>) -> io::Result<(OwnedFd, Kind)> {
    let source = source(mount)?;
    let kind = kind(&source)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&source, "", flags)?;
    let mut attributes = MountAttrFlags::empty();
    if mount.read_only {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    if mount.inert {
        attributes |= MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    }
    set_attributes(tree.as_fd(), attributes, Reach::Tree)?;
    users.map_or(Ok(()), |users| map(tree.as_fd(), users, Reach::Tree))?;
    Ok((tree, kind))
}

fn tmpfs(size_bytes: u64, mode: u32, read_only: bool, users: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let options = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(options.as_fd(), "source", "tmpfs")?;
    fsconfig_set_string(options.as_fd(), "mode", format!("{mode:o}"))?;
    if size_bytes > 0 {
        fsconfig_set_string(options.as_fd(), "size", size_bytes.to_string())?;
    }
    fsconfig_create(options.as_fd())?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    if read_only {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let tree = fsmount(options.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    users.map_or(Ok(()), |users| map(tree.as_fd(), users, Reach::Mount))?;
    Ok(tree)
}

/// The source's descriptor. The path of the volume itself is the machine's (a hostPath may be a link, as kubelet has
/// it); what is below it is the containers'.
fn source(mount: &Mount) -> io::Result<OwnedFd> {
    let volume = openat(CWD, &mount.source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let Some(below) = &mount.sub_path else { return Ok(volume) };
    if below.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "must not contain '..' nor begin with '/'"));
    }
    let mode = fstat(&volume)?.st_mode & 0o7777;
    descend(&volume, below, Make { kind: Kind::Folder, modes: (mode, mode) })
}

/// What [`descend`] makes when it is missing.
#[derive(Clone, Copy)]
struct Make {
    kind: Kind,
    /// Of folders, of a file.
    modes: (u32, u32),
}

/// What `path` is inside `root`: links are followed as if `root` were `/`, none of the kernel's own is (`/proc/self/fd`),
/// and folders that are missing are made.
fn descend(root: &OwnedFd, path: &Path, make: Make) -> io::Result<OwnedFd> {
    if let Some(found) = inside(root, path)? {
        return Ok(found);
    }
    let mut parts = path.components().filter(|part| matches!(part, Component::Normal(_))).peekable();
    let mut prefix = PathBuf::new();
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    while let Some(part) = parts.next() {
        let parent = inside(root, &prefix)?.ok_or_else(missing)?;
        prefix.push(part);
        if inside(root, &prefix)?.is_none() {
            let kind = if parts.peek().is_none() { make.kind } else { Kind::Folder };
            create(&parent, part.as_os_str(), kind, make.modes)?;
        }
    }
    inside(root, path)?
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "a link that leads nowhere is in the way"))
}

/// `None`: it is not there.
fn inside(root: &OwnedFd, path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..RESOLVE_ATTEMPTS {
        match openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Ok(found) => return Ok(Some(found)),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::AGAIN.into())
}

/// In `parent` itself, whatever its path may have become; the mode is not the umask's to change.
fn create(parent: &OwnedFd, name: &OsStr, kind: Kind, modes: (u32, u32)) -> io::Result<()> {
    let made = match kind {
        Kind::Folder => rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)).and_then(|()| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(parent, name, flags, Mode::empty()).map(|made| (made, modes.0))
        }),
        Kind::File => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(parent, name, flags, Mode::from_raw_mode(0o600)).map(|made| (made, modes.1))
        }
    };
    match made {
        Ok((made, mode)) => Ok(rustix::fs::fchmod(&made, Mode::from_raw_mode(mode))?),
        // Somebody else was faster.
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn kind(file: &OwnedFd) -> io::Result<Kind> {
    let is_dir = FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::Directory;
    Ok(if is_dir { Kind::Folder } else { Kind::File })
}

fn on_proc(file: &OwnedFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|found| found.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

impl Detached {
    /// Moves it to its place. For the container's first process, once `/` is the container's root.
    pub fn attach(&self) -> Result<(), String> {
        self.move_to_target().map_err(|error| format!("mount on {}: {error}", self.target.display()))
    }

    fn move_to_target(&self) -> io::Result<()> {
        let root = root()?;
        let kind_of_target = if self.is_dir { Kind::Folder } else { Kind::File };
        let target = descend(&root, &self.target, Make { kind: kind_of_target, modes: POINT_MODE })?;
        if kind(&target)? != kind_of_target {
            let found = if self.is_dir {
                "the container has a file there"
            } else {
                "the container has a folder there"
            };
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, found));
        }
        // Whoever mounts over procfs decides what the next writer to it writes to (CVE-2019-19921, CVE-2025-52881).
        if on_proc(&target)
            && !self.is_proc
            && !PROC_POINTS.iter().any(|known| self.target == Path::new(known))
        {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "nothing is mounted inside /proc"));
        }
        // SAFETY: inherited for this, open until execve.
        let tree = unsafe { BorrowedFd::borrow_raw(self.tree) };
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(tree, "", &target, "", flags)?)
    }
}

fn root() -> io::Result<OwnedFd> {
    Ok(openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes the working folder current, inside the container's root: not where a link of the kernel's own leads
/// (CVE-2024-21626).
pub fn enter(cwd: &Path) -> io::Result<()> {
    let root = root()?;
    let dir = descend(&root, cwd, Make { kind: Kind::Folder, modes: POINT_MODE })?;
    rustix::process::fchdir(&dir)?;
    // The kernel says "(unreachable)" of a folder outside of the root.
    let current = rustix::process::getcwd(Vec::new())?;
    if current.as_bytes().first() == Some(&b'/') { Ok(()) } else { Err(Errno::NOENT.into()) }
}

/// How far [`set_attributes`] reaches.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The mount alone; its propagation stays as it is.
    Mount,
    /// With all that is mounted below it; none of it hears of the machine's mounts, or tells it.
    Tree,
}

/// mount_setattr(2), which rustix does not have.
pub fn set_attributes(mount: BorrowedFd<'_>, attributes: MountAttrFlags, reach: Reach) -> io::Result<()> {
    let propagation = if reach == Reach::Tree { libc::MS_PRIVATE } else { 0 };
    let attributes =
        libc::mount_attr { attr_set: u64::from(attributes.bits()), attr_clr: 0, propagation, userns_fd: 0 };
    change(mount, &attributes, reach)
}

/// Has a mount that is attached nowhere show what belongs to an id on disk as belonging to that id of `users`.
pub fn map(mount: BorrowedFd<'_>, users: BorrowedFd<'_>, reach: Reach) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users.as_raw_fd() as u64,
    };
    change(mount, &attributes, reach).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel cannot map users of its file system (tmpfs: from Linux 6.3 on); leave out hostUsers: false",
        ),
        _ => error,
    })
}

fn change(mount: BorrowedFd<'_>, attributes: &libc::mount_attr, reach: Reach) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if reach == Reach::Tree { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty path with AT_EMPTY_PATH means the descriptor; the struct lives across the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn mount(volume: &Path, below: &str) -> Mount {
        Mount {
            source: volume.to_owned(),
            sub_path: Some(below.into()),
            target: "/data".into(),
            read_only: false,
            inert: true,
            kind: MountKind::Bind,
        }
    }

    fn real(file: &OwnedFd) -> PathBuf {
        fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
    }

    #[test]
    fn a_sub_path_stays_in_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().canonicalize().unwrap().join("v");
        fs::create_dir(&volume).unwrap();
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o2777)).unwrap();
        assert_eq!(real(&source(&mount(&volume, "a/b")).unwrap()), volume.join("a/b"));
        let made = fs::metadata(volume.join("a/b")).unwrap().permissions().mode();
        assert_eq!(made & 0o7777, 0o2777, "as the volume itself: who may write there may write here");
        symlink("/etc", volume.join("absolute")).unwrap();
        symlink("../..", volume.join("up")).unwrap();
        symlink("/proc/self/root", volume.join("magic")).unwrap();
        symlink("nowhere", volume.join("dangling")).unwrap();
        fs::write(volume.join("file"), "").unwrap();
        assert_eq!(look(&mount(&volume, "file")).unwrap(), Kind::File);
        assert_eq!(look(&mount(&volume, "a")).unwrap(), Kind::Folder);
        for outside in ["../x", "/etc", "a/../../x", "dangling", "file/x"] {
            assert!(source(&mount(&volume, outside)).is_err(), "{outside}");
        }
        for link in ["absolute", "up", "up/etc", "magic", "magic/etc/passwd"] {
            let found = source(&mount(&volume, link)).map(|found| real(&found));
            assert!(
                found.as_ref().is_err() || found.as_ref().is_ok_and(|at| at.starts_with(&volume)),
                "{link}: {found:?}"
            );
        }
    }

    #[test]
    fn a_folder_that_is_swapped_for_a_link_never_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().canonicalize().unwrap().join("v");
        fs::create_dir_all(volume.join("sub")).unwrap();
        symlink("/", volume.join("link")).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let (one, other) = (volume.join("sub"), volume.join("link"));
                    rustix::fs::renameat_with(CWD, &one, CWD, &other, rustix::fs::RenameFlags::EXCHANGE)
                        .unwrap();
                }
            });
            for _ in 0..20_000 {
                if let Ok(found) = source(&mount(&volume, "sub")) {
                    let at = real(&found);
                    assert!(at.starts_with(&volume), "{}", at.display());
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
