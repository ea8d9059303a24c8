//! Removing a folder that somebody else filled.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::RenameFlags;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, renameat_with, unlinkat};
use rustix::io::Errno;

/// Folders that are open at a time. What lies deeper is lifted to the top and removed from there.
const OPEN_MAX: usize = 32;
const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes a folder with everything in it; a link is removed, not followed. Unlike [`std::fs::remove_dir_all`] it needs
/// neither stack nor descriptors for each level: a container can make a folder of any depth. What goes meanwhile is no
/// error.
pub fn remove_dir_all(path: &Path) -> io::Result<()> {
    let top = match openat(CWD, path, OPEN, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOTDIR | Errno::LOOP) if path.is_symlink() => return std::fs::remove_file(path),
        Err(error) => return Err(error.into()),
    };
    let mut lifted = 0;
    // A listing may leave out names while others go, and what was lifted comes after it: another look finds them.
    while empty(&top, &mut lifted)? {}
    std::fs::remove_dir(path)
}

/// A folder that is being emptied.
struct Level {
    folder: OwnedFd,
    listing: Dir,
    /// Its name in the folder above.
    name: CString,
    /// Whether anything in it went.
    progress: bool,
}

impl Level {
    fn new(folder: OwnedFd, name: &CStr) -> Result<Self, Errno> {
        let listing = Dir::read_from(&folder)?;
        Ok(Self { folder, listing, name: name.to_owned(), progress: false })
    }
}

/// Goes once through all that the listings show; whether anything was there.
fn empty(top: &OwnedFd, lifted: &mut u64) -> Result<bool, Errno> {
    let mut found = false;
    let mut levels = vec![Level::new(openat(top, c".", OPEN, Mode::empty())?, c".")?];
    loop {
        let open = levels.len();
        let Some(level) = levels.last_mut() else { break };
        let Some(entry) = level.listing.read() else {
            let done = levels.pop();
            let (Some(done), Some(above)) = (done, levels.last_mut()) else { break };
            match unlinkat(&above.folder, &done.name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => above.progress = true,
                // Something was left out of the listing: the folder is gone through again, as long as that helps.
                Err(Errno::NOTEMPTY | Errno::EXIST) if done.progress => {
                    let again = openat(&above.folder, &done.name, OPEN, Mode::empty())?;
                    let again = Level::new(again, &done.name)?;
                    levels.push(again);
                }
                Err(error) => return Err(error),
            }
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        found = true;
        if entry.file_type() != FileType::Directory {
            match unlinkat(&level.folder, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {
                    level.progress = true;
                    continue;
                }
                // Some file systems do not tell a folder in the listing.
                Err(Errno::ISDIR | Errno::PERM) => {}
                Err(error) => return Err(error),
            }
        }
        match unlinkat(&level.folder, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {
                level.progress = true;
                continue;
            }
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        if open < OPEN_MAX {
            let below = openat(&level.folder, name, OPEN, Mode::empty())?;
            let below = Level::new(below, name)?;
            levels.push(below);
        } else {
            lift(level, name, top, lifted)?;
            level.progress = true;
        }
    }
    Ok(found)
}

/// Moves a folder from `level` to the top under a name that is free there.
fn lift(level: &Level, name: &CStr, top: &OwnedFd, lifted: &mut u64) -> Result<(), Errno> {
    loop {
        *lifted += 1;
        let free = format!(".lifted-{lifted}");
        match renameat_with(level.folder.as_fd(), name, top, free.as_str(), RenameFlags::NOREPLACE) {
            Err(Errno::EXIST | Errno::NOTEMPTY) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn a_folder_of_any_depth_goes() {
        const DEPTH: usize = 30_000;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep");
        fs::create_dir(&path).unwrap();
        let mut at = openat(CWD, &path, OPEN, Mode::empty()).unwrap();
        for _ in 0..DEPTH {
            mkdirat(&at, c"d", Mode::RWXU).unwrap();
            at = openat(&at, c"d", OPEN, Mode::empty()).unwrap();
        }
        // A name that lifting would use is in the way.
        fs::create_dir_all(path.join(".lifted-1/x")).unwrap();
        // On a small stack: depth must not cost any.
        let removed = std::thread::Builder::new().stack_size(64 * 1024);
        removed.spawn(move || remove_dir_all(&path)).unwrap().join().unwrap().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn files_links_and_many_names_go_and_what_a_link_leads_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (path, outside) = (dir.path().join("full"), dir.path().join("outside"));
        fs::create_dir_all(path.join("a/b/c")).unwrap();
        fs::write(&outside, "stays").unwrap();
        symlink(dir.path(), path.join("a/up")).unwrap();
        symlink(&outside, path.join("a/file")).unwrap();
        for index in 0..2000 {
            fs::create_dir_all(path.join(format!("many/{index}/x"))).unwrap();
            fs::write(path.join(format!("many/f{index}")), "").unwrap();
        }
        remove_dir_all(&path).unwrap();
        assert!(!path.exists());
        symlink(dir.path(), &path).unwrap();
        remove_dir_all(&path).unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "stays");
        assert_eq!(remove_dir_all(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(remove_dir_all(&outside).is_err(), "a file is no folder");
    }
}
