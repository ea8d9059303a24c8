//! The root that a container sees: an image's tree, which is never written to, and what must be laid over it.
//!
//! Mount points that the image lacks (a scratch image has no `/proc`) are made in a skeleton, a second read-only
//! layer in the bundle. Folders that both have take their mode and owner from the image.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::bundle;
use crate::create::Error;
use crate::mounts::{self, Kind, Reach};
use crate::spec::{Access, Spec};

/// As the kernel's limit on links in one path (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What must be there to be mounted on.
struct Point {
    target: PathBuf,
    kind: Kind,
    /// Nothing of the image's may lead elsewhere: libcontainer makes devices and links by this path (CVE-2026-41579).
    own: bool,
    /// Whether what is below is made in the mount, by whoever mounts it.
    covers: bool,
}

/// Every point, parents first.
fn points(spec: &Spec) -> Result<Vec<Point>, Error> {
    let own = bundle::default_targets().map(|target| Point {
        target: target.to_owned(),
        kind: Kind::Folder,
        own: true,
        covers: true,
    });
    let mut points: Vec<Point> = own.collect();
    for mount in mounts::ordered(&spec.mounts) {
        let kind = mounts::look(mount).map_err(|source| Error::Source {
            path: mount
                .sub_path
                .as_ref()
                .map_or_else(|| mount.source.clone(), |below| mount.source.join(below)),
            source,
        })?;
        points.push(Point { target: mount.target.clone(), kind, own: false, covers: true });
    }
    if !spec.cwd.as_os_str().is_empty() {
        points.push(Point { target: spec.cwd.clone(), kind: Kind::Folder, own: false, covers: false });
    }
    Ok(points)
}

/// Makes what the child mounts later; tells whether there is a skeleton.
pub fn prepare(spec: &Spec) -> Result<bool, Error> {
    let tree = &spec.rootfs.tree;
    let skeleton = spec.bundle.join(bundle::SKELETON);
    let mut made = false;
    let mut covered: Vec<PathBuf> = Vec::new();
    for Point { target, kind, own, covers } in points(spec)? {
        if !target.is_absolute() || target.components().any(|part| part == Component::ParentDir) {
            return Err(Error::MountTarget(target));
        }
        let place =
            resolve(tree, &target).map_err(|source| Error::io("look up", tree.join(&target), source))?;
        if covers && place.as_os_str().is_empty() {
            return Err(Error::MountTarget(target));
        }
        if covered.iter().any(|above| place.starts_with(above)) {
            continue;
        }
        if own && Path::new("/").join(&place) != target {
            return Err(Error::MountPoint { target, found: Path::new("/").join(place) });
        }
        let inside = tree.join(&place);
        match fs::symlink_metadata(&inside) {
            Ok(metadata) if metadata.is_dir() == (kind == Kind::Folder) => {}
            Ok(_) => return Err(Error::MountPoint { target, found: Path::new("/").join(place) }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make(tree, &skeleton, &place, kind == Kind::Folder)
                    .map_err(|source| Error::io("make mount point", skeleton.join(&place), source))?;
                made = true;
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(Error::MountPoint { target, found: Path::new("/").join(place) });
            }
            Err(source) => return Err(Error::io("look up", inside, source)),
        }
        if covers {
            covered.push(place);
        }
    }
    let overlay = made || spec.rootfs.access == Access::Overlay;
    let mut dirs = Vec::new();
    if overlay {
        dirs.push(bundle::ROOTFS);
    }
    if spec.rootfs.access == Access::Overlay {
        dirs.extend(["upper", "work"]);
    }
    for name in dirs {
        let dir = spec.bundle.join(name);
        fs::create_dir(&dir).map_err(|source| Error::io("make folder", dir, source))?;
    }
    if spec.rootfs.access == Access::Overlay {
        let upper = spec.bundle.join("upper");
        like(tree, &upper).map_err(|source| Error::io("take the mode of", tree, source))?;
        // What is written there is not mapped: overlayfs makes folders of its own as the machine's root.
        let owner = fs::symlink_metadata(&upper).map_err(|source| Error::io("look at", &upper, source))?;
        let (uid, gid) = (spec.users.on_host(owner.uid()), spec.users.on_host(owner.gid()));
        chown(&upper, Some(uid), Some(gid))
            .map_err(|source| Error::io("set the owner of", &upper, source))?;
    }
    Ok(made)
}

/// Where the keeper's child has hidden the cgroups: a file system of its own, in its own mount namespace, that every user
/// can pass.
pub const OWN_PLACE: &str = "/sys/fs/cgroup";

/// A layer whose files belong to the same ids of `users` as on disk, mounted where these users can go.
fn mapped(
    source: &Path,
    name: &str,
    users: BorrowedFd<'_>,
    attributes: MountAttrFlags,
) -> io::Result<PathBuf> {
    let tree = open_tree(
        rustix::fs::CWD,
        source,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?;
    mounts::set_attributes(tree.as_fd(), attributes, Reach::Mount)?;
    mounts::map(tree.as_fd(), users, Reach::Mount)?;
    let place = Path::new(OWN_PLACE).join(name);
    fs::create_dir(&place)?;
    move_mount(tree.as_fd(), "", rustix::fs::CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(place)
}

/// Mounts the root, in the caller's private mount namespace, and tells where. With `users` of its own, it is where they
/// can go: what is the machine's root's is closed to them.
pub fn mount(spec: &Spec, skeleton: bool, users: Option<BorrowedFd<'_>>) -> io::Result<PathBuf> {
    let skeleton = skeleton.then(|| spec.bundle.join(bundle::SKELETON));
    let Some(users) = users else {
        return mount_layers(spec, skeleton.as_deref(), &spec.rootfs.tree, &spec.bundle.join(bundle::ROOTFS));
    };
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let tree = mapped(&spec.rootfs.tree, "tree", users, attributes)?;
    let skeleton = match skeleton {
        Some(skeleton) => Some(mapped(&skeleton, "skeleton", users, attributes)?),
        None => None,
    };
    let root = Path::new(OWN_PLACE).join("root");
    fs::create_dir(&root)?;
    mount_layers(spec, skeleton.as_deref(), &tree, &root)
}

fn mount_layers(spec: &Spec, skeleton: Option<&Path>, tree: &Path, root: &Path) -> io::Result<PathBuf> {
    if skeleton.is_none() && spec.rootfs.access == Access::ReadOnly {
        return Ok(tree.to_owned());
    }
    // The kernel takes strings of 255 bytes at most, and two lower folders of a deep state folder are longer: they are
    // named by descriptors, which must stay open until the mount is made.
    let mut opened = Vec::new();
    let mut lower = String::new();
    if let Some(skeleton) = skeleton {
        lower.push_str(&short(skeleton, &mut opened)?);
        lower.push(':');
    }
    lower.push_str(&short(tree, &mut opened)?);
    let options = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(options.as_fd(), "source", "overlay")?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
    if spec.rootfs.access == Access::Overlay {
        fsconfig_set_string(options.as_fd(), "lowerdir", lower.as_str())?;
        let upper = short(&spec.bundle.join("upper"), &mut opened)?;
        let work = short(&spec.bundle.join("work"), &mut opened)?;
        fsconfig_set_string(options.as_fd(), "upperdir", upper.as_str())?;
        fsconfig_set_string(options.as_fd(), "workdir", work.as_str())?;
        // What a container wrote never outlives it, so there is nothing to sync.
        fsconfig_set_flag(options.as_fd(), "volatile")?;
    } else {
        fsconfig_set_string(options.as_fd(), "lowerdir", lower.as_str())?;
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    if spec.privileged {
        attributes -= MountAttrFlags::MOUNT_ATTR_NODEV;
    }
    fsconfig_create(options.as_fd())?;
    let mounted = fsmount(options.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    move_mount(mounted.as_fd(), "", rustix::fs::CWD, root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(root.to_owned())
}

/// A folder's name by an open descriptor: short, and without the characters that overlayfs reads as its own.
fn short(path: &Path, opened: &mut Vec<OwnedFd>) -> io::Result<String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(path, flags, Mode::empty())?;
    let name = format!("/proc/self/fd/{}", folder.as_raw_fd());
    opened.push(folder);
    Ok(name)
}

/// Where `path` leads inside `root`, links followed as if `root` were `/`; what is missing is kept as it is.
/// The result is relative to `root`.
pub fn resolve(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut pending: Vec<OsString> = parts(path).rev().collect();
    let (mut resolved, mut links) = (PathBuf::new(), 0);
    while let Some(part) = pending.pop() {
        if part == ".." {
            resolved.pop();
            continue;
        }
        let next = resolved.join(&part);
        match fs::read_link(root.join(&next)) {
            Ok(to) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::from_raw_os_error(nix::libc::ELOOP));
                }
                if to.is_absolute() {
                    resolved = PathBuf::new();
                }
                pending.extend(parts(&to).rev());
            }
            Err(_) => resolved = next,
        }
    }
    Ok(resolved)
}

fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

/// Makes `place` below the skeleton, and the folders above it as the image has them.
fn make(tree: &Path, skeleton: &Path, place: &Path, is_dir: bool) -> io::Result<()> {
    let mut at = PathBuf::new();
    let last = place.components().count();
    make_dir(tree, skeleton)?;
    for (index, part) in place.components().enumerate() {
        at.push(part);
        let path = skeleton.join(&at);
        if index + 1 == last && !is_dir {
            fs::File::create(&path)?;
        } else {
            make_dir(&tree.join(&at), &path)?;
        }
    }
    Ok(())
}

fn make_dir(model: &Path, path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => like(model, path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Gives `path` the mode and owner of `model`, if there is such a folder; else 0755 and root.
fn like(model: &Path, path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(model) {
        Ok(metadata) if metadata.is_dir() => {
            chown(path, Some(metadata.uid()), Some(metadata.gid()))?;
            fs::set_permissions(path, metadata.permissions())
        }
        _ => fs::set_permissions(path, fs::Permissions::from_mode(0o755)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_inside_the_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("run/x")).unwrap();
        fs::create_dir(root.join("var")).unwrap();
        symlink("/run", root.join("var/run")).unwrap();
        symlink("../../../../run/x", root.join("up")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        assert_eq!(resolve(root, Path::new("/var/run/secrets/a")).unwrap(), Path::new("run/secrets/a"));
        assert_eq!(resolve(root, Path::new("/up/y")).unwrap(), Path::new("run/x/y"));
        assert_eq!(resolve(root, Path::new("/../etc")).unwrap(), Path::new("etc"));
        assert!(resolve(root, Path::new("/loop")).is_err());
    }
}
