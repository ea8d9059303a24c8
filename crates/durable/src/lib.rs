//! Files that are whole or absent.
//!
//! **Invariant:** after a function here returns `Ok`, what it wrote survives a power cut; if it does not return,
//! a reader finds the old file or none, never a part of the new one. That takes three steps, in this order: fsync
//! of the file, rename over its final name, fsync of the folder that holds the name.
//!
//! **Private unless said otherwise:** files get mode 0600 and folders 0700; a mode that is given holds exactly, whatever
//! the process's umask.

pub mod lock;
mod owner;
pub mod record;
mod staged;
mod tree;

pub use lock::Lock;
pub use owner::Owner;
pub use staged::{Staged, commit_together};
pub use tree::remove_dir_all;

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Prefix of files that are being written. A crash may leave one; [`sweep`] removes them.
pub const STAGED_PREFIX: &str = ".staged-";

/// Permission bits of files that only their owner may read.
pub const FILE_MODE: u32 = 0o600;
/// Permission bits of folders that only their owner may enter.
pub const DIR_MODE: u32 = 0o700;

/// Writes `bytes` to `path` with [`FILE_MODE`]: afterwards the file is there, whole and durable.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_with_mode(path, bytes, FILE_MODE)
}

/// Like [`write()`], with permission bits `mode`.
pub fn write_with_mode(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    use io::Write as _;
    let mut staged = Staged::with_mode(parent(path)?, mode)?;
    staged.write_all(bytes)?;
    staged.commit(path)
}

/// Removes the file, durably. A file that is not there is no error.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_dir(parent(path)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Renames durably; both names are on one file system.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    sync_dir(parent(to)?)?;
    let (old, new) = (parent(from)?, parent(to)?);
    if old == new { Ok(()) } else { sync_dir(old) }
}

/// Makes the folder and what is missing above it with [`DIR_MODE`]; each new name is durable.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    create_dir_all_with_mode(path, DIR_MODE)
}

/// Like [`create_dir_all`], with permission bits `mode` for each folder that is made.
pub fn create_dir_all_with_mode(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = parent(path)?;
    create_dir_all_with_mode(above, mode)?;
    match DirBuilder::new().mode(mode & DIR_MODE).create(path) {
        Ok(()) => {
            std::fs::set_permissions(path, Permissions::from_mode(mode))?;
            sync_dir(above)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes the names in `dir` durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes what a crash left half-written in `dir`. Only for the folder's one writer, before it writes.
/// Returns how many files it removed.
pub fn sweep(dir: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(STAGED_PREFIX.as_bytes()) {
            std::fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn parent(path: &Path) -> io::Result<&Path> {
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => Ok(Path::new(".")),
        Some(dir) => Ok(dir),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, "the path has no folder")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_written_file_replaces_the_old_one_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, b"one").unwrap();
        write_with_mode(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn modes_are_private_or_what_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let mode =
            |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o7777;
        // Wider than what any usual umask leaves.
        write_with_mode(&dir.path().join("wide"), b"", 0o666).unwrap();
        create_dir_all_with_mode(&dir.path().join("open/inner"), 0o777).unwrap();
        write(&dir.path().join("secret"), b"").unwrap();
        create_dir_all(&dir.path().join("closed/inner")).unwrap();
        assert_eq!([mode("wide"), mode("open"), mode("open/inner")], [0o666, 0o777, 0o777]);
        assert_eq!([mode("secret"), mode("closed"), mode("closed/inner")], [0o600, 0o700, 0o700]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("inside"), b"x").unwrap();
        assert!(write(&path, b"two").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_committed_together_are_all_there_or_none_is() {
        use std::io::Write as _;
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other");
        std::fs::create_dir(&other).unwrap();
        let stage = |folder: &Path, name: &str| {
            let mut staged = Staged::new(folder).unwrap();
            staged.write_all(name.as_bytes()).unwrap();
            (staged, folder.join(name))
        };
        commit_together(vec![stage(dir.path(), "a"), stage(&other, "b"), stage(dir.path(), "c")]).unwrap();
        assert_eq!(std::fs::read(other.join("b")).unwrap(), b"b");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
        drop(vec![stage(dir.path(), "d"), stage(&other, "e")]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
        commit_together(Vec::new()).unwrap();
    }

    #[test]
    fn sweep_removes_only_what_is_half_written() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(format!("{STAGED_PREFIX}1")), b"x").unwrap();
        std::fs::write(dir.path().join("kept"), b"x").unwrap();
        assert_eq!(sweep(dir.path()).unwrap(), 1);
        assert!(dir.path().join("kept").exists());
    }

    #[test]
    fn folders_are_made_all_the_way_down() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create_dir_all(&deep).unwrap();
        create_dir_all(&deep).unwrap();
        assert!(deep.is_dir());
        remove(&deep.join("absent")).unwrap();
    }
}
