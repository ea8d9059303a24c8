//! Who may do what with a state folder: others pass through it to `endpoints.json`, and everything else is root's.
//!
//! **Invariant:** once [`repair`] has returned, no other user reads, writes, connects to or locks anything in the folder
//! but [`PUBLIC`]; processes that called [`private_process`] keep it so. What containers must reach, they reach by their
//! mounts and not by its path.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::Mode;

/// The folder itself: others may pass, and see no names.
pub const STATE_MODE: u32 = 0o711;
/// Files directly in it that others need, sorted: where the daemon listens.
pub const PUBLIC: &[&str] = &["endpoints.json"];
/// Their permission bits.
pub const PUBLIC_MODE: u32 = 0o644;

/// Folders whose files are repaired one by one; they are few. The others' content lies behind the folder's own mode.
const SEARCHED: &[&str] = &["ca", "logs", "run", "store"];

/// Why a state folder cannot be used, or not be closed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} belongs to user {uid}, who could lead the daemon's writes elsewhere", path.display())]
    Foreign { path: PathBuf, uid: u32 },
    #[error("{step} {}", path.display())]
    Io { step: &'static str, path: PathBuf, source: io::Error },
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Foreign { path, .. } => Some(format!(
                "choose a folder of root's with --state-dir, or, if its content is trusted: sudo chown -h root: {}",
                path.display()
            )),
            Self::Io { .. } => None,
        }
    }

    fn io<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self::Io { step, path: path.to_owned(), source }
    }
}

/// Makes everything that this process and its children create private, unless its maker gives a mode.
pub fn private_process() {
    rustix::process::umask(Mode::from_raw_mode(0o077));
}

/// Makes the state folder if it is not there; one that is there must be ours.
pub fn make(dir: &Path) -> Result<(), Error> {
    if !dir.exists() {
        let make = |dir: &Path, mode| durable::create_dir_all_with_mode(dir, mode);
        let above = dir.parent().map_or(Ok(()), |above| make(above, 0o755));
        above.and_then(|()| make(dir, STATE_MODE)).map_err(Error::io("make the state folder", dir))?;
    }
    let found = fs::metadata(dir).map_err(Error::io("look at the state folder", dir))?;
    ours(dir, &found)
}

/// Gives the folder and what lies in it the modes of the invariant: an earlier release left them open. For the owner of
/// the folder's lock.
pub fn repair(dir: &Path) -> Result<(), Error> {
    // The folder first: from then on nobody else can put anything into it.
    set(dir, STATE_MODE)?;
    close(dir, PUBLIC)?;
    SEARCHED
        .iter()
        .map(|name| dir.join(name))
        .filter(|inner| inner.is_dir())
        .try_for_each(|inner| close(&inner, &[]))
}

/// Closes every file and folder directly in `dir` but the public ones.
fn close(dir: &Path, public: &[&str]) -> Result<(), Error> {
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        let path = entry.path();
        let found = match entry.metadata() {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("look at", &path)(error)),
        };
        if found.is_symlink() {
            ours(&path, &found)?;
        } else if found.is_dir() {
            set(&path, durable::DIR_MODE)?;
        } else if public.iter().any(|name| entry.file_name() == **name) {
            set(&path, PUBLIC_MODE)?;
        } else {
            set(&path, durable::FILE_MODE)?;
        }
    }
    Ok(())
}

fn set(path: &Path, mode: u32) -> Result<(), Error> {
    let result = fs::metadata(path).and_then(|found| match found.mode() & 0o7777 == mode {
        true => Ok(()),
        false => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
    });
    match result {
        // A keeper that ends takes its files away.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io("set the mode of", path)),
    }
}

fn ours(path: &Path, found: &fs::Metadata) -> Result<(), Error> {
    let uid = found.uid();
    let is_ours = uid == rustix::process::geteuid().as_raw() || uid == 0;
    if is_ours { Ok(()) } else { Err(Error::Foreign { path: path.to_owned(), uid }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn rows_are_sorted() {
        assert!(PUBLIC.is_sorted() && SEARCHED.is_sorted());
    }

    #[test]
    fn an_open_folder_of_an_earlier_release_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("deep/state");
        make(&state).unwrap();
        assert_eq!(mode(&state), STATE_MODE);
        for name in ["store", "run", "blobs/sha256", "pods"] {
            fs::create_dir_all(state.join(name)).unwrap();
            fs::set_permissions(state.join(name), PermissionsExt::from_mode(0o755)).unwrap();
        }
        for name in ["endpoints.json", "kubeconfig", "instance", "store/store.redb", "run/netns.lock"] {
            fs::write(state.join(name), "").unwrap();
            fs::set_permissions(state.join(name), PermissionsExt::from_mode(0o664)).unwrap();
        }
        fs::set_permissions(&state, PermissionsExt::from_mode(0o777)).unwrap();
        repair(&state).unwrap();
        let modes = |names: &[&str]| names.iter().map(|name| mode(&state.join(name))).collect::<Vec<_>>();
        assert_eq!(modes(&["", "endpoints.json"]), [0o711, 0o644]);
        assert_eq!(modes(&["store", "run", "blobs", "pods"]), [0o700; 4]);
        assert_eq!(modes(&["kubeconfig", "instance", "store/store.redb", "run/netns.lock"]), [0o600; 4]);
    }

    /// Needs root, to make something another user's.
    #[test]
    fn what_somebody_else_could_turn_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/nowhere", dir.path().join("kept")).unwrap();
        repair(dir.path()).unwrap();
        symlink("/etc", dir.path().join("store")).unwrap();
        lchown(dir.path().join("store"), Some(65534), Some(65534)).unwrap();
        let error = repair(dir.path()).unwrap_err();
        assert!(matches!(&error, Error::Foreign { uid: 65534, .. }), "{error}");
        assert!(error.hint().unwrap().contains("chown -h root:"));
        lchown(dir.path(), Some(65534), Some(65534)).unwrap();
        assert!(matches!(make(dir.path()), Err(Error::Foreign { .. })));
    }
}
