//! Acting as the owner of a place: what root writes into a folder that a user controls is written with that user's
//! rights, so that whatever the user puts there (a link, a pipe, another folder in the same moment) gives nothing that
//! the user could not do without us.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::libc;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

/// A user on whose behalf files are touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Owner {
    /// Root.
    pub const ROOT: Self = Self { uid: 0, gid: 0 };

    /// Who can change what `path` leads to: the nearest of the file and the folders above whose owner is not root;
    /// root if all are root's.
    pub fn of(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        for place in path.ancestors() {
            match std::fs::symlink_metadata(place) {
                Ok(found) if found.uid() != 0 => return Ok(Self { uid: found.uid(), gid: found.gid() }),
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self::ROOT)
    }

    /// Runs `work` with this user's rights over files, if the process is root's; else with the process's own.
    ///
    /// It runs on a thread of its own: the kernel keeps the user of file accesses for each thread (credentials(7)), and
    /// with it goes what lets root pass modes.
    pub fn acting<T: Send>(self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        if self.uid == 0 || !nix::unistd::geteuid().is_root() {
            return Ok(work());
        }
        std::thread::scope(|scope| {
            let worker =
                std::thread::Builder::new().spawn_scoped(scope, || self.become_it().map(|()| work()))?;
            worker.join().unwrap_or_else(|_| Err(io::Error::other("the work as another user panicked")))
        })
    }

    /// Makes the calling thread's file accesses this user's, for good.
    fn become_it(self) -> io::Result<()> {
        let group = self.gid;
        // The C library would change every thread's groups.
        // SAFETY: the kernel reads one group id, which lives across the call.
        let result = unsafe { libc::syscall(libc::SYS_setgroups, 1usize, &raw const group) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        setfsgid(gid);
        setfsuid(uid);
        // These calls have no error: asked again they answer what holds.
        if setfsgid(gid) != gid || setfsuid(uid) != uid {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the kernel did not change the user",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    const NOBODY: Owner = Owner { uid: 65534, gid: 65534 };

    #[test]
    fn a_place_is_whose_who_can_change_it() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("theirs");
        std::fs::create_dir(&theirs).unwrap();
        assert_eq!(Owner::of(&theirs.join("a/b")).unwrap(), Owner::ROOT);
        chown(&theirs, Some(NOBODY.uid), Some(NOBODY.gid)).unwrap();
        std::fs::write(theirs.join("of-root"), "").unwrap();
        for path in ["", "a/b", "of-root"] {
            assert_eq!(Owner::of(&theirs.join(path)).unwrap(), NOBODY, "{path}");
        }
    }

    /// Needs root: another user's process has no rights to give up.
    #[test]
    fn a_link_that_a_user_planted_leads_nowhere_that_the_user_may_not_go() {
        let dir = tempfile::tempdir().unwrap();
        let open =
            |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        open(dir.path(), 0o755);
        let (theirs, ours) = (dir.path().join("theirs"), dir.path().join("ours"));
        for folder in [&theirs, &ours] {
            std::fs::create_dir(folder).unwrap();
            open(folder, 0o755);
        }
        chown(&theirs, Some(NOBODY.uid), Some(NOBODY.gid)).unwrap();
        symlink(&ours, theirs.join("link")).unwrap();
        let written = |path: std::path::PathBuf| NOBODY.acting(move || crate::write(&path, b"x")).unwrap();
        assert_eq!(written(theirs.join("link/a")).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(!ours.join("a").exists());
        written(theirs.join("a")).unwrap();
        assert_eq!(Owner::of(&theirs.join("a")).unwrap(), NOBODY);
        // The calling thread is root's as before.
        crate::write(&ours.join("b"), b"x").unwrap();
    }
}
