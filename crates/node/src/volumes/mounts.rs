//! Mounts below the state folder, and paths inside a volume that links cannot lead out of.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Mounts a tmpfs.
pub(super) fn tmpfs(dir: &Path, size_bytes: Option<i64>, mode: u32) -> io::Result<()> {
    let mut options = format!("mode={mode:o}");
    if let Some(size) = size_bytes {
        options.push_str(&format!(",size={size}"));
    }
    let options = CString::new(options).map_err(io::Error::other)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", dir, "tmpfs", flags, options.as_c_str()).map_err(io::Error::from)
}

/// Whether another file system begins at `dir`.
pub(super) fn is_mount_point(dir: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::symlink_metadata(path).map(|meta| meta.dev()).ok();
    match (device(dir), dir.parent().and_then(device)) {
        (Some(own), Some(above)) => own != above,
        _ => false,
    }
}

/// Unmounts everything at or below `dir`, innermost first.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    // Field 5 is the mount point, with octal escapes for blanks.
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| point.starts_with(dir))
        .collect();
    points.sort();
    for point in points.iter().rev() {
        unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Ok(())
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        match rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// The real path of `path` inside `volume`: links are followed inside the volume only, folders that are missing are
/// made. The container can change a folder into a link afterwards, but what is returned has no link left in it.
pub fn sub_path(volume: &Path, path: &str) -> io::Result<PathBuf> {
    let relative = Path::new(path);
    if relative.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "must not contain '..' nor begin with '/'"));
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let root: OwnedFd = rustix::fs::openat(CWD, volume, flags | OFlags::DIRECTORY, Mode::empty())?;
    let mut prefix = PathBuf::new();
    for part in relative.components() {
        let parent = openat2(&root, dot(&prefix), flags, Mode::empty(), resolve)?;
        prefix.push(part);
        match openat2(&root, &prefix, flags, Mode::empty(), resolve) {
            Ok(_) => {}
            Err(rustix::io::Errno::NOENT) => mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o755))?,
            Err(error) => return Err(error.into()),
        }
    }
    let found = openat2(&root, dot(&prefix), flags, Mode::empty(), resolve)?;
    if FileType::from_raw_mode(fstat(&found)?.st_mode) == FileType::Symlink {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is a link that leads nowhere"));
    }
    fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

fn dot(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn sub_paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().canonicalize().unwrap().join("v");
        fs::create_dir(&volume).unwrap();
        assert_eq!(sub_path(&volume, "a/b").unwrap(), volume.join("a/b"));
        assert!(volume.join("a/b").is_dir());
        symlink("/etc", volume.join("link")).unwrap();
        symlink("../..", volume.join("up")).unwrap();
        assert!(sub_path(&volume, "../x").is_err());
        assert!(sub_path(&volume, "/etc").is_err());
        for path in ["link/passwd", "up/etc"] {
            let inside = sub_path(&volume, path);
            assert!(inside.is_err() || inside.unwrap().starts_with(&volume), "{path}");
        }
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape("/a\\040b\\134"), "/a b\\");
    }
}
