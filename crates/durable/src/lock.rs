//! One owner a folder: an advisory lock that the kernel drops when its holder dies.
//!
//! Its file has mode 0600: who cannot open it cannot hold it. It belongs to the open file (`F_OFD_SETLK`, fcntl(2)), and unlike with flock others can ask whether it is held without
//! holding it themselves for a moment, in which an owner that starts would be refused.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody holds it.
    #[error("{} is held by process {}", path.display(), holder.as_deref().unwrap_or("unknown"))]
    Held {
        /// The lock's file.
        path: PathBuf,
        /// What the holder wrote there: its process id.
        holder: Option<String>,
    },
    /// The file could not be opened or written.
    #[error("lock {}", path.display())]
    Io {
        /// The lock's file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The lock; dropping it, or dying, lets it go.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// How often a lock that is held is tried again: the kernel's own wait has no deadline.
const TRY_AGAIN: Duration = Duration::from_millis(5);

impl Lock {
    /// Takes the lock as soon as its holder lets it go, or says who still holds it after `patience`.
    pub fn acquire_within(path: &Path, patience: Duration) -> Result<Self, Error> {
        let deadline = Instant::now() + patience;
        loop {
            match Self::acquire(path) {
                Err(Error::Held { .. }) if Instant::now() < deadline => std::thread::sleep(TRY_AGAIN),
                result => return result,
            }
        }
    }

    /// Takes the lock or says who holds it; never waits. The file then holds this process's id.
    pub fn acquire(path: &Path) -> Result<Self, Error> {
        let mut lock = Self::hold(path)?;
        sign(&mut lock.file).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Ok(lock)
    }

    /// Like [`Lock::acquire`], but the file stays as it is, which needs no room on the disk.
    pub fn hold(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole(libc::F_WRLCK))) {
            Ok(_) => {}
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => {
                let mut holder = String::new();
                let read = (&mut file).take(64).read_to_string(&mut holder).is_ok();
                let holder = holder.trim().to_owned();
                return Err(Error::Held {
                    path: path.to_owned(),
                    holder: (read && !holder.is_empty()).then_some(holder),
                });
            }
            Err(errno) => return Err(io(errno.into())),
        }
        Ok(Self { file })
    }

    /// Another descriptor of the held lock, for a process that this one starts or becomes: the lock is held until the
    /// last of them is closed. It is closed at exec, as every descriptor is, unless the caller says otherwise.
    pub fn pass_on(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// Takes over what [`Lock::pass_on`] gave, if it is the lock at `path` and this process may hold it. The file then
    /// holds this process's id.
    pub fn inherit(descriptor: OwnedFd, path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let mut file = File::from(descriptor);
        let (ours, theirs) = (file.metadata().map_err(io)?, std::fs::metadata(path).map_err(io)?);
        if (ours.dev(), ours.ino()) != (theirs.dev(), theirs.ino()) {
            return Err(io(io::ErrorKind::InvalidInput.into()));
        }
        // The lock belongs to the open file: whoever has it may take it again, nobody else may.
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole(libc::F_WRLCK))) {
            Ok(_) => {}
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => {
                return Err(Error::Held { path: path.to_owned(), holder: None });
            }
            Err(errno) => return Err(io(errno.into())),
        }
        sign(&mut file).map_err(io)?;
        Ok(Self { file })
    }

    /// Whether somebody holds the lock whose file this is.
    pub fn is_held(file: &File) -> io::Result<bool> {
        let mut asked = whole(libc::F_WRLCK);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut asked))?;
        Ok(asked.l_type != libc::F_UNLCK as libc::c_short)
    }
}

/// Writes who holds it, over what stood there: on a full disk the file keeps its one block.
fn sign(file: &mut File) -> io::Result<()> {
    file.rewind()?;
    let line = format!("{}\n", std::process::id());
    file.write_all(line.as_bytes())?;
    file.set_len(line.len() as u64)
}

/// A lock of the whole file.
fn whole(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::acquire(&path).unwrap();
        let error = Lock::acquire(&path).unwrap_err();
        assert!(
            error.to_string().ends_with(&format!("is held by process {}", std::process::id())),
            "{error}"
        );
        let file = File::open(&path).unwrap();
        assert!(Lock::is_held(&file).unwrap());
        assert!(matches!(Lock::acquire_within(&path, Duration::ZERO), Err(Error::Held { .. })));
        let waits = std::thread::spawn({
            let path = path.clone();
            move || Lock::acquire_within(&path, Duration::from_secs(60)).map(drop)
        });
        drop(first);
        waits.join().unwrap().unwrap();
        assert!(!Lock::is_held(&file).unwrap());
        Lock::acquire(&path).unwrap();
    }

    #[test]
    fn a_lock_that_is_passed_on_is_held_by_whoever_has_it_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::acquire(&path).unwrap();
        let passed = first.pass_on().unwrap();
        let file = File::open(&path).unwrap();
        drop(first);
        assert!(Lock::is_held(&file).unwrap(), "the descriptor that was passed on still holds it");
        let second = Lock::inherit(passed, &path).unwrap();
        assert!(Lock::acquire(&path).is_err());
        drop(second);
        assert!(!Lock::is_held(&file).unwrap());
        // One that is not that lock, or not held by whoever passes it on, is refused.
        let other = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let _holder = Lock::acquire(&path).unwrap();
        assert!(matches!(Lock::inherit(other.into(), &path), Err(Error::Held { .. })));
        let elsewhere = Lock::acquire(&dir.path().join("other")).unwrap();
        assert!(matches!(Lock::inherit(elsewhere.pass_on().unwrap(), &path), Err(Error::Io { .. })));
    }
}
