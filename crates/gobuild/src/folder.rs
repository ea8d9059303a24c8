//! The folder that one build writes into.
//!
//! **Invariant:** it is its maker's alone (mode 0700), and it goes with its maker: dropped it is removed, and what a killed
//! one left is removed by the same user's next build, which finds that nobody holds the lock in it.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    time::{Duration, SystemTime},
};

use durable::Lock;

/// Begins the folder's name.
const PREFIX: &str = "gantry-build-";
/// The file in it that its maker holds locked.
const LOCK: &str = "lock";
/// A folder without that file is being made, or of a release that made none: no build takes so long.
const UNLOCKED_AGE: Duration = Duration::from_secs(24 * 3600);

/// A build's folder.
#[derive(Debug)]
pub(crate) struct Folder {
    // Before the folder, so that nobody finds the folder unlocked.
    folder: tempfile::TempDir,
    _lock: Lock,
}

impl Folder {
    /// Makes one in the system's folder for temporary files, and removes there what killed builds of this user left.
    pub(crate) fn new() -> io::Result<Self> {
        Self::below(&std::env::temp_dir())
    }

    fn below(temporary: &Path) -> io::Result<Self> {
        sweep(temporary);
        let private = Permissions::from_mode(durable::DIR_MODE);
        let folder = tempfile::Builder::new().prefix(PREFIX).permissions(private).tempdir_in(temporary)?;
        let lock = Lock::hold(&folder.path().join(LOCK)).map_err(io::Error::other)?;
        Ok(Self { folder, _lock: lock })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes the folders of this user that nobody holds. What cannot be looked at or removed stays: another build may be
/// at it, and this one does not need it gone.
fn sweep(temporary: &Path) {
    let Ok(entries) = fs::read_dir(temporary) else { return };
    for entry in entries.filter_map(Result::ok) {
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let path = entry.path();
        // Of the name itself: another user's folder, or a link, is not ours to look into.
        let Ok(found) = entry.metadata() else { continue };
        if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() || is_held(&path, &found) {
            continue;
        }
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::debug!(%error, path = %path.display(), "remove what a killed build left");
        }
    }
}

fn is_held(path: &Path, found: &fs::Metadata) -> bool {
    match fs::File::open(path.join(LOCK)) {
        Ok(file) => Lock::is_held(&file).unwrap_or(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let age = found.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
            age.is_none_or(|age| age < UNLOCKED_AGE)
        }
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{lchown, symlink};

    #[test]
    fn a_killed_builds_folder_goes_with_the_next_build_and_a_living_ones_stays() {
        let temporary = tempfile::tempdir().unwrap();
        let at = temporary.path();
        let living = Folder::below(at).unwrap();
        assert_eq!(fs::metadata(living.path()).unwrap().mode() & 0o7777, 0o700);
        let dead = at.join("gantry-build-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK), "1").unwrap();
        fs::write(dead.join("program"), "x").unwrap();
        // Being made at this moment; not ours; a link.
        let (young, theirs) = (at.join("gantry-build-young"), at.join("gantry-build-theirs"));
        for folder in [&young, &theirs] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(theirs.join(LOCK), "1").unwrap();
        lchown(&theirs, Some(65534), Some(65534)).unwrap();
        let target = at.join("target");
        fs::create_dir(&target).unwrap();
        fs::write(target.join(LOCK), "1").unwrap();
        symlink(&target, at.join("gantry-build-link")).unwrap();
        let next = Folder::below(at).unwrap();
        assert!(!dead.exists());
        assert!(living.path().exists() && young.exists() && theirs.exists() && target.join(LOCK).exists());
        let gone = next.path().to_owned();
        drop(next);
        assert!(!gone.exists());
    }
}
