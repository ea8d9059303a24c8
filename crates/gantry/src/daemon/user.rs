//! Credentials for the user behind sudo: the commands run as whoever types them.
//!
//! They are written with that user's rights into a folder that the user controls: nothing there leads root elsewhere.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::issued;
use super::kubeconfig;
use super::pki::Authority;
use super::state::State;
use crate::sudo::Caller;

/// How long a home folder may take, which may be on a network or in a program of the user's. The daemon's start waits.
const HOME_DEADLINE: Duration = Duration::from_secs(5);

/// Why a user got no credentials.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} is a link or no folder, and credentials are written to folders only", path.display())]
    NoFolder { path: PathBuf },
    #[error("{step} {}", path.display())]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("{} does not answer", path.display())]
    Silent { path: PathBuf },
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let Self::NoFolder { path } = self else { return None };
        Some(format!("make it a folder of your own (ls -ld {})", path.display()))
    }
}

/// Gives the calling user credentials, and remembers that; nothing if the daemon was not started through sudo.
pub fn issue(state: &State, server: &str, authority: &Authority) -> anyhow::Result<()> {
    let Some(user) = Caller::find() else { return Ok(()) };
    give(&user, state, server, authority)
}

/// Gives new credentials to every user whose own run out, whoever started this daemon.
pub fn renew(state: &State, server: &str, authority: &Authority) -> anyhow::Result<()> {
    for uid in issued::due(&issued::path(&state.dir), server, authority.now())? {
        let Some(user) = Caller::of(uid) else { continue };
        // One user's folder keeps nobody else waiting for theirs.
        if let Err(error) = give(&user, state, server, authority) {
            tracing::warn!(error = format!("{error:#}"), user = user.name, "renew the user's credentials");
        }
    }
    Ok(())
}

/// Writes kubeconfig and registry token to the user's `~/.config/gantry`, mode 0600, theirs. A link in their place is an
/// error; a home that cannot be written is only told in the log, as the daemon serves others too.
fn give(user: &Caller, state: &State, server: &str, authority: &Authority) -> anyhow::Result<()> {
    let token = state.registry_token()?;
    let issued = authority.client(&user.name, Some("system:masters"))?;
    let config = kubeconfig::text(server, authority, &user.name, &issued)?;
    let files = [("kubeconfig", config.into_bytes()), ("registry-token", token.as_bytes().to_vec())];
    match write(user, files.into()) {
        Err(error @ Error::NoFolder { .. }) => Err(error.into()),
        Err(error) => {
            let error = anyhow::Error::from(error);
            tracing::warn!(error = format!("{error:#}"), user = user.name, "give credentials to the user");
            Ok(())
        }
        Ok(()) => issued::note(&issued::path(&state.dir), user.owner.uid, server, authority.now()),
    }
}

/// Writes files into the user's folder, as the user.
fn write(user: &Caller, files: Vec<(&'static str, Vec<u8>)>) -> Result<(), Error> {
    let (home, folder, owner) = (user.home.clone(), user.folder(), user.owner);
    let (done, written) = mpsc::channel();
    let work = move || {
        let result = owner.acting(|| {
            folders(&folder)?;
            files.iter().try_for_each(|(name, bytes)| {
                let path = folder.join(name);
                durable::write(&path, bytes).map_err(|source| Error::Io { step: "write", path, source })
            })
        });
        let result = result
            .unwrap_or_else(|source| Err(Error::Io { step: "act as the owner of", path: home, source }));
        // Nobody waits for it after the deadline.
        let _ = done.send(result);
    };
    let silent = || Error::Silent { path: user.home.clone() };
    let thread = std::thread::Builder::new().name("credentials".to_owned()).spawn(work);
    thread.map_err(|source| Error::Io { step: "start a thread for", path: user.folder(), source })?;
    written.recv_timeout(HOME_DEADLINE).unwrap_or_else(|_| Err(silent()))
}

/// Makes `~/.config` and the folder below it, both the user's alone.
fn folders(folder: &Path) -> Result<(), Error> {
    for dir in [folder.parent().unwrap_or(folder), folder] {
        match std::fs::symlink_metadata(dir) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(Error::NoFolder { path: dir.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = DirBuilder::new().mode(durable::DIR_MODE).create(dir);
                made.map_err(|source| Error::Io { step: "make", path: dir.to_owned(), source })?;
            }
            Err(source) => return Err(Error::Io { step: "look at", path: dir.to_owned(), source }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use durable::Owner;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt, chown, symlink};

    /// Needs root, to act as another user.
    #[test]
    fn credentials_are_the_users_and_no_link_leads_root_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let (home, target) = (dir.path().join("home"), dir.path().join("target"));
        for folder in [&home, &target] {
            std::fs::create_dir(folder).unwrap();
        }
        chown(&home, Some(65534), Some(65534)).unwrap();
        let user = Caller { name: "n".into(), owner: Owner { uid: 65534, gid: 65534 }, home: home.clone() };
        let give = || write(&user, vec![("kubeconfig", b"secret".to_vec())]);
        give().unwrap();
        let found = std::fs::metadata(user.folder().join("kubeconfig")).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o777), (65534, 0o600));
        std::fs::remove_dir_all(home.join(".config")).unwrap();
        for link in [home.join(".config"), home.join(".config/gantry")] {
            symlink(&target, &link).unwrap();
            assert!(matches!(give(), Err(Error::NoFolder { path }) if path == link));
            std::fs::remove_file(&link).unwrap();
            std::fs::create_dir(&link).unwrap();
            chown(&link, Some(65534), Some(65534)).unwrap();
        }
        // A link in a file's place is replaced, not followed.
        std::fs::write(target.join("of-root"), "root's").unwrap();
        symlink(target.join("of-root"), user.folder().join("kubeconfig")).unwrap();
        give().unwrap();
        assert_eq!(std::fs::read_to_string(target.join("of-root")).unwrap(), "root's");
        assert_eq!(std::fs::metadata(target.join("of-root")).unwrap().uid(), 0);
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 1);
    }
}
