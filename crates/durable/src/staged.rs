//! A file that has no name yet: dropped it is gone, committed it is there, whole.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{STAGED_PREFIX, sync_dir};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A file under a temporary name in the folder that it will stay in.
#[derive(Debug)]
pub struct Staged {
    file: File,
    path: PathBuf,
    committed: bool,
}

impl Staged {
    /// Opens a new staged file in `dir` with [`crate::FILE_MODE`]; `dir` must be on the file system of the later
    /// destination.
    pub fn new(dir: &Path) -> io::Result<Self> {
        Self::with_mode(dir, crate::FILE_MODE)
    }

    /// Like [`Staged::new`], with permission bits `mode`, exactly.
    pub fn with_mode(dir: &Path, mode: u32) -> io::Result<Self> {
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!("{STAGED_PREFIX}{}-{number}", std::process::id()));
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(mode & crate::FILE_MODE);
            match options.open(&path) {
                Ok(file) => {
                    let staged = Self { file, path, committed: false };
                    if mode != crate::FILE_MODE {
                        staged.file.set_permissions(Permissions::from_mode(mode))?;
                    }
                    return Ok(staged);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            }
        }
    }

    /// The open file, for writers that seek.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// The temporary path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// fsync, rename to `destination` (replacing what is there), fsync of its folder.
    pub fn commit(mut self, destination: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        self.rename(destination)?;
        sync_dir(crate::parent(destination)?)
    }

    fn rename(&mut self, destination: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, destination)?;
        self.committed = true;
        Ok(())
    }
}

/// Commits several files with few waits for the disk: their contents are synced at the same time, then they get their
/// names in the order given, then their folders are synced in that order. File systems with a journal keep the order
/// of names, so after a power cut a file has its name only if those before it have theirs.
pub fn commit_together(mut files: Vec<(Staged, PathBuf)>) -> io::Result<()> {
    sync_contents(&files)?;
    let mut folders: Vec<&Path> = Vec::new();
    for (staged, destination) in &mut files {
        staged.rename(destination)?;
        let folder = crate::parent(destination)?;
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders.into_iter().try_for_each(sync_dir)
}

/// fsync of all at once: the file system writes its journal once for those that wait for it together.
fn sync_contents(files: &[(Staged, PathBuf)]) -> io::Result<()> {
    let Some(((first, _), rest)) = files.split_first() else { return Ok(()) };
    std::thread::scope(|scope| {
        let sync = |staged: &Staged| staged.file.sync_all();
        let others: Vec<_> = rest
            .iter()
            .map(|(staged, _)| {
                (staged, std::thread::Builder::new().spawn_scoped(scope, move || sync(staged)))
            })
            .collect();
        let mut result = sync(first);
        for (staged, thread) in others {
            let synced = match thread.map(std::thread::ScopedJoinHandle::join) {
                Ok(joined) => {
                    joined.unwrap_or_else(|_| Err(io::Error::other("a thread that synced panicked")))
                }
                // No thread to be had: then one after the other.
                Err(_) => sync(staged),
            };
            result = result.and(synced);
        }
        result
    })
}

impl Write for Staged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing can be done about a failure here; `sweep` removes the file at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
